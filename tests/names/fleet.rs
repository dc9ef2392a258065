//! Three hosts with a disk each, one without, and two controllers, as processes of this machine; and what may befall them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use cistern::domain::Role;
use rustix::process::Signal;

use super::eyes::{self, Seen};
use super::relay::{Flow, Relay};
use super::support::peers::Pki;
use super::support::{self, Csi};

/// Hosts that have a disk at first, and one that a disk may be moved to.
pub const HOSTS: [&str; 4] = ["a", "b", "c", "d"];
pub const SPARE: &str = "d";
pub const CONTROLLERS: [&str; 2] = ["c0", "c1"];
/// How long controllers wait for a host before they take another, in seconds.
const PATIENCE: &str = "1";

pub struct Fleet {
    // before the place, which they are in
    processes: Mutex<BTreeMap<String, Process>>,
    relays: BTreeMap<(usize, &'static str), Relay>,
    addresses: BTreeMap<&'static str, SocketAddr>,
    /// Held to be read by whoever uses a device: its disk stays where it is.
    disks: RwLock<()>,
    tls: BTreeMap<String, PathBuf>,
    pki: Pki,
}

struct Process {
    child: Child,
    is_stopped: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of this process alone, whatever others run beside it: a host that starts again finds it free.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let process = std::process::id().to_be_bytes();
    let address = [127, 1 + process[1] % 200, process[2], process[3]];
    SocketAddr::from((address, NEXT.fetch_add(1, Ordering::Relaxed)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    pub fn start() -> Fleet {
        let pki = Pki::new();
        let mut tls = BTreeMap::new();
        for host in HOSTS {
            tls.insert(host.to_owned(), pki.machine(host, &[Role::Host, Role::Node]));
        }
        for controller in CONTROLLERS {
            tls.insert(controller.to_owned(), pki.machine(controller, &[Role::Controller]));
        }
        let addresses: BTreeMap<_, _> = HOSTS.map(|host| (host, own_address())).into();
        let pairs = (0..2).flat_map(|controller| HOSTS.map(|host| (controller, host)));
        let relays = pairs.map(|pair| (pair, Relay::to(addresses[pair.1]))).collect();
        let (processes, disks) = Default::default();
        let fleet = Fleet { processes, relays, addresses, disks, tls, pki };
        for host in HOSTS {
            fs::create_dir_all(fleet.home(host).join("disk")).unwrap();
            fleet.has_pool(host, host != SPARE);
            fleet.start_host(host);
        }
        for controller in 0..2 {
            fleet.write_hosts(controller);
            fleet.start_controller(controller);
        }
        for host in HOSTS.into_iter().filter(|host| *host != SPARE) {
            support::eventually("the host's store is there", || {
                fleet.disk(host).join("store.json").exists().then_some(())
            });
        }
        fleet
    }

    // --- places

    fn home(&self, who: &str) -> PathBuf {
        self.pki.place.path(who)
    }

    fn disk(&self, host: &str) -> PathBuf {
        self.home(host).join("disk/p")
    }

    pub fn kubelet(&self, host: &str) -> PathBuf {
        self.home(host).join("kubelet")
    }

    pub fn controller_socket(&self, controller: usize) -> PathBuf {
        self.home(CONTROLLERS[controller]).join("csi.sock")
    }

    fn log_file(&self, who: &str) -> PathBuf {
        self.home(who).join("log")
    }

    pub fn log(&self, who: &str) -> String {
        fs::read_to_string(self.log_file(who)).unwrap_or_default()
    }

    /// The client of a node, if it answers.
    pub fn node(&self, host: &str) -> Option<Csi> {
        let is_up = lock(&self.processes).get(host).is_some_and(|process| !process.is_stopped);
        is_up.then(|| Csi::try_connect(&self.home(host).join("csi.sock")))?
    }

    /// Brings bytes to a device's disk.
    pub fn write(&self, device: &Path, bytes: &[u8]) -> bool {
        use std::os::unix::fs::FileExt;
        let opened = File::options().write(true).open(device);
        opened.is_ok_and(|device| device.write_all_at(bytes, 0).and_then(|()| device.sync_all()).is_ok())
    }

    // --- eyes

    /// All that is on the disks, wherever they are. A disk that is moved while it is looked at is looked at again.
    pub fn look(&self) -> Vec<Seen> {
        support::eventually("the disks can be seen", || {
            let mut all: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
            let mut stores = 0;
            for host in HOSTS {
                if let Some(seen) = eyes::look_into(host, &self.disk(host)) {
                    stores += 1;
                    all.insert(host.to_owned(), seen);
                }
            }
            (stores == HOSTS.len() - 1).then(|| all.into_values().flatten().collect())
        })
    }

    /// The host whose disk this volume is on.
    pub fn host_with(&self, id: &str) -> String {
        let store = id.split('/').next().unwrap_or_default();
        support::eventually("the store is on a disk", || {
            HOSTS.into_iter().find(|host| self.store_of(host).as_deref() == Some(store)).map(str::to_owned)
        })
    }

    fn store_of(&self, host: &str) -> Option<String> {
        let text = fs::read(self.disk(host).join("store.json")).ok()?;
        let identity: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(identity["store"].as_str()?.to_owned())
    }

    /// Keeps the disks where they are.
    pub fn disks_stay(&self) -> RwLockReadGuard<'_, ()> {
        self.disks.read().unwrap_or_else(PoisonError::into_inner)
    }

    // --- processes

    fn write_hosts(&self, controller: usize) {
        let mut text = "hosts:\n".to_owned();
        for host in HOSTS {
            let address = self.relays[&(controller, host)].address;
            text += &format!("- {{ name: {host}, addresses: ['{address}'] }}\n");
        }
        fs::create_dir_all(self.home(CONTROLLERS[controller])).unwrap();
        fs::write(self.home(CONTROLLERS[controller]).join("hosts.yaml"), text).unwrap();
    }

    /// Whether the host's own text has the pool.
    pub fn has_pool(&self, host: &str, has: bool) {
        let disk = self.disk(host);
        let text = match has {
            true => format!("pools:\n- name: p\n  overcommit: 1000\n  dir: {{ path: {} }}\n", disk.display()),
            false => "pools: []\n".to_owned(),
        };
        let (new, path) = (self.home(host).join("pools.new"), self.home(host).join("pools.yaml"));
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    pub fn start_host(&self, host: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
        command.args(["node", "--node-id", host, "--listen", &self.addresses[host].to_string()]);
        command.arg("--config").arg(self.home(host).join("pools.yaml"));
        command.arg("--data").arg(self.home(host).join("data"));
        self.spawn(host, command);
    }

    pub fn start_controller(&self, controller: usize) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
        let name = CONTROLLERS[controller];
        command.args(["controller", "--patience", PATIENCE, "--config"]).arg(self.home(name).join("hosts.yaml"));
        self.spawn(name, command);
    }

    fn spawn(&self, who: &str, mut command: Command) {
        let mut processes = lock(&self.processes);
        if processes.contains_key(who) {
            return;
        }
        let output = File::options().create(true).append(true).open(self.log_file(who)).unwrap();
        command.arg("--endpoint").arg(self.home(who).join("csi.sock")).arg("--tls").arg(&self.tls[who]);
        command.args(["--log", "info,cistern=debug"]);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        processes.insert(who.to_owned(), Process { child: command.spawn().unwrap(), is_stopped: false });
    }

    /// SIGKILL, and its end.
    pub fn kill(&self, who: &str) {
        drop(lock(&self.processes).remove(who));
    }

    /// SIGSTOP, or SIGCONT.
    pub fn stop(&self, who: &str, is_stopped: bool) {
        if let Some(process) = lock(&self.processes).get_mut(who) {
            support::signal(process.child.id(), if is_stopped { Signal::STOP } else { Signal::CONT });
            process.is_stopped = is_stopped;
        }
    }

    /// The host ends, and with it all that its kernel had: mounts and loop devices.
    pub fn power_off(&self, host: &str) {
        self.kill(host);
        for _ in 0..200 {
            let left = support::Inventory::take(&self.home(host));
            if left.all_mounts.is_empty() && left.all_loops.is_empty() {
                return;
            }
            for mount in left.all_mounts.iter().rev() {
                let _ = Command::new("umount").arg(mount).output();
            }
            for device in &left.lasting_loops {
                let _ = Command::new("losetup").args(["-d", device]).output();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    // --- network

    pub fn relay(&self, controller: usize, host: &str) -> &Relay {
        &self.relays[&(controller, HOSTS.into_iter().find(|known| *known == host).unwrap())]
    }

    pub fn mend(&self) {
        for relay in self.relays.values() {
            relay.break_off(false);
            relay.flow(Flow::Passes, Flow::Passes);
        }
    }

    // --- disks

    /// Where the disk is that may be moved: the spare host has one, or not.
    pub fn spare_has_disk(&self) -> bool {
        self.store_of(SPARE).is_some()
    }

    /// Takes the disk out of a host that is off, or lets go of it, and puts it into another, which serves it then. The
    /// other way to leave the old host: its text still has the pool, or not. `false` if somebody uses a device.
    pub fn move_disk(&self, from: &str, to: &str, is_off: bool, keeps_text: bool) -> bool {
        let Ok(_none_used) = self.disks.try_write() else { return false };
        if is_off {
            self.power_off(from);
        }
        self.has_pool(from, false);
        if !self.let_go(from) {
            self.has_pool(from, true);
            return false;
        }
        let target = self.disk(to);
        if target.exists() {
            // what a host without its disk made in its place
            assert!(!target.join("store.json").exists());
            fs::remove_dir_all(&target).unwrap();
        }
        fs::rename(self.disk(from), &target).unwrap();
        self.has_pool(to, true);
        // one that never saw the disk would make a new store in its place
        let has_seen = self.home(from).join("data/stores/p").exists();
        self.has_pool(from, keeps_text && has_seen);
        true
    }

    /// Waits until nobody serves the disk any more.
    fn let_go(&self, host: &str) -> bool {
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            let lock = File::open(self.disk(host).join("lock"));
            if lock.is_ok_and(|file| file.try_lock().is_ok()) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    // --- the owner

    pub fn keep(&self, controller: usize, id: &str) -> Result<(), String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
        command.args(["volume", "keep", id, "--endpoint"]).arg(self.controller_socket(controller));
        let done = command.output().unwrap();
        done.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&done.stderr).into_owned())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.look().iter().for_each(|seen| eprintln!("{} {}", seen.name, seen.brief()));
            CONTROLLERS.iter().for_each(|controller| eprintln!("{controller} logged:\n{}", self.log(controller)));
        }
        for host in HOSTS {
            self.power_off(host);
        }
    }
}
