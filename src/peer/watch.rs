//! The host's side of Watch: all there is, then every change, for as long as the controller listens.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::describe;
use crate::domain::Id;
use crate::pool::Host;
use crate::pool::news::Watcher;
use crate::proto::internal::report::News;
use crate::proto::internal::{self, Greeting, Report, Reports, Whole};

/// How many entries one message brings: a few hundred bytes each.
const ENTRIES: usize = 256;
/// How often space is looked at, which changes without any record changing.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a look may take: a pool that takes longer holds up the news of no other.
const LOOK_BOUND: Duration = Duration::from_secs(2);

/// What a controller is sent.
pub type ReportStream = ReceiverStream<Result<Reports, Status>>;

/// Begins to tell. What is told is always the state of now, so a slow listener is told less and not later.
pub fn watch(host: Arc<Host>) -> ReportStream {
    // two: one on its way, one being made
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(tell(host, sender));
    ReceiverStream::new(receiver)
}

async fn tell(host: Arc<Host>, sender: mpsc::Sender<Result<Reports, Status>>) {
    // watches before it looks, so that nothing falls between
    let watcher = host.news().watch();
    let mut told = Told::default();
    let mut news =
        vec![News::Greeting(Greeting { host: host.name().to_string(), version: env!("CARGO_PKG_VERSION").to_owned() })];
    let mut is_whole = false;
    loop {
        news.extend(told.look(&host, &watcher).await);
        let ids = watcher.take(ENTRIES);
        let ids_left = ids.len() == ENTRIES;
        news.extend(ids.iter().filter_map(|id| describe::change(&host, id)));
        if !is_whole && !ids_left {
            is_whole = true;
            news.push(News::Whole(Whole {}));
        }
        if !news.is_empty() {
            let reports = news.drain(..).map(|news| Report { news: Some(news) }).collect();
            if sender.send(Ok(Reports { reports })).await.is_err() {
                return;
            }
        }
        if !ids_left {
            // cancel-safe: a wake-up that is missed here is made up for by the next look
            let _ = tokio::time::timeout(LOOK_EVERY, watcher.changed()).await;
        }
        if sender.is_closed() {
            return;
        }
    }
}

/// What a watcher was told of the pools and their stores.
#[derive(Debug, Default)]
struct Told {
    pools: BTreeMap<String, internal::Pool>,
    looks: Looks,
}

impl Told {
    /// The pools that are not as they were told. What is in a store that was not there before is all news.
    async fn look(&mut self, host: &Arc<Host>, watcher: &Watcher) -> Vec<News> {
        let now = self.looks.pools_now(host).await;
        let mut news = Vec::new();
        for gone in self.pools.keys().filter(|name| !now.contains_key(*name)) {
            news.push(News::PoolGone(gone.clone()));
        }
        for (name, pool) in &now {
            let before = self.pools.get(name);
            if before != Some(pool) {
                news.push(News::Pool(pool.clone()));
            }
            if !pool.store.is_empty() && before.map(|before| &before.store) != Some(&pool.store) {
                watcher.note(ids_in(host, &pool.store));
            }
        }
        self.pools = now;
        news
    }
}

/// Looks at pools, none of which holds up another.
#[derive(Debug, Default)]
pub struct Looks {
    /// Pools that are being looked at: one whose disk hangs is looked at once, and is down until it answers.
    looking: HashMap<String, JoinHandle<internal::Pool>>,
}

impl Looks {
    /// All pools, each looked at on a thread of its own, with one bound for all.
    pub async fn pools_now(&mut self, host: &Arc<Host>) -> BTreeMap<String, internal::Pool> {
        let pools = host.pools();
        for pool in &pools {
            let (name, pool) = (host.name().clone(), pool.clone());
            let looking = self.looking.entry(pool.spec.name.to_string());
            looking.or_insert_with(|| tokio::task::spawn_blocking(move || describe::pool(&name, &pool)));
        }
        let end = tokio::time::Instant::now() + LOOK_BOUND;
        let mut now = BTreeMap::new();
        for pool in &pools {
            let name = pool.spec.name.to_string();
            let Some(looking) = self.looking.get_mut(&name) else { continue };
            // cancel-safe: a handle may be awaited again
            match tokio::time::timeout_at(end, looking).await {
                Ok(looked) => {
                    self.looking.remove(&name);
                    now.extend(looked.ok().map(|looked| (name, looked)));
                }
                Err(_) => {
                    now.insert(name, describe::hung(host.name(), pool));
                }
            }
        }
        now
    }
}

fn ids_in(host: &Host, store: &str) -> Vec<Id> {
    let store = host.stores().into_iter().find(|open| open.id.to_string() == store);
    store.map_or(Vec::new(), |store| store.records().all().into_iter().map(|(key, _)| store.id_of(key)).collect())
}
