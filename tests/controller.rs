//! What a controller answers: whose a message is, what becomes of calls for hosts that are away, hang or lie, where new
//! volumes go, what the lists have.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cistern::proto::csi::v1 as csi;
use csi::list_volumes_response::Entry;
use rustix::process::Signal;
use support::client::{MIB, topology};
use support::fleet::{self, Controller};
use support::machine::Machine;
use support::peers::Pki;
use support::{Csi, Place, Volume, eventually, run};
use tonic::Code::{
    self, Aborted, AlreadyExists, InvalidArgument, NotFound, Ok as Done, ResourceExhausted, Unavailable,
};
use tonic::Status;

/// Hosts with a disk and a pool `p` each, and a controller.
struct Site {
    controller: Controller,
    hosts: BTreeMap<&'static str, Machine>,
    places: BTreeMap<&'static str, Place>,
    pki: Pki,
}

impl Site {
    /// Hosts of these names are up, each with a pool of its own file, and the controller has heard of all of it.
    fn of(names: &[&'static str]) -> Site {
        let mut site = Site::prepare(names, &[]);
        for (name, host) in &mut site.hosts {
            host.set_config(Some(&site.places[name].pool("  reserve: 32Mi\n  overcommit: 100\n")));
            host.start();
        }
        site.start();
        site
    }

    /// Nothing runs yet, and the hosts have no pools.
    fn prepare(names: &[&'static str], arguments: &[&str]) -> Site {
        let pki = Pki::new();
        let mut controller = Controller::new(pki.place.path("controller"), &pki).with(arguments);
        let (mut hosts, mut places) = (BTreeMap::new(), BTreeMap::new());
        for name in names {
            let place = Place::with("xfs", "1G");
            let host = fleet::host(name, place.path(""), None, &pki);
            controller.add(&host);
            hosts.insert(*name, host);
            places.insert(*name, place);
        }
        Site { controller, hosts, places, pki }
    }

    /// Starts the controller, and waits until it has found all hosts.
    fn start(&mut self) {
        self.controller.start();
        self.hosts.keys().for_each(|name| self.controller.wait_for(name));
    }

    fn host(&mut self, name: &str) -> &mut Machine {
        self.hosts.get_mut(name).unwrap()
    }

    fn client(&self) -> Csi {
        self.controller.client()
    }

    /// A volume of this name on this host.
    fn volume(&self, name: &str, host: &str) -> Volume {
        let mut volume = Volume::block(name, 4 * MIB).on(&[host]);
        self.client().create(&mut volume).unwrap();
        volume
    }

    /// The identity of a host's store of pool `p`.
    fn store(&self, host: &str) -> String {
        let text = std::fs::read(self.places[host].pool_directory().join("store.json")).unwrap();
        let store: serde_json::Value = serde_json::from_slice(&text).unwrap();
        store["store"].as_str().unwrap().to_owned()
    }
}

fn code<T>(answered: Result<T, Status>) -> Code {
    answered.map_or_else(|status| status.code(), |_| Done)
}

/// Every call that names a volume or a snapshot, with this id; and what became of it.
fn calls_for(csi: &Csi, volume: &str, snapshot: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let of = Volume { id: volume.to_owned(), ..Volume::block("x", 4 * MIB) };
    let node = "n,127.0.0.1".to_owned();
    let id = || volume.to_owned();
    let validate = csi::ValidateVolumeCapabilitiesRequest {
        volume_id: id(),
        volume_capabilities: vec![of.capability()],
        ..Default::default()
    };
    let unpublish =
        csi::ControllerUnpublishVolumeRequest { volume_id: id(), node_id: node.clone(), ..Default::default() };
    let get = csi::ControllerGetVolumeRequest { volume_id: id() };
    let get_snapshot = csi::GetSnapshotRequest { snapshot_id: snapshot.to_owned(), ..Default::default() };
    let ask = |name: &str| Volume::block(name, 4 * MIB);
    let mut controller = csi.controller();
    vec![
        ("DeleteVolume", csi.delete(&of)),
        ("ControllerUnpublishVolume", csi.block_on(controller.controller_unpublish_volume(unpublish)).map(drop)),
        ("DeleteSnapshot", csi.delete_snapshot(snapshot)),
        ("ControllerPublishVolume", csi.attach_to(&mut of.clone(), &node, false)),
        ("ValidateVolumeCapabilities", csi.block_on(controller.validate_volume_capabilities(validate)).map(drop)),
        ("ControllerExpandVolume", csi.expand(&mut of.clone(), 8 * MIB)),
        ("ControllerModifyVolume", csi.modify(&of, "readAheadKiB", "64")),
        ("ControllerGetVolume", csi.block_on(controller.controller_get_volume(get)).map(drop)),
        ("CreateSnapshot", csi.snapshot(&of, "cut").map(drop)),
        ("GetSnapshot", csi.block_on(controller.get_snapshot(get_snapshot)).map(drop)),
        ("CreateVolume, a clone", csi.create(&mut ask("clone").cloned_from(&of)).map(drop)),
        ("CreateVolume, a restore", csi.create(&mut ask("restore").restored_from(snapshot)).map(drop)),
    ]
}

/// What is done already where there is nothing.
const ENDINGS: [&str; 3] = ["DeleteVolume", "ControllerUnpublishVolume", "DeleteSnapshot"];

#[test]
fn what_no_host_can_have() {
    let mut site = Site::of(&["a"]);
    let csi = site.client();
    let key = |kind: char| format!("{kind}-{}", "0123456789abcdef".repeat(2));
    let unseen = "0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff";
    let (volume, snapshot) = (format!("{unseen}/{}", key('v')), format!("{unseen}/{}", key('s')));
    let here = site.store("a");

    println!("an id that cannot be is that of nothing");
    for id in ["x", "a/b", unseen, &snapshot.replace("s-", "v_"), &format!("{volume}0"), &"long".repeat(100)] {
        for (call, answered) in calls_for(&csi, id, id) {
            assert_eq!(code(answered), if ENDINGS.contains(&call) { Done } else { NotFound }, "{call} of {id}");
        }
    }
    println!("so is that of the other kind, and one that the store does not have");
    for (volume, snapshot) in
        [(&*snapshot, &*volume), (&format!("{here}/{}", key('v')), &format!("{here}/{}", key('s')))]
    {
        for (call, answered) in calls_for(&csi, volume, snapshot) {
            assert_eq!(code(answered), if ENDINGS.contains(&call) { Done } else { NotFound }, "{call} of {volume}");
        }
    }
    println!("a store that nobody has shown may come back");
    for (call, answered) in calls_for(&csi, &volume, &snapshot) {
        let status = answered.expect_err(call);
        assert_eq!(status.code(), Unavailable, "{call}");
        assert!(status.message().contains(unseen), "{call}: {}", status.message());
    }
    println!("one that its owner has given up does not");
    site.controller
        .set_pools(Some(&format!("[{{ name: q, hosts: [a], dir: {{ path: /nowhere }}, lost: [{unseen}] }}]")));
    eventually("the text is read", || csi.delete(&Volume { id: volume.clone(), ..Volume::block("x", 0) }).ok());
    for (call, answered) in calls_for(&csi, &volume, &snapshot) {
        assert_eq!(code(answered), if ENDINGS.contains(&call) { Done } else { NotFound }, "{call} of what is lost");
    }
}

/// How long a call took, and what became of it.
fn timed<T>(call: impl FnOnce() -> Result<T, Status>) -> (Duration, Code) {
    let begun = Instant::now();
    let code = code(call());
    (begun.elapsed(), code)
}

/// A host is away: who is dead, or hangs, costs its own volumes and no others.
fn costs_only_its_own(site: &mut Site, on_a: &Volume, on_b: &Volume) {
    let csi = site.client();
    println!("calls for its volumes end, and say who is away");
    for (call, answered) in calls_for(&csi, &on_a.id, &on_a.id.replace("/v-", "/s-")) {
        let status = answered.expect_err(call);
        assert_eq!(status.code(), Unavailable, "{call}: {status:?}");
        assert!(status.message().contains("host a cannot be reached"), "{call}: {}", status.message());
    }
    println!("calls for others go on");
    let mut grown = on_b.clone();
    csi.expand(&mut grown, 16 * MIB).unwrap();
    for number in 0..5 {
        let (took, code) = timed(|| csi.create(&mut Volume::block(&format!("more-{number}"), 4 * MIB).on(&["b"])));
        assert_eq!(code, Done);
        assert!(took < Duration::from_secs(1), "nobody waits for a host that is known to be away: {took:?}");
    }
    println!("what belongs on it waits, and says so");
    assert_eq!(code(csi.create(&mut Volume::block("waits", 4 * MIB).on(&["a", "b"]))), Unavailable);
    println!("its volumes stay in the lists, and its space is not offered, nor said to be none: it may come back");
    let listed: Vec<String> = csi.volumes().into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
    assert!(listed.contains(&on_a.id) && listed.contains(&on_b.id), "{listed:?}");
    assert_eq!(code(csi.block_on(csi.controller().get_capacity(capacity_request(Some("a"))))), Unavailable);
    assert_eq!(capacity(&csi, None).available_capacity, capacity(&csi, Some("b")).available_capacity);
}

#[test]
fn a_host_that_is_down_costs_only_its_own() {
    let mut site = Site::of(&["a", "b"]);
    let (on_a, on_b) = (site.volume("va", "a"), site.volume("vb", "b"));
    site.host("a").kill();
    site.controller.wait_until_away("a");
    costs_only_its_own(&mut site, &on_a, &on_b);
    site.host("a").start();
    site.controller.wait_for("a");
    site.client().delete(&on_a).unwrap();
    site.client().create(&mut Volume::block("waits", 4 * MIB).on(&["a", "b"])).unwrap();
}

#[test]
fn a_host_that_hangs_costs_only_its_own() {
    let mut site = Site::of(&["a", "b"]);
    let (on_a, on_b) = (site.volume("va", "a"), site.volume("vb", "b"));
    let csi = site.client();
    site.host("a").process().signal(Signal::STOP);
    // the name is asked for everywhere: once, until the host is known to hang
    let (took, code) = timed(|| csi.create(&mut Volume::block("first", 4 * MIB).on(&["b"])));
    assert_eq!(code, Done);
    assert!(took < Duration::from_secs(5), "{took:?}");
    costs_only_its_own(&mut site, &on_a, &on_b);
    site.host("a").process().signal(Signal::CONT);
    site.controller.wait_for("a");
    eventually("it is of use again", || csi.delete(&on_a).ok());
}

#[test]
fn a_call_for_a_host_that_hangs_ends_with_its_callers_time() {
    let mut site = Site::of(&["a"]);
    let on_a = site.volume("va", "a");
    let csi = site.client();
    site.host("a").process().signal(Signal::STOP);
    let mut asked = tonic::Request::new(csi::DeleteVolumeRequest { volume_id: on_a.id.clone(), ..Default::default() });
    asked.set_timeout(Duration::from_secs(2));
    let (took, code) = timed(|| csi.block_on(csi.controller().delete_volume(asked)));
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!([Aborted, Code::Cancelled, Code::DeadlineExceeded].contains(&code), "{code:?}");
    site.host("a").process().signal(Signal::CONT);
    eventually("it is deleted", || csi.delete(&on_a).ok());
}

#[test]
fn a_pool_that_a_controller_brings_is_kept_and_a_host_starts_alone() {
    let mut site = Site::prepare(&["a", "b"], &[]);
    let entry = |host: &str, place: &Place| {
        format!("{{ name: p, hosts: [{host}], dir: {{ path: {} }} }}", place.pool_directory().display())
    };
    site.controller.set_pools(Some(&format!("[{}]", entry("a", &site.places["a"]))));
    site.hosts.values_mut().for_each(Machine::start);
    site.controller.start();
    site.controller.wait_for("a");
    let volume = site.volume("kept", "a");
    assert_eq!(code(site.client().create(&mut Volume::block("x", 4 * MIB).on(&["b"]))), ResourceExhausted);
    let pools = |host: &Machine| -> Vec<(String, bool)> {
        let listed = cistern(&["pool", "ls", "-o", "json"], &host.socket()).1;
        let pools: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
        pools.iter().map(|pool| (pool["name"].as_str().unwrap().to_owned(), pool["down"] == "")).collect()
    };
    println!("without any controller");
    site.controller.kill();
    site.host("a").kill();
    site.host("a").start();
    assert_eq!(pools(site.host("a")), [("p".to_owned(), true)]);
    assert_eq!(pools(site.host("b")), []);
    println!("a pool whose place overlaps with one of the host's own, or that has its name, is refused by name");
    let text = |name: &str, below: &str| {
        let path = site.places["a"].path("disk").join(below);
        format!("{{ name: {name}, hosts: [a], dir: {{ path: {} }} }}", path.display())
    };
    let [overlaps, twice, good] = [text("inside", "pool/images"), text("p", "other"), text("good", "good")];
    let own = site.places["a"].pool("");
    site.controller.set_pools(Some(&format!("[{overlaps}, {twice}, {good}]")));
    site.host("a").stop();
    site.host("a").set_config(Some(&own));
    site.host("a").start();
    site.controller.start();
    site.controller.wait_for("a");
    for (pool, why) in [("inside", "overlaps with that of pool p"), ("p", "own file")] {
        site.controller.wait_for_log(&["the host refuses a pool", "host=a", &format!("pool=\"{pool}\""), why]);
    }
    assert_eq!(pools(site.host("a")), [("good".to_owned(), true), ("p".to_owned(), true)]);
    site.client().delete(&volume).unwrap();
    println!("pools that are in the text no more go, and what is in them stays");
    let volume = {
        let mut volume = Volume::block("v", 4 * MIB).with("pool", "good");
        site.client().create(&mut volume).unwrap();
        volume
    };
    site.controller.set_pools(Some("[]"));
    eventually("it is gone", || (site.controller.pools_of("a").len() == 1).then_some(()));
    assert_eq!(code(site.client().delete(&volume)), Unavailable);
    println!("one that is gone may have any name, unless it went when it was empty");
    let mut other = Volume::block("other", 4 * MIB).with("pool", "p");
    site.client().create(&mut other).unwrap();
    site.client().delete(&other).unwrap();
    let records = || site.places["a"].inventory().files;
    assert!(records()[0].to_str().unwrap().ends_with(".deleted"), "{:?}", records());
    site.controller.set_pools(Some(&format!("[{good}]")));
    eventually("it is back", || site.client().delete(&volume).ok());
    site.controller.set_pools(Some("[]"));
    eventually("it is gone", || (site.controller.pools_of("a").len() == 1).then_some(()));
    eventually("what was deleted is forgotten", || records().is_empty().then_some(()));
    site.client().create(&mut other).unwrap();
    site.client().delete(&other).unwrap();
    assert_eq!(records(), Vec::<PathBuf>::new());
}

#[test]
fn hosts_yaml_is_followed() {
    let mut site = Site::of(&["a", "b"]);
    let (on_a, on_b) = (site.volume("va", "a"), site.volume("vb", "b"));
    let ids = |csi: &Csi| -> BTreeSet<String> {
        csi.volumes().into_iter().map(|entry: Entry| entry.volume.unwrap().volume_id).collect()
    };
    let csi = site.client();
    let both: BTreeSet<String> = [on_a.id.clone(), on_b.id.clone()].into();
    assert_eq!(ids(&csi), both);
    site.controller.remove("b");
    eventually("b has left", || (ids(&csi) == [on_a.id.clone()].into()).then_some(()));
    assert_eq!(code(csi.delete(&on_b)), Unavailable, "a host that has left took its store along; it is not lost");
    println!("a text that is wrong changes nothing, and is named once");
    site.controller.write_text("hosts: [{ name: a }]\n");
    site.controller.wait_for_log(&["ERROR", "the fleet stays as it is", "hosts.yaml", "addresses"]);
    csi.expand(&mut on_a.clone(), 8 * MIB).unwrap();
    let b = &site.hosts["b"];
    site.controller.add_at("b", &b.address.to_string());
    eventually("b is back", || (ids(&csi) == both).then_some(()));
    site.controller.wait_for("b");
    csi.delete(&on_b).unwrap();
}

#[test]
fn a_store_that_two_hosts_show_is_nobodys_until_its_owner_says_whose() {
    let mut site = Site::of(&["a", "b"]);
    let (on_a, on_b) = (site.volume("va", "a"), site.volume("vb", "b"));
    let (a, b) = (site.store("a"), site.store("b"));
    println!("the disk of a is copied to b");
    for name in ["a", "b"] {
        site.host(name).stop();
    }
    let [from, to] = ["a", "b"].map(|name| site.places[name].pool_directory());
    run(&["rm", "-rf", to.to_str().unwrap()]);
    run(&["cp", "-a", from.to_str().unwrap(), to.to_str().unwrap()]);
    // b has seen another store there, and must be told that it is gone
    site.places["b"].pool(&format!("  reserve: 32Mi\n  lost: [{b}]\n"));
    for name in ["a", "b"] {
        site.host(name).start();
    }
    let csi = site.client();
    let disputed = eventually("both have shown it", || match csi.expand(&mut on_a.clone(), 8 * MIB) {
        Err(status) if status.message().contains("several hosts") => Some(status),
        _ => None,
    });
    assert_eq!(disputed.code(), Unavailable);
    for word in [&*a, "(a, b)", "hosts.yaml"] {
        assert!(disputed.message().contains(word), "{word}: {}", disputed.message());
    }
    assert_eq!(code(csi.create(&mut Volume::block("new", 4 * MIB))), Unavailable);
    site.controller.pin("a", &[&a]);
    eventually("it is a's", || csi.expand(&mut on_a.clone(), 8 * MIB).ok());
    println!("b's word does not count, whatever becomes of a");
    site.host("a").kill();
    site.controller.wait_until_away("a");
    let refused = csi.expand(&mut on_a.clone(), 16 * MIB).unwrap_err();
    assert!(refused.code() == Unavailable && refused.message().contains("host a"), "{refused:?}");
    assert_eq!(code(csi.delete(&on_b)), Unavailable, "b's own is nowhere now");
}

#[test]
fn lists_have_pages_and_are_complete_while_a_host_is_away() {
    const EACH: usize = 260;
    let mut site = Site::of(&["a", "b"]);
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let (csi, host) = (site.client(), ["a", "b"][worker % 2]);
            scope.spawn(move || {
                for number in (worker / 2..EACH).step_by(4) {
                    let mut volume = Volume::block(&format!("{host}-{number}"), 4 * MIB).on(&[host]);
                    eventually("it is made", || csi.create(&mut volume).ok());
                }
            });
        }
    });
    let csi = site.client();
    let pages = |csi: &Csi, most: i32| -> Vec<Vec<String>> {
        let (mut pages, mut token) = (Vec::new(), String::new());
        loop {
            let asked = csi::ListVolumesRequest { max_entries: most, starting_token: token };
            let page = csi.block_on(csi.controller().list_volumes(asked)).unwrap().into_inner();
            pages.push(page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect());
            token = page.next_token;
            if token.is_empty() {
                return pages;
            }
        }
    };
    for (who, away) in [("all are here", None), ("b is away", Some("b"))] {
        if let Some(away) = away {
            site.host(away).kill();
            site.controller.wait_until_away(away);
        }
        for (most, lengths) in [(0, vec![500, 20]), (300, vec![300, 220]), (10_000, vec![500, 20])] {
            let pages = pages(&csi, most);
            let got: Vec<usize> = pages.iter().map(Vec::len).collect();
            assert_eq!(got, lengths, "{who}, max_entries {most}");
            let ids: BTreeSet<&String> = pages.iter().flatten().collect();
            assert_eq!(ids.len(), 2 * EACH, "{who}: each once");
        }
    }
    println!("a controller that has not heard of b waits for it, and then answers without it");
    let mut twin = site.controller.twin(site.pki.place.path("twin"));
    twin.add_at("b", &site.hosts["b"].address.to_string());
    twin.start();
    assert_eq!(pages(&twin.client(), 0).concat().len(), EACH);
}

#[test]
fn what_was_answered_is_listed_at_once() {
    let site = Site::of(&["a", "b"]);
    std::thread::scope(|scope| {
        for (worker, host) in ["a", "a", "b", "b"].into_iter().enumerate() {
            let csi = site.client();
            scope.spawn(move || {
                for number in 0..50 {
                    let mut volume = Volume::block(&format!("{worker}-{number}"), 4 * MIB).on(&[host]);
                    csi.create(&mut volume).unwrap();
                    let listed = csi.volumes();
                    let is_it = |entry: &Entry| entry.volume.as_ref().unwrap().volume_id == volume.id;
                    assert!(listed.iter().any(is_it), "{} is not among {}", volume.name, listed.len());
                }
            });
        }
    });
}

fn capacity_request(host: Option<&str>) -> csi::GetCapacityRequest {
    csi::GetCapacityRequest {
        parameters: [("pool".to_owned(), "p".to_owned())].into(),
        accessible_topology: host.map(topology),
        ..Default::default()
    }
}

fn capacity(csi: &Csi, host: Option<&str>) -> csi::GetCapacityResponse {
    csi.block_on(csi.controller().get_capacity(capacity_request(host))).unwrap().into_inner()
}

#[test]
fn new_volumes_go_where_they_belong() {
    let site = Site::of(&["a", "b"]);
    let csi = site.client();
    let host_of = |made: &csi::Volume| made.accessible_topology[0].segments["topology.cistern.dev/host"].clone();

    println!("capacity by topology");
    let [a, b, all, nowhere] = [Some("a"), Some("b"), None, Some("c")].map(|host| capacity(&csi, host));
    assert!(a.available_capacity > 500 * MIB && b.available_capacity > 500 * MIB);
    assert_eq!(all.available_capacity, a.available_capacity + b.available_capacity);
    assert_eq!(all.maximum_volume_size, Some(a.available_capacity.max(b.available_capacity)));
    assert_eq!(nowhere.available_capacity, 0);
    println!("a host that may come in a moment is not said to have none");
    for (patience, answer) in [("30", Err(Unavailable)), ("0", Ok(0))] {
        let mut twin = site.controller.twin(site.pki.place.path(patience)).with(&["--patience", patience]);
        twin.add_at("c", "127.0.0.1:1");
        twin.start();
        twin.wait_for("a");
        let csi = twin.client();
        let got = csi.block_on(csi.controller().get_capacity(capacity_request(Some("c"))));
        let got = got.map(|answer| answer.into_inner().available_capacity).map_err(|status| status.code());
        assert_eq!(got, answer, "patience {patience}");
        assert_eq!(capacity(&csi, Some("a")).available_capacity, a.available_capacity);
    }
    let unknown =
        csi::GetCapacityRequest { parameters: [("pool".to_owned(), "q".to_owned())].into(), ..Default::default() };
    assert_eq!(code(csi.block_on(csi.controller().get_capacity(unknown))), InvalidArgument);

    println!("by topology");
    for (name, hosts, answer) in [
        ("t1", &["a", "b"][..], Ok("a")),
        ("t2", &["b", "a"], Ok("b")),
        ("t3", &["c", "b"], Ok("b")),
        ("t4", &["c"], Err(ResourceExhausted)),
    ] {
        let made = csi.create(&mut Volume::block(name, 4 * MIB).on(hosts));
        let got = made.as_ref().map(&host_of).map_err(Status::code);
        assert_eq!(got, answer.map(str::to_owned), "{name} {hosts:?}: {made:?}");
    }
    println!("by hash: every controller says the same, and all hosts get their share");
    let mut twin = site.controller.twin(site.pki.place.path("twin"));
    twin.add_at("b", &site.hosts["b"].address.to_string());
    twin.start();
    twin.wait_for("a");
    twin.wait_for("b");
    let other = twin.client();
    let mut hosts = Vec::new();
    for number in 0..12 {
        let (one, again) = if number % 2 == 0 { (&csi, &other) } else { (&other, &csi) };
        let mut volume = Volume::block(&format!("h{number}"), 4 * MIB);
        hosts.push(host_of(&one.create(&mut volume).unwrap()));
        assert_eq!(again.create(&mut volume.clone()).unwrap().volume_id, volume.id);
        one.delete(&volume).unwrap();
        assert_eq!(host_of(&again.create(&mut volume).unwrap()), hosts[number]);
    }
    println!("{hosts:?}");
    assert!(hosts.iter().any(|host| host == "a") && hosts.iter().any(|host| host == "b"));

    println!("a host that is full after all is passed over at once");
    let filler = site.places["a"].path("disk/filler");
    let fill = || run(&["fallocate", "-l", "700M", filler.to_str().unwrap()]);
    // it may have told the controller just before it is asked: then it is not asked at all
    let was_asked = (0..10).any(|round| {
        fill();
        let mut big = Volume::block(&format!("big-{round}"), 400 * MIB).on(&["a", "b"]);
        assert_eq!(host_of(&csi.create(&mut big).unwrap()), "b");
        csi.delete(&big).unwrap();
        std::fs::remove_file(&filler).unwrap();
        eventually("it has room again", || (capacity(&csi, Some("a")).available_capacity > 400 * MIB).then_some(()));
        let refused = [&*format!("about=\"{}\"", big.name), "ResourceExhausted"];
        site.hosts["a"].log().lines().any(|line| refused.iter().all(|word| line.contains(word)))
    });
    assert!(was_asked);
    fill();
    assert_eq!(code(csi.create(&mut Volume::block("bigger", 400 * MIB).on(&["a"]))), ResourceExhausted);
    assert_eq!(code(csi.create(&mut Volume::block("none", 4 * MIB).with("pool", "q"))), InvalidArgument);
}

#[test]
fn what_is_cut_from_another_lives_where_that_does() {
    let site = Site::of(&["a", "b"]);
    let csi = site.client();
    let (on_a, on_b) = (site.volume("va", "a"), site.volume("vb", "b"));
    let cut = csi.snapshot_when_ready(&on_a, "cut").unwrap();
    for (name, volume) in [
        ("restored", Volume::block("restored", 4 * MIB).restored_from(&cut.snapshot_id)),
        ("cloned", Volume::block("cloned", 4 * MIB).cloned_from(&on_a)),
        ("with preferences", Volume::block("preferred", 4 * MIB).cloned_from(&on_a).on(&["b", "a"])),
    ] {
        let made = csi.create(&mut volume.clone()).unwrap();
        assert_eq!(made.accessible_topology, [topology("a")], "{name}");
        assert_eq!(
            code(csi.create(&mut Volume { name: format!("{name}-on-b"), ..volume.on(&["b"]) })),
            ResourceExhausted
        );
    }
    println!("one name, one snapshot");
    assert_eq!(csi.snapshot(&on_a, "cut").unwrap().snapshot_id, cut.snapshot_id);
    let refused = csi.snapshot(&on_b, "cut").unwrap_err();
    assert_eq!(refused.code(), AlreadyExists);
    assert!(refused.message().contains(&cut.snapshot_id), "{}", refused.message());
    let listed = |volume: &str, snapshot: &str| {
        let asked = csi::ListSnapshotsRequest {
            source_volume_id: volume.to_owned(),
            snapshot_id: snapshot.to_owned(),
            ..Default::default()
        };
        csi.block_on(csi.controller().list_snapshots(asked)).unwrap().into_inner().entries.len()
    };
    let lengths = [("", ""), (&on_a.id, ""), (&on_b.id, ""), ("", &cut.snapshot_id), ("x", ""), ("", "x")];
    assert_eq!(lengths.map(|(volume, snapshot)| listed(volume, snapshot)), [1, 1, 0, 1, 0, 0]);
}

/// A people's command against this socket: whether it succeeded, and what it printed.
fn cistern(arguments: &[&str], socket: &Path) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
    let done = command.args(arguments).arg("--endpoint").arg(socket).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    (done.status.success(), said)
}

#[test]
fn people_see_the_whole_fleet_at_the_controllers_socket() {
    let mut site = Site::of(&["a", "b"]);
    let csi = site.client();
    let on_a = site.volume("va", "a");
    site.volume("vb", "b");
    csi.snapshot_when_ready(&on_a, "cut").unwrap();
    let socket = site.controller.socket();
    let cells = |command: &[&str], columns: &[&str]| -> Vec<Vec<String>> {
        let (_, text) = cistern(command, &socket);
        let mut rows = text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let header = rows.next().unwrap();
        let at =
            columns.iter().map(|column| header.iter().position(|name| name == column).unwrap()).collect::<Vec<_>>();
        rows.map(|row| at.iter().map(|at| row[*at].clone()).collect()).collect()
    };
    assert_eq!(cells(&["pool", "ls", "-o", "table"], &["NAME", "HOST", "STATE"]), [["p", "a", "ok"], ["p", "b", "ok"]]);
    assert_eq!(
        cells(&["volume", "ls", "-o", "table"], &["NAME", "POOL", "HOST"]),
        [["va", "p", "a"], ["vb", "p", "b"]]
    );
    assert_eq!(cells(&["snapshot", "ls", "-o", "table"], &["NAME", "HOST", "STATE"]), [["cut", "a", "ready"]]);
    let (_, text) = cistern(&["volume", "ls", "-o", "json"], &socket);
    let listed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&listed[0]["host"], &listed[0]["id"]), (&"a".into(), &on_a.id.clone().into()));
    for socket in [&socket, &site.hosts["a"].socket()] {
        assert_eq!(cistern(&["doctor", "-o", "table"], socket), (true, "all is well\n".to_owned()));
    }
    println!("one that is away is shown with what it was seen with");
    site.host("b").kill();
    site.controller.wait_until_away("b");
    let (_, text) = cistern(&["pool", "ls", "-o", "table"], &socket);
    assert!(text.lines().any(|line| line.starts_with("p     b") && line.contains("down: host b is away")), "{text}");
    let (well, text) = cistern(&["doctor", "-o", "table"], &socket);
    assert!(!well && text.contains("pool p on host b is down: host b is away"), "{text}");
    println!("one that was never seen with its name");
    site.controller.add_at("c", "127.0.0.1:9");
    site.controller.wait_until_away("c");
    let (_, text) = cistern(&["doctor", "-o", "table"], &socket);
    assert!(text.contains("host c is away") && text.contains("start cistern on host c"), "{text}");
    println!("and where nobody answers doctor says what could");
    site.controller.kill();
    let (well, text) = cistern(&["doctor", "-o", "table"], &socket);
    assert!(!well && text.contains("cistern serve, host, node or controller"), "{text}");
}
