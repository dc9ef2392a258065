//! Storms: many claims with a pod each, applied at once on all nodes and deleted at once, twice; while nothing else happens,
//! or while a part of what carries them is killed every five seconds. All come, all go, and nothing is left.

use std::io::BufRead;
use std::panic::catch_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::cluster::{Story, claim};
use crate::support::{Cluster, eventually, seed_of_commit, within};
use crate::{Mode, assert_nothing_is_left, cluster};

/// How often something is killed.
const EVERY: Duration = Duration::from_secs(5);
/// How long all may take to come, and to go: what is looked for is what never comes.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// What befalls the cluster meanwhile.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Nothing,
    /// The controllers are killed in turn.
    Controllers,
    /// cistern's process on one node, kubelet on the other, and then each on the other one. Kubelets only while all comes: one
    /// that is killed when it is about to take a Block volume away forgets that it has it (docs/limitations.md).
    Nodes,
    /// The API server is killed and started again, once while all comes and once while all goes.
    ApiServer,
    /// All of this.
    Everything,
}

/// What the claims and pods are about.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Coming,
    Going,
}

/// Whom it strikes: on which node.
#[derive(Clone, Copy)]
enum Victim {
    Controller(&'static str),
    Node(&'static str),
    Kubelet(&'static str),
    ApiServer,
}

/// In the order of a campaign's seeds.
const TROUBLES: [Trouble; 5] =
    [Trouble::Nothing, Trouble::Controllers, Trouble::Nodes, Trouble::ApiServer, Trouble::Everything];
const CONTROLLERS: [Victim; 2] = [Victim::Controller("a"), Victim::Controller("b")];
const NODES: [Victim; 4] = [Victim::Node("a"), Victim::Kubelet("b"), Victim::Node("b"), Victim::Kubelet("a")];
const NODES_ALONE: [Victim; 2] = [Victim::Node("a"), Victim::Node("b")];

impl Trouble {
    /// Does the work while this befalls the cluster, which begins after five seconds. Says how often it struck.
    fn during(self, phase: Phase, cluster: &Cluster, work: impl FnOnce()) -> usize {
        let (end, ended) = channel::<()>();
        thread::scope(move |scope| {
            let trouble = scope.spawn(move || {
                let turns = (0..).take_while(|_| ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout));
                turns.flat_map(|turn| self.victims(phase, turn)).filter(|victim| victim.is_struck(cluster)).count()
            });
            work();
            drop(end);
            trouble.join().unwrap()
        })
    }

    fn victims(self, phase: Phase, turn: usize) -> Vec<Victim> {
        match self {
            Trouble::Nothing => vec![],
            Trouble::Controllers => vec![CONTROLLERS[turn % 2]],
            Trouble::Nodes if phase == Phase::Coming => vec![NODES[turn % 4]],
            Trouble::Nodes => vec![NODES_ALONE[turn % 2]],
            Trouble::ApiServer => [Victim::ApiServer].into_iter().filter(|_| turn == 0).collect(),
            Trouble::Everything => {
                let mut victims = Trouble::Controllers.victims(phase, turn);
                if turn % 3 == 1 {
                    victims.extend(Trouble::Nodes.victims(phase, turn / 3));
                }
                victims.extend((turn == 3).then_some(Victim::ApiServer));
                victims
            }
        }
    }
}

impl Victim {
    /// Kills it; says whether it was there.
    fn is_struck(self, cluster: &Cluster) -> bool {
        // the brackets keep the pattern from meeting itself
        let kill = |process| ["pkill", "-KILL", "--full", process];
        let kill_kubelet = ["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "kubelet"];
        let (node, command) = match self {
            Victim::Controller(node) => (node, kill("[c]istern controller").to_vec()),
            Victim::Node(node) => (node, kill("[c]istern node").to_vec()),
            Victim::Kubelet(node) => (node, kill_kubelet.to_vec()),
            Victim::ApiServer => {
                cluster.run(&["kill", "apiserver"]);
                cluster.run(&["up", "a", "b"]);
                return true;
            }
        };
        cluster.node(node).try_run(&command).status.success()
    }
}

/// A pod whose volume shall hold its name: it writes that into an empty one, and says what it reads.
fn pod(name: &str, claim: &str, mode: Mode, node: &str) -> String {
    let (place, path) = match mode {
        Mode::Filesystem => ("volumeMounts: [{ name: data, mountPath: /data }]", "/data/name"),
        Mode::Block => ("volumeDevices: [{ name: data, devicePath: /dev/data }]", "/dev/data"),
    };
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ app: storm }} }}
spec:
  nodeSelector: {{ kubernetes.io/hostname: {node} }}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: cistern.dev/base:1
    {place}
    command:
    - sh
    - -euc
    - |
      holds() {{ head -c 4096 {path} 2>/dev/null | tr -d '\0'; }}
      [ -n "$(holds)" ] || echo {name} | dd of={path} bs=4k conv=sync,notrunc,fsync 2>/dev/null
      echo "{name} holds $(holds)"
      trap exit TERM
      while :; do sleep 3600 & wait; done
  volumes:
  - name: data
    persistentVolumeClaim: {{ claimName: {claim} }}
"#
    )
}

/// So many claims and pods, evenly on nodes, pools and modes.
fn everything(count: usize) -> (Vec<String>, String) {
    let names: Vec<String> = (0..count).map(|number| format!("p{number}")).collect();
    let objects = names.iter().enumerate().map(|(number, name)| {
        let mode = if number / 4 % 2 == 0 { Mode::Filesystem } else { Mode::Block };
        let (node, pool) = (["a", "b"][number % 2], ["plain", "boxed"][number / 2 % 2]);
        format!("{}---{}", claim(name, pool, mode.name(), "32Mi", ""), pod(name, name, mode, node))
    });
    let objects = objects.collect::<Vec<_>>().join("---");
    (names, objects)
}

fn all_come(story: &Story, names: &[String]) {
    story.insist(&["wait", "pod", "--all", "--for=condition=Ready", "--timeout=20m"], LIMIT);
    let mut expected: Vec<String> = names.iter().map(|name| format!("{name} holds {name}")).collect();
    expected.sort();
    let said = || {
        let most = format!("--max-log-requests={}", names.len());
        let logs = story.insist(&["logs", "--selector", "app=storm", "--tail=-1", &most], LIMIT);
        let mut lines: Vec<String> = logs.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let said = eventually("each pod has read its volume", || Some(said()).filter(|said| said.len() >= names.len()));
    assert_eq!(said, expected);
}

fn all_go(cluster: &Cluster, story: &Story) {
    story.insist(&["delete", "pod,pvc", "--all", "--timeout=20m"], LIMIT);
    let left = || story.insist(&["get", "pv,volumeattachment", "--output=name"], LIMIT);
    within(LIMIT, "the volumes are deleted and detached", || left().is_empty().then_some(()));
    assert_nothing_is_left(cluster);
}

/// Twice the same, each time with a trouble of its own.
fn storm(cluster: &Cluster, count: usize, troubles: [Trouble; 2]) {
    let story = cluster.story("storm");
    let (names, objects) = everything(count);
    for trouble in troubles {
        let begun = Instant::now();
        story.apply(&objects);
        let mut struck = trouble.during(Phase::Coming, cluster, || all_come(&story, &names));
        let came = begun.elapsed().as_secs();
        struck += trouble.during(Phase::Going, cluster, || all_go(cluster, &story));
        let went = begun.elapsed().as_secs() - came;
        println!("{count} claims and pods, {trouble:?} struck {struck} times: came in {came} s, went in {went} s");
        assert!(struck > 0 || matches!(trouble, Trouble::Nothing), "{trouble:?} never struck");
    }
    story.end();
}

/// Once in peace, and once in a trouble that the commit chooses.
#[test]
fn many_claims_come_and_go_at_once() {
    let cluster = cluster();
    let trouble = TROUBLES[1..4][usize::try_from(seed_of_commit() % 3).unwrap()];
    storm(&cluster, 20, [Trouble::Nothing, trouble]);
}

/// Seeds of a campaign, for tests/campaign: one on each line of stdin, a result on each line of stdout.
#[test]
#[ignore = "run by tests/campaign"]
fn campaign() {
    let count = std::env::var("CISTERN_CLAIMS").map_or(100, |count| count.parse().unwrap());
    for line in std::io::stdin().lock().lines() {
        let seed: u64 = line.unwrap().parse().unwrap();
        let (begun, trouble) = (Instant::now(), TROUBLES[usize::try_from(seed).unwrap() % TROUBLES.len()]);
        let result = catch_unwind(|| storm(&cluster(), count, [trouble; 2]));
        let (outcome, why) = match &result {
            Ok(()) => ("held", String::new()),
            Err(why) => ("lost", why.downcast_ref::<String>().cloned().unwrap_or_default()),
        };
        let (row, seconds) = (format!("{count} claims, {trouble:?}"), begun.elapsed().as_secs());
        println!(
            "campaign: {}",
            serde_json::json!({ "seed": seed, "row": row, "outcome": outcome, "why": why, "seconds": seconds })
        );
    }
}

/// A seed is a trouble.
#[test]
#[ignore = "run by tests/campaign"]
fn campaign_seeds() {
    println!("campaign: {}", serde_json::json!({ "storms": TROUBLES.len() }));
}
