//! The power fails: at every step of the code, at random moments, right after an answer. What was answered and what was
//! synced is there when the host has booted again, what was cut off comes to its end when it is asked again, and nothing is
//! left over.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::BufRead;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use support::client::MIB;
use support::cut::{Cut, Ground};
use support::lab::tail;
use support::life::{Content, Life};
use support::{Dice, Host, Lab, Volume, seed_of_commit, steps, syncs};

/// About so many deeds a life has.
const DEEDS: usize = 84;

/// One life with one power cut.
#[derive(Debug, Clone)]
struct Row {
    ground: Ground,
    /// The file system in Filesystem volumes.
    fs: &'static str,
    cut: Cut,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// All that was answered and synced is there.
    Held,
    /// The life ended before its cut came.
    Unreached,
}

impl Row {
    /// A step of the code; the first lives are on XFS.
    fn at_step(number: usize) -> Option<Row> {
        let steps = steps();
        let ground = *Ground::ALL.get(number / steps.len())?;
        Some(Row { ground, fs: "xfs", cut: Cut::AtStep(steps[number % steps.len()].clone()) })
    }

    /// A moment drawn from a seed.
    fn at_random(seed: u64) -> Row {
        let mut dice = Dice::new(seed);
        let (ground, fs) = (Ground::ALL[dice.below(Ground::ALL.len())], ["ext4", "xfs", "btrfs"][dice.below(3)]);
        let deed = 1 + dice.below(DEEDS);
        // what a pool is made of takes longer than a call
        let longest = if deed == 1 { 1500 } else { 300 };
        let after = Duration::from_millis(dice.below(longest) as u64);
        Row { ground, fs, cut: Cut::After(deed, after) }
    }

    /// Right after a deed.
    fn answered(number: usize) -> Row {
        let (ground, deed) = (Ground::ALL[number / DEEDS % Ground::ALL.len()], 1 + number % DEEDS);
        Row { ground, fs: "xfs", cut: Cut::Answered(deed) }
    }

    /// Something is never brought to the disk, and the power fails after the deed for which that was so the first time,
    /// the second time, ..; on each ground in turn.
    fn unsynced(name: &str, number: usize) -> Row {
        let fs = if name == "adopt.copies" { "btrfs" } else { "xfs" };
        let (ground, times) = (Ground::ALL[number % Ground::ALL.len()], 1 + number / Ground::ALL.len());
        Row { ground, fs, cut: Cut::Unsynced(name.to_owned(), times) }
    }

    /// The row of a campaign that a seed stands for.
    fn of(campaign: &str, seed: u64) -> Option<Row> {
        let number = usize::try_from(seed).unwrap();
        match campaign {
            "power" => Some(Row::at_random(seed)),
            "power-steps" => Row::at_step(number),
            "power-answers" => Some(Row::answered(number)),
            _ => campaign.strip_prefix("power-unsynced-").map(|name| Row::unsynced(name, number)),
        }
    }

    fn live(&self, host: &Host) -> Outcome {
        let mut life = Life::begin(host, self.ground, self.cut.clone());
        live(&mut life, self.fs);
        if life.cut_in.is_some() { Outcome::Held } else { Outcome::Unreached }
    }

    /// The same, and says what was lost.
    fn try_live(&self, host: &Host) -> Result<Outcome, String> {
        catch_unwind(AssertUnwindSafe(|| self.live(host))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        })
    }
}

/// Every operation on every kind of volume, with data written on the way and held against what is there.
fn live(life: &mut Life, fs: &str) {
    let (small, large) = sizes(fs);
    life.create(Volume::block("thin", 32 * MIB).with("wipe", "zero"), Content::new());
    let thick = Volume::block("thick", 32 * MIB).with("allocation", "thick").with("wipe", "discard");
    life.create(thick, Content::new());
    life.create(Volume::filesystem("files", fs, small), Content::new());
    for (name, file) in WRITTEN {
        life.use_volume(name, false);
        life.write(name, file, 0);
        life.write(name, file, 20 * MIB);
    }
    for (name, file) in WRITTEN {
        cut(life, name, file);
    }
    restore(life, "", large);
    life.grow("thick", 48 * MIB);
    life.write("thick", "", 40 * MIB);
    life.grow("files", large);
    life.write("files", "other", 0);
    life.modify("thin", "readAheadKiB", "64");
    if life.ground == Ground::Image {
        life.grow_pool();
    }
    for (name, _) in WRITTEN {
        life.check(name);
    }
    remove_restored(life, "");
    if life.cut_in.is_some() {
        // what they are has not been seen since
        restore(life, "again-", large);
        remove_restored(life, "again-");
    }
    for (name, _) in WRITTEN {
        life.release(name);
        life.delete(name);
    }
    for (name, _) in WRITTEN {
        life.delete_snapshot(&format!("{name}-cut"));
    }
    life.end();
}

/// The volumes that are written to, and where.
const WRITTEN: [(&str, &str); 3] = [("thin", ""), ("thick", ""), ("files", "file")];

/// A volume with a file system, and what it grows to.
fn sizes(fs: &str) -> (i64, i64) {
    match fs {
        "ext4" => (64 * MIB, 96 * MIB),
        "btrfs" => (256 * MIB, 320 * MIB),
        _ => (320 * MIB, 400 * MIB),
    }
}

/// Cuts a snapshot, and goes on writing while it is being made if that can be.
fn cut(life: &mut Life, name: &str, file: &str) {
    let cut = format!("{name}-cut");
    if life.ground.has_reflinks() {
        life.cut_in_use(name, file, 10 * MIB, &cut);
        life.write(name, file, 0);
        life.ready(name, &cut);
    } else {
        life.release(name);
        life.cut(name, &cut);
        life.ready(name, &cut);
        life.use_volume(name, false);
        life.write(name, file, 0);
    }
}

/// A volume of each snapshot or, for one, of the volume itself.
fn restore(life: &mut Life, prefix: &str, large: i64) {
    let named = |name: &str| format!("{prefix}{name}");
    let (thin_cut, thin) = life.snapshot("thin-cut");
    life.create(Volume::block(&named("restored"), 64 * MIB).restored_from(&thin_cut), thin);
    let copied = Volume::block(&named("copied"), 48 * MIB).with("allocation", "thick");
    if life.ground.has_reflinks() && prefix.is_empty() {
        let (source, content) = (life.volume("thick"), life.content("thick"));
        life.create(copied.cloned_from(&source), content);
    } else {
        let (thick_cut, thick) = life.snapshot("thick-cut");
        life.create(copied.restored_from(&thick_cut), thick);
    }
    let (files_cut, files) = life.snapshot("files-cut");
    let fs = life.volume("files").fs.unwrap();
    life.create(Volume::filesystem(&named("cloned"), &fs, large).restored_from(&files_cut), files);
    for (name, read_only) in [("restored", true), ("copied", false), ("cloned", false)] {
        life.use_volume(&named(name), read_only);
        life.check(&named(name));
    }
}

fn remove_restored(life: &mut Life, prefix: &str) {
    for name in ["restored", "copied", "cloned"] {
        let name = format!("{prefix}{name}");
        life.release(&name);
        life.delete(&name);
    }
}

fn live_all(rows: impl IntoIterator<Item = (u64, Row)>) {
    let lab = Lab::up(&[("a", "4G")]);
    for (seed, row) in rows {
        let begun = Instant::now();
        println!("seed {seed}: {row:?}");
        let outcome = row.live(&lab.host("a"));
        println!("seed {seed}: {outcome:?}, {} ms", begun.elapsed().as_millis());
    }
}

#[test]
fn the_power_fails_at_random_moments() {
    let first = seed_of_commit();
    live_all((first..first + 10).map(|seed| (seed, Row::at_random(seed))));
}

#[test]
fn the_power_fails_at_steps_in_turn() {
    let (mut dice, count) = (Dice::new(seed_of_commit()), steps().len());
    let numbers: Vec<usize> = (0..8).map(|_| dice.below(count)).collect();
    live_all(numbers.into_iter().map(|number| (number as u64, Row::at_step(number).unwrap())));
}

/// The tests above see a loss: what they find is that there was none.
#[test]
fn an_fsync_that_is_left_out_is_missed() {
    let losses = [
        ("rename.directory", 0, "thin is lost"),
        ("job.file", 0, "has lost what was written"),
        ("clone.file", 3, "has lost what was written"), // on Btrfs
    ];
    for (name, number, loss) in losses {
        let lab = Lab::up(&[("a", "4G")]);
        let row = Row::unsynced(name, number);
        let why = row.try_live(&lab.host("a")).expect_err(name);
        assert!(why.contains(loss), "{name}: {why}");
    }
}

/// Rows of a campaign, for tests/campaign: a seed on each line of stdin, a result on each line of stdout.
#[test]
#[ignore = "run by tests/campaign"]
fn campaign() {
    let campaign = std::env::var("CISTERN_CAMPAIGN").expect("tests/campaign says which");
    let mut lab = None;
    for line in std::io::stdin().lock().lines() {
        let seed = line.unwrap().parse().unwrap();
        let row = Row::of(&campaign, seed).unwrap_or_else(|| panic!("{campaign} has no seed {seed}"));
        let begun = Instant::now();
        let host = lab.get_or_insert_with(|| Lab::up(&[("a", "4G")])).host("a");
        let result = row.try_live(&host);
        let (outcome, why) = match &result {
            Ok(outcome) => (format!("{outcome:?}").to_lowercase(), String::new()),
            Err(why) => ("lost".to_owned(), why.clone()),
        };
        if result.is_err() {
            eprintln!("{campaign} {seed} {row:?}: {why}\n{}", tail(&host.log(), 60));
            lab = None;
        }
        let seconds = begun.elapsed().as_secs();
        let row = format!("{row:?}");
        println!(
            "campaign: {}",
            serde_json::json!({ "seed": seed, "row": row, "outcome": outcome, "why": why, "seconds": seconds })
        );
    }
}

/// What a campaign's seeds are, if they have an end; and what can be left out.
#[test]
#[ignore = "run by tests/campaign"]
fn campaign_seeds() {
    println!("campaign: {}", serde_json::json!({ "power-steps": steps().len() * Ground::ALL.len(), "syncs": syncs() }));
}
