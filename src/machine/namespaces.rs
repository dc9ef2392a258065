//! Leaving a container for the machine it runs on. A process that has joined sees the machine's files, mounts and name. It
//! stays in its container's cgroup, and dies with it; only what it starts to change something is taken out of there
//! ([`super::supervisor`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The machine, as it is seen by a process that shares its PID namespace.
const MACHINE: &str = "/proc/1/ns";

/// The machine cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A directory of the container's own is not there.
    #[error("cannot open {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Process 1 is ours: the container has a PID namespace of its own.
    #[error("this process is its own process 1: the pod needs hostPID")]
    NotTheMachine,
    /// A namespace cannot be joined.
    #[error("cannot join the machine's {name} namespace: the container needs hostPID and privileges")]
    Namespace {
        /// `mnt`, `uts` or `cgroup`.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A directory of the container, which stays open while the process sees the machine's files instead.
#[derive(Debug)]
pub struct Kept(OwnedFd);

impl Kept {
    /// The path by which this process, and no other, goes on to see the directory. Links within it lead where they did, so
    /// what Kubernetes renews below it is seen.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Opens a directory of the container, before [`join_machine`].
///
/// # Errors
/// It is not there, or no directory.
pub fn keep(path: &Path) -> Result<Kept, JoinError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    opened.map(Kept).map_err(|errno| JoinError::Directory { path: path.to_owned(), source: errno.into() })
}

/// Joins the machine's mount, UTS and cgroup namespaces. To be called before there is a second thread: a mount namespace is
/// joined by a whole process or not at all (setns(2)).
///
/// # Errors
/// The process does not share the machine's PID namespace, or lacks the right.
pub fn join_machine() -> Result<(), JoinError> {
    if std::process::id() == 1 {
        return Err(JoinError::NotTheMachine);
    }
    let spaces = [
        // the kernel moves no process across the border of its mover's cgroup namespace (cgroups(7), nsdelegate)
        ("cgroup", LinkNameSpaceType::ControlGroup),
        ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
        ("mnt", LinkNameSpaceType::Mount),
    ];
    // all are opened before the first is joined: with the mounts, /proc becomes another
    let mut opened = Vec::new();
    for (name, kind) in spaces {
        let failed = |errno: rustix::io::Errno| JoinError::Namespace { name, source: errno.into() };
        let path = format!("{MACHINE}/{name}");
        let space = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        opened.push((name, kind, space));
    }
    for (name, kind, space) in opened {
        let joined = move_into_link_name_space(space.as_fd(), Some(kind));
        joined.map_err(|errno| JoinError::Namespace { name, source: errno.into() })?;
    }
    Ok(())
}
