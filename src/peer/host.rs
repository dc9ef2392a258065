//! The host's half of the internal service.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::{Request, Response, Status};

use super::describe;
use super::read::{self, BlockStream};
use super::roles;
use super::watch::{self, ReportStream};
use crate::config::{self, PoolFiles};
use crate::csi::{Coded, run_apart};
use crate::domain::{Id, Key, Kind, NodeName, Role, Uuid};
use crate::machine::file;
use crate::pool::Host;
use crate::pool::operations::{self, Findings, Settlement};
use crate::pool::tasks::Tasks;
use crate::proto::internal::report::News;
use crate::proto::internal::settle_request::Act;
use crate::proto::internal::{self, host_server};

/// How long pools that a controller brings may take to be opened before it is told to come again.
const OPENING: Duration = Duration::from_secs(8);

/// The internal service of a host.
pub struct HostService {
    /// The stores.
    pub host: Arc<Host>,
    /// The work under way.
    pub tasks: Tasks,
    /// Where the pools are written.
    pub files: PoolFiles,
    /// The host's data directory, where the fleet's pools are kept.
    pub data: PathBuf,
    /// Held while pools are taken over: several controllers may bring them at once.
    pub applying: Arc<Mutex<()>>,
}

#[tonic::async_trait]
impl host_server::Host for HostService {
    type WatchStream = ReportStream;
    type ReadStream = BlockStream;

    async fn describe(
        &self,
        request: Request<internal::DescribeRequest>,
    ) -> Result<Response<internal::DescribeResponse>, Status> {
        only_peers(&request).or_else(|_| roles::only_owner(&request))?;
        let (wanted, host) = (request.into_inner(), Arc::clone(&self.host));
        run_apart(move || Ok(describe_all(&host, &wanted))).await.map(Response::new)
    }

    async fn watch(&self, request: Request<internal::WatchRequest>) -> Result<Response<ReportStream>, Status> {
        only_peers(&request)?;
        Ok(Response::new(watch::watch(Arc::clone(&self.host))))
    }

    async fn apply(
        &self,
        request: Request<internal::ApplyRequest>,
    ) -> Result<Response<internal::ApplyResponse>, Status> {
        only_peers(&request)?;
        let (entries, files, data) = (request.into_inner().pools, self.files.clone(), self.data.clone());
        let (host, applying) = (Arc::clone(&self.host), Arc::clone(&self.applying));
        let refused = run_apart(move || {
            let _alone = applying.lock().unwrap_or_else(PoisonError::into_inner);
            apply(&host, &files, &data, &entries)
        })
        .await?;
        let refusals = refused.into_iter().map(|refused| internal::Refusal { pool: refused.pool, why: refused.why });
        Ok(Response::new(internal::ApplyResponse { refusals: refusals.collect() }))
    }

    async fn find(&self, request: Request<internal::FindRequest>) -> Result<Response<internal::FindResponse>, Status> {
        only_peers(&request)?;
        let internal::FindRequest { key, claim } = request.into_inner();
        let key: Key = key.parse().map_err(|error| Status::invalid_argument(format!("key: {error}")))?;
        let host = Arc::clone(&self.host);
        let findings = run_apart(move || operations::find(&host, &key, claim).map_err(|error| error.status())).await?;
        Ok(Response::new(found(findings)))
    }

    async fn confirm(
        &self,
        request: Request<internal::ConfirmRequest>,
    ) -> Result<Response<internal::ConfirmResponse>, Status> {
        only_peers(&request)?;
        let internal::ConfirmRequest { key, claim } = request.into_inner();
        let key: Key = key.parse().map_err(|error| Status::invalid_argument(format!("key: {error}")))?;
        let claim = claim.parse().map_err(|error| Status::invalid_argument(format!("claim: {error}")))?;
        let newest = operations::confirm(&self.host, &key, &claim);
        Ok(Response::new(internal::ConfirmResponse { newest }))
    }

    async fn settle(
        &self,
        request: Request<internal::SettleRequest>,
    ) -> Result<Response<internal::SettleResponse>, Status> {
        only_peers(&request)?;
        let (id, claim, settlement) = settlement(request.into_inner())?;
        let (host, task) = (Arc::clone(&self.host), self.tasks.begin());
        run_apart(move || {
            let _task = task;
            operations::settle(&host, id, &claim, &settlement).map_err(|error| error.status())
        })
        .await?;
        Ok(Response::new(internal::SettleResponse {}))
    }

    async fn read(&self, request: Request<internal::ReadRequest>) -> Result<Response<BlockStream>, Status> {
        only_peers(&request)?;
        let internal::ReadRequest { id, from } = request.into_inner();
        let id: Id = id.parse().map_err(|_| Status::not_found(format!("{id:?} does not exist")))?;
        Ok(Response::new(read::read(Arc::clone(&self.host), id, from)))
    }

    async fn reveal(
        &self,
        request: Request<internal::RevealRequest>,
    ) -> Result<Response<internal::RevealResponse>, Status> {
        let node = roles::name_as(&request, Role::Node)?;
        let internal::RevealRequest { id, generation } = request.into_inner();
        refuse_other_grants(&self.host, &id, &node, generation)?;
        // `local`, the only share, demands nothing
        Ok(Response::new(internal::RevealResponse::default()))
    }
}

/// What is not for people is answered only where a certificate was shown.
fn only_peers<T>(request: &Request<T>) -> Result<(), Status> {
    let refused = || Status::permission_denied("this is for controllers, hosts and nodes");
    roles::caller(request).map(|_| ()).ok_or_else(refused)
}

fn describe_all(host: &Host, wanted: &internal::DescribeRequest) -> internal::DescribeResponse {
    let mut answer = internal::DescribeResponse {
        host: host.name().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pools: host.pools().iter().map(|pool| describe::pool(host.name(), pool)).collect(),
        ..Default::default()
    };
    for store in host.stores() {
        for (key, _) in store.records().all() {
            match describe::entry(host, &store.id_of(key)) {
                Some(News::Volume(volume)) if wanted.volumes && !volume.deleted => answer.volumes.push(volume),
                Some(News::Snapshot(snapshot)) if wanted.snapshots => answer.snapshots.push(snapshot),
                _ => {}
            }
        }
    }
    answer
}

/// Keeps the fleet's pools for this host, and waits until whoever follows the files has taken them over: from then on each is
/// open or down, and a host that is asked for a name says so.
fn apply(host: &Host, files: &PoolFiles, data: &Path, entries: &[String]) -> Result<Vec<config::Refused>, Status> {
    let failed = |error: &dyn std::error::Error| Status::internal(crate::domain::error::chain(error));
    let text = serde_json::to_vec_pretty(entries).map_err(|error| failed(&error))?;
    file::write_atomically(data, PoolFiles::KEPT, &text).map_err(|error| failed(&error))?;
    // the host's own file may be wrong: then nothing changes until it is mended
    let wanted = files.read().map_err(|error| failed(&error))?;
    let end = Instant::now() + OPENING;
    while !wanted.specs.iter().filter(|pool| pool.may_be_on(host.name())).all(|pool| host.knows(pool)) {
        if Instant::now() >= end {
            return Err(Status::unavailable("the pools are still being opened"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(wanted.refused)
}

fn found(findings: Findings) -> internal::FindResponse {
    let one = |found: operations::Found| internal::Found {
        id: found.id.to_string(),
        name: found.name,
        pool: found.pool.to_string(),
        state: found.state.as_str().to_owned(),
        generation: found.generation,
        made_on: found.made_on.map(|host| host.to_string()).unwrap_or_default(),
        passed_over: found.passed_over.iter().map(NodeName::to_string).collect(),
    };
    internal::FindResponse {
        found: findings.found.into_iter().map(one).collect(),
        claim: findings.claim.map(|claim| claim.to_string()).unwrap_or_default(),
        unsure_pools: findings.unsure.iter().map(ToString::to_string).collect(),
        stores: findings.searched.iter().map(ToString::to_string).collect(),
        missing: findings.missing.iter().map(ToString::to_string).collect(),
    }
}

fn settlement(request: internal::SettleRequest) -> Result<(Id, Uuid, Settlement), Status> {
    let invalid = |field: &str, why: &dyn std::fmt::Display| Status::invalid_argument(format!("{field}: {why}"));
    let id = Id::parse(Kind::Volume, &request.id).ok_or_else(|| invalid("id", &"is no volume's"))?;
    let claim = request.claim.parse().map_err(|error| invalid("claim", &error))?;
    let settlement = match request.act.ok_or_else(|| invalid("act", &"is missing"))? {
        Act::YieldTo(other) => {
            let other = Id::parse(Kind::Volume, &other).ok_or_else(|| invalid("yield_to", &"is no volume's"))?;
            Settlement::YieldTo(other)
        }
        Act::Asked(hosts) => {
            let names = hosts.names.iter().map(|name| name.parse().map_err(|error| invalid("asked", &error)));
            Settlement::Asked(names.collect::<Result<_, _>>()?)
        }
    };
    Ok((id, claim, settlement))
}

/// A node learns of its own current grants and of no others.
fn refuse_other_grants(host: &Host, id: &str, node: &NodeName, generation: u64) -> Result<(), Status> {
    // the same words for what does not exist and for what is another's
    let refused = || Status::not_found(format!("{node} has no grant {generation} of {id:?}"));
    let id = Id::parse(Kind::Volume, id).ok_or_else(refused)?;
    let store = host.store(&id.store).map_err(|_| refused())?;
    let record = operations::look_up(&store, &id.key).map_err(|error| error.status())?.ok_or_else(refused)?;
    record.grant_of(node).filter(|grant| grant.generation == generation).map(|_| ()).ok_or_else(refused)
}
