//! How a volume reaches a node. A share has two halves, the host's (`target`) and the node's (`connect`), which may run on
//! different machines; a [`Ticket`] is all they have in common. It knows no CSI, no records and no pools.

pub mod connect;
pub mod local;
pub mod target;
pub mod ticket;

pub use connect::{ConnectError, Connection, Source, connect, disconnect, refresh, standing};
pub use target::{Enforced, Target, TargetError, Terms, Withdrawn};
pub use ticket::{Reach, Ticket};
