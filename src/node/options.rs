//! Mount options: each allowed by name. What is not on the list is refused: some options name files and devices of the
//! machine, and none of those is a tenant's to choose.

use rustix::mount::MountFlags;

use crate::domain::FsType;

/// Options of every file system, which are flags of mount(2).
const FLAGS: [(&str, MountFlags); 13] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("lazytime", MountFlags::LAZYTIME),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("nosymfollow", MountFlags::NOSYMFOLLOW),
    ("silent", MountFlags::SILENT),
];

/// Options that say what is so without them.
const DEFAULTS: [&str; 7] = ["defaults", "rw", "suid", "dev", "exec", "async", "atime"];

/// Options of one file system, with a value where the name ends in `=`.
const EXT4: [&str; 17] = [
    "discard",
    "nodiscard",
    "barrier=",
    "nobarrier",
    "commit=",
    "data=",
    "delalloc",
    "nodelalloc",
    "errors=remount-ro",
    "errors=continue",
    "stripe=",
    "user_xattr",
    "acl",
    "noacl",
    "prjquota",
    "usrquota",
    "grpquota",
];
const XFS: [&str; 16] = [
    "discard",
    "nodiscard",
    "allocsize=",
    "attr2",
    "inode64",
    "largeio",
    "nolargeio",
    "logbufs=",
    "logbsize=",
    "swalloc",
    "wsync",
    "prjquota",
    "uquota",
    "gquota",
    "pquota",
    "noquota",
];
const BTRFS: [&str; 16] = [
    "discard",
    "discard=",
    "nodiscard",
    "autodefrag",
    "noautodefrag",
    "commit=",
    "compress",
    "compress=",
    "compress-force=",
    "flushoncommit",
    "max_inline=",
    "space_cache=",
    "ssd",
    "nossd",
    "datacow",
    "nodatacow",
];
/// The SELinux context of the whole file system; values may be quoted, and hold commas then.
const CONTEXTS: [&str; 4] = ["context=", "fscontext=", "defcontext=", "rootcontext="];

/// Options as mount(2) takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Those that are flags.
    pub flags: MountFlags,
    /// The others, joined by commas.
    pub data: String,
}

/// An option that is not on the list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the mount option {option:?} is not allowed{}", fs.map_or(String::new(), |fs| format!(" for {fs}")))]
pub struct Refused {
    option: String,
    fs: Option<FsType>,
}

/// Reads mount options, one or several to an entry, for a file system; without one, an option that any has is allowed.
pub fn parse(fs: Option<FsType>, entries: &[String]) -> Result<Options, Refused> {
    let mut options = Options { flags: MountFlags::empty(), data: String::new() };
    for option in entries.iter().flat_map(|entry| split(entry)).filter(|option| !option.is_empty()) {
        if let Some((_, flag)) = FLAGS.iter().find(|(name, _)| *name == option) {
            options.flags |= *flag;
        } else if !DEFAULTS.contains(&option) {
            if !is_known(fs, option) {
                return Err(Refused { option: option.to_owned(), fs });
            }
            if !options.data.is_empty() {
                options.data.push(',');
            }
            options.data.push_str(option);
        }
    }
    Ok(options)
}

/// The options of an entry; commas within quotes belong to a value.
fn split(entry: &str) -> Vec<&str> {
    let mut quoted = false;
    let is_end = move |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    };
    entry.split(is_end).collect()
}

fn is_known(fs: Option<FsType>, option: &str) -> bool {
    let own = |fs: FsType| -> &[&str] {
        match fs {
            FsType::Ext4 => &EXT4,
            FsType::Xfs => &XFS,
            FsType::Btrfs => &BTRFS,
        }
    };
    let kinds: &[FsType] = fs.as_ref().map_or(&FsType::ALL, std::slice::from_ref);
    let matches = |known: &&str| match known.strip_suffix('=') {
        Some(name) => option.split_once('=').is_some_and(|(given, value)| given == name && is_plain(value)),
        None => *known == option,
    };
    CONTEXTS.iter().any(&matches) || kinds.iter().any(|fs| own(*fs).iter().any(&matches))
}

/// Whether a value has nothing in it that begins another option or names a file.
fn is_plain(value: &str) -> bool {
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.:+".contains(c) || (inner.is_some() && c == ',');
    let value = inner.unwrap_or(value);
    !value.is_empty() && value.chars().all(allowed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parsed(fs: Option<FsType>, options: &str) -> Result<Options, Refused> {
        parse(fs, &[options.to_owned()])
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let options = parsed(Some(FsType::Ext4), "ro,noatime,rw,commit=30,discard").unwrap();
        assert_eq!(options.flags, MountFlags::RDONLY | MountFlags::NOATIME);
        assert_eq!(options.data, "commit=30,discard");
        let context = r#"context="system_u:object_r:container_file_t:s0:c1,c2",noexec"#;
        let options = parsed(None, context).unwrap();
        assert_eq!(options.data, r#"context="system_u:object_r:container_file_t:s0:c1,c2""#);
        assert_eq!(options.flags, MountFlags::NOEXEC);
    }

    #[test]
    fn what_is_not_on_the_list_is_refused() {
        for (fs, option) in [
            (Some(FsType::Xfs), "logdev=/dev/sda"),
            (Some(FsType::Btrfs), "device=/dev/sda"),
            (Some(FsType::Ext4), "journal_path=/dev/sda"),
            (Some(FsType::Ext4), "allocsize=1m"),
            (Some(FsType::Ext4), "commit=/x"),
            (Some(FsType::Ext4), "commit="),
            (None, "loop"),
            (None, "bind"),
            (None, "context=a\nb"),
            (None, "nouuid"),
        ] {
            assert!(parsed(fs, option).is_err(), "{option}");
        }
    }
}
