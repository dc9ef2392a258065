//! `cistern controller` in a cluster: its certificate and its fleet come from there, and what is seen of pools is written there.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use kube::Client;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use cistern::domain::NodeName;
use cistern::kube::authority::{ClusterAuthority, Settings};
use cistern::kube::enrol;
use cistern::kube::fleet::{self, Followed, Mistake, Remembered};
use cistern::kube::leader::{self, Leader};
use cistern::kube::status::Writer;
use cistern::peer::Tls;
use cistern::route::Fleet;

use super::server::{Failure, bind};

/// The flags of a controller in a cluster.
#[derive(Args)]
pub struct ClusterArgs {
    /// In a cluster: the address to enrol nodes on, such as 0.0.0.0:7444
    #[arg(long, env = "CISTERN_ENROL_LISTEN", conflicts_with = "config")]
    pub enrol_listen: Option<SocketAddr>,
    /// In a cluster: the namespace that cistern is in
    #[arg(long, env = "CISTERN_NAMESPACE", default_value = "cistern", hide = true)]
    namespace: String,
    /// In a cluster: this controller's pod
    #[arg(long, env = "CISTERN_POD_NAME", default_value = "controller", hide = true)]
    pod_name: NodeName,
}

/// What a controller in a cluster does beside answering calls. The end of any of it is the controller's.
pub struct Cluster {
    client: Client,
    authority: Arc<ClusterAuthority>,
    work: JoinSet<Result<(), Failure>>,
}

impl Cluster {
    /// Finds the cluster, and waits until the controller has its certificate, which is in `tls` then.
    pub async fn open(args: &ClusterArgs, tls: &Path) -> Result<Cluster, Failure> {
        let client = Client::try_default().await?;
        let settings = Settings::new(&args.namespace, args.pod_name.clone(), tls);
        let authority = ClusterAuthority::open(&client, settings).await;
        let mut work = JoinSet::new();
        let following = Arc::clone(&authority);
        work.spawn(async move {
            following.follow().await;
            Err("the authority is not followed any more".into())
        });
        Ok(Cluster { client, authority, work })
    }

    /// Enrols nodes until the stop.
    pub async fn enrol(&mut self, listen: SocketAddr, tls: &Arc<Tls>, stop: &CancellationToken) -> Result<(), Failure> {
        let (listener, stopped) = (bind(listen).await?, stop.clone().cancelled_owned());
        let serving =
            enrol::serve(listener, Arc::clone(tls), self.client.clone(), Arc::clone(&self.authority), stopped);
        self.work.spawn(async move { Ok(serving.await?) });
        Ok(())
    }

    /// Makes the fleet that of the cluster, from now on; answers when it has been read once.
    pub async fn follow(&mut self, args: &ClusterArgs, driver: &str, fleet: &Arc<Fleet>) {
        let (changed, mistakes) = (Arc::new(Notify::new()), Arc::<Mutex<Vec<Mistake>>>::default());
        let (followed, watching) = fleet::follow(&self.client, &changed);
        let followed = Arc::new(followed);
        self.work.spawn(async move {
            watching.await;
            Err("the cluster is not watched any more".into())
        });
        followed.ready().await;
        let mut remembered = Remembered::default();
        let read = followed.read(driver, &mut remembered);
        take(fleet, read, &mistakes);
        let applying = {
            let (fleet, followed, mistakes, driver) =
                (Arc::clone(fleet), Arc::clone(&followed), Arc::clone(&mistakes), driver.to_owned());
            async move {
                loop {
                    Followed::changed(&changed).await;
                    take(&fleet, followed.read(&driver, &mut remembered), &mistakes);
                }
            }
        };
        self.work.spawn(applying);
        let leader = Leader::default();
        let (client, namespace, name) = (self.client.clone(), args.namespace.clone(), args.pod_name.to_string());
        let writer = Writer::new(client.clone(), &name, Arc::clone(fleet), leader.clone());
        self.work.spawn(async move {
            leader::stand(client, &namespace, &name, leader).await;
            Err("nobody stands for election any more".into())
        });
        self.work.spawn(async move {
            let now = || mistakes.lock().unwrap_or_else(PoisonError::into_inner).clone();
            writer.write_all(followed, now).await;
            Err("what is seen of pools is not written any more".into())
        });
    }

    /// Waits for an end that should not be.
    pub async fn ended(&mut self) -> Result<(), Failure> {
        loop {
            match self.work.join_next().await {
                // enrolment, which ends with the stop
                Some(Ok(Ok(()))) => {}
                Some(ended) => return ended?,
                None => std::future::pending().await,
            }
        }
    }
}

/// Takes over the fleet as it was read, and says what is wrong with it, once.
fn take(fleet: &Arc<Fleet>, read: fleet::Read, mistakes: &Mutex<Vec<Mistake>>) {
    let mut before = mistakes.lock().unwrap_or_else(PoisonError::into_inner);
    for Mistake { pool, what } in read.mistakes.iter().filter(|mistake| !before.contains(mistake)) {
        tracing::error!(pool, what, "the pool stays as it was");
    }
    *before = read.mistakes;
    if *fleet.text() != read.fleet {
        fleet.apply(read.fleet);
    }
}
