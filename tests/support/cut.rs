//! What a pool stands on, and when the power fails there.

use std::time::Duration;

/// What a pool stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// A directory on XFS, which has reflinks.
    Xfs,
    /// A pool that is one file, on ext4.
    Image,
    /// A directory on ext4, which has none.
    Ext4,
    /// A directory on Btrfs, where bringing one file to the disk says nothing of others.
    Btrfs,
}

impl Ground {
    pub const ALL: [Ground; 4] = [Ground::Xfs, Ground::Image, Ground::Ext4, Ground::Btrfs];

    pub fn has_reflinks(self) -> bool {
        self != Ground::Ext4
    }

    pub(super) fn pools(self) -> &'static str {
        match self {
            Ground::Image => "pools:\n- name: p\n  dir: { path: /place/disk/pool, image: { size: 2560Mi } }\n",
            _ => "pools:\n- name: p\n  dir: { path: /place/disk/pool }\n",
        }
    }

    pub(super) fn mkfs(self) -> &'static str {
        match self {
            Ground::Xfs => "mkfs.xfs -qf",
            Ground::Btrfs => "mkfs.btrfs -qf",
            Ground::Image | Ground::Ext4 => "mkfs.ext4 -qF",
        }
    }

    /// The kernel writes nothing by itself: what nobody has synced is lost.
    pub(super) fn mount(self) -> &'static str {
        match self {
            Ground::Xfs => "mount",
            _ => "mount -o commit=3600",
        }
    }
}

/// When the power fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// It does not.
    Never,
    /// When this step of the code is reached.
    AtStep(String),
    /// So long after this deed has begun.
    After(usize, Duration),
    /// When this deed has been answered, before anything else is done.
    Answered(usize),
    /// This is never brought to the disk, and the power fails after the deed in which that was so for this many times.
    Unsynced(String, usize),
}

impl Cut {
    /// What the server is told.
    pub(super) fn variables(&self, hang: &str, seen: &str) -> Vec<(&'static str, String)> {
        match self {
            Cut::AtStep(step) => vec![
                ("CISTERN_STEP", format!("{step}=hang")),
                ("CISTERN_STEP_HANG", hang.to_owned()),
                ("CISTERN_STEP_SEEN", seen.to_owned()),
            ],
            Cut::Unsynced(name, _) => {
                vec![("CISTERN_UNSYNCED", name.clone()), ("CISTERN_STEP_SEEN", seen.to_owned())]
            }
            _ => Vec::new(),
        }
    }
}
