//! A Kubernetes of a test program's own (tests/lab/cluster): nodes that are hosts of a lab, and kubectl.
//!
//! Each story has a namespace of its own in it, which goes with the story. Waiting is for a condition, by kubectl.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::lab::{Host, Lab, succeeded, tail};

/// How long kubectl waits for a condition.
const PATIENCE: &str = "120s";

/// A cluster, which ends with this value or with the program.
pub struct Cluster {
    lab: Lab,
    nodes: Vec<String>,
}

/// A namespace of the cluster that is a story's own.
pub struct Story<'a> {
    cluster: &'a Cluster,
    namespace: String,
}

impl Cluster {
    /// Boots these hosts with disks of these sizes, and makes nodes of them.
    pub fn up(hosts: &[(&str, &str)]) -> Cluster {
        let lab = Lab::up(hosts);
        let nodes: Vec<String> = hosts.iter().map(|(name, _)| (*name).to_owned()).collect();
        let cluster = Cluster { lab, nodes };
        cluster.run(&[&["up"], &*cluster.nodes.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        cluster
    }

    /// Its nodes, as hosts.
    pub fn nodes(&self) -> impl Iterator<Item = Host> {
        self.nodes.iter().map(|name| self.lab.host(name))
    }

    /// A node, as a host.
    pub fn node(&self, name: &str) -> Host {
        self.lab.host(name)
    }

    /// A command of tests/lab/cluster that must succeed; answers what it printed.
    pub fn run(&self, arguments: &[&str]) -> String {
        succeeded(&format!("cluster {arguments:?}"), self.command(arguments).output().unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.script("cluster");
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// A program of this machine that finds this cluster's kubectl and helm in its PATH.
    pub fn with_tools(&self, program: &str) -> Command {
        let (script, bin) = (self.lab.script("cluster"), self.lab.directory().join("bin"));
        fs::create_dir_all(&bin).unwrap();
        for tool in ["kubectl", "helm"] {
            let text = format!("#!/bin/sh\nexec {} {tool} \"$@\"\n", script.get_program().to_str().unwrap());
            fs::write(bin.join(tool), text).unwrap();
            fs::set_permissions(bin.join(tool), Permissions::from_mode(0o755)).unwrap();
        }
        let mut command = Command::new(program);
        command.envs(script.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
        command
    }

    /// Where it keeps what goes with it, on this machine.
    pub fn directory(&self) -> &Path {
        self.lab.directory()
    }

    /// kubectl, which must succeed; answers what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded(&format!("kubectl {arguments:?}"), self.try_kubectl(arguments))
    }

    /// kubectl; answers how it ended.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.command(&[&["kubectl"], arguments].concat()).output().unwrap()
    }

    /// kubectl with a text as its stdin, `-f -`.
    fn feed(&self, arguments: &[&str], text: &str) -> String {
        let mut kubectl = self.command(&[&["kubectl"], arguments].concat());
        let mut kubectl = kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        kubectl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        succeeded(&format!("kubectl {arguments:?} of\n{text}"), kubectl.wait_with_output().unwrap())
    }

    /// Applies objects that have no namespace, or name theirs.
    pub fn apply(&self, yaml: &str) {
        self.feed(&["apply", "-f", "-"], yaml);
    }

    /// Installs the chart with these values and the image of this checkout, as a person does, and waits until it serves.
    pub fn install(&self, values: &str) {
        self.run(&["install", &self.file("values.yaml", values)]);
    }

    /// The path of a file with this text, which goes with the cluster.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.lab.directory().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A namespace for a story of this name.
    pub fn story(&self, name: &str) -> Story<'_> {
        self.kubectl(&["create", "namespace", name]);
        Story { cluster: self, namespace: name.to_owned() }
    }
}

impl Story<'_> {
    /// kubectl in the story's namespace, which must succeed; answers what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(&[&["--namespace", &self.namespace], arguments].concat())
    }

    /// The same until it succeeds, within this time: the API server may be away meanwhile.
    pub fn insist(&self, arguments: &[&str], limit: Duration) -> String {
        let (end, arguments) = (Instant::now() + limit, [&["--namespace", &*self.namespace], arguments].concat());
        loop {
            let done = self.cluster.try_kubectl(&arguments);
            if done.status.success() || Instant::now() > end {
                return succeeded(&format!("kubectl {arguments:?}"), done);
            }
        }
    }

    /// Applies objects in the story's namespace.
    pub fn apply(&self, yaml: &str) {
        self.cluster.feed(&["--namespace", &self.namespace, "apply", "-f", "-"], yaml);
    }

    /// Waits until a field of an object has this value: `("pvc/data", "{.status.phase}", "Bound")`.
    pub fn until(&self, object: &str, field: &str, value: &str) {
        let condition = format!("--for=jsonpath={field}={value}");
        self.kubectl(&["wait", object, &condition, "--timeout", PATIENCE]);
    }

    /// A field of an object.
    pub fn get(&self, object: &str, field: &str) -> String {
        self.kubectl(&["get", object, "--output", &format!("jsonpath={field}")])
    }

    /// Waits until pods are ready.
    pub fn until_ready(&self, pods: &[&str]) {
        let pods: Vec<String> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
        let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
        self.kubectl(&[&["wait", "--for=condition=Ready", "--timeout", PATIENCE], &pods[..]].concat());
    }

    /// Runs a shell script in a pod; it must succeed, and stops where it does not.
    pub fn exec(&self, pod: &str, script: &str) -> String {
        self.kubectl(&["exec", pod, "--", "sh", "-euc", script])
    }

    /// Deletes objects, `"pod/writer"`, and waits until they have gone.
    pub fn delete(&self, objects: &[&str]) {
        self.kubectl(&[&["delete", "--timeout", PATIENCE], objects].concat());
    }

    /// The node that a pod runs on, as a host.
    pub fn node_of(&self, pod: &str) -> Host {
        self.cluster.node(&self.get(&format!("pod/{pod}"), "{.spec.nodeName}"))
    }

    /// The PersistentVolume that a claim is bound to.
    pub fn volume_of(&self, claim: &str) -> String {
        self.get(&format!("pvc/{claim}"), "{.spec.volumeName}")
    }

    /// The story is over: nothing of it may be left in the cluster, once it is deleted.
    pub fn end(self) {
        self.cluster.kubectl(&["delete", "namespace", &self.namespace, "--timeout", PATIENCE]);
    }
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show(&["get", "pods,pvc,volumesnapshots", "--namespace", &self.namespace, "--output", "wide"]);
            self.show(&["get", "events", "--namespace", &self.namespace, "--sort-by", ".lastTimestamp"]);
            self.show(&["get", "pods", "--all-namespaces", "--output", "wide"]);
            for app in ["deployment/cistern-controller", "daemonset/cistern-node"] {
                self.show(&["logs", app, "--namespace", "cistern", "--all-pods", "--all-containers", "--prefix"]);
            }
        }
    }
}

impl Story<'_> {
    fn show(&self, arguments: &[&str]) {
        let shown = self.cluster.try_kubectl(arguments);
        let text = String::from_utf8_lossy(&shown.stdout);
        eprintln!("$ kubectl {}\n{}", arguments.join(" "), tail(&text, 60));
    }
}

// --- objects, as a person writes them

/// A claim of a pool. `more` is what else its spec says.
pub fn claim(name: &str, pool: &str, mode: &str, size: &str, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{ name: {name} }}
spec:
  storageClassName: cistern-{pool}
  volumeMode: {mode}
  accessModes: [ReadWriteOnce]
  resources: {{ requests: {{ storage: {size} }} }}
  {more}
"
    )
}

/// What a claim's spec says of the snapshot or claim that it is made from.
pub fn restored(kind: &str, name: &str) -> String {
    let group = if kind == "VolumeSnapshot" { "apiGroup: snapshot.storage.k8s.io, " } else { "" };
    format!("dataSource: {{ {group}kind: {kind}, name: {name} }}")
}

/// A snapshot of a claim.
pub fn snapshot(name: &str, claim: &str) -> String {
    format!(
        "
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {{ name: {name} }}
spec:
  volumeSnapshotClassName: cistern
  source: {{ persistentVolumeClaimName: {claim} }}
"
    )
}

/// A pod that has a claim as its directory /data or its device /dev/data, and idles; on this node, if one is given.
pub fn pod(name: &str, claim: &str, mode: &str, node: &str) -> String {
    let place = match mode {
        "Block" => "volumeDevices: [{ name: data, devicePath: /dev/data }]",
        _ => "volumeMounts: [{ name: data, mountPath: /data }]",
    };
    let node =
        if node.is_empty() { String::new() } else { format!("nodeSelector: {{ kubernetes.io/hostname: {node} }}") };
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{ name: {name} }}
spec:
  {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: cistern.dev/base:1
    {place}
  volumes:
  - name: data
    persistentVolumeClaim: {{ claimName: {claim} }}
"
    )
}
