//! Settle: brings the making of one name on two hosts to an end, on this host. A controller that sees both says what is to
//! be done; this host does it only if its own record agrees, and only with the newest claim of the name: whoever asked for
//! the name since may be about to answer with this very volume.

use super::delete::{DeleteError, wipe_and_remove};
use super::{TearDownError, tear_down};
use crate::domain::{Id, NodeName};
use crate::pool::claims::Claim;
use crate::pool::guards::Busy;
use crate::pool::host::{Host, Unavailable};
use crate::pool::records::{Entry, RecordError, State};
use crate::pool::store::Store;
use crate::step;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Remove the volume if it was never granted: this one, on another host, was made because this host could not be asked.
    YieldTo(Id),
    /// These hosts were asked by now, and have nothing of the name: they are passed over no more.
    Asked(Vec<NodeName>),
}

/// It cannot be settled so.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// Somebody works on it.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The store cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Somebody else asked for the name since.
    #[error("the name was asked for again meanwhile")]
    Superseded,
    /// A node has it, or had it: it may hold data.
    #[error("it was granted (grant {generation}), so it is kept")]
    Granted {
        /// The number of the newest grant.
        generation: u64,
    },
    /// Its bytes could not be wiped, or it could not be removed.
    #[error(transparent)]
    Remove(#[from] DeleteError),
    /// Its record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It could not be removed.
    #[error(transparent)]
    TearDown(#[from] TearDownError),
}

/// Settles what this host has under an id. What is not there is settled.
pub fn settle(host: &Host, id: Id, claim: &Claim, settlement: &Settlement) -> Result<(), SettleError> {
    let store = host.store(&id.store)?;
    let _name = host.names.exclusive(&id.key)?;
    if !host.claims.is_newest(&id.key, claim) {
        return Err(SettleError::Superseded);
    }
    let _guard = store.guards.exclusive(&id.key)?;
    let Some(entry) = store.records.get(&id.key)? else { return Ok(()) };
    match settlement {
        Settlement::YieldTo(other) => yield_to(&store, &id, &entry, other),
        Settlement::Asked(hosts) => asked(&store, &id, &entry, hosts),
    }
}

/// Removes what was never granted, as a deletion would.
fn yield_to(store: &Store, id: &Id, entry: &Entry, other: &Id) -> Result<(), SettleError> {
    let Entry { state, record } = entry;
    let generation = record.volume().map_or(0, |volume| volume.generation);
    if generation > 0 {
        return Err(SettleError::Granted { generation });
    }
    if store.is_copied_from(&id.key) {
        return Err(Busy.into());
    }
    step!("settle.yield");
    let _ = match state {
        State::Making => tear_down(store, &id.key)?,
        State::Ready => {
            store.records.turn(&id.key, State::Removing)?;
            wipe_and_remove(store, &id.key, record)?
        }
        // on its way already, or gone
        State::Removing | State::Deleted => return Ok(()),
    };
    tracing::warn!(%id, made_since = %other, "removed: never granted, and made again elsewhere");
    Ok(())
}

/// Takes hosts out of the list of those that were passed over.
fn asked(store: &Store, id: &Id, entry: &Entry, hosts: &[NodeName]) -> Result<(), SettleError> {
    let Entry { state, record } = entry;
    let left: Vec<NodeName> = record.passed_over().iter().filter(|host| !hosts.contains(host)).cloned().collect();
    step!("settle.asked");
    match state {
        State::Deleted if left.is_empty() => store.records.remove(&id.key)?,
        State::Ready | State::Deleted if left.len() < record.passed_over().len() => {
            store.records.put(&id.key, *state, record.with_volume(|volume| volume.passed_over = left))?;
        }
        // what is being made or removed is settled when that has ended
        State::Making | State::Removing | State::Ready | State::Deleted => {}
    }
    Ok(())
}
