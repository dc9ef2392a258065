//! Makes Rust of `proto/*.proto`: messages, servers and clients. `src/proto.rs` includes the result.

use std::error::Error;
use std::fs;
use std::io;
use std::path::PathBuf;

const FOLDER: &str = "proto";

fn main() -> Result<(), Box<dyn Error>> {
    // The folder and not its files, so that a new file counts too.
    println!("cargo::rerun-if-changed={FOLDER}");
    let descriptors = protox::compile(proto_files()?, [FOLDER])?;
    // The well-known types become those of `prost_types`, and wrappers an `Option` of what they wrap.
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

/// All files of the folder that end in `.proto`, in a fixed order.
fn proto_files() -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(FOLDER)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
