//! What a host says of its pools, volumes and snapshots, in the words of `proto/cistern.proto`.

use crate::domain::error::chain;
use crate::domain::volume::Content;
use crate::domain::{Allocation, Id, Key, Kind, MediumSpec, NodeName};
use crate::pool::Host;
use crate::pool::host::Pool;
use crate::pool::record::{Origin, Record, Role, Volume};
use crate::pool::records::{Entry, State};
use crate::proto::internal::report::News;
use crate::proto::internal::{self, Trouble};

/// What is known of a pool without a look at its disk.
fn bare(host: &NodeName, pool: &Pool) -> internal::Pool {
    let MediumSpec::Dir(dir) = &pool.spec.medium;
    internal::Pool {
        name: pool.spec.name.to_string(),
        medium: "dir".to_owned(),
        share: "local".to_owned(),
        place: dir.path.display().to_string(),
        host: host.to_string(),
        ..Default::default()
    }
}

/// A pool that does not answer.
pub fn hung(host: &NodeName, pool: &Pool) -> internal::Pool {
    let down = pool.store.as_ref().err().cloned().unwrap_or_else(|| "its disk does not answer".to_owned());
    internal::Pool { down, ..bare(host, pool) }
}

/// A pool as it is now.
pub fn pool(host: &NodeName, pool: &Pool) -> internal::Pool {
    let described = bare(host, pool);
    let store = match &pool.store {
        Ok(store) => store,
        Err(down) => return internal::Pool { down: down.clone(), ..described },
    };
    let trouble = |(key, what): (Key, String)| Trouble { key: key.to_string(), what };
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
        (Err(error), _) | (_, Err(error)) => internal::Pool { down: chain(&error), ..described },
    }
}

/// What a controller is told when something has changed under an id. While it is being made that is nothing: word that it is
/// not there could arrive after the answer that it is.
pub fn change(host: &Host, id: &Id) -> Option<News> {
    let store = host.store(&id.store).ok();
    let entry = store.and_then(|store| store.records().get(&id.key).ok().flatten());
    if entry.is_some_and(|entry| entry.state == State::Making) {
        return None;
    }
    Some(self::entry(host, id).unwrap_or_else(|| News::Gone(id.to_string())))
}

/// What stands under an id, if it is for others to know: what is being made, or removed, nobody knows of.
pub fn entry(host: &Host, id: &Id) -> Option<News> {
    let store = host.store(&id.store).ok()?;
    let Entry { state, record } = store.records().get(&id.key).ok()??;
    let pool = store.pool.to_string();
    match (id.key.kind(), state) {
        (Kind::Volume, State::Ready | State::Deleted) => {
            let deleted = state == State::Deleted;
            let described = internal::Volume { pool, deleted, host: host.name().to_string(), ..volume(id, &record)? };
            Some(News::Volume(described))
        }
        (Kind::Snapshot, State::Ready) => {
            let described = internal::Snapshot { pool, host: host.name().to_string(), ..snapshot(id, &record)? };
            Some(News::Snapshot(described))
        }
        (Kind::Volume | Kind::Snapshot | Kind::Temporary, _) => None,
    }
}

fn volume(id: &Id, record: &Record) -> Option<internal::Volume> {
    let Volume { generation, grants, made_on, passed_over, source, .. } = record.volume()?;
    Some(internal::Volume {
        id: id.to_string(),
        name: record.name.clone(),
        size_bytes: record.size,
        content: match record.content {
            Content::Block => "block".to_owned(),
            Content::Filesystem { fs, .. } => fs.to_string(),
        },
        allocation: match record.allocation {
            Allocation::Thin => "thin".to_owned(),
            Allocation::Thick => "thick".to_owned(),
        },
        nodes: grants.iter().map(|grant| grant.node.to_string()).collect(),
        source: source.map_or(String::new(), |source| match source {
            Origin::Snapshot(id) | Origin::Volume(id) => id.to_string(),
        }),
        generation: *generation,
        made_on: made_on.as_ref().map(NodeName::to_string).unwrap_or_default(),
        passed_over: passed_over.iter().map(NodeName::to_string).collect(),
        ..Default::default()
    })
}

fn snapshot(id: &Id, record: &Record) -> Option<internal::Snapshot> {
    let Role::Snapshot { of } = record.role else { return None };
    Some(internal::Snapshot {
        id: id.to_string(),
        name: record.name.clone(),
        size_bytes: record.size,
        volume: of.to_string(),
        created_seconds: record.created.seconds,
        created_nanos: record.created.nanos,
        ready: record.job.is_none(),
        copied_bytes: record.job.as_ref().map_or(0, |job| job.done),
        ..Default::default()
    })
}
