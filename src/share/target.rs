//! The host's half of a share.

use std::path::PathBuf;

use crate::domain::{Bytes, Key, NodeId, NodeName};

use super::ticket::Reach;

/// A node's right, as the share enforces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The node. Names are compared, addresses are what the share lets in.
    pub node: NodeId,
    /// The number of the grant: part of what the client must present, so that a session of an older one stays dead.
    pub generation: u64,
    /// Whether the node may only read.
    pub read_only: bool,
    /// The logical sector in bytes that the node is to see.
    pub sector: u32,
    /// Whether the piece's space is its own and must stay so: no discard.
    pub keeps_blocks: bool,
}

/// A right that the kernel enforces now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enforced {
    /// To what.
    pub key: Key,
    /// Whose.
    pub node: NodeName,
    /// The number of the grant.
    pub generation: u64,
}

/// A share's half on the host: makes an open piece reachable for a node, and ends that.
///
/// A host that starts offers every recorded grant again, withdraws what the kernel has beyond that, and only then
/// [admits](Target::admit) clients: they see a pause, and never a volume that is not theirs.
pub trait Target: Send + Sync {
    /// Makes the piece reachable for this node alone, on these terms. Repeating it is harmless.
    fn offer(&self, key: &Key, bytes: &Bytes, terms: &Terms) -> Result<Reach, TargetError>;

    /// Ends the node's right. [`Withdrawn::Ended`] only when the node can write no more.
    fn withdraw(&self, key: &Key, bytes: &Bytes, node: &NodeName, generation: u64) -> Result<Withdrawn, TargetError>;

    /// Lets clients in: every grant stands.
    fn admit(&self) -> Result<(), TargetError>;

    /// What on this host has the piece open now; empty if nothing has.
    fn users(&self, bytes: &Bytes) -> Result<Vec<String>, TargetError>;

    /// Brings what was written on this host, and may still be in its memory, into the piece.
    fn flush(&self, bytes: &Bytes) -> Result<(), TargetError>;

    /// Lets those who have the piece open see that it has grown.
    fn resized(&self, key: &Key, bytes: &Bytes) -> Result<(), TargetError>;

    /// Sets how far the kernel reads ahead, in KiB, for those who have the piece open on this host.
    fn read_ahead(&self, bytes: &Bytes, kib: u32) -> Result<(), TargetError>;

    /// The grants that the kernel enforces now, for recovery.
    fn grants(&self) -> Result<Vec<Enforced>, TargetError>;
}

/// What came of a withdrawal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Withdrawn {
    /// The node can write no more.
    Ended,
    /// It still can; the text says by what.
    StillUsed(String),
}

/// A share could not do its part on the host.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}", path.display())]
pub struct TargetError {
    /// What was done.
    pub step: &'static str,
    /// To what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
