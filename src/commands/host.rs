//! `cistern host`: this machine's stores, served to controllers; and `cistern node`: kubelet's side, and the host's if the
//! machine has stores.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use cistern::config::PoolFiles;
use cistern::csi::Registration;
use cistern::domain::{NodeId, NodeName, Role};
use cistern::machine::namespaces::{self, Kept};
use cistern::machine::supervisor;
use cistern::node::Node;
use cistern::peer::Tls;
use cistern::peer::enrol::{EnrolAddress, Enrolment};
use cistern::pool::tasks::Tasks;

use super::metrics::Watched;
use super::server::{Doors, Failure, MachineArgs, ServerArgs, Socket, bind, give_up, serve_peers, stop_on_signal};
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
    /// In a cluster: where controllers give this machine its certificate, which is kept in --tls and renewed
    #[arg(long, env = "CISTERN_ENROL", value_name = "ADDR:PORT", requires_all = ["enrol_dir", "listen"])]
    enrol: Option<EnrolAddress>,
    /// The directory with what enrolling takes: ca.crt and token
    #[arg(long, env = "CISTERN_ENROL_DIR", requires = "enrol")]
    enrol_dir: Option<PathBuf>,
    /// Kubelet's directory of plugins, such as /var/lib/kubelet/plugins_registry, to register there
    #[arg(long, env = "CISTERN_REGISTRATION_DIR", value_name = "DIR")]
    registration_dir: Option<PathBuf>,
    /// In a pod: work as the machine does, in its mount and UTS namespaces. All paths but --enrol-dir are the machine's then
    #[arg(long, env = "CISTERN_JOIN_MACHINE")]
    join_machine: bool,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// Carries `cistern host` out.
pub fn host(args: &HostArgs) -> super::Done {
    let peers = Peers { listen: args.listen, tls: &args.tls, enrol: None };
    run(&args.machine, &args.server, Some(peers), Kubelet::None)
}

/// Carries `cistern node` out.
pub fn node(args: &NodeArgs) -> super::Done {
    // open for as long as the process lives
    let kept = if args.join_machine { join_machine(args.enrol_dir.as_deref())? } else { None };
    let credentials = kept.as_ref().map(Kept::path).or_else(|| args.enrol_dir.clone());
    let enrol = args.enrol.as_ref().zip(credentials.as_deref());
    let peers = args.listen.zip(args.tls.as_deref()).map(|(listen, tls)| Peers { listen, tls, enrol });
    let kubelet = match &args.registration_dir {
        Some(directory) => Kubelet::RegistersAt(directory),
        None => Kubelet::Calls,
    };
    run(&args.machine, &args.server, peers, kubelet)
}

/// Leaves the container, but for the directory with what enrolling takes, which Kubernetes renews.
fn join_machine(enrol_dir: Option<&Path>) -> Result<Option<Kept>, Failure> {
    let kept = enrol_dir.map(namespaces::keep).transpose()?;
    namespaces::join_machine()?;
    supervisor::leave_pod().map_err(|error| format!("no cgroup outside the pod's: {error}"))?;
    Ok(kept)
}

/// Where controllers are let in.
struct Peers<'a> {
    listen: SocketAddr,
    tls: &'a Path,
    /// Where the machine gets its certificate, and with what; none where it has one.
    enrol: Option<(&'a EnrolAddress, &'a Path)>,
}

/// How a host comes by its certificate.
enum Certificate {
    IsThere(Arc<Tls>),
    Comes(Enrolment),
}

impl Peers<'_> {
    fn certificate(&self, name: &NodeName) -> Result<Certificate, Failure> {
        let (tls, name) = (self.tls.to_owned(), name.clone());
        match self.enrol {
            None => Ok(Certificate::IsThere(open_tls(&tls, &name)?)),
            Some((controller, credentials)) => {
                let (controller, credentials) = (controller.clone(), credentials.to_owned());
                Ok(Certificate::Comes(Enrolment { controller, credentials, tls, name }))
            }
        }
    }
}

/// What kubelet has to do with this process.
#[derive(Clone, Copy)]
enum Kubelet<'a> {
    /// Nothing.
    None,
    /// Kubelet, or whoever plays it, calls it.
    Calls,
    /// The same, and learns of it through a socket in this directory.
    RegistersAt(&'a Path),
}

fn run(machine: &MachineArgs, server: &ServerArgs, peers: Option<Peers<'_>>, kubelet: Kubelet<'_>) -> super::Done {
    server.start_log()?;
    let (data, _only_server) = machine.open_data()?;
    let node = machine.node()?;
    let socket = Socket::bind(&server.endpoint)?;
    server.run(serve(machine, server, peers, kubelet, &data, node, socket))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(
    machine: &MachineArgs,
    server: &ServerArgs,
    peers: Option<Peers<'_>>,
    kubelet: Kubelet<'_>,
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
        let certificate = peers.certificate(&node.name)?;
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
        match certificate {
            Certificate::IsThere(tls) => doors.open_to_peers(peers.listen, tls, for_peers.routes()).await?,
            // kubelet is served meanwhile
            Certificate::Comes(enrolment) => {
                doors.spawn(serve_enrolled(enrolment, peers.listen, for_peers.routes(), stop.clone()));
            }
        }
        services = services.host(&opened.host, &tasks, files, data);
        stores = Some(opened);
    }
    if !matches!(kubelet, Kubelet::None) {
        let host = stores.as_ref().map(|stores| &stores.host);
        services = services.identity(&server.driver_name).node(Node::new(node, data), host, &tasks);
    }
    doors.open(socket, services.routes())?;
    let registration = register(&mut doors, server, kubelet)?;
    let host = stores.as_ref().map(|stores| Arc::clone(&stores.host));
    // kubelet forgets a driver whose socket is gone; a new start makes a new one
    let is_well = registration.map(|socket| Box::new(move || socket.exists()) as Box<dyn Fn() -> bool + Send + Sync>);
    server.show(Watched { host, is_well, ..Default::default() }, &stop).await?;
    tracing::info!("serving");
    doors.finish(&tasks).await?;
    if let Some(stores) = stores {
        stores.close().await;
    }
    Ok(())
}

/// Makes the driver known to kubelet, now that it can be called. Answers the socket by which it is.
fn register(doors: &mut Doors, server: &ServerArgs, kubelet: Kubelet<'_>) -> Result<Option<PathBuf>, Failure> {
    let Kubelet::RegistersAt(directory) = kubelet else { return Ok(None) };
    let socket = directory.join(Registration::socket_name(&server.driver_name));
    let services = Services::default().registration(&server.driver_name, &server.endpoint);
    doors.open(Socket::bind(&socket)?, services.routes())?;
    Ok(Some(socket))
}

/// The machine's certificate must be one of a host of its name: controllers expect no other.
fn open_tls(directory: &Path, name: &NodeName) -> Result<Arc<Tls>, Failure> {
    let tls = Tls::open(directory)?;
    let identity = tls.identity();
    if identity.speaks_for(name, Role::Host) {
        return Ok(tls);
    }
    Err(format!("the certificate in {} is that of {identity}, and this is host {name}", directory.display()).into())
}

/// Lets controllers in as soon as the machine has a certificate, of this start or of an earlier one, and keeps it renewed.
async fn serve_enrolled(
    enrolment: Enrolment,
    listen: SocketAddr,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let (is_usable, mut usable) = watch::channel(false);
    let (tls, name) = (enrolment.tls.clone(), enrolment.name.clone());
    let serving = async move {
        usable.wait_for(|usable| *usable).await?;
        let (tls, listener) = (open_tls(&tls, &name)?, bind(listen).await?);
        tracing::info!(%listen, "controllers are let in");
        serve_peers(listener, tls, routes, stop).await
    };
    tokio::select! {
        served = serving => served,
        () = enrolment.keep(is_usable) => Err("the certificate is not kept any more".into()),
    }
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
