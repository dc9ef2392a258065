//! The lists and the capacity, from what hosts reported. What a host that is away had is still there; a host that was never
//! seen is waited for at the controller's start, for a bounded time.

use prost::Message;
use tonic::Status;

use super::fleet::Fleet;
use super::placement::{Candidate, Standing};
use crate::csi::{listed_snapshot, listed_volume, parse};
use crate::domain::size::GRAIN;
use crate::domain::{Id, NodeName, PoolName};
use crate::proto::csi::v1 as csi;

/// How many bytes of entries a page has at most.
const LARGEST_PAGE: usize = 1 << 20;

/// Fails until every host has told what it has or was found away: a list without what is on one would be taken for the
/// whole.
fn when_ready(fleet: &Fleet) -> Result<(), Status> {
    let not_yet = || Status::unavailable("the controller has just started, and waits for hosts to tell what they have");
    fleet.is_ready().then_some(()).ok_or_else(not_yet)
}

/// A page of entries, filled until it is full by number or by bytes. Each entry comes with its id.
fn page<E: Message>(most: usize, entries: impl Iterator<Item = (Id, E)>) -> (Vec<E>, String) {
    let (mut taken, mut bytes, mut last) = (Vec::new(), 0, None);
    for (id, entry) in entries {
        let length = entry.encoded_len();
        if taken.len() == most || (!taken.is_empty() && bytes + length > LARGEST_PAGE) {
            return (taken, last.map(|id: Id| id.to_string()).unwrap_or_default());
        }
        bytes += length;
        last = Some(id);
        taken.push(entry);
    }
    (taken, String::new())
}

/// ListVolumes.
pub fn volumes(fleet: &Fleet, request: &csi::ListVolumesRequest) -> Result<csi::ListVolumesResponse, Status> {
    let pages = parse::pages(request.max_entries, &request.starting_token)?;
    when_ready(fleet)?;
    let inventory = fleet.inventory();
    let entries = inventory.volumes_after(pages.after).map(|(id, host, volume)| {
        let entry = csi::list_volumes_response::Entry {
            volume: Some(listed_volume(&id, volume.size, volume.source, host)),
            status: Some(csi::list_volumes_response::VolumeStatus { published_node_ids: volume.nodes.clone() }),
        };
        (id, entry)
    });
    let (entries, next_token) = page(pages.most, entries);
    Ok(csi::ListVolumesResponse { entries, next_token })
}

/// ListSnapshots without a filter; one with a filter is for the host that has what it names.
pub fn snapshots(fleet: &Fleet, request: &csi::ListSnapshotsRequest) -> Result<csi::ListSnapshotsResponse, Status> {
    let pages = parse::pages(request.max_entries, &request.starting_token)?;
    when_ready(fleet)?;
    let inventory = fleet.inventory();
    let entries = inventory.snapshots_after(pages.after).map(|(id, snapshot)| {
        let snapshot = listed_snapshot(&id, snapshot.size, &snapshot.of, snapshot.created, snapshot.ready);
        (id, csi::list_snapshots_response::Entry { snapshot: Some(snapshot) })
    });
    let (entries, next_token) = page(pages.most, entries);
    Ok(csi::ListSnapshotsResponse { entries, next_token })
}

/// GetCapacity: what the hosts that are here have available, in one pool or in all.
pub fn capacity(fleet: &Fleet, request: csi::GetCapacityRequest) -> Result<csi::GetCapacityResponse, Status> {
    let asked = parse::capacity(request)?;
    let on_host = |host: &NodeName| asked.host.as_ref().is_none_or(|wanted| wanted.as_ref() == Some(host));
    let (mut sum, mut largest) = (0_u64, 0_u64);
    let in_pool = asked.pool.as_ref().map(|pool| (pool, fleet.candidates(pool)));
    if let (Some((pool, candidates)), Some(Some(host))) = (&in_pool, &asked.host) {
        when_it_may_be_known(fleet, pool, candidates, host)?;
    }
    if !asked.is_impossible {
        for (_, available) in available(fleet, in_pool)?.into_iter().filter(|(host, _)| on_host(host)) {
            sum = sum.saturating_add(available);
            largest = largest.max(available);
        }
    }
    let bytes = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    Ok(csi::GetCapacityResponse {
        available_capacity: bytes(sum),
        maximum_volume_size: Some(bytes(largest)),
        minimum_volume_size: Some(bytes(GRAIN)),
    })
}

/// Who asks for one host keeps what it is told for a while, and a pool of no room keeps pods away. So a host that was here a
/// moment ago, or whose first report has not come yet, is not said to have none: it is asked for again.
fn when_it_may_be_known(
    fleet: &Fleet,
    pool: &PoolName,
    candidates: &[Candidate],
    host: &NodeName,
) -> Result<(), Status> {
    let is_waited_for = |candidate: &Candidate| {
        let is_away = matches!(candidate.standing, Standing::Away { since } if since < fleet.patience.placing);
        candidate.host == *host && is_away
    };
    match candidates.iter().any(is_waited_for) {
        true => Err(Status::unavailable(format!("host {host} is away, or has not said what pool {pool} has there"))),
        false => Ok(()),
    }
}

/// What each host that is here has available in a pool, of which these are the candidates, or in each of its pools.
fn available(fleet: &Fleet, in_pool: Option<(&PoolName, Vec<Candidate>)>) -> Result<Vec<(NodeName, u64)>, Status> {
    if let Some((pool, candidates)) = in_pool {
        if candidates.is_empty() && fleet.is_ready() {
            return Err(Status::invalid_argument(format!("parameters[pool]: no host has a pool {pool}")));
        }
        let here = |candidate: Candidate| match candidate.standing {
            Standing::Here { available } => Some((candidate.host, available)),
            Standing::Away { .. } => None,
        };
        return Ok(candidates.into_iter().filter_map(here).collect());
    }
    let links = fleet.links();
    let inventory = fleet.inventory();
    let here = links.iter().filter(|link| link.is_here());
    let pools = here.flat_map(|link| inventory.pools(&link.name).map(|(_, view)| (link.name.clone(), view)));
    Ok(pools.filter(|(_, view)| view.down.is_none()).map(|(host, view)| (host, view.available)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::{Key, Kind, StoreId, Uuid};

    #[test]
    fn a_page_ends_at_its_number_and_at_its_bytes() {
        let ids: Vec<Id> = (0..2000_u32)
            .map(|number| Id {
                store: StoreId(Uuid::from_bytes([7; 16])),
                key: Key::of_name(Kind::Volume, &number.to_string()),
            })
            .collect();
        let entries = |node: usize| {
            let nodes = vec!["n".repeat(node)];
            let entry = csi::list_volumes_response::Entry {
                volume: None,
                status: Some(csi::list_volumes_response::VolumeStatus { published_node_ids: nodes }),
            };
            ids.iter().map(move |id| (*id, entry.clone()))
        };
        let (taken, next) = page(500, entries(10));
        assert_eq!((taken.len(), next), (500, ids[499].to_string()));
        let (taken, next) = page(5000, entries(10_000));
        let bytes: usize = taken.iter().map(Message::encoded_len).sum();
        assert!(bytes <= LARGEST_PAGE && bytes > LARGEST_PAGE - 11_000, "{bytes}");
        assert_eq!(next, ids[taken.len() - 1].to_string());
        // one that is larger than a page is a page
        assert_eq!(page(500, entries(2 << 20)).0.len(), 1);
        assert_eq!(page(5000, entries(10)).1, "");
    }
}
