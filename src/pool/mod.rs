//! Pools at work on their host: stores, records, guards, operations, jobs, capacity, recovery. Synchronous throughout; it
//! knows no CSI and no Kubernetes, and has pieces made, opened and removed by [`crate::medium`]
//! alone; what is in an opened one it copies, zeroes and formats with [`crate::machine`].

pub mod capacity;
pub mod claims;
pub mod guards;
pub mod host;
pub mod jobs;
pub mod news;
pub mod operations;
pub mod record;
pub mod records;
pub mod recovery;
mod seen;
pub mod store;
pub mod tasks;

pub use host::{Host, Unavailable};
pub use store::Store;
