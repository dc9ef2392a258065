//! What the way through a controller costs: the same call to a real `cistern host` with a real pool, directly over mutual TLS
//! and through a real `cistern controller`, in pairs that take turns. `make bench WHAT=hop`.
//!
//! The calls are those that the host answers from its records without a change; GetCapacity and the lists are not among them,
//! since a controller answers those itself. Needs root and mkfs.xfs, as the tests do.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/simulation/mod.rs"]
mod simulation;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use cistern::domain::Role;
use cistern::peer::Tls;
use cistern::proto::csi::v1 as csi;
use csi::controller_client::ControllerClient;
use simulation::controller::{Controller, create, request};
use support::peers::{Pki, name};
use support::{Place, Volume};
use tonic::transport::Channel;

/// Pairs of each call, and those before them that are not counted.
const PAIRS: usize = 3000;
const WARM_UP: usize = 200;

fn main() {
    let (place, pki) = (Place::with("xfs", "4G"), Pki::new());
    let mut host = support::fleet::host("host", place.path("host"), Some(&place.pool("")), &pki);
    host.start();
    let hosts = pki.place.path("hosts.yaml");
    let line = format!("hosts: [{{ name: host, addresses: ['{}'] }}]\n", host.address);
    std::fs::write(&hosts, line).unwrap();
    let controller = Controller::start(&pki, &hosts, &[]);
    let made =
        controller.wait(controller.client().create_volume(request(create("hop", None)))).unwrap().volume.unwrap();
    // over a way of its own, with the certificate of a controller
    let tls = Tls::open(&pki.machine("main", &[Role::Controller])).unwrap();
    let addresses = vec![host.address.to_string()];
    let channel = controller.block_on(async move { tls.channel(Role::Host, name("host"), addresses) });
    let ways = [ControllerClient::new(channel), controller.client()];
    println!("| call | direct, p50 | through a controller, p50 | the hop, p50 | p99 direct | p99 through |");
    println!("|---|---:|---:|---:|---:|---:|");
    let get = csi::ControllerGetVolumeRequest { volume_id: made.volume_id.clone() };
    pairs(&controller, "ControllerGetVolume", &ways, async |client| {
        client.controller_get_volume(request(get.clone())).await.unwrap();
    });
    let publish = csi::ControllerPublishVolumeRequest {
        volume_id: made.volume_id.clone(),
        node_id: "host,10.0.0.1".to_owned(),
        volume_capability: Some(Volume::block("", 0).capability()),
        ..Default::default()
    };
    pairs(&controller, "ControllerPublishVolume, again", &ways, async |client| {
        client.controller_publish_volume(request(publish.clone())).await.unwrap();
    });
    println!("load at the end: {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
}

/// Makes the call both ways, in turns, and prints what came of it.
fn pairs(
    controller: &Controller,
    what: &str,
    ways: &[ControllerClient<Channel>; 2],
    call: impl AsyncFn(&mut ControllerClient<Channel>),
) {
    let [mut direct, mut through] = ways.clone();
    let (mut directly, mut by_hop, mut differences) = (Vec::new(), Vec::new(), Vec::new());
    controller.block_on(async {
        let timed = async |client: &mut ControllerClient<Channel>| {
            let begun = Instant::now();
            call(client).await;
            begun.elapsed()
        };
        for pair in 0..WARM_UP + PAIRS {
            // neither way always comes first
            let (one, other) = if pair % 2 == 0 {
                let one = timed(&mut direct).await;
                (one, timed(&mut through).await)
            } else {
                let other = timed(&mut through).await;
                (timed(&mut direct).await, other)
            };
            if pair >= WARM_UP {
                directly.push(one);
                by_hop.push(other);
                differences.push(microseconds(other) - microseconds(one));
            }
        }
    });
    directly.sort();
    by_hop.sort();
    differences.sort();
    let at = |took: &[Duration], percent: usize| microseconds(took[(took.len() - 1) * percent / 100]);
    println!(
        "| {what} | {} µs | {} µs | {} µs | {} µs | {} µs |",
        at(&directly, 50),
        at(&by_hop, 50),
        differences[differences.len() / 2],
        at(&directly, 99),
        at(&by_hop, 99)
    );
}

fn microseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap()
}
