//! `cistern serve`: host and node in one process on one socket.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use cistern::config::PoolFiles;
use cistern::domain::NodeId;
use cistern::node::Node;
use cistern::pool::tasks::Tasks;

use super::metrics::Watched;
use super::server::{Doors, Failure, MachineArgs, ServerArgs, Socket, give_up, stop_on_signal};
use super::services::Services;
use super::stores::{Source, Stores};

/// The flags of `cistern serve`. Without --config there is one pool named "default" below the data directory.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// Carries the command out.
pub fn main(args: &ServeArgs) -> super::Done {
    args.server.start_log()?;
    let (data, _only_server) = args.machine.open_data()?;
    let node = args.machine.node()?;
    // bound before anything is opened, so that a second server is refused before it touches a store
    let socket = Socket::bind(&args.server.endpoint)?;
    args.server.run(serve(args, &data, node, socket))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: &ServeArgs, data: &Path, node: NodeId, socket: Socket) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let tasks = Tasks::default();
    let ServerArgs { endpoint, driver_name, .. } = &args.server;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %node, endpoint = %endpoint.display(), "starting");
    let files = PoolFiles::own(args.machine.config.clone());
    let source = if args.machine.config.is_some() { Source::Files(files.clone()) } else { Source::Default };
    let Some(stores) = Stores::open(node.name.clone(), data, source, &tasks, &stop).await? else {
        give_up(&socket);
        return Ok(());
    };
    let services = Services::default()
        .identity(driver_name)
        .controller(&stores.host, &tasks, false)
        .node(Node::new(node, data), Some(&stores.host), &tasks)
        .host(&stores.host, &tasks, files, data);
    let mut doors = Doors::new(&stop);
    doors.open(socket, services.routes())?;
    let host = Some(Arc::clone(&stores.host));
    args.server.show(Watched { host, ..Default::default() }, &stop).await?;
    tracing::info!("serving");
    doors.finish(&tasks).await?;
    stores.close().await;
    Ok(())
}
