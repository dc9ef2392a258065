//! Many hosts, played (tests/simulation/), behind a real `cistern controller`: what is so whatever the machine is busy with.
//! benches/fleet.rs measures the same with thousands.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod simulation;
mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use simulation::controller::Controller;
use simulation::{Manner, Played, SIZE, Simulation};
use support::eventually;

fn ids(controller: &Controller) -> BTreeSet<String> {
    controller.list().into_iter().map(|entry| entry.volume.unwrap().volume_id).collect()
}

#[test]
fn three_hosts_are_played_well() {
    let simulation = Simulation::of(3, 2);
    let controller = Controller::start(&simulation, &simulation.text(|_| String::new()), &[]);
    assert_eq!(ids(&controller).len(), 6);
    let before = controller.capacity();
    let made = controller.create("new", None).unwrap();
    let host = simulation.hosts.iter().find(|host| host.volume_id("new") == made.volume_id).unwrap();
    assert!(host.held("new").is_some());
    controller.publish(&made.volume_id, host).unwrap();
    assert_eq!(host.held("new").unwrap().generation, 1);
    assert!(ids(&controller).contains(&made.volume_id));
    controller.delete(&made.volume_id).unwrap();
    assert_eq!((ids(&controller).len(), controller.capacity()), (6, before));
}
