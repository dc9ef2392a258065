//! What this process may do, of the things that root is not given everywhere.

/// Whether it has CAP_SYS_RESOURCE, which the kernel asks for when a mounted ext4 grows. Containers often lack it.
/// Where CISTERN_FULL_RIGHTS is set, it must have it.
pub fn may_grow_ext4() -> bool {
    let effective = rustix::thread::capabilities(None).unwrap().effective;
    let may = effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE);
    assert!(may || std::env::var_os("CISTERN_FULL_RIGHTS").is_none(), "this process lacks CAP_SYS_RESOURCE");
    may
}
