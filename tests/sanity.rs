//! csi-sanity v5.6.0 against `serve`, and against a controller with two hosts: every spec that applies passes, and each one
//! that is skipped is named (tests/support/sanity.rs).
//!
//! The program is made by `tests/setup`, which `tests/run` calls.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::process::Command;

use support::sanity::{Sockets, arguments, check, files};
use support::{Place, Server, Setting, may_grow_ext4, run};

/// What fails, by a part of the spec's text, where the kernel refuses to grow a mounted ext4.
const NEED_EXT4_TO_GROW: [&str; 1] = ["should work if node-expand is called after node-publish"];

/// Runs csi-sanity against a server in this place, with volumes of this access type and file system.
fn sanity(setting: Setting, place: &Place, config: &Path, access: &str, fs: &str) {
    sanity_but(setting, place, config, access, fs, &[]);
}

/// The same, where exactly these specs fail.
fn sanity_but(setting: Setting, place: &Place, config: &Path, access: &str, fs: &str, failing: &[&str]) {
    let mut server = Server::start_in(setting, place, config);
    for (name, text) in files(access, fs) {
        std::fs::write(place.path(name), text).unwrap();
    }
    let sockets = Sockets { node: &server.socket(), controller: &server.controller_socket() };
    let mut program = Command::new("csi-sanity");
    program.args(arguments(&sockets, &place.path(""), access));
    let done = program.output().expect("csi-sanity is on the PATH: tests/setup makes it");
    let output = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.success(), failing.is_empty(), "{output}");
    println!("{setting:?} {access} {fs}:");
    check(&std::fs::read(place.path("report.json")).unwrap(), &output, failing);
    assert!(server.stop().success());
    place.inventory().assert_empty();
}

#[test]
fn filesystem_volumes_in_a_directory_on_xfs() {
    let place = Place::with("xfs", "40G");
    let config = place.pool("");
    sanity(Setting::Alone, &place, &config, "mount", "xfs");
}

#[test]
fn ext4_volumes_in_a_directory_on_xfs() {
    let place = Place::with("xfs", "40G");
    let config = place.pool("");
    if may_grow_ext4() {
        sanity(Setting::Alone, &place, &config, "mount", "ext4");
    } else {
        println!("this process lacks CAP_SYS_RESOURCE: the specs that grow a mounted ext4 must fail, all others pass");
        sanity_but(Setting::Alone, &place, &config, "mount", "ext4", &NEED_EXT4_TO_GROW);
    }
}

#[test]
fn block_volumes_in_a_directory_on_xfs() {
    let place = Place::with("xfs", "40G");
    let config = place.pool("");
    sanity(Setting::Alone, &place, &config, "block", "");
}

/// A pool that is one file: fully reserved, so as small as the specs allow.
fn in_an_image() -> (Place, std::path::PathBuf) {
    let place = Place::bare();
    std::fs::create_dir_all(place.path("disk")).unwrap();
    let config = place.path("pools.yaml");
    let path = place.path("disk/pool");
    let entry = format!("pools: [{{name: p, overcommit: 4, dir: {{path: {}, image: {{size: 8Gi}}}}}}]", path.display());
    std::fs::write(&config, entry).unwrap();
    (place, config)
}

#[test]
fn filesystem_volumes_in_a_pool_that_is_one_file() {
    let (place, config) = in_an_image();
    sanity(Setting::Alone, &place, &config, "mount", "btrfs");
}

#[test]
fn block_volumes_in_a_pool_that_is_one_file() {
    let (place, config) = in_an_image();
    sanity(Setting::Alone, &place, &config, "block", "");
}

/// Both access types, with the pool on one of two hosts.
fn in_a_fleet(setting: Setting) {
    for (access, fs) in [("mount", "xfs"), ("block", "")] {
        let place = Place::with("xfs", "40G");
        let config = place.pool("");
        sanity(setting, &place, &config, access, fs);
    }
}

#[test]
fn volumes_of_a_host_that_has_the_pool_of_its_own() {
    in_a_fleet(Setting::Fleet);
}

#[test]
fn volumes_of_a_host_that_the_controller_brings_the_pool() {
    in_a_fleet(Setting::Brought);
}

#[test]
fn the_program_is_the_one_that_is_pinned() {
    let go_mod = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/go.mod")).unwrap();
    assert!(go_mod.contains("github.com/kubernetes-csi/csi-test/v5 v5.6.0"));
    let path = run(&["sh", "-c", "command -v csi-sanity"]);
    let built = run(&["go", "version", "-m", path.trim()]);
    assert!(built.contains("github.com/kubernetes-csi/csi-test/v5\tv5.6.0"), "{built}");
}
