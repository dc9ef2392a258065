//! What a played host answers: CSI Controller and the internal service, from memory.

use std::pin::Pin;
use std::sync::Arc;

use cistern::csi::parse::{CLAIM_KEY, PASSED_OVER_KEY};
use cistern::domain::Uuid;
use cistern::proto::csi::v1 as csi;
use cistern::proto::csi::v1::controller_server::Controller;
use cistern::proto::internal::report::News;
use cistern::proto::internal::settle_request::Act;
use cistern::proto::internal::{self, Report, Reports, host_server};
use tokio_stream::Stream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};

use super::{Held, Lies, Manner, POOL, Played};

/// The services of all hosts: the connection says which host is meant.
#[derive(Clone, Copy)]
pub struct Plays;

/// The host that is called, which counts the call, and takes its time or for ever.
async fn called<T>(call: &'static str, request: &Request<T>) -> Result<Arc<Played>, Status> {
    let host = request.extensions().get::<Arc<Played>>().cloned().ok_or_else(|| Status::internal("who?"))?;
    *host.lock().calls.entry(call).or_default() += 1;
    match (host.manner(), call) {
        (Manner::Slow(pause), _) => tokio::time::sleep(pause).await,
        (Manner::Mute, "Watch") | (Manner::Deaf, "Find" | "Claim") => std::future::pending().await,
        _ => {}
    }
    Ok(host)
}

fn key_of(id: &str) -> String {
    id.rsplit('/').next().unwrap_or_default().to_owned()
}

type Stream_<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl host_server::Host for Plays {
    type WatchStream = Stream_<Reports>;
    type ReadStream = Stream_<internal::Blocks>;

    async fn watch(&self, request: Request<internal::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let host = called("Watch", &request).await?;
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let reports = host.all().into_iter().map(|news| Report { news: Some(news) }).collect();
        let _ = sender.send(Ok(Reports { reports }));
        host.lock().watchers.push(sender);
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }

    async fn find(&self, request: Request<internal::FindRequest>) -> Result<Response<internal::FindResponse>, Status> {
        let host = called(if request.get_ref().claim { "Claim" } else { "Find" }, &request).await?;
        let asked = request.into_inner();
        let answer = host.find(&asked);
        let lies: Arc<Lies> = Arc::clone(&host.lock().lies);
        Ok(Response::new(match &lies.find {
            Some(lie) => lie(&asked, answer),
            None => answer,
        }))
    }

    async fn confirm(
        &self,
        request: Request<internal::ConfirmRequest>,
    ) -> Result<Response<internal::ConfirmResponse>, Status> {
        let host = called("Confirm", &request).await?;
        let internal::ConfirmRequest { key, claim } = request.into_inner();
        let newest = host.lock().claims.get(&key) == Some(&claim);
        Ok(Response::new(internal::ConfirmResponse { newest }))
    }

    async fn settle(
        &self,
        request: Request<internal::SettleRequest>,
    ) -> Result<Response<internal::SettleResponse>, Status> {
        let host = called("Settle", &request).await?;
        host.settle(request.into_inner())?;
        Ok(Response::new(internal::SettleResponse {}))
    }

    async fn apply(
        &self,
        request: Request<internal::ApplyRequest>,
    ) -> Result<Response<internal::ApplyResponse>, Status> {
        called("Apply", &request).await?;
        Ok(Response::new(internal::ApplyResponse::default()))
    }

    async fn describe(
        &self,
        request: Request<internal::DescribeRequest>,
    ) -> Result<Response<internal::DescribeResponse>, Status> {
        let host = called("Describe", &request).await?;
        let mut answer = internal::DescribeResponse { host: host.name.to_string(), ..Default::default() };
        for news in host.all() {
            match news {
                News::Pool(pool) => answer.pools.push(pool),
                News::Volume(volume) => answer.volumes.push(volume),
                News::Snapshot(snapshot) => answer.snapshots.push(snapshot),
                _ => {}
            }
        }
        Ok(Response::new(answer))
    }

    async fn read(&self, _: Request<internal::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn reveal(&self, _: Request<internal::RevealRequest>) -> Result<Response<internal::RevealResponse>, Status> {
        Err(Status::unimplemented("not played"))
    }
}

impl Played {
    fn find(&self, asked: &internal::FindRequest) -> internal::FindResponse {
        let mut state = self.lock();
        let found = state.volumes.get(&asked.key).map(|held| internal::Found {
            id: self.volume_id(&held.name),
            name: held.name.clone(),
            pool: POOL.to_owned(),
            state: "ready".to_owned(),
            generation: held.generation,
            made_on: self.name.to_string(),
            passed_over: held.passed_over.clone(),
        });
        let mut claim = String::new();
        if asked.claim {
            claim = Uuid::from_random(random()).to_string();
            state.claims.insert(asked.key.clone(), claim.clone());
        }
        internal::FindResponse { found: found.into_iter().collect(), claim, ..Default::default() }
    }

    fn settle(&self, asked: internal::SettleRequest) -> Result<(), Status> {
        let key = key_of(&asked.id);
        let mut state = self.lock();
        if state.claims.get(&key) != Some(&asked.claim) {
            return Err(Status::aborted("the name was asked for again meanwhile"));
        }
        let Some(held) = state.volumes.get_mut(&key) else { return Ok(()) };
        let news = match asked.act {
            Some(Act::YieldTo(_)) if held.generation > 0 => return Err(Status::failed_precondition("it was granted")),
            Some(Act::YieldTo(_)) => {
                state.volumes.remove(&key);
                News::Gone(asked.id)
            }
            Some(Act::Asked(hosts)) => {
                held.passed_over.retain(|host| !hosts.names.contains(host));
                self.news(held)
            }
            None => return Err(Status::invalid_argument("act")),
        };
        state.tell(news);
        Ok(())
    }

    fn create(&self, asked: &csi::CreateVolumeRequest, claim: &str, passed_over: &str) -> Result<csi::Volume, Status> {
        let key = key_of(&self.volume_id(&asked.name));
        let size = u64::try_from(asked.capacity_range.as_ref().map_or(0, |range| range.required_bytes)).unwrap();
        let passed_over: Vec<String> =
            passed_over.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let held = {
            let mut state = self.lock();
            if state.claims.get(&key).is_none_or(|newest| newest != claim) {
                return Err(Status::aborted("the name was asked for again meanwhile"));
            }
            let new = Held { name: asked.name.clone(), size, ..Held::default() };
            let held = state.volumes.entry(key).or_insert(new);
            held.passed_over = passed_over;
            held.clone()
        };
        let mut state = self.lock();
        state.tell(self.news(&held));
        drop(state);
        let topology = [("topology.cistern.dev/host".to_owned(), self.name.to_string())];
        Ok(csi::Volume {
            volume_id: self.volume_id(&asked.name),
            capacity_bytes: i64::try_from(held.size).unwrap(),
            content_source: asked.volume_content_source.clone(),
            accessible_topology: vec![csi::Topology { segments: topology.into() }],
            ..Default::default()
        })
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Held)) -> Result<(), Status> {
        let mut state = self.lock();
        let held = state.volumes.get_mut(&key_of(id)).ok_or_else(|| Status::not_found(id.to_owned()))?;
        change(held);
        let news = self.news(held);
        state.tell(news);
        Ok(())
    }

    fn cut(&self, asked: &csi::CreateSnapshotRequest) -> Result<csi::Snapshot, Status> {
        let mut state = self.lock();
        let held = state.volumes.get(&key_of(&asked.source_volume_id));
        let size = held.ok_or_else(|| Status::not_found(asked.source_volume_id.clone()))?.size;
        let snapshot = internal::Snapshot {
            id: self.snapshot_id(&asked.name),
            name: asked.name.clone(),
            pool: POOL.to_owned(),
            size_bytes: size,
            volume: asked.source_volume_id.clone(),
            created_seconds: 1_700_000_000,
            ready: true,
            ..Default::default()
        };
        state.snapshots.insert(key_of(&snapshot.id), snapshot.clone());
        state.tell(News::Snapshot(snapshot.clone()));
        Ok(listed(snapshot))
    }
}

fn listed(snapshot: internal::Snapshot) -> csi::Snapshot {
    csi::Snapshot {
        snapshot_id: snapshot.id,
        source_volume_id: snapshot.volume,
        size_bytes: i64::try_from(snapshot.size_bytes).unwrap(),
        creation_time: Some(prost_types::Timestamp { seconds: snapshot.created_seconds, nanos: 0 }),
        ready_to_use: snapshot.ready,
        ..Default::default()
    }
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    bytes
}

fn along<T>(request: &Request<T>, key: &str) -> String {
    let value = request.metadata().get(key).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

/// CSI Controller: what is written below, and the calls that are not played.
macro_rules! plays {
    ([$($unplayed:ident($asked:ident) -> $answer:ident),+ $(,)?] $($played:item)+) => {
        #[tonic::async_trait]
        impl Controller for Plays {
            $(async fn $unplayed(&self, _: Request<csi::$asked>) -> Result<Response<csi::$answer>, Status> {
                Err(Status::unimplemented("not played"))
            })+
            $($played)+
        }
    };
}

plays! {
    [
        validate_volume_capabilities(ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse,
        list_volumes(ListVolumesRequest) -> ListVolumesResponse,
        get_capacity(GetCapacityRequest) -> GetCapacityResponse,
        controller_get_capabilities(ControllerGetCapabilitiesRequest) -> ControllerGetCapabilitiesResponse,
        controller_expand_volume(ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse,
        controller_modify_volume(ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse,
        controller_get_volume_health(ControllerGetVolumeHealthRequest) -> ControllerGetVolumeHealthResponse,
        controller_list_volume_health(ControllerListVolumeHealthRequest) -> ControllerListVolumeHealthResponse,
        list_snapshots(ListSnapshotsRequest) -> ListSnapshotsResponse,
        get_snapshot(GetSnapshotRequest) -> GetSnapshotResponse,
    ]

    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let host = called("CreateVolume", &request).await?;
        let (claim, passed_over) = (along(&request, CLAIM_KEY), along(&request, PASSED_OVER_KEY));
        let asked = request.into_inner();
        let lies: Arc<Lies> = Arc::clone(&host.lock().lies);
        let volume = match &lies.created {
            Some(lie) => lie(&asked, host.create(&asked, &claim, &passed_over)),
            None => host.create(&asked, &claim, &passed_over),
        };
        Ok(Response::new(csi::CreateVolumeResponse { volume: Some(volume?) }))
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let host = called("DeleteVolume", &request).await?;
        let id = request.into_inner().volume_id;
        let mut state = host.lock();
        if state.volumes.remove(&key_of(&id)).is_some() {
            state.tell(News::Gone(id));
        }
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        let host = called("ControllerPublishVolume", &request).await?;
        let asked = request.into_inner();
        host.change(&asked.volume_id, |held| {
            if !held.nodes.contains(&asked.node_id) {
                held.nodes.push(asked.node_id.clone());
                held.generation += 1;
            }
        })?;
        let publish_context = [("host".to_owned(), host.name.to_string())].into();
        Ok(Response::new(csi::ControllerPublishVolumeResponse { publish_context }))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        let host = called("ControllerUnpublishVolume", &request).await?;
        let asked = request.into_inner();
        host.change(&asked.volume_id, |held| held.nodes.retain(|node| *node != asked.node_id))?;
        Ok(Response::new(csi::ControllerUnpublishVolumeResponse {}))
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let host = called("ControllerGetVolume", &request).await?;
        let id = request.into_inner().volume_id;
        let held = host.lock().volumes.get(&key_of(&id)).cloned().ok_or_else(|| Status::not_found(id.clone()))?;
        let capacity_bytes = i64::try_from(held.size).unwrap();
        let volume = Some(csi::Volume { volume_id: id, capacity_bytes, ..Default::default() });
        Ok(Response::new(csi::ControllerGetVolumeResponse { volume, ..Default::default() }))
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        let host = called("CreateSnapshot", &request).await?;
        let asked = request.into_inner();
        let snapshot = host.cut(&asked)?;
        let lies: Arc<Lies> = Arc::clone(&host.lock().lies);
        let snapshot = match &lies.cut {
            Some(lie) => lie(&asked, snapshot),
            None => snapshot,
        };
        Ok(Response::new(csi::CreateSnapshotResponse { snapshot: Some(snapshot) }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        let host = called("DeleteSnapshot", &request).await?;
        let id = request.into_inner().snapshot_id;
        let mut state = host.lock();
        if state.snapshots.remove(&key_of(&id)).is_some() {
            state.tell(News::Gone(id));
        }
        Ok(Response::new(csi::DeleteSnapshotResponse {}))
    }
}
