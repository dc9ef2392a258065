//! The host's half of the internal service.

use std::sync::Arc;

use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::domain::volume::Content;
use crate::domain::{Allocation, MediumSpec};
use crate::pool::Host;
use crate::pool::host::Pool;
use crate::pool::operations::{self, ListedSnapshot, ListedVolume, Page, Pages};
use crate::pool::record::Origin;
use crate::proto::internal::{self, DescribeRequest, DescribeResponse, Trouble, host_server};

/// How many entries are read of a list at a time.
const PAGE: usize = 500;

/// The internal service of a host.
pub struct HostService {
    /// The stores.
    pub host: Arc<Host>,
}

#[tonic::async_trait]
impl host_server::Host for HostService {
    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        only_root(&request)?;
        let wanted = request.into_inner();
        let host = &self.host;
        let volumes = |after| operations::volumes(host, Pages { after, most: PAGE });
        let snapshots = |after| operations::snapshots(host, Pages { after, most: PAGE }, |_| true);
        Ok(Response::new(DescribeResponse {
            host: host.name().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pools: host.pools().iter().map(pool).collect(),
            volumes: if wanted.volumes { all(volumes, |listed| volume(host, listed)) } else { Vec::new() },
            snapshots: if wanted.snapshots { all(snapshots, |listed| snapshot(host, listed)) } else { Vec::new() },
        }))
    }
}

/// On a unix socket the kernel says who calls.
fn only_root<T>(request: &Request<T>) -> Result<(), Status> {
    let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    match caller {
        Some(caller) if caller.uid() == 0 => Ok(()),
        _ => Err(Status::permission_denied("only root is answered")),
    }
}

/// Every entry of a list, page by page.
fn all<T, U>(page_after: impl Fn(Option<crate::domain::Id>) -> Page<T>, convert: impl Fn(T) -> U) -> Vec<U> {
    let mut entries = Vec::new();
    let mut after = None;
    loop {
        let page = page_after(after);
        entries.extend(page.entries.into_iter().map(&convert));
        match page.next {
            Some(next) => after = Some(next),
            None => return entries,
        }
    }
}

fn pool(pool: &Pool) -> internal::Pool {
    let MediumSpec::Dir(dir) = &pool.spec.medium;
    let described = internal::Pool {
        name: pool.spec.name.to_string(),
        medium: "dir".to_owned(),
        share: "local".to_owned(),
        place: dir.path.display().to_string(),
        ..Default::default()
    };
    let store = match &pool.store {
        Ok(store) => store,
        Err(down) => return internal::Pool { down: down.clone(), ..described },
    };
    let trouble = |(key, what): (crate::domain::Key, String)| Trouble { key: key.to_string(), what };
    let described = internal::Pool {
        store: store.id.to_string(),
        promised_bytes: store.promised(),
        troubles: store.troubles().into_iter().map(trouble).collect(),
        ..described
    };
    match (store.space(), store.available()) {
        (Ok(space), Ok(available_bytes)) => {
            internal::Pool { total_bytes: space.total, free_bytes: space.free, available_bytes, ..described }
        }
        (Err(error), _) | (_, Err(error)) => internal::Pool { down: crate::domain::error::chain(&error), ..described },
    }
}

fn pool_of(host: &Host, id: &crate::domain::Id) -> String {
    host.store(&id.store).map(|store| store.pool.to_string()).unwrap_or_default()
}

fn volume(host: &Host, listed: ListedVolume) -> internal::Volume {
    let record = &listed.record;
    internal::Volume {
        id: listed.volume.id.to_string(),
        name: record.name.clone(),
        pool: pool_of(host, &listed.volume.id),
        size_bytes: record.size,
        content: match record.content {
            Content::Block => "block".to_owned(),
            Content::Filesystem { fs, .. } => fs.to_string(),
        },
        allocation: match record.allocation {
            Allocation::Thin => "thin".to_owned(),
            Allocation::Thick => "thick".to_owned(),
        },
        nodes: listed.nodes.iter().map(ToString::to_string).collect(),
        source: listed.volume.source.map_or(String::new(), |source| match source {
            Origin::Snapshot(id) | Origin::Volume(id) => id.to_string(),
        }),
    }
}

fn snapshot(host: &Host, listed: ListedSnapshot) -> internal::Snapshot {
    let info = &listed.snapshot;
    internal::Snapshot {
        id: info.id.to_string(),
        name: listed.record.name.clone(),
        pool: pool_of(host, &info.id),
        size_bytes: info.size,
        volume: info.of.to_string(),
        created_seconds: info.created.seconds,
        ready: info.ready,
        copied_bytes: listed.record.job.as_ref().map_or(0, |job| job.done),
    }
}
