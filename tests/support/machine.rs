//! A cistern process of a test's own, as one machine runs it: `serve`, `host`, `node`. Each has a directory with its data,
//! its sockets and its log, and keeps its address when it is started again.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::process::Signal;

use super::far::{self, Far};
use super::{Csi, eventually};

/// A process of cistern's with a log, killed when the test ends.
pub struct Process {
    child: Child,
    log: PathBuf,
    /// The host of the lab that it runs in, if not in this one, and the file with its number there.
    far: Option<(Far, PathBuf)>,
}

impl Process {
    /// Starts it; what it logs is added to the file.
    pub fn start(command: &mut Command, log: &Path) -> Process {
        let output = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Process { child: command.spawn().unwrap(), log: log.to_owned(), far: None }
    }

    /// Starts cistern in another host of the lab; its number there is written beside its certificates, and `way` is a
    /// socket here that leads to one there.
    pub fn start_far(far: &Far, tls: &Path, arguments: &[String], way: Option<(&Path, &Path)>, log: &Path) -> Process {
        let number = tls.join("process");
        let mut process = Process::start(&mut far.cistern(&number, arguments, way), log);
        process.far = Some((far.clone(), number));
        process
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        if let Some((far, number)) = &self.far {
            far.kill(number);
        }
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        eventually("the server stops", || self.child.try_wait().unwrap())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        super::signal(self.child.id(), signal);
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Its number, while it runs.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged, and what earlier ones with this log did.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let (log, file) = (self.log(), self.log.display());
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the end of {file}:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// What a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// `cistern serve`
    Serve,
    /// `cistern host`
    Host,
    /// `cistern node`, which is a host too.
    NodeAndHost,
}

/// A machine: its name, where it keeps its things, and the process while there is one.
pub struct Machine {
    pub name: String,
    runs: Runs,
    directory: PathBuf,
    config: Option<PathBuf>,
    /// Where it listens for controllers.
    pub address: SocketAddr,
    tls: Option<PathBuf>,
    process: Option<Process>,
}

impl Machine {
    /// `cistern serve`, with its things in this directory.
    pub fn serve(name: &str, directory: PathBuf, config: Option<&Path>) -> Machine {
        Machine::new(name, Runs::Serve, directory, config, None)
    }

    /// A host or a node with these certificates.
    pub fn peer(name: &str, runs: Runs, directory: PathBuf, config: Option<&Path>, tls: PathBuf) -> Machine {
        Machine::new(name, runs, directory, config, Some(tls))
    }

    fn new(name: &str, runs: Runs, directory: PathBuf, config: Option<&Path>, tls: Option<PathBuf>) -> Machine {
        std::fs::create_dir_all(&directory).unwrap();
        let (name, config, address) = (name.to_owned(), config.map(Path::to_owned), own_address());
        Machine { name, runs, directory, config, address, tls, process: None }
    }

    /// Its own pools are these from its next start on.
    pub fn set_config(&mut self, config: Option<&Path>) {
        self.config = config.map(Path::to_owned);
    }

    /// Starts it with these variables, and waits for nothing.
    pub fn begin(&mut self, variables: &[(&str, &str)]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
        command.arg(match self.runs {
            Runs::Serve => "serve",
            Runs::Host => "host",
            Runs::NodeAndHost => "node",
        });
        command.args(["--node-id", &self.name, "--log", "info,cistern=debug"]);
        command.arg("--data").arg(self.data());
        command.arg("--endpoint").arg(format!("unix://{}", self.socket().display()));
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        if let Some(tls) = &self.tls {
            command.args(["--listen", &self.address.to_string()]).arg("--tls").arg(tls);
        }
        command.envs(variables.iter().copied());
        self.process = Some(Process::start(&mut command, &self.directory.join("server.log")));
    }

    /// Starts it, and waits until it serves.
    pub fn start(&mut self) {
        self.begin(&[]);
        if let Some(status) = self.serves_or_ended() {
            panic!("{} ended with {status}:\n{}", self.name, self.log());
        }
    }

    /// Waits until it answers on its socket, or has ended; answers how.
    pub fn serves_or_ended(&mut self) -> Option<ExitStatus> {
        let socket = self.socket();
        let process = self.process.as_mut().expect("it was started");
        eventually("the server's socket answers", || match process.ended() {
            Some(status) => Some(Some(status)),
            None => super::client::answers(&socket).then_some(None),
        })
    }

    /// The process, which was started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it was started")
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.process().stop()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process().ended().is_some()
    }

    /// Whether it has ended, and was not told to.
    pub fn has_died(&mut self) -> bool {
        self.process.as_mut().and_then(Process::ended).is_some_and(|status| !status.success())
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("csi.sock")
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// A path below its directory.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.directory.join(below)
    }

    /// A client of its socket.
    pub fn client(&self) -> Csi {
        Csi::try_connect(&self.socket()).expect("the server answers")
    }
}

/// An address that no other test has: in a lab, where programs run one by one, this host's. Otherwise loopback is a whole network, and this process's number one of its addresses. The
/// port is below those that the kernel gives to clients.
pub fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = far::own_address().unwrap_or([127, 1 + high, middle, low].into());
    SocketAddr::from((address, NEXT.fetch_add(1, Ordering::Relaxed)))
}
