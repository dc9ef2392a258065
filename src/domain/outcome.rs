//! Idempotency as a return type.

use std::ops::Range;

/// Whether an act did something or found it done. The caller who asks again gets `Found` and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome<T> {
    /// It was done now.
    Made(T),
    /// It had been done before.
    Found(T),
}

impl<T> Outcome<T> {
    /// What there is now, whoever made it.
    pub fn get(self) -> T {
        match self {
            Outcome::Made(value) | Outcome::Found(value) => value,
        }
    }
}

/// What a new piece, or the new end of a grown one, reads as.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Clean {
    /// As zero, by the medium's own doing.
    Zeroed,
    /// As whatever was there: these bytes are to be zeroed before anyone sees them.
    NeedsZeroing(Range<u64>),
}
