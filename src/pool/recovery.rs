//! What start-up does for each combination of record and piece: one table, and what carries it out.

use std::collections::BTreeMap;

use super::record::Job;
use super::records::State;
use super::store::{Store, StoreError};
use crate::domain::{Key, Kind};
use crate::medium::Piece;

/// What is to be done for one key at start-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// All is as it should be.
    Nothing,
    /// Nobody knows of it, nobody ever will: remove the piece, if there is one, and the record.
    Discard,
    /// Go on with the job that the record holds.
    Resume,
    /// Go on with the removal.
    Remove,
    /// The piece is larger than the record says, since a growth was cut off: the record takes the piece's size.
    RollForward,
    /// A piece that no record speaks of. It may be somebody's data, so it is kept, and reported.
    KeepStray,
    /// A record whose piece is not there, or too small. It is kept, and reported.
    KeepDamaged,
}

/// The table. `piece` compares the piece's size with the record's; `None` where there is no piece.
pub fn decide(kind: Kind, state: Option<State>, job: bool, piece: Option<std::cmp::Ordering>) -> Act {
    use std::cmp::Ordering::{Equal, Greater, Less};
    match (state, piece) {
        // a temporary piece has no record; the record of its job names it, and only then is it asked about with a job
        (None, Some(_)) if kind == Kind::Temporary => {
            if job {
                Act::Nothing
            } else {
                Act::Discard
            }
        }
        (None, Some(_)) => Act::KeepStray,
        (None, None) => Act::Nothing,
        (Some(State::Making), Some(_)) if job => Act::Resume,
        (Some(State::Making), _) => Act::Discard,
        (Some(State::Removing), _) => Act::Remove,
        (Some(State::Deleted), None) => Act::Nothing,
        // it was removed before the record said so: somebody has put this one there
        (Some(State::Deleted), Some(_)) => Act::KeepStray,
        // the job makes a missing piece anew: it was noted before the piece was made
        (Some(State::Ready), _) if job => Act::Resume,
        (Some(State::Ready), Some(Equal)) => Act::Nothing,
        (Some(State::Ready), Some(Greater)) => Act::RollForward,
        (Some(State::Ready), Some(Less) | None) => Act::KeepDamaged,
    }
}

/// What start-up found that people should know of, and what it left to jobs.
#[derive(Debug, Default)]
pub struct Found {
    /// Keys whose job is to go on.
    pub resume: Vec<Key>,
    /// Keys whose removal is to go on.
    pub remove: Vec<Key>,
    /// Pieces without a record.
    pub strays: Vec<Key>,
    /// Records without a whole piece.
    pub damaged: Vec<Key>,
}

impl Store {
    /// Brings records and pieces together, as the table says. Keys that a tool of an earlier process still works on are
    /// left out; [`Store::recover_key`] comes back to them.
    pub(super) fn recover(&self, busy: &[Key]) -> Result<Found, StoreError> {
        let pieces: BTreeMap<Key, Piece> = self.medium.pieces()?.into_iter().map(|piece| (piece.key, piece)).collect();
        let records = self.records.all();
        let mut keys: Vec<Key> = records.iter().map(|(key, _)| *key).chain(pieces.keys().copied()).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut found = Found::default();
        for key in keys.into_iter().filter(|key| !busy.contains(key)) {
            self.recover_key(&key, pieces.get(&key), &mut found)?;
        }
        Ok(found)
    }

    /// Does for one key what the table says.
    pub(super) fn recover_key(&self, key: &Key, piece: Option<&Piece>, found: &mut Found) -> Result<(), StoreError> {
        if self.records.unreadable().contains_key(key) {
            return Ok(());
        }
        let entry = self.records.get(key)?;
        let job = match &entry {
            Some(entry) => entry.record.job.is_some(),
            None => self.temporary_is_wanted(key),
        };
        let compared = piece.map(|piece| {
            let expected = entry.as_ref().map_or(piece.size, |entry| entry.record.size);
            piece.size.cmp(&expected)
        });
        let act = decide(key.kind(), entry.as_ref().map(|entry| entry.state), job, compared);
        if act != Act::Nothing {
            tracing::info!(store = %self.id, %key, ?act, "recovery");
        }
        match (act, entry, piece) {
            (Act::Discard, _, _) => {
                let _ = self.medium.remove(key)?;
                self.records.remove(key)?;
            }
            (Act::RollForward, Some(entry), Some(piece)) => {
                let record = super::record::Record { size: piece.size, ..(*entry.record).clone() };
                self.records.put(key, State::Ready, record)?;
            }
            (Act::Resume, _, _) => found.resume.push(*key),
            (Act::Remove, _, _) => found.remove.push(*key),
            (Act::KeepStray, _, _) => found.strays.push(*key),
            (Act::KeepDamaged, _, _) => found.damaged.push(*key),
            (Act::Nothing | Act::RollForward, _, _) => {}
        }
        Ok(())
    }

    /// Whether the job of some record reads this temporary piece.
    fn temporary_is_wanted(&self, key: &Key) -> bool {
        let reads = |job: &Job| matches!(&job.work, super::record::Work::Copy { from, .. } if from == key);
        self.records
            .all()
            .iter()
            .any(|(_, entry)| entry.has_use_for_pieces() && entry.record.job.as_ref().is_some_and(reads))
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering::{Equal, Greater, Less};

    use super::*;

    #[test]
    fn every_cell_of_the_table() {
        use Act::*;
        use Kind::*;
        use State::*;
        for (kind, state, job, pieces) in [
            //                          none         as large     larger       smaller
            (Volume, None, false, [Nothing, KeepStray, KeepStray, KeepStray]),
            (Snapshot, None, false, [Nothing, KeepStray, KeepStray, KeepStray]),
            (Temporary, None, false, [Nothing, Discard, Discard, Discard]),
            (Temporary, None, true, [Nothing, Nothing, Nothing, Nothing]),
            (Volume, Some(Making), false, [Discard, Discard, Discard, Discard]),
            (Volume, Some(Making), true, [Discard, Resume, Resume, Resume]),
            (Volume, Some(Ready), false, [KeepDamaged, Nothing, RollForward, KeepDamaged]),
            (Snapshot, Some(Ready), false, [KeepDamaged, Nothing, RollForward, KeepDamaged]),
            (Snapshot, Some(Ready), true, [Resume, Resume, Resume, Resume]),
            (Volume, Some(Removing), false, [Remove, Remove, Remove, Remove]),
            (Volume, Some(Removing), true, [Remove, Remove, Remove, Remove]),
            (Volume, Some(Deleted), false, [Nothing, KeepStray, KeepStray, KeepStray]),
            (Volume, Some(Deleted), true, [Nothing, KeepStray, KeepStray, KeepStray]),
        ] {
            for (piece, act) in [None, Some(Equal), Some(Greater), Some(Less)].into_iter().zip(pieces) {
                assert_eq!(decide(kind, state, job, piece), act, "{kind:?} {state:?} job {job} piece {piece:?}");
            }
        }
    }
}
