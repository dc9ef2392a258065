//! csi-sanity v5.6.0: how it is called, what passes, what is skipped and why.

use std::path::Path;

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

/// The sockets that csi-sanity calls.
pub struct Sockets<'a> {
    /// Of the tested machine.
    pub node: &'a Path,
    /// Of whoever answers the sidecars.
    pub controller: &'a Path,
}

/// The program's arguments, for volumes of this access type; it keeps its things in this directory.
pub fn arguments(sockets: &Sockets, directory: &Path, access: &str) -> Vec<String> {
    let path = |name: &str| directory.join(name).display().to_string();
    let endpoint = |socket: &Path| format!("unix://{}", socket.display());
    let flags = [
        ("--csi.endpoint", endpoint(sockets.node)),
        ("--csi.controllerendpoint", endpoint(sockets.controller)),
        ("--csi.mountdir", path("mount")),
        ("--csi.stagingdir", path("staging")),
        ("--csi.testvolumeparameters", path("parameters.yaml")),
        ("--csi.testvolumemutableparameters", path("mutable.yaml")),
        ("--csi.testvolumesize", "1073741824".to_owned()),
        ("--csi.testvolumeexpandsize", "2147483648".to_owned()),
        ("--csi.testvolumeaccesstype", access.to_owned()),
        ("--ginkgo.json-report", path("report.json")),
    ];
    let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
    flags.chain(["--ginkgo.no-color".to_owned()]).collect()
}

/// The files that it reads from its directory: StorageClass parameters for this file system, and mutable ones.
pub fn files(access: &str, fs: &str) -> [(&'static str, String); 2] {
    let class = if access == "mount" { format!("csi.storage.k8s.io/fstype: {fs}\n") } else { String::new() };
    let mutable = "wipe: none\nreadAheadKiB: \"256\"\n".to_owned();
    [("parameters.yaml", format!("pool: p\n{class}")), ("mutable.yaml", mutable)]
}

/// Fails unless every spec that applies has passed but exactly these, by a part of their texts, and what was skipped was
/// skipped for a reason. `report` is Ginkgo's own; `output` is shown on failure.
pub fn check(report: &[u8], output: &str, failing: &[&str]) {
    let counts = read_report(report);
    println!("{} passed, {} skipped", counts.passed, counts.skipped.len());
    for spec in &counts.failed {
        assert!(failing.iter().any(|text| spec.contains(text)), "{spec} failed:\n{output}");
    }
    assert_eq!(counts.failed.len(), failing.len(), "specs that failed");
    assert_eq!(counts.passed, PASSED - failing.len(), "specs that passed");
    for spec in &counts.skipped {
        let reason = REASONS.iter().find(|(text, _)| spec.contains(text));
        assert!(reason.is_some(), "skipped without a reason: {spec}");
    }
}

struct Counts {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

/// Ginkgo's own report: how many specs passed, which failed, and which were skipped.
fn read_report(report: &[u8]) -> Counts {
    let report: serde_json::Value = serde_json::from_slice(report).unwrap();
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
