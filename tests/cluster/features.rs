//! What a claim and its pod may ask for beyond the life of a volume: to be one pod's alone, a group, a volume that goes with
//! its pod, room, other attributes; and what is said where it cannot be had.

use crate::support::cluster::{Story, claim, pod, restored};
use crate::support::{Cluster, Host, eventually};
use crate::{Mode, PLACES, assert_nothing_is_left, cluster, inventories};

/// Until the scheduler says why a pod has no node.
fn until_it_is_said_of(story: &Story, pod: &str, why: &str) {
    let condition = "{.status.conditions[?(@.type==\"PodScheduled\")].message}";
    eventually(why, || story.get(&format!("pod/{pod}"), condition).contains(why).then_some(()));
}

/// Until an event of a claim says this.
fn until_an_event_says(story: &Story, claim: &str, what: &str) {
    let of_claim = format!("--field-selector=involvedObject.kind=PersistentVolumeClaim,involvedObject.name={claim}");
    let said = || story.kubectl(&["get", "events", &of_claim, "--output=jsonpath={.items[*].message}"]);
    eventually(what, || said().contains(what).then_some(()));
}

#[test]
fn a_claim_is_one_pods_alone_and_what_is_made_in_it_is_its_groups() {
    let cluster = cluster();
    let story = cluster.story("one-pod");
    story.apply(&claim("data", "plain", "Filesystem", "64Mi", "").replace("ReadWriteOnce", "ReadWriteOncePod"));
    story.apply(&pod("first", "data", "Filesystem", "a"));
    story.until_ready(&["first"]);
    story.exec("first", "umask 077; echo from the first pod >/data/before; sync /data/before");

    // a user in a group, and root beside it
    let with_group = "securityContext: { fsGroup: 2000 }\n  containers:\n  - name: user\n    image: cistern.dev/base:1\n    \
                      securityContext: { runAsUser: 1000, runAsGroup: 1000 }\n    \
                      volumeMounts: [{ name: data, mountPath: /data }]";
    story.apply(&pod("second", "data", "Filesystem", "").replace("containers:", with_group));
    until_it_is_said_of(&story, "second", "ReadWriteOncePod");
    // it comes as soon as the first has gone
    story.delete(&["pod/first"]);
    story.until_ready(&["second"]);

    let owner = |file: &str| story.exec("second", &format!("stat -c %u:%g /data/{file}")).trim().to_owned();
    let user = |script: &str| story.kubectl(&["exec", "second", "--container=user", "--", "sh", "-euc", script]);
    user("echo hello >/data/users");
    story.kubectl(&["exec", "second", "--container=main", "--", "sh", "-euc", "umask 027; echo hello >/data/roots"]);
    assert_eq!((owner("users"), owner("roots")), ("1000:2000".to_owned(), "0:2000".to_owned()));
    assert_eq!(user("cat /data/roots"), "hello\n");
    // what was there before is as it was: only the root directory is handed over
    assert_eq!(owner("before"), "0:0");

    story.delete(&["pod/second", "pvc/data"]);
    story.end();
    assert_nothing_is_left(&cluster);
}

/// A pod with a volume of the pool `plain` that comes and goes with it. `more` is what else its spec says.
fn pod_with_a_volume_of_its_own(name: &str, size: &str, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{ name: {name} }}
spec:
  terminationGracePeriodSeconds: 1
  {more}
  containers:
  - name: main
    image: cistern.dev/base:1
    volumeMounts: [{{ name: data, mountPath: /data }}]
  volumes:
  - name: data
    ephemeral:
      volumeClaimTemplate:
        spec:
          storageClassName: cistern-plain
          accessModes: [ReadWriteOnce]
          resources: {{ requests: {{ storage: {size} }} }}
"
    )
}

/// The classes and hosts that the scheduler knows the room of.
pub fn known_rooms(cluster: &Cluster) -> Vec<String> {
    let row =
        r#"{range .items[*]}{.storageClassName} {.nodeTopology.matchLabels.topology\.cistern\.dev/host}{"\n"}{end}"#;
    let all = ["get", "csistoragecapacities", "--namespace=cistern", &format!("--output=jsonpath={row}")];
    let mut rooms: Vec<String> = cluster.kubectl(&all).lines().map(str::to_owned).collect();
    rooms.sort();
    rooms
}

/// Each node has room for one of these volumes.
#[test]
fn pods_are_led_where_there_is_room_and_their_own_volumes_go_with_them() {
    let cluster = cluster();
    let story = cluster.story("room");
    let all = ["cistern-boxed a", "cistern-boxed b", "cistern-plain a", "cistern-plain b"];
    eventually("the scheduler knows all rooms", || (known_rooms(&cluster) == all).then_some(()));

    story.apply(&pod_with_a_volume_of_its_own("first", "2Gi", "nodeSelector: { kubernetes.io/hostname: a }"));
    story.until_ready(&["first"]);
    // it would be on a as well, if it could
    let rather_on_a = "affinity: { nodeAffinity: { preferredDuringSchedulingIgnoredDuringExecution: [{ weight: 100,
      preference: { matchExpressions: [{ key: kubernetes.io/hostname, operator: In, values: [a] }] } }] } }";
    story.apply(&pod_with_a_volume_of_its_own("second", "2Gi", rather_on_a));
    story.until_ready(&["second"]);
    assert_eq!(story.node_of("second").name(), "b");
    Mode::Filesystem.write(&story, "second", "hello");

    let no_room = "2 node(s) did not have enough free storage";
    story.apply(&pod_with_a_volume_of_its_own("third", "2Gi", ""));
    until_it_is_said_of(&story, "third", no_room);
    // it comes as soon as there is room
    story.delete(&["pod/first"]);
    story.until_ready(&["third"]);
    assert_eq!(story.node_of("third").name(), "a");

    story.delete(&["pod/second", "pod/third"]);
    story.kubectl(&["wait", "--for=delete", "pvc", "--all", "--timeout=120s"]);
    story.end();
    assert_nothing_is_left(&cluster);
}

/// A VolumeAttributesClass.
pub fn attributes(name: &str, parameters: &str) -> String {
    format!(
        "
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata: {{ name: {name} }}
driverName: csi.cistern.dev
parameters: {{ {parameters} }}
"
    )
}

/// How far the kernel of a node reads ahead in its only volume, in KiB.
fn read_ahead(node: &Host) -> String {
    let loops: Vec<String> = inventories(node).into_iter().flat_map(|seen| seen.loops).collect();
    let [device] = &loops[..] else { panic!("one volume is in use, and not {loops:?}") };
    node.sh(&format!("cat /sys/block/{}/queue/read_ahead_kb", device.trim_start_matches("/dev/"))).trim().to_owned()
}

/// Whether a file of a node holds a text.
fn holds(node: &Host, file: &str, text: &str) -> bool {
    node.sh(&format!("grep --quiet --fixed-strings --text '{text}' {file} && echo yes || echo no")).trim() == "yes"
}

#[test]
fn a_volumes_attributes_are_changed_while_a_pod_has_it() {
    const CLASSES: [(&str, &str); 3] = [
        ("far", "readAheadKiB: \"4096\""),
        ("near", "readAheadKiB: \"64\", wipe: zero"),
        ("wrong", "readAheadKiB: \"512\", stripes: \"4\""),
    ];
    let cluster = cluster();
    let story = cluster.story("attributes");
    CLASSES.iter().for_each(|(name, parameters)| cluster.apply(&attributes(name, parameters)));
    let changes_to = |class: &str| {
        let spec = format!(r#"{{"spec":{{"volumeAttributesClassName":"{class}"}}}}"#);
        story.kubectl(&["patch", "pvc/data", "--patch", &spec]);
    };
    story.apply(&claim("data", "plain", "Filesystem", "64Mi", "volumeAttributesClassName: far"));
    story.apply(&pod("reader", "data", "Filesystem", "a"));
    story.until_ready(&["reader"]);
    let node = story.node_of("reader");
    assert_eq!(read_ahead(&node), "4096");

    changes_to("near");
    story.until("pvc/data", "{.status.currentVolumeAttributesClassName}", "near");
    assert_eq!(read_ahead(&node), "64");

    // of a class with a key that nobody knows nothing is applied, and it is said which
    changes_to("wrong");
    story.until("pvc/data", "{.status.modifyVolumeStatus.status}", "Infeasible");
    until_an_event_says(&story, "data", "mutable_parameters[stripes]: is unknown");
    assert_eq!(story.get("pvc/data", "{.status.currentVolumeAttributesClassName}"), "near");
    assert_eq!(read_ahead(&node), "64");
    changes_to("near");
    let is_settled = || story.get("pvc/data", "{.status.modifyVolumeStatus}").is_empty();
    eventually("the claim is what it was", || is_settled().then_some(()));

    // the next pod has it so too
    story.delete(&["pod/reader"]);
    story.apply(&pod("reader", "data", "Filesystem", ""));
    story.until_ready(&["reader"]);
    assert_eq!(read_ahead(&node), "64");

    // and what the volume held is wiped when it goes, as a second name of its file shows
    let (text, place) = ("nobody reads this afterwards", PLACES[0].0);
    let kept = format!("{place}/disk/kept");
    Mode::Filesystem.write(&story, "reader", text);
    node.sh(&format!("ln {place}/disk/pool/images/* {kept}"));
    story.delete(&["pod/reader"]);
    assert!(holds(&node, &kept, text));
    story.delete(&["pvc/data"]);
    cluster.kubectl(&[
        "delete",
        "volumeattributesclass/far",
        "volumeattributesclass/near",
        "volumeattributesclass/wrong",
    ]);
    story.end();
    assert_nothing_is_left(&cluster);
    assert!(!holds(&node, &kept, text));
    node.sh(&format!("rm {kept}"));
}

/// docs/limitations.md says what happens then.
#[test]
fn a_clone_that_is_wanted_on_another_node_is_refused_and_waits_for_a_pod_that_belongs_with_its_source() {
    let cluster = cluster();
    let story = cluster.story("elsewhere");
    story.apply(&claim("data", "boxed", "Block", "64Mi", ""));
    story.apply(&pod("writer", "data", "Block", "b"));
    story.until_ready(&["writer"]);
    Mode::Block.write(&story, "writer", "hello");
    story.apply(&claim("clone", "boxed", "Block", "64Mi", &restored("PersistentVolumeClaim", "data")));
    story.apply(&pod("reader", "clone", "Block", "a"));
    until_an_event_says(&story, "clone", "its source is on host b, which is none of those asked for");
    // the scheduler is asked again, and again
    let with_scheduler = || story.get("pod/reader", "{.status.conditions[?(@.type==\"PodScheduled\")].message}");
    eventually("the pod has no node", || with_scheduler().contains("provisioning failed").then_some(()));
    assert_eq!(story.get("pvc/clone", "{.status.phase}"), "Pending");

    // but a pod that is to be where another is
    story.delete(&["pod/reader"]);
    story.kubectl(&["label", "pod/writer", "app=writer"]);
    let beside = "affinity: { podAffinity: { requiredDuringSchedulingIgnoredDuringExecution: [{
      topologyKey: kubernetes.io/hostname, labelSelector: { matchLabels: { app: writer } } }] } }\n  containers:";
    story.apply(&pod("reader", "clone", "Block", "").replace("containers:", beside));
    story.until_ready(&["reader"]);
    assert_eq!(Mode::Block.read(&story, "reader"), "hello");
    story.delete(&["pod/writer", "pod/reader", "pvc/data", "pvc/clone"]);
    story.end();
    assert_nothing_is_left(&cluster);
}
