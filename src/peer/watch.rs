//! The host's side of Watch: all there is, then every change, for as long as the controller listens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
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
    let mut first =
        vec![News::Greeting(Greeting { host: host.name().to_string(), version: env!("CARGO_PKG_VERSION").to_owned() })];
    let mut is_whole = false;
    loop {
        let looked = look(&host, &watcher, told).await;
        let Some((now, news, ids_left)) = looked else { return };
        told = now;
        let mut news: Vec<News> = first.drain(..).chain(news).collect();
        if !is_whole && !ids_left {
            is_whole = true;
            news.push(News::Whole(Whole {}));
        }
        if !news.is_empty() {
            let reports = news.into_iter().map(|news| Report { news: Some(news) }).collect();
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
}

/// Looks at what has changed. Stores are files: never on a thread that others wait for.
async fn look(host: &Arc<Host>, watcher: &Arc<Watcher>, told: Told) -> Option<(Told, Vec<News>, bool)> {
    let (host, watcher) = (Arc::clone(host), Arc::clone(watcher));
    let looking = tokio::task::spawn_blocking(move || {
        let (told, mut news) = pools(&host, &watcher, told);
        let ids = watcher.take(ENTRIES);
        let ids_left = ids.len() == ENTRIES;
        news.extend(ids.iter().map(|id| describe::entry(&host, id).unwrap_or_else(|| News::Gone(id.to_string()))));
        (told, news, ids_left)
    });
    looking.await.ok()
}

/// The pools that are not as they were told. What is in a store that was not there before is all news.
fn pools(host: &Host, watcher: &Watcher, mut told: Told) -> (Told, Vec<News>) {
    let now: BTreeMap<String, internal::Pool> =
        host.pools().iter().map(|pool| (pool.spec.name.to_string(), describe::pool(host.name(), pool))).collect();
    let mut news = Vec::new();
    for gone in told.pools.keys().filter(|name| !now.contains_key(*name)) {
        news.push(News::PoolGone(gone.clone()));
    }
    for (name, pool) in &now {
        let before = told.pools.get(name);
        if before != Some(pool) {
            news.push(News::Pool(pool.clone()));
        }
        if !pool.store.is_empty() && before.map(|before| &before.store) != Some(&pool.store) {
            watcher.note(ids_in(host, &pool.store));
        }
    }
    told.pools = now;
    (told, news)
}

fn ids_in(host: &Host, store: &str) -> Vec<Id> {
    let store = host.stores().into_iter().find(|open| open.id.to_string() == store);
    store.map_or(Vec::new(), |store| store.records().all().into_iter().map(|(key, _)| store.id_of(key)).collect())
}
