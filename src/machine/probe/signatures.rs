//! The marks that formats leave at known places. Sources: each format's own headers (kernel: `include/uapi/linux/raid/md_p.h`,
//! `linux/magic.h`, `fs/*`; LVM2, cryptsetup, ZFS, UEFI specification), and for RAID controllers the `dmraid` formats.

/// Where a mark is.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// So many bytes from the start.
    Start(u64),
    /// So many bytes before the end.
    End(u64),
    /// The superblock of md 0.90: the last 64 KiB-aligned 64 KiB of the device.
    Raid090,
    /// The superblock of md 1.0: at least 8 KiB before the end, aligned to 4 KiB.
    Raid10,
}

impl Place {
    /// The offset on a device of this size, both in bytes; `None` if the device is too small.
    pub fn offset(self, size: u64) -> Option<u64> {
        match self {
            Place::Start(offset) => Some(offset),
            Place::End(distance) => size.checked_sub(distance),
            Place::Raid090 => (size & !0xffff).checked_sub(0x1_0000),
            Place::Raid10 => (size & !0x1ff).checked_sub(0x2000).map(|offset| offset & !0xfff),
        }
    }
}

/// Bytes that tell a format.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// What it is, for people.
    pub name: &'static str,
    /// Where.
    pub place: Place,
    /// The bytes.
    pub bytes: &'static [u8],
}

const fn start(name: &'static str, offset: u64, bytes: &'static [u8]) -> Mark {
    Mark { name, place: Place::Start(offset), bytes }
}

const fn end(name: &'static str, distance: u64, bytes: &'static [u8]) -> Mark {
    Mark { name, place: Place::End(distance), bytes }
}

/// The magic of md's superblocks, 0xa92b4efc.
const RAID: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];

/// What owns the whole device and says so in its first sectors.
pub const AT_THE_START: &[Mark] = &[
    start("LUKS1", 0, b"LUKS\xba\xbe\x00\x01"),
    start("LUKS2", 0, b"LUKS\xba\xbe\x00\x02"),
    start("LUKS", 0, b"LUKS\xba\xbe"),
    start("LVM2 physical volume", 0, b"LABELONE"),
    start("LVM2 physical volume", 512, b"LABELONE"),
    start("LVM2 physical volume", 1024, b"LABELONE"),
    start("LVM2 physical volume", 1536, b"LABELONE"),
    start("md 1.1 member", 0, RAID),
    start("md 1.2 member", 4096, RAID),
    start("bcache", 4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    start("bcachefs", 4096 + 24, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    start("GPT", 512, b"EFI PART"),
    start("GPT", 4096, b"EFI PART"),
    start("Stratis", 512 + 4, b"!Stra0tis\x86\xff\x02^\x41rh"),
    start("Ceph BlueStore", 0, b"bluestore block device"),
    start("VDO", 0, b"dmvdo001"),
    start("device-mapper snapshot store", 0, b"SnAp"),
    start("dm-integrity", 0, b"integrt\0"),
    start("dm-verity", 0, b"verity\0\0"),
    start("BitLocker", 3, b"-FVE-FS-"),
];

/// File systems, and what is used like one, that cistern does not make.
pub const OTHER_FILE_SYSTEMS: &[Mark] = &[
    start("swap", 4096 - 10, b"SWAPSPACE2"),
    start("swap", 4096 - 10, b"SWAP-SPACE"),
    start("hibernation image", 4096 - 10, b"S1SUSPEND\0"),
    start("swap", 8192 - 10, b"SWAPSPACE2"),
    start("swap", 16384 - 10, b"SWAPSPACE2"),
    start("swap", 65536 - 10, b"SWAPSPACE2"),
    start("NTFS", 3, b"NTFS    "),
    start("exFAT", 3, b"EXFAT   "),
    start("ReFS", 3, b"ReFS\0"),
    start("vfat", 82, b"FAT32   "),
    start("vfat", 54, b"FAT16   "),
    start("vfat", 54, b"FAT12   "),
    start("vfat", 54, b"FAT     "),
    start("ISO 9660", 32769, b"CD001"),
    start("UDF", 32769, b"BEA01"),
    start("UDF", 32769, b"NSR0"),
    start("squashfs", 0, b"hsqs"),
    start("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    start("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    start("NILFS2", 1024 + 6, b"\x34\x34"),
    start("HFS+", 1024, b"H+\x00\x04"),
    start("APFS", 32, b"NXSB"),
    start("JFS", 32768, b"JFS1"),
    start("ReiserFS", 65536 + 52, b"ReIsEr"),
    start("GFS2", 65536, b"\x01\x16\x19\x70"),
    start("OCFS2", 1024, b"OCFSV2"),
    start("OCFS2", 2048, b"OCFSV2"),
    start("OCFS2", 4096, b"OCFSV2"),
    start("OCFS2", 8192, b"OCFSV2"),
    start("VMFS volume member", 1 << 20, b"\x0d\xd0\x01\xc0"),
    start("VMFS", 2 << 20, b"\x5e\xf1\xab\x2f"),
];

/// What is looked for last: what is at the end of a device, where a file system may have a user's data, copies that outlive
/// what they are copies of, and boot sectors, which other formats have too.
pub const AT_THE_END: &[Mark] = &[
    Mark { name: "md 0.90 member", place: Place::Raid090, bytes: RAID },
    Mark { name: "md 1.0 member", place: Place::Raid10, bytes: RAID },
    end("DRBD", 4096 - 60, b"\x83\x74\x02\x6b"),
    end("DRBD", 4096 - 60, b"\x83\x74\x02\x6c"),
    end("DRBD", 4096 - 60, b"\x83\x74\x02\x6d"),
    end("Intel RAID member", 1024, b"Intel Raid ISM Cfg Sig. "),
    end("NVIDIA RAID member", 1024, b"NVIDIA"),
    end("DDF RAID member", 512, b"\xde\x11\xde\x11"),
    end("JMicron RAID member", 512, b"JM"),
    end("GPT (its copy)", 512, b"EFI PART"),
    end("GPT (its copy)", 4096, b"EFI PART"),
    start("LUKS2 (its copy)", 0x4000, b"SKUL\xba\xbe"),
    start("LUKS2 (its copy)", 0x8000, b"SKUL\xba\xbe"),
    start("LUKS2 (its copy)", 0x1_0000, b"SKUL\xba\xbe"),
    start("LUKS2 (its copy)", 0x2_0000, b"SKUL\xba\xbe"),
    start("LUKS2 (its copy)", 0x4_0000, b"SKUL\xba\xbe"),
    start("LUKS2 (its copy)", 0x8_0000, b"SKUL\xba\xbe"),
    start("LUKS2 (its copy)", 0x10_0000, b"SKUL\xba\xbe"),
    start("LUKS2 (its copy)", 0x20_0000, b"SKUL\xba\xbe"),
    start("LUKS2 (its copy)", 0x40_0000, b"SKUL\xba\xbe"),
    start("btrfs (a copy of its superblock)", (64 << 20) + 0x40, b"_BHRfS_M"),
    start("btrfs (a copy of its superblock)", (256 << 30) + 0x40, b"_BHRfS_M"),
    start("ext (a copy of its superblock)", (128 << 20) + 0x38, b"\x53\xef"),
    start("boot sector", 510, b"\x55\xaa"),
];
