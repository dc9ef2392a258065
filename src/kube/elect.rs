//! Which controller writes status: the one that holds a Lease. Two that both think so for a moment write the same, so
//! nothing but tidiness hangs on it; what is routed never asks.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use crate::domain::error::chain;

/// The Lease's name.
pub const NAME: &str = "cistern-status";
/// How long a holder that is silent keeps it.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at.
const EVERY: Duration = Duration::from_secs(4);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(4);

/// One that stands for election.
pub struct Elector {
    leases: Api<Lease>,
    me: String,
    /// Until when the Lease is ours.
    held_until: Option<Instant>,
    /// The version that another's Lease was seen in, and since when: only our own clock says that it has run out.
    seen: Option<(String, Instant)>,
    looked: Option<Instant>,
}

/// What there is to do about a Lease.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    Make,
    Renew,
    TakeOver,
    Wait,
}

impl Elector {
    /// One of this name, in this namespace.
    pub fn new(client: Client, namespace: &str, me: &str) -> Elector {
        let leases = Api::namespaced(client, namespace);
        Elector { leases, me: me.to_owned(), held_until: None, seen: None, looked: None }
    }

    /// Whether the Lease is ours. It is renewed, or asked for, when it is time.
    pub async fn leads(&mut self) -> bool {
        if self.looked.is_none_or(|looked| looked.elapsed() >= EVERY) {
            self.looked = Some(Instant::now());
            match tokio::time::timeout(ANSWER, self.look()).await {
                Ok(Ok(())) => {}
                Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => {}
                Ok(Err(error)) => tracing::warn!(error = %chain(&error), "Lease {NAME} cannot be asked for"),
                Err(_) => tracing::warn!("the cluster does not answer for Lease {NAME}"),
            }
        }
        self.held_until.is_some_and(|until| Instant::now() < until)
    }

    /// Lets go of the Lease, if it is ours, so that the next one need not wait for it to run out.
    pub async fn let_go(self) {
        if self.held_until.is_none() {
            return;
        }
        match tokio::time::timeout(ANSWER, self.give_back()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %chain(&error), "Lease {NAME} is not let go of: it runs out"),
            Err(_) => tracing::warn!("the cluster does not answer for Lease {NAME}: it runs out"),
        }
    }

    async fn give_back(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.leases.get_opt(NAME).await? else { return Ok(()) };
        // with the version that was seen: one that another took over meanwhile is a conflict
        if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.me)) {
            spec.holder_identity = None;
            self.leases.replace(NAME, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<(), kube::Error> {
        // our time is counted from before the write: nobody can think it longer than others do
        let begun = Instant::now();
        let found = self.leases.get_opt(NAME).await?;
        let act = self.act(found.as_ref(), begun);
        let before = found.as_ref().and_then(|lease| lease.spec.as_ref());
        let lease = |acquired, transitions| {
            let metadata = match &found {
                Some(lease) => lease.metadata.clone(),
                None => ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
            };
            Lease { metadata, spec: Some(self.spec(acquired, transitions)) }
        };
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        match act {
            Act::Wait => {
                self.held_until = None;
                return Ok(());
            }
            Act::Make => self.leases.create(&PostParams::default(), &lease(now(), 0)).await?,
            Act::Renew => {
                let acquired = before.and_then(|spec| spec.acquire_time.clone()).unwrap_or_else(now);
                self.leases.replace(NAME, &PostParams::default(), &lease(acquired, transitions)).await?
            }
            Act::TakeOver => self.leases.replace(NAME, &PostParams::default(), &lease(now(), transitions + 1)).await?,
        };
        if act != Act::Renew {
            tracing::info!("this controller writes the status of pools");
        }
        self.held_until = Some(begun + DURATION);
        Ok(())
    }

    /// What to do about the Lease that is there.
    fn act(&mut self, lease: Option<&Lease>, now: Instant) -> Act {
        let Some(lease) = lease else { return Act::Make };
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder == self.me {
            return Act::Renew;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => now,
        };
        self.seen = Some((version, since));
        if holder.is_empty() || now.duration_since(since) >= DURATION { Act::TakeOver } else { Act::Wait }
    }

    fn spec(&self, acquired: MicroTime, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            acquire_time: Some(acquired),
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(transitions),
            renew_time: Some(now()),
            ..LeaseSpec::default()
        }
    }
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kube::client::Body;
    use tonic::codegen::http::{Request, Response};

    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        let spec = LeaseSpec { holder_identity: Some(holder.to_owned()), ..LeaseSpec::default() };
        let metadata = ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() };
        Lease { metadata, spec: Some(spec) }
    }

    #[tokio::test]
    async fn a_lease_is_taken_over_when_its_holder_was_silent_for_its_time() {
        let service = tower::service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>("nobody is asked") });
        let mut elector = Elector::new(Client::new(service, "cistern"), "cistern", "me");
        let start = Instant::now();
        for (after, lease, act) in [
            (0, None, Act::Make),
            (0, Some(lease("me", "1")), Act::Renew),
            (0, Some(lease("", "1")), Act::TakeOver),
            (0, Some(Lease::default()), Act::TakeOver),
            (0, Some(lease("other", "2")), Act::Wait),
            (14, Some(lease("other", "2")), Act::Wait),
            (14, Some(lease("other", "3")), Act::Wait),
            (28, Some(lease("other", "3")), Act::Wait),
            (29, Some(lease("other", "3")), Act::TakeOver),
        ] {
            assert_eq!(elector.act(lease.as_ref(), start + Duration::from_secs(after)), act, "after {after} s");
        }
    }
}
