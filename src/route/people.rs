//! What people ask of a controller on its own machine: what all hosts have, and the owner's word on names made twice.

use std::sync::Arc;

use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use super::fleet::Fleet;
use super::link::{BOUND, Link, Standing};
use super::settle;
use crate::domain::{Id, Kind, NodeName};
use crate::peer::roles::only_owner;
use crate::proto::internal::{self, fleet_server};

/// The internal service of a controller.
pub struct PeopleService {
    /// The hosts.
    pub fleet: Arc<Fleet>,
}

#[tonic::async_trait]
impl fleet_server::Fleet for PeopleService {
    async fn describe(
        &self,
        request: Request<internal::DescribeRequest>,
    ) -> Result<Response<internal::DescribeResponse>, Status> {
        only_owner(&request)?;
        let wanted = request.into_inner();
        let mut asking = JoinSet::new();
        for link in self.fleet.links() {
            asking.spawn(async move {
                let answer = describe(&link, wanted).await;
                (link, answer)
            });
        }
        let mut all =
            internal::DescribeResponse { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
        while let Some(joined) = asking.join_next().await {
            let Ok((link, answer)) = joined else { continue };
            match answer {
                Ok(answer) => self.take(&link.name, answer, &mut all),
                Err(why) => all.pools.extend(self.pools_of_away(&link, &why)),
            }
        }
        all.pools.sort_by(|one, other| (&one.name, &one.host).cmp(&(&other.name, &other.host)));
        all.volumes.sort_by(|one, other| (&one.name, &one.host).cmp(&(&other.name, &other.host)));
        all.snapshots.sort_by(|one, other| (&one.name, &one.host).cmp(&(&other.name, &other.host)));
        Ok(Response::new(all))
    }

    async fn keep(&self, request: Request<internal::KeepRequest>) -> Result<Response<internal::KeepResponse>, Status> {
        only_owner(&request)?;
        let text = request.into_inner().id;
        let id = Id::parse(Kind::Volume, &text);
        let id = id.ok_or_else(|| Status::not_found(format!("the volume {text:?} does not exist")))?;
        settle::keep(&self.fleet, &id).await?;
        Ok(Response::new(internal::KeepResponse {}))
    }
}

impl PeopleService {
    /// What a host says of itself, and nothing that it says of others.
    fn take(&self, host: &NodeName, answer: internal::DescribeResponse, all: &mut internal::DescribeResponse) {
        let inventory = self.fleet.inventory();
        let is_its_own = |id: &str| id.parse().is_ok_and(|id: Id| inventory.has_store(host, &id.store));
        let name = host.to_string();
        all.pools.extend(answer.pools.into_iter().map(|pool| internal::Pool { host: name.clone(), ..pool }));
        let volumes = answer.volumes.into_iter().filter(|volume| is_its_own(&volume.id));
        all.volumes.extend(volumes.map(|volume| internal::Volume { host: name.clone(), ..volume }));
        let snapshots = answer.snapshots.into_iter().filter(|snapshot| is_its_own(&snapshot.id));
        all.snapshots.extend(snapshots.map(|snapshot| internal::Snapshot { host: name.clone(), ..snapshot }));
    }

    /// The pools that a host that is away was seen with, or itself where none were.
    fn pools_of_away(&self, link: &Link, why: &str) -> Vec<internal::Pool> {
        let inventory = self.fleet.inventory();
        let down = |pool: internal::Pool| internal::Pool {
            host: link.name.to_string(),
            down: format!("host {} is away: {why}", link.name),
            ..pool
        };
        let pools: Vec<internal::Pool> = inventory.pools(&link.name).map(|(_, view)| down(view.told.clone())).collect();
        if pools.is_empty() { vec![down(internal::Pool::default())] } else { pools }
    }
}

async fn describe(link: &Link, wanted: internal::DescribeRequest) -> Result<internal::DescribeResponse, String> {
    if let Standing::Away { why, .. } = link.standing() {
        return Err(why);
    }
    let mut client = link.client_for_all();
    match tokio::time::timeout(BOUND * 5, client.describe(wanted)).await {
        Ok(answered) => answered.map(Response::into_inner).map_err(|status| status.message().to_owned()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}
