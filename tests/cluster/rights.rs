//! What the chart grants to cistern's accounts is used, each right of it, or it is known why not. The API server's audit log
//! shows what was used since the cluster came up: by whatever story was told before, and by the one here.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::granted::{Right, granted, used};
use crate::support::cluster::{Story, claim, pod, restored, snapshot};
use crate::support::{Cluster, eventually};
use crate::{Mode, assert_nothing_is_left, cluster, features};

const CONTROLLER: &str = "system:serviceaccount:cistern:cistern-controller";
const NODE: &str = "system:serviceaccount:cistern:cistern-node";

/// What nobody uses here, and why it is granted all the same.
const UNUSED: [(&str, &str, &str); 1] = [(
    "configmaps",
    "update",
    "where the Secret has another authority, nodes believe it besides; tests/enrol.rs does that",
)];

/// What the installed roles grant.
fn granted_here(cluster: &Cluster) -> BTreeSet<Right> {
    let own = "--selector=app.kubernetes.io/name=cistern";
    let roles = cluster.kubectl(&["get", "roles,clusterroles", "--all-namespaces", own, "--output=json"]);
    let roles: Value = serde_json::from_str(&roles).unwrap();
    granted(roles["items"].as_array().unwrap())
}

fn used_here(cluster: &Cluster, account: &str) -> BTreeSet<Right> {
    let log = cluster.run(&["logs", "audit"]);
    // the last line may be half written
    used(log.rsplit_once('\n').map_or("", |(lines, _)| lines), account).into_keys().collect()
}

/// A class that comes and goes, and with it what the scheduler is told of it.
const CLASS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: { name: passing }
provisioner: csi.cistern.dev
volumeBindingMode: WaitForFirstConsumer
parameters: { pool: plain }
";

fn come_and_go(cluster: &Cluster) {
    let is_told_of = |hosts: usize| {
        let count = || features::known_rooms(cluster).iter().filter(|room| room.starts_with("passing ")).count();
        eventually("the scheduler is told", || (count() == hosts).then_some(()));
    };
    cluster.apply(CLASS);
    is_told_of(2);
    cluster.kubectl(&["delete", "storageclass/passing"]);
    is_told_of(0);
}

/// A pool that is on no node, and that nobody understands.
const UNCLEAR: &str = "
apiVersion: cistern.dev/v1alpha1
kind: StoragePool
metadata: { name: unclear }
spec: { dir: { path: /nowhere }, hosts: [nobody], reserve: much }
";

/// It is refused twice, of which the second time is a change of the first one's event.
fn be_refused(story: &Story) {
    let why = "{.status.conditions[?(@.type==\"Accepted\")].message}";
    let until_it_is_for = |what: &str| {
        let is_said = || story.get("storagepool/unclear", why).contains(what).then_some(());
        eventually("the pool is refused", is_said);
    };
    story.apply(UNCLEAR);
    until_it_is_for("reserve");
    let other = r#"{"spec":{"reserve":null,"lost":["none"]}}"#;
    story.kubectl(&["patch", "storagepool/unclear", "--type=merge", "--patch", other]);
    until_it_is_for("lost");
    story.delete(&["storagepool/unclear"]);
}

/// All that cistern does for people with claims.
fn ask_for_everything(story: &Story) {
    let classes = features::attributes("one", "wipe: discard") + "---" + &features::attributes("other", "wipe: none");
    story.apply(&classes);
    story.apply(&claim("data", "plain", "Filesystem", "64Mi", "volumeAttributesClassName: one"));
    story.apply(&pod("writer", "data", "Filesystem", "a"));
    story.until_ready(&["writer"]);
    Mode::Filesystem.write(story, "writer", "hello");
    story.apply(&snapshot("cut", "data"));
    story.until("volumesnapshot/cut", "{.status.readyToUse}", "true");
    for (name, kind, source) in [("restored", "VolumeSnapshot", "cut"), ("cloned", "PersistentVolumeClaim", "data")] {
        story.apply(&claim(name, "plain", "Filesystem", "64Mi", &restored(kind, source)));
        story.apply(&pod(name, name, "Filesystem", "a"));
    }
    let more = r#"{"spec":{"volumeAttributesClassName":"other","resources":{"requests":{"storage":"128Mi"}}}}"#;
    story.kubectl(&["patch", "pvc/data", "--patch", more]);
    story.until("pvc/data", "{.status.capacity.storage}", "128Mi");
    story.until("pvc/data", "{.status.currentVolumeAttributesClassName}", "other");
    story.until_ready(&["restored", "cloned"]);
    story.delete(&["pod,pvc,volumesnapshot", "--all"]);
    story.kubectl(&["delete", "volumeattributesclass/one", "volumeattributesclass/other"]);
}

fn listed(rights: &[&Right]) -> String {
    rights.iter().map(|right| format!("{} {}", right.verb, right.resource)).collect::<Vec<_>>().join(", ")
}

#[test]
fn each_right_is_used_or_it_is_known_why_not() {
    let cluster = cluster();
    let story = cluster.story("rights");
    be_refused(&story);
    come_and_go(&cluster);
    ask_for_everything(&story);
    story.end();
    assert_nothing_is_left(&cluster);

    let (granted, used) = (granted_here(&cluster), used_here(&cluster, CONTROLLER));
    // a watch begins with what is there; an API server that cannot do that, or was away, is asked for a list first
    let is_list_of_a_watch =
        |right: &&Right| right.verb == "list" && used.contains(&Right::new(&right.resource, "watch"));
    let (lists, unused): (Vec<&Right>, Vec<&Right>) = granted.difference(&used).partition(is_list_of_a_watch);
    let known: Vec<Right> = UNUSED.iter().map(|(resource, verb, _)| Right::new(resource, verb)).collect();
    println!("of {} rights these are not used, but watched: {}", granted.len(), listed(&lists));
    println!("and these are not used: {}", listed(&unused));
    assert_eq!(unused, known.iter().collect::<Vec<_>>());
    // and nobody asks for what is not granted
    assert_eq!(used.difference(&granted).collect::<Vec<_>>(), Vec::<&Right>::new());
    assert_eq!(used_here(&cluster, NODE), BTreeSet::new());
}
