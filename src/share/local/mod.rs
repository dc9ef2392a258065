//! The share `local`: the volume is used on the machine that has it. A device is used as it is, a file through a loop
//! device, which outlives this process and keeps its number.

mod connect;
mod target;

pub(super) use connect::{connect, disconnect, refresh, standing};
pub use target::LocalTarget;
