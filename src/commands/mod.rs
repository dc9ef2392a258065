//! The commands, their flags and help.

mod certs;
mod cluster;
mod controller;
mod doctor;
mod host;
mod metrics;
mod people;
mod serve;
mod server;
mod services;
mod stores;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use cistern::domain::error::chain;

/// Storage pools for virtual machines on Kubernetes: a CSI driver.
///
/// `cistern serve` is everything on one machine: it makes volumes in the pools of pools.yaml, or in one pool of its own,
/// and serves CSI on a unix socket. In a fleet, `host` and `node` are its two halves on each machine, and `controller` routes
/// to the hosts. The other commands ask a server that runs on this machine.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve CSI (Identity, Controller and Node) for this machine on one unix socket
    Serve(serve::ServeArgs),
    /// Serve this machine's stores to controllers
    Host(host::HostArgs),
    /// Serve CSI Node to kubelet, and this machine's stores to controllers if it has any
    Node(host::NodeArgs),
    /// Route CSI (Identity and Controller) to the hosts of a fleet
    Controller(controller::ControllerArgs),
    /// Show pools
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Show volumes, and choose between two of one name
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Show snapshots
    #[command(subcommand)]
    Snapshot(ListCommand),
    /// Tell what this machine lacks, what is orphaned, and the command that mends it
    Doctor(PeopleArgs),
    /// Make the certificates that controllers, hosts and nodes show each other
    Certs(certs::CertsArgs),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum PoolCommand {
    /// List the pools with their stores, sizes and troubles
    Ls(PeopleArgs),
}

#[derive(Subcommand)]
enum VolumeCommand {
    /// List them all
    Ls(PeopleArgs),
    /// Of several volumes of one name keep this one; the others are removed, unless a node has or had them
    Keep {
        /// The id of the one that stays
        id: String,
        #[command(flatten)]
        people: PeopleArgs,
    },
}

#[derive(Subcommand)]
enum ListCommand {
    /// List them all
    Ls(PeopleArgs),
}

/// What all commands that ask a server have.
#[derive(Args)]
struct PeopleArgs {
    /// The server's socket
    #[arg(long, env = "CISTERN_ENDPOINT", default_value = server::DEFAULT_ENDPOINT, value_parser = server::parse_endpoint)]
    endpoint: PathBuf,
    /// How to print: a table on a terminal, JSON elsewhere, unless it is said here
    #[arg(short, long)]
    output: Option<Output>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl PeopleArgs {
    fn output(&self) -> Output {
        let fitting = if std::io::stdout().is_terminal() { Output::Table } else { Output::Json };
        self.output.unwrap_or(fitting)
    }
}

/// Reads the command line and carries it out.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => serve::main(&args),
        Command::Host(args) => host::host(&args),
        Command::Node(args) => host::node(&args),
        Command::Controller(args) => controller::main(&args),
        Command::Pool(PoolCommand::Ls(args)) => people::pools(&args),
        Command::Volume(VolumeCommand::Ls(args)) => people::volumes(&args),
        Command::Volume(VolumeCommand::Keep { id, people }) => people::keep(&people, id),
        Command::Snapshot(ListCommand::Ls(args)) => people::snapshots(&args),
        Command::Doctor(args) => doctor::main(&args),
        Command::Certs(args) => certs::main(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "cistern", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("cistern: {}", chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

/// How a command ends.
type Done = Result<ExitCode, server::Failure>;
