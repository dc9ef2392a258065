//! Whoever reads the README or docs/quickstart.md takes their commands one after another, as they stand there. So does this:
//! a block that is marked `sh` is run, one that is marked `text` is what the block before it ends with, and others are not
//! allowed there. Only kubectl and helm are the cluster's own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use crate::support::{Cluster, eventually};
use crate::{InstalledAtLast, POOLS, assert_nothing_is_left, cluster};

/// A block of a document, ```` ```KIND ```` to ```` ``` ````.
struct Block {
    /// The document's line that it begins at.
    line: usize,
    kind: String,
    text: String,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = document.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if let Some(kind) = line.strip_prefix("```") {
            let text = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect::<Vec<_>>();
            blocks.push(Block { line: number + 1, kind: kind.to_owned(), text: text.join("\n") });
        }
    }
    blocks
}

/// A page of the checkout in two: the part that begins with this heading, and what is around it. Each has empty lines in the
/// other's place.
fn split(page: &str, heading: &str) -> (String, String) {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.iter().position(|line| *line == heading);
    let start = start.unwrap_or_else(|| panic!("{page} has no part {heading:?}"));
    let rest = lines.iter().skip(start + 1);
    let part = start..=start + rest.take_while(|line| !line.starts_with("## ")).count();
    let kept = |is_kept: &dyn Fn(usize) -> bool| {
        let lines = lines.iter().enumerate().map(|(number, line)| if is_kept(number) { line } else { "" });
        lines.collect::<Vec<_>>().join("\n")
    };
    (kept(&|number| part.contains(&number)), kept(&|number| !part.contains(&number)))
}

/// What becomes of a machine has a story of its own (nodes.rs).
const LOST_MACHINE: &str = "## A machine that will not come back";

/// The two blocks of the quick start on a machine that is gone for good: they give up the node, and what a pool had there.
pub fn give_up() -> [String; 2] {
    let (part, _) = split("docs/quickstart.md", LOST_MACHINE);
    let blocks: Vec<String> = blocks(&part).into_iter().map(|block| block.text).collect();
    blocks.try_into().unwrap()
}

/// Types a block into a shell in this directory, where each command has to succeed; answers what they printed.
pub fn type_in(cluster: &Cluster, directory: &Path, place: &str, block: &str) -> String {
    let mut shell = cluster.with_tools("bash");
    shell.args(["-euo", "pipefail", "-c", block]).current_dir(directory).stdin(Stdio::null());
    let began = Instant::now();
    let done = shell.output().unwrap();
    let (printed, error) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
    assert!(done.status.success(), "{place}: {}\n{block}\n\n{printed}{error}", done.status);
    println!("{place}: {:.1} s", began.elapsed().as_secs_f64());
    printed
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether this is what is shown, but for the spaces, and for `…`, which is what differs each time.
fn is_shown(printed: &str, shown: &str) -> bool {
    let is_word = |(printed, shown): (&str, &str)| match shown.split_once('…') {
        None => printed == shown,
        Some((start, end)) => {
            printed.len() >= start.len() + end.len() && printed.starts_with(start) && printed.ends_with(end)
        }
    };
    let (printed, shown): (Vec<_>, Vec<_>) = (printed.split_whitespace().collect(), shown.split_whitespace().collect());
    printed.len() == shown.len() && printed.into_iter().zip(shown).all(is_word)
}

/// Somebody in a checkout of their own.
struct Newcomer<'a> {
    cluster: &'a Cluster,
    checkout: PathBuf,
}

impl Newcomer<'_> {
    fn new(cluster: &Cluster) -> Newcomer<'_> {
        let checkout = cluster.directory().join("checkout");
        fs::create_dir(&checkout).unwrap();
        for entry in fs::read_dir(root()).unwrap().map(Result::unwrap) {
            symlink(entry.path(), checkout.join(entry.file_name())).unwrap();
        }
        Newcomer { cluster, checkout }
    }

    fn follows(&self, name: &str, document: &str) {
        let mut printed = String::new();
        for Block { line, kind, text } in blocks(document) {
            match kind.as_str() {
                "sh" => printed = type_in(self.cluster, &self.checkout, &format!("{name}:{line}"), &text),
                "text" => {
                    let (printed, shown): (Vec<_>, Vec<_>) = (printed.lines().collect(), text.lines().collect());
                    let end = &printed[printed.len().saturating_sub(shown.len())..];
                    let is_so =
                        end.len() == shown.len() && end.iter().zip(&shown).all(|(end, shown)| is_shown(end, shown));
                    assert!(is_so, "{name}:{line} shows\n{text}\nand this was printed:\n{}", printed.join("\n"));
                }
                other => panic!("{name}:{line}: a block of the kind {other:?}, which nobody can follow"),
            }
        }
    }
}

/// Takes all that is cistern's out of the cluster, and gives the nodes its image under the name that the chart says.
fn make_new(cluster: &Cluster) {
    let image = ["get", "deployment/cistern-controller", "--namespace", "cistern", "--output"];
    let image = cluster.kubectl(&[&image[..], &["jsonpath={.spec.template.spec.containers[0].image}"]].concat());
    let name = format!("cistern.dev/cistern:{}", env!("CARGO_PKG_VERSION"));
    cluster.nodes().for_each(|node| drop(node.sh(&format!("ctr -n k8s.io images tag {image} {name}"))));
    cluster.kubectl(&["delete", "storagepools", "--all", "--timeout", "60s"]);
    cluster.run(&["helm", "uninstall", "cistern", "--namespace", "cistern"]);
    cluster.kubectl(&["delete", "namespace/cistern", "crd/storagepools.cistern.dev", "--timeout", "60s"]);
}

/// What the documents say stays on the machines: the pool's file, with nothing in it, and the note of it.
fn remove_what_stays(cluster: &Cluster) {
    for node in cluster.nodes() {
        let holds = || node.sh("losetup --associated /var/lib/cistern/scratch/pool.xfs");
        eventually("the host lets go of the pool", || holds().is_empty().then_some(()));
        let pool = "mkdir /tmp/pool; mount -o loop,ro scratch/pool.xfs /tmp/pool";
        let pieces = "find /tmp/pool/images /tmp/pool/records -mindepth 1; umount /tmp/pool; rmdir /tmp/pool";
        assert_eq!(node.sh(&format!("cd /var/lib/cistern; {pool}; {pieces}")), "");
        node.sh("cd /var/lib/cistern; rm -rf scratch stores/scratch empty-stores/scratch");
    }
}

#[test]
fn the_readme_and_the_quick_start_can_be_followed_word_by_word() {
    let cluster = cluster();
    let _installed = InstalledAtLast(&cluster);
    make_new(&cluster);
    let newcomer = Newcomer::new(&cluster);
    // this one takes all of it away at its end, and the README leaves what an installation takes up again
    newcomer.follows("docs/quickstart.md", &split("docs/quickstart.md", LOST_MACHINE).1);
    newcomer.follows("README.md", &split("README.md", "## On Kubernetes").0);
    cluster.install(POOLS);
    cluster.kubectl(&["delete", "storagepool/scratch", "--timeout", "60s"]);
    remove_what_stays(&cluster);
    assert_nothing_is_left(&cluster);
}
