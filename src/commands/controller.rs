//! `cistern controller`: routes CSI Controller calls to the hosts of a fleet.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tonic::service::RoutesBuilder;

use cistern::config;
use cistern::csi::Identity;
use cistern::domain::Role;
use cistern::domain::error::chain;
use cistern::peer::Tls;
use cistern::pool::tasks::Tasks;
use cistern::proto::csi::v1::identity_server::IdentityServer;
use cistern::proto::internal::fleet_server::FleetServer;
use cistern::route::{ControllerDoor, Fleet, Patience, PeopleService, settle_all};

use super::cluster::ClusterArgs;
use super::metrics::Watched;
use super::server::{Doors, Failure, ServerArgs, Socket, give_up, stop_on_signal};

/// How often hosts.yaml is looked at.
const RELOAD_EVERY: Duration = Duration::from_millis(500);
/// How long lists wait, after a start, for a host that was not seen yet.
const STARTING: Duration = Duration::from_secs(15);

/// The flags of `cistern controller`. It serves CSI (Identity and Controller) on its unix socket, to the sidecars beside it.
#[derive(Args)]
pub struct ControllerArgs {
    /// The hosts, and the pools that are to be on them: hosts.yaml. Without it the controller is in a cluster, whose objects
    /// say so
    #[arg(long, env = "CISTERN_CONFIG")]
    config: Option<PathBuf>,
    /// The directory with ca.crt, tls.crt and tls.key; see `cistern certs`
    #[arg(long, env = "CISTERN_TLS")]
    tls: PathBuf,
    /// How many seconds a host that is away is waited for before a volume that belongs on it is made on another
    #[arg(long, env = "CISTERN_PATIENCE", default_value_t = 30)]
    patience: u64,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// Carries the command out.
pub fn main(args: &ControllerArgs) -> super::Done {
    args.server.start_log()?;
    let socket = Socket::bind(&args.server.endpoint)?;
    raise_open_files();
    args.server.run(serve(args, socket))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: &ControllerArgs, socket: Socket) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let tasks = Tasks::default();
    let ControllerArgs { tls, server, .. } = args;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), endpoint = %server.endpoint.display(), "starting");
    let patience = Patience { placing: Duration::from_secs(args.patience), starting: STARTING };
    let mut doors = Doors::new(&stop);
    let fleet = match &args.config {
        Some(config) => {
            let fleet = Fleet::new(open_tls(tls)?, patience);
            doors.spawn(follow_text(Arc::clone(&fleet), config.clone())?);
            fleet
        }
        None => {
            let joined = args.cluster.join(tls, &server.driver_name, patience, &mut doors, &tasks, &stop).await?;
            let Some(fleet) = joined else {
                give_up(&socket);
                return Ok(());
            };
            fleet
        }
    };
    doors.spawn(settle(Arc::clone(&fleet)));
    let ready = Arc::clone(&fleet);
    let identity =
        Identity { driver_name: server.driver_name.clone(), ready: Some(Box::new(move || ready.is_ready())) };
    let mut services = RoutesBuilder::default();
    services
        .add_service(IdentityServer::new(identity))
        .add_service(FleetServer::new(PeopleService { fleet: Arc::clone(&fleet) }))
        .add_service(ControllerDoor { fleet: Arc::clone(&fleet), tasks: tasks.clone() });
    doors.open(socket, services.routes())?;
    // a controller that is not ready yet is well: it waits for hosts, and says so to whoever asks it
    server.show(Watched { fleet: Some(fleet), ..Default::default() }, &stop).await?;
    tracing::info!("serving");
    doors.finish(&tasks).await
}

/// It does not end by itself: its death is the controller's, which starts anew.
async fn settle(fleet: Arc<Fleet>) -> Result<(), Failure> {
    settle_all(fleet).await;
    Err("names are not settled any more".into())
}

/// The certificate must be a controller's: hosts answer no other.
pub fn open_tls(directory: &Path) -> Result<Arc<Tls>, Failure> {
    let tls = Tls::open(directory)?;
    let identity = tls.identity();
    if identity.is(Role::Controller) {
        return Ok(tls);
    }
    Err(format!("the certificate in {} is that of {identity}, and no controller's", directory.display()).into())
}

/// Applies hosts.yaml, and follows it. One that is wrong changes nothing, but for the first, which is an error.
fn follow_text(fleet: Arc<Fleet>, path: PathBuf) -> Result<impl Future<Output = Result<(), Failure>> + Send, Failure> {
    let mut read = std::fs::read(&path).ok();
    fleet.apply(config::read_hosts(&path)?);
    Ok(async move {
        loop {
            tokio::time::sleep(RELOAD_EVERY).await;
            let now = tokio::fs::read(&path).await.ok();
            if now == read {
                continue;
            }
            read = now;
            match config::read_hosts(&path) {
                Ok(text) => fleet.apply(text),
                Err(error) => tracing::error!(error = %chain(&error), "the fleet stays as it is"),
            }
        }
    })
}

/// A connection to each host is an open file; what the system allows at most is taken.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the number of open files stays as it is");
    }
}
