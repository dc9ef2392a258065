//! A host with a certificate of its own that lies: it can spoil its own volumes, and nobody else's. Each row of a table is a
//! lie; after each of them what is to be seen of a good host is what was to be seen before, and calls for it do their work.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod simulation;
mod support;

use cistern::proto::csi::v1 as csi;
use cistern::proto::internal::report::News;
use cistern::proto::internal::{self, Found};
use simulation::controller::Controller;
use simulation::{Held, Lies, POOL, Played, SIZE, Simulation};
use support::eventually;
use tonic::Code;

/// A good host, one that lies, and a controller for both.
struct Stage {
    /// Ends before what it is played to.
    controller: Controller,
    simulation: Simulation,
}

impl Stage {
    /// `pinned` are hosts whose stores stand in hosts.yaml.
    fn set(pinned: &[usize]) -> Stage {
        let simulation = Simulation::of(3, 3);
        for (number, host) in simulation.hosts.iter().enumerate() {
            let name = format!("granted-{number}");
            let node = format!("{},10.0.0.1", host.name);
            host.hold(Held { name, size: SIZE, nodes: vec![node], generation: 1, ..Held::default() });
        }
        let pins: Vec<String> = pinned.iter().map(|number| simulation.hosts[*number].name.to_string()).collect();
        let text = simulation.text(|host| match pins.contains(&host.name.to_string()) {
            true => format!(", stores: [{}]", host.store),
            false => String::new(),
        });
        let controller = Controller::start(&simulation.pki, &text, &["--patience", "0"]);
        Stage { controller, simulation }
    }

    fn good(&self) -> &Played {
        &self.simulation.hosts[0]
    }

    fn liar(&self) -> &Played {
        &self.simulation.hosts[1]
    }

    /// What is listed of the good host.
    fn listed(&self) -> Vec<csi::list_volumes_response::Entry> {
        let store = self.good().store.to_string();
        let mut entries = self.controller.list();
        entries.retain(|entry| entry.volume.as_ref().unwrap().volume_id.starts_with(&store));
        entries
    }

    /// What is deleted leaves the list when its host has said so.
    fn is_listed_as(&self, what: &str, before: &[csi::list_volumes_response::Entry]) {
        eventually(&format!("{what}: the good host is listed as before"), || (self.listed() == before).then_some(()));
    }

    /// Tells the lies, and waits until the last word of the report has arrived.
    fn tell(&self, what: &str, lies: Lies) {
        let mark = format!("told-{what}");
        self.liar().hold(Held { name: mark.clone(), size: SIZE, ..Held::default() });
        self.liar().lies(lies);
        let id = self.liar().volume_id(&mark);
        let asked = self.liar().calls("Find");
        eventually("the lie has arrived, and its host can be asked", || {
            let listed = self.controller.list().into_iter().any(|entry| entry.volume.unwrap().volume_id == id);
            (listed && self.liar().calls("Find") > asked).then_some(())
        });
    }

    /// All that a good host is there for.
    fn good_host_does_its_work(&self, what: &str) {
        let (controller, good) = (&self.controller, self.good());
        let name = format!("made-after-{what}");
        let made = eventually("a volume is made", || match controller.create(&name, Some(good)) {
            Ok(made) => Some(made),
            // the sidecars ask again after these
            Err(status) if [Code::Aborted, Code::Unavailable].contains(&status.code()) => None,
            Err(status) => panic!("{what}: {status}"),
        });
        assert_eq!(made.volume_id, good.volume_id(&name), "{what}");
        controller.publish(&made.volume_id, good).unwrap_or_else(|status| panic!("{what}: {status}"));
        let cut = controller.snapshot(&made.volume_id, &name).unwrap_or_else(|status| panic!("{what}: {status}"));
        assert_eq!(cut.snapshot_id, good.snapshot_id(&name), "{what}");
        let granted = good.volume_id("granted-0");
        controller.publish(&granted, good).unwrap_or_else(|status| panic!("{what}: {status}"));
        controller.delete(&made.volume_id).unwrap_or_else(|status| panic!("{what}: {status}"));
        assert!(good.held(&name).is_none(), "{what}");
        assert_eq!(good.volumes(), 4, "{what}");
    }
}

fn reports(news: News) -> Lies {
    Lies { reports: vec![news], ..Lies::default() }
}

/// A volume of this host, as it would be reported.
fn volume(host: &Played, name: &str) -> internal::Volume {
    internal::Volume {
        id: host.volume_id(name),
        name: name.to_owned(),
        pool: POOL.to_owned(),
        size_bytes: SIZE,
        content: "block".to_owned(),
        made_on: host.name.to_string(),
        ..Default::default()
    }
}

fn snapshot(host: &Played, name: &str, of: &str) -> internal::Snapshot {
    let (id, name, volume) = (host.snapshot_id(name), name.to_owned(), of.to_owned());
    internal::Snapshot { id, name, volume, size_bytes: SIZE, ready: true, ..Default::default() }
}

#[test]
fn what_is_reported() {
    let stage = Stage::set(&[0]);
    let (good, liar) = (stage.good(), stage.liar());
    let (before, capacity) = (stage.listed(), stage.controller.capacity());
    let there = "host-0-volume-1";
    let pool = liar.pool();
    let table: Vec<(&str, News)> = vec![
        ("another-store", News::Volume(volume(good, "x"))),
        ("another-size", News::Volume(internal::Volume { size_bytes: 1, ..volume(good, there) })),
        ("another-key", News::Volume(internal::Volume { name: "y".to_owned(), ..volume(liar, "x") })),
        ("endless", News::Volume(internal::Volume { size_bytes: u64::MAX, ..volume(liar, "x") })),
        ("no-node", News::Volume(internal::Volume { nodes: vec!["?".repeat(100_000)], ..volume(liar, "x") })),
        ("gone", News::Gone(good.volume_id(there))),
        ("deleted", News::Volume(internal::Volume { deleted: true, ..volume(good, there) })),
        ("snapshot", News::Snapshot(snapshot(good, "x", &good.volume_id(there)))),
        ("snapshot-of", News::Snapshot(snapshot(liar, "x", &good.volume_id(there)))),
        ("all-the-room", News::Pool(internal::Pool { available_bytes: u64::MAX, ..pool.clone() })),
        ("its-store", News::Pool(internal::Pool { name: "q".to_owned(), store: good.store.to_string(), ..pool })),
        (
            "same-name",
            News::Volume(internal::Volume {
                passed_over: vec![good.name.to_string()],
                generation: 0,
                ..volume(liar, "granted-0")
            }),
        ),
    ];
    for (what, news) in table {
        stage.tell(what, reports(news));
        stage.is_listed_as(what, &before);
        stage.good_host_does_its_work(what);
    }
    stage.tell("nothing", Lies::default());
    assert!(stage.controller.capacity() <= capacity);
    assert!(stage.controller.logged("it is not believed") >= 9, "{}", stage.controller.log());
}

#[test]
fn what_is_found() {
    let stage = Stage::set(&[]);
    let (good, liar) = (stage.good().volume_id(""), stage.liar().volume_id(""));
    let store = |id: &str| id.split('/').next().unwrap().to_owned();
    let (good_store, liar_store) = (store(&good), store(&liar));
    let found = move |store: &str, key: &str, name: &str| Found {
        id: format!("{store}/{key}"),
        name: name.to_owned(),
        pool: POOL.to_owned(),
        state: "ready".to_owned(),
        generation: 7,
        passed_over: vec!["host-0".to_owned()],
        ..Default::default()
    };
    type Lie = Box<dyn Fn(&internal::FindRequest, internal::FindResponse) -> internal::FindResponse + Send + Sync>;
    let table: Vec<(&str, Lie)> = vec![
        // whoever has a volume knows its name; who is asked for it is told a hash
        (
            "every-name-is-mine",
            Box::new(move |asked, answer| internal::FindResponse {
                found: vec![found(&liar_store, &asked.key, "")],
                ..answer
            }),
        ),
        (
            "in-another-store",
            Box::new(move |asked, answer| internal::FindResponse {
                found: vec![found(&good_store, &asked.key, "made-after-in-another-store")],
                ..answer
            }),
        ),
        ("no-claim", Box::new(|_, answer| internal::FindResponse { claim: String::new(), ..answer })),
        ("not-sure", Box::new(|_, answer| internal::FindResponse { unsure_pools: vec![POOL.to_owned()], ..answer })),
        (
            "too-large",
            Box::new(|asked, answer| match asked.claim {
                true => internal::FindResponse { claim: "x".repeat(5 << 20), ..answer },
                false => answer,
            }),
        ),
    ];
    let before = stage.listed();
    for (what, find) in table {
        stage.tell(what, Lies { find: Some(find), ..Lies::default() });
        stage.good_host_does_its_work(what);
        stage.is_listed_as(what, &before);
    }
}

#[test]
fn what_was_made() {
    let stage = Stage::set(&[]);
    let (good, before) = (stage.good(), stage.listed());
    let (id, name) = (good.volume_id("host-0-volume-1"), good.name.to_string());
    type Lie = Box<dyn Fn(csi::Volume) -> csi::Volume + Send + Sync>;
    let table: Vec<(&str, Lie)> = vec![
        ("anothers", Box::new(move |volume| csi::Volume { volume_id: id.clone(), ..volume })),
        ("nothing", Box::new(|volume| csi::Volume { volume_id: String::new(), ..volume })),
        ("too-small", Box::new(|volume| csi::Volume { capacity_bytes: 1, ..volume })),
        ("negative", Box::new(|volume| csi::Volume { capacity_bytes: -1, ..volume })),
        (
            "elsewhere",
            Box::new(move |volume| {
                let segments = [("topology.cistern.dev/host".to_owned(), name.clone())].into();
                csi::Volume { accessible_topology: vec![csi::Topology { segments }], ..volume }
            }),
        ),
    ];
    for (what, lie) in table {
        let created: Box<dyn Fn(&csi::CreateVolumeRequest, _) -> _ + Send + Sync> =
            Box::new(move |_, made: Result<csi::Volume, tonic::Status>| made.map(&lie));
        stage.tell(what, Lies { created: Some(created), ..Lies::default() });
        let refused = stage.controller.create(&format!("lie-{what}"), Some(stage.liar())).unwrap_err();
        assert!([Code::Internal, Code::Unavailable].contains(&refused.code()), "{what}: {refused}");
        stage.is_listed_as(what, &before);
        stage.good_host_does_its_work(what);
    }
}

/// Whoever is told the id of another's snapshot deletes it when its own is to go.
#[test]
fn what_was_cut() {
    let stage = Stage::set(&[]);
    let good = stage.good();
    let kept = stage.controller.snapshot(&good.volume_id("granted-0"), "kept").unwrap().snapshot_id;
    let (volume, id) = (good.volume_id("granted-0"), kept.clone());
    type Lie = Box<dyn Fn(csi::Snapshot) -> csi::Snapshot + Send + Sync>;
    let table: Vec<(&str, Lie)> = vec![
        ("anothers", Box::new(move |cut| csi::Snapshot { snapshot_id: id.clone(), ..cut })),
        ("of-another", Box::new(move |cut| csi::Snapshot { source_volume_id: volume.clone(), ..cut })),
        (
            "of-nothing",
            Box::new(move |cut| csi::Snapshot { snapshot_id: kept.clone(), source_volume_id: "?".to_owned(), ..cut }),
        ),
        ("negative", Box::new(|cut| csi::Snapshot { size_bytes: -1, ..cut })),
    ];
    for (what, lie) in table {
        let cut: Box<dyn Fn(&csi::CreateSnapshotRequest, _) -> _ + Send + Sync> = Box::new(move |_, cut| lie(cut));
        stage.tell(what, Lies { cut: Some(cut), ..Lies::default() });
        let of = stage.liar().volume_id("granted-1");
        let refused = stage.controller.snapshot(&of, &format!("lie-{what}")).unwrap_err();
        assert!([Code::Internal, Code::Unavailable].contains(&refused.code()), "{what}: {refused}");
        stage.good_host_does_its_work(what);
    }
}

/// What a host cannot be kept from, and what its owner can do about it: docs/limitations.md has it.
#[test]
fn a_store_that_does_not_stand_in_the_text_can_be_disputed() {
    let stage = Stage::set(&[0]);
    let bystander = &stage.simulation.hosts[2];
    let claim = |name: &str, of: &Played| {
        let pool = internal::Pool { name: name.to_owned(), store: of.store.to_string(), ..stage.liar().pool() };
        News::Pool(pool)
    };
    let lies = vec![claim("q", stage.good()), claim("r", bystander)];
    stage.tell("stores", Lies { reports: lies, ..Lies::default() });
    stage.good_host_does_its_work("stores");
    let refused = stage.controller.publish(&bystander.volume_id("granted-2"), bystander).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("host-1, host-2") || refused.message().contains("host-2, host-1"), "{refused}");
    stage.tell("no-more", Lies::default());
    eventually("it is the bystander's again", || {
        stage.controller.publish(&bystander.volume_id("granted-2"), bystander).ok()
    });
}
