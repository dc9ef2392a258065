//! What every server's command shares: flags, log, data directory, socket, and the one way out. A server binds, opens what
//! it serves, serves; on a signal it accepts nothing more, drains, lets jobs stop at a checkpoint, lets go of what nobody
//! uses.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use cistern::domain::{NodeId, NodeName};
use cistern::peer::Tls;
use cistern::pool::tasks::Tasks;

use super::metrics::{self, Watched};

/// Where a server listens unless it is told otherwise.
pub const DEFAULT_ENDPOINT: &str = "unix:///run/cistern/csi.sock";

/// How long open calls may go on after a signal.
pub const DRAIN: Duration = Duration::from_secs(20);

/// Why a command failed.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The flags of every server.
#[derive(Args)]
pub struct ServerArgs {
    /// The unix socket to serve on
    #[arg(long, env = "CSI_ENDPOINT", default_value = DEFAULT_ENDPOINT, value_parser = parse_endpoint)]
    pub endpoint: PathBuf,
    /// The driver's name
    #[arg(long, env = "CISTERN_DRIVER_NAME", default_value = "csi.cistern.dev")]
    pub driver_name: String,
    /// What to log: a level, or directives such as "info,cistern::pool=debug"
    #[arg(long, env = "CISTERN_LOG", default_value = "info")]
    log: String,
    /// How to log
    #[arg(long, env = "CISTERN_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// The address to show /metrics and /healthz on, such as 127.0.0.1:7442
    #[arg(long, env = "CISTERN_METRICS")]
    metrics: Option<SocketAddr>,
}

/// The flags of a server that is one machine, as host, as node, or both.
#[derive(Args)]
pub struct MachineArgs {
    /// The pools of this machine
    #[arg(long, env = "CISTERN_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where the server keeps what is not in a pool: stage records, locks, identities of stores it has seen
    #[arg(long, env = "CISTERN_DATA", default_value = "/var/lib/cistern")]
    pub data: PathBuf,
    /// This machine's name, as the cluster knows it [default: its host name]
    #[arg(long, env = "CISTERN_NODE_ID")]
    pub node_id: Option<NodeName>,
    /// Where others reach this machine, the best first [default: the addresses of its interfaces]
    #[arg(long, env = "CISTERN_NODE_ADDRESS", value_name = "ADDR", value_delimiter = ',')]
    node_address: Vec<IpAddr>,
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

impl ServerArgs {
    /// Starts the log and a runtime, and does the work in it.
    pub fn run(&self, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let done = runtime.block_on(work);
        runtime.shutdown_timeout(Duration::ZERO);
        done
    }

    /// Shows /metrics and /healthz, if it is to.
    pub async fn show(&self, watched: Watched, stop: &CancellationToken) -> Result<(), Failure> {
        match self.metrics {
            Some(address) => metrics::open(address, watched, stop).await,
            None => Ok(()),
        }
    }

    /// Starts the log: lines on stderr.
    pub fn start_log(&self) -> Result<(), Failure> {
        let filter = tracing_subscriber::EnvFilter::try_new(&self.log)?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => log.with_ansi(false).init(),
            LogFormat::Json => log.json().init(),
        }
        Ok(())
    }
}

impl MachineArgs {
    /// Makes the data directory, and answers its absolute path, since tools do not run where the server does, and a lock
    /// on it: stage records and node guards are one server's own.
    pub fn open_data(&self) -> Result<(PathBuf, File), String> {
        let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
        std::fs::create_dir_all(&self.data).map_err(|error| failed(&self.data, error))?;
        let data = self.data.canonicalize().map_err(|error| failed(&self.data, error))?;
        let path = data.join("lock");
        let file = File::create(&path).map_err(|error| failed(&path, error))?;
        file.try_lock().map_err(|_| format!("{}: another server uses this data directory", data.display()))?;
        Ok((data, file))
    }

    /// This machine as a node: its name and addresses.
    pub fn node(&self) -> Result<NodeId, Failure> {
        let name = match &self.node_id {
            Some(name) => name.clone(),
            None => machine_name()?,
        };
        if !self.node_address.is_empty() {
            return Ok(NodeId { name, addresses: self.node_address.clone() });
        }
        let reachable = |address: &IpAddr| match address {
            IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        };
        let mut addresses: Vec<_> =
            if_addrs::get_if_addrs()?.iter().map(|interface| interface.ip()).filter(reachable).collect();
        addresses.sort();
        addresses.dedup();
        addresses.truncate(4);
        // a machine without a network reaches itself
        if addresses.is_empty() {
            addresses.push(std::net::Ipv4Addr::LOCALHOST.into());
        }
        Ok(NodeId { name, addresses })
    }
}

/// The machine's host name, as far as it is one for a node.
pub fn machine_name() -> Result<NodeName, Failure> {
    Ok(rustix::system::uname().nodename().to_string_lossy().to_lowercase().parse()?)
}

/// A unix socket that a server listens on.
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Binds the socket for root alone. One that nobody listens on is replaced, a live one refused.
    pub fn bind(path: &Path) -> Result<Socket, Failure> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        }
        if UnixStream::connect(path).is_ok() {
            return Err(format!("{}: another server listens there", path.display()).into());
        }
        match std::fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(format!("{}: something else than a socket is there", path.display()).into()),
            Err(_) => {}
        }
        // the mode is there from the first moment; no other thread runs yet that the mask could concern
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = bound.map_err(|error| format!("{}: {error}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Socket { path: path.to_owned(), listener })
    }

    /// When a stop begins and not when it ends: by then the path may be a next server's. One that is gone is what is wanted.
    fn remove(path: &Path) {
        let _ = std::fs::remove_file(path);
    }
}

/// The doors of a server, each served by a task of its own.
pub struct Doors {
    stop: CancellationToken,
    serving: JoinSet<Result<(), Failure>>,
    sockets: Vec<PathBuf>,
}

impl Doors {
    /// No doors yet; all of them close at this stop.
    pub fn new(stop: &CancellationToken) -> Doors {
        Doors { stop: stop.clone(), serving: JoinSet::new(), sockets: Vec::new() }
    }

    /// Serves on a unix socket, which is bound already.
    pub fn open(&mut self, socket: Socket, routes: Routes) -> Result<(), Failure> {
        let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(socket.listener)?);
        self.sockets.push(socket.path);
        let router = Server::builder().add_routes(routes);
        let stopped = self.stop.clone().cancelled_owned();
        self.spawn(async move { Ok(router.serve_with_incoming_shutdown(incoming, stopped).await?) });
        Ok(())
    }

    /// A door with more to do than to serve. Its end is the server's.
    pub fn spawn(&mut self, door: impl Future<Output = Result<(), Failure>> + Send + 'static) {
        self.serving.spawn(door);
    }

    /// Serves on a TCP address, to those who show a certificate that a row of the roles' table names.
    pub async fn open_to_peers(&mut self, listen: SocketAddr, tls: Arc<Tls>, routes: Routes) -> Result<(), Failure> {
        let listener = bind(listen).await?;
        self.spawn(serve_peers(listener, tls, routes, self.stop.clone()));
        Ok(())
    }

    /// Waits for the server's end: a door's own, or a signal, after which calls and jobs have a bounded time.
    pub async fn finish(mut self, tasks: &Tasks) -> Result<(), Failure> {
        tokio::select! {
            // a stop ends the doors too, and must not be taken for an end of their own
            biased;
            // cancel-safe: a token stays cancelled
            () = self.stop.cancelled() => {}
            // cancel-safe: what has ended is still there to be joined
            Some(ended) = self.serving.join_next() => return ended?,
        }
        tracing::info!("stopping");
        self.sockets.iter().for_each(|socket| Socket::remove(socket));
        let tasks = tasks.clone();
        let left = tokio::task::spawn_blocking(move || tasks.drain(DRAIN)).await?;
        if left > 0 {
            tracing::warn!(left, "operations still run; the next start goes on with them");
        }
        // connections that stay open with nothing to say are not waited for
        self.serving.abort_all();
        tracing::info!("stopped");
        Ok(())
    }
}

/// Listens on a TCP address.
pub async fn bind(listen: SocketAddr) -> Result<tokio::net::TcpListener, Failure> {
    let bound = tokio::net::TcpListener::bind(listen).await;
    Ok(bound.map_err(|error| format!("{listen}: {error}"))?)
}

/// Serves those who show a certificate that a row of the roles' table names, until the stop.
pub async fn serve_peers(
    listener: tokio::net::TcpListener,
    tls: Arc<Tls>,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let router = cistern::peer::server().add_routes(routes);
    Ok(router.serve_with_incoming_shutdown(tls.incoming(listener), stop.cancelled_owned()).await?)
}

/// Cancelled when a signal tells the server to end.
pub fn stop_on_signal() -> std::io::Result<CancellationToken> {
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

/// Removes a socket of a server that is told to stop before it serves.
pub fn give_up(socket: &Socket) {
    Socket::remove(&socket.path);
}
