//! What the tests share: a place of their own, a server, a client, and an inventory that never asks the server.
// each test file uses a part of it
#![allow(dead_code, unused_imports, missing_docs, clippy::unwrap_used, clippy::expect_used)]

pub mod api;
pub mod apiserver;
pub mod client;
pub mod cluster;
pub mod cut;
pub mod dice;
pub mod far;
pub mod fleet;
pub mod inventory;
pub mod lab;
pub mod life;
pub mod machine;
pub mod names;
pub mod peers;
pub mod place;
pub mod rights;
pub mod sanity;
pub mod server;

pub use client::{Csi, Volume};
pub use cluster::Cluster;
pub use dice::Dice;
pub use inventory::Inventory;
pub use lab::{Host, Lab};
pub use names::{seed_of_commit, steps, syncs};
pub use place::{Place, run};
pub use rights::may_grow_ext4;
pub use server::{Server, Setting};

use std::time::{Duration, Instant};

/// Sends a process a signal. A bare machine has no program for that.
pub fn signal(process: u32, signal: rustix::process::Signal) {
    let process = rustix::process::Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    rustix::process::kill_process(process, signal).unwrap();
}

/// Asks again until it is so; a wait for a condition, not for time.
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within(Duration::from_secs(60), what, ask)
}

/// The same for what may take longer.
pub fn within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
