//! The control plane is lost, and with it all that Kubernetes knew. The disks are there: a new cluster takes over what is
//! on them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::cluster::{Story, claim, pod, snapshot};
use crate::support::{Cluster, eventually};
use crate::writer::{WRITERS, Writer, assert_all_is_there};
use crate::{InstalledAtLast, POOLS, assert_nothing_is_left, cluster};

/// What people remember of the old cluster: the volume of each claim, and how many blocks its pod had written.
type Memory = BTreeMap<&'static str, (String, u64)>;

/// The control plane goes while pods write, with etcd and whatever kubelet and containerd kept. New ones are on the same
/// machines.
fn lose_the_cluster(cluster: &Cluster) -> Memory {
    let story = cluster.story("lost");
    let writers = Writer::start(&story, &WRITERS);
    story.apply(&snapshot("cut", "files-a"));
    story.until("volumesnapshot/cut", "{.status.readyToUse}", "true");
    let remember = |writer: &Writer, name| (story.volume_of(name), writer.written());
    let memory = writers.iter().zip(WRITERS).map(|(writer, (name, ..))| (name, remember(writer, name))).collect();
    cluster.run(&["down"]);
    cluster.run(&["up", "a", "b"]);
    assert_eq!(cluster.kubectl(&["get", "persistentvolumes,storageclasses,volumesnapshotcontents"]), "");
    memory
}

/// The page that says how to take disks over.
const PAGE: &str = include_str!("../../docs/lost-cluster.md");

/// The page's command that exports volumes, as words after `kubectl`; another of people's commands may stand in its place.
fn ask(cluster: &Cluster, words: &[&str]) -> String {
    let line = PAGE.lines().find(|line| line.starts_with("kubectl") && line.contains("/cistern export-pvs >")).unwrap();
    let (before, _) = line.split_once("export-pvs").unwrap();
    cluster.kubectl(&before.split_whitespace().skip(1).chain(words.iter().copied()).collect::<Vec<_>>())
}

/// Takes over the volumes that the stores hold, and answers the id of the one snapshot.
fn adopt(cluster: &Cluster, memory: &Memory) -> String {
    let exported = eventually("all hosts are asked", || {
        let list = ask(cluster, &["export-pvs"]);
        let count = serde_json::from_str::<Value>(&list).unwrap()["items"].as_array().unwrap().len();
        (count == memory.len()).then_some(list)
    });
    cluster.kubectl(&["apply", "-f", &cluster.file("volumes.json", &exported)]);
    let snapshots: Value = serde_json::from_str(&ask(cluster, &["snapshot", "ls", "--output=json"])).unwrap();
    assert_eq!(snapshots.as_array().unwrap().len(), 1, "{snapshots}");
    snapshots[0]["id"].as_str().unwrap().to_owned()
}

/// The snapshot of the old cluster, as an object of this one.
fn adopted_snapshot(id: &str) -> String {
    format!(
        "
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {{ name: cut }}
spec:
  driver: csi.cistern.dev
  deletionPolicy: Delete
  source: {{ snapshotHandle: {id} }}
  volumeSnapshotRef: {{ namespace: found, name: cut }}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {{ name: cut }}
spec:
  volumeSnapshotClassName: cistern
  source: {{ volumeSnapshotContentName: cut }}
"
    )
}

/// Pods of the new cluster find what was brought to the disks in the old one, and go on.
fn go_on(story: &Story, memory: &Memory) {
    for (name, pool, mode, _) in WRITERS {
        // where it runs is the volume's word
        story.apply(&claim(name, pool, mode.name(), "256Mi", &format!("volumeName: {}", memory[name].0)));
        story.apply(&pod(name, name, mode.name(), ""));
    }
    story.until_ready(&WRITERS.map(|(name, ..)| name));
    for (name, _, mode, node) in WRITERS {
        assert_eq!(story.node_of(name).name(), node);
        assert_all_is_there(story, name, mode, memory[name].1);
    }
    let writers: Vec<Writer> = WRITERS.iter().map(|(name, _, mode, _)| Writer::begin(story, name, *mode)).collect();
    story.apply(&snapshot("new", "blocks-a"));
    story.until("volumesnapshot/new", "{.status.readyToUse}", "true");
    for writer in writers {
        writer.stop();
    }
}

#[test]
fn a_new_cluster_takes_over_the_disks_of_a_lost_one() {
    let cluster = cluster();
    let _installed = InstalledAtLast(&cluster);
    let memory = lose_the_cluster(&cluster);
    cluster.install(POOLS);
    let cut = adopt(&cluster, &memory);

    let story = cluster.story("found");
    go_on(&story, &memory);
    story.apply(&adopted_snapshot(&cut));
    story.until("volumesnapshot/cut", "{.status.readyToUse}", "true");

    // what is exported stays when its claim goes, until its owner says otherwise
    for (name, (volume, _)) in &memory {
        let policy = r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#;
        cluster.kubectl(&["patch", &format!("pv/{volume}"), "--patch", policy]);
        story.delete(&[&format!("pod/{name}"), &format!("pvc/{name}")]);
    }
    story.delete(&["volumesnapshot/cut", "volumesnapshot/new"]);
    story.end();
    assert_nothing_is_left(&cluster);
    let gone = || cluster.kubectl(&["get", "persistentvolumes,volumesnapshotcontents", "--output=name"]);
    eventually("their objects are gone", || gone().is_empty().then_some(()));
}
