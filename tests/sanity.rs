//! csi-sanity v5.6.0 against `serve`: every spec that applies passes, and each one that is skipped is named here.
//!
//! The program is made by `tests/setup`, which `tests/run` calls.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::process::Command;

use support::{Place, Server, may_grow_ext4, run};

/// How many of csi-test v5.6.0's 103 specs apply and pass.
const PASSED: usize = 88;

/// What is skipped, by a part of the spec's text, and why.
const REASONS: [(&str, &str); 5] = [
    ("GroupController", "group snapshots are not offered"),
    ("VolumeHealth", "the health calls of CSI 1.13 are alpha and come later"),
    ("StorageHealth", "the health calls of CSI 1.13 are alpha and come later"),
    ("with accessibility requirements", "snapshot topology is alpha, and no sidecar uses it"),
    ("more volumes than the node max attach limit", "a node has no limit: loop devices are made as they are needed"),
];

/// What fails, by a part of the spec's text, where the kernel refuses to grow a mounted ext4.
const NEED_EXT4_TO_GROW: [&str; 1] = ["should work if node-expand is called after node-publish"];

/// Runs csi-sanity against a server in this place, with volumes of this access type and file system.
fn sanity(place: &Place, config: &Path, access: &str, fs: &str) {
    sanity_but(place, config, access, fs, &[]);
}

/// The same, where exactly these specs fail.
fn sanity_but(place: &Place, config: &Path, access: &str, fs: &str, failing: &[&str]) {
    let mut server = Server::start(place, config);
    let parameters = place.path("parameters.yaml");
    let mutable = place.path("mutable.yaml");
    let class = if access == "mount" { format!("csi.storage.k8s.io/fstype: {fs}\n") } else { String::new() };
    std::fs::write(&parameters, format!("pool: p\n{class}")).unwrap();
    std::fs::write(&mutable, "wipe: none\nreadAheadKiB: \"256\"\n").unwrap();
    let report = place.path("report.json");
    let done = Command::new("csi-sanity")
        .arg("--csi.endpoint")
        .arg(format!("unix://{}", server.socket.display()))
        .arg("--csi.mountdir")
        .arg(place.path("mount"))
        .arg("--csi.stagingdir")
        .arg(place.path("staging"))
        .arg("--csi.testvolumeparameters")
        .arg(&parameters)
        .arg("--csi.testvolumemutableparameters")
        .arg(&mutable)
        .args(["--csi.testvolumesize", "1073741824", "--csi.testvolumeexpandsize", "2147483648"])
        .args(["--csi.testvolumeaccesstype", access])
        .arg("--ginkgo.json-report")
        .arg(&report)
        .arg("--ginkgo.no-color")
        .output()
        .expect("csi-sanity is on the PATH: tests/setup makes it");
    let output = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.success(), failing.is_empty(), "{output}");
    let counts = read_report(&report);
    println!("{access} {fs}: {} passed, {} skipped", counts.passed, counts.skipped.len());
    for spec in &counts.failed {
        assert!(failing.iter().any(|text| spec.contains(text)), "{spec} failed:\n{output}");
    }
    assert_eq!(counts.failed.len(), failing.len(), "specs that failed");
    assert_eq!(counts.passed, PASSED - failing.len(), "specs that passed");
    for spec in &counts.skipped {
        let reason = REASONS.iter().find(|(text, _)| spec.contains(text));
        assert!(reason.is_some(), "skipped without a reason: {spec}");
    }
    assert!(server.stop().success());
    place.inventory().assert_empty();
}

struct Counts {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

/// Ginkgo's own report: how many specs passed, which failed, and which were skipped.
fn read_report(path: &Path) -> Counts {
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let specs = report[0]["SpecReports"].as_array().unwrap();
    let text = |spec: &serde_json::Value| {
        let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let words: Vec<&str> = containers.chain([&spec["LeafNodeText"]]).filter_map(|word| word.as_str()).collect();
        words.join(" ")
    };
    let with = |state: &'static str| specs.iter().filter(move |spec| spec["State"] == state);
    let is_spec = |spec: &&serde_json::Value| spec["LeafNodeType"] == "It";
    Counts {
        passed: with("passed").filter(is_spec).count(),
        failed: with("failed").filter(is_spec).map(text).collect(),
        skipped: with("skipped").filter(is_spec).map(text).collect(),
    }
}

#[test]
fn filesystem_volumes_in_a_directory_on_xfs() {
    let place = Place::with("xfs", "40G");
    let config = place.pool("");
    sanity(&place, &config, "mount", "xfs");
}

#[test]
fn ext4_volumes_in_a_directory_on_xfs() {
    let place = Place::with("xfs", "40G");
    let config = place.pool("");
    if may_grow_ext4() {
        sanity(&place, &config, "mount", "ext4");
    } else {
        println!("this process lacks CAP_SYS_RESOURCE: the specs that grow a mounted ext4 must fail, all others pass");
        sanity_but(&place, &config, "mount", "ext4", &NEED_EXT4_TO_GROW);
    }
}

#[test]
fn block_volumes_in_a_directory_on_xfs() {
    let place = Place::with("xfs", "40G");
    let config = place.pool("");
    sanity(&place, &config, "block", "");
}

/// A pool that is one file: fully reserved, so as small as the specs allow.
fn in_an_image() -> (Place, std::path::PathBuf) {
    let place = Place::bare();
    std::fs::create_dir_all(place.path("disk")).unwrap();
    let config = place.path("pools.yaml");
    let path = place.path("disk/pool");
    let entry = format!("pools: [{{name: p, overcommit: 4, dir: {{path: {}, image: {{size: 8Gi}}}}}}]", path.display());
    std::fs::write(&config, entry).unwrap();
    (place, config)
}

#[test]
fn filesystem_volumes_in_a_pool_that_is_one_file() {
    let (place, config) = in_an_image();
    sanity(&place, &config, "mount", "btrfs");
}

#[test]
fn block_volumes_in_a_pool_that_is_one_file() {
    let (place, config) = in_an_image();
    sanity(&place, &config, "block", "");
}

#[test]
fn the_program_is_the_one_that_is_pinned() {
    let go_mod = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/sanity/go.mod")).unwrap();
    assert!(go_mod.contains("github.com/kubernetes-csi/csi-test/v5 v5.6.0"));
    let path = run(&["sh", "-c", "command -v csi-sanity"]);
    let built = run(&["go", "version", "-m", path.trim()]);
    assert!(built.contains("github.com/kubernetes-csi/csi-test/v5\tv5.6.0"), "{built}");
}
