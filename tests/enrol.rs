//! Enrolment over loopback: a node is a process, the controller's half runs here, and the cluster is played.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cistern::domain::Role;
use cistern::kube::authority::{ClusterAuthority, Settings};
use cistern::kube::enrol;
use cistern::peer::Tls;
use cistern::peer::certs::{Life, anchors};
use cistern::proto::csi::v1 as csi;
use cistern::proto::internal::enrolment_client::EnrolmentClient;
use cistern::proto::internal::{self, EnrolRequest, EnrolResponse};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use support::api::Api;
use support::machine::{Machine, Runs};
use support::peers::{bare_client, logged, logged_of, name};
use support::{Place, eventually};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// The controller's half: the authority, and the door for enrolment.
struct Controller {
    tls: PathBuf,
    /// The same directory, opened once.
    own: Arc<Tls>,
    authority: Arc<ClusterAuthority>,
    address: SocketAddr,
    stop: CancellationToken,
    _following: AbortOnDropHandle<()>,
}

impl Controller {
    async fn start(api: &Api, place: &Place, its: &str) -> Controller {
        Controller::with(api, place, its, |_| {}).await
    }

    async fn with(api: &Api, place: &Place, its: &str, set: impl Fn(&mut Settings)) -> Controller {
        logged();
        let tls = place.path(its);
        let mut settings = Settings::new("cistern", name(its), &tls);
        set(&mut settings);
        let authority = ClusterAuthority::open(&api.client(), settings).await;
        let (address, stop) = door(&tls, api, &authority).await;
        let following = Arc::clone(&authority);
        let following = AbortOnDropHandle::new(tokio::spawn(async move { following.follow().await }));
        let own = Tls::open(&tls).unwrap();
        Controller { tls, own, authority, address, stop, _following: following }
    }

    /// The name in its certificate.
    fn name(&self) -> ServerName<'static> {
        let its = self.tls.file_name().unwrap().to_str().unwrap();
        ServerName::try_from(format!("{its}.controller.cistern.internal")).unwrap()
    }

    /// What this controller is told by the host.
    async fn ask(&self, host: &Machine) -> Result<String, Status> {
        let channel = self.own.channel(Role::Host, name(&host.name), vec![host.address.to_string()]);
        let mut client = csi::identity_client::IdentityClient::new(channel);
        client.get_plugin_info(csi::GetPluginInfoRequest {}).await.map(|answer| answer.into_inner().name)
    }

    /// Waits until the host lets it in.
    async fn reach(&self, host: &Machine) {
        until(&format!("{} lets the controller in", host.name), async || self.ask(host).await.is_ok()).await;
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The door for enrolment, with the certificate of this directory.
async fn door(tls: &Path, api: &Api, authority: &Arc<ClusterAuthority>) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let (tls, stopped) = (Tls::open(tls).unwrap(), stop.clone().cancelled_owned());
    tokio::spawn(enrol::serve(listener, tls, api.client(), Arc::clone(authority), stopped));
    (address, stop)
}

/// A node that enrols, and what kubelet would mount for it.
struct Node {
    machine: Machine,
    credentials: PathBuf,
    /// The credentials, open: a process that left its container's mounts has them only so.
    open: fs::File,
    tls: PathBuf,
}

impl Node {
    fn new(place: &Place, its: &str, ca: &str, token: &str) -> Node {
        let (tls, credentials) = (place.path(format!("{its}/tls")), place.path(format!("{its}-enrol")));
        let machine = Machine::peer(its, Runs::NodeAndHost, place.path(its), None, tls.clone());
        fs::create_dir(&credentials).unwrap();
        fs::write(credentials.join("token"), token).unwrap();
        let open = fs::File::open(&credentials).unwrap();
        let node = Node { machine, credentials, open, tls };
        node.mount(ca);
        node
    }

    /// These authorities are in force.
    fn mount(&self, ca: &str) {
        fs::write(self.credentials.join("new"), ca).unwrap();
        fs::rename(self.credentials.join("new"), self.credentials.join("ca.crt")).unwrap();
    }

    /// Starts it, and waits until kubelet's socket answers.
    fn start(&mut self, enrol: SocketAddr) {
        let dir = format!("/proc/{}/fd/{}", std::process::id(), self.open.as_raw_fd());
        let enrol = enrol.to_string();
        self.machine.begin(&[("CISTERN_ENROL", &enrol), ("CISTERN_ENROL_DIR", &dir)]);
        assert!(self.machine.serves_or_ended().is_none(), "{}", self.machine.log());
    }

    fn file(&self, file: &str) -> String {
        fs::read_to_string(self.tls.join(file)).unwrap()
    }

    fn identity(&self) -> String {
        Tls::open(&self.tls).unwrap().identity().to_string()
    }

    fn waits_for(&self, line: &str) {
        eventually(line, || self.machine.log().contains(line).then_some(()));
    }
}

/// What the ConfigMap says.
fn believed(api: &Api) -> String {
    api.object("configmaps", "cistern-ca").unwrap()["data"]["ca.crt"].as_str().unwrap().to_owned()
}

async fn until(what: &str, mut asked: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !asked().await {
        assert!(Instant::now() < end, "it never came: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A guest of this door, from this address, that shows what it is told to.
fn guest(config: rustls::ClientConfig, controller: &Controller, from: &str) -> Channel {
    let (config, from) = (Arc::new(config), from.to_owned());
    let (to, who) = (controller.address, controller.name());
    let connector = tower::service_fn(move |_| {
        let greeted = greet(Arc::clone(&config), from.clone(), to, who.clone());
        async move { greeted.await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://cistern.internal").connect_with_connector_lazy(connector)
}

async fn greet(
    config: Arc<rustls::ClientConfig>,
    from: String,
    to: SocketAddr,
    who: ServerName<'static>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = connect_from(&from, to).await?;
    tokio_rustls::TlsConnector::from(config).connect(who, socket).await
}

async fn connect_from(from: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{from}:0").parse().unwrap())?;
    socket.connect(to).await
}

async fn enrol_by_hand(channel: Channel, request: Vec<u8>, token: &str) -> Result<EnrolResponse, Status> {
    let request = EnrolRequest { request, token: token.to_owned() };
    EnrolmentClient::new(channel).enrol(request).await.map(tonic::Response::into_inner)
}

/// A request that asks for these names.
fn request_for(names: &[&str]) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::new(names).unwrap().serialize_request(&key).unwrap().der().to_vec()
}

fn speaks_for(certificate: &str) -> String {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    cistern::peer::Identity::of(&der).unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_enrols_and_lets_its_controllers_in() {
    let (place, api) = (Place::bare(), Api::default());
    let controller = Controller::start(&api, &place, "main").await;
    let mut node = Node::new(&place, "worker", &believed(&api), &api.token_of("worker"));
    // while the cluster is away kubelet is served, and controllers find no door
    api.set_away(true);
    node.start(controller.address);
    node.waits_for("the cluster cannot be asked who the token is");
    assert!(TcpStream::connect(node.machine.address).await.is_err());
    api.set_away(false);
    controller.reach(&node.machine).await;
    assert_eq!(node.identity(), "host worker, node worker");
    assert_eq!(fs::metadata(&node.tls).unwrap().permissions().mode() & 0o777, 0o700);
    for file in ["ca.crt", "tls.crt", "tls.key"] {
        assert_eq!(fs::metadata(node.tls.join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    assert!(!node.tls.join("next").exists());
    // the next start needs no controller and no credentials
    let (key, shown) = (node.file("tls.key"), api.times_shown());
    node.machine.kill();
    fs::remove_dir_all(&node.credentials).unwrap();
    controller.stop.cancel();
    node.start(controller.address);
    controller.reach(&node.machine).await;
    assert_eq!(node.file("tls.key"), key);
    assert_eq!(api.times_shown(), shown);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_while_all_runs() {
    let (place, api) = (Place::bare(), Api::default());
    let lifetime = Duration::from_secs(8);
    let controller = Controller::with(&api, &place, "main", |settings| settings.lifetime = lifetime).await;
    let of_controller = || fs::read_to_string(controller.tls.join("tls.crt")).unwrap();
    let mut node = Node::new(&place, "worker", &believed(&api), &api.token_of("worker"));
    node.start(controller.address);
    controller.reach(&node.machine).await;
    let (its_first, began) = (of_controller(), Instant::now());
    let mut certificates = vec![(node.file("tls.crt"), node.file("tls.key"))];
    // until the first ones are long over: nobody is ever kept out
    while began.elapsed() < lifetime * 2 {
        controller.ask(&node.machine).await.unwrap();
        let certificate = node.file("tls.crt");
        let last = &certificates.last().unwrap().0;
        if *last != certificate {
            let left = Life::of_pem(last.as_bytes()).unwrap().until.duration_since(SystemTime::now());
            assert!(left.is_ok_and(|left| left > Duration::from_secs(1)), "the one before is over");
            eventually("the whole set is there", || Tls::open(&node.tls).ok());
            certificates.push((certificate, node.file("tls.key")));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(certificates.len() >= 3, "{} certificates", certificates.len());
    assert_ne!(certificates[0].1, certificates[1].1, "each has a key of its own");
    assert_ne!(of_controller(), its_first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_to_controllers_of_the_own_authority_alone() {
    let (place, api, elsewhere) = (Place::bare(), Api::default(), Api::default());
    let controller = Controller::start(&api, &place, "main").await;
    let stranger = Controller::start(&elsewhere, &place, "stranger").await;
    // a node's own certificate makes it no controller
    let mut other = Node::new(&place, "other", &believed(&api), &api.token_of("other"));
    other.start(controller.address);
    controller.reach(&other.machine).await;
    let shown = api.times_shown();
    let (of_node, stop) = door(&other.tls, &api, &controller.authority).await;
    let mut node = Node::new(&place, "worker", &believed(&api), &api.token_of("worker"));
    for (door, why) in [(stranger.address, "UnknownIssuer"), (of_node, "NotValidForName")] {
        node.start(door);
        eventually("the node tells why", || {
            let log = node.machine.log();
            let told = log.lines().rev().find(|line| line.contains("was not shown the token"));
            told.is_some_and(|line| line.contains(why)).then_some(())
        });
        node.machine.kill();
    }
    stop.cancel();
    assert_eq!((api.times_shown(), elsewhere.times_shown()), (shown, 0));
    // the same node enrols where it should
    node.start(controller.address);
    controller.reach(&node.machine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_the_tokens_and_never_the_requests() {
    let (place, api) = (Place::bare(), Api::default());
    let controller = Controller::start(&api, &place, "main").await;
    let request = request_for(&["main.controller.cistern.internal", "other.host.cistern.internal"]);
    let channel = guest(bare_client(&believed(&api), None), &controller, "127.0.0.1");
    let answer = enrol_by_hand(channel, request, &api.token_of("worker")).await.unwrap();
    assert_eq!(speaks_for(&answer.certificates), "host worker, node worker");
    assert_eq!(answer.authorities, believed(&api));
    // a node that takes itself for another says so, and has no certificate
    let mut node = Node::new(&place, "other", &believed(&api), &api.token_of("worker"));
    node.start(controller.address);
    node.waits_for("the certificate is that of host worker, node worker");
    assert!(controller.ask(&node.machine).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_to_be_enrolled_is_told_so_and_no_token_is_told_to_anybody() {
    let (place, api) = (Place::bare(), Api::default());
    let controller = Controller::start(&api, &place, "main").await;
    let bound = json!({ "authentication.kubernetes.io/node-name": ["worker"] });
    let account = "system:serviceaccount:cistern:cistern-node";
    let other_audience = api.token(&["https://kubernetes.default.svc"], account, bound.clone());
    let other_account = api.token(&["cistern.dev"], "system:serviceaccount:cistern:default", bound);
    let unbound = api.token(&["cistern.dev"], account, json!({}));
    let odd = api.token(&["cistern.dev"], account, json!({ "authentication.kubernetes.io/node-name": ["../worker"] }));
    let (good, large) = (api.token_of("worker"), "x".repeat(1 << 20));
    let request = request_for(&[]);
    for (token, request, code, why) in [
        ("never-heard-of", request.clone(), Code::Unauthenticated, "the token is not good: invalid bearer token …"),
        (&other_audience, request.clone(), Code::Unauthenticated, "the token is not good"),
        (&other_account, request.clone(), Code::PermissionDenied, "and not of the service account cistern-node"),
        (&unbound, request.clone(), Code::PermissionDenied, "the token is bound to no node"),
        (&odd, request.clone(), Code::PermissionDenied, "is not a machine's name"),
        (&good, b"what".to_vec(), Code::InvalidArgument, "the signing request"),
        (&large, request.clone(), Code::OutOfRange, "too large"),
    ] {
        let channel = guest(bare_client(&believed(&api), None), &controller, "127.0.0.1");
        let refused = enrol_by_hand(channel, request, token).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(why), "{refused:?}");
        assert!(!refused.message().contains(token) && logged_of(token).is_empty(), "{token} was told");
        if code != Code::OutOfRange {
            assert!(!logged_of(why).is_empty(), "it was not logged: {why}");
        }
    }
    api.set_away(true);
    let channel = guest(bare_client(&believed(&api), None), &controller, "127.0.0.1");
    let refused = enrol_by_hand(channel, request, &good).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_leads_to_enrolment_and_to_nothing_else() {
    let (place, api) = (Place::bare(), Api::default());
    let controller = Controller::start(&api, &place, "main").await;
    let mut node = Node::new(&place, "worker", &believed(&api), &api.token_of("worker"));
    node.start(controller.address);
    controller.reach(&node.machine).await;
    // without a certificate, and with one that is a controller's elsewhere
    let file = |file: &str| fs::read_to_string(controller.tls.join(file)).unwrap();
    let own = cistern::peer::certs::Issued { certificate: file("tls.crt"), key: file("tls.key") };
    for shows in [None, Some(&own)] {
        let mut from = (1..).map(|number| format!("127.0.1.{number}"));
        let mut channel = || guest(bare_client(&believed(&api), shows), &controller, &from.next().unwrap());
        let describe = internal::DescribeRequest::default();
        for status in [
            csi::identity_client::IdentityClient::new(channel()).probe(csi::ProbeRequest {}).await.unwrap_err(),
            csi::controller_client::ControllerClient::new(channel())
                .delete_volume(csi::DeleteVolumeRequest::default())
                .await
                .unwrap_err(),
            csi::node_client::NodeClient::new(channel()).node_get_info(csi::NodeGetInfoRequest {}).await.unwrap_err(),
            internal::host_client::HostClient::new(channel()).describe(describe).await.unwrap_err(),
            internal::fleet_client::FleetClient::new(channel()).describe(describe).await.unwrap_err(),
        ] {
            assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
        }
    }
    // and no other door leads there
    let channel = controller.own.channel(Role::Host, name("worker"), vec![node.machine.address.to_string()]);
    let status = enrol_by_hand(channel, request_for(&[]), &api.token_of("worker")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_controllers_that_start_at_once_make_one_authority() {
    let (place, api) = (Place::bare(), Api::default());
    api.meet(2);
    let (one, other) = tokio::join!(Controller::start(&api, &place, "one"), Controller::start(&api, &place, "other"));
    assert_eq!(anchors(&believed(&api)).len(), 1);
    for (enrols, asks, its) in [(&one, &other, "a"), (&other, &one, "b")] {
        let mut node = Node::new(&place, its, &believed(&api), &api.token_of(its));
        node.start(enrols.address);
        asks.reach(&node.machine).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_authority_takes_over_from_another() {
    let (place, api) = (Place::bare(), Api::default());
    let first = Controller::with(&api, &place, "first", |settings| settings.look_every = Duration::from_secs(2)).await;
    let old = believed(&api);
    let mut node = Node::new(&place, "worker", &old, &api.token_of("worker"));
    node.start(first.address);
    first.reach(&node.machine).await;
    // the Secret is made anew: the old one is believed beside it
    api.remove("secrets", "cistern-ca");
    let next = Controller::start(&api, &place, "next").await;
    let both = believed(&api);
    assert!(both.ends_with(&old) && anchors(&both).len() == 2);
    node.mount(&both);
    next.reach(&node.machine).await;
    first.reach(&node.machine).await;
    let certificate = node.file("tls.crt");
    // it is taken out: what it had signed is made anew
    let mut map = api.object("configmaps", "cistern-ca").unwrap();
    let new = both.strip_suffix(&old).unwrap();
    map["data"]["ca.crt"] = json!(new);
    api.set_object("configmaps", "cistern-ca", map);
    node.mount(new);
    eventually("the node has a certificate of the new one", || {
        let is_new = fs::read_to_string(node.tls.join("tls.crt")).ok()? != certificate;
        (is_new && Tls::open(&node.tls).is_ok() && node.file("ca.crt") == new).then_some(())
    });
    next.reach(&node.machine).await;
    // the first controller has followed, or it could not have signed: it has a new certificate itself
    first.reach(&node.machine).await;
    assert_eq!(believed(&api), new, "it is not put back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_no_good_is_left_alone_and_the_one_before_goes_on() {
    let (place, api) = (Place::bare(), Api::default());
    let controller = Controller::start(&api, &place, "main").await;
    let odd = json!({ "metadata": { "name": "cistern-ca" }, "data": { "tls.crt": "d2hhdA==", "tls.key": "d2hhdA==" } });
    api.set_object("secrets", "cistern-ca", odd);
    let wait = tokio::time::timeout(Duration::from_secs(3), Controller::start(&api, &place, "late"));
    assert!(wait.await.is_err());
    assert!(!logged_of("Secret cistern-ca cannot be used; it is left alone: tls.crt holds no authority's").is_empty());
    assert_eq!(api.object("secrets", "cistern-ca").unwrap()["data"]["tls.crt"], "d2hhdA==");
    let channel = guest(bare_client(&believed(&api), None), &controller, "127.0.0.1");
    enrol_by_hand(channel, request_for(&[]), &api.token_of("worker")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_takes_no_places_from_others() {
    let (place, api) = (Place::bare(), Api::default());
    let controller = Controller::start(&api, &place, "main").await;
    let config = Arc::new(bare_client(&believed(&api), None));
    let (mut silent, began) = (Vec::new(), Instant::now());
    for _ in 0..4 {
        let greeted = greet(Arc::clone(&config), "127.0.0.2".to_owned(), controller.address, controller.name());
        silent.push(greeted.await.unwrap());
    }
    let ask = async |from: &str| {
        let channel = guest(bare_client(&believed(&api), None), &controller, from);
        enrol_by_hand(channel, request_for(&[]), &api.token_of("worker")).await
    };
    ask("127.0.0.2").await.unwrap_err();
    assert!(!logged_of("too many of its address are here already").is_empty());
    ask("127.0.0.3").await.unwrap();
    // they keep silent for as long as they may
    for mut stream in silent {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await;
        let _ = closed.expect("it is still there");
    }
    assert!(began.elapsed() > Duration::from_secs(15), "{:?}", began.elapsed());
    until("there is room again", async || ask("127.0.0.2").await.is_ok()).await;
}
