//! A fleet of a test's own on this machine: hosts that listen on loopback, a controller, their certificates, hosts.yaml.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use cistern::domain::Role;
use cistern::peer::Client;
use cistern::proto::internal::{DescribeRequest, DescribeResponse, Pool};

use super::far::Far;
use super::machine::{Machine, Process, Runs};
use super::peers::Pki;
use super::{Csi, eventually};

/// A `cistern controller`, and what it is told of the fleet.
pub struct Controller {
    directory: PathBuf,
    tls: PathBuf,
    arguments: Vec<String>,
    hosts: BTreeMap<String, Vec<String>>,
    stores: BTreeMap<String, Vec<String>>,
    pools: Option<String>,
    process: Option<Process>,
}

impl Controller {
    /// One with its things in this directory, that was not started.
    pub fn new(directory: PathBuf, pki: &Pki) -> Controller {
        std::fs::create_dir_all(&directory).unwrap();
        Controller {
            directory,
            tls: pki.machine("controller", &[Role::Controller]),
            arguments: Vec::new(),
            hosts: BTreeMap::new(),
            stores: BTreeMap::new(),
            pools: None,
            process: None,
        }
    }

    /// Adds these to its command line, from its next start on.
    pub fn with(mut self, arguments: &[&str]) -> Controller {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Another controller of the same fleet.
    pub fn twin(&self, directory: PathBuf) -> Controller {
        std::fs::create_dir_all(&directory).unwrap();
        Controller {
            directory,
            tls: self.tls.clone(),
            arguments: self.arguments.clone(),
            hosts: self.hosts.clone(),
            stores: self.stores.clone(),
            pools: self.pools.clone(),
            process: None,
        }
    }

    // --- hosts.yaml

    /// This host is in the fleet.
    pub fn add(&mut self, host: &Machine) {
        self.add_at(&host.name, &host.address.to_string());
    }

    /// A host of this name is in the fleet, at this address.
    pub fn add_at(&mut self, host: &str, address: &str) {
        self.hosts.insert(host.to_owned(), vec![address.to_owned()]);
        self.write();
    }

    /// This host is in the fleet no more.
    pub fn remove(&mut self, host: &str) {
        self.hosts.remove(host);
        self.write();
    }

    /// These stores are this host's, says hosts.yaml.
    pub fn pin(&mut self, host: &str, stores: &[&str]) {
        self.stores.insert(host.to_owned(), stores.iter().map(|store| (*store).to_owned()).collect());
        self.write();
    }

    /// The entries of `pools:`, as YAML in one line; `None` where controllers bring none.
    pub fn set_pools(&mut self, pools: Option<&str>) {
        self.pools = pools.map(str::to_owned);
        self.write();
    }

    /// Writes hosts.yaml anew.
    fn write(&self) {
        let host = |(name, addresses): (&String, &Vec<String>)| {
            let stores = self.stores.get(name).cloned().unwrap_or_default();
            format!("- {{ name: {name}, addresses: {addresses:?}, stores: {stores:?} }}\n")
        };
        let hosts: String = self.hosts.iter().map(host).collect();
        let hosts = if hosts.is_empty() { "hosts: []\n".to_owned() } else { format!("hosts:\n{hosts}") };
        let pools = self.pools.as_ref().map(|pools| format!("pools: {pools}\n")).unwrap_or_default();
        self.write_text(&format!("{hosts}{pools}"));
    }

    /// Writes hosts.yaml with this text.
    pub fn write_text(&self, text: &str) {
        let (new, path) = (self.hosts_yaml().with_extension("new"), self.hosts_yaml());
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &path).unwrap();
    }

    /// Beside its certificates, where it is seen wherever the controller runs.
    fn hosts_yaml(&self) -> PathBuf {
        self.tls.join("hosts.yaml")
    }

    // --- the process

    /// Starts it, and waits until it answers on its socket: in the lab's host `controller`, where there is one.
    pub fn begin(&mut self) {
        let (socket, log) = (self.socket(), self.directory.join("controller.log"));
        self.process = Some(match Far::host("controller") {
            None => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
                Process::start(command.args(self.arguments(&socket)), &log)
            }
            Some(far) => {
                let there = Path::new("/run").join(self.tls.strip_prefix("/").unwrap()).join("controller.sock");
                Process::start_far(&far, &self.tls, &self.arguments(&there), Some((&socket, &there)), &log)
            }
        });
        let process = self.process();
        eventually("the controller answers", || {
            let ended = process.ended();
            assert!(ended.is_none(), "the controller has ended: {ended:?}\n{}", process.log());
            super::client::answers(&socket).then_some(())
        });
    }

    fn arguments(&self, socket: &Path) -> Vec<String> {
        let own = [
            ("--log", "info,cistern=debug".to_owned()),
            ("--config", self.hosts_yaml().display().to_string()),
            ("--tls", self.tls.display().to_string()),
            ("--endpoint", format!("unix://{}", socket.display())),
        ];
        let own = own.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        ["controller".to_owned()].into_iter().chain(own).chain(self.arguments.iter().cloned()).collect()
    }

    /// Starts it, and waits until it has heard of all hosts, or found them away.
    pub fn start(&mut self) {
        self.begin();
        let csi = self.client();
        eventually("the controller is ready", || csi.is_ready().then_some(()));
    }

    /// The process, which was started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it was started")
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// What it logged, and what its earlier processes did.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Waits until it has logged a line with all of these.
    pub fn wait_for_log(&self, words: &[&str]) {
        eventually(&format!("the controller logs {words:?}"), || {
            self.log().lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        });
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("controller.sock")
    }

    /// A client of it alone.
    pub fn client(&self) -> Csi {
        Csi::try_connect(&self.socket()).expect("the controller answers")
    }

    // --- what it knows

    /// What `cistern pool ls` and its like are told.
    pub fn describe(&self) -> DescribeResponse {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let request = DescribeRequest { volumes: true, snapshots: true };
        let asked = runtime.block_on(async { Client::connect(&self.socket()).await?.describe(request).await });
        asked.expect("the controller describes its fleet")
    }

    /// The pools of a host, as it says now; one without a name if the host is away and was never seen.
    pub fn pools_of(&self, host: &str) -> Vec<Pool> {
        self.describe().pools.into_iter().filter(|pool| pool.host == host).collect()
    }

    /// Waits until this host can be asked, and all its pools are up.
    pub fn wait_for(&self, host: &str) {
        eventually(&format!("the controller sees {host}"), || {
            let pools = self.pools_of(host);
            (!pools.is_empty() && pools.iter().all(|pool| pool.down.is_empty())).then_some(())
        });
    }

    /// Waits until this host cannot be asked.
    pub fn wait_until_away(&self, host: &str) {
        eventually(&format!("the controller sees that {host} is away"), || {
            let is_away = |pool: &Pool| pool.down.starts_with(&format!("host {host} is away"));
            self.pools_of(host).iter().any(is_away).then_some(())
        });
    }

    /// How often it has found this host there, over all its processes.
    pub fn times_seen(&self, host: &str) -> usize {
        let log = self.directory.join("controller.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        log.lines().filter(|line| line.ends_with(&format!("host is here host={host}"))).count()
    }
}

/// A host of the fleet with a directory and certificates of its own.
pub fn host(name: &str, directory: PathBuf, config: Option<&Path>, pki: &Pki) -> Machine {
    Machine::peer(name, Runs::Host, directory, config, pki.machine(name, &[Role::Host]))
}

/// A node that is a host of the fleet too.
pub fn node(name: &str, directory: PathBuf, config: Option<&Path>, pki: &Pki) -> Machine {
    Machine::peer(name, Runs::NodeAndHost, directory, config, pki.machine(name, &[Role::Host, Role::Node]))
}

/// A host in the lab's host `other`, whose pool of this name is there too.
pub fn far_host(far: &Far, name: &str, pool: &str, directory: &Path, pki: &Pki) -> (Process, SocketAddr) {
    let tls = pki.machine(name, &[Role::Host]);
    let address = SocketAddr::from((far.address(), 7443));
    let its = Path::new("/var/tmp").join(tls.strip_prefix("/").unwrap());
    let pools = tls.join("pools.yaml");
    let path = its.join("pool");
    std::fs::write(&pools, format!("pools: [{{ name: {pool}, dir: {{ path: {} }} }}]", path.display())).unwrap();
    let flags = [
        ("--node-id", name.to_owned()),
        ("--listen", address.to_string()),
        ("--tls", tls.display().to_string()),
        ("--config", pools.display().to_string()),
        ("--data", its.join("data").display().to_string()),
        ("--endpoint", format!("unix://{}", its.join("csi.sock").display())),
    ];
    let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
    let arguments: Vec<String> = ["host".to_owned()].into_iter().chain(flags).collect();
    (Process::start_far(far, &tls, &arguments, None, &directory.join("other.log")), address)
}
