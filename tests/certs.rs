//! `cistern certs`: what it makes, what it renews, and what it leaves alone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cistern::domain::Role;
use cistern::peer::Tls;
use support::Place;

/// Runs it in this directory, and answers what it printed, or what it complained of.
fn certs(dir: &Path, args: &[&str]) -> Result<String, String> {
    let done =
        Command::new(env!("CARGO_BIN_EXE_cistern")).arg("certs").arg("--dir").arg(dir).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) }
}

/// All files and what is in them.
fn files(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read_to_string(&path).unwrap());
        }
    }
    found
}

fn identity(dir: &Path) -> String {
    Tls::open(dir).unwrap().identity().to_string()
}

#[test]
fn the_example_of_the_help_makes_what_it_says() {
    let place = Place::bare();
    let help = Command::new(env!("CARGO_BIN_EXE_cistern")).args(["certs", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let example = help.lines().find_map(|line| line.trim().strip_prefix("cistern certs --dir certs ")).unwrap();
    let dir = place.path("certs");
    let printed = certs(&dir, &example.split(' ').collect::<Vec<_>>()).unwrap();
    let lines: Vec<String> = printed.lines().map(|line| line.replace(dir.to_str().unwrap(), "certs")).collect();
    assert_eq!(
        lines,
        [
            "certs/ca.crt, certs/ca.key: the authority, for ten years; keep ca.key to yourself",
            "certs/main: controller main, for 365 days",
            "certs/a: host and node a, for 365 days",
            "certs/b: host b, for 365 days",
        ]
    );
    assert_eq!(identity(&dir.join("main")), "controller main");
    assert_eq!(identity(&dir.join("a")), "host a, node a");
    assert_eq!(identity(&dir.join("b")), "host b");
    let made = files(&dir);
    assert_eq!(made.len(), 2 + 3 * 3, "{:?}", made.keys());
    for file in made.keys() {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        let of_it = fs::metadata(file.parent().unwrap()).unwrap();
        assert_eq!(of_it.permissions().mode() & 0o777, 0o700, "{}", file.display());
    }
}

#[test]
fn the_same_again_renews_whom_it_names_and_leaves_all_else() {
    let place = Place::bare();
    let dir = place.path("certs");
    certs(&dir, &["a=host", "b=host"]).unwrap();
    let before = files(&dir);
    certs(&dir, &["--days", "1", "a=host,node", "c=controller"]).unwrap();
    let after = files(&dir);
    for (file, text) in &before {
        let is_renewed = file.ends_with("a/tls.crt") || file.ends_with("a/tls.key");
        assert_eq!(after[file] != *text, is_renewed, "{}", file.display());
    }
    assert_eq!(after.len(), before.len() + 3);
    assert_eq!(identity(&dir.join("a")), "host a, node a");
    certs(&dir, &[]).unwrap();
    assert_eq!(files(&dir), after, "without machines nothing changes");
}

#[test]
fn an_authority_is_never_replaced() {
    let place = Place::bare();
    let dir = place.path("certs");
    certs(&dir, &["a=host"]).unwrap();
    let key = fs::read(dir.join("ca.key")).unwrap();
    fs::remove_file(dir.join("ca.key")).unwrap();
    let before = files(&dir);
    let error = certs(&dir, &["a=host"]).unwrap_err();
    assert!(error.contains("ca.key is not: bring the key back to where it was, or begin anew"), "{error}");
    assert_eq!(files(&dir), before);
    // a making that was cut off goes on with its key: what was signed with it stays good
    fs::write(dir.join("ca.key"), &key).unwrap();
    fs::remove_file(dir.join("ca.crt")).unwrap();
    certs(&dir, &["b=host"]).unwrap();
    assert_eq!(fs::read(dir.join("ca.key")).unwrap(), key);
    fs::copy(dir.join("ca.crt"), dir.join("a/ca.crt")).unwrap();
    assert_eq!(identity(&dir.join("a")), "host a");
}

#[test]
fn what_nobody_would_believe_is_not_made() {
    let place = Place::bare();
    let (ours, other) = (place.path("ours"), place.path("other"));
    certs(&ours, &[]).unwrap();
    certs(&other, &[]).unwrap();
    fs::copy(other.join("ca.crt"), ours.join("ca.crt")).unwrap();
    let error = certs(&ours, &["a=host"]).unwrap_err();
    assert!(error.contains("signs for no authority in") && error.contains("that cistern made"), "{error}");
    assert!(!ours.join("a").exists());
    for (bytes, reason) in [("", "ca.key cannot be used"), ("-----BEGIN", "ca.key cannot be used")] {
        fs::write(ours.join("ca.key"), bytes).unwrap();
        let error = certs(&ours, &["a=host"]).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn one_authority_takes_over_by_the_way_that_is_written_down() {
    let place = Place::bare();
    let (old, new) = (place.path("old"), place.path("new"));
    let of = |dir: &Path| fs::read_to_string(dir.join("ca.crt")).unwrap();
    certs(&old, &["a=host"]).unwrap();
    let first = of(&old);
    certs(&new, &[]).unwrap();
    let second = of(&new);
    fs::write(old.join("ca.crt"), first.clone() + &second).unwrap();
    certs(&old, &["a=host"]).unwrap();
    assert_eq!(of(&old.join("a")), first.clone() + &second);
    assert_eq!(identity(&old.join("a")), "host a");
    fs::copy(old.join("ca.crt"), new.join("ca.crt")).unwrap();
    certs(&new, &["a=host"]).unwrap();
    assert_eq!(of(&new.join("a")), first.clone() + &second);
    assert_eq!(identity(&new.join("a")), "host a");
    fs::write(new.join("ca.crt"), &second).unwrap();
    certs(&new, &["a=host"]).unwrap();
    assert_eq!(of(&new.join("a")), second);
    assert_eq!(identity(&new.join("a")), "host a");
    // it was the new one that signed
    fs::write(new.join("a/ca.crt"), first).unwrap();
    assert!(Tls::open(&new.join("a")).is_err());
}

#[test]
fn what_is_written_wrong_is_told() {
    let place = Place::bare();
    let dir = place.path("certs");
    for (args, reason) in [
        (&["a"][..], "write NAME=ROLE, for example a=host,node"),
        (&["a="], "\"\" is not a role: controller, host or node"),
        (&["a=host,guest"], "\"guest\" is not a role: controller, host or node"),
        (&["A=host"], "\"A\" is not a machine's name"),
        (&["../a=host"], "\"../a\" is not a machine's name"),
        (&["a=host", "a=node"], "a stands twice: name each machine once, with all its roles"),
        (&["--days", "0", "a=host"], "0 is not in 1..=3650"),
    ] {
        let error = certs(&dir, args).unwrap_err();
        assert!(error.contains(reason), "{args:?}: {error}");
        assert!(!dir.exists(), "{args:?}");
    }
    certs(&dir, &["ca.key=host"]).expect_err("a machine is not given the authority's place");
    let held = fs::File::open(&dir).unwrap();
    held.try_lock().unwrap();
    let error = certs(&dir, &["a=host"]).unwrap_err();
    assert!(error.contains("another `cistern certs` works there"), "{error}");
}

#[test]
fn files_that_are_no_good_are_named() {
    let place = Place::bare();
    let (dir, other) = (place.path("certs"), place.path("other"));
    certs(&dir, &["a=host", "b=host"]).unwrap();
    certs(&other, &["a=host"]).unwrap();
    let (a, b) = (dir.join("a"), dir.join("b"));
    let good = files(&a);
    let of = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).unwrap();
    let (key, certificate) = (of(&a, "tls.key"), of(&a, "tls.crt"));
    for (file, text, reason) in [
        ("ca.crt", None, "cannot read {}/ca.crt: entity not found"),
        ("tls.crt", None, "cannot read {}/tls.crt: entity not found"),
        ("tls.key", None, "cannot read {}/tls.key: entity not found"),
        ("ca.crt", Some(String::new()), "{}/ca.crt holds no certificate in PEM"),
        ("tls.crt", Some(key.clone()), "{}/tls.crt holds no certificate in PEM"),
        ("tls.key", Some(certificate.clone()), "{}/tls.key holds no private key in PEM"),
        ("tls.crt", Some(certificate.replace("-----END", "-----EN")), "{}/tls.crt cannot be understood: "),
        ("ca.crt", Some(certificate.replace("MII", "MIM")), "{}/ca.crt cannot be used: "),
        ("tls.key", Some(of(&b, "tls.key")), "tls.key is not the key of tls.crt, in {}"),
        ("ca.crt", Some(of(&other, "ca.crt")), "tls.crt is not signed by any authority in ca.crt, in {}"),
        ("tls.crt", Some(of(&dir, "ca.crt")), "{}/tls.crt has no DNS name of the form NAME.ROLE.cistern.internal"),
    ] {
        match text {
            Some(text) => fs::write(a.join(file), text).unwrap(),
            None => fs::remove_file(a.join(file)).unwrap(),
        }
        let error = Tls::open(&a).err().unwrap_or_else(|| panic!("{reason}"));
        let (error, reason) = (cistern::domain::error::chain(&error), reason.replace("{}", a.to_str().unwrap()));
        assert!(error.starts_with(&reason), "{error}\n{reason}");
        for (path, text) in &good {
            fs::write(path, text).unwrap();
        }
        Tls::open(&a).unwrap();
    }
}

#[test]
fn a_certificate_that_is_over_is_told_so() {
    let pki = support::peers::Pki::new();
    let over = pki.issue("a", &[Role::Host], support::peers::yesterday());
    let error = Tls::open(&pki.directory("a", &pki.ca(), &over)).err().unwrap();
    let error = cistern::domain::error::chain(&error);
    assert!(error.contains("tls.crt cannot be used: ") && error.contains("certificate expired"), "{error}");
}
