//! Making a file system with the machine's own tools, and with features that kernels from 5.10 on mount.
//!
//! Nothing is left to a tool's defaults that decides who can mount the result: newer tools switch on newer features, so
//! those that the installed one knows are switched off by name. (xfsprogs comes with files of the defaults of old kernels,
//! but some releases' own mkfs refuses them.)

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::superblock::{self, Superblock};
use crate::domain::{FsType, Uuid};
use crate::machine::command::{Command, CommandError, Tool, Version};
use crate::machine::file::sync;

/// The features of an ext4: those of the kernels of 2016, nothing of the machine's mke2fs.conf (`none` goes first).
/// `metadata_csum_seed` lets the UUID be changed without writing every block anew, for clones; `resize_inode` and
/// `flex_bg` serve growth while mounted.
const EXT4_FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                             large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed";

/// Why there is no file system, or none that can be relied on.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The tool is missing, or said no.
    #[error("cannot make {fs} in {}", path.display())]
    Tool {
        /// What was to be made.
        fs: FsType,
        /// The image file or block device.
        path: PathBuf,
        /// How the tool failed.
        source: CommandError,
    },
    /// What was made may not be on the disk, or cannot be read back.
    #[error("cannot bring the new file system in {} to its disk", path.display())]
    Sync {
        /// The image file or block device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The tool succeeded, but what it made is not what was asked for.
    #[error("{} has no {fs} {uuid} after it was made: {found:?}", path.display())]
    Otherwise {
        /// What was to be made.
        fs: FsType,
        /// The UUID it was to have.
        uuid: Uuid,
        /// The image file or block device.
        path: PathBuf,
        /// What is there.
        found: Superblock,
    },
}

/// Makes a file system in an image file or block device that reads as zero from end to end, and brings it to the disk.
/// What is zero already is not written again.
///
/// `path` is absolute; its size is at least [`FsType::smallest`]. `sector` is the logical sector of the device that the
/// file system will be mounted from, 512 or 4096 bytes. `lock` is held until the tool has ended
/// ([`Command::change`]). After an error, what is at `path` must be zeroed before it is made again.
///
/// # Errors
/// [`MakeError::Tool`] with [`CommandError::Lost`] leaves open what was written.
pub fn make(path: &Path, fs: FsType, sector: u32, uuid: &Uuid, lock: &File) -> Result<(), MakeError> {
    let tool = tool(fs);
    let made = tool.version().and_then(|version| {
        let args = args(fs, version, sector, uuid);
        Command::new(tool).args(args).arg(path).change(lock)
    });
    made.map_err(|source| MakeError::Tool { fs, path: path.into(), source })?;
    let synced = File::open(path).and_then(|file| sync("format.file", &file)).and_then(|()| superblock::read(path, fs));
    let bytes = synced.map_err(|source| MakeError::Sync { path: path.into(), source })?;
    match superblock::parse(fs, &bytes) {
        Superblock::Sound(made) if made.uuid == *uuid => Ok(()),
        found => Err(MakeError::Otherwise { fs, uuid: *uuid, path: path.into(), found }),
    }
}

fn tool(fs: FsType) -> Tool {
    match fs {
        FsType::Ext4 => Tool::MkfsExt4,
        FsType::Xfs => Tool::MkfsXfs,
        FsType::Btrfs => Tool::MkfsBtrfs,
    }
}

/// The tool's arguments, but for the path.
fn args(fs: FsType, version: Version, sector: u32, uuid: &Uuid) -> Vec<String> {
    match fs {
        FsType::Ext4 => ext4_args(version, uuid),
        FsType::Xfs => xfs_args(version, sector, uuid),
        FsType::Btrfs => btrfs_args(version, uuid),
    }
}

/// Blocks of 4 KiB fit every sector and let a small file system grow large; one inode for each 16 KiB as mke2fs itself
/// gives, whatever the size; no blocks reserved for root, who is nobody special in a pod.
fn ext4_args(version: Version, uuid: &Uuid) -> Vec<String> {
    let mut extended = "nodiscard,lazy_itable_init=1,lazy_journal_init=1".to_owned();
    if version >= Version(1, 47) {
        // inode tables count as zeroed, so the kernel does not write them at the first mount
        extended.push_str(",assume_storage_prezeroed=1");
    }
    let uuid = uuid.to_string();
    let fixed = ["-q", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-e", "remount-ro"];
    words(&fixed, &["-O", EXT4_FEATURES, "-E", &extended, "-U", &uuid])
}

/// What xfsprogs of Linux 5.15 gave by default; Linux 5.10 is the first to mount that.
fn xfs_args(version: Version, sector: u32, uuid: &Uuid) -> Vec<String> {
    let mut metadata = format!("uuid={uuid},crc=1,finobt=1,reflink=1,rmapbt=0");
    let mut inode = "sparse=1".to_owned();
    if version >= Version(5, 10) {
        metadata.push_str(",bigtime=1,inobtcount=1");
    }
    if version >= Version(5, 19) {
        inode.push_str(",nrext64=0");
    }
    let sector = format!("size={sector}");
    let mut args = words(&["-q", "-K", "-b", "size=4096"], &["-s", &sector, "-m", &metadata]);
    if version >= Version(6, 10) {
        inode.push_str(",exchange=0");
        args.extend(words(&["-n", "parent=0"], &[]));
    }
    args.extend(words(&["-i"], &[&inode]));
    args
}

/// Metadata twice, so that one bad sector does not end it. Sectors of 4 KiB, the only size that every machine reads.
fn btrfs_args(version: Version, uuid: &Uuid) -> Vec<String> {
    let mut features = "extref,skinny-metadata,no-holes".to_owned();
    if version >= Version(6, 19) {
        features.push_str(",^block-group-tree");
    }
    let uuid = uuid.to_string();
    let fixed = ["-q", "--nodiscard", "-s", "4096", "-n", "16384", "-m", "dup", "-d", "single"];
    words(&fixed, &["-O", &features, "-U", &uuid])
}

fn words(fixed: &[&str], more: &[&str]) -> Vec<String> {
    fixed.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "07070707-0707-0707-0707-070707070707";

    #[test]
    fn each_version_is_asked_for_what_it_knows() {
        const EXT4: &str = "-q -b 4096 -I 256 -i 16384 -m 0 -e remount-ro -O none,has_journal,ext_attr,resize_inode,\
                            dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,\
                            extra_isize,metadata_csum,metadata_csum_seed -E nodiscard,lazy_itable_init=1,\
                            lazy_journal_init=1";
        const XFS: &str = "-q -K -b size=4096 -s size=512 -m uuid=UUID,crc=1,finobt=1,reflink=1,rmapbt=0";
        const BTRFS: &str = "-q --nodiscard -s 4096 -n 16384 -m dup -d single -O extref,skinny-metadata,no-holes";
        for (fs, version, expected) in [
            (FsType::Ext4, Version(1, 46), format!("{EXT4} -U UUID")),
            (FsType::Ext4, Version(1, 47), format!("{EXT4},assume_storage_prezeroed=1 -U UUID")),
            (FsType::Xfs, Version(5, 3), format!("{XFS} -i sparse=1")),
            (FsType::Xfs, Version(5, 10), format!("{XFS},bigtime=1,inobtcount=1 -i sparse=1")),
            (FsType::Xfs, Version(6, 1), format!("{XFS},bigtime=1,inobtcount=1 -i sparse=1,nrext64=0")),
            (
                FsType::Xfs,
                Version(6, 18),
                format!("{XFS},bigtime=1,inobtcount=1 -n parent=0 -i sparse=1,nrext64=0,exchange=0"),
            ),
            (FsType::Btrfs, Version(5, 10), format!("{BTRFS} -U UUID")),
            (FsType::Btrfs, Version(6, 19), format!("{BTRFS},^block-group-tree -U UUID")),
        ] {
            let uuid = Uuid::from_bytes([7; 16]);
            assert_eq!(args(fs, version, 512, &uuid).join(" ").replace(UUID, "UUID"), expected, "{fs} {version:?}");
        }
    }

    #[test]
    fn the_sector_is_that_of_the_device() {
        let args = args(FsType::Xfs, Version(6, 1), 4096, &Uuid::from_bytes([7; 16]));
        assert!(args.contains(&"size=4096".to_owned()));
        assert!(!args.contains(&"size=512".to_owned()));
    }
}
