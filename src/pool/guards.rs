//! Guards: who works on what. Tried, never waited for: a call that finds its volume taken is answered ABORTED and asked
//! again. Exclusive on what changes, shared on a source, none for reads.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The guards of one store's keys, or of one node's volumes.
#[derive(Debug)]
pub struct Guards<K: Eq + Hash + Clone>(Arc<Table<K>>);

#[derive(Debug)]
struct Table<K> {
    holders: Mutex<HashMap<K, Holder>>,
    released: Condvar,
}

#[derive(Debug)]
enum Holder {
    Shared(usize),
    Exclusive { stop: Arc<AtomicBool> },
}

/// The right to work on one thing, until it is dropped. An operation owns it, whether its caller waits or not.
#[derive(Debug)]
#[must_use]
pub struct Guard<K: Eq + Hash + Clone> {
    table: Arc<Table<K>>,
    key: K,
    stop: Arc<AtomicBool>,
}

/// Somebody else works on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another operation on it is under way")]
pub struct Busy;

impl<K: Eq + Hash + Clone> Default for Guards<K> {
    fn default() -> Self {
        Guards(Arc::new(Table { holders: Mutex::default(), released: Condvar::new() }))
    }
}

impl<K: Eq + Hash + Clone> Guards<K> {
    /// The guard of someone who changes it.
    pub fn exclusive(&self, key: &K) -> Result<Guard<K>, Busy> {
        self.0.take_exclusive(&mut self.0.lock(), key).map(|stop| self.guard(key, stop))
    }

    /// The guard of someone who reads it as a source.
    pub fn shared(&self, key: &K) -> Result<Guard<K>, Busy> {
        match self.0.lock().entry(key.clone()).or_insert(Holder::Shared(0)) {
            Holder::Shared(count) => *count += 1,
            Holder::Exclusive { .. } => return Err(Busy),
        }
        Ok(self.guard(key, Arc::default()))
    }

    /// Like [`Guards::exclusive`], for the opposite call: asks a job that holds it to stop, and gives it this long.
    pub fn exclusive_after_stop(&self, key: &K, patience: Duration) -> Result<Guard<K>, Busy> {
        let end = Instant::now() + patience;
        let mut holders = self.0.lock();
        loop {
            match self.0.take_exclusive(&mut holders, key) {
                Ok(stop) => return Ok(self.guard(key, stop)),
                Err(Busy) if Instant::now() >= end => return Err(Busy),
                Err(Busy) => {}
            }
            if let Some(Holder::Exclusive { stop }) = holders.get(key) {
                stop.store(true, Ordering::Relaxed);
            }
            let left = end.saturating_duration_since(Instant::now());
            holders = self.0.released.wait_timeout(holders, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn guard(&self, key: &K, stop: Arc<AtomicBool>) -> Guard<K> {
        Guard { table: Arc::clone(&self.0), key: key.clone(), stop }
    }
}

impl<K: Eq + Hash + Clone> Table<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Holder>> {
        // no code that can panic runs under this lock
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_exclusive(&self, holders: &mut HashMap<K, Holder>, key: &K) -> Result<Arc<AtomicBool>, Busy> {
        if holders.contains_key(key) {
            return Err(Busy);
        }
        let stop = Arc::new(AtomicBool::new(false));
        holders.insert(key.clone(), Holder::Exclusive { stop: Arc::clone(&stop) });
        Ok(stop)
    }
}

impl<K: Eq + Hash + Clone> Guard<K> {
    /// Whether somebody wants this one to end: a job looks between its chunks.
    pub fn stop_is_wanted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl<K: Eq + Hash + Clone> Drop for Guard<K> {
    fn drop(&mut self) {
        let mut holders = self.table.lock();
        match holders.get_mut(&self.key) {
            Some(Holder::Shared(count)) if *count > 1 => *count -= 1,
            _ => {
                holders.remove(&self.key);
            }
        }
        drop(holders);
        self.table.released.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_excludes_all_and_shared_only_exclusive() {
        let guards = Guards::<&str>::default();
        let one = guards.shared(&"a").unwrap();
        let two = guards.shared(&"a").unwrap();
        assert_eq!(guards.exclusive(&"a").err(), Some(Busy));
        drop((one, two));
        let only = guards.exclusive(&"a").unwrap();
        assert_eq!(guards.shared(&"a").err(), Some(Busy));
        assert_eq!(guards.exclusive(&"a").err(), Some(Busy));
        assert!(guards.exclusive(&"b").is_ok());
        drop(only);
        assert!(guards.exclusive(&"a").is_ok());
    }

    #[test]
    fn a_guard_is_released_when_its_operation_panics() {
        let guards = Arc::new(Guards::<&str>::default());
        let inner = Arc::clone(&guards);
        let died = std::thread::spawn(move || {
            let _guard = inner.exclusive(&"a").unwrap();
            panic!("on purpose");
        });
        assert!(died.join().is_err());
        assert!(guards.exclusive(&"a").is_ok());
    }

    #[test]
    fn a_job_stops_for_the_opposite_call() {
        let guards = Arc::new(Guards::<&str>::default());
        let job = guards.exclusive(&"a").unwrap();
        let worker = std::thread::spawn(move || {
            while !job.stop_is_wanted() {
                std::thread::yield_now();
            }
        });
        assert!(guards.exclusive_after_stop(&"a", Duration::from_secs(60)).is_ok());
        worker.join().unwrap();
        let _other = guards.exclusive(&"a").unwrap();
        assert_eq!(guards.exclusive_after_stop(&"a", Duration::ZERO).err(), Some(Busy));
    }
}
