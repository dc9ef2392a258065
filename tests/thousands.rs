//! Many hosts, played (tests/simulation/), behind a real `cistern controller`: what is so however busy the machine is.
//! benches/fleet.rs measures the same with thousands.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod simulation;
mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use simulation::controller::Controller;
use simulation::{Manner, Played, Simulation};
use support::eventually;

/// What a controller has open beside one connection for each host: its log, its socket and the connections to that, the
/// runtime's own.
const FILES: usize = 24;

fn listed(controller: &Controller) -> BTreeSet<String> {
    controller.list().into_iter().map(|entry| entry.volume.unwrap().volume_id).collect()
}

fn ids(hosts: &[&Played], volumes: usize) -> BTreeSet<String> {
    let of = |host: &&Played| {
        let (host, name) = ((*host).volume_id(""), host.name.clone());
        let store = host.split('/').next().unwrap().to_owned();
        (0..volumes).map(move |number| (store.clone(), format!("{name}-volume-{number}")))
    };
    let key = |name: &str| cistern::domain::Key::of_name(cistern::domain::Kind::Volume, name);
    hosts.iter().flat_map(of).map(|(store, name)| format!("{store}/{}", key(&name))).collect()
}

#[test]
fn hosts_are_played_well() {
    let simulation = Simulation::of(3, 2);
    let controller = Controller::start(&simulation.pki, &simulation.text(|_| String::new()), &[]);
    let all: Vec<&Played> = simulation.hosts.iter().map(|host| &**host).collect();
    assert_eq!(listed(&controller), ids(&all, 2));
    let before = controller.capacity();
    let made = controller.create("new", None).unwrap();
    let host = all.iter().find(|host| host.volume_id("new") == made.volume_id).unwrap();
    assert!(host.held("new").is_some());
    controller.publish(&made.volume_id, host).unwrap();
    assert_eq!(host.held("new").unwrap().generation, 1);
    assert!(listed(&controller).contains(&made.volume_id));
    controller.delete(&made.volume_id).unwrap();
    assert_eq!((listed(&controller).len(), controller.capacity()), (6, before));
}

#[test]
fn what_is_bad_holds_up_nobody_else() {
    let simulation = Simulation::of(50, 20);
    let manners = [
        (7, Manner::Silent),
        (17, Manner::Deaf),
        (27, Manner::Mute),
        (37, Manner::Slow(Duration::from_millis(300))),
        (47, Manner::Flapping(Duration::from_secs(1))),
    ];
    manners.iter().for_each(|(number, manner)| simulation.hosts[*number].behaves(*manner));
    let controller = Controller::start(&simulation.pki, &simulation.text(|_| String::new()), &["--patience", "1"]);
    assert!(controller.ready_after < Duration::from_secs(20), "{:?}", controller.ready_after);

    // everybody who has told what it has is listed, also one that cannot be asked
    let mute = |host: &Played| matches!(host.manner(), Manner::Silent | Manner::Mute);
    let heard: Vec<&Played> = simulation.hosts.iter().map(|host| &**host).filter(|host| !mute(host)).collect();
    eventually("all that was told is listed", || (listed(&controller) == ids(&heard, 20)).then_some(()));

    // one that hangs from now on is suspected by the first that asks, and asked for no name any more
    let (good, hangs) = (&simulation.hosts[0], &simulation.hosts[1]);
    hangs.turns(Manner::Deaf);
    controller.create("first", Some(good)).unwrap();
    let asked = hangs.calls("Claim");
    for number in 0..10 {
        controller.create(&format!("next-{number}"), Some(good)).unwrap();
    }
    assert_eq!((asked, hangs.calls("Claim")), (1, 1));
    assert_eq!(controller.logged("host is away host=host-1 "), 1);
    assert_eq!(good.volumes(), 20 + 11);

    // its own volumes, and those of the other good ones, are published; and it comes back
    controller.publish(&good.volume_id("next-3"), good).unwrap();
    hangs.turns(Manner::Well);
    eventually("it is asked again", || {
        // what settles the name between two of these calls may have taken its claim from one
        let _ = controller.create("again", Some(good));
        (hangs.calls("Claim") > 1).then_some(())
    });
    controller.create("there", Some(hangs)).unwrap();

    // connections that break leave nothing behind
    let flaps = &simulation.hosts[47];
    let (files, watched) = (controller.files(), flaps.calls("Watch"));
    assert!(files <= 50 + FILES, "{files} files");
    eventually("it has come and gone five times", || (flaps.calls("Watch") >= watched + 5).then_some(()));
    assert!(controller.files() <= files + 2, "{} files, and {files} before", controller.files());
}
