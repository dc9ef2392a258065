//! The supervisor of a command that changes something: `cistern supervise [--cgroup DIR] -- PROGRAM ARGS`.
//!
//! It is our own binary, started by [`Command::change`](super::command::Command::change) with the open lock file of the
//! operation as its stdin. It leaves the daemon's session, runs the program to its end with nothing on stdin, and then
//! prints one report for the daemon, if that is still there. The lock is free when both have gone, so what was begun
//! is never cut in two by the end of the daemon, and the next daemon never races it.
//!
//! The supervisor reads what the program prints and keeps the last of it, so neither a daemon that does not read nor one
//! that is gone can make the program wait or die.
//!
//! In a pod the supervisor leaves the pod's cgroup as well, which ends with all that is in it ([`leave_pod`]).

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::command::{self, Capture, EVIDENCE, End};

/// The hidden word that makes our binary a supervisor.
pub const WORD: &str = "supervise";

/// Our own binary, also when its file has been replaced or the daemon sees another mount namespace.
const OURSELVES: &str = "/proc/self/exe";

/// Where supervisors go that must outlive a pod: a cgroup of our own, at the top of the machine's tree. It stays, empty
/// and without limits, until the machine is rebooted.
const CGROUP: &str = "/sys/fs/cgroup/cistern";
/// The flag that names it.
const CGROUP_FLAG: &str = "--cgroup";

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
static LEAVES_POD: AtomicBool = AtomicBool::new(false);

/// Sets the binary that supervises (and does our own hidden work), for a process that is not cistern itself: a test.
/// Only the first call counts.
pub fn set_program(path: PathBuf) {
    let _ = PROGRAM.set(path);
}

/// From now on supervisors leave the cgroup of the pod that this process is in, for one of their own. To be called when the
/// machine's namespaces have been joined.
///
/// # Errors
/// The machine has no unified cgroup tree, or it may not be changed.
pub fn leave_pod() -> std::io::Result<()> {
    match std::fs::create_dir(CGROUP) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // another file system at this place would take the directory as well
    std::fs::metadata(Path::new(CGROUP).join("cgroup.procs"))?;
    LEAVES_POD.store(true, Ordering::Relaxed);
    Ok(())
}

/// What stands before the program and its arguments.
pub(super) fn words() -> Vec<&'static str> {
    match LEAVES_POD.load(Ordering::Relaxed) {
        true => vec![WORD, CGROUP_FLAG, CGROUP, "--"],
        false => vec![WORD, "--"],
    }
}

/// The binary that supervises.
pub(super) fn program() -> &'static Path {
    PROGRAM.get().map_or(Path::new(OURSELVES), PathBuf::as_path)
}

/// What a supervisor tells the daemon: one JSON document on its stdout, after the program has ended.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// The program never ran.
    NotStarted {
        /// The reason, in words.
        why: String,
    },
    /// The program ran to its end.
    Ended {
        /// Exit code or signal.
        end: End,
        /// The last 16 KiB of its stdout.
        stdout: String,
        /// The last 16 KiB of its stderr.
        stderr: String,
    },
}

impl Report {
    /// The report in what a supervisor printed; `None` if it was not able to give one.
    pub(super) fn read(printed: &[u8]) -> Option<Report> {
        serde_json::from_slice(printed).ok()
    }
}

/// What `main` does when the first argument is [`WORD`]; `args` are those that follow it: `--cgroup` and a directory if
/// there are any, `--`, the program's absolute path, its arguments. Succeeds if there is a report, whatever it says.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut args = args.peekable();
    let cgroup = args.next_if(|word| word == CGROUP_FLAG).and_then(|_| args.next()).map(PathBuf::from);
    let (Some(dashes), Some(path)) = (args.next(), args.next()) else { return misused() };
    if dashes != "--" || !Path::new(&path).is_absolute() {
        return misused();
    }
    let report = run(cgroup.as_deref(), Path::new(&path), args);
    let Some(text) = report.and_then(|report| serde_json::to_vec(&report).ok()) else {
        return ExitCode::FAILURE;
    };
    // a daemon that is gone does not read; then the next one finds out by looking at what was made
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(&text).and_then(|()| stdout.flush());
    ExitCode::SUCCESS
}

fn misused() -> ExitCode {
    eprintln!("usage: cistern {WORD} [{CGROUP_FLAG} DIR] -- PROGRAM ARGS, with a lock file on stdin");
    ExitCode::from(2)
}

/// Runs the program to its end, out of reach of the daemon's terminal and of signals to its process group, and in a cgroup
/// if one is named. `None` if it was started but its end cannot be known.
fn run(cgroup: Option<&Path>, path: &Path, args: impl Iterator<Item = OsString>) -> Option<Report> {
    if let Err(errno) = rustix::process::setsid() {
        return Some(Report::NotStarted { why: format!("no session of its own: {errno}") });
    }
    // "0" is whoever writes it: cgroups(7)
    if let Some(cgroup) = cgroup
        && let Err(error) = std::fs::write(cgroup.join("cgroup.procs"), "0")
    {
        return Some(Report::NotStarted { why: format!("cannot enter {}: {error}", cgroup.display()) });
    }
    let mut command = command::program(path);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Some(Report::NotStarted { why: error.to_string() }),
    };
    let stdout = Capture::start(child.stdout.take(), EVIDENCE);
    let stderr = Capture::start(child.stderr.take(), EVIDENCE);
    let end = End::from(child.wait().ok()?);
    let ((stdout, _), (stderr, _)) = (stdout.finish().into_text(), stderr.finish().into_text());
    Some(Report::Ended { end, stdout, stderr })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_is_written() {
        for (report, text) in [
            (
                Report::Ended { end: End::Exited(1), stdout: "a".to_owned(), stderr: "b\n".to_owned() },
                r#"{"ended":{"end":{"exited":1},"stdout":"a","stderr":"b\n"}}"#,
            ),
            (
                Report::Ended { end: End::Killed(9), stdout: String::new(), stderr: String::new() },
                r#"{"ended":{"end":{"killed":9},"stdout":"","stderr":""}}"#,
            ),
            (Report::NotStarted { why: "no".to_owned() }, r#"{"not_started":{"why":"no"}}"#),
        ] {
            assert_eq!(serde_json::to_string(&report).unwrap(), text);
            assert_eq!(Report::read(text.as_bytes()), Some(report));
        }
        for broken in ["", "{", r#"{"ended":{"end":{"exited":1}}}"#] {
            assert_eq!(Report::read(broken.as_bytes()), None, "{broken}");
        }
    }
}
