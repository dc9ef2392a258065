//! What a pool is made of: a medium times a share, as its owner wrote it, parsed.

use std::path::PathBuf;

use super::ids::{NodeName, PoolName, StoreId};

/// One pool.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolSpec {
    /// What a StorageClass names.
    pub name: PoolName,
    /// What it is made of.
    pub medium: MediumSpec,
    /// How much may be promised for each byte there is.
    pub overcommit: Overcommit,
    /// Bytes never given out; `None` leaves the choice to the store's size.
    pub reserve: Option<u64>,
    /// Stores that their owner declared lost.
    pub lost: Vec<StoreId>,
    /// The hosts that carry it; `None` for every host that has its text.
    pub hosts: Option<Vec<NodeName>>,
}

impl PoolSpec {
    /// Whether the pool's owner lets this host carry it.
    pub fn may_be_on(&self, host: &NodeName) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.contains(host))
    }
}

/// What the stores of a pool are made of.
#[derive(Debug, Clone, PartialEq)]
pub enum MediumSpec {
    /// Disk-image files in a directory.
    Dir(DirSpec),
}

/// A directory of disk images.
#[derive(Debug, Clone, PartialEq)]
pub struct DirSpec {
    /// The directory, an absolute path.
    pub path: PathBuf,
    /// The size in bytes of the one file that is the whole pool, if it is to be one.
    pub image: Option<u64>,
}

/// How much may be promised for each byte there is: at least 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Overcommit(f64);

impl Overcommit {
    /// Nothing is promised twice.
    pub const NONE: Overcommit = Overcommit(1.0);

    /// A factor from 1 to 1000; `None` for any other number.
    pub fn new(factor: f64) -> Option<Overcommit> {
        (1.0..=1000.0).contains(&factor).then_some(Overcommit(factor))
    }

    /// What may be promised where this many bytes can be used.
    pub fn of(self, usable: u64) -> u64 {
        // a product beyond 2^53 loses bytes, never more than a few; the cast saturates and the factor is positive
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        if self == Overcommit::NONE { usable } else { (usable as f64 * self.0) as u64 }
    }
}
