//! The machine below: system calls and external commands. The only place with `unsafe`, and each use carries its argument.
//! It knows files, devices, mounts and tools, and nothing of pools or volumes.

pub mod command;
pub mod device;
pub mod file;
pub mod filesystem;
pub mod loopdev;
pub mod mounts;
pub mod namespaces;
pub mod probe;
pub mod supervisor;
#[cfg(test)]
pub mod testing;

/// Sixteen random bytes from the kernel.
pub fn random_bytes() -> std::io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    // reads of up to 256 bytes are never cut short: getrandom(2)
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}
