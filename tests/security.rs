//! Who may do what on the mTLS door: every call is tried by every kind of caller.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use cistern::domain::{Key, Kind, Role};
use cistern::peer::{self, Tls};
use cistern::proto::csi::v1 as csi;
use cistern::proto::internal::host_client::HostClient;
use cistern::proto::internal::{FindRequest, RevealRequest};
use csi::controller_client::ControllerClient;
use csi::volume_capability::access_mode::Mode;
use csi::volume_capability::{AccessMode, AccessType, BlockVolume};
use support::peers::{Pki, bare_channel, bare_client, name, today, yesterday};
use support::{Place, fleet};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::Service;

/// The one role that may make a call, said a second time, in other words than in the table.
fn may(path: &str) -> Role {
    match path {
        "/cistern.v1.Host/Reveal" => Role::Node,
        _ => Role::Controller,
    }
}

/// Somebody who calls the host `a`.
struct Caller {
    who: &'static str,
    /// None for who must not even be let in.
    roles: Option<&'static [Role]>,
    channel: Channel,
}

fn callers(pki: &Pki, other: &Pki, host: SocketAddr) -> Vec<Caller> {
    let all = &Role::ALL;
    let bare = |shown| bare_channel(bare_client(&pki.ca(), shown), "a", host);
    let stranger = |who, channel| Caller { who, roles: None, channel };
    let mut callers = vec![
        stranger("no certificate", bare(None)),
        stranger("another authority's", bare(Some(&other.issue("x", all, today())))),
        stranger("expired", bare(Some(&pki.issue("x", all, yesterday())))),
    ];
    for (who, roles) in [
        ("controller", &[Role::Controller][..]),
        ("host", &[Role::Host]),
        ("node", &[Role::Node]),
        ("node and host", &[Role::Node, Role::Host]),
    ] {
        let tls = Tls::open(&pki.machine(&who.replace(' ', "-"), roles)).unwrap();
        let channel = tls.channel(Role::Host, name("a"), vec![host.to_string()]);
        callers.push(Caller { who, roles: Some(roles), channel });
    }
    callers
}

/// Makes a call with an empty message, and answers the first that comes back.
async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let codec = ProstCodec::<(), ()>::default();
    let answer = client.server_streaming(tonic::Request::new(()), path.parse().unwrap(), codec).await?;
    answer.into_inner().message().await.map(drop)
}

/// Tries every call as every caller. What a service itself answers is `answered`; the rest has to be a refusal.
async fn walk(callers: &[Caller], mut answered: impl FnMut(&str, &str, Result<(), Status>)) {
    let calls: Vec<_> = peer::roles::calls().collect();
    assert!(calls.len() > 20);
    for Caller { who, roles, channel } in callers {
        for (path, allowed) in &calls {
            assert_eq!(*allowed, [may(path)], "{path}");
            let got = call(channel, path).await;
            match roles {
                Some(roles) if roles.contains(&may(path)) => answered(who, path, got),
                Some(_) => {
                    let status = got.expect_err(path);
                    assert_eq!(status.code(), Code::PermissionDenied, "{who}: {path}: {status:?}");
                    let expected = format!("{path} is for the role {};", may(path));
                    assert!(status.message().starts_with(&expected), "{who}: {status:?}");
                }
                None => {
                    let status = got.expect_err(path);
                    assert_eq!(status.code(), Code::Unavailable, "{who}: {path}: {status:?}");
                    assert!(status.message().starts_with("not let in"), "{who}: {path}: {status:?}");
                }
            }
        }
    }
}

type Seen = Arc<Mutex<BTreeSet<String>>>;

/// Services that answer whatever reaches them, and note it.
macro_rules! stub {
    ($name:ident, $service:literal) => {
        #[derive(Clone)]
        struct $name(Seen);

        impl NamedService for $name {
            const NAME: &'static str = $service;
        }

        impl Service<Request<Body>> for $name {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: Request<Body>) -> Self::Future {
                self.0.lock().unwrap().insert(request.uri().path().to_owned());
                std::future::ready(Ok(Status::new(Code::Ok, "").into_http()))
            }
        }
    };
}
stub!(Identity, "csi.v1.Identity");
stub!(Controller, "csi.v1.Controller");
stub!(Node, "csi.v1.Node");
stub!(Host, "cistern.v1.Host");

#[tokio::test]
async fn what_is_refused_reaches_no_service() {
    let (pki, other, seen) = (Pki::new(), Pki::new(), Seen::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = Tls::open(&pki.machine("a", &[Role::Host])).unwrap().incoming(listener);
    let router = peer::server()
        .add_service(Identity(Arc::clone(&seen)))
        .add_service(Controller(Arc::clone(&seen)))
        .add_service(Node(Arc::clone(&seen)))
        .add_service(Host(Arc::clone(&seen)));
    tokio::spawn(router.serve_with_incoming(incoming));
    let callers = callers(&pki, &other, address);
    let take = || std::mem::take(&mut *seen.lock().unwrap());

    for caller in &callers {
        walk(std::slice::from_ref(caller), |who, path, got| {
            got.unwrap_or_else(|status| panic!("{who}: {path}: {status}"))
        })
        .await;
        let roles = caller.roles.unwrap_or_default();
        let allowed = peer::roles::calls().map(|(path, _)| path).filter(|path| roles.contains(&may(path)));
        assert_eq!(take(), allowed.collect(), "{}", caller.who);
        // what nobody has a right to, whatever services there may be
        for path in
            ["/csi.v1.Node/NodeStageVolume", "/cistern.v1.Host/Nothing", "/cistern.v1.Host/", "/", "/other/Call"]
        {
            let status = call(&caller.channel, path).await.unwrap_err();
            let expected = if caller.roles.is_some() { Code::Unimplemented } else { Code::Unavailable };
            assert_eq!(status.code(), expected, "{}: {path}: {status:?}", caller.who);
        }
        // it is the path that counts, however it is written
        let sly = [
            "/cistern.v1.Host/%41pply",
            "//cistern.v1.Host/Apply",
            "/cistern.v1.Host/Apply/",
            "/cistern.v1.Host/apply",
        ];
        for path in sly {
            assert!(call(&caller.channel, path).await.is_err(), "{}: {path}", caller.who);
        }
        assert_eq!(take(), BTreeSet::new(), "{}", caller.who);
    }
}

#[tokio::test]
async fn a_host_is_asked_by_those_who_may() {
    let (pki, other) = (Pki::new(), Pki::new());
    let pools = pki.place.path("pools.yaml");
    std::fs::write(&pools, "pools: []\n").unwrap();
    let mut host = fleet::host("a", pki.place.path("a"), Some(&pools), &pki);
    host.start();
    let callers = callers(&pki, &other, host.address);
    let mut answered = 0;
    walk(&callers, |who, path, got| {
        answered += 1;
        // an empty message is no good to most; what counts is that the service says so
        let Err(status) = got else { return };
        assert_ne!(status.code(), Code::PermissionDenied, "{who}: {path}: {status:?}");
        assert!(!status.message().starts_with("there is no /"), "{who}: {path}: {status:?}");
        assert!(!status.message().contains("cannot be reached"), "{who}: {path}: {status:?}");
    })
    .await;
    let may_make = |caller: &Caller, path: &str| caller.roles.is_some_and(|roles| roles.contains(&may(path)));
    let made = |caller| peer::roles::calls().filter(|(path, _)| may_make(caller, path)).count();
    assert_eq!(answered, callers.iter().map(made).sum::<usize>());
    assert!(answered > peer::roles::calls().count(), "each call by its one role, a node's by two callers");
}

#[tokio::test]
async fn a_node_learns_of_its_own_current_grant_alone() {
    let (place, pki) = (Place::with("xfs", "2G"), Pki::new());
    let pools = place.pool("");
    let mut host = fleet::host("a", place.path("a"), Some(&pools), &pki);
    host.start();
    let channel = |its: &str, roles: &[Role]| {
        let tls = Tls::open(&pki.machine(its, roles)).unwrap();
        tls.channel(Role::Host, name("a"), vec![host.address.to_string()])
    };
    let main = channel("main", &[Role::Controller]);
    let (id, generation) = granted(main.clone()).await;
    let ask = async |channel: Channel, generation| {
        let asked = HostClient::new(channel).reveal(RevealRequest { id: id.clone(), generation }).await;
        asked.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    assert_eq!(ask(channel("a", &[Role::Host, Role::Node]), generation).await, Code::Ok);
    assert_eq!(ask(channel("a", &[Role::Host, Role::Node]), generation + 1).await, Code::NotFound);
    assert_eq!(ask(channel("b", &[Role::Host, Role::Node]), generation).await, Code::NotFound);
    assert_eq!(ask(channel("a", &[Role::Host]), generation).await, Code::PermissionDenied);
    assert_eq!(ask(main, generation).await, Code::PermissionDenied);
}

/// A volume that the node `a` was granted, and the grant's number.
async fn granted(channel: Channel) -> (String, u64) {
    let mode = AccessMode { mode: Mode::SingleNodeMultiWriter.into() };
    let capability =
        csi::VolumeCapability { access_mode: Some(mode), access_type: Some(AccessType::Block(BlockVolume {})) };
    let (mut client, mut host) = (ControllerClient::new(channel.clone()), HostClient::new(channel));
    let key = Key::of_name(Kind::Volume, "v").to_string();
    let claimed = host.find(FindRequest { key: key.clone(), claim: true }).await.unwrap().into_inner();
    let mut request = tonic::Request::new(csi::CreateVolumeRequest {
        name: "v".to_owned(),
        volume_capabilities: vec![capability.clone()],
        parameters: [("pool".to_owned(), "p".to_owned())].into(),
        ..Default::default()
    });
    request.metadata_mut().insert("cistern-claim", claimed.claim.parse().unwrap());
    let id = client.create_volume(request).await.unwrap().into_inner().volume.unwrap().volume_id;
    let publish = csi::ControllerPublishVolumeRequest {
        volume_id: id.clone(),
        node_id: "a,127.0.0.1".to_owned(),
        volume_capability: Some(capability),
        ..Default::default()
    };
    client.controller_publish_volume(publish).await.unwrap();
    let found = host.find(FindRequest { key, claim: false }).await.unwrap().into_inner().found;
    (id, found[0].generation)
}
