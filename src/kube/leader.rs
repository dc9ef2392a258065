//! Which of several controllers writes what is seen of the pools: the one that holds a Lease. Only writing is elected; every
//! controller answers calls. Two that both believe to hold it for a moment write the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

/// The Lease.
const NAME: &str = "cistern-controller";
/// How long a Lease that nobody renews is its holder's, by the clock of whoever waits for it.
const DURATION: Duration = Duration::from_secs(15);
/// How often its holder renews it, and others look at it.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long its holder goes on without having renewed it.
const CERTAIN: Duration = Duration::from_secs(10);

/// Whether this controller is the one.
#[derive(Debug, Clone, Default)]
pub struct Leader(Arc<AtomicBool>);

impl Leader {
    /// Whether it is, as far as it knows.
    pub fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, is: bool) {
        if self.0.swap(is, Ordering::Relaxed) != is {
            tracing::info!(
                "{}",
                if is { "writes the status of pools from now on" } else { "another writes the status of pools" }
            );
        }
    }
}

/// Stands for election under this name, for as long as the controller runs.
pub async fn stand(client: Client, namespace: &str, name: &str, leader: Leader) {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let mut renewed: Option<Instant> = None;
    let mut seen: Option<(Option<String>, Instant)> = None;
    loop {
        let looked = tokio::time::timeout(LOOK_EVERY, look(&leases, name, &mut seen)).await;
        match looked {
            Ok(Ok(true)) => renewed = Some(Instant::now()),
            Ok(Ok(false)) => renewed = None,
            Ok(Err(error)) => tracing::debug!(%error, "the Lease cannot be looked at"),
            Err(_) => tracing::debug!("the Lease cannot be looked at: the cluster does not answer"),
        }
        leader.set(renewed.is_some_and(|at| at.elapsed() < CERTAIN));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Takes the Lease, or renews it, if it is free or ours. `seen` is its version and when it was first seen: one that has not
/// changed for long enough is free, whatever its holder's clock says.
async fn look(
    leases: &Api<Lease>,
    name: &str,
    seen: &mut Option<(Option<String>, Instant)>,
) -> Result<bool, kube::Error> {
    let Some(mut lease) = leases.get_opt(NAME).await? else {
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..Default::default() };
        let spec = Some(held(None, name));
        return decided(leases.create(&PostParams::default(), &Lease { metadata, spec }).await);
    };
    let version = lease.metadata.resource_version.clone();
    let since = match seen {
        Some((before, since)) if *before == version => *since,
        _ => Instant::now(),
    };
    *seen = Some((version, since));
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    if holder != name && !holder.is_empty() && since.elapsed() < DURATION {
        return Ok(false);
    }
    lease.spec = Some(held(lease.spec.as_ref(), name));
    decided(leases.replace(NAME, &PostParams::default(), &lease).await)
}

/// What the Lease says when this controller has it.
fn held(before: Option<&LeaseSpec>, name: &str) -> LeaseSpec {
    let now = || Some(MicroTime(Timestamp::now()));
    let is_new = before.is_none_or(|before| before.holder_identity.as_deref() != Some(name));
    let transitions = before.and_then(|before| before.lease_transitions).unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(name.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if is_new { now() } else { before.and_then(|before| before.acquire_time.clone()) },
        renew_time: now(),
        lease_transitions: Some(transitions + i32::from(is_new && before.is_some())),
        ..Default::default()
    }
}

/// Whether a write has made it ours; another's that came first has not.
fn decided(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
