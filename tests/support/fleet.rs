//! A fleet of a test's own on this machine: hosts that listen on loopback, a controller, their certificates, hosts.yaml.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use cistern::domain::Role;
use cistern::peer::Client;
use cistern::proto::internal::{DescribeRequest, DescribeResponse, Pool};

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
        let (new, path) = (self.directory.join("hosts.yaml.new"), self.hosts_yaml());
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &path).unwrap();
    }

    fn hosts_yaml(&self) -> PathBuf {
        self.directory.join("hosts.yaml")
    }

    // --- the process

    /// Starts it, and waits until it answers on its socket.
    pub fn begin(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
        command.args(["controller", "--log", "info,cistern=debug"]).args(&self.arguments);
        command.arg("--config").arg(self.hosts_yaml()).arg("--tls").arg(&self.tls);
        command.arg("--endpoint").arg(format!("unix://{}", self.socket().display()));
        self.process = Some(Process::start(&mut command, &self.directory.join("controller.log")));
        let socket = self.socket();
        let process = self.process();
        eventually("the controller answers", || {
            let ended = process.ended();
            assert!(ended.is_none(), "the controller has ended: {ended:?}\n{}", process.log());
            super::client::answers(&socket).then_some(())
        });
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
