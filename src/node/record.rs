//! Stage records: what this node did for a volume, written before it is done, so that the way back asks nobody.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Node;
use crate::domain::volume::Content;
use crate::domain::{AccessMode, Id};
use crate::machine::file;
use crate::machine::mounts::{self, MountError, MountTable};
use crate::share::connect::Made;
use crate::share::{Connection, Ticket};

/// The newest format that this version writes.
const FORMAT: u32 = 1;

/// What this node did, or is about to do, for one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRecord {
    /// The format it is written in.
    pub format: u32,
    /// The volume.
    pub volume: Id,
    /// Where it is staged.
    pub staging: PathBuf,
    /// How it was staged.
    pub access: RecordedAccess,
    /// By whom at a time.
    pub mode: AccessMode,
    /// The way to it.
    pub connection: Connection,
    /// A second device over the same bytes, which refuses writes: for targets that may only be read.
    pub reader: Option<Made>,
    /// Where it is published.
    pub targets: Vec<TargetRecord>,
}

/// How a volume was staged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordedAccess {
    /// As a device.
    Block,
    /// As a mounted file system.
    Mount {
        /// With these options.
        flags: Vec<String>,
        /// For this group.
        group: Option<u32>,
    },
}

/// One place where a volume is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// Where.
    pub path: PathBuf,
    /// Whether it may only be read there.
    pub read_only: bool,
}

/// What is known of a volume here.
pub type Recorded = Option<StageRecord>;

/// A stage record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("reading the stage record {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not one that this version knows.
    #[error("the stage record {}: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is not on the disk.
    #[error("writing the stage record {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Node {
    /// What is known of the volume on this node.
    pub(super) fn recorded(&self, volume: &Id) -> Result<Recorded, RecordError> {
        let path = self.path_of(volume);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Read { path, source }),
        };
        parse(&text).map(Some).map_err(|why| RecordError::Unreadable { path, why })
    }

    /// Writes what is known of the volume.
    pub(super) fn save(&self, record: &StageRecord) -> Result<(), RecordError> {
        let path = self.path_of(&record.volume);
        let failed = |source| RecordError::Write { path: path.clone(), source };
        let text = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        std::fs::create_dir_all(&self.records).map_err(failed)?;
        file::write_atomically(&self.records, &file_name(&record.volume), &text)
            .map_err(|error| failed(std::io::Error::other(error)))
    }

    /// Removes what a crash left half written: a volume that is not staged again has nobody who writes it over.
    pub(super) fn remove_unfinished(&self) {
        let entries = std::fs::read_dir(&self.records).into_iter().flatten().flatten();
        for unfinished in entries.filter(|entry| file::is_temporary(&entry.file_name())) {
            // one that stays is harmless
            let _ = std::fs::remove_file(unfinished.path());
        }
    }

    /// Forgets the volume.
    pub(super) fn forget(&self, volume: &Id) -> Result<(), RecordError> {
        let path = self.path_of(volume);
        match file::remove_durably(&path) {
            Ok(_) => Ok(()),
            Err(error) => Err(RecordError::Write { path, source: std::io::Error::other(error) }),
        }
    }

    fn path_of(&self, volume: &Id) -> PathBuf {
        self.records.join(file_name(volume))
    }
}

impl StageRecord {
    /// The record of a volume that nothing was done for yet.
    pub(super) fn new(stage: &super::Stage) -> StageRecord {
        StageRecord {
            format: FORMAT,
            volume: stage.volume,
            staging: stage.path.clone(),
            access: RecordedAccess::of(&stage.capability.access),
            mode: stage.capability.mode,
            connection: Connection::new(stage.ticket.clone()),
            reader: None,
            targets: Vec::new(),
        }
    }

    /// The target at this path.
    pub(super) fn target(&self, path: &Path) -> Option<&TargetRecord> {
        self.targets.iter().find(|target| target.path == path)
    }

    /// The way to the device that refuses writes, if there is one.
    pub(super) fn reader(&self) -> Option<Connection> {
        let ticket = Ticket { read_only: true, content: Content::Block, ..self.connection.ticket.clone() };
        self.reader.map(|made| Connection { ticket, made })
    }

    /// A target at which something really is mounted. After a reboot there is none, whatever the record says.
    pub(super) fn still_published(&self) -> Result<Option<PathBuf>, MountError> {
        if self.targets.is_empty() {
            return Ok(None);
        }
        let table = MountTable::read()?;
        let is_mounted = |path: &Path| mounts::resolve(path).is_ok_and(|point| table.at(&point).is_some());
        Ok(self.targets.iter().map(|target| &target.path).find(|path| is_mounted(path)).cloned())
    }

    /// Whether the volume is staged or published at this path.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.staging == path || self.target(path).is_some()
    }
}

impl RecordedAccess {
    /// Whether it is the same. The group is each pod's own: kubelet that starts anew stages with that of any of them.
    pub(super) fn is_but_for_the_group(&self, other: &RecordedAccess) -> bool {
        match (self, other) {
            (RecordedAccess::Block, RecordedAccess::Block) => true,
            (RecordedAccess::Mount { flags, .. }, RecordedAccess::Mount { flags: others, .. }) => flags == others,
            _ => false,
        }
    }

    pub(super) fn of(access: &crate::domain::request::Access) -> RecordedAccess {
        match access {
            crate::domain::request::Access::Block => RecordedAccess::Block,
            crate::domain::request::Access::Mount(mount) => {
                RecordedAccess::Mount { flags: mount.flags.clone(), group: mount.group }
            }
        }
    }
}

fn file_name(volume: &Id) -> String {
    format!("{}.{}.json", volume.store, volume.key)
}

fn parse(text: &[u8]) -> Result<StageRecord, String> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if format > FORMAT {
        return Err(format!("it has format {format}, and this version knows {FORMAT}"));
    }
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::machine::testing::TestDir;

    #[test]
    fn a_start_removes_what_a_crash_left_half_written_and_nothing_else() {
        let dir = TestDir::new();
        let records = dir.join("stage");
        std::fs::create_dir(&records).unwrap();
        for name in [".store.v-key.json.new", "store.v-key.json"] {
            std::fs::write(records.join(name), "{").unwrap();
        }
        Node::new("a,10.0.0.1".parse().unwrap(), dir.path());
        let left = std::fs::read_dir(&records).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["store.v-key.json"]);
    }
}
