//! The lab of a test's own (tests/support/lab.rs) does what it says: what other tests of hosts stand on.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::{Path, PathBuf};

use support::client::MIB;
use support::{Lab, Volume, eventually, run};

const SOCKET: &str = "/run/cistern/csi.sock";

#[test]
fn a_cistern_in_a_host_serves_a_test_on_this_machine() {
    let lab = Lab::up(&[("a", "2G"), ("b", "")]);
    let (a, b) = (lab.host("a"), lab.host("b"));
    a.sh("mkfs.xfs -q /dev/ubdb; mkdir -p /place/disk; mount /dev/ubdb /place/disk");
    a.write("/place/pools.yaml", 0, b"pools:\n- name: p\n  dir: { path: /place/disk/pool }\n");
    let serve = ["serve", "--node-id", "a", "--config", "/place/pools.yaml", "--data", "/place/data"];
    a.start_cistern(&serve, &[("CISTERN_LOG_FORMAT", "json")]);
    let csi = a.client(SOCKET);
    let mut volume = Volume::block("it's one", 32 * MIB);
    csi.create(&mut volume).unwrap();
    let device = csi.use_at(&mut volume, Path::new("/place/v")).unwrap();
    a.write(&device, 4096, b"what a guest wrote");
    assert_eq!(a.read(&device, 4100, 7), b" a gues");
    let there = a.inventory("/place");
    assert_eq!(
        (there.files.len(), there.notes.len(), there.loops.len(), there.mounts.len()),
        (2, 1, 1, 1),
        "{there:?}"
    );

    // the cable
    let ping = |to: &str| b.try_run(&["ping", "-c1", "-W1", to]).status.success();
    assert!(ping(a.address()));
    a.cut();
    assert!(!ping(a.address()));
    a.mend();
    assert!(ping(a.address()));
    assert!(ping(&lab.gateway()));
    let knock = format!("exec 3<>/dev/tcp/{}/22", b.address());
    assert!(lab.enter("bash").args(["-c", &knock]).status().unwrap().success(), "this machine is on the network");

    // the power: the disk keeps what was synced, and the server is started by whoever wants it
    a.sh("echo lost >/place/lost");
    a.kill();
    a.up();
    assert!(!a.runs_cistern());
    assert!(!a.try_run(&["test", "-s", "/place/lost"]).status.success());
    a.run(&["mount", "/dev/ubdb", "/place/disk"]);
    a.start_cistern(&serve, &[]);
    let csi = a.client(SOCKET);
    let device = csi.use_at(&mut volume, Path::new("/place/v")).unwrap();
    assert_eq!(a.read(&device, 4096, 18), b"what a guest wrote");

    // the server alone
    a.kill_cistern();
    a.start_cistern(&serve, &[]);
    let csi = a.client(SOCKET);
    csi.release(&volume, Path::new("/place/v")).unwrap();
    csi.delete(&volume).unwrap();
    eventually("nothing is left", || a.inventory("/place").loops.is_empty().then_some(()));
    a.inventory("/place").assert_empty();
    a.stop_cistern();
    assert!(!a.runs_cistern());
    assert!(a.log().starts_with("{\"timestamp"), "{}", a.log());
    assert_eq!(a.pull("/etc/hostname"), b"a\n");
}

#[test]
fn a_lab_goes_with_its_test() {
    let lab = Lab::up(&[("a", "")]);
    let (name, directory) = (lab.name().to_owned(), lab.directory().to_owned());
    assert!(run(&["ip", "netns"]).contains(&name));
    // a program that a test has left behind is no reason to stay
    let mut left = lab.enter("sleep").arg("1000").spawn().unwrap();
    lab.host("a").kill();
    drop(lab);
    assert!(!run(&["ip", "netns"]).contains(&name));
    assert!(!PathBuf::from(&directory).exists());
    assert!(!left.wait().unwrap().success());
}
