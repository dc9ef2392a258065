//! Kubernetes' API server and etcd, alone on loopback: objects are kept, checked and watched, and no controller acts on them.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};

use super::machine::Process;
use super::{Place, eventually};

/// What may do everything.
const TOKEN: &str = "of-a-test";

/// An API server of a test's own.
pub struct ApiServer {
    // they go before the place that their logs are in
    server: Option<Process>,
    etcd: Process,
    place: Place,
    address: String,
}

/// An address of loopback that nobody else has: this process's number and a number of its own.
pub fn own_loopback() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(10);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    format!("127.{}.{middle}.{low}", high.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// The program that is all of Kubernetes' components, on the PATH: tests/setup makes it.
const KUBE: &str = "kube";

impl ApiServer {
    /// Starts both, with the chart's CustomResourceDefinition and the namespace `cistern`.
    pub fn start() -> ApiServer {
        let (place, address) = (Place::bare(), own_loopback());
        super::run(&["openssl", "genrsa", "-out", &place.path("accounts.key").display().to_string(), "2048"]);
        std::fs::write(place.path("tokens"), format!("{TOKEN},admin,1,system:masters\n")).unwrap();
        let mut etcd = Command::new(KUBE);
        etcd.arg("etcd").arg("--data-dir").arg(place.path("etcd")).arg("--unsafe-no-fsync").args([
            format!("--listen-client-urls=http://{address}:2379"),
            format!("--advertise-client-urls=http://{address}:2379"),
            format!("--listen-peer-urls=http://{address}:2380"),
            format!("--initial-advertise-peer-urls=http://{address}:2380"),
            format!("--initial-cluster=default=http://{address}:2380"),
        ]);
        let etcd = Process::start(&mut etcd, &place.path("etcd.log"));
        let mut api = ApiServer { place, address, etcd, server: None };
        std::fs::write(api.kubeconfig(), api.config().to_string()).unwrap();
        api.begin();
        let crd = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/cistern/crds/storagepools.yaml");
        api.kubectl(&["apply", "--server-side", "-f", crd], "").unwrap();
        api.kubectl(&["wait", "--for=condition=Established", "crd", "--all"], "").unwrap();
        api.kubectl(&["create", "namespace", "cistern"], "").unwrap();
        api
    }

    /// Starts the API server, and waits until it is ready.
    pub fn begin(&mut self) {
        let (key, address) = (self.place.path("accounts.key").display().to_string(), &self.address);
        let mut command = Command::new(KUBE);
        command.arg("apiserver").args([
            format!("--etcd-servers=http://{address}:2379"),
            format!("--bind-address={address}"),
            "--secure-port=6443".to_owned(),
            format!("--cert-dir={}", self.place.path("certificates").display()),
            format!("--token-auth-file={}", self.place.path("tokens").display()),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
        ]);
        self.server = Some(Process::start(&mut command, &self.place.path("apiserver.log")));
        eventually("the API server is ready", || self.kubectl(&["get", "--raw", "/readyz"], "").ok());
    }

    /// It is away until it is begun again.
    pub fn end(&mut self) {
        self.server.take().unwrap().kill();
    }

    /// For whoever is to reach it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.place.path("kubeconfig")
    }

    fn config(&self) -> Value {
        let server = format!("https://{}:6443", self.address);
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": server, "insecure-skip-tls-verify": true } }],
            "users": [{ "name": "test", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        })
    }

    /// What kubectl says to this, or complains of.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(KUBE);
        command.arg("kubectl").arg("--kubeconfig").arg(self.kubeconfig()).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Makes or changes an object.
    pub fn apply(&self, object: &Value) -> Result<String, String> {
        self.kubectl(&["apply", "-f", "-"], &object.to_string())
    }

    /// A StoragePool with this spec.
    pub fn apply_pool(&self, name: &str, spec: Value) -> Result<String, String> {
        let metadata = json!({ "name": name });
        self.apply(&json!({
            "apiVersion": "cistern.dev/v1alpha1", "kind": "StoragePool", "metadata": metadata, "spec": spec,
        }))
    }

    /// A node with the driver, as kubelet writes it down.
    pub fn apply_node(&self, name: &str, node_id: &str, labels: Value) {
        let metadata = json!({ "name": name, "labels": labels });
        self.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata })).unwrap();
        let topology = ["topology.cistern.dev/host"];
        let drivers = json!([{ "name": "csi.cistern.dev", "nodeID": node_id, "topologyKeys": topology }]);
        let (metadata, spec) = (json!({ "name": name }), json!({ "drivers": drivers }));
        let node = json!({ "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": metadata, "spec": spec });
        self.apply(&node).unwrap();
    }

    /// An object, if it is there.
    pub fn get(&self, arguments: &[&str]) -> Option<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat(), "").ok()?;
        serde_json::from_str(&text).ok()
    }
}
