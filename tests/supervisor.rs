//! The supervisor as the daemon uses it: what is begun is brought to its end, whatever happens to the daemon.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use cistern::machine::command::{self, CommandError, Tool};
use cistern::machine::supervisor;
use rustix::process::{Pid, Signal, kill_process_group};

const CISTERN: &str = env!("CARGO_BIN_EXE_cistern");
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of its own with a lock file in it; both go at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("cistern-supervisor-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        Place(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The lock, taken.
    fn lock(&self) -> File {
        let lock = File::open(self.join("lock")).unwrap();
        lock.try_lock().unwrap();
        lock
    }

    fn is_locked(&self) -> bool {
        File::open(self.join("lock")).unwrap().try_lock().is_err()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `cistern supervise -- /bin/sh -c SCRIPT` with the lock, its stdout to be read by the caller.
fn supervise(script: &str, lock: File) -> Child {
    let mut command = Command::new(CISTERN);
    command.args([supervisor::WORD, "--", "/bin/sh", "-c", script]);
    command.stdin(Stdio::from(lock)).stdout(Stdio::piped()).spawn().unwrap()
}

fn report(mut supervisor: Child) -> serde_json::Value {
    let mut printed = String::new();
    supervisor.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(supervisor.wait().unwrap().success());
    serde_json::from_str(&printed).unwrap()
}

/// A script that tells when it has begun, waits for `go`, prints more than any pipe holds, and leaves `done`.
fn long_work(place: &Path) -> String {
    let at = place.display();
    format!(
        "touch {at}/begun; while [ ! -e {at}/go ]; do sleep 0.02; done; \
         i=0; while [ $i -lt 3000 ]; do echo line $i of a long and useless output; echo other $i >&2; i=$((i+1)); done; \
         touch {at}/done"
    )
}

#[test]
fn the_tool_survives_the_daemon_and_holds_the_lock() {
    let place = Place::new("killed");
    // a shell stands for the daemon: a process group of its own, with a reader on the supervisor's pipe
    let script = ["-c", "\"$0\" supervise -- /bin/sh -c \"$1\" | cat", CISTERN, &long_work(&place.0)];
    let lock = Stdio::from(place.lock());
    let mut daemon = Command::new("/bin/sh").args(script).stdin(lock).process_group(0).spawn().unwrap();
    wait_until("the tool has begun", || place.join("begun").exists());
    assert!(place.is_locked());

    kill_process_group(Pid::from_child(&daemon), Signal::KILL).unwrap();
    assert!(!daemon.wait().unwrap().success());
    std::thread::sleep(Duration::from_millis(100));
    assert!(place.is_locked() && !place.join("done").exists());

    fs::write(place.join("go"), "").unwrap();
    wait_until("the lock is free", || !place.is_locked());
    assert!(place.join("done").exists());
}

#[test]
fn a_daemon_that_does_not_read_holds_nothing_up() {
    let place = Place::new("deaf");
    let supervisor = supervise(&long_work(&place.0), place.lock());
    fs::write(place.join("go"), "").unwrap();
    wait_until("the work is done", || place.join("done").exists());
    // read only now
    let report = &report(supervisor)["ended"];
    for (stream, last) in [("stdout", "line 2999 of a long and useless output\n"), ("stderr", "other 2999\n")] {
        let text = report[stream].as_str().unwrap();
        assert!(text.len() <= 16 << 10 && text.ends_with(last), "{stream}: {} bytes", text.len());
    }
    assert!(!place.is_locked());
}

#[test]
fn the_report_tells_how_it_ended() {
    let place = Place::new("report");
    for (script, expected) in [
        ("exit 0", r#"{"ended":{"end":{"exited":0},"stdout":"","stderr":""}}"#),
        ("echo out; echo err >&2; exit 3", r#"{"ended":{"end":{"exited":3},"stdout":"out\n","stderr":"err\n"}}"#),
        ("kill -9 $$", r#"{"ended":{"end":{"killed":9},"stdout":"","stderr":""}}"#),
        ("cat; printf '\\377'", "{\"ended\":{\"end\":{\"exited\":0},\"stdout\":\"\u{fffd}\",\"stderr\":\"\"}}"),
    ] {
        let expected: serde_json::Value = serde_json::from_str(expected).unwrap();
        assert_eq!(report(supervise(script, place.lock())), expected, "{script}");
        assert!(!place.is_locked());
    }
}

#[test]
fn the_tool_is_in_another_session_and_does_not_see_the_lock() {
    let place = Place::new("session");
    let report = report(supervise("readlink /proc/self/fd/*; cut -d' ' -f6 /proc/self/stat", place.lock()));
    let printed = report["ended"]["stdout"].as_str().unwrap();
    assert!(!printed.contains("/lock"), "{printed}");
    let session: i32 = printed.lines().last().unwrap().parse().unwrap();
    assert_ne!(session, rustix::process::getsid(None).unwrap().as_raw_pid());
}

#[test]
fn a_process_that_the_tool_leaves_behind_holds_nothing_up() {
    let place = Place::new("orphan");
    let began = Instant::now();
    let report = report(supervise("sleep 30 & echo $!", place.lock()));
    assert!(began.elapsed() < Duration::from_secs(20) && !place.is_locked());
    let left: i32 = report["ended"]["stdout"].as_str().unwrap().trim().parse().unwrap();
    rustix::process::kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn misuse_runs_nothing() {
    for args in [&[][..], &["--"], &["/bin/true"], &["--", "true"]] {
        let status = Command::new(CISTERN).arg(supervisor::WORD).args(args).stderr(Stdio::null()).status().unwrap();
        assert_eq!(status.code(), Some(2), "{args:?}");
    }
    let absent = Command::new(CISTERN).args([supervisor::WORD, "--", "/nowhere/tool"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&absent.stdout).unwrap();
    assert!(report["not_started"]["why"].as_str().unwrap().contains("No such file"), "{report}");
}

/// The door itself, with this binary in the place of the test's.
fn door() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| supervisor::set_program(CISTERN.into()));
}

#[test]
fn a_change_gives_what_the_tool_printed_or_all_of_its_failure() {
    door();
    let place = Place::new("change");
    let lock = place.lock();
    let started = command::commands_started();
    let output = command::Command::new(Tool::MkfsXfs).arg("-V").change(&lock).unwrap();
    assert!(output.stdout.starts_with("mkfs.xfs version"), "{output:?}");
    let error = command::Command::new(Tool::Tune2fs).args(["-l", "/dev/null"]).change(&lock).unwrap_err();
    assert_eq!(error.exit_code(), Some(1));
    assert_eq!(error.evidence().unwrap().argv, ["tune2fs", "-l", "/dev/null"]);
    assert!(error.to_string().starts_with("tune2fs exited with 1: "), "{error}");
    assert!(command::commands_started() >= started + 2);
    // both have let go of it, the daemon has not
    assert!(place.is_locked());
    drop(lock);
    assert!(!place.is_locked());
}

#[test]
fn an_unknown_word_of_our_own_fails_as_a_tool_does() {
    door();
    let place = Place::new("own");
    let error = command::Command::own("no-such-word").change(&place.lock()).unwrap_err();
    assert!(matches!(error, CommandError::Failed { .. }), "{error:?}");
}
