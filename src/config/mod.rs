//! What owners write, parsed into what the driver works with: pools.yaml. Nothing here touches a store.

pub mod pools;

pub use pools::{ConfigError, default_pool, read_pools};
