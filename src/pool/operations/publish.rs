//! ControllerPublishVolume and ControllerUnpublishVolume: grants.

use crate::domain::error::chain;
use crate::domain::request::{Access, Publish};
use crate::domain::{AccessMode, Allocation, Bytes, Content, Id, Key, NodeName, PoolName};
use crate::medium::MediumError;
use crate::pool::guards::Busy;
use crate::pool::host::{Host, Unavailable};
use crate::pool::record::{Grant, Record, Volume};
use crate::pool::records::{Entry, RecordError, State};
use crate::pool::store::Store;
use crate::share::{Enforced, TargetError, Terms, Ticket, Withdrawn};
use crate::step;

/// A node could not be given a volume.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Somebody else works on it.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The store cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The volume does not exist.
    #[error("the volume {0} does not exist")]
    VolumeUnknown(String),
    /// The node cannot reach it.
    #[error("node {node} is unknown to pool {pool}, which is local to {host}")]
    NodeUnknown {
        /// The node.
        node: NodeName,
        /// The pool.
        pool: PoolName,
        /// The only node that can use it.
        host: NodeName,
    },
    /// The volume is not what it is to be used as.
    #[error("the volume holds {there}, and is to be used as {wanted}")]
    Content {
        /// What it holds.
        there: String,
        /// What is asked for.
        wanted: String,
    },
    /// The pool cannot be used in this mode.
    #[error("pool {pool} is local: its volumes cannot be used in mode {mode:?}")]
    Mode {
        /// The pool.
        pool: PoolName,
        /// The mode.
        mode: AccessMode,
    },
    /// The node has it already, in another way.
    #[error("node {node} has it already, read-only: {read_only}, mode {mode:?}")]
    Exists {
        /// The node.
        node: NodeName,
        /// Whether it may only read.
        read_only: bool,
        /// The mode.
        mode: AccessMode,
    },
    /// Another node has it.
    #[error("it is attached to node {0}")]
    Elsewhere(String),
    /// Its record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The share failed.
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// A node's right could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishError {
    /// Somebody else works on it.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The store cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The node can still write.
    #[error("node {node} still uses it: {by}")]
    StillUsed {
        /// The node.
        node: NodeName,
        /// By what.
        by: String,
    },
    /// Its record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The share failed.
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// Gives a node the right to a volume, and the ticket to reach it.
pub fn publish(host: &Host, request: &Publish) -> Result<Ticket, PublishError> {
    let id = request.volume;
    let store = host.store(&id.store)?;
    let unknown = || PublishError::VolumeUnknown(id.to_string());
    if store.records.get(&id.key)?.is_none() {
        return Err(unknown());
    }
    let _guard = store.guards.exclusive(&id.key)?;
    let Some(Entry { state: State::Ready, record }) = store.records.get(&id.key)? else { return Err(unknown()) };
    let volume = record.volume().ok_or_else(unknown)?;
    if store.is_copied_from(&id.key) || record.job.is_some() {
        return Err(Busy.into());
    }
    refuse_what_cannot_be(&store, request, &record)?;
    let there = volume.grants.iter().find(|grant| grant.node.name == request.node.name);
    let generation = match there {
        Some(grant) if grant.read_only != request.read_only || grant.mode != request.capability.mode => {
            let Grant { node, read_only, mode, .. } = grant;
            return Err(PublishError::Exists { node: node.name.clone(), read_only: *read_only, mode: *mode });
        }
        Some(grant) if grant.node == request.node => grant.generation,
        Some(grant) => record_grant(&store, &id.key, &record, request, grant.generation)?,
        None => match volume.grants.first() {
            Some(other) => return Err(PublishError::Elsewhere(other.node.to_string())),
            None => record_grant(&store, &id.key, &record, request, volume.generation + 1)?,
        },
    };
    step!("publish.open");
    let bytes = store.medium.open(&id.key)?;
    step!("publish.offer");
    let grant = grant(request, generation);
    let reach = store.target.offer(&id.key, &bytes, &terms(&record, &grant))?;
    step!("publish.done");
    let Terms { read_only, sector, keeps_blocks, .. } = terms(&record, &grant);
    let (content, read_ahead_kib) = (record.content, volume.read_ahead_kib);
    Ok(Ticket { volume: id, generation, content, sector, read_only, keeps_blocks, read_ahead_kib, reach })
}

fn grant(request: &Publish, generation: u64) -> Grant {
    let Publish { node, read_only, capability, .. } = request.clone();
    Grant { node, generation, read_only, mode: capability.mode }
}

/// What the share is to enforce for a grant.
fn terms(record: &Record, grant: &Grant) -> Terms {
    Terms {
        node: grant.node.clone(),
        generation: grant.generation,
        read_only: grant.read_only || grant.mode.is_read_only(),
        sector: record.sector,
        keeps_blocks: record.allocation == Allocation::Thick,
    }
}

/// Makes what the share enforces what the records say, and lets clients in: what a host does when it starts. A volume that
/// cannot be offered holds up no other.
pub fn restore_grants(store: &Store) -> Result<(), TargetError> {
    let mut recorded = Vec::new();
    for (key, entry) in store.records.all().into_iter().filter(|(_, entry)| entry.state == State::Ready) {
        for grant in entry.record.volume().map_or(&[][..], |volume| &volume.grants) {
            if let Err(error) = offer_again(store, &key, &entry.record, grant) {
                tracing::error!(store = %store.id, %key, node = %grant.node, error = %chain(&error), "cannot be offered");
            }
            recorded.push(Enforced { key, node: grant.node.name.clone(), generation: grant.generation });
        }
    }
    for stray in store.target.grants()?.into_iter().filter(|enforced| !recorded.contains(enforced)) {
        let withdrawn = withdraw_stray(store, &stray);
        tracing::warn!(store = %store.id, ?stray, ?withdrawn, "a right that no record knows");
    }
    store.target.admit()
}

fn offer_again(store: &Store, key: &Key, record: &Record, grant: &Grant) -> Result<(), PublishError> {
    let bytes = store.medium.open(key)?;
    store.target.offer(key, &bytes, &terms(record, grant))?;
    Ok(())
}

fn withdraw_stray(store: &Store, stray: &Enforced) -> Result<Withdrawn, PublishError> {
    let bytes = store.medium.open(&stray.key)?;
    Ok(store.target.withdraw(&stray.key, &bytes, &stray.node, stray.generation)?)
}

fn refuse_what_cannot_be(store: &Store, request: &Publish, record: &Record) -> Result<(), PublishError> {
    let node = &request.node.name;
    if *node != store.host {
        let (pool, host) = (store.pool.clone(), store.host.clone());
        return Err(PublishError::NodeUnknown { node: node.clone(), pool, host });
    }
    let mode = request.capability.mode;
    if mode.is_multi_node() {
        return Err(PublishError::Mode { pool: store.pool.clone(), mode });
    }
    let fits = match (&request.capability.access, record.content) {
        (Access::Block, Content::Block) => true,
        (Access::Mount(mount), Content::Filesystem { fs, .. }) => mount.fs.is_none_or(|wanted| wanted == fs),
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let wanted = match &request.capability.access {
        Access::Block => "a device".to_owned(),
        Access::Mount(mount) => {
            format!("a file system{}", mount.fs.map_or(String::new(), |fs| format!(" of type {fs}")))
        }
    };
    Err(PublishError::Content { there: format!("{:?}", record.content), wanted })
}

/// Puts the grant into the record and answers its generation.
fn record_grant(
    store: &Store,
    key: &Key,
    record: &Record,
    request: &Publish,
    generation: u64,
) -> Result<u64, RecordError> {
    let grant = grant(request, generation);
    step!("publish.record");
    change_volume(store, key, record, |volume| {
        volume.grants.retain(|other| other.node.name != grant.node.name);
        volume.generation = volume.generation.max(generation);
        volume.grants.push(grant);
    })?;
    Ok(generation)
}

/// Ends the right of a node, or of all nodes, to a volume. What is not there any more is ended.
pub fn unpublish(host: &Host, id: Id, node: Option<&NodeName>) -> Result<(), UnpublishError> {
    let store = host.store(&id.store)?;
    if store.records.get(&id.key)?.is_none() {
        return Ok(());
    }
    let _guard = store.guards.exclusive(&id.key)?;
    let Some(Entry { state: State::Ready, record }) = store.records.get(&id.key)? else { return Ok(()) };
    let grants = record.volume().map_or(&[][..], |volume| &volume.grants);
    let ended: Vec<&Grant> = grants.iter().filter(|grant| node.is_none_or(|name| grant.node.name == *name)).collect();
    if ended.is_empty() {
        return Ok(());
    }
    match store.medium.open(&id.key) {
        Ok(bytes) => ended.iter().try_for_each(|grant| withdraw(&store, &id.key, &bytes, grant))?,
        // nobody can use what is gone
        Err(MediumError::Missing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    if ended.len() == grants.len() {
        step!("unpublish.close");
        store.medium.close(&id.key)?;
    }
    step!("unpublish.record");
    let names: Vec<NodeName> = ended.into_iter().map(|grant| grant.node.name.clone()).collect();
    change_volume(&store, &id.key, &record, |volume| volume.grants.retain(|grant| !names.contains(&grant.node.name)))?;
    step!("unpublish.done");
    Ok(())
}

fn withdraw(store: &Store, key: &Key, bytes: &Bytes, grant: &Grant) -> Result<(), UnpublishError> {
    let node = &grant.node.name;
    step!("unpublish.withdraw");
    match store.target.withdraw(key, bytes, node, grant.generation)? {
        Withdrawn::Ended => Ok(()),
        Withdrawn::StillUsed(by) => Err(UnpublishError::StillUsed { node: node.clone(), by }),
    }
}

/// Writes the record of a ready volume anew, changed.
pub(super) fn change_volume(
    store: &Store,
    key: &Key,
    record: &Record,
    change: impl FnOnce(&mut Volume),
) -> Result<(), RecordError> {
    store.records.put(key, State::Ready, record.with_volume(change))
}
