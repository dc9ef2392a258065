//! The one door for external commands.
//!
//! A command is a program of a fixed list and its arguments: no shell, no `PATH`, no environment but `LC_ALL=C`, nothing
//! on its stdin, `/` as its directory. Arguments are seen by everybody on the machine and kept in errors: no secret may be
//! one. Whoever starts a program elsewhere in the code goes around what this module promises:
//!
//! - [`Command::read`] is for what only reads; it is killed at its limit.
//! - [`Command::change`] is for what changes something; it is never cut in two, whatever happens to the daemon (see
//!   [`super::supervisor`]).
//! - A failure keeps all that is known: arguments, exit status or signal, the last of stdout and stderr.

mod capture;
mod tool;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};

pub(super) use capture::Capture;
pub use tool::{Tool, Version};

use super::supervisor;

/// How much of stdout and stderr is kept of a command that changes, and of stderr of every command, in bytes.
pub(super) const EVIDENCE: usize = 16 << 10;
/// The longest report that a command which reads may print, in bytes.
const REPORT: usize = 64 << 20;
/// How long a killed command may take to be gone; one that hangs in the kernel longer is left to a thread.
const REAPING: Duration = Duration::from_secs(2);

static STARTED: AtomicU64 = AtomicU64::new(0);

/// What is counted of all commands of this process.
static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    ended: Family::default(),
    // from 4 ms to some minutes
    seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.004, 4.0, 9))),
});

struct Metrics {
    ended: Family<Ended, Counter>,
    seconds: Family<Ran, Histogram>,
}

/// A tool, or a hidden word of our own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ran {
    tool: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    tool: &'static str,
    /// `succeeded`, `failed` or `killed`
    end: &'static str,
}

/// Has what is counted of commands shown with the rest.
pub fn register_metrics(registry: &mut Registry) {
    let Metrics { ended, seconds } = &*METRICS;
    registry.register("tool_runs", "External commands that have ended", ended.clone());
    registry.register_with_unit("tool_duration", "How long external commands took", Unit::Seconds, seconds.clone());
}

/// How many commands this process has started; a number without noise for benches.
pub fn commands_started() -> u64 {
    STARTED.load(Ordering::Relaxed)
}

/// A program and its arguments.
#[derive(Debug, Clone)]
pub struct Command {
    program: Program,
    args: Vec<OsString>,
}

#[derive(Debug, Clone, Copy)]
enum Program {
    Tool(Tool),
    /// Our own binary, called with this hidden word.
    Own(&'static str),
}

/// What a command that succeeded printed.
#[derive(Debug)]
pub struct Output {
    /// All of stdout for [`Command::read`], the last 16 KiB for [`Command::change`].
    pub stdout: String,
    /// The last 16 KiB of stderr.
    pub stderr: String,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// What is kept of a command that did not do what it should.
#[derive(Debug)]
pub struct Evidence {
    /// The program's name and its arguments.
    pub argv: Vec<String>,
    /// The last 16 KiB of stdout.
    pub stdout: String,
    /// The last 16 KiB of stderr.
    pub stderr: String,
}

/// Why a command failed. Shown in one line; `Debug` and [`Evidence`] have the rest.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The machine lacks the tool.
    #[error("{tool} is not installed (package {package})")]
    NotInstalled {
        /// The tool's name.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The program never ran.
    #[error("{program} could not be started")]
    Start {
        /// The program's name.
        program: String,
        /// What the system, or the supervisor, said.
        #[source]
        source: io::Error,
    },
    /// The command was killed at its limit.
    #[error("{} did not end within {limit:?}", evidence.program())]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// What it had printed.
        evidence: Box<Evidence>,
    },
    /// The command ran and failed.
    #[error("{} {end}{}", evidence.program(), evidence.last_words())]
    Failed {
        /// Exit code or signal.
        end: End,
        /// What it printed.
        evidence: Box<Evidence>,
    },
    /// The command succeeded, but printed something else than it should.
    #[error("{} did not print {wanted}", evidence.program())]
    Output {
        /// What was looked for.
        wanted: &'static str,
        /// What it printed.
        evidence: Box<Evidence>,
    },
    /// The supervisor of the command ended without telling how the command did: it may have run or not.
    #[error("the supervisor of {} ended without a report ({status})", evidence.program())]
    Lost {
        /// How the supervisor ended.
        status: ExitStatus,
        /// The command's arguments, and what the supervisor printed.
        evidence: Box<Evidence>,
    },
}

impl Command {
    /// A call of one of the machine's tools.
    pub fn new(tool: Tool) -> Command {
        Command { program: Program::Tool(tool), args: Vec::new() }
    }

    /// A call of our own binary with a hidden word.
    pub fn own(word: &'static str) -> Command {
        Command { program: Program::Own(word), args: Vec::new() }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Command {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Runs a command that only reads, and kills it (with the processes it started) when `limit` is over.
    ///
    /// # Errors
    /// The tool is missing or cannot be started, is killed at its limit, fails, or prints more than 64 MiB.
    pub fn read(&self, limit: Duration) -> Result<Output, CommandError> {
        let words = self.words()?;
        let began = Instant::now();
        let mut command = program(&words[0]);
        // a group of its own, so that the processes it starts can be killed with it
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|source| self.not_started(source))?;
        STARTED.fetch_add(1, Ordering::Relaxed);
        let stdout = Capture::start(child.stdout.take(), REPORT);
        let stderr = Capture::start(child.stderr.take(), EVIDENCE);
        let status = wait(child, limit).map_err(|source| self.not_started(source))?;
        let ((stdout, cut), (stderr, _)) = (stdout.finish().into_text(), stderr.finish().into_text());
        let output = Output { stdout, stderr };
        let end = status.map_or(End::Killed(Signal::KILL.as_raw()), End::from);
        self.log(end, began);
        match end {
            _ if status.is_none() => Err(CommandError::TimedOut { limit, evidence: self.evidence(output) }),
            End::Exited(0) if cut => Err(self.not_understood("a report of at most 64 MiB", &output)),
            End::Exited(0) => Ok(output),
            end => Err(CommandError::Failed { end, evidence: self.evidence(output) }),
        }
    }

    /// Runs a command that changes something, to its end, under a supervisor that holds `lock` as long as the command runs
    /// (the same open file description: a lock of flock(2) or an open-file-description lock stays until the daemon *and*
    /// the supervisor have closed it; do not unlock it, close it). Neither a signal to the daemon nor its death reach the
    /// command.
    ///
    /// # Errors
    /// The tool is missing or cannot be started, or fails; [`CommandError::Lost`] leaves open what was done.
    pub fn change(&self, lock: &File) -> Result<Output, CommandError> {
        let words = self.words()?;
        let began = Instant::now();
        let held = lock.try_clone().map_err(|source| self.not_started(source))?;
        STARTED.fetch_add(1, Ordering::Relaxed);
        let supervised = program(supervisor::program().as_os_str())
            .args(supervisor::words())
            .args(&words)
            // as its stdin, and not as a descriptor without close-on-exec, which a child started meanwhile would inherit
            .stdin(Stdio::from(held))
            .output()
            .map_err(|source| self.not_started(source))?;
        let Some(report) = supervisor::Report::read(&supervised.stdout) else {
            let stderr = String::from_utf8_lossy(&supervised.stderr).into_owned();
            let evidence = self.evidence(Output { stdout: String::new(), stderr });
            return Err(CommandError::Lost { status: supervised.status, evidence });
        };
        match report {
            supervisor::Report::NotStarted { why } => Err(self.not_started(io::Error::other(why))),
            supervisor::Report::Ended { end, stdout, stderr } => {
                self.log(end, began);
                let output = Output { stdout, stderr };
                match end {
                    End::Exited(0) => Ok(output),
                    end => Err(CommandError::Failed { end, evidence: self.evidence(output) }),
                }
            }
        }
    }

    /// The error for a command that succeeded without printing `wanted`.
    pub fn not_understood(&self, wanted: &'static str, output: &Output) -> CommandError {
        let last = &output.stdout.as_bytes()[output.stdout.len().saturating_sub(EVIDENCE)..];
        let output = Output { stdout: String::from_utf8_lossy(last).into_owned(), stderr: output.stderr.clone() };
        CommandError::Output { wanted, evidence: self.evidence(output) }
    }

    /// The program's absolute path and the arguments.
    fn words(&self) -> Result<Vec<OsString>, CommandError> {
        let mut words = match self.program {
            Program::Tool(tool) => {
                let missing = CommandError::NotInstalled { tool: tool.name(), package: tool.package() };
                vec![tool.find().ok_or(missing)?.into_os_string()]
            }
            Program::Own(word) => vec![supervisor::program().as_os_str().to_owned(), OsString::from(word)],
        };
        words.extend_from_slice(&self.args);
        Ok(words)
    }

    fn name(&self) -> &'static str {
        match self.program {
            Program::Tool(tool) => tool.name(),
            Program::Own(word) => word,
        }
    }

    fn argv(&self) -> Vec<String> {
        let args = self.args.iter().map(|arg| arg.to_string_lossy().into_owned());
        std::iter::once(self.name().to_owned()).chain(args).collect()
    }

    fn evidence(&self, output: Output) -> Box<Evidence> {
        Box::new(Evidence { argv: self.argv(), stdout: output.stdout, stderr: output.stderr })
    }

    fn not_started(&self, source: io::Error) -> CommandError {
        CommandError::Start { program: self.name().to_owned(), source }
    }

    fn log(&self, end: End, began: Instant) {
        let (tool, took) = (self.name(), began.elapsed());
        tracing::debug!(argv = ?self.argv(), %end, ?took, "command");
        let end = match end {
            End::Exited(0) => "succeeded",
            End::Exited(_) => "failed",
            End::Killed(_) => "killed",
        };
        METRICS.ended.get_or_create(&Ended { tool, end }).inc();
        METRICS.seconds.get_or_create(&Ran { tool }).observe(took.as_secs_f64());
    }
}

/// The start of every process: this program, a clean environment, and a directory that holds up no unmount.
pub(super) fn program(path: impl AsRef<Path>) -> std::process::Command {
    let mut command = std::process::Command::new(path.as_ref());
    command.env_clear().env("LC_ALL", "C").current_dir("/");
    command
}

/// Waits for the child; `None` if it had to be killed at its limit.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(&child);
    let ended = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => ends_within(&pidfd, limit).map(|ended| (pidfd, ended)),
        Err(errno) => Err(errno.into()),
    };
    if let Ok((_, true)) = ended {
        return child.wait().map(Some);
    }
    // the child is not reaped yet, so its number still is its own and its group's
    let _ = kill_process_group(pid, Signal::KILL);
    match ended {
        Ok((pidfd, _)) if matches!(ends_within(&pidfd, REAPING), Ok(true)) => child.wait().map(|_| None),
        ended => {
            // it hangs in the kernel, where no signal reaches it; the thread collects it whenever it comes out
            thread::spawn(move || child.wait());
            ended.map(|_| None)
        }
    }
}

/// Whether the process ends before the limit is over.
fn ends_within(pidfd: &impl std::os::fd::AsFd, limit: Duration) -> io::Result<bool> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl CommandError {
    /// The exit code, if the command ran and exited with one.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            CommandError::Failed { end: End::Exited(code), .. } => Some(*code),
            _ => None,
        }
    }

    /// What is kept of a command that ran.
    pub fn evidence(&self) -> Option<&Evidence> {
        match self {
            CommandError::NotInstalled { .. } | CommandError::Start { .. } => None,
            CommandError::TimedOut { evidence, .. }
            | CommandError::Failed { evidence, .. }
            | CommandError::Output { evidence, .. }
            | CommandError::Lost { evidence, .. } => Some(evidence),
        }
    }
}

impl Evidence {
    fn program(&self) -> &str {
        self.argv.first().map_or("", String::as_str)
    }

    /// The last line of stderr that says something, after a colon.
    fn last_words(&self) -> String {
        let line = self.stderr.lines().map(str::trim).rfind(|line| !line.is_empty());
        line.map(|line| format!(": {line}")).unwrap_or_default()
    }
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> End {
        match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, Some(signal)) => End::Killed(signal),
            // a status that wait(2) gives for a stopped process only, which is never asked for
            (None, None) => End::Killed(0),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Exited(code) => write!(f, "exited with {code}"),
            End::Killed(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn evidence(stderr: &str) -> Box<Evidence> {
        Box::new(Evidence {
            argv: vec!["mkfs.ext4".to_owned(), "-q".to_owned()],
            stdout: String::new(),
            stderr: stderr.to_owned(),
        })
    }

    #[test]
    fn an_error_is_one_line() {
        for (error, line) in [
            (
                CommandError::Failed { end: End::Exited(1), evidence: evidence("mke2fs 1.47\nno space\n\n") },
                "mkfs.ext4 exited with 1: no space",
            ),
            (CommandError::Failed { end: End::Killed(9), evidence: evidence("") }, "mkfs.ext4 was killed by signal 9"),
            (
                CommandError::TimedOut { limit: Duration::from_secs(5), evidence: evidence("") },
                "mkfs.ext4 did not end within 5s",
            ),
            (CommandError::Output { wanted: "a version", evidence: evidence("") }, "mkfs.ext4 did not print a version"),
            (
                CommandError::NotInstalled { tool: "mkfs.ext4", package: "e2fsprogs" },
                "mkfs.ext4 is not installed (package e2fsprogs)",
            ),
            (
                CommandError::Start { program: "mkfs.ext4".to_owned(), source: io::ErrorKind::OutOfMemory.into() },
                "mkfs.ext4 could not be started",
            ),
            (
                CommandError::Lost { status: ExitStatus::from_raw(9), evidence: evidence("") },
                "the supervisor of mkfs.ext4 ended without a report (signal: 9 (SIGKILL))",
            ),
        ] {
            assert_eq!(error.to_string(), line);
        }
    }

    #[test]
    fn reading_gives_what_was_printed() {
        let before = commands_started();
        let output = Command::new(Tool::MkfsXfs).arg("-V").read(Duration::from_secs(10)).unwrap();
        assert!(output.stdout.starts_with("mkfs.xfs version"), "{output:?}");
        assert!(commands_started() > before);
    }

    #[test]
    fn a_failure_keeps_all_of_it() {
        let error = Command::new(Tool::Tune2fs).args(["-l", "/dev/null"]).read(Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.exit_code(), Some(1));
        let kept = error.evidence().unwrap();
        assert_eq!(kept.argv, ["tune2fs", "-l", "/dev/null"]);
        assert!(kept.stdout.starts_with("tune2fs 1."), "{kept:?}");
        assert!(kept.stderr.contains("/dev/null"), "{kept:?}");
        assert!(error.to_string().starts_with("tune2fs exited with 1: "), "{error}");
    }

    /// `sh` stands for tools that hang: only a test starts one that is not in the list.
    fn shell(script: &str) -> Child {
        let mut command = program("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn().unwrap()
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children_and_reaped() {
        let mut child = shell("sleep 1000 & sleep 1000");
        let (pid, mut stdout) = (child.id(), child.stdout.take().unwrap());
        assert_eq!(wait(child, Duration::from_millis(50)).unwrap(), None);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        // the pipe ends when nobody holds it any more
        assert_eq!(io::Read::read(&mut stdout, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_status_of_a_command_that_ends_in_time_is_known() {
        for (script, end) in [("exit 0", End::Exited(0)), ("exit 7", End::Exited(7)), ("kill -9 $$", End::Killed(9))] {
            let status = wait(shell(script), Duration::from_secs(10)).unwrap().unwrap();
            assert_eq!(End::from(status), end, "{script}");
        }
    }

    #[test]
    fn the_environment_is_cleared() {
        let output = program("/usr/bin/env").output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "LC_ALL=C\n");
    }
}
