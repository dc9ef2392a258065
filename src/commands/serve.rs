//! `cistern serve`: host and node in one process on one socket. One way in, one way out: bind, open the pools, serve; on a
//! signal stop accepting, drain, let jobs stop at a checkpoint, let go of what nobody uses.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use cistern::config;
use cistern::csi::{self, Controller, Identity, NodeService};
use cistern::domain::error::chain;
use cistern::domain::{MediumSpec, NodeId, NodeName, PoolSpec};
use cistern::machine::file;
use cistern::node::Node;
use cistern::peer::{self, HostService};
use cistern::pool::Host;
use cistern::pool::tasks::Tasks;
use cistern::proto::csi::v1::controller_server::ControllerServer;
use cistern::proto::csi::v1::identity_server::IdentityServer;
use cistern::proto::csi::v1::node_server::NodeServer;
use cistern::proto::internal::host_server::HostServer;

/// Where a server listens unless it is told otherwise.
pub const DEFAULT_ENDPOINT: &str = "unix:///run/cistern/csi.sock";

/// How long open calls may go on after a signal.
const DRAIN: Duration = Duration::from_secs(20);
/// How often pools.yaml is looked at, and a pool that could not be opened is tried again.
const RELOAD_EVERY: Duration = Duration::from_millis(500);
/// How often stores are measured, at most; and no more than this part of the time is spent on it.
const TEND_EVERY: Duration = Duration::from_secs(30);
const TEND_SHARE: u32 = 50;

/// The flags of `cistern serve`.
#[derive(Args)]
pub struct ServeArgs {
    /// The pools of this machine [default: one pool named "default" below the data directory]
    #[arg(long, env = "CISTERN_CONFIG")]
    config: Option<PathBuf>,
    /// Where the server keeps what is not in a pool: stage records, locks, identities of stores it has seen
    #[arg(long, env = "CISTERN_DATA", default_value = "/var/lib/cistern")]
    data: PathBuf,
    /// The unix socket to serve on
    #[arg(long, env = "CSI_ENDPOINT", default_value = DEFAULT_ENDPOINT, value_parser = parse_endpoint)]
    endpoint: PathBuf,
    /// This machine's name, as the cluster knows it [default: its host name]
    #[arg(long, env = "CISTERN_NODE_ID")]
    node_id: Option<NodeName>,
    /// The driver's name
    #[arg(long, env = "CISTERN_DRIVER_NAME", default_value = "csi.cistern.dev")]
    driver_name: String,
    /// What to log: a level, or directives such as "info,cistern::pool=debug"
    #[arg(long, env = "CISTERN_LOG", default_value = "info")]
    log: String,
    /// How to log
    #[arg(long, env = "CISTERN_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// The path of an endpoint, written as `unix:///path` or as a path.
pub fn parse_endpoint(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text.strip_prefix("unix://").unwrap_or(text));
    if path.is_absolute() { Ok(path) } else { Err("write unix:///absolute/path.sock".to_owned()) }
}

/// Carries the command out.
pub fn main(args: &ServeArgs) -> super::Done {
    start_log(args)?;
    let data = prepare_data(&args.data)?;
    let _only_server = lock_data(&data)?;
    let node = node_id(args)?;
    // bound before anything is opened, so that a second server is refused before it touches a store
    let listener = bind(&args.endpoint)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve(args, &data, node, listener));
    runtime.shutdown_timeout(Duration::ZERO);
    served.map(|()| ExitCode::SUCCESS)
}

/// Makes the data directory, and answers its absolute path: tools do not run where the server does.
fn prepare_data(data: &Path) -> Result<PathBuf, String> {
    let failed = |error| format!("{}: {error}", data.display());
    std::fs::create_dir_all(data).map_err(failed)?;
    data.canonicalize().map_err(failed)
}

/// Stage records and node guards are one server's own.
fn lock_data(data: &Path) -> Result<File, String> {
    let path = data.join("lock");
    let file = File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    file.try_lock().map_err(|_| format!("{}: another server uses this data directory", data.display()))?;
    Ok(file)
}

fn start_log(args: &ServeArgs) -> Result<(), Box<dyn std::error::Error>> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log)?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// This machine as a node: its name and addresses.
fn node_id(args: &ServeArgs) -> Result<NodeId, Box<dyn std::error::Error>> {
    let name = match &args.node_id {
        Some(name) => name.clone(),
        None => rustix::system::uname().nodename().to_string_lossy().to_lowercase().parse()?,
    };
    let reachable = |address: &std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        std::net::IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    };
    let mut addresses: Vec<_> =
        if_addrs::get_if_addrs()?.iter().map(|interface| interface.ip()).filter(reachable).collect();
    addresses.sort();
    addresses.dedup();
    // a machine without a network reaches itself
    addresses.truncate(4);
    if addresses.is_empty() {
        addresses.push(std::net::Ipv4Addr::LOCALHOST.into());
    }
    Ok(NodeId { name, addresses })
}

/// Binds the socket for root alone. One that nobody listens on is replaced, a live one refused.
fn bind(socket: &Path) -> Result<UnixListener, Box<dyn std::error::Error>> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    }
    if UnixStream::connect(socket).is_ok() {
        return Err(format!("{}: another server listens there", socket.display()).into());
    }
    match std::fs::symlink_metadata(socket) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(socket)?,
        Ok(_) => return Err(format!("{}: something else than a socket is there", socket.display()).into()),
        Err(_) => {}
    }
    // the mode is there from the first moment; no other thread runs yet that the mask could concern
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(socket);
    rustix::process::umask(before);
    let bound = bound.map_err(|error| format!("{}: {error}", socket.display()))?;
    bound.set_nonblocking(true)?;
    Ok(bound)
}

/// A CSI service with CSI's limits on messages.
macro_rules! sized {
    ($server:expr) => {
        $server.max_decoding_message_size(csi::LARGEST_MESSAGE).max_encoding_message_size(csi::LARGEST_MESSAGE)
    };
}
async fn serve(
    args: &ServeArgs,
    data: &Path,
    node: NodeId,
    listener: UnixListener,
) -> Result<(), Box<dyn std::error::Error>> {
    let stop = stop_on_signal()?;
    let tasks = Tasks::default();
    let host = Arc::new(Host::new(node.name.clone(), data.to_owned(), tasks.clone()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %node, endpoint = %args.endpoint.display(), "starting");
    let mut pools = Pools { config: args.config.clone(), data: data.to_owned(), read: None };
    let first = pools.read()?;
    let opening = Arc::clone(&host);
    let opened = tokio::task::spawn_blocking(move || opening.apply(first));
    tokio::select! {
        // cancel-safe: a stop ends the process, and the next start opens them anew
        done = opened => done?,
        () = stop.cancelled() => {
            remove_socket(&args.endpoint);
            return Ok(());
        }
    }
    let tending = tokio::task::spawn_blocking({
        let (host, stop) = (Arc::clone(&host), stop.clone());
        move || tend(&host, pools, &stop)
    });
    let node = Arc::new(Node::new(node, data));
    let router = Server::builder()
        .add_service(sized!(IdentityServer::new(Identity { driver_name: args.driver_name.clone() })))
        .add_service(sized!(ControllerServer::new(Controller { host: Arc::clone(&host), tasks: tasks.clone() })))
        .add_service(sized!(NodeServer::new(NodeService::new(node, tasks.clone()))))
        .add_service(
            HostServer::new(HostService { host: Arc::clone(&host) }).max_encoding_message_size(peer::LARGEST_MESSAGE),
        );
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener)?);
    let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
    tracing::info!("serving");
    finish(serving, &stop, &tasks, &args.endpoint).await?;
    // a store that hangs holds up its own volumes, and not the end
    let close = async {
        tending.await?;
        tokio::task::spawn_blocking(move || host.close()).await
    };
    if tokio::time::timeout(DRAIN, close).await.is_err() {
        tracing::warn!("a store could not be let go of in time");
    }
    Ok(())
}

/// Waits for the server's end: its own, or a signal, after which calls and jobs have a bounded time.
async fn finish(
    mut serving: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    stop: &CancellationToken,
    tasks: &Tasks,
    socket: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    tokio::select! {
        // a stop ends the server too, and must not be taken for an end of its own
        biased;
        // cancel-safe: a token stays cancelled
        () = stop.cancelled() => {}
        // cancel-safe: a handle may be polled again
        ended = &mut serving => return Ok(ended??),
    }
    tracing::info!("stopping");
    remove_socket(socket);
    let tasks = tasks.clone();
    let left = tokio::task::spawn_blocking(move || tasks.drain(DRAIN)).await?;
    if left > 0 {
        tracing::warn!(left, "operations still run; the next start goes on with them");
    }
    // connections that stay open with nothing to say are not waited for
    serving.abort();
    tracing::info!("stopped");
    Ok(())
}

/// When a stop begins and not when it ends: by then the path may be a next server's. One that is gone is what is wanted.
fn remove_socket(socket: &Path) {
    let _ = std::fs::remove_file(socket);
}

fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let (mut signal, stop) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            signal.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

/// Follows pools.yaml and measures the stores, until the stop.
fn tend(host: &Host, mut pools: Pools, stop: &CancellationToken) {
    let mut next = Instant::now() + TEND_EVERY;
    while !stop.is_cancelled() {
        std::thread::sleep(RELOAD_EVERY);
        match pools.changed() {
            Ok(Some(specs)) => host.apply(specs),
            Ok(None) => host.retry(),
            Err(error) => tracing::error!(error = %chain(&error), "the pools stay as they are"),
        }
        if Instant::now() >= next {
            let begun = Instant::now();
            host.tend();
            next = Instant::now() + TEND_EVERY.max(begun.elapsed() * TEND_SHARE);
        }
    }
}

/// pools.yaml, or the pool that stands in for it.
struct Pools {
    config: Option<PathBuf>,
    data: PathBuf,
    /// What was read last, to tell a change and to say an error once.
    read: Option<Vec<u8>>,
}

impl Pools {
    fn read(&mut self) -> Result<Vec<PoolSpec>, Box<dyn std::error::Error>> {
        match &self.config {
            Some(path) => {
                self.read = std::fs::read(path).ok();
                Ok(config::read_pools(path)?)
            }
            None => Ok(vec![default_pool(&self.data)?]),
        }
    }

    /// The pools, if the file says something else than when it was last read.
    fn changed(&mut self) -> Result<Option<Vec<PoolSpec>>, config::ConfigError> {
        let Some(path) = &self.config else { return Ok(None) };
        let now = std::fs::read(path).ok();
        if now == self.read {
            return Ok(None);
        }
        self.read = now;
        config::read_pools(path).map(Some)
    }
}

/// The pool of a server without pools.yaml: what it was made as stays as it is.
fn default_pool(data: &Path) -> Result<PoolSpec, Box<dyn std::error::Error>> {
    let free = file::space(data)?.free;
    let mut pool = config::default_pool(data, free, file::supports_clone(data)?);
    let MediumSpec::Dir(dir) = &mut pool.medium;
    if let Some(made) = cistern::medium::dir::image_size(&dir.path)? {
        dir.image = Some(made);
    } else if dir.path.join("store.json").exists() {
        dir.image = None;
    }
    Ok(pool)
}
