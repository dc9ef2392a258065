//! `cistern export-pvs`: PersistentVolumes of what the stores hold, so that a new cluster takes over the volumes of an old one.
//!
//! Which claim a volume was bound to is known to the lost cluster alone: a claim that is to have one names it
//! (`volumeName`). The mode that it was asked for is not known either; a local volume is ReadWriteOnce.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use cistern::proto::internal::{DescribeRequest, Volume};

use super::server::DEFAULT_ENDPOINT;
use super::{Done, PeopleArgs};

/// The flags of `cistern export-pvs`.
#[derive(Args)]
pub struct ExportArgs {
    /// The socket of a controller, for all hosts, or of one host
    #[arg(long, env = "CISTERN_ENDPOINT", default_value = DEFAULT_ENDPOINT, value_parser = super::server::parse_endpoint)]
    endpoint: std::path::PathBuf,
    /// The driver's name
    #[arg(long, env = "CISTERN_DRIVER_NAME", default_value = "csi.cistern.dev")]
    driver_name: String,
}

/// Carries the command out: a List as JSON, which `kubectl apply -f -` takes.
pub fn main(args: &ExportArgs) -> Done {
    let people = PeopleArgs { endpoint: args.endpoint.clone(), output: None };
    let answer = super::people::ask(&people, DescribeRequest { volumes: true, snapshots: false })?;
    for pool in answer.pools.iter().filter(|pool| !pool.down.is_empty()) {
        let name = if pool.name.is_empty() { "all pools" } else { &pool.name };
        eprintln!("cistern: not exported: {name} on host {}: {}", pool.host, pool.down);
    }
    let volumes = answer.volumes.iter().filter(|volume| !volume.deleted);
    let items: Vec<Value> = volumes.map(|volume| persistent_volume(volume, &args.driver_name)).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    println!("{}", serde_json::to_string_pretty(&list)?);
    Ok(ExitCode::SUCCESS)
}

/// A volume as the provisioner would have written it down.
fn persistent_volume(volume: &Volume, driver: &str) -> Value {
    let is_block = volume.content == "block";
    let mut csi = json!({ "driver": driver, "volumeHandle": volume.id });
    if !is_block {
        csi["fsType"] = json!(volume.content);
    }
    let on_host = json!({ "key": "topology.cistern.dev/host", "operator": "In", "values": [volume.host] });
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": volume.name,
            "annotations": { "pv.kubernetes.io/provisioned-by": driver },
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": { "storage": volume.size_bytes.to_string() },
            "csi": csi,
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [on_host] }] } },
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": format!("cistern-{}", volume.pool),
            "volumeMode": if is_block { "Block" } else { "Filesystem" },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_as_the_provisioner_would_have_written_it_down() {
        for (content, mode, fs_type) in [
            ("block", "Block", Value::Null),
            ("xfs", "Filesystem", json!("xfs")),
            ("ext4", "Filesystem", json!("ext4")),
        ] {
            let volume = Volume {
                id: "0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff/v-00".to_owned(),
                name: "pvc-1".to_owned(),
                pool: "fast".to_owned(),
                size_bytes: 4 << 20,
                content: content.to_owned(),
                host: "a".to_owned(),
                ..Volume::default()
            };
            let made = persistent_volume(&volume, "csi.cistern.dev");
            let spec = &made["spec"];
            assert_eq!((&made["metadata"]["name"], &spec["volumeMode"]), (&json!("pvc-1"), &json!(mode)));
            assert_eq!((&spec["csi"]["fsType"], &spec["csi"]["volumeHandle"]), (&fs_type, &json!(volume.id)));
            assert_eq!(
                (&spec["capacity"]["storage"], &spec["storageClassName"]),
                (&json!("4194304"), &json!("cistern-fast"))
            );
            let host = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"];
            assert_eq!(host, &json!(["a"]));
        }
    }
}
