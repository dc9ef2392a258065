//! Kubernetes uses cistern: the chart is installed as a person does it, and what follows is told by what pods see. What
//! is left on the nodes is seen by the tests' own inventory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod features;
#[path = "../support/granted.rs"]
mod granted;
mod life;
mod lost;
mod nodes;
mod quickstart;
mod rights;
mod storms;
#[path = "../support/mod.rs"]
mod support;
mod uninstall;
mod upgrade;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use support::cluster::Story;
use support::{Cluster, Host, Inventory, eventually};

/// Pools that the chart is given, and the place of each on every node, where a disk of its own is mounted.
const POOLS: &str = "
pools:
- { name: plain, dir: { path: /plain/disk/pool } }
- { name: boxed, dir: { path: /boxed/disk/pool, image: { size: 3Gi } } }
";
const PLACES: [(&str, &str); 2] = [("/plain", "/dev/ubdb"), ("/boxed", "/dev/ubdc")];

/// One cluster for all stories, and one story at a time: so whatever is left at its end is its own.
static CLUSTER: LazyLock<Mutex<Cluster>> = LazyLock::new(|| {
    let cluster = Cluster::up(&[("a", "4G,4G"), ("b", "4G,4G")]);
    cluster.nodes().for_each(|node| prepare(&node));
    cluster.install(POOLS);
    Mutex::new(cluster)
});

fn cluster() -> MutexGuard<'static, Cluster> {
    CLUSTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a cluster with the chart installed where a story ends early, for the stories that follow.
struct InstalledAtLast<'a>(&'a Cluster);

impl Drop for InstalledAtLast<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let restore = || {
                self.0.run(&["up", "a", "b"]);
                self.0.install(POOLS);
            };
            let _ = catch_unwind(AssertUnwindSafe(restore));
        }
    }
}

fn prepare(node: &Host) {
    for (place, disk) in PLACES {
        // an inventory looks for the daemon's files below the place
        let data = "ln -s /var/lib/cistern";
        node.sh(&format!("mkfs.xfs -q {disk}; mkdir -p {place}/disk; {data} {place}/data"));
        node.sh(&format!("echo {disk} {place}/disk xfs defaults,nofail 0 0 >>/etc/fstab; mount {place}/disk"));
    }
}

/// What there is on a node, without what belongs to the pools themselves.
fn inventories(node: &Host) -> Vec<Inventory> {
    PLACES.iter().map(|(place, _)| node.inventory(place)).collect()
}

/// Waits until neither cistern's files nor devices are left on any node, nor kubelet's mounts of them. What Kubernetes tries
/// again it tries less and less often.
fn assert_nothing_is_left(cluster: &Cluster) {
    let end = Instant::now() + Duration::from_secs(150);
    for node in cluster.nodes() {
        let is_clean = || inventories(&node).iter().all(|seen| seen.files.is_empty() && seen.loops.is_empty());
        while !is_clean() && Instant::now() < end {
            thread::sleep(Duration::from_millis(100));
        }
        inventories(&node).iter().for_each(Inventory::assert_empty);
        let mounts = node.sh("grep -e kubernetes.io/csi -e kubernetes.io~csi /proc/self/mountinfo || true");
        assert_eq!(mounts, "", "mounts are left on {}", node.name());
    }
}

/// How a pod has a volume.
#[derive(Clone, Copy)]
enum Mode {
    Filesystem,
    Block,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Filesystem => "Filesystem",
            Mode::Block => "Block",
        }
    }

    /// Writes a text, and brings it to the disk.
    fn write(self, story: &Story, pod: &str, text: &str) {
        story.exec(
            pod,
            &match self {
                Mode::Filesystem => format!("echo {text} >/data/text; sync /data/text"),
                Mode::Block => format!("echo {text} | dd of=/dev/data bs=4k count=1 conv=sync,notrunc,fsync 2>&1"),
            },
        );
    }

    fn read(self, story: &Story, pod: &str) -> String {
        let text = story.exec(
            pod,
            match self {
                Mode::Filesystem => "cat /data/text",
                Mode::Block => "head -n 1 /dev/data",
            },
        );
        text.trim().to_owned()
    }

    /// Lets a process of the pod have it open from now on.
    fn hold_open(self, story: &Story, pod: &str) {
        let path = match self {
            Mode::Filesystem => "/data/text",
            Mode::Block => "/dev/data",
        };
        story.exec(pod, &format!("sleep 1000 <{path} >/dev/null 2>&1 & echo $! >/tmp/holder"));
    }

    fn is_held_open(self, story: &Story, pod: &str) -> bool {
        story.exec(pod, "kill -0 $(cat /tmp/holder) && echo yes").trim() == "yes"
    }

    /// How large the pod sees it.
    fn mib(self, story: &Story, pod: &str) -> u64 {
        let shown = story.exec(
            pod,
            match self {
                Mode::Filesystem => "df -m /data | awk 'END { print $2 }'",
                Mode::Block => "echo $(($(blockdev --getsize64 /dev/data) >> 20))",
            },
        );
        shown.trim().parse().unwrap()
    }
}

/// Kubelet's calls carry the socket's path, percent-encoded, as their `:authority`. A strict server takes "%" only before
/// an "@".
#[test]
fn kubelet_registers_the_driver_by_a_socket_whose_name_has_an_at() {
    let cluster = cluster();
    let (node, sockets) = (cluster.node("a"), "cd /var/lib/kubelet/plugins_registry");
    let is_known = || {
        let drivers = cluster.kubectl(&["get", "csinode/a", "--output", "jsonpath={.spec.drivers[*].name}"]);
        drivers == "csi.cistern.dev"
    };
    eventually("the driver is registered", || is_known().then_some(()));
    let topology = cluster.kubectl(&["get", "node/a", "--show-labels"]);
    assert!(topology.contains("topology.cistern.dev/host=a"), "{topology}");

    // the same server by another name
    node.sh(&format!("{sockets}; ln csi.cistern.dev@reg.sock csi.cistern.dev-reg.sock; rm csi.cistern.dev@reg.sock"));
    eventually("the driver is not registered", || (!is_known()).then_some(()));
    let said = || node.sh("journalctl --unit kubelet | grep 'csi.cistern.dev-reg.sock.*PROTOCOL_ERROR' || true");
    eventually("kubelet cannot speak with it", || (!said().is_empty()).then_some(()));
    assert!(!is_known());

    node.sh(&format!("{sockets}; ln csi.cistern.dev-reg.sock csi.cistern.dev@reg.sock; rm csi.cistern.dev-reg.sock"));
    eventually("the driver is registered", || is_known().then_some(()));
}
