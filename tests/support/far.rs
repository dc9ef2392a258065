//! Other hosts of a lab, for a test program that runs in one: `tests/run lab` says which there are, and the controller and
//! the second host of a fleet are started there. Elsewhere there are none, and all of a fleet is on this machine.
//!
//! What has to be seen by several of them is below `/host`, where every host has the same files.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where files are that all hosts see; the ssh_config that names them; this host's own address.
const SHARED: &str = "CISTERN_LAB_SHARED";
const SSH_CONFIG: &str = "CISTERN_LAB_SSH_CONFIG";
const ADDRESS: &str = "CISTERN_LAB_ADDRESS";

/// Another host of the lab.
#[derive(Debug, Clone)]
pub struct Far {
    name: String,
    config: PathBuf,
}

impl Far {
    /// The host of this name, if this is a program in a lab.
    pub fn host(name: &str) -> Option<Far> {
        let config = std::env::var_os(SSH_CONFIG)?;
        Some(Far { name: name.to_owned(), config: config.into() })
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        let text = std::fs::read_to_string(&self.config).unwrap();
        let mut words = text.split_whitespace().skip_while(|word| *word != self.name);
        let address = words.nth(2).unwrap_or_else(|| panic!("{:?} has no host {}", self.config, self.name));
        address.parse().unwrap()
    }

    /// cistern there, and a socket here that leads to one there. Its number is written to the file.
    pub fn cistern(&self, number: &Path, arguments: &[String], way: Option<(&Path, &Path)>) -> Command {
        let mut ssh = self.ssh();
        if let Some((here, there)) = way {
            ssh.args(["-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindUnlink=yes"]);
            ssh.arg("-L").arg(format!("{}:{}", here.display(), there.display()));
        }
        let program = concat!("/host", env!("CARGO_BIN_EXE_cistern"));
        let words: Vec<String> = arguments.iter().map(|word| super::lab::quoted(word)).collect();
        ssh.arg(&self.name).arg(format!("echo $$ >{}; exec {program} {}", number.display(), words.join(" ")));
        ssh
    }

    /// SIGKILL to a process there.
    pub fn kill(&self, number: &Path) {
        let Ok(number) = std::fs::read_to_string(number) else { return };
        // one that has ended is gone already
        let _ = self.ssh().arg(&self.name).arg(format!("kill -KILL {}", number.trim())).output();
    }

    fn ssh(&self) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(&self.config);
        ssh
    }
}

/// A directory whose files all hosts see, where there are several.
pub fn shared() -> Option<PathBuf> {
    std::env::var_os(SHARED).map(PathBuf::from)
}

/// This host's address on the lab's network, if it is in one.
pub fn own_address() -> Option<IpAddr> {
    std::env::var(ADDRESS).ok().map(|address| address.parse().unwrap())
}
