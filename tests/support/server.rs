//! The server of a test: `cistern serve`, or a fleet that answers the same calls.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use super::far::Far;
use super::fleet::{self, Controller};
use super::machine::{Machine, Process};
use super::peers::Pki;
use super::{Csi, Place, eventually};

/// The name of the tested machine.
const NAME: &str = "testnode";

/// What a server logs when a step is made to fail.
pub const STEP_FAILED: &str = "was asked to fail";

/// How the calls reach the stores. Tests that take one are run in each by [`in_each_setting`](crate::in_each_setting).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// `cistern serve` answers all of them.
    Alone,
    /// `cistern node` on the tested machine, which is a host too; a second host, which has another pool; and a controller,
    /// which answers what the sidecars ask. Each is a process.
    Fleet,
    /// The same, and the tested machine's pools are in hosts.yaml.
    Brought,
}

/// Makes tests of functions that take a [`Setting`](crate::support::Setting): one for each, in the modules `alone` and
/// `in_a_fleet`.
#[macro_export]
macro_rules! in_each_setting {
    ($($test:ident),+ $(,)?) => {
        mod alone {
            $(#[test] fn $test() { super::$test($crate::support::Setting::Alone) })+
        }
        mod in_a_fleet {
            $(#[test] fn $test() { super::$test($crate::support::Setting::Fleet) })+
        }
    };
}

/// A server that is killed when the test ends.
pub struct Server {
    machine: Machine,
    rest: Option<Rest>,
}

/// What there is beside the tested machine.
struct Rest {
    controller: Controller,
    // these go with the server
    _other: Other,
    _pki: Pki,
}

/// The second host, on this machine or, in a lab, on another.
enum Other {
    Here { _machine: Machine },
    There { _process: Process },
}

/// Starts the second host, which has a pool `other`.
fn start_other(place: &Place, pki: &Pki) -> (Other, SocketAddr) {
    if let Some(far) = Far::host("other") {
        let (process, address) = fleet::far_host(&far, "other", "other", &place.path(""), pki);
        return (Other::There { _process: process }, address);
    }
    let (pools, path) = (place.path("other.yaml"), place.path("disk/other"));
    std::fs::write(&pools, format!("pools: [{{ name: other, dir: {{ path: {} }} }}]", path.display())).unwrap();
    let mut machine = fleet::host("other", place.path("other"), Some(&pools), pki);
    machine.start();
    let address = machine.address;
    (Other::Here { _machine: machine }, address)
}

impl Server {
    /// Starts `cistern serve` with this configuration, and waits until it serves.
    pub fn start(place: &Place, config: &Path) -> Server {
        Server::start_in(Setting::Alone, place, config)
    }

    /// Starts a server in this setting.
    pub fn start_in(setting: Setting, place: &Place, config: &Path) -> Server {
        Server::start_with(setting, place, Some(config), &[])
    }

    /// Starts one with these variables; without a configuration it has its default pool.
    pub fn start_with(setting: Setting, place: &Place, config: Option<&Path>, variables: &[(&str, &str)]) -> Server {
        let mut server = Server::prepare(setting, place, config);
        server.start_machine(variables);
        server
    }

    /// Starts `cistern serve`, and waits for nothing.
    pub fn begin(place: &Place, config: &Path) -> Server {
        let mut server = Server::prepare(Setting::Alone, place, Some(config));
        server.machine.begin(&[]);
        server
    }

    /// All but the tested machine's process.
    fn prepare(setting: Setting, place: &Place, config: Option<&Path>) -> Server {
        let directory = place.path("");
        if setting == Setting::Alone {
            return Server { machine: Machine::serve(NAME, directory, config), rest: None };
        }
        let pki = Pki::new();
        let own = config.filter(|_| setting == Setting::Fleet);
        let machine = fleet::node(NAME, directory.clone(), own, &pki);
        let (other, address) = start_other(place, &pki);
        let mut controller = Controller::new(directory, &pki);
        controller.add(&machine);
        controller.add_at("other", &address.to_string());
        if setting == Setting::Brought {
            controller.set_pools(config.map(brought).as_deref());
        }
        controller.start();
        controller.wait_for("other");
        Server { machine, rest: Some(Rest { controller, _other: other, _pki: pki }) }
    }

    fn start_machine(&mut self, variables: &[(&str, &str)]) {
        let seen = self.rest.as_ref().map_or(0, |rest| rest.controller.times_seen(NAME));
        self.machine.begin(variables);
        if let Some(status) = self.machine.serves_or_ended() {
            // one that was told to die while it starts has done so
            assert!(!variables.is_empty(), "the server ended with {status}:\n{}", self.log());
            return;
        }
        let (machine, Some(rest)) = (&mut self.machine, &self.rest) else { return };
        // one that was told to die or to fail may do so when the controller first asks it something
        let has_failed = |machine: &mut Machine| {
            !variables.is_empty() && (machine.has_ended() || machine.log().contains(STEP_FAILED))
        };
        eventually("the controller has found the host", || {
            (rest.controller.times_seen(NAME) > seen || has_failed(machine)).then_some(())
        });
        if !has_failed(machine) {
            rest.controller.wait_for(NAME);
        }
    }

    /// Starts the tested machine's server again, after it has ended.
    pub fn start_again(&mut self) {
        self.start_machine(&[]);
    }

    /// A client of its own connections.
    pub fn client(&self) -> Csi {
        let csi = self.machine.client();
        match &self.rest {
            None => csi,
            Some(rest) => csi.with_controller(&rest.controller.socket()).expect("the controller answers"),
        }
    }

    /// The controller, if there is one.
    pub fn controller(&mut self) -> Option<&mut Controller> {
        self.rest.as_mut().map(|rest| &mut rest.controller)
    }

    /// The socket of the tested machine.
    pub fn socket(&self) -> PathBuf {
        self.machine.socket()
    }

    /// The socket that the sidecars use.
    pub fn controller_socket(&self) -> PathBuf {
        self.rest.as_ref().map_or(self.socket(), |rest| rest.controller.socket())
    }

    /// SIGKILL to the tested machine's server, and its end.
    pub fn kill(&mut self) {
        self.machine.kill();
    }

    /// SIGTERM to it, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.machine.stop()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.machine.has_ended()
    }

    /// Its number, while it runs.
    pub fn pid(&mut self) -> u32 {
        self.machine.process().pid()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.machine.log()
    }
}

/// The entries of pools.yaml as those of hosts.yaml, for the tested machine alone.
fn brought(config: &Path) -> String {
    let text = std::fs::read_to_string(config).unwrap();
    let mut pools: serde_json::Value = serde_yaml::from_str(&text).unwrap();
    for pool in pools["pools"].as_array_mut().unwrap() {
        pool["hosts"] = serde_json::json!([NAME]);
    }
    pools["pools"].to_string()
}
