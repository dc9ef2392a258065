//! What is on the disks, seen by the test's own eyes: records and images, wherever their disk is now. Cistern is not asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A record or an image under a key, in a store.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Where the disk is.
    pub slot: String,
    pub store: String,
    pub key: String,
    /// "making", "ready", "removing", "deleted"; empty for an image without a record.
    pub state: String,
    pub name: String,
    pub generation: u64,
    pub made_on: String,
    pub passed_over: Vec<String>,
    pub has_image: bool,
    pub image: PathBuf,
}

impl Seen {
    pub fn id(&self) -> String {
        format!("{}/{}", self.store, self.key)
    }

    /// In few words, for a story.
    pub fn brief(&self) -> String {
        let Seen { slot, state, generation, made_on, .. } = self;
        let passed_over = self.passed_over.join(",");
        let store = &self.store[..8.min(self.store.len())];
        format!("{slot}[{store}] {state} g{generation} made on {made_on} passed over {{{passed_over}}}")
    }
}

/// All that a store in this directory has. A store that is moved meanwhile may be seen in part: look again.
pub fn look_into(slot: &str, pool: &Path) -> Option<Vec<Seen>> {
    let identity: Value = serde_json::from_slice(&std::fs::read(pool.join("store.json")).ok()?).ok()?;
    let store = identity["store"].as_str()?.to_owned();
    let images = pool.join("images");
    let mut without_record: BTreeSet<String> = file_names(&images)?.into_iter().collect();
    let mut seen = Vec::new();
    for file in file_names(&pool.join("records"))? {
        let Some((key, state)) = file.split_once('.') else { continue };
        if !["making", "ready", "removing", "deleted"].contains(&state) {
            continue;
        }
        let image = images.join(key);
        // one that has just changed its state is seen in the next
        let Ok(text) = std::fs::read(pool.join("records").join(&file)) else { continue };
        let record: Value = serde_json::from_slice(&text).ok()?;
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let names = record["passed_over"].as_array().cloned().unwrap_or_default();
        seen.push(Seen {
            slot: slot.to_owned(),
            store: store.clone(),
            key: key.to_owned(),
            state: state.to_owned(),
            name: text("name"),
            generation: record["generation"].as_u64().unwrap_or_default(),
            made_on: text("made_on"),
            passed_over: names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
            has_image: without_record.remove(key),
            image,
        });
    }
    for key in without_record.into_iter().filter(|key| key.starts_with('v')) {
        let image = images.join(&key);
        let (slot, store, has_image) = (slot.to_owned(), store.clone(), image.exists());
        let (state, name, made_on) = (String::new(), String::new(), String::new());
        seen.push(Seen {
            slot,
            store,
            key,
            state,
            name,
            generation: 0,
            made_on,
            passed_over: vec![],
            has_image,
            image,
        });
    }
    Some(seen)
}

fn file_names(directory: &Path) -> Option<Vec<String>> {
    let files = std::fs::read_dir(directory).ok()?;
    Some(files.flatten().filter_map(|file| file.file_name().into_string().ok()).collect())
}

/// By key.
pub fn by_key(seen: &[Seen]) -> BTreeMap<&str, Vec<&Seen>> {
    let mut keys: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    for one in seen {
        keys.entry(&one.key).or_default().push(one);
    }
    keys
}

/// Keys of which more than one volume was granted to a node.
pub fn granted_twice(seen: &[Seen]) -> Vec<String> {
    let granted = |one: &&&Seen| one.state == "ready" && one.generation > 0;
    let stores = |of: &[&Seen]| of.iter().filter(granted).map(|one| one.store.clone()).collect::<BTreeSet<_>>().len();
    let twice = by_key(seen).into_iter().filter(|(_, of)| stores(of) > 1);
    twice.map(|(key, of)| format!("{key}: {}", briefs(&of))).collect()
}

pub fn briefs(of: &[&Seen]) -> String {
    of.iter().map(|one| one.brief()).collect::<Vec<_>>().join("; ")
}

/// Whether the rules leave the choice between these, all there is of a name, to the owner: never granted, and each made
/// or answered when the other could not be asked. One of two may have been deleted.
pub fn is_owners_choice(of: &[&Seen]) -> bool {
    let there: Vec<&&Seen> = of.iter().filter(|one| one.state == "ready" || one.state == "deleted").collect();
    let ready = there.iter().filter(|one| one.state == "ready").count();
    let passed =
        |one: &Seen, other: &Seen| one.passed_over.iter().any(|host| *host == other.slot || *host == other.made_on);
    let mutual = |one: &Seen, other: &Seen| passed(one, other) && passed(other, one);
    let pairs = there.iter().enumerate().flat_map(|(at, one)| there[at + 1..].iter().map(move |other| (one, other)));
    ready >= 1
        && there.len() > 1
        && there.iter().all(|one| one.state == "deleted" || one.generation == 0)
        && pairs.clone().any(|(one, other)| mutual(one, other))
}
