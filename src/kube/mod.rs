//! The controller in a cluster: what it needs of Kubernetes, and what it keeps there. Nothing else knows Kubernetes.

pub mod authority;
mod believed;
pub mod enrol;
pub mod fleet;
pub mod leader;
pub mod pool;
pub mod status;
