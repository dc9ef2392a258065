//! The stores of this machine, followed: pools are read again when their files change, what could not be opened is tried
//! again, what is open is measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use cistern::config::{self, ConfigError, PoolFiles};
use cistern::domain::error::chain;
use cistern::domain::{MediumSpec, NodeName, PoolSpec};
use cistern::machine::file;
use cistern::pool::Host;
use cistern::pool::tasks::Tasks;

use super::server::{DRAIN, Failure};

/// How often the pools' files are looked at, and a pool that could not be opened is tried again.
const RELOAD_EVERY: Duration = Duration::from_millis(500);
/// How often stores are measured, at most; and no more than this part of the time is spent on it.
const TEND_EVERY: Duration = Duration::from_secs(30);
const TEND_SHARE: u32 = 50;

/// The stores of this machine, and the task that follows them.
pub struct Stores {
    /// The machine as host.
    pub host: Arc<Host>,
    tending: JoinHandle<()>,
}

/// Where this machine's pools are written.
pub enum Source {
    /// In files, which may change.
    Files(PoolFiles),
    /// Nowhere: it has one pool of its own.
    Default,
}

impl Stores {
    /// Opens the stores; `None` if the server is told to stop meanwhile. A first reading of the files must succeed.
    pub async fn open(
        name: NodeName,
        data: &Path,
        source: Source,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Result<Option<Stores>, Failure> {
        let host = Arc::new(Host::new(name, data.to_owned(), tasks.clone()));
        let mut pools = Pools { source, data: data.to_owned(), read: None };
        let first = pools.read(host.name())?;
        let opening = Arc::clone(&host);
        let opened = tokio::task::spawn_blocking(move || opening.apply(first));
        tokio::select! {
            // cancel-safe: a stop ends the process, and the next start opens them anew
            done = opened => done?,
            () = stop.cancelled() => return Ok(None),
        }
        let tending = tokio::task::spawn_blocking({
            let (host, stop) = (Arc::clone(&host), stop.clone());
            move || tend(&host, pools, &stop)
        });
        Ok(Some(Stores { host, tending }))
    }

    /// Lets go of the stores, after a stop. One that hangs holds up its own volumes, and not the end.
    pub async fn close(self) {
        let Stores { host, tending } = self;
        let close = async {
            tending.await?;
            tokio::task::spawn_blocking(move || host.close()).await
        };
        if tokio::time::timeout(DRAIN, close).await.is_err() {
            tracing::warn!("a store could not be let go of in time");
        }
    }
}

/// Follows the files and measures the stores, until the stop.
fn tend(host: &Host, mut pools: Pools, stop: &CancellationToken) {
    let mut next = Instant::now() + TEND_EVERY;
    while !stop.is_cancelled() {
        std::thread::sleep(RELOAD_EVERY);
        match pools.changed(host.name()) {
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

/// What the files say, followed.
struct Pools {
    source: Source,
    data: PathBuf,
    /// What was read last, to tell a change and to say an error once.
    read: Option<Vec<Option<Vec<u8>>>>,
}

impl Pools {
    fn read(&mut self, host: &NodeName) -> Result<Vec<PoolSpec>, Failure> {
        match &self.source {
            Source::Files(files) => {
                self.read = Some(files.bytes());
                Ok(read(files, host)?)
            }
            Source::Default => Ok(vec![default_pool(&self.data)?]),
        }
    }

    /// The pools, if the files say something else than when they were last read.
    fn changed(&mut self, host: &NodeName) -> Result<Option<Vec<PoolSpec>>, ConfigError> {
        let Source::Files(files) = &self.source else { return Ok(None) };
        let now = Some(files.bytes());
        if now == self.read {
            return Ok(None);
        }
        self.read = now;
        read(files, host).map(Some)
    }
}

/// The pools that are this host's.
fn read(files: &PoolFiles, host: &NodeName) -> Result<Vec<PoolSpec>, ConfigError> {
    let config::Pools { specs, refused } = files.read()?;
    for config::Refused { pool, why } in refused {
        tracing::error!(pool, why, "a pool of the fleet is refused");
    }
    Ok(specs.into_iter().filter(|pool| pool.may_be_on(host)).collect())
}

/// The pool of a server without pools.yaml: what it was made as stays as it is.
fn default_pool(data: &Path) -> Result<PoolSpec, Failure> {
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
