//! Who watches a host, and what of it each has still to be told. A watcher holds names of what has changed and not the
//! changes: however slow it is, it never holds more than there is, and what it reads is the state of now.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use super::records::OnChange;
use crate::domain::{Id, StoreId};

/// The watchers of one host.
#[derive(Debug, Clone, Default)]
pub struct News(Arc<Mutex<Vec<Weak<Watcher>>>>);

/// One who watches: told of changes until it is dropped.
#[derive(Debug, Default)]
pub struct Watcher {
    changed: Mutex<BTreeSet<Id>>,
    wake: Notify,
}

impl News {
    /// A watcher that is told of all that changes from now on.
    pub fn watch(&self) -> Arc<Watcher> {
        let watcher = Arc::new(Watcher::default());
        let mut watchers = lock(&self.0);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(Arc::downgrade(&watcher));
        watcher
    }

    /// What the records of this store are to call when one has changed.
    pub(super) fn of_store(&self, store: StoreId) -> OnChange {
        let news = self.clone();
        Box::new(move |key| news.tell(|watcher| watcher.note([Id { store, key }])))
    }

    /// Wakes all watchers: something else than a record has changed.
    pub(super) fn pools_changed(&self) {
        self.tell(|watcher| watcher.wake.notify_one());
    }

    fn tell(&self, tell: impl Fn(&Watcher)) {
        for watcher in lock(&self.0).iter().filter_map(Weak::upgrade) {
            tell(&watcher);
        }
    }
}

impl Watcher {
    /// Adds to what the watcher is to be told.
    pub fn note(&self, ids: impl IntoIterator<Item = Id>) {
        lock(&self.changed).extend(ids);
        self.wake.notify_one();
    }

    /// Waits until there may be something to tell.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Takes at most this many of the ids that have changed, in their order.
    pub fn take(&self, most: usize) -> Vec<Id> {
        let mut changed = lock(&self.changed);
        let Some(next) = changed.iter().nth(most).copied() else {
            return std::mem::take(&mut *changed).into_iter().collect();
        };
        let rest = changed.split_off(&next);
        std::mem::replace(&mut *changed, rest).into_iter().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::{Key, Kind, Uuid};

    #[test]
    fn a_watcher_holds_each_name_once_and_gives_them_in_order() {
        let news = News::default();
        let watcher = news.watch();
        let store = StoreId(Uuid::from_bytes([1; 16]));
        let mut keys: Vec<Key> = ["a", "b", "c"].iter().map(|name| Key::of_name(Kind::Volume, name)).collect();
        let tell = news.of_store(store);
        keys.iter().rev().chain(&keys).for_each(|key| tell(*key));
        keys.sort();
        let ids: Vec<Id> = keys.into_iter().map(|key| Id { store, key }).collect();
        assert_eq!((watcher.take(2), watcher.take(2), watcher.take(2)), (ids[..2].to_vec(), ids[2..].to_vec(), vec![]));
    }

    #[test]
    fn nobody_is_told_who_has_gone() {
        let news = News::default();
        drop(news.watch());
        let _second = news.watch();
        assert_eq!(lock(&news.0).len(), 1);
    }
}
