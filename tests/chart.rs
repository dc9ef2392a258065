//! The chart, as Helm renders it: what it may hold and what not, that its values are all of use and checked, the rights that it
//! grants, and that deploy/ is what it makes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/granted.rs"]
mod granted;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use granted::{Right, granted, used};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::{apps::v1 as apps, core::v1 as core, rbac::v1 as rbac, storage::v1 as storage};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const POOLS: &str = r#"
pools:
  - { name: scratch, dir: { path: /var/lib/cistern/scratch } }
  - name: boxed
    dir: { path: /srv/boxed, image: { size: 200Gi } }
    overcommit: 2
    reserve: 1Gi
    nodeSelector: { disks: "true" }
    externalHosts: [{ name: filer, addresses: ["10.0.0.9:7443"] }]
storageClass: { default: boxed, fsType: xfs, parameters: { allocation: thick } }
snapshots: { enabled: true }
certManager: { enabled: true }
imagePullSecrets: [registry]
controller: { podAnnotations: { a: b } }
node: { podAnnotations: { a: b } }
networkPolicy: { metricsFrom: [{ namespaceSelector: {} }] }
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).current_dir(root()).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; `make setup` builds it"))
}

/// What a command prints that has to succeed.
fn said(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A file of values, removed at the end.
struct Values(PathBuf);

impl Values {
    fn new(text: &str) -> Values {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cistern-values-{}-{number}.yaml", std::process::id()));
        fs::write(&path, text).unwrap();
        Values(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

const TEMPLATE: [&str; 5] = ["template", "cistern", "charts/cistern", "--namespace", "storage"];

/// The chart with these values.
fn rendered(values: &str) -> String {
    let values = Values::new(values);
    said("helm", &[&TEMPLATE[..], &["--values", values.path()]].concat())
}

/// The objects of a text of many.
fn objects(text: &str) -> Vec<Value> {
    let read: Vec<Value> = serde_yaml::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    read.into_iter().filter(|object| !object.is_null()).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter().find(is_it).unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

fn names(objects: &[Value], kind: &str) -> Vec<String> {
    let of_kind = objects.iter().filter(|object| object["kind"] == kind);
    of_kind.map(|object| object["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn containers(workload: &Value) -> &Vec<Value> {
    workload["spec"]["template"]["spec"]["containers"].as_array().unwrap()
}

fn args(container: &Value) -> Vec<&str> {
    container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect()
}

#[test]
fn helm_finds_nothing_to_say() {
    for values in ["", POOLS] {
        let values = Values::new(values);
        let report = said("helm", &["lint", "--strict", "charts/cistern", "--values", values.path()]);
        assert!(report.contains("1 chart(s) linted, 0 chart(s) failed"), "{report}");
        assert!(!report.contains("WARNING") && !report.contains("ERROR"), "{report}");
    }
}

/// Reads an object as Kubernetes' own type and writes it again: a field that it does not know is lost.
fn as_known<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object:#}"));
    serde_json::to_value(typed).unwrap()
}

fn every_field_is_known(objects: &[Value]) {
    for object in objects {
        let known = match object["kind"].as_str().unwrap() {
            "ClusterRole" => as_known::<rbac::ClusterRole>(object),
            "ClusterRoleBinding" => as_known::<rbac::ClusterRoleBinding>(object),
            "CSIDriver" => as_known::<storage::CSIDriver>(object),
            "CustomResourceDefinition" => as_known::<CustomResourceDefinition>(object),
            "DaemonSet" => as_known::<apps::DaemonSet>(object),
            "Deployment" => as_known::<apps::Deployment>(object),
            "Namespace" => as_known::<core::Namespace>(object),
            "NetworkPolicy" => as_known::<NetworkPolicy>(object),
            "PersistentVolumeClaim" => as_known::<core::PersistentVolumeClaim>(object),
            "Pod" => as_known::<core::Pod>(object),
            "PodDisruptionBudget" => as_known::<PodDisruptionBudget>(object),
            "Role" => as_known::<rbac::Role>(object),
            "RoleBinding" => as_known::<rbac::RoleBinding>(object),
            "Service" => as_known::<core::Service>(object),
            "ServiceAccount" => as_known::<core::ServiceAccount>(object),
            "StorageClass" => as_known::<storage::StorageClass>(object),
            // others' definitions, and ours, which the API server holds them against
            "Certificate" | "Issuer" | "StoragePool" | "VolumeSnapshot" | "VolumeSnapshotClass" => continue,
            kind => panic!("say here what a {kind} is"),
        };
        assert_eq!(&known, object);
    }
}

#[test]
fn kubernetes_knows_every_field() {
    every_field_is_known(&objects(&rendered(POOLS)));
    every_field_is_known(&objects(&said("kube", &["kubectl", "kustomize", "deploy"])));
}

/// What docs/quickstart.md pipes into kubectl.
#[test]
fn kubernetes_knows_every_field_of_the_quick_start() {
    let text = fs::read_to_string(root().join("docs/quickstart.md")).unwrap();
    let applied = text.split("kubectl apply -f - <<'EOF'\n").skip(1).map(|rest| rest.split("\nEOF").next().unwrap());
    let objects: Vec<Value> = applied.flat_map(objects).collect();
    assert_eq!(names(&objects, "Pod"), ["first", "second", "third"]);
    every_field_is_known(&objects);
}

#[test]
fn two_renderings_are_the_same() {
    assert_eq!(rendered(POOLS), rendered(POOLS));
}

#[test]
fn no_key_is_rendered() {
    for text in [rendered(""), rendered(POOLS), said("helm", &["show", "crds", "charts/cistern"])] {
        assert!(!text.contains("PRIVATE KEY") && !text.contains("BEGIN CERTIFICATE"), "{text}");
        assert_eq!(names(&objects(&text), "Secret"), Vec::<String>::new());
    }
}

#[test]
fn a_pool_is_a_storage_pool_that_is_kept_and_a_storage_class() {
    let objects = objects(&rendered(POOLS));
    assert_eq!(names(&objects, "StoragePool"), ["scratch", "boxed"]);
    for name in ["scratch", "boxed"] {
        let annotations = &find(&objects, "StoragePool", name)["metadata"]["annotations"];
        assert_eq!(annotations["helm.sh/resource-policy"], "keep", "{name}");
    }
    let boxed = serde_json::json!({
        "dir": { "path": "/srv/boxed", "image": { "size": "200Gi" } },
        "overcommit": 2,
        "reserve": "1Gi",
        "nodeSelector": { "disks": "true" },
        "externalHosts": [{ "name": "filer", "addresses": ["10.0.0.9:7443"] }],
    });
    assert_eq!(find(&objects, "StoragePool", "boxed")["spec"], boxed);
    let class = find(&objects, "StorageClass", "cistern-boxed");
    let parameters = serde_json::json!({
        "pool": "boxed", "csi.storage.k8s.io/fstype": "xfs", "medium": "dir", "share": "local", "allocation": "thick",
    });
    assert_eq!(class["parameters"], parameters);
    assert_eq!(
        (&class["volumeBindingMode"], &class["allowVolumeExpansion"]),
        (&"WaitForFirstConsumer".into(), &true.into())
    );
    assert_eq!(class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"], "true");
    assert!(find(&objects, "StorageClass", "cistern-scratch")["metadata"]["annotations"].is_null());
}

#[test]
fn another_drivers_name_is_everywhere() {
    let name = "disks.example.com";
    let text = rendered(&format!("driverName: {name}\n{POOLS}"));
    assert!(!text.contains("csi.cistern.dev"), "{text}");
    let objects = objects(&text);
    find(&objects, "CSIDriver", name);
    assert_eq!(find(&objects, "StorageClass", "cistern-scratch")["provisioner"], name);
    assert_eq!(find(&objects, "VolumeSnapshotClass", "cistern")["driver"], name);
    for (kind, workload) in [("Deployment", "cistern-controller"), ("DaemonSet", "cistern-node")] {
        let environment = containers(find(&objects, kind, workload))[0]["env"].as_array().unwrap();
        let driver = environment.iter().find(|variable| variable["name"] == "CISTERN_DRIVER_NAME").unwrap();
        assert_eq!(driver["value"], name, "{kind}");
    }
    let node = &containers(find(&objects, "DaemonSet", "cistern-node"))[0];
    assert!(args(node).contains(&"--endpoint=unix:///var/lib/kubelet/plugins/disks.example.com/csi.sock"));
}

#[test]
fn snapshots_follow_the_cluster() {
    let with = |enabled: &str, versions: &[&str]| {
        let set = format!("snapshots.enabled={enabled}");
        let versions: Vec<&str> = versions.iter().flat_map(|version| ["--api-versions", version]).collect();
        let objects = objects(&said("helm", &[&TEMPLATE[..], &["--set", &set], &versions].concat()));
        let controller = containers(find(&objects, "Deployment", "cistern-controller"));
        let has_sidecar = controller.iter().any(|container| container["name"] == "snapshotter");
        let has_rights = granted(&objects).iter().any(|right| right.resource.contains("snapshot"));
        let has_class = !names(&objects, "VolumeSnapshotClass").is_empty();
        assert!(has_sidecar == has_rights && has_sidecar == has_class, "all of it or nothing");
        has_sidecar
    };
    const API: &str = "snapshot.storage.k8s.io/v1";
    assert!(!with("auto", &[]) && with("auto", &[API]) && with("true", &[]) && !with("false", &[API]));
}

/// The nodes' account is no subject of any binding, and its pod has no token for the API.
#[test]
fn a_node_has_no_rights() {
    let objects = objects(&rendered(POOLS));
    for object in &objects {
        for subject in object["subjects"].as_array().into_iter().flatten() {
            assert_eq!(subject["name"], "cistern-controller");
        }
    }
    assert_eq!(find(&objects, "ServiceAccount", "cistern-node")["automountServiceAccountToken"], false);
    let pod = &find(&objects, "DaemonSet", "cistern-node")["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let sources = &pod["volumes"][0]["projected"]["sources"];
    assert_eq!(sources[1]["serviceAccountToken"]["audience"], "cistern.dev");
    assert!(sources[0]["configMap"]["optional"].is_null(), "the pod waits for the authority");
}

/// docs/rights.md: for each resource what each program calls.
fn documented() -> BTreeMap<Right, BTreeSet<String>> {
    let text = fs::read_to_string(root().join("docs/rights.md")).unwrap();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let (mut programs, mut rights) = (Vec::new(), BTreeMap::<Right, BTreeSet<String>>::new());
    for row in text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|--")).map(cells) {
        if row[0] == "resource" {
            programs = row;
            continue;
        }
        for (program, verbs) in programs.iter().zip(&row).skip(1) {
            for verb in verbs.split_whitespace() {
                rights.entry(Right::new(&row[0], verb)).or_default().insert(program.clone());
            }
        }
    }
    rights
}

#[test]
fn each_right_has_somebody_who_needs_it() {
    let documented: BTreeSet<Right> = documented().into_keys().collect();
    let granted = granted(&objects(&rendered("snapshots: { enabled: true }")));
    let unneeded: Vec<_> = granted.difference(&documented).collect();
    let lacking: Vec<_> = documented.difference(&granted).collect();
    assert!(
        unneeded.is_empty() && lacking.is_empty(),
        "not in docs/rights.md: {unneeded:#?}\nnot granted: {lacking:#?}"
    );
}

#[test]
fn no_right_is_for_everything() {
    for right in granted(&objects(&rendered(POOLS))) {
        assert!(!right.resource.contains('*') && right.verb != "*", "{right:?}");
    }
    let with_authority = granted(&objects(&rendered("certManager: { enabled: true }")));
    assert!(!with_authority.contains(&Right::new("secrets", "create")), "cert-manager makes the Secret");
}

#[test]
fn an_audit_log_shows_what_is_used() {
    let event = |account: &str, object: &str| {
        format!(
            r#"{{"verb":"patch","user":{{"username":"{account}"}},"userAgent":"csi-attacher/v4","objectRef":{object}}}"#
        )
    };
    let status = r#"{"resource":"volumeattachments","apiGroup":"storage.k8s.io","subresource":"status","name":"x"}"#;
    let log = [event("us", status), event("others", r#"{"resource":"nodes"}"#), event("us", "{}")].join("\n");
    let used = used(&log, "us");
    let programs: Vec<&BTreeSet<String>> = used.values().collect();
    assert_eq!(used.keys().collect::<Vec<_>>(), [&Right::new("volumeattachments.storage.k8s.io/status", "patch")]);
    assert_eq!(programs, [&BTreeSet::from(["csi-attacher".to_owned()])]);
}

#[test]
fn the_notes_tell_the_next_step() {
    let install = ["install", "cistern", "charts/cistern", "--namespace", "storage", "--dry-run=client"];
    let notes = |values: &str| {
        let values = Values::new(values);
        let said = said("helm", &[&install[..], &["--values", values.path()]].concat());
        said.split_once("NOTES:").unwrap().1.to_owned()
    };
    let without = notes("");
    assert!(without.contains("helm upgrade cistern charts/cistern -n storage") && without.contains("no snapshot API"));
    let with = notes(POOLS);
    assert!(
        with.contains("storageClassName: cistern-boxed")
            && !with.contains("helm upgrade")
            && !with.contains("snapshot")
    );
}

#[test]
fn containers_are_confined_and_looked_after() {
    let objects = objects(&rendered(POOLS));
    let controller = find(&objects, "Deployment", "cistern-controller");
    let sidecars: Vec<&str> =
        containers(controller).iter().map(|container| container["name"].as_str().unwrap()).collect();
    assert_eq!(sidecars, ["cistern", "provisioner", "attacher", "resizer", "snapshotter"]);
    assert_eq!(controller["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"], true);
    for container in containers(controller) {
        let context = &container["securityContext"];
        let is_confined = context["readOnlyRootFilesystem"] == true
            && context["allowPrivilegeEscalation"] == false
            && context["capabilities"]["drop"][0] == "ALL";
        assert!(is_confined && container["resources"]["requests"].is_object(), "{}", container["name"]);
        assert!(container["livenessProbe"].is_object(), "{}", container["name"]);
        if container["name"] != "cistern" {
            assert!(args(container).contains(&"--leader-election"), "{}", container["name"]);
        }
    }
    let node = &find(&objects, "DaemonSet", "cistern-node")["spec"]["template"]["spec"];
    assert!(["hostPID", "hostNetwork", "hostIPC"].iter().all(|own| node[own] == true));
    assert_eq!(node["containers"].as_array().unwrap().len(), 1);
    assert!(node["terminationGracePeriodSeconds"].as_u64().unwrap() >= 40, "20 seconds for calls, as long for stores");
}

/// The sidecars themselves read the flags that the chart gives them, and then tell their version.
#[test]
fn sidecars_know_their_flags() {
    let objects = objects(&rendered(POOLS));
    for container in &containers(find(&objects, "Deployment", "cistern-controller"))[1..] {
        let (program, image) =
            (format!("csi-{}", container["name"].as_str().unwrap()), container["image"].as_str().unwrap());
        let version = said(&program, &[args(container), vec!["--version"]].concat());
        let (name, tag) = image.split_once(':').unwrap();
        assert!(name.ends_with(&program) && version.contains(tag), "{image}, but {program} says {version}");
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    for (values, message) in [
        ("pool: []", "pool"),
        ("image: { tga: x }", "tga"),
        ("image: { pullPolicy: Sometimes }", "/image/pullPolicy"),
        ("kubeletDir: var/lib/kubelet", "/kubeletDir"),
        ("kubeletDir: /var/lib/kubelet/", "/kubeletDir"),
        ("driverName: CSI_Cistern", "/driverName"),
        ("logFormat: xml", "/logFormat"),
        ("controller: { replicas: 0 }", "/controller/replicas"),
        ("node: { maxUnavailable: half }", "/node/maxUnavailable"),
        ("node: { metricsPort: 7443 }", "/node/metricsPort"),
        ("snapshots: { enabled: maybe }", "/snapshots/enabled"),
        ("sidecars: { timeout: 60 }", "/sidecars/timeout"),
        ("storageClass: { fsType: ntfs }", "/storageClass/fsType"),
        ("storageClass: { parameters: { pool: other } }", "/storageClass/parameters/pool"),
        ("pools: [{ name: a }]", "dir"),
        ("pools: [{ dir: { path: /x } }]", "name"),
        ("pools: [{ name: A, dir: { path: /x } }]", "/pools/0/name"),
        ("pools: [{ name: a, dir: { path: x } }]", "/pools/0/dir/path"),
        ("pools: [{ name: a, dir: { path: /x/../y } }]", "/pools/0/dir/path"),
        ("pools: [{ name: a, dir: { path: /x, image: { size: much } } }]", "/pools/0/dir/image/size"),
        ("pools: [{ name: a, dir: { path: /x }, overcommit: 0.5 }]", "/pools/0/overcommit"),
        ("pools: [{ name: a, dir: { path: /x }, overcomit: 2 }]", "overcomit"),
        ("pools: [{ name: a, dir: { path: /x }, hosts: [b], nodeSelector: { c: d } }]", "/pools/0"),
        ("pools: [{ name: a, lvm: { volumeGroup: v } }]", "lvm"),
    ] {
        let file = Values::new(values);
        let output = run("helm", &[&TEMPLATE[..], &["--values", file.path()]].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{values} was accepted");
        assert!(error.contains("values don't meet the specifications") && error.contains(message), "{values}: {error}");
    }
}

/// The paths of all values: `image.tag`. What its owner fills is one value.
fn paths(value: &Value, at: &str) -> Vec<String> {
    match value.as_object() {
        Some(entries) if !entries.is_empty() && !FILLED.contains(&at) => {
            let joined = |name: &String| if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
            entries.iter().flat_map(|(name, value)| paths(value, &joined(name))).collect()
        }
        _ => vec![at.to_owned()],
    }
}

/// Values that go into an object whole, in Kubernetes' own words.
const FILLED: [&str; 5] =
    ["controller.resources", "controller.nodeSelector", "node.resources", "node.nodeSelector", "sidecars.resources"];

/// The values that templates name. In the helper of sidecars they are `$sidecars` and `$image`.
fn named_in_templates() -> BTreeSet<String> {
    let directory = fs::read_dir(root().join("charts/cistern/templates")).unwrap();
    let texts = directory.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let mut named = BTreeSet::new();
    for text in texts {
        for (mark, prefixes) in [
            (".Values.", &[""][..]),
            ("$sidecars.", &["sidecars."]),
            ("$image.", &["sidecars.provisioner.", "sidecars.attacher.", "sidecars.resizer.", "sidecars.snapshotter."]),
        ] {
            for rest in text.split(mark).skip(1) {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '.').unwrap_or(rest.len());
                named.extend(prefixes.iter().map(|prefix| format!("{prefix}{}", &rest[..end])));
            }
        }
    }
    named
}

#[test]
fn every_value_is_of_use_and_every_use_has_a_value() {
    let text = fs::read_to_string(root().join("charts/cistern/values.yaml")).unwrap();
    let values: Value = serde_yaml::from_str(&text).unwrap();
    let values: BTreeSet<String> = paths(&values, "").into_iter().collect();
    let named: BTreeSet<String> = named_in_templates().into_iter().filter(|path| path != "sidecars").collect();
    assert_eq!(values, named);
}

#[test]
fn every_value_is_described_and_in_the_schema() {
    let text = fs::read_to_string(root().join("charts/cistern/values.yaml")).unwrap();
    let schema = fs::read_to_string(root().join("charts/cistern/values.schema.json")).unwrap();
    let (schema, values): (Value, Value) =
        (serde_json::from_str(&schema).unwrap(), serde_yaml::from_str(&text).unwrap());
    for path in paths(&values, "") {
        let pointer: String = path.split('.').map(|name| format!("/properties/{name}")).collect();
        assert!(schema.pointer(&pointer).is_some(), "{path} is not in the schema");
    }
    let lines: Vec<&str> = text.lines().collect();
    let is_comment = |line: &str| line.trim_start().starts_with('#');
    // a group has no comment of its own, what is in it has; and some are described with what stands above them
    let is_group = |line: &str| line.ends_with(':') && !["resources:", "tolerations:"].contains(&line.trim());
    let goes_along = |line: &str| {
        ["tag:", "kubeApiBurst:", "renewBefore:", "requests:", "- "].iter().any(|name| line.trim().starts_with(name))
    };
    for (number, line) in lines.iter().enumerate().skip(1) {
        let needs_none = line.is_empty() || is_comment(line) || is_group(line) || goes_along(line);
        assert!(needs_none || is_comment(lines[number - 1]), "line {} has no comment: {line}", number + 1);
    }
}

#[test]
fn deploy_is_what_the_chart_makes() {
    let directory = std::env::temp_dir().join(format!("cistern-deploy-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    said("deploy/generate", &[directory.to_str().unwrap()]);
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let there = root().join("deploy").join(path.file_name().unwrap());
        let is_same = fs::read(&path).unwrap() == fs::read(&there).unwrap();
        assert!(is_same, "{}: run deploy/generate", there.display());
    }
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn kustomize_builds_deploy() {
    let objects = objects(&said("kube", &["kubectl", "kustomize", "deploy"]));
    let chart = rendered("snapshots: { enabled: true }");
    let kinds = |objects: &[Value]| {
        let kind = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
        objects.iter().map(kind).collect::<BTreeSet<String>>()
    };
    let beyond: Vec<String> = kinds(&objects).difference(&kinds(&self::objects(&chart))).cloned().collect();
    assert_eq!(beyond, [r#""CustomResourceDefinition" "storagepools.cistern.dev""#, r#""Namespace" "cistern""#]);
    assert_eq!(find(&objects, "Deployment", "cistern-controller")["metadata"]["namespace"], "cistern");
}
