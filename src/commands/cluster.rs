//! A controller in a cluster: its fleet comes from the cluster's objects, its certificate from the cluster's authority, and
//! it writes the pools' status there.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use kube::Client;
use tokio_util::sync::CancellationToken;

use cistern::domain::NodeName;
use cistern::kube::authority::{ClusterAuthority, Settings};
use cistern::kube::watch::Cluster;
use cistern::kube::{enrol, keep, watch};
use cistern::peer::Tls;
use cistern::pool::tasks::Tasks;
use cistern::route::{Fleet, Patience};

use super::controller::open_tls;
use super::server::{Doors, Failure, bind, machine_name};

/// The flags of a controller in a cluster. It finds the cluster as all pods do; outside of one KUBECONFIG says where it is.
#[derive(Args)]
pub struct ClusterArgs {
    /// In a cluster: the namespace of cistern
    #[arg(long, env = "CISTERN_NAMESPACE", default_value = "cistern")]
    namespace: String,
    /// In a cluster: this controller's name among others, its pod's [default: the machine's]
    #[arg(long, env = "CISTERN_POD_NAME")]
    pod_name: Option<NodeName>,
    /// In a cluster: where nodes enrol; --tls is this controller's to fill then
    #[arg(long, env = "CISTERN_ENROL_LISTEN", value_name = "ADDR:PORT", conflicts_with = "config")]
    enrol_listen: Option<SocketAddr>,
}

impl ClusterArgs {
    /// The fleet of the cluster, followed from now on by tasks whose end is the server's. `None` where a stop came first.
    pub async fn join(
        &self,
        tls: &Path,
        driver: &str,
        patience: Patience,
        doors: &mut Doors,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Result<Option<Arc<Fleet>>, Failure> {
        let client = Client::try_default().await?;
        let name = match &self.pod_name {
            Some(name) => name.clone(),
            None => machine_name()?,
        };
        // cancel-safe: what was begun for the certificate is finished by the next start
        let tls = tokio::select! {
            tls = self.certificate(&client, tls, &name, doors, stop) => tls?,
            () = stop.cancelled() => return Ok(None),
        };
        let fleet = Fleet::new(tls, patience);
        let cluster = Arc::new(Cluster::default());
        let following = watch::follow(client.clone(), driver.to_owned(), Arc::clone(&cluster), Arc::clone(&fleet));
        doors.spawn(ends("the cluster's objects are not followed any more", following));
        let (namespace, stop) = (self.namespace.clone(), stop.clone());
        let keeping = keep::keep(client, namespace, name.to_string(), cluster, Arc::clone(&fleet), stop);
        // at a stop it lets go of its Lease, which is waited for
        let task = tasks.begin();
        doors.spawn(async move {
            keeping.await;
            drop(task);
            Ok(())
        });
        Ok(Some(fleet))
    }

    /// The controller's certificate: of the cluster's authority, which signs for nodes here too, or what is in the directory.
    async fn certificate(
        &self,
        client: &Client,
        directory: &Path,
        name: &NodeName,
        doors: &mut Doors,
        stop: &CancellationToken,
    ) -> Result<Arc<Tls>, Failure> {
        let Some(listen) = self.enrol_listen else { return open_tls(directory) };
        let authority = ClusterAuthority::open(client, Settings::new(&self.namespace, name.clone(), directory)).await;
        let tls = open_tls(directory)?;
        let listener = bind(listen).await?;
        let followed = Arc::clone(&authority);
        doors.spawn(ends("the authority is not followed any more", async move { followed.follow().await }));
        let (client, for_nodes, stopped) = (client.clone(), Arc::clone(&tls), stop.clone().cancelled_owned());
        doors.spawn(async move { Ok(enrol::serve(listener, for_nodes, client, authority, stopped).await?) });
        Ok(tls)
    }
}

/// Something that does not end by itself: its death is the server's, which starts anew.
async fn ends(why: &'static str, work: impl Future<Output = ()>) -> Result<(), Failure> {
    work.await;
    Err(why.into())
}
