//! `/metrics` and `/healthz`, for whoever watches a server. Neither waits for a disk that hangs, and neither says anything
//! that is a secret; they are plain HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use cistern::domain::Kind;
use cistern::machine::command;
use cistern::peer::Looks;
use cistern::pool::Host;
use cistern::pool::records::State;
use cistern::proto::internal;
use cistern::route::Fleet;

use super::server::Failure;

/// What every name begins with.
const PREFIX: &str = "cistern";
/// The format that prometheus_client writes.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where what is shown comes from.
#[derive(Default)]
pub struct Watched {
    /// The machine's stores, if it has any.
    pub host: Option<Arc<Host>>,
    /// The fleet, of a controller.
    pub fleet: Option<Arc<Fleet>>,
    /// Whether the server is well; one without this is as soon as it answers.
    pub is_well: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

struct Door {
    watched: Watched,
    /// What is counted in this process.
    counted: Registry,
    /// One look at the pools at a time, whoever asks.
    looks: Mutex<Looks>,
}

/// Serves both on this address until the stop.
pub async fn open(address: SocketAddr, watched: Watched, stop: &CancellationToken) -> Result<(), Failure> {
    let bound = tokio::net::TcpListener::bind(address).await;
    let listener = bound.map_err(|error| format!("{address}: {error}"))?;
    let mut counted = Registry::with_prefix(PREFIX);
    counted.register("build", "The program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    cistern::csi::register_metrics(&mut counted);
    command::register_metrics(&mut counted);
    let door = Arc::new(Door { watched, counted, looks: Mutex::default() });
    let health = Arc::clone(&door);
    let router = Router::new()
        .route("/metrics", get(move || metrics(Arc::clone(&door))))
        .route("/healthz", get(move || healthz(Arc::clone(&health))));
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "metrics are not shown any more");
        }
    });
    Ok(())
}

async fn healthz(door: Arc<Door>) -> StatusCode {
    let is_well = door.watched.is_well.as_ref().is_none_or(|is_well| is_well());
    if is_well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }
}

async fn metrics(door: Arc<Door>) -> impl IntoResponse {
    let mut measured = Registry::with_prefix(PREFIX);
    if let Some(host) = &door.watched.host {
        pools(&mut measured, host, &door.looks).await;
    }
    if let Some(fleet) = &door.watched.fleet {
        hosts(&mut measured, fleet);
    }
    let mut page = String::new();
    // writing to a String does not fail
    let _ = text::encode_registry(&mut page, &measured);
    let _ = text::encode(&mut page, &door.counted);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], page)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Things {
    pool: String,
    /// `volume` or `snapshot`
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hosts {
    /// `here` or `away`
    state: &'static str,
}

/// The machine's pools as they are now.
async fn pools(registry: &mut Registry, host: &Arc<Host>, looks: &Mutex<Looks>) {
    let bytes = || Family::<OfPool, Gauge>::default();
    let (up, total, free, promised, available) = (bytes(), bytes(), bytes(), bytes(), bytes());
    for pool in looks.lock().await.pools_now(host).await.into_values() {
        let internal::Pool { name, down, total_bytes, free_bytes, promised_bytes, available_bytes, .. } = pool;
        let of = OfPool { pool: name };
        up.get_or_create(&of).set(i64::from(down.is_empty()));
        let sizes =
            [(&total, total_bytes), (&free, free_bytes), (&promised, promised_bytes), (&available, available_bytes)];
        for (family, size) in sizes.into_iter().filter(|_| down.is_empty()) {
            family.get_or_create(&of).set(i64::try_from(size).unwrap_or(i64::MAX));
        }
    }
    registry.register("pool_up", "Whether the pool's store is open and its disk answers", up);
    registry.register("pool_total_bytes", "All there is", total);
    registry.register("pool_free_bytes", "What nothing uses now", free);
    registry.register("pool_promised_bytes", "What is promised to volumes and snapshots", promised);
    registry.register("pool_available_bytes", "What may still be promised", available);
    let (records, jobs) = (Family::<Things, Gauge>::default(), bytes());
    for store in host.stores() {
        let pool = store.pool.to_string();
        let of = |kind| records.get_or_create_owned(&Things { pool: pool.clone(), kind });
        let (volumes, snapshots) = (of("volume"), of("snapshot"));
        let jobs = jobs.get_or_create_owned(&OfPool { pool: pool.clone() });
        store.records().walk_after(None, |key, entry| {
            match key.kind() {
                Kind::Volume if entry.state == State::Ready => {
                    volumes.inc();
                }
                Kind::Snapshot if entry.state == State::Ready => {
                    snapshots.inc();
                }
                Kind::Volume | Kind::Snapshot | Kind::Temporary => {}
            }
            if entry.record.job.is_some() {
                jobs.inc();
            }
            true
        });
    }
    registry.register("pool_records", "Volumes and snapshots that are ready", records);
    registry.register("pool_jobs", "Copies, zeroings and the like that are not done", jobs);
}

/// The fleet's hosts as a controller sees them.
fn hosts(registry: &mut Registry, fleet: &Fleet) {
    let hosts = Family::<Hosts, Gauge>::default();
    for state in ["here", "away"] {
        hosts.get_or_create(&Hosts { state }).set(0);
    }
    for link in fleet.links() {
        let state = if link.is_here() { "here" } else { "away" };
        hosts.get_or_create(&Hosts { state }).inc();
    }
    registry.register("hosts", "Hosts of the fleet, and whether they answer this controller", hosts);
}
