//! The lists: in the order of ids, page by page. A page begins after an id, so that it holds while others come and go.

use std::sync::Arc;

use super::snapshot::info;
use super::{SnapshotInfo, VolumeInfo};
use crate::domain::{Id, Kind, NodeId};
use crate::pool::host::Host;
use crate::pool::record::Record;
use crate::pool::records::State;
use crate::pool::store::Store;

/// How many entries a page has at most: an answer stays far below gRPC's limit of 4 MiB.
pub const MOST: usize = 500;

/// What part of a list is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Begin after this id.
    pub after: Option<Id>,
    /// At most this many entries.
    pub most: usize,
}

/// Part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// The last one's id, if there are more.
    pub next: Option<Id>,
}

/// A volume in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedVolume {
    /// The volume.
    pub volume: VolumeInfo,
    /// Who has it.
    pub nodes: Vec<NodeId>,
    /// All that is known of it.
    pub record: Arc<Record>,
}

/// A snapshot in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSnapshot {
    /// The snapshot.
    pub snapshot: SnapshotInfo,
    /// All that is known of it.
    pub record: Arc<Record>,
}

/// The volumes.
pub fn volumes(host: &Host, pages: Pages) -> Page<ListedVolume> {
    walk(host, Kind::Volume, pages, |store, id, record| {
        let nodes = record.volume()?.grants.iter().map(|grant| grant.node.clone()).collect();
        let volume = VolumeInfo::of(store, id.key, record);
        Some((id, ListedVolume { volume, nodes, record: Arc::clone(record) }))
    })
}

/// The snapshots that `wanted` says yes to.
pub fn snapshots(host: &Host, pages: Pages, wanted: impl Fn(&SnapshotInfo) -> bool) -> Page<ListedSnapshot> {
    walk(host, Kind::Snapshot, pages, |store, id, record| {
        let snapshot = info(store, &id.key, record);
        wanted(&snapshot).then(|| (id, ListedSnapshot { snapshot, record: Arc::clone(record) }))
    })
}

fn walk<T>(
    host: &Host,
    kind: Kind,
    pages: Pages,
    take: impl Fn(&Store, Id, &Arc<Record>) -> Option<(Id, T)>,
) -> Page<T> {
    let mut taken: Vec<(Id, T)> = Vec::new();
    let mut is_more = false;
    for store in host.stores().into_iter().filter(|store| pages.after.is_none_or(|after| store.id >= after.store)) {
        let after = pages.after.filter(|after| after.store == store.id).map(|after| after.key);
        store.records.walk_after(after, |key, entry| {
            if key.kind() == kind && entry.state == State::Ready {
                match take(&store, store.id_of(key), &entry.record) {
                    Some(_) if taken.len() == pages.most => is_more = true,
                    Some(entry) => taken.push(entry),
                    None => {}
                }
            }
            !is_more
        });
        if is_more {
            break;
        }
    }
    let next = taken.last().filter(|_| is_more).map(|(id, _)| *id);
    Page { entries: taken.into_iter().map(|(_, entry)| entry).collect(), next }
}
