//! The arrows of the house: which module may use which, as docs/design.md says. Read from the code itself.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Module, and what it may use besides itself and `domain`. Only the program's own files may use all.
const ARROWS: [(&str, &[&str]); 12] = [
    ("domain", &[]),
    ("config", &[]),
    ("machine", &[]),
    ("medium", &["machine"]),
    ("share", &["machine"]),
    ("pool", &["machine", "medium", "share"]),
    ("node", &["machine", "pool", "share"]),
    ("csi", &["node", "pool", "share", "proto"]),
    ("peer", &["config", "csi", "machine", "pool", "proto"]),
    ("proto", &[]),
    ("route", &["config", "csi", "peer", "pool", "proto"]),
    ("kube", &["config", "peer", "proto", "route"]),
];

fn source(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(below)
}

/// Every Rust file at or below this path.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|entry| files(&entry)).filter(|file| file.extension().is_some_and(|end| end == "rs")).collect()
}

/// The files of a module: a file or a folder.
fn files_of(module: &str) -> Vec<PathBuf> {
    let (folder, file) = (source(module), source(&format!("{module}.rs")));
    [folder, file].iter().filter(|path| path.exists()).flat_map(|path| files(path)).collect()
}

/// The modules of the crate that a text names after `crate::`, also within braces.
fn used(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut used = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let listed = match rest.strip_prefix('{') {
            Some(inner) => inner.split('}').next().unwrap_or_default().split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for name in listed {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            used.insert(name[..end].to_owned());
        }
    }
    used
}

#[test]
fn modules_use_only_what_they_may() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut wrong = Vec::new();
    for (module, may) in &allowed {
        let files = files_of(module);
        assert!(!files.is_empty(), "{module} has no files");
        for file in files {
            for name in used(&fs::read_to_string(&file).unwrap()) {
                let is_module = allowed.contains_key(name.as_str());
                if is_module && name != *module && name != "domain" && !may.contains(&name.as_str()) {
                    wrong.push(format!("{} uses {name}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_module_has_its_arrows() {
    let text = fs::read_to_string(source("lib.rs")).unwrap();
    let modules = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let known: Vec<&str> = ARROWS.iter().map(|(module, _)| *module).collect();
    for module in modules {
        assert!(known.contains(&module), "{module}: say in ARROWS what it may use");
    }
}

#[test]
fn the_code_that_reads_use_lines_sees_them() {
    let text = "use crate::{pool, node::Node};\n// crate::comment\nlet x = crate::medium::dir::Dir;";
    let seen: Vec<String> = used(text).into_iter().collect();
    assert_eq!(seen, ["medium", "node", "pool"]);
}

#[test]
fn unsafe_is_in_machine_alone() {
    for file in files(&source("")) {
        let text = fs::read_to_string(&file).unwrap();
        let is_machine = file.starts_with(source("machine"));
        assert!(is_machine || !text.contains("unsafe"), "{} has unsafe", file.display());
    }
}

/// What is brought to a disk has a name, so that it can be left out and is seen to be missed (tests/power.rs).
#[test]
fn fsync_is_called_in_one_place() {
    let own = [source("machine/file/durable.rs"), source("machine/device.rs")];
    // a probe of direct I/O, whose file is removed
    let probe = source("machine/file/space.rs");
    for file in files(&source("")) {
        let text = fs::read_to_string(&file).unwrap();
        let is_free = own.contains(&file) || file == probe || file.file_name().unwrap() == "tests.rs";
        let calls = ["sync_all()", "sync_data()", "fsync(", "fdatasync(", "syncfs("].map(|call| text.contains(call));
        assert!(is_free || !calls.contains(&true), "{} calls fsync itself", file.display());
    }
}

#[test]
fn every_file_says_what_lives_there() {
    for file in files(&source("")) {
        let text = fs::read_to_string(&file).unwrap();
        let is_tests = file.file_name().unwrap() == "tests.rs";
        assert!(is_tests || text.starts_with("//! "), "{} has no //!", file.display());
    }
}
