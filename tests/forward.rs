//! What a controller hands on is what it was given, byte for byte, also what it does not know; and so is what comes back.
//! The host is a stub that notes what reaches it and answers what it is told to.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use cistern::domain::{Id, Key, Kind, Role};
use cistern::peer::{self, Tls};
use cistern::proto::csi::v1 as csi;
use cistern::proto::internal::report::News;
use cistern::proto::internal::{self, Report, Reports, host_server};
use prost::Message;
use support::client::{GIB, MIB, topology};
use support::fleet::Controller;
use support::peers::{Pki, name};
use support::{Csi, Volume, eventually};
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http;
use tonic::server::{NamedService, UnaryService};
use tonic::{Code, Request, Response, Status};

const STORE: &str = "0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff";

/// Messages as they are on the wire.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// What the stub answers next, and what it was asked last.
struct Told {
    answer: Result<Bytes, Status>,
    seen: Option<(String, Bytes)>,
}

#[derive(Clone)]
struct Stub(Arc<Mutex<Told>>);

impl NamedService for Stub {
    const NAME: &'static str = "csi.v1.Controller";
}

type Answering<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl tower::Service<http::Request<Body>> for Stub {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = Call { stub: self.clone(), path: request.uri().path().to_owned() };
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).unary(call, request).await) })
    }
}

struct Call {
    stub: Stub,
    path: String,
}

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = Answering<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let mut told = self.stub.0.lock().unwrap();
        told.seen = Some((self.path.clone(), request.into_inner()));
        let answer = told.answer.clone();
        Box::pin(async move { answer.map(Response::new) })
    }
}

/// A host with one pool, an empty store, and nothing to do.
struct Idle;

#[tonic::async_trait]
impl host_server::Host for Idle {
    type WatchStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<Reports, Status>> + Send>>;
    type ReadStream = tokio_stream::Empty<Result<internal::Blocks, Status>>;

    async fn watch(&self, _: Request<internal::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let pool = internal::Pool {
            name: "p".to_owned(),
            store: STORE.to_owned(),
            total_bytes: 1 << 40,
            available_bytes: 1 << 40,
            ..Default::default()
        };
        let news = [News::Pool(pool), News::Whole(internal::Whole {})].map(|news| Report { news: Some(news) });
        let all = tokio_stream::once(Ok(Reports { reports: news.into() }));
        let and_nothing_more = tokio_stream::pending();
        Ok(Response::new(Box::pin(tokio_stream::StreamExt::chain(all, and_nothing_more))))
    }

    async fn find(&self, _: Request<internal::FindRequest>) -> Result<Response<internal::FindResponse>, Status> {
        let claim = STORE.to_owned();
        Ok(Response::new(internal::FindResponse { claim, ..Default::default() }))
    }

    async fn confirm(
        &self,
        _: Request<internal::ConfirmRequest>,
    ) -> Result<Response<internal::ConfirmResponse>, Status> {
        Ok(Response::new(internal::ConfirmResponse { newest: true }))
    }

    async fn describe(
        &self,
        _: Request<internal::DescribeRequest>,
    ) -> Result<Response<internal::DescribeResponse>, Status> {
        Err(Status::unimplemented("it is a stub"))
    }

    async fn apply(&self, _: Request<internal::ApplyRequest>) -> Result<Response<internal::ApplyResponse>, Status> {
        Err(Status::unimplemented("it is a stub"))
    }

    async fn settle(&self, _: Request<internal::SettleRequest>) -> Result<Response<internal::SettleResponse>, Status> {
        Err(Status::unimplemented("it is a stub"))
    }

    async fn read(&self, _: Request<internal::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        Err(Status::unimplemented("it is a stub"))
    }

    async fn reveal(&self, _: Request<internal::RevealRequest>) -> Result<Response<internal::RevealResponse>, Status> {
        Err(Status::unimplemented("it is a stub"))
    }
}

/// The stub as host `a`, and a controller of it.
struct Site {
    stub: Stub,
    csi: Csi,
    // both end with the test
    _controller: Controller,
    _runtime: Runtime,
    _pki: Pki,
}

impl Site {
    fn begin() -> Site {
        let pki = Pki::new();
        let tls = pki.machine("a", &[Role::Host]);
        let stub = Stub(Arc::new(Mutex::new(Told { answer: Ok(Bytes::new()), seen: None })));
        let runtime = Runtime::new().unwrap();
        let address = runtime.block_on(serve(&tls, stub.clone()));
        let mut controller = Controller::new(pki.place.path("controller"), &pki);
        controller.add_at(&name("a").to_string(), &address.to_string());
        controller.start();
        let csi = controller.client();
        // it has told all it has
        eventually("the host is there", || {
            let asked = csi::GetCapacityRequest::default();
            let answered = csi.block_on(csi.controller().get_capacity(asked)).ok()?.into_inner();
            (answered.available_capacity > 0).then_some(())
        });
        Site { stub, csi, _controller: controller, _runtime: runtime, _pki: pki }
    }

    /// Makes a call with this message, to which the host answers so. What reached the host, and what came back.
    fn call(&self, method: &str, message: Bytes, answer: Result<Bytes, Status>) -> (Bytes, Result<Bytes, Status>) {
        *self.stub.0.lock().unwrap() = Told { answer, seen: None };
        let path = format!("/csi.v1.Controller/{method}");
        let back = self.csi.call(&path, Raw, message);
        let (seen_path, seen) = self.stub.0.lock().unwrap().seen.take().expect("it reaches the host");
        assert_eq!(seen_path, path);
        (seen, back)
    }
}

async fn serve(tls: &std::path::Path, stub: Stub) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = Tls::open(tls).unwrap().incoming(listener);
    let router = peer::server().add_service(host_server::HostServer::new(Idle)).add_service(stub);
    tokio::spawn(router.serve_with_incoming(incoming));
    address
}

/// A message of a later version of CSI: this one, and fields that nobody here knows.
fn and_more(message: &impl Message) -> Bytes {
    // field 1000, a string; field 1001, a number
    let more = [0xc2, 0x3e, 5, b'h', b'e', b'l', b'l', b'o', 0xc8, 0x3e, 42];
    [message.encode_to_vec(), more.to_vec()].concat().into()
}

/// An id of the stub's store.
fn id(kind: Kind, name: &str) -> String {
    Id { store: cistern::domain::StoreId(STORE.parse().unwrap()), key: Key::of_name(kind, name) }.to_string()
}

/// What the host answers: something that nobody looks into, but to the calls whose answers are held against what was asked.
fn answer_to(method: &str) -> Bytes {
    let cut = |name| csi::Snapshot {
        snapshot_id: id(Kind::Snapshot, name),
        source_volume_id: id(Kind::Volume, "v"),
        ..Default::default()
    };
    match method {
        "CreateSnapshot" => and_more(&csi::CreateSnapshotResponse { snapshot: Some(cut("cut")) }),
        "GetSnapshot" => and_more(&csi::GetSnapshotResponse { snapshot: Some(cut("v")) }),
        "ListSnapshots" => {
            let entry = csi::list_snapshots_response::Entry { snapshot: Some(cut("v")) };
            and_more(&csi::ListSnapshotsResponse { entries: vec![entry], ..Default::default() })
        }
        _ => and_more(&csi::ControllerExpandVolumeResponse { capacity_bytes: GIB, node_expansion_required: true }),
    }
}

/// Every call that goes to one host, with a message that has more than is known.
fn calls() -> Vec<(&'static str, Bytes)> {
    let id =
        |kind| Id { store: cistern::domain::StoreId(STORE.parse().unwrap()), key: Key::of_name(kind, "v") }.to_string();
    let (volume_id, snapshot_id) = (id(Kind::Volume), id(Kind::Snapshot));
    let volume = Volume::block("v", 4 * MIB);
    let capability = Some(volume.capability());
    vec![
        ("DeleteVolume", and_more(&csi::DeleteVolumeRequest { volume_id: volume_id.clone(), ..Default::default() })),
        (
            "ControllerPublishVolume",
            and_more(&csi::ControllerPublishVolumeRequest {
                volume_id: volume_id.clone(),
                node_id: "n,127.0.0.1".to_owned(),
                volume_capability: capability.clone(),
                ..Default::default()
            }),
        ),
        (
            "ControllerUnpublishVolume",
            and_more(&csi::ControllerUnpublishVolumeRequest { volume_id: volume_id.clone(), ..Default::default() }),
        ),
        (
            "ValidateVolumeCapabilities",
            and_more(&csi::ValidateVolumeCapabilitiesRequest {
                volume_id: volume_id.clone(),
                volume_capabilities: capability.into_iter().collect(),
                ..Default::default()
            }),
        ),
        (
            "ControllerExpandVolume",
            and_more(&csi::ControllerExpandVolumeRequest { volume_id: volume_id.clone(), ..Default::default() }),
        ),
        (
            "ControllerModifyVolume",
            and_more(&csi::ControllerModifyVolumeRequest { volume_id: volume_id.clone(), ..Default::default() }),
        ),
        ("ControllerGetVolume", and_more(&csi::ControllerGetVolumeRequest { volume_id: volume_id.clone() })),
        (
            "CreateSnapshot",
            and_more(&csi::CreateSnapshotRequest {
                source_volume_id: volume_id,
                name: "cut".to_owned(),
                ..Default::default()
            }),
        ),
        (
            "DeleteSnapshot",
            and_more(&csi::DeleteSnapshotRequest { snapshot_id: snapshot_id.clone(), ..Default::default() }),
        ),
        ("GetSnapshot", and_more(&csi::GetSnapshotRequest { snapshot_id: snapshot_id.clone(), ..Default::default() })),
        ("ListSnapshots", and_more(&csi::ListSnapshotsRequest { snapshot_id, ..Default::default() })),
    ]
}

#[test]
fn messages_are_handed_on_byte_for_byte() {
    let site = Site::begin();
    for (method, message) in calls() {
        let answer = answer_to(method);
        let (seen, back) = site.call(method, message.clone(), Ok(answer.clone()));
        assert_eq!(seen, message, "{method}");
        assert_eq!(back.unwrap(), answer, "{method}");
    }
    println!("CreateVolume too, though its host is chosen and its answer held against what was asked for");
    let message = and_more(&Volume::block("v", 4 * MIB).request());
    let made = csi::Volume {
        volume_id: id(Kind::Volume, "v"),
        capacity_bytes: 4 * MIB,
        accessible_topology: vec![topology("a")],
        ..Default::default()
    };
    let answer = and_more(&csi::CreateVolumeResponse { volume: Some(made) });
    let (seen, back) = site.call("CreateVolume", message.clone(), Ok(answer.clone()));
    assert_eq!((seen, back.unwrap()), (message, answer));
}

#[test]
fn what_a_host_refuses_comes_back_in_its_words() {
    let site = Site::begin();
    let codes = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];
    let calls = calls();
    for (number, code) in codes.into_iter().enumerate() {
        let (method, message) = calls[number % calls.len()].clone();
        let said =
            Status::with_details(code, "as the host said it: ä, \u{1f9ca}", Bytes::from_static(b"\x08\x01details"));
        let (_, back) = site.call(method, message, Err(said.clone()));
        let back = back.unwrap_err();
        let all = |status: &Status| (status.code(), status.message().to_owned(), status.details().to_vec());
        assert_eq!(all(&back), all(&said), "{method}");
    }
    println!("a host whose time is over may still do it");
    for code in [Code::DeadlineExceeded, Code::Cancelled] {
        let (method, message) = calls[0].clone();
        let (_, back) = site.call(method, message, Err(Status::new(code, "too late")));
        assert_eq!(back.unwrap_err().code(), Code::Aborted, "{code:?}");
    }
}
