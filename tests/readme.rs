//! The README's table of pools and features is what the server does: every cell is tried.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use cistern::proto::csi::v1::volume_capability::access_mode::Mode;
use support::client::MIB;
use support::{Csi, Place, Server, Volume, run};
use tonic::Status;

/// The rows after the marker: a feature, and a word for each column of pools.
fn table() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, rest) = text.split_once("<!-- features -->").unwrap();
    let rows = rest.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).skip(2);
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    rows.map(|line| (cells(line)[0].clone(), cells(line)[1..].to_vec())).collect()
}

/// A pool under trial.
struct Trial {
    csi: Csi,
    _server: Server,
    place: Place,
    /// Where its file system is mounted.
    mounted: PathBuf,
    made: u32,
    /// What the next feature needs the room of.
    live: Vec<Volume>,
}

/// Written into a source, in MiB: enough to tell a copy from a cut.
const DATA: u64 = 48;

impl Trial {
    fn new(fs: &str, image: bool) -> Trial {
        let place = Place::with(fs, "6G");
        let (first, second) = (place.pool_directory(), place.path("disk/second"));
        let size = if image { ", image: { size: 3Gi }" } else { "" };
        let pools = format!(
            "pools:\n- {{ name: p, dir: {{ path: {}{size} }} }}\n- {{ name: q, dir: {{ path: {} }} }}\n",
            first.display(),
            second.display()
        );
        fs::write(place.path("pools.yaml"), pools).unwrap();
        let server = Server::start(&place, &place.path("pools.yaml"));
        let mounted = if image { first.join("pool") } else { place.path("disk") };
        Trial { csi: server.client(), _server: server, place, mounted, made: 0, live: Vec::new() }
    }

    fn name(&mut self) -> String {
        self.made += 1;
        format!("v{}", self.made)
    }

    /// A new volume with data in it, attached or not.
    fn source(&mut self, allocation: &str, in_use: bool) -> Volume {
        let mut volume = Volume::block(&self.name(), 64 * MIB).with("allocation", allocation);
        self.csi.create(&mut volume).unwrap();
        let at = self.place.path(&volume.name);
        let device = self.csi.use_at(&mut volume, &at).unwrap();
        let file = OpenOptions::new().write(true).open(device).unwrap();
        file.write_all_at(&vec![7; usize::try_from(DATA << 20).unwrap()], 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        if !in_use {
            self.csi.release(&volume, &at).unwrap();
        }
        self.live.push(volume.clone());
        volume
    }

    /// Frees the place for the next feature: the disk is small.
    fn clear(&mut self) {
        for volume in std::mem::take(&mut self.live) {
            self.csi.release(&volume, &self.place.path(&volume.name)).unwrap();
            self.csi.delete(&volume).unwrap();
        }
    }

    fn free(&self) -> u64 {
        run(&["sync", "-f", self.mounted.to_str().unwrap()]);
        let blocks = run(&["stat", "-f", "-c", "%f %S", self.mounted.to_str().unwrap()]);
        let numbers: Vec<u64> = blocks.split_whitespace().map(|number| number.parse().unwrap()).collect();
        numbers[0] * numbers[1]
    }

    /// Tries something, and tells by the space it took whether it was copied.
    fn try_it(&mut self, act: impl FnOnce(&mut Trial) -> Result<(), Status>) -> &'static str {
        let before = self.free();
        match act(self) {
            Err(_) => "refused",
            Ok(()) if before.saturating_sub(self.free()) > (DATA << 20) / 2 => "copy",
            Ok(()) => "yes",
        }
    }

    fn snapshot(&mut self, of: &Volume) -> Result<String, Status> {
        let name = self.name();
        let cut = self.csi.snapshot_when_ready(of, &name)?;
        assert!(cut.ready_to_use);
        Ok(cut.snapshot_id)
    }

    fn restore(&mut self, volume: Volume) -> Result<Volume, Status> {
        let mut volume = volume;
        self.csi.create(&mut volume)?;
        let at = self.place.path(&volume.name);
        let device = self.csi.use_at(&mut volume, &at)?;
        self.live.push(volume.clone());
        let mut read = [0; 4];
        fs::File::open(&device).unwrap().read_exact_at(&mut read, (DATA << 20) - 4).unwrap();
        assert_eq!(read, [7; 4], "{} has its source's bytes", volume.name);
        Ok(volume)
    }

    /// What becomes of a feature on this pool.
    fn outcome(&mut self, feature: &str) -> &'static str {
        let allocation = if feature.contains("thick volume") { "thick" } else { "thin" };
        let in_use = feature.contains("in use");
        match feature {
            "file system volume (ext4, xfs, btrfs)" => self.try_it(|trial| {
                ["ext4", "xfs", "btrfs"].iter().try_for_each(|fs| {
                    let mut volume = Volume::filesystem(&trial.name(), fs, 320 * MIB);
                    trial.csi.create(&mut volume)?;
                    let at = trial.place.path(&volume.name);
                    let root = trial.csi.use_at(&mut volume, &at)?;
                    fs::write(root.join("file"), "x").unwrap();
                    trial.csi.release(&volume, &at)?;
                    trial.csi.delete(&volume)
                })
            }),
            "block volume" | "thin volume" | "thick volume" => {
                let volume = self.source(allocation, true);
                let key = volume.id.split('/').next_back().unwrap().to_owned();
                let home =
                    if self.mounted.ends_with("disk") { self.place.pool_directory() } else { self.mounted.clone() };
                let blocks = run(&["stat", "-c", "%b", home.join("images").join(key).to_str().unwrap()]);
                let allocated = blocks.trim().parse::<u64>().unwrap() * 512;
                assert_eq!(allocated >= 64 << 20, allocation == "thick", "{feature}: {allocated} bytes are allocated");
                "yes"
            }
            _ if feature.starts_with("snapshot of a ") => {
                let source = self.source(allocation, in_use);
                self.try_it(|trial| trial.snapshot(&source).map(|_| ()))
            }
            _ if feature.starts_with("restore of a snapshot as a ") => {
                let source = self.source(allocation, false);
                let snapshot = self.snapshot(&source).unwrap();
                let name = self.name();
                let wanted = Volume::block(&name, 64 * MIB).with("allocation", allocation).restored_from(&snapshot);
                self.try_it(|trial| trial.restore(wanted).map(|_| ()))
            }
            "clone or restore into a larger volume" => {
                let source = self.source("thin", false);
                let wanted = Volume::block(&self.name(), 128 * MIB).cloned_from(&source);
                let larger = self.restore(wanted).unwrap();
                assert_eq!(larger.size, 128 * MIB);
                "yes"
            }
            "clone or restore from another pool" => {
                let source = self.source("thin", false);
                let wanted = Volume::block(&self.name(), 64 * MIB).with("pool", "q").cloned_from(&source);
                self.try_it(|trial| trial.restore(wanted).map(|_| ()))
            }
            _ if feature.starts_with("clone of a ") => {
                let source = self.source(allocation, in_use);
                let name = self.name();
                let wanted = Volume::block(&name, 64 * MIB).with("allocation", allocation).cloned_from(&source);
                self.try_it(|trial| trial.restore(wanted).map(|_| ()))
            }
            _ if feature.starts_with("growth of a ") => {
                let mut volume = self.source("thin", in_use);
                self.try_it(|trial| {
                    trial.csi.expand(&mut volume, 96 * MIB)?;
                    if in_use {
                        let target = trial.place.path(&volume.name).join("target");
                        assert_eq!(trial.csi.node_expand(&volume, &target)?, 96 * MIB);
                    }
                    Ok(())
                })
            }
            _ if feature.starts_with("discard in a ") => {
                let volume = self.source(allocation, true);
                let device = self.place.path(&volume.name).join("target");
                let done = Command::new("blkdiscard").arg(device).output().unwrap();
                if done.status.success() { "yes" } else { "refused" }
            }
            "use on several nodes at a time" => self.try_it(|trial| {
                let mut volume = Volume::block(&trial.name(), 64 * MIB).mode(Mode::MultiNodeMultiWriter);
                trial.csi.create(&mut volume).map(|_| ())
            }),
            "statistics of a volume in use" => {
                let volume = self.source("thin", true);
                let target = self.place.path(&volume.name).join("target");
                assert_eq!(self.csi.stats(&volume, &target).unwrap()[0].total, 64 * MIB);
                "yes"
            }
            unknown => panic!("say here how {unknown:?} is tried"),
        }
    }
}

fn column(number: usize, fs: &str, image: bool) {
    let mut trial = Trial::new(fs, image);
    for (feature, cells) in table() {
        assert_eq!(trial.outcome(&feature), cells[number], "{feature}, in the column of {fs}, one file: {image}");
        trial.clear();
    }
}

#[test]
fn a_directory_on_xfs() {
    column(0, "xfs", false);
}

#[test]
fn a_directory_on_btrfs() {
    column(0, "btrfs", false);
}

#[test]
fn a_directory_on_ext4() {
    column(1, "ext4", false);
}

#[test]
fn one_file() {
    column(2, "ext4", true);
}
