//! A life of volumes and snapshots in a host whose power fails once. What was answered is written down here, and held
//! against the host after the cut: what is listed, and every byte that was synced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tonic::{Code, Status};

use super::cut::{Cut, Ground};
use super::{Csi, Dice, Host, Volume, eventually};

const SOCKET: &str = "/run/cistern/csi.sock";
const PLACE: &str = "/place";
/// How much is written at a time.
const PIECE: usize = 64 << 10;

/// Where something is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Asked for.
    Making,
    /// Answered.
    Made,
    /// To be removed.
    Removing,
    /// Answered.
    Gone,
}

/// Places that were written and synced, and what was.
pub type Content = BTreeMap<(String, u64), u64>;

/// A volume as it was answered.
struct Kept {
    volume: Volume,
    state: State,
    /// `None` while that is being changed.
    attached: Option<bool>,
    staged: bool,
    published: bool,
    read_only: bool,
    /// It may have this size already.
    growing_to: i64,
    content: Content,
}

impl Kept {
    fn staging(&self) -> PathBuf {
        Path::new(PLACE).join(&self.volume.name).join("staging")
    }

    fn target(&self) -> PathBuf {
        Path::new(PLACE).join(&self.volume.name).join("target")
    }

    fn path(&self, file: &str) -> PathBuf {
        if file.is_empty() { self.target() } else { self.target().join(file) }
    }
}

/// A snapshot as it was answered.
struct KeptSnapshot {
    id: String,
    state: State,
    content: Content,
}

/// A life in a host.
pub struct Life<'a> {
    host: &'a Host,
    pub ground: Ground,
    csi: Option<Csi>,
    cut: Cut,
    deeds: usize,
    written: u64,
    /// How many deeds have left out what is not to be synced.
    left_out: usize,
    volumes: BTreeMap<String, Kept>,
    snapshots: BTreeMap<String, KeptSnapshot>,
    power_failed: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
    /// In which deed the power failed.
    pub cut_in: Option<usize>,
}

impl<'a> Life<'a> {
    /// Formats the host's disk, and starts a server there.
    pub fn begin(host: &'a Host, ground: Ground, cut: Cut) -> Life<'a> {
        let (mkfs, mount, pools) = (ground.mkfs(), ground.mount(), ground.pools());
        host.sh("systemctl stop cistern 2>/dev/null || true; ! mountpoint -q /place/disk || umount -R /place/disk");
        host.sh(&format!("rm -rf /place; mkdir -p /place/disk; {mkfs} /dev/ubdb; {mount} /dev/ubdb /place/disk"));
        host.write("/place/pools.yaml", 0, pools.as_bytes());
        keep_in_memory(host);
        host.run(&["sync"]);
        let mut life = Life {
            host,
            ground,
            csi: None,
            cut,
            deeds: 0,
            written: 0,
            left_out: 0,
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            power_failed: Arc::default(),
            is_over: Arc::default(),
            watcher: None,
            cut_in: None,
        };
        life.watch_for_step();
        life.deed("serve", |life| {
            if life.csi.is_none() {
                life.csi = Some(life.serve()?);
            }
            Ok(())
        });
        life
    }

    /// Starts the server.
    fn serve(&self) -> Result<Csi, Status> {
        let ((here, hang), (_, seen)) = (self.host.shared("hang"), self.host.shared("seen"));
        std::fs::write(here, "").unwrap();
        let variables = self.cut.variables(&hang, &seen);
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let arguments = ["serve", "--node-id", "a", "--config", "/place/pools.yaml", "--data", "/place/data"];
        self.host.try_start_cistern(&arguments, &variables).map_err(Status::unknown)?;
        self.host.try_client(SOCKET).map_err(Status::unknown)
    }

    // --- the power

    fn watch_for_step(&mut self) {
        let (seen, _) = self.host.shared("seen");
        let _ = std::fs::remove_file(&seen);
        if !matches!(self.cut, Cut::AtStep(_)) {
            return;
        }
        let (host, failed, is_over) = (self.host.clone(), self.power_failed.clone(), self.is_over.clone());
        self.watcher = Some(std::thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                if seen.exists() {
                    return fail(&host, &failed);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }));
    }

    /// A deed begins: is it time?
    fn next_deed(&mut self) {
        let answered = self.deeds;
        self.deeds += 1;
        match self.cut.clone() {
            Cut::After(deed, after) if deed == self.deeds => {
                let (host, failed) = (self.host.clone(), self.power_failed.clone());
                self.watcher = Some(std::thread::spawn(move || {
                    std::thread::sleep(after);
                    fail(&host, &failed);
                }));
            }
            Cut::Answered(deed) if deed == answered => fail(self.host, &self.power_failed),
            Cut::Unsynced(..) if std::fs::remove_file(self.host.shared("seen").0).is_ok() => self.count_unsynced(),
            _ => {}
        }
        if self.power_has_failed() && self.cut_in.is_none() {
            self.revive();
        }
    }

    fn count_unsynced(&mut self) {
        self.left_out += 1;
        if matches!(self.cut, Cut::Unsynced(_, wanted) if wanted == self.left_out) {
            fail(self.host, &self.power_failed);
        }
    }

    fn power_has_failed(&self) -> bool {
        self.power_failed.load(Ordering::SeqCst)
    }

    /// Does it, and does it again until it is answered with success; after a power cut in the host that has booted again.
    fn deed<T>(&mut self, what: &str, mut act: impl FnMut(&mut Life<'a>) -> Result<T, Status>) -> T {
        self.next_deed();
        let mut end = Instant::now() + Duration::from_secs(60);
        loop {
            let status = match act(self) {
                Ok(answer) => return answer,
                Err(status) => status,
            };
            if self.power_has_failed() && self.cut_in.is_none() {
                println!("the power failed in deed {} ({what})", self.deeds);
                self.revive();
                end = Instant::now() + Duration::from_secs(60);
                continue;
            }
            assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{what}: {status:?}");
            assert!(Instant::now() < end, "{what}: {status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Boots the host again and starts the server, as its machine does, and uses its volumes again, as kubelet does. All
    /// that was answered holds.
    fn revive(&mut self) {
        self.cut_in = Some(self.deeds);
        self.join_watcher();
        self.host.up();
        keep_in_memory(self.host);
        self.host.sh(&format!("{} /dev/ubdb /place/disk", self.ground.mount()));
        self.cut = Cut::Never;
        self.csi = Some(self.serve().unwrap_or_else(|status| panic!("it does not start again: {status:?}")));
        self.check_lists();
        for name in self.names() {
            let kept = &self.volumes[&name];
            let again = |what: &str, act: &dyn Fn() -> Result<(), Status>| {
                eventually(what, || match act() {
                    Ok(()) => Some(()),
                    Err(status) if matches!(status.code(), Code::Aborted | Code::Unavailable) => None,
                    Err(status) => panic!("{what} {name} again: {status:?}"),
                });
            };
            if kept.staged {
                again("stage", &|| self.csi().stage(&kept.volume, &kept.staging()));
            }
            if kept.published {
                again("publish", &|| self.csi().publish(&kept.volume, &kept.staging(), &kept.target(), kept.read_only));
                self.compare(&name).unwrap();
            }
        }
    }

    fn join_watcher(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.join().unwrap();
        }
    }

    /// What is listed is what was answered; what was being asked for may be there or not.
    fn check_lists(&self) {
        let listed: BTreeMap<String, _> = self
            .csi()
            .volumes()
            .into_iter()
            .map(|entry| {
                let volume = entry.volume.unwrap();
                let is_attached = entry.status.is_some_and(|status| !status.published_node_ids.is_empty());
                (volume.volume_id, (volume.capacity_bytes, is_attached))
            })
            .collect();
        for kept in self.volumes.values() {
            let (name, found) = (&kept.volume.name, listed.get(&kept.volume.id));
            match kept.state {
                State::Made => {
                    let (size, is_attached) = found.unwrap_or_else(|| panic!("{name} is lost"));
                    let sizes = [kept.volume.size, kept.growing_to];
                    assert!(sizes.contains(size), "{name} has {size} bytes, not {sizes:?}");
                    let answered = kept.attached.unwrap_or(*is_attached);
                    assert_eq!(*is_attached, answered, "{name} is attached, as it was answered");
                }
                State::Gone => assert!(found.is_none(), "{name} came back"),
                State::Making | State::Removing => {}
            }
        }
        let cuts: Vec<String> = self.csi().snapshots().unwrap().into_iter().map(|cut| cut.snapshot_id).collect();
        for (name, kept) in &self.snapshots {
            match kept.state {
                State::Made => assert!(cuts.contains(&kept.id), "{name} is lost"),
                State::Gone => assert!(!cuts.contains(&kept.id), "{name} came back"),
                State::Making | State::Removing => {}
            }
        }
        let ids = self.volumes.values().map(|kept| &kept.volume.id).chain(self.snapshots.values().map(|kept| &kept.id));
        let ids: Vec<&String> = ids.collect();
        let is_making = self.volumes.values().any(|kept| kept.state == State::Making)
            || self.snapshots.values().any(|kept| kept.state == State::Making);
        let strangers = listed.keys().chain(&cuts).filter(|id| !ids.contains(id)).count();
        assert!(strangers <= usize::from(is_making), "nobody asked for {strangers} of {listed:?} and {cuts:?}");
    }

    // --- deeds

    fn csi(&self) -> &Csi {
        self.csi.as_ref().expect("the server has been started")
    }

    fn names(&self) -> Vec<String> {
        self.volumes.keys().cloned().collect()
    }

    fn kept(&mut self, name: &str) -> &mut Kept {
        self.volumes.get_mut(name).unwrap_or_else(|| panic!("no volume {name}"))
    }

    /// How many deeds there were.
    pub fn deeds(&self) -> usize {
        self.deeds
    }

    /// Creates a volume with this content.
    pub fn create(&mut self, volume: Volume, content: Content) {
        let name = volume.name.clone();
        let kept = Kept {
            growing_to: volume.size,
            volume: volume.clone(),
            state: State::Making,
            attached: Some(false),
            staged: false,
            published: false,
            read_only: false,
            content,
        };
        self.volumes.insert(name.clone(), kept);
        let made = self.deed(&format!("create {name}"), |life| {
            let mut made = volume.clone();
            life.csi().create(&mut made).map(|_| made)
        });
        let kept = self.kept(&name);
        (kept.growing_to, kept.volume, kept.state) = (made.size, made, State::Made);
    }

    /// A volume as it was answered, to clone it.
    pub fn volume(&self, name: &str) -> Volume {
        self.volumes[name].volume.clone()
    }

    /// What is in a volume.
    pub fn content(&self, name: &str) -> Content {
        self.volumes[name].content.clone()
    }

    /// A snapshot's id and content, to restore it.
    pub fn snapshot(&self, name: &str) -> (String, Content) {
        let kept = &self.snapshots[name];
        (kept.id.clone(), kept.content.clone())
    }

    /// Attaches, stages and publishes it.
    pub fn use_volume(&mut self, name: &str, read_only: bool) {
        self.kept(name).read_only = read_only;
        self.kept(name).attached = None;
        let attached = self.deed(&format!("attach {name}"), |life| {
            let mut volume = life.volume(name);
            life.csi().attach(&mut volume).map(|()| volume)
        });
        self.kept(name).volume = attached;
        self.kept(name).attached = Some(true);
        self.deed(&format!("stage {name}"), |life| {
            life.csi().stage(&life.volumes[name].volume, &life.volumes[name].staging())
        });
        self.kept(name).staged = true;
        self.deed(&format!("publish {name}"), |life| {
            let kept = &life.volumes[name];
            life.csi().publish(&kept.volume, &kept.staging(), &kept.target(), read_only)
        });
        self.kept(name).published = true;
    }

    /// Undoes that.
    pub fn release(&mut self, name: &str) {
        self.kept(name).published = false;
        self.deed(&format!("unpublish {name}"), |life| {
            life.csi().unpublish(&life.volumes[name].volume, &life.volumes[name].target())
        });
        self.kept(name).staged = false;
        self.deed(&format!("unstage {name}"), |life| {
            life.csi().unstage(&life.volumes[name].volume, &life.volumes[name].staging())
        });
        self.kept(name).attached = None;
        self.deed(&format!("detach {name}"), |life| life.csi().detach(&life.volumes[name].volume));
        self.kept(name).attached = Some(false);
    }

    pub fn delete(&mut self, name: &str) {
        self.kept(name).state = State::Removing;
        self.deed(&format!("delete {name}"), |life| life.csi().delete(&life.volumes[name].volume));
        self.kept(name).state = State::Gone;
    }

    /// Writes into a file of a Filesystem volume or, without a name, into a Block volume, and syncs it.
    pub fn write(&mut self, name: &str, file: &str, at: i64) {
        self.written += 1;
        let (place, label) = ((file.to_owned(), u64::try_from(at).unwrap()), self.written);
        self.kept(name).content.remove(&place);
        self.deed(&format!("write {name}"), |life| {
            let path = life.volumes[name].path(file);
            life.host.try_write(path, place.1, &pattern(label)).map_err(Status::unknown)
        });
        self.kept(name).content.insert(place, label);
    }

    /// Reads all that was written.
    pub fn check(&mut self, name: &str) {
        self.deed(&format!("read {name}"), |life| life.compare(name));
    }

    fn compare(&self, name: &str) -> Result<(), Status> {
        let kept = &self.volumes[name];
        for ((file, at), label) in &kept.content {
            let read = self.host.try_read(kept.path(file), *at, PIECE).map_err(Status::unknown)?;
            assert!(read == pattern(*label), "{name} has lost what was written to it at {file}+{at}");
        }
        let last = u64::try_from(kept.volume.size).unwrap() - PIECE as u64;
        if kept.volume.fs.is_none() && !kept.content.contains_key(&(String::new(), last)) {
            let read = self.host.try_read(kept.target(), last, PIECE).map_err(Status::unknown)?;
            assert!(read == [0; PIECE], "{name} has bytes at its end that nobody wrote, or no end: {}", read.len());
        }
        Ok(())
    }

    /// Cuts a snapshot; it may not be ready.
    pub fn cut(&mut self, name: &str, cut: &str) {
        self.begin_snapshot(name, cut);
        let id = self.deed(&format!("cut {cut}"), |life| life.ask_snapshot(name, cut));
        self.snapshot_answered(cut, id);
    }

    /// Cuts a snapshot of a volume in use, right after something was written that nobody has synced: it is in the snapshot,
    /// and from then on it is synced.
    pub fn cut_in_use(&mut self, name: &str, file: &str, at: i64, cut: &str) {
        self.written += 1;
        let (place, label) = ((file.to_owned(), u64::try_from(at).unwrap()), self.written);
        self.begin_snapshot(name, cut);
        let id = self.deed(&format!("write and cut {cut}"), |life| {
            let path = life.volumes[name].path(file);
            let _held = life.host.hold(&path).map_err(Status::unknown)?;
            life.host.try_write_unsynced(&path, place.1, &pattern(label)).map_err(Status::unknown)?;
            life.ask_snapshot(name, cut)
        });
        self.kept(name).content.insert(place.clone(), label);
        self.snapshots.get_mut(cut).unwrap().content.insert(place, label);
        self.snapshot_answered(cut, id);
    }

    fn begin_snapshot(&mut self, name: &str, cut: &str) {
        let making = KeptSnapshot { id: String::new(), state: State::Making, content: self.content(name) };
        self.snapshots.insert(cut.to_owned(), making);
    }

    fn ask_snapshot(&self, name: &str, cut: &str) -> Result<String, Status> {
        Ok(self.csi().snapshot(&self.volumes[name].volume, cut)?.snapshot_id)
    }

    fn snapshot_answered(&mut self, cut: &str, id: String) {
        let kept = self.snapshots.get_mut(cut).unwrap();
        (kept.id, kept.state) = (id, State::Made);
    }

    /// Waits until it can be restored from.
    pub fn ready(&mut self, name: &str, cut: &str) {
        self.deed(&format!("wait for {cut}"), |life| {
            let found = life.csi().snapshot(&life.volumes[name].volume, cut)?;
            found.ready_to_use.then_some(()).ok_or_else(|| Status::aborted("it is not ready"))
        });
    }

    pub fn delete_snapshot(&mut self, cut: &str) {
        self.snapshots.get_mut(cut).unwrap().state = State::Removing;
        self.deed(&format!("delete {cut}"), |life| life.csi().delete_snapshot(&life.snapshots[cut].id));
        self.snapshots.get_mut(cut).unwrap().state = State::Gone;
    }

    /// Grows a volume in use.
    pub fn grow(&mut self, name: &str, size: i64) {
        self.kept(name).growing_to = size;
        let grown = self.deed(&format!("expand {name}"), |life| {
            let mut volume = life.volume(name);
            life.csi().expand(&mut volume, size).map(|()| volume)
        });
        self.kept(name).growing_to = grown.size;
        self.kept(name).volume = grown;
        self.deed(&format!("node expand {name}"), |life| {
            life.csi().node_expand(&life.volumes[name].volume, &life.volumes[name].target()).map(drop)
        });
    }

    pub fn modify(&mut self, name: &str, key: &str, value: &str) {
        self.deed(&format!("modify {name}"), |life| life.csi().modify(&life.volumes[name].volume, key, value));
    }

    /// A pool that is one file gets a larger one.
    pub fn grow_pool(&mut self) {
        let larger = Ground::Image.pools().replace("2560Mi", "2816Mi");
        let before = self.deed("ask for the capacity", |life| life.csi().try_capacity());
        self.deed("grow the pool", |life| {
            life.host.try_write("/place/pools.yaml", 0, larger.as_bytes()).map_err(Status::unknown)?;
            let capacity = life.csi().try_capacity()?;
            (capacity > before).then_some(()).ok_or_else(|| Status::aborted("it has not grown"))
        });
    }

    /// Everything has been deleted, and nothing is left over.
    pub fn end(&mut self) {
        self.next_deed();
        self.is_over.store(true, Ordering::SeqCst);
        self.join_watcher();
        if self.power_has_failed() && self.cut_in.is_none() {
            self.revive();
        }
        eventually("the place is empty", || {
            let left = self.host.inventory(PLACE);
            (left.files.is_empty() && left.loops.is_empty()).then_some(())
        });
        self.host.inventory(PLACE).assert_empty();
        self.host.stop_cistern();
    }
}

impl Drop for Life<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.join_watcher();
    }
}

fn fail(host: &Host, failed: &AtomicBool) {
    failed.store(true, Ordering::SeqCst);
    host.kill();
}

/// The host's kernel writes nothing before it is told to, and so a power cut loses all that was not synced.
fn keep_in_memory(host: &Host) {
    host.sh(
        "sysctl -qw vm.dirty_writeback_centisecs=0 vm.dirty_expire_centisecs=360000 fs.xfs.xfssyncd_centisecs=720000",
    );
    host.sh("mount -o remount,commit=3600 /");
}

/// Bytes that nobody else writes.
fn pattern(label: u64) -> Vec<u8> {
    let mut dice = Dice::new(label);
    (0..PIECE / 8).flat_map(|_| dice.next().to_le_bytes()).collect()
}
