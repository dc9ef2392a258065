//! The program: its commands, and the wiring of what they need.

mod commands;

use std::process::ExitCode;

use cistern::machine::{filesystem::replay, supervisor};

fn main() -> ExitCode {
    // two hidden words make this program its own helper; they take no flags and start no threads
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|word| word.to_str()) {
        Some(supervisor::WORD) => supervisor::main(args),
        Some(replay::WORD) => replay::main(args),
        _ => commands::main(),
    }
}
