//! What a store is made of. A medium does only what is native to it, on pieces, and says what it needs otherwise
//! (zeroing, a copy while nobody writes); jobs of the pool do that for all media. It knows no CSI and no records.

pub mod dir;

use std::path::{Path, PathBuf};

use crate::domain::{Allocation, Bytes, Clean, Key, Outcome};

/// Native acts on the pieces of one store. Synchronous; every act may be repeated after it was cut off anywhere.
pub trait Medium: Send + Sync {
    /// The directory in which the store keeps its identity, its lock and its records.
    fn home(&self) -> &Path;

    /// How much there is.
    fn space(&self) -> Result<Space, MediumError>;

    /// What physically exists, for recovery and for capacity. Linear in the number of pieces.
    fn pieces(&self) -> Result<Vec<Piece>, MediumError>;

    /// Makes a piece of `size` bytes. One that is there already gets the size and the layout.
    fn make(&self, key: &Key, size: u64, layout: &Layout) -> Result<Outcome<Clean>, MediumError>;

    /// Makes the piece `to` with the bytes that `from` has now, natively if it can.
    fn cut(&self, from: (&Key, &Layout), to: (&Key, &Layout)) -> Result<Cut, MediumError>;

    /// Makes a piece larger. `Found` where it is that large already; a piece never shrinks.
    fn grow(&self, key: &Key, to: u64, layout: &Layout) -> Result<Outcome<Clean>, MediumError>;

    /// Makes a piece reachable on this machine: where every share begins.
    fn open(&self, key: &Key) -> Result<Bytes, MediumError>;

    /// Undoes [`Medium::open`].
    fn close(&self, key: &Key) -> Result<(), MediumError>;

    /// Removes a piece. `Found` where there is none.
    fn remove(&self, key: &Key) -> Result<Outcome<()>, MediumError>;
}

/// How much there is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All that the store has, whoever uses it.
    pub total: u64,
    /// What nothing uses now.
    pub free: u64,
    /// Sizes of pieces are multiples of this.
    pub grain: u64,
    /// The largest piece that the medium can address.
    pub largest: u64,
    /// The logical sector that direct I/O needs.
    pub sector: u32,
}

/// A piece as it physically exists, sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Whose it is.
    pub key: Key,
    /// Its full size.
    pub size: u64,
    /// The space it takes, shared or not.
    pub allocated: u64,
    /// The part of `allocated` that other pieces use too.
    pub shared: u64,
}

/// How a piece is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Whether its space is taken at once.
    pub allocation: Allocation,
}

/// What came of a cut.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Cut {
    /// `to` is there and whole.
    Done,
    /// The bytes are to be copied from this piece into `to`, which the job makes first.
    NeedsCopy {
        /// The source itself, or a temporary piece ([`Key::temporary`] of `to`) that is to be removed after the copy.
        from: Key,
        /// Whether nobody may write the source until the copy is done.
        quiesced: bool,
    },
}

/// An act on a piece failed.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    /// The store has no room for it.
    #[error("no space left for {0}")]
    NoSpace(Key),
    /// There is no such piece.
    #[error("the piece {0} is not there")]
    Missing(Key),
    /// The store's directory cannot serve as one.
    #[error("{}: {why}", path.display())]
    Unfit {
        /// The directory.
        path: PathBuf,
        /// What it lacks, and what mends it.
        why: String,
    },
    /// A step failed.
    #[error("{step} {}", path.display())]
    Step {
        /// What was done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl MediumError {
    /// For `map_err`: this step on this path failed.
    pub fn step<E>(step: &'static str, path: &Path) -> impl FnOnce(E) -> MediumError
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| MediumError::Step { step, path: path.to_owned(), source: source.into() }
    }
}
