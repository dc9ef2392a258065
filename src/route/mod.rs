//! The controller's work: it knows the hosts of a fleet, chooses one for a new volume, and hands each message on to the
//! host that it is for, unchanged. It keeps no data: what it knows it was told by hosts since it started, and nothing
//! destructive is decided from that.
//!
//! ```text
//!   service ──▶ forward ──▶ link ──mTLS──▶ a host            fleet: the links, and what their hosts reported
//!      ├──▶ create ──▶ ask (all hosts), placement            inventory: that report, checked
//!      └──▶ lists                                            settle: one name made twice
//! ```

mod ask;
mod create;
mod fleet;
mod forward;
mod inventory;
mod link;
mod lists;
mod people;
mod placement;
mod service;
mod settle;

pub use fleet::{Fleet, Patience};
pub use link::Standing;
pub use people::PeopleService;
pub use service::ControllerDoor;
pub use settle::settle_all;
