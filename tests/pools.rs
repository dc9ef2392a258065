//! StoragePools against a real API server: what it refuses and says, what controllers make of the rest, what is told of it,
//! and how a pool goes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use cistern::domain::Role;
use serde_json::{Value, json};
use support::apiserver::{ApiServer, own_loopback};
use support::client::MIB;
use support::machine::Process;
use support::peers::Pki;
use support::{Csi, Place, Volume, eventually};

/// A cluster's objects, nodes `a` (disk=fast) and `b`, the host of each, and two controllers.
struct Site {
    // they go before the place that their logs are in
    processes: BTreeMap<&'static str, Process>,
    api: ApiServer,
    place: Place,
    pki: Pki,
}

impl Site {
    fn start() -> Site {
        let mut site =
            Site { api: ApiServer::start(), place: Place::bare(), pki: Pki::new(), processes: BTreeMap::new() };
        for (name, labels) in [("a", json!({ "disk": "fast" })), ("b", json!({ "disk": "slow" }))] {
            let address = own_loopback();
            site.api.apply_node(name, &format!("{name},{address}"), labels);
            let tls = site.pki.machine(name, &[Role::Host]);
            let (listen, data) = (format!("{address}:7443"), site.place.path(format!("{name}-data")));
            let mut command = site.cistern(name, "host", tls);
            command.args(["--node-id", name, "--listen", &listen]).arg("--data").arg(data);
            site.run(name, &mut command);
        }
        for name in ["c1", "c2"] {
            site.start_controller(name);
        }
        site
    }

    fn start_controller(&mut self, name: &'static str) {
        let tls = self.pki.machine(name, &[Role::Controller]);
        let mut command = self.cistern(name, "controller", tls);
        command.args(["--pod-name", name, "--patience", "1"]).env("KUBECONFIG", self.api.kubeconfig());
        self.run(name, &mut command);
        eventually("the controller is ready", || self.csi(name)?.is_ready().then_some(()));
    }

    fn cistern(&self, name: &str, role: &str, tls: PathBuf) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
        command.arg(role).arg("--tls").arg(tls).arg("--endpoint").arg(self.socket(name));
        command
    }

    fn run(&mut self, name: &'static str, command: &mut Command) {
        let process = Process::start(command, &self.place.path(format!("{name}.log")));
        self.processes.insert(name, process);
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.place.path(format!("{name}.sock"))
    }

    fn csi(&self, name: &str) -> Option<Csi> {
        Csi::try_connect(&self.socket(name))
    }

    /// A pool in a directory of its own.
    fn apply(&self, name: &str, rest: Value) {
        let mut spec = json!({ "dir": { "path": self.place.path(name) }, "reserve": "32Mi" });
        spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        self.api.apply_pool(name, spec).unwrap();
    }

    /// The pool's status, once it is so.
    fn status(&self, pool: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&format!("{pool}: {what}"), || {
                last = self.api.get(&["storagepool", pool])?["status"].clone();
                is_so(&last).then(|| last.clone())
            })
        }));
        found.unwrap_or_else(|_| panic!("{pool} never was so: {what}: {last:#}\n{}", self.processes["c1"].log()))
    }

    /// Waits for an event of the pool.
    fn event(&self, reason: &str, words: &str) {
        eventually(&format!("event {reason}: {words}"), || {
            let events = self.api.get(&["events", "-A"])?;
            let is_it = |event: &Value| {
                event["reason"] == reason && event["message"].as_str().is_some_and(|text| text.contains(words))
            };
            events["items"].as_array()?.iter().any(is_it).then_some(())
        });
    }

    fn label(&self, node: &str, label: &str) {
        self.api.kubectl(&["label", "--overwrite", "node", node, label], "").unwrap();
    }

    fn leader(&self) -> Option<String> {
        let lease = self.api.get(&["lease", "-n", "cistern", "cistern-status"])?;
        Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())
    }
}

fn condition<'a>(status: &'a Value, type_: &str) -> &'a Value {
    let conditions = status["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|one| one["type"] == type_)).unwrap_or(&Value::Null)
}

fn is_ready(status: &Value, hosts: &str) -> bool {
    condition(status, "Ready")["status"] == "True" && status["summary"] == hosts
}

#[test]
fn what_no_pool_may_say_is_refused_by_the_api_server_in_plain_words() {
    let api = ApiServer::start();
    let dir = json!({ "path": "/srv" });
    let long = "x".repeat(41);
    for (name, spec, words) in [
        (long.as_str(), json!({ "dir": dir }), "a DNS label of at most 40"),
        ("a.b", json!({ "dir": dir }), "a DNS label of at most 40"),
        ("p", json!({}), "exactly one medium"),
        ("p", json!({ "dir": { "path": "srv" } }), "absolute path"),
        ("p", json!({ "dir": { "path": "/srv/../etc" } }), "absolute path"),
        ("p", json!({ "dir": { "path": "/srv", "image": { "size": "much" } } }), "quantity such as 200Gi"),
        ("p", json!({ "dir": dir, "overcommit": 0.5 }), "between 1 and 1000"),
        ("p", json!({ "dir": dir, "hosts": ["a"], "nodeSelector": { "a": "b" } }), "hosts or nodeSelector, not both"),
        ("p", json!({ "dir": dir, "overcomit": 2 }), "unknown field"),
    ] {
        let said = api.apply_pool(name, spec.clone()).unwrap_err();
        assert!(said.contains(words), "{name} {spec}: {said}");
    }
    let image = |path: &str, size: &str| json!({ "dir": { "path": path, "image": { "size": size } } });
    api.apply_pool("p", image("/srv", "1Gi")).unwrap();
    for (spec, words) in [
        (image("/srv", "1000Mi"), "may only grow"),
        (image("/other", "1Gi"), "the path of a pool never changes"),
        (json!({ "dir": { "path": "/srv" } }), "stays one file"),
    ] {
        let said = api.apply_pool("p", spec.clone()).unwrap_err();
        assert!(said.contains(words), "{spec}: {said}");
    }
    api.apply_pool("p", image("/srv", "2048Mi")).unwrap();
}

#[test]
fn a_pool_comes_and_its_deletion_waits_for_what_it_holds() {
    let mut site = Site::start();
    site.apply("p", json!({ "nodeSelector": { "disk": "fast" } }));
    let status = site.status("p", "ready on a alone", |status| is_ready(status, "1/1"));
    assert_eq!((status["hosts"][0]["host"].as_str(), status["volumes"].as_i64()), (Some("a"), Some(0)));

    // both hosts are on this machine: the second finds the store in use
    site.label("b", "disk=fast");
    site.status("p", "down on b", |status| status["hosts"][1]["state"] == "Down");
    site.event("PoolDown", "on host b");
    site.label("b", "disk=slow");
    site.status("p", "on a alone again", |status| is_ready(status, "1/1"));

    let mut volume = Volume::block("pvc-1", 8 * MIB);
    site.csi("c2").unwrap().create(&mut volume).unwrap();
    site.status("p", "holds a volume", |status| status["volumes"] == 1);
    let mut export = Command::new(env!("CARGO_BIN_EXE_cistern"));
    let exported = export.arg("export-pvs").arg("--endpoint").arg(site.socket("c1")).output().unwrap().stdout;
    site.api.kubectl(&["apply", "-f", "-"], &String::from_utf8(exported).unwrap()).unwrap();
    assert_eq!(site.api.get(&["pv", "pvc-1"]).unwrap()["spec"]["csi"]["volumeHandle"], volume.id.as_str());

    site.api.kubectl(&["delete", "--wait=false", "storagepool", "p"], "").unwrap();
    let waits = |status: &Value| {
        condition(status, "Deleting")["message"].as_str().is_some_and(|text| text.contains("1 volume on host a"))
    };
    let status = site.status("p", "says what its deletion waits for", waits);
    assert!(is_ready(&status, "1/1"), "it is served until it goes: {status:#}");
    site.event("DeletionWaits", "1 volume on host a");

    // whoever writes status dies, and the other takes over
    let leader = if site.leader().unwrap() == "c1" { "c1" } else { "c2" };
    let other = if leader == "c1" { "c2" } else { "c1" };
    site.processes.get_mut(leader).unwrap().kill();
    site.csi(other).unwrap().delete(&volume).unwrap();
    eventually("the pool goes", || site.api.get(&["storagepool", "p"]).is_none().then_some(()));
    assert_eq!(site.leader().as_deref(), Some(other));

    // one that is stopped leaves nobody waiting for it
    assert!(site.processes.get_mut(other).unwrap().stop().success());
    assert_eq!(site.leader(), None);
}

#[test]
fn an_api_server_that_is_away_changes_nothing() {
    let mut site = Site::start();
    site.apply("p", json!({ "hosts": ["a"] }));
    site.status("p", "ready", |status| is_ready(status, "1/1"));
    site.api.end();
    let mut volume = Volume::block("pvc-1", 8 * MIB);
    site.csi("c1").unwrap().create(&mut volume).unwrap();
    // a controller that starts now knows of no hosts, and says so
    site.processes.get_mut("c2").unwrap().kill();
    let tls = site.pki.machine("c2", &[Role::Controller]);
    let mut command = site.cistern("c2", "controller", tls);
    command.args(["--pod-name", "c2"]).env("KUBECONFIG", site.api.kubeconfig());
    site.run("c2", &mut command);
    let csi = eventually("c2 answers", || site.csi("c2"));
    assert!(!csi.is_ready());
    let refused = csi.create(&mut volume.clone()).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    site.api.begin();
    eventually("c2 is ready", || csi.is_ready().then_some(()));
    site.status("p", "holds a volume", |status| status["volumes"] == 1);
    csi.create(&mut volume).unwrap();
    csi.delete(&volume).unwrap();
}
