//! `cistern host`: this machine's stores, served to controllers; and `cistern node`: kubelet's side, and the host's if the
//! machine has stores.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use tokio_util::sync::CancellationToken;

use cistern::config::PoolFiles;
use cistern::domain::{NodeId, Role};
use cistern::node::Node;
use cistern::peer::Tls;
use cistern::pool::tasks::Tasks;

use super::server::{Doors, Failure, MachineArgs, ServerArgs, Socket, give_up, stop_on_signal};
use super::services::Services;
use super::stores::{Source, Stores};

/// The flags of `cistern host`. Pools are those of --config and those that a controller brings.
#[derive(Args)]
pub struct HostArgs {
    /// The address to listen on for controllers, such as 0.0.0.0:7443
    #[arg(long, env = "CISTERN_LISTEN")]
    listen: SocketAddr,
    /// The directory with ca.crt, tls.crt and tls.key; see `cistern certs`
    #[arg(long, env = "CISTERN_TLS")]
    tls: PathBuf,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// The flags of `cistern node`. With --listen the machine is a host too: its pools are those of --config and those that a
/// controller brings.
#[derive(Args)]
pub struct NodeArgs {
    /// The address to listen on for controllers, if this machine has stores
    #[arg(long, env = "CISTERN_LISTEN", requires = "tls")]
    listen: Option<SocketAddr>,
    /// The directory with ca.crt, tls.crt and tls.key; see `cistern certs`
    #[arg(long, env = "CISTERN_TLS")]
    tls: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// Carries `cistern host` out.
pub fn host(args: &HostArgs) -> super::Done {
    let peers = Peers { listen: args.listen, tls: &args.tls };
    run(&args.machine, &args.server, Some(peers), false)
}

/// Carries `cistern node` out.
pub fn node(args: &NodeArgs) -> super::Done {
    let peers = args.listen.zip(args.tls.as_deref()).map(|(listen, tls)| Peers { listen, tls });
    run(&args.machine, &args.server, peers, true)
}

/// Where controllers are let in.
struct Peers<'a> {
    listen: SocketAddr,
    tls: &'a Path,
}

fn run(machine: &MachineArgs, server: &ServerArgs, peers: Option<Peers<'_>>, is_node: bool) -> super::Done {
    server.start_log()?;
    let (data, _only_server) = machine.open_data()?;
    let node = machine.node()?;
    let socket = Socket::bind(&server.endpoint)?;
    server.run(serve(machine, server, peers, is_node, &data, node, socket))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(
    machine: &MachineArgs,
    server: &ServerArgs,
    peers: Option<Peers<'_>>,
    is_node: bool,
    data: &Path,
    node: NodeId,
    socket: Socket,
) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let tasks = Tasks::default();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %node, endpoint = %server.endpoint.display(), "starting");
    let mut doors = Doors::new(&stop);
    let mut services = Services::default();
    let mut stores = None;
    if let Some(peers) = &peers {
        let tls = open_tls(peers.tls, &node)?;
        let files = PoolFiles::new(machine.config.clone(), data);
        let Some(opened) = open_stores(&node, data, &files, &tasks, &stop).await? else {
            give_up(&socket);
            return Ok(());
        };
        let for_peers = Services::default().identity(&server.driver_name).controller(&opened.host, &tasks, true).host(
            &opened.host,
            &tasks,
            files.clone(),
            data,
        );
        doors.open_to_peers(peers.listen, &tls, for_peers.routes()).await?;
        services = services.host(&opened.host, &tasks, files, data);
        stores = Some(opened);
    }
    if is_node {
        services = services.identity(&server.driver_name).node(Node::new(node, data), &tasks);
    }
    doors.open(socket, services.routes())?;
    tracing::info!("serving");
    doors.finish(&tasks).await?;
    if let Some(stores) = stores {
        stores.close().await;
    }
    Ok(())
}

/// The machine's certificate must be one of a host of its name: controllers expect no other.
fn open_tls(directory: &Path, node: &NodeId) -> Result<Arc<Tls>, Failure> {
    let tls = Tls::open(directory)?;
    let identity = tls.identity();
    if identity.speaks_for(&node.name, Role::Host) {
        return Ok(tls);
    }
    let name = &node.name;
    Err(format!("the certificate in {} is that of {identity}, and this is host {name}", directory.display()).into())
}

async fn open_stores(
    node: &NodeId,
    data: &Path,
    files: &PoolFiles,
    tasks: &Tasks,
    stop: &CancellationToken,
) -> Result<Option<Stores>, Failure> {
    Stores::open(node.name.clone(), data, Source::Files(files.clone()), tasks, stop).await
}
