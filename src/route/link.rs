//! One host, as a controller reaches it: its channel, whether it can be asked now, and the task that follows its report.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use tokio::sync::Notify;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::fleet::Fleet;
use super::forward;
use crate::domain::{Key, Kind, NodeName};
use crate::peer::LARGEST_MESSAGE;
use crate::proto::internal::host_client::HostClient;
use crate::proto::internal::{self, Reports};

/// How long a host has for an answer that needs no work: one that misses it cannot be reached, from then on.
pub const BOUND: Duration = Duration::from_secs(2);
/// The same where it reads files.
const APPLY_BOUND: Duration = Duration::from_secs(10);
/// The largest answer to a question for a name: what one name has may list all hosts of a fleet.
const LARGEST_ANSWER: usize = 4 << 20;
/// How long a host's report rests, each time it has told so many bytes without a pause: one that never ends to tell costs a
/// part of one processor and no more. A single change is taken in at once: the lists soon follow what was answered.
const REST: Duration = Duration::from_millis(10);
const BYTES_A_REST: usize = 64 << 10;
/// What a message counts at least, in bytes, and after what pause nothing that came before counts any more.
const LEAST_BYTES: usize = 256;
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is said, at most, that a host is not believed.
const COMPLAIN_EVERY: Duration = Duration::from_secs(1);
/// How long the next try waits, from the first failure to a host that is long gone.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After how many bounds missed in a row a connection is given up.
const MISSED: u32 = 5;

/// One host.
pub struct Link {
    /// Its name.
    pub name: NodeName,
    channel: Channel,
    standing: Mutex<Standing>,
    suspected: Notify,
}

/// Whether a host can be asked now.
#[derive(Debug, Clone)]
pub enum Standing {
    /// It answers.
    Here {
        /// Since when.
        since: Instant,
    },
    /// It does not.
    Away {
        /// Since when, as far as this controller knows.
        since: Instant,
        /// Why; empty before the first try has ended.
        why: String,
    },
}

impl Link {
    /// A host that was not tried yet.
    pub fn new(name: NodeName, channel: Channel) -> Link {
        let away = Standing::Away { since: Instant::now(), why: String::new() };
        Link { name, channel, standing: Mutex::new(away), suspected: Notify::new() }
    }

    /// Whether it can be asked now.
    pub fn standing(&self) -> Standing {
        self.lock().clone()
    }

    /// Whether it answers.
    pub fn is_here(&self) -> bool {
        matches!(*self.lock(), Standing::Here { .. })
    }

    /// Whether it answers, or was found not to.
    pub fn was_tried(&self) -> bool {
        !matches!(&*self.lock(), Standing::Away { why, .. } if why.is_empty())
    }

    /// The channel, for messages that are handed on.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A client of the host's internal service, for short answers.
    pub fn client(&self) -> HostClient<Channel> {
        HostClient::new(self.channel()).max_decoding_message_size(LARGEST_ANSWER)
    }

    /// The same, for all that a host has.
    pub fn client_for_all(&self) -> HostClient<Channel> {
        HostClient::new(self.channel()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    /// It missed a bound: it cannot be reached from now on, until it has shown that it can.
    pub fn suspect(&self, why: &str) {
        self.away(why.to_owned());
        self.suspected.notify_one();
    }

    /// What the host has under a key, within the bound.
    pub async fn find(&self, key: &Key, claim: bool) -> Result<internal::FindResponse, Status> {
        let question = internal::FindRequest { key: key.to_string(), claim };
        within_bound(self.client().find(bounded(question))).await
    }

    /// Whether a claim still is the host's newest of a key, within the bound.
    pub async fn confirm(&self, key: &Key, claim: String) -> Result<bool, Status> {
        let question = internal::ConfirmRequest { key: key.to_string(), claim };
        within_bound(self.client().confirm(bounded(question))).await.map(|answer| answer.newest)
    }

    fn away(&self, why: String) {
        let mut standing = self.lock();
        let since = match &*standing {
            Standing::Away { since, .. } => *since,
            Standing::Here { .. } => {
                tracing::warn!(host = %self.name, why, "host is away");
                Instant::now()
            }
        };
        *standing = Standing::Away { since, why };
    }

    fn here(&self) {
        *self.lock() = Standing::Here { since: Instant::now() };
        tracing::info!(host = %self.name, "host is here");
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that the host, too, knows the bound of.
fn bounded<T>(question: T) -> Request<T> {
    let mut request = Request::new(question);
    request.set_timeout(BOUND);
    request
}

/// The answer, if it comes within the bound, also from a host that does not keep it.
async fn within_bound<T>(asking: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded(format!("no answer within {} seconds", BOUND.as_secs()));
    Ok(tokio::time::timeout(BOUND, asking).await.map_err(late)??.into_inner())
}

/// Follows the host's report for as long as it is in the fleet: connects, takes in what it tells, and begins anew when that
/// ends.
pub async fn follow(fleet: Arc<Fleet>, link: Arc<Link>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = Instant::now();
        let why = match listen(&fleet, &link).await {
            Ok(()) => "its report has ended".to_owned(),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        link.away(why);
        fleet.ended(&link.name);
        pause = if begun.elapsed() > LONGEST_PAUSE { FIRST_PAUSE } else { LONGEST_PAUSE.min(pause * 2) };
        tokio::time::sleep(pause).await;
    }
}

/// One report, from its greeting to its end. Beside it pools are brought, and the host is vouched for.
async fn listen(fleet: &Arc<Fleet>, link: &Arc<Link>) -> Result<(), Status> {
    // what was suspected of an earlier connection says nothing of this one
    let _ = tokio::time::timeout(Duration::ZERO, link.suspected.notified()).await;
    let stream = begin(link).await?;
    fleet.begun(&link.name);
    let progress = Progress::default();
    tokio::select! {
        // cancel-safe, all three: the first to end ends the connection's part in all of them
        ended = read(fleet, link, stream, &progress) => ended,
        ended = bring_pools(fleet, link, &progress) => ended,
        ended = vouch(fleet, link, &progress) => ended,
    }
}

/// How far a new connection has come.
#[derive(Default)]
struct Progress {
    /// The host has told all it has.
    is_whole: AtomicBool,
    /// The pools that are to be on it were brought, or refused.
    has_pools: AtomicBool,
    changed: Notify,
}

impl Progress {
    fn note(&self, what: &AtomicBool) {
        if !what.swap(true, Ordering::Relaxed) {
            self.changed.notify_one();
        }
    }

    async fn complete(&self) {
        while !(self.is_whole.load(Ordering::Relaxed) && self.has_pools.load(Ordering::Relaxed)) {
            self.changed.notified().await;
        }
    }
}

async fn begin(link: &Link) -> Result<Streaming<Reports>, Status> {
    let mut client = link.client_for_all();
    let late = |_| Status::deadline_exceeded("it does not answer");
    let begun = tokio::time::timeout(APPLY_BOUND, client.watch(Request::new(internal::WatchRequest {})));
    Ok(begun.await.map_err(late)??.into_inner())
}

/// Takes in what the host tells.
async fn read(fleet: &Fleet, link: &Link, mut stream: Streaming<Reports>, progress: &Progress) -> Result<(), Status> {
    let mut complaints = Complaints::default();
    let (mut told, mut last) = (0, Instant::now());
    while let Some(reports) = stream.message().await? {
        if last.elapsed() >= PAUSE {
            told = 0;
        }
        told += LEAST_BYTES.max(reports.encoded_len());
        let taken = fleet.take(&link.name, reports);
        if taken.is_whole {
            progress.note(&progress.is_whole);
        }
        complaints.note(&link.name, &taken.lies);
        let rests = u32::try_from(told / BYTES_A_REST).unwrap_or(u32::MAX);
        if rests > 0 {
            tokio::time::sleep(REST * rests).await;
            told %= BYTES_A_REST;
        }
        last = Instant::now();
    }
    Ok(())
}

/// What a host is not believed: said now and then.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: usize,
}

impl Complaints {
    fn note(&mut self, host: &NodeName, lies: &[String]) {
        let Some(why) = lies.first() else { return };
        self.unsaid += lies.len();
        if self.last.is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY) {
            let more = self.unsaid - 1;
            tracing::error!(%host, why, more, "the host reports what it may not have; it is not believed");
            (self.last, self.unsaid) = (Some(Instant::now()), 0);
        }
    }
}

/// Brings the host the pools that the fleet's owner wants on it, and again whenever they change. A host that cannot take them
/// serves what it has, and is asked again.
async fn bring_pools(fleet: &Fleet, link: &Link, progress: &Progress) -> Result<(), Status> {
    fleet.nothing_brought(&link.name);
    loop {
        if let Some(pools) = fleet.entries_of(&link.name)
            && let Err(status) = bring(fleet, link, pools).await
        {
            if forward::is_of_the_way(&status) {
                return Err(status);
            }
            tracing::error!(host = %link.name, why = status.message(), "the host cannot take the fleet's pools");
            progress.note(&progress.has_pools);
            tokio::time::sleep(APPLY_BOUND).await;
            continue;
        }
        progress.note(&progress.has_pools);
        fleet.pools_differ(&link.name).await;
    }
}

async fn bring(fleet: &Fleet, link: &Link, pools: Vec<String>) -> Result<(), Status> {
    let mut request = Request::new(internal::ApplyRequest { pools: pools.clone() });
    request.set_timeout(APPLY_BOUND);
    let answer = link.client().apply(request).await?.into_inner();
    let refused = answer.refusals.into_iter().take(pools.len()).map(|refusal| (refusal.pool, refusal.why));
    let refused: BTreeMap<String, String> = refused.collect();
    for (pool, why) in &refused {
        tracing::error!(host = %link.name, pool, why, "the host refuses a pool");
    }
    fleet.brought(&link.name, pools, refused);
    Ok(())
}

/// Lets the host be asked once it has told all it has, and answers within the bound: one that greets and does not answer is of
/// no use. When it misses the bound later, it has to show that it can again; its report goes on.
async fn vouch(fleet: &Fleet, link: &Link, progress: &Progress) -> Result<(), Status> {
    progress.complete().await;
    let nothing = Key::of_name(Kind::Volume, "");
    let mut missed = 0;
    loop {
        match link.find(&nothing, false).await {
            Ok(_) => {
                missed = 0;
                link.here();
                fleet.host_changed();
                link.suspected.notified().await;
            }
            Err(status) => {
                missed += 1;
                link.away(format!("{:?}: {}", status.code(), status.message()));
                if missed >= MISSED {
                    return Err(status);
                }
                tokio::time::sleep(FIRST_PAUSE).await;
            }
        }
    }
}
