//! Names that the code gives to its steps and to what it brings to a disk: tests take them from there, so that a new one is
//! covered by itself; and what is tried in turn.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// Every name in a `step!` of the code.
pub fn steps() -> Vec<String> {
    named_in(&["step!("])
}

/// Every name under which something is brought to a disk.
pub fn syncs() -> Vec<String> {
    named_in(&["sync(", "sync_dir(", "is_left_out("])
}

fn named_in(words: &[&str]) -> Vec<String> {
    let mut names = BTreeSet::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("step.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("mod tests {").next().unwrap();
                for rest in words.iter().flat_map(|word| code.split(word).skip(1)) {
                    let name = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'));
                    names.extend(name.map(|(name, _)| name.to_owned()));
                }
            }
        }
    }
    names.into_iter().collect()
}

/// The commit chooses what is tried this time: all comes by turns.
pub fn seed_of_commit() -> u64 {
    // hosts of a lab have no git: there tests/run tells it
    let told = std::env::var("CISTERN_COMMIT");
    let commit = told.unwrap_or_else(|_| super::run(&["git", "-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"]));
    println!("rows and seeds in turn, chosen by commit {commit}");
    u64::from_str_radix(&commit[..8], 16).unwrap()
}
