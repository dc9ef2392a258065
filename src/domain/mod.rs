//! What the driver talks about: ids, sizes, specs, requests, outcomes, states. Types only; uses no other module.

pub mod error;
pub mod filesystem;
pub mod ids;
pub mod outcome;
pub mod pool;
pub mod request;
pub mod role;
pub mod size;
pub mod step;
pub mod uuid;
pub mod volume;

pub use filesystem::FsType;
pub use ids::{Id, Key, Kind, Malformed, NodeId, NodeName, PoolName, StoreId};
pub use outcome::{Clean, Outcome};
pub use pool::{DirSpec, MediumSpec, Overcommit, PoolSpec};
pub use role::Role;
pub use uuid::Uuid;
pub use volume::{AccessMode, Allocation, Bytes, Content, Wipe};
