//! A `cistern serve` of the test's own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::Signal;

use super::{Csi, Place, eventually};

/// A server that is killed when the test ends.
pub struct Server {
    child: Child,
    /// Its socket.
    pub socket: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts a server with this configuration, and waits until it serves.
    pub fn start(place: &Place, config: &Path) -> Server {
        Server::start_with(place, Some(config), &[])
    }

    /// Starts one with these variables; without a configuration it has its default pool.
    pub fn start_with(place: &Place, config: Option<&Path>, variables: &[(&str, &str)]) -> Server {
        let mut server = Server::begin(place, config, variables);
        let ended = eventually("the server's socket answers", || match server.child.try_wait().unwrap() {
            Some(status) => Some(Some(status)),
            None => Csi::try_connect(&server.socket).map(|_| None),
        });
        if let Some(status) = ended {
            // one that was told to die while it starts has done so
            assert!(!variables.is_empty(), "the server ended with {status}:\n{}", server.log());
        }
        server
    }

    /// Starts one and waits for nothing.
    pub fn begin(place: &Place, config: Option<&Path>, variables: &[(&str, &str)]) -> Server {
        let (socket, log) = (place.path("csi.sock"), place.path("server.log"));
        let output = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
        command.arg("serve").args(["--node-id", "testnode", "--log", "info,cistern=debug"]);
        command.arg("--data").arg(place.path("data"));
        command.arg("--endpoint").arg(format!("unix://{}", socket.display()));
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        command.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Server { child: command.spawn().unwrap(), socket, log }
    }

    /// A client of its own connection.
    pub fn client(&self) -> Csi {
        Csi::try_connect(&self.socket).expect("the server answers")
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        super::signal(self.child.id(), Signal::TERM);
        eventually("the server stops", || self.child.try_wait().unwrap())
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Its number, while it runs.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the end of the server's log:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}
