//! What owners write, parsed into what the driver works with: pools.yaml, hosts.yaml. Nothing here touches a store.

pub mod files;
pub mod hosts;
pub mod pools;

pub use files::{PoolFiles, Pools, Refused, with_fleet};
pub use hosts::{Fleet, FleetPool, HostSpec, is_address, read_hosts};
pub use pools::{ConfigError, default_pool, parse_entry, read_pools};
