//! The controller in a cluster: what it needs of Kubernetes, and what it keeps there. Nothing else knows Kubernetes.

pub mod authority;
mod believed;
mod elect;
pub mod enrol;
pub mod fleet;
pub mod keep;
pub mod pool;
pub mod status;
pub mod watch;
