//! `cistern doctor`: what this machine lacks, what is orphaned, and the command that mends it.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use cistern::domain::Key;
use cistern::machine::command::Tool;
use cistern::machine::loopdev::LoopDevice;
use cistern::proto::internal::{DescribeRequest, DescribeResponse};

use super::people::ask;
use super::{Done, Output, PeopleArgs};

/// One thing that is not as it should be.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    mend: String,
}

/// Carries the command out. The exit code says whether all is well.
pub fn main(args: &PeopleArgs) -> Done {
    let findings: Vec<Finding> = missing_tools().chain(missing_kernel()).chain(troubles(args)).collect();
    match args.output() {
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Output::Table if findings.is_empty() => println!("all is well"),
        Output::Table => {
            for Finding { what, mend } in &findings {
                println!("{what}\n    {mend}");
            }
        }
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn missing_tools() -> impl Iterator<Item = Finding> {
    Tool::ALL.into_iter().filter(|tool| tool.find().is_none()).map(|tool| Finding {
        what: format!("{} is not installed", tool.name()),
        mend: format!("apt-get install {}", tool.package()),
    })
}

/// File systems are looked for in what the kernel has now; a module may still be loaded at the first mount.
fn missing_kernel() -> impl Iterator<Item = Finding> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = move |fs: &str| known.lines().any(|line| line.split_whitespace().last() == Some(fs));
    let file_systems = ["ext4", "xfs", "btrfs"]
        .into_iter()
        .filter(move |fs| !has(fs))
        .map(|fs| Finding { what: format!("the kernel does not have {fs} loaded"), mend: format!("modprobe {fs}") });
    let no_loop = !Path::new("/dev/loop-control").exists();
    let loops = no_loop
        .then(|| Finding { what: "the kernel has no loop devices".to_owned(), mend: "modprobe loop".to_owned() });
    file_systems.chain(loops)
}

fn troubles(args: &PeopleArgs) -> Vec<Finding> {
    let answer = match ask(args, DescribeRequest { volumes: true, snapshots: false }) {
        Ok(answer) => answer,
        Err(error) => {
            let mend = "start the server of this machine: cistern serve, host, node or controller".to_owned();
            return vec![Finding { what: error.to_string(), mend }];
        }
    };
    // a controller answers for other machines, and theirs are not the loop devices here
    let mut findings = if answer.host.is_empty() { Vec::new() } else { orphans(&answer) };
    for pool in answer.pools {
        let (its, place) = (format!("pool {} on host {}", pool.name, pool.host), &pool.place);
        match pool.down.is_empty() {
            true => {}
            // of a host that was never seen nothing but that is known
            false if pool.name.is_empty() => {
                let mend = format!("start cistern on host {}; the controller tries again by itself", pool.host);
                findings.push(Finding { what: pool.down.clone(), mend });
            }
            false => {
                let mend = format!("mend the cause below {place}; the server tries again by itself");
                findings.push(Finding { what: format!("{its} is down: {}", pool.down), mend });
            }
        }
        for trouble in pool.troubles {
            let mend = format!(
                "look for {} below {place}: give back what is missing, or move away what nobody knows, and start the server \
                 anew",
                trouble.key
            );
            findings.push(Finding { what: format!("{its}: {}: {}", trouble.key, trouble.what), mend });
        }
    }
    findings
}

/// Loop devices over pieces that no node has a right to: whoever attached them is gone, or by-passed the driver.
fn orphans(answer: &DescribeResponse) -> Vec<Finding> {
    let granted = |key: &str| {
        let mut volumes = answer.volumes.iter().filter(|volume| !volume.nodes.is_empty());
        volumes.any(|volume| volume.id.ends_with(&format!("/{key}")))
    };
    let mut findings = Vec::new();
    for device in LoopDevice::bound().unwrap_or_default() {
        let Ok(Some(status)) = device.status() else { continue };
        let backing = status.backing_path.display().to_string();
        let backing = backing.trim_end_matches(" (deleted)");
        let is_ours = answer.pools.iter().any(|pool| Path::new(backing).starts_with(&pool.place));
        let key = Path::new(backing).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if is_ours && key.parse::<Key>().is_ok() && !granted(key) {
            let path = device.path();
            findings.push(Finding {
                what: format!("{} is attached to {backing}, which no node has a right to", path.display()),
                mend: format!("findmnt --source {0}; umount what it shows; losetup --detach {0}", path.display()),
            });
        }
    }
    findings
}
