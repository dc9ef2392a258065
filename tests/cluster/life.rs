//! A volume's whole life, as a person leads it with kubectl, for each pool and mode.

use crate::support::cluster::{Story, claim, pod, restored, snapshot};
use crate::support::eventually;
use crate::{Mode, assert_nothing_is_left, cluster};

/// A volume's whole life in a pool: made where its pod is, written, cut, restored, cloned, grown under a pod, and gone.
fn live_through_a_life(story: &Story, pool: &str, mode: Mode) {
    // the scheduler chooses a node for the pod, and the volume is made there
    story.apply(&claim("data", pool, mode.name(), "64Mi", ""));
    story.apply(&pod("writer", "data", mode.name(), "b"));
    story.until_ready(&["writer"]);
    let volume = story.volume_of("data");
    let reached = "{.spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].values[0]}";
    assert_eq!(story.get(&format!("pv/{volume}"), reached), "b");
    mode.write(story, "writer", "before the snapshot");

    // what is written after the cut is not in it
    story.apply(&snapshot("yesterday", "data"));
    story.until("volumesnapshot/yesterday", "{.status.readyToUse}", "true");
    mode.write(story, "writer", "after the snapshot!");
    story.apply(&claim("restored", pool, mode.name(), "64Mi", &restored("VolumeSnapshot", "yesterday")));
    story.apply(&claim("cloned", pool, mode.name(), "64Mi", &restored("PersistentVolumeClaim", "data")));
    // what is made of a local volume lies where that does, which the scheduler does not know
    story.apply(&pod("reader", "restored", mode.name(), "b"));
    story.apply(&pod("twin", "cloned", mode.name(), "b"));
    story.until_ready(&["reader", "twin"]);
    assert_eq!(mode.read(story, "reader"), "before the snapshot");
    assert_eq!(mode.read(story, "twin"), "after the snapshot!");
    mode.write(story, "twin", "a life of its own!!");
    assert_eq!(mode.read(story, "writer"), "after the snapshot!");
    // once it is made, whoever wants it is led there
    story.delete(&["pod/reader"]);
    story.apply(&pod("follower", "restored", mode.name(), ""));
    story.until_ready(&["follower"]);
    assert_eq!(story.node_of("follower").name(), "b");
    assert_eq!(mode.read(story, "follower"), "before the snapshot");

    // it grows under the pod, which has it open and goes on
    mode.hold_open(story, "writer");
    story.kubectl(&["patch", "pvc/data", "--patch", r#"{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}"#]);
    story.until("pvc/data", "{.status.capacity.storage}", "128Mi");
    eventually("the pod sees more", || (mode.mib(story, "writer") > 100).then_some(()));
    assert_eq!(mode.read(story, "writer"), "after the snapshot!");
    assert!(mode.is_held_open(story, "writer"));

    story.delete(&["pod/writer", "pod/follower", "pod/twin"]);
    story.delete(&["pvc/data", "pvc/restored", "pvc/cloned", "volumesnapshot/yesterday"]);
}

fn tell(name: &str, pool: &str, mode: Mode) {
    let cluster = cluster();
    let story = cluster.story(name);
    live_through_a_life(&story, pool, mode);
    story.end();
    assert_nothing_is_left(&cluster);
}

#[test]
fn the_life_of_a_file_system_in_a_directory() {
    tell("files-in-a-directory", "plain", Mode::Filesystem);
}

#[test]
fn the_life_of_a_block_device_in_a_directory() {
    tell("blocks-in-a-directory", "plain", Mode::Block);
}

#[test]
fn the_life_of_a_file_system_in_a_pool_that_is_one_file() {
    tell("files-in-one-file", "boxed", Mode::Filesystem);
}

#[test]
fn the_life_of_a_block_device_in_a_pool_that_is_one_file() {
    tell("blocks-in-one-file", "boxed", Mode::Block);
}
