//! The chart is taken away and comes again: pods write on, and all that people have is there.

use crate::support::cluster::{Story, claim, pod, snapshot};
use crate::support::{Cluster, eventually};
use crate::writer::Writer;
use crate::{InstalledAtLast, Mode, assert_nothing_is_left, cluster};

/// Helm, where the chart is; answers what it printed.
pub fn helm(cluster: &Cluster, arguments: &[&str]) -> String {
    cluster.run(&[&["helm"], arguments, &["--namespace=cistern"]].concat())
}

/// What stays when the chart goes, by what nobody can make again.
fn identities(cluster: &Cluster) -> String {
    let kept = ["crd/storagepools.cistern.dev", "storagepool/plain", "storagepool/boxed"];
    let kept = [&kept[..], &["--namespace=cistern", "secret/cistern-ca", "configmap/cistern-ca"]].concat();
    cluster.kubectl(&[&["get", "--output=jsonpath={.items[*].metadata.uid}"], &kept[..]].concat())
}

/// What is left of the programs.
fn programs(cluster: &Cluster) -> String {
    let kinds = "pods,deployments,daemonsets,services,poddisruptionbudgets,networkpolicies,csistoragecapacities";
    let own = cluster.kubectl(&["get", kinds, "--namespace=cistern", "--output=name"]);
    let all = ["get", "csidrivers,storageclasses,clusterroles", "--selector=app.kubernetes.io/name=cistern"];
    own + &cluster.kubectl(&[&all[..], &["--output=name"]].concat())
}

fn until_pools_are_ready(cluster: &Cluster) {
    cluster.kubectl(&["wait", "storagepool", "--all", "--for=condition=Ready", "--timeout=120s"]);
}

#[test]
fn an_uninstallation_leaves_what_people_have_and_the_next_installation_takes_it_up() {
    let cluster = cluster();
    let _installed = InstalledAtLast(&cluster);
    let story = cluster.story("uninstall");
    let writers =
        Writer::start(&story, &[("files", "plain", Mode::Filesystem, "a"), ("blocks", "boxed", Mode::Block, "b")]);
    story.apply(&claim("left", "boxed", "Filesystem", "64Mi", ""));
    story.apply(&pod("leaver", "left", "Filesystem", "a"));
    story.until_ready(&["leaver"]);
    let before = identities(&cluster);

    let values = cluster.file("uninstalled.yaml", &helm(&cluster, &["get", "values", "cistern", "--output=yaml"]));
    helm(&cluster, &["uninstall", "cistern", "--wait", "--timeout=100s"]);
    eventually("the programs are gone", || programs(&cluster).is_empty().then_some(()));
    assert_eq!(identities(&cluster), before);
    writers.iter().for_each(Writer::assert_nothing_happened);
    // what is asked for meanwhile waits
    story.kubectl(&["delete", "pod/leaver", "pvc/left", "--wait=false"]);
    story.apply(&claim("early", "plain", "Filesystem", "64Mi", ""));
    story.apply(&pod("waiter", "early", "Filesystem", "b"));

    helm(&cluster, &["install", "cistern", "charts/cistern", "--values", &values, "--wait", "--timeout=120s"]);
    until_pools_are_ready(&cluster);
    assert_eq!(identities(&cluster), before);
    writers.iter().for_each(Writer::assert_nothing_happened);
    story.until_ready(&["waiter"]);
    story.kubectl(&["wait", "--for=delete", "pod/leaver", "pvc/left", "--timeout=120s"]);
    cut_and_delete(&story, writers);
    story.delete(&["pod/waiter", "pvc/early"]);
    story.end();
    assert_nothing_is_left(&cluster);
}

/// What is done with any volume is done with these.
fn cut_and_delete(story: &Story, writers: Vec<Writer>) {
    for writer in writers {
        let name = writer.name().to_owned();
        story.apply(&snapshot(&name, &name));
        story.until(&format!("volumesnapshot/{name}"), "{.status.readyToUse}", "true");
        writer.stop();
        story.delete(&[&format!("pod/{name}"), &format!("pvc/{name}"), &format!("volumesnapshot/{name}")]);
    }
}

/// The command of the quick start that brings a newer definition of StoragePools.
pub fn documented_step() -> String {
    let page = std::fs::read_to_string("docs/quickstart.md").unwrap();
    let step = page.lines().find(|line| line.starts_with("kubectl apply") && line.contains("charts/cistern/crds"));
    step.expect("the quick start has the step").to_owned()
}

#[test]
fn the_definition_of_pools_is_upgraded_as_it_is_documented() {
    let cluster = cluster();
    // an older one, as if overcommit were new
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/overcommit";
    let older = format!(r#"[{{"op":"remove","path":"{schema}"}}]"#);
    cluster.kubectl(&["patch", "crd/storagepools.cistern.dev", "--type=json", "--patch", &older]);
    let before = identities(&cluster);
    let set = |to: &str| {
        let spec = format!(r#"{{"spec":{{"overcommit":{to}}}}}"#);
        cluster.kubectl(&["patch", "storagepool/plain", "--type=merge", "--patch", &spec]);
        cluster.kubectl(&["get", "storagepool/plain", "--output=jsonpath={.spec.overcommit}"])
    };
    eventually("the older one is in force", || set("2").is_empty().then_some(()));

    let step = documented_step();
    cluster.kubectl(&step.split_whitespace().skip(1).collect::<Vec<_>>());
    assert_eq!(identities(&cluster), before);
    eventually("the newer one is in force", || (set("2") == "2").then_some(()));
    let told = "--for=jsonpath={.status.overcommit}=2";
    cluster.kubectl(&["wait", "storagepool/plain", told, "--timeout=60s"]);
    set("null");
    cluster.kubectl(&["wait", "storagepool/plain", "--for=jsonpath={.status.overcommit}=1", "--timeout=60s"]);
    until_pools_are_ready(&cluster);
}
