//! What becomes of a node: rebooted, without power, drained, and gone for good. The pod is a StatefulSet's, with one volume of
//! each mode, so it belongs where they are.

use std::time::Duration;

use crate::support::cluster::{Story, claim, pod};
use crate::support::{Cluster, Host, eventually, within};
use crate::{Mode, assert_nothing_is_left, cluster, prepare, quickstart};

/// A StatefulSet of one pod, `db-0`, with the claims `data-db-0` and `raw-db-0`.
const DB: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: db }
spec:
  serviceName: db
  selector: { matchLabels: { app: db } }
  template:
    metadata: { labels: { app: db } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: cistern.dev/base:1
        volumeMounts: [{ name: data, mountPath: /data }]
        volumeDevices: [{ name: raw, devicePath: /dev/data }]
  volumeClaimTemplates:
  - metadata: { name: data }
    spec:
      storageClassName: cistern-plain
      accessModes: [ReadWriteOnce]
      resources: { requests: { storage: 64Mi } }
  - metadata: { name: raw }
    spec:
      storageClassName: cistern-boxed
      volumeMode: Block
      accessModes: [ReadWriteOnce]
      resources: { requests: { storage: 64Mi } }
";

/// Starts the pod and has it write a text to both volumes; answers its node.
fn start(story: &Story) -> Host {
    story.apply(DB);
    story.until("statefulset/db", "{.status.readyReplicas}", "1");
    write(story, "synced in the first life");
    story.node_of("db-0")
}

fn write(story: &Story, text: &str) {
    Mode::Filesystem.write(story, "db-0", text);
    Mode::Block.write(story, "db-0", text);
}

fn assert_holds(story: &Story, text: &str) {
    assert_eq!(Mode::Filesystem.read(story, "db-0"), text);
    assert_eq!(Mode::Block.read(story, "db-0"), text);
}

fn end(cluster: &Cluster, story: Story) {
    story.delete(&["statefulset/db"]);
    story.delete(&["pod,pvc", "--all"]);
    story.end();
    assert_nothing_is_left(cluster);
}

fn container(story: &Story) -> String {
    story.get("pod/db-0", "{.status.containerStatuses[0].containerID}")
}

/// Kubelet starts the same pod again, and it has all that it had synced.
fn outlive(name: &str, away_and_back: impl Fn(&Host)) {
    let cluster = cluster();
    let story = cluster.story(name);
    let node = start(&story);
    let first = container(&story);
    away_and_back(&node);
    within(Duration::from_secs(120), "another container runs", || (container(&story) != first).then_some(()));
    story.until_ready(&["db-0"]);
    assert_holds(&story, "synced in the first life");
    // and writes again
    write(&story, "in the second life");
    assert_holds(&story, "in the second life");
    end(&cluster, story);
}

#[test]
fn a_pod_has_its_data_after_its_node_was_rebooted() {
    outlive("rebooted", Host::reboot);
}

#[test]
fn a_pod_has_its_synced_data_after_a_power_cut() {
    outlive("power", |node| {
        node.kill();
        node.up();
    });
}

#[test]
fn a_drained_node_has_its_pod_back_when_it_is_uncordoned() {
    let cluster = cluster();
    let story = cluster.story("drained");
    let node = start(&story);
    cluster.kubectl(&["drain", node.name(), "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"]);
    // nobody else can have the volumes
    story.until("pod/db-0", "{.status.conditions[?(@.type==\"PodScheduled\")].reason}", "Unschedulable");
    let is_detached = || cluster.kubectl(&["get", "volumeattachments", "--output=name"]).is_empty();
    eventually("the volumes are detached", || is_detached().then_some(()));
    cluster.kubectl(&["uncordon", node.name()]);
    story.until_ready(&["db-0"]);
    assert_eq!(story.node_of("db-0").name(), node.name());
    assert_holds(&story, "synced in the first life");
    end(&cluster, story);
}

#[test]
fn a_node_that_is_gone_for_good_is_waited_for_until_its_stores_are_declared_lost() {
    let cluster = cluster();
    let story = cluster.story("gone");
    let node = start(&story);
    let (name, other) = (node.name(), if node.name() == "a" { "b" } else { "a" });
    node.kill();

    // nobody else waits for it
    serve(&story, "meanwhile", other);
    // a person sees that it will not come back
    story.until(&format!("node/{name}"), "{.status.conditions[?(@.type==\"Ready\")].status}", "Unknown");
    let [the_node, what_a_pool_had] = quickstart::give_up();
    let gives_up = |block: &str| {
        let block = format!("NODE={name}\n{block}");
        quickstart::type_in(&cluster, cluster.directory(), "the quick start", &block);
    };
    gives_up(&the_node);
    story.until("pod/db-0", "{.status.conditions[?(@.type==\"PodScheduled\")].reason}", "Unschedulable");
    story.delete(&["statefulset/db"]);
    let volumes = ["data-db-0", "raw-db-0"].map(|claim| format!("pv/{}", story.volume_of(claim)));
    story.delete(&["pvc/data-db-0", "pvc/raw-db-0"]);

    // what the machine had is not given up in silence, and it is said what is waited for
    let why =
        || cluster.kubectl(&["get", "volumeattachments", "--output=jsonpath={.items[*].status.detachError.message}"]);
    eventually("it is said what is waited for", || {
        (why().matches("until it is declared lost").count() == 2).then_some(())
    });
    for volume in &volumes {
        assert_eq!(story.get(volume, "{.status.phase}"), "Released");
    }

    // until its owner does
    for pool in ["plain", "boxed"] {
        gives_up(&what_a_pool_had.replace("scratch", pool));
    }
    story.kubectl(&["wait", "--for=delete", &volumes[0], &volumes[1], "--timeout=120s"]);
    assert_eq!(cluster.kubectl(&["get", "volumeattachments", "--output=name"]).lines().count(), 1, "meanwhile's alone");

    // another machine of its name takes its place, with stores of its own
    node.replace("4G,4G");
    prepare(&node);
    cluster.run(&["up", name]);
    serve(&story, "afterwards", name);
    for pool in ["storagepool/plain", "storagepool/boxed"] {
        story.until(pool, "{.status.conditions[?(@.type==\"Ready\")].status}", "True");
        story.kubectl(&["patch", pool, "--type=merge", "--patch", r#"{"spec":{"lost":null}}"#]);
    }
    story.delete(&["pod,pvc", "--all"]);
    story.end();
    assert_nothing_is_left(&cluster);
}

/// A volume is made on a node, and used there.
fn serve(story: &Story, name: &str, node: &str) {
    story.apply(&claim(name, "plain", "Filesystem", "64Mi", ""));
    story.apply(&pod(name, name, "Filesystem", node));
    story.until_ready(&[name]);
    Mode::Filesystem.write(story, name, "hello");
    assert_eq!(Mode::Filesystem.read(story, name), "hello");
}
