//! How much a store may still promise. Pure arithmetic, and the ledger that keeps its inputs.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::size::{GIB, GRAIN, MIB};
use crate::domain::{Key, Overcommit};
use crate::medium::{Piece, Space};

/// What a pool's owner said about how far to go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// How much may be promised for each byte there is.
    pub overcommit: Overcommit,
    /// Bytes never given out; `None` leaves the choice to the store's size.
    pub reserve: Option<u64>,
}

impl Limits {
    /// The reserve in bytes: what the owner said, or a twentieth, from 32 MiB to 10 GiB. A file system needs room for
    /// its own metadata, and copy-on-write some for more.
    pub fn reserve(&self, total: u64) -> u64 {
        self.reserve.unwrap_or_else(|| (total / 20).clamp(32 * MIB, 10 * GIB))
    }

    /// What may still be given out, in bytes: the promises that the store can keep, less those it has made; and never
    /// more than is really free less the reserve.
    pub fn available(&self, space: &Space, others: u64, promised: u64) -> u64 {
        let reserve = self.reserve(space.total);
        let usable = space.total.saturating_sub(others).saturating_sub(reserve);
        let unpromised = self.overcommit.of(usable).saturating_sub(promised);
        let really_free = space.free.saturating_sub(reserve);
        let available = unpromised.min(really_free);
        available - available % GRAIN
    }
}

/// The part of the space in use that is not this store's: other tenants of the file system, and its metadata.
///
/// Pieces of one family share blocks. What exactly is shared with whom nobody can say cheaply; that each family takes at
/// least what its pieces have for themselves and the largest shared part is sure, so others are never counted too low.
pub fn others(space: &Space, pieces: &[Piece], family_of: impl Fn(&Key) -> Key) -> u64 {
    let mut shared: HashMap<Key, u64> = HashMap::new();
    let mut own: u64 = 0;
    for piece in pieces {
        own = own.saturating_add(piece.allocated.saturating_sub(piece.shared));
        if piece.shared > 0 {
            let largest = shared.entry(family_of(&piece.key)).or_default();
            *largest = (*largest).max(piece.shared);
        }
    }
    let own = shared.values().fold(own, |sum, bytes| sum.saturating_add(*bytes));
    (space.total.saturating_sub(space.free)).saturating_sub(own)
}

/// What a store has promised, and what others took when it was last measured.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Sums>);

#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    promised: u64,
    others: u64,
}

/// There is not enough left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes are wanted and {available} are available")]
pub struct Exceeded {
    /// What was asked for, in bytes.
    pub wanted: u64,
    /// What there is, in bytes.
    pub available: u64,
}

impl Ledger {
    /// Takes `wanted` bytes into the promises, if they fit. Two callers are never promised the same bytes.
    pub fn promise(&self, wanted: u64, limits: &Limits, space: &Space) -> Result<(), Exceeded> {
        let mut sums = self.sums();
        let available = limits.available(space, sums.others, sums.promised);
        if wanted > available {
            return Err(Exceeded { wanted, available });
        }
        sums.promised = sums.promised.saturating_add(wanted);
        Ok(())
    }

    /// Counts what is there already.
    pub fn count(&self, bytes: u64) {
        let mut sums = self.sums();
        sums.promised = sums.promised.saturating_add(bytes);
    }

    /// Takes a promise back.
    pub fn release(&self, bytes: u64) {
        let mut sums = self.sums();
        sums.promised = sums.promised.saturating_sub(bytes);
    }

    /// Notes what others take, in bytes.
    pub fn set_others(&self, others: u64) {
        self.sums().others = others;
    }

    /// What is promised now, in bytes.
    pub fn promised(&self) -> u64 {
        self.sums().promised
    }

    /// What may still be promised, in bytes.
    pub fn available(&self, limits: &Limits, space: &Space) -> u64 {
        let sums = *self.sums();
        limits.available(space, sums.others, sums.promised)
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::Kind;

    fn space(total: u64, free: u64) -> Space {
        Space { total: total * GIB, free: free * GIB, grain: 512, largest: u64::MAX, sector: 512 }
    }

    #[test]
    fn what_may_still_be_given_out() {
        for (total, free, others, promised, overcommit, available) in [
            // an empty pool gives out all but the reserve
            (100, 100, 0, 0, 1.0, 99),
            // a thin volume that nothing was written to takes its full size all the same
            (100, 100, 0, 60, 1.0, 39),
            // other tenants take away from what can be promised
            (100, 70, 30, 0, 1.0, 69),
            // promises may exceed what there is only as far as the owner said
            (100, 100, 0, 150, 2.0, 48),
            // never more than is really free
            (100, 10, 0, 100, 4.0, 9),
            (100, 0, 50, 70, 1.0, 0),
        ] {
            let limits = Limits { overcommit: Overcommit::new(overcommit).unwrap(), reserve: Some(GIB) };
            let got = limits.available(&space(total, free), others * GIB, promised * GIB);
            assert_eq!(got, available * GIB, "{total} {free} {others} {promised} {overcommit}");
        }
    }

    #[test]
    fn shared_blocks_are_counted_once_a_family() {
        let key = |name: &str| Key::of_name(Kind::Volume, name);
        let piece = |name: &str, allocated: u64, shared: u64| Piece {
            key: key(name),
            size: 10 * GIB,
            allocated: allocated * GIB,
            shared: shared * GIB,
        };
        // a golden image of 5 GiB, two clones that wrote 1 GiB each, a volume of its own with 3 GiB: 10 GiB in all
        let pieces = [piece("golden", 5, 5), piece("one", 6, 5), piece("two", 6, 5), piece("own", 3, 0)];
        let family = |of: &Key| if *of == key("own") { *of } else { key("golden") };
        assert_eq!(others(&space(100, 90), &pieces, family), 0);
        assert_eq!(others(&space(100, 80), &pieces, family), 10 * GIB);
    }

    #[test]
    fn the_same_bytes_are_promised_once() {
        let limits = Limits { overcommit: Overcommit::NONE, reserve: Some(0) };
        let ledger = Ledger::default();
        ledger.promise(6 * GIB, &limits, &space(10, 10)).unwrap();
        assert_eq!(
            ledger.promise(6 * GIB, &limits, &space(10, 10)),
            Err(Exceeded { wanted: 6 * GIB, available: 4 * GIB })
        );
        ledger.release(6 * GIB);
        ledger.promise(10 * GIB, &limits, &space(10, 10)).unwrap();
    }
}
