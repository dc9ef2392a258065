//! The chart becomes that of an older commit, and that of this checkout again, while pods write: what they have is the
//! machines', and the pods that brought it are replaced under them.

use std::process::Command;

use crate::support::Cluster;
use crate::support::cluster::{Story, claim, pod, restored, snapshot};
use crate::support::lab::succeeded;
use crate::uninstall::{documented_step, helm};
use crate::writer::{WRITERS, Writer, assert_all_is_there};
use crate::{InstalledAtLast, Mode, POOLS, assert_nothing_is_left, cluster};

/// The commit that is upgraded from. A release moves it forward; tests/run builds its image before the tests.
const OLDER: &str = include_str!("older");
const OLDER_IMAGE: &str = "cistern.dev/cistern:older";

/// A command in the checkout, which must succeed.
fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    succeeded(&format!("{program} {arguments:?}"), done);
}

/// Has the older commit's chart and image take the place of what is installed.
fn install_older(cluster: &Cluster) {
    let (commit, cache) = (OLDER.trim(), std::env::var("CISTERN_CACHE"));
    let cache = cache.unwrap_or_else(|_| format!("{}/.cache/cistern", std::env::var("HOME").unwrap()));
    let archive = format!("{cache}/image/older-{commit}.tar");
    run("tests/lab/image", &[OLDER_IMAGE, &archive, commit]);
    cluster.run(&["load", &archive]);
    let chart = cluster.file("older.tar", "");
    run("git", &["archive", "--output", &chart, commit, "charts/cistern"]);
    let directory = chart.trim_end_matches("/older.tar");
    run("tar", &["-x", "-C", directory, "-f", &chart]);
    let (repository, tag) = OLDER_IMAGE.split_once(':').unwrap();
    let values = format!("{POOLS}\nimage: {{ repository: {repository}, tag: {tag} }}\n");
    upgrade(cluster, &format!("{directory}/charts/cistern"), &cluster.file("older.yaml", &values));
}

/// As a person does it, also to a chart that is older.
fn upgrade(cluster: &Cluster, chart: &str, values: &str) {
    helm(cluster, &["upgrade", "cistern", chart, "--values", values, "--wait", "--timeout=150s"]);
}

/// Which pods the nodes have, and what they run.
fn node_pods(cluster: &Cluster) -> Vec<String> {
    let each = "--output=jsonpath={range .items[*]}{.metadata.uid} {.spec.containers[0].image}{\"\\n\"}{end}";
    let of_nodes = ["get", "pods", "--namespace=cistern", "--selector=app.kubernetes.io/component=node", each];
    cluster.kubectl(&of_nodes).lines().map(str::to_owned).collect()
}

/// Each node's pod has another in its place, and the pods that write see nothing of it.
fn replace_under(cluster: &Cluster, writers: &[Writer], how: &str, replace: impl FnOnce()) {
    let (pods, written) = (node_pods(cluster), writers.iter().map(Writer::written));
    let written: u64 = written.sum();
    replace();
    let there = node_pods(cluster);
    assert!(there.len() == 2 && there.iter().all(|pod| !pods.contains(pod)), "{pods:?} became {there:?}");
    writers.iter().for_each(Writer::assert_nothing_happened);
    let now: u64 = writers.iter().map(Writer::written).sum();
    eprintln!("{how}: {} blocks were written meanwhile, none was lost", now - written);
}

fn cut(story: &Story, claim: &str) {
    story.apply(&snapshot(claim, claim));
    story.until(&format!("volumesnapshot/{claim}"), "{.status.readyToUse}", "true");
}

#[test]
fn pods_write_on_while_an_older_release_takes_over_and_becomes_this_one_again() {
    let cluster = cluster();
    let _installed = InstalledAtLast(&cluster);
    let present = cluster.file("present.yaml", &helm(&cluster, &["get", "values", "cistern", "--output=yaml"]));
    let story = cluster.story("upgrade");
    // volumes that this release made, and then others that the older one did
    let mut writers = Writer::start(&story, &WRITERS[..2]);
    cut(&story, "files-a");
    replace_under(&cluster, &writers, "back to the older one", || install_older(&cluster));
    writers.extend(Writer::start(&story, &WRITERS[2..]));

    replace_under(&cluster, &writers, "the upgrade", || {
        cluster.kubectl(&documented_step().split_whitespace().skip(1).collect::<Vec<_>>());
        upgrade(&cluster, "charts/cistern", &present);
    });
    let written = writers.last().unwrap().written();
    cut(&story, "blocks-b");
    story.apply(&claim("restored", "plain", "Block", "256Mi", &restored("VolumeSnapshot", "blocks-b")));
    story.apply(&pod("restored", "restored", "Block", "b"));
    story.until_ready(&["restored"]);
    assert_all_is_there(&story, "restored", Mode::Block, written);

    for writer in writers {
        let name = writer.name().to_owned();
        writer.stop();
        story.delete(&[&format!("pod/{name}"), &format!("pvc/{name}")]);
    }
    story.delete(&["pod/restored", "pvc/restored", "volumesnapshot/files-a", "volumesnapshot/blocks-b"]);
    story.end();
    assert_nothing_is_left(&cluster);
}
