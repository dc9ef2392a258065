//! The host's half of a share.

use crate::domain::{Bytes, Key, NodeId, NodeName};

use super::ticket::Reach;

/// A share's half on the host: makes an open piece reachable for a node, and ends that.
pub trait Target: Send + Sync {
    /// Makes the piece reachable for this node alone, under this generation. Repeating it is harmless.
    fn offer(&self, key: &Key, bytes: &Bytes, to: &NodeId, generation: u64) -> Result<Reach, TargetError>;

    /// Ends the node's right. [`Withdrawn::Ended`] only when the node can write no more.
    fn withdraw(&self, key: &Key, bytes: &Bytes, node: &NodeName) -> Result<Withdrawn, TargetError>;

    /// What on this host has the piece open now; empty if nothing has.
    fn users(&self, bytes: &Bytes) -> Result<Vec<String>, TargetError>;

    /// Brings what was written on this host, and may still be in its memory, into the piece.
    fn flush(&self, bytes: &Bytes) -> Result<(), TargetError>;

    /// Lets those who have the piece open see that it has grown.
    fn resized(&self, key: &Key, bytes: &Bytes) -> Result<(), TargetError>;

    /// Sets how far the kernel reads ahead, in KiB, for those who have the piece open on this host.
    fn read_ahead(&self, bytes: &Bytes, kib: u32) -> Result<(), TargetError>;

    /// The grants that the kernel enforces now, for recovery.
    fn grants(&self) -> Result<Vec<(Key, NodeName)>, TargetError>;
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
#[error("{step} {}", bytes.path().display())]
pub struct TargetError {
    /// What was done.
    pub step: &'static str,
    /// To what.
    pub bytes: Bytes,
    /// Why it failed.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
