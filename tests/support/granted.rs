//! Rights in the Kubernetes API: those that roles grant, and those that an audit log shows to be used.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// A verb on a resource, such as `patch` on `volumeattachments.storage.k8s.io/status`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    pub resource: String,
    pub verb: String,
}

impl Right {
    pub fn new(resource: &str, verb: &str) -> Right {
        Right { resource: resource.to_owned(), verb: verb.to_owned() }
    }
}

/// `resource[.group][/subresource]`, as kubectl writes them.
fn resource(group: &str, name: &str, subresource: &str) -> String {
    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
    let subresource = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
    format!("{name}{group}{subresource}")
}

fn words<'a>(object: &'a Value, key: &str) -> Vec<&'a str> {
    object[key].as_array().into_iter().flatten().map(|word| word.as_str().unwrap()).collect()
}

/// What the roles among these objects grant.
pub fn granted(objects: &[Value]) -> BTreeSet<Right> {
    let is_role = |object: &&Value| ["Role", "ClusterRole"].iter().any(|kind| object["kind"] == *kind);
    let rules = objects.iter().filter(is_role).flat_map(|role| role["rules"].as_array().unwrap());
    let mut rights = BTreeSet::new();
    for rule in rules {
        for (group, name) in words(rule, "apiGroups")
            .into_iter()
            .flat_map(|group| words(rule, "resources").into_iter().map(move |name| (group, name)))
        {
            let (name, subresource) = name.split_once('/').unwrap_or((name, ""));
            for verb in words(rule, "verbs") {
                rights.insert(Right::new(&resource(group, name, subresource), verb));
            }
        }
    }
    rights
}

/// What this account was seen to use, and by which program, in the lines of the API server's audit log (one event in JSON each;
/// the level Metadata is enough). What was refused is among it: it was called.
pub fn used(log: &str, account: &str) -> BTreeMap<Right, BTreeSet<String>> {
    let mut rights: BTreeMap<Right, BTreeSet<String>> = BTreeMap::new();
    for line in log.lines().filter(|line| !line.is_empty()) {
        let event: Value = serde_json::from_str(line).unwrap();
        let object = &event["objectRef"];
        // a path without an object, such as /apis, needs no role
        if event["user"]["username"] != account || object["resource"].is_null() {
            continue;
        }
        let text = |key: &str| object[key].as_str().unwrap_or_default();
        let verb = event["verb"].as_str().unwrap();
        let right = Right::new(&resource(text("apiGroup"), text("resource"), text("subresource")), verb);
        let program = event["userAgent"].as_str().unwrap_or_default().split('/').next().unwrap_or_default();
        rights.entry(right).or_default().insert(program.to_owned());
    }
    rights
}
