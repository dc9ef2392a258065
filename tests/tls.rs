//! The mTLS door over real TCP with real files: who is let in, who is believed, and what happens while certificates change.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cistern::domain::Role;
use cistern::peer::{self, Tls, caller};
use cistern::proto::csi::v1 as csi;
use csi::identity_client::IdentityClient;
use csi::identity_server::{Identity, IdentityServer};
use support::peers::{Pki, bare_client, bare_connect, logged_of, name, today, write_all, yesterday};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// Tells callers who they are.
struct Mirror;

#[tonic::async_trait]
impl Identity for Mirror {
    async fn get_plugin_info(
        &self,
        request: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        let peer = caller(&request).expect("the door says who calls");
        let (name, vendor_version) = (peer.identity.to_string(), peer.address.to_string());
        Ok(Response::new(csi::GetPluginInfoResponse { name, vendor_version, ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    /// Never answers.
    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        std::future::pending().await
    }
}

/// A server that ends with the test.
struct Door {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Door {
    async fn open(dir: &Path) -> Door {
        Door::open_at(dir, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn open_at(dir: &Path, address: SocketAddr) -> Door {
        support::peers::logged();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let incoming = Tls::open(dir).unwrap().incoming(listener);
        let router = peer::server().add_service(IdentityServer::new(Mirror));
        tokio::spawn(router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        Door { address, stop }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn channel(dir: &Path, host: &str, addresses: &[SocketAddr]) -> Channel {
    Tls::open(dir).unwrap().channel(Role::Host, name(host), addresses.iter().map(ToString::to_string).collect())
}

/// Who the server says we are.
async fn ask(channel: &Channel) -> Result<String, Status> {
    let answer = IdentityClient::new(channel.clone()).get_plugin_info(csi::GetPluginInfoRequest {}).await;
    answer.map(|answer| answer.into_inner().name)
}

/// Asks on the channel and waits until the answer is this.
async fn until(what: &str, mut asked: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !asked().await {
        assert!(Instant::now() < end, "it never came: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A line of the log with both in it.
async fn until_logged(one: &str, other: &str) {
    let both = || logged_of(one).iter().any(|line| line.contains(other));
    let end = Instant::now() + Duration::from_secs(30);
    while !both() {
        assert!(Instant::now() < end, "not logged: {one} … {other}; but {:#?}", logged_of(one));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let pki = Pki::new();
    let door = Door::open(&pki.machine("a", &[Role::Host, Role::Node])).await;
    let main = channel(&pki.machine("main", &[Role::Controller]), "a", &[door.address]);
    assert_eq!(ask(&main).await.unwrap(), "controller main");
    // names of machines may have dots, and one that is several things says so
    let all = channel(&pki.machine("b.example", &[Role::Controller, Role::Host]), "a", &[door.address]);
    assert_eq!(ask(&all).await.unwrap(), "controller b.example, host b.example");
    // what a host is to others is not what it may ask
    let status = ask(&channel(&pki.machine("c", &[Role::Node]), "a", &[door.address])).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    for part in ["node c", "role controller", "/csi.v1.Identity/GetPluginInfo"] {
        assert!(status.message().contains(part), "{status:?}");
    }
}

#[tokio::test]
async fn who_cannot_show_a_good_certificate_is_not_let_in() {
    let (pki, other) = (Pki::new(), Pki::new());
    let door = Door::open(&pki.machine("a", &[Role::Host])).await;
    let roles = [Role::Controller];
    let tomorrow = today().end + Duration::from_secs(3600)..today().end + Duration::from_secs(7200);
    let (of_other, expired) = (other.issue("main", &roles, today()), pki.issue("main", &roles, yesterday()));
    let (early, nobody) = (pki.issue("main", &roles, tomorrow), pki.issue("main", &[], today()));
    for (shown, reason) in [
        (None, "peer sent no certificates"),
        (Some(&of_other), "UnknownIssuer"),
        (Some(&expired), "certificate expired"),
        (Some(&early), "not valid yet"),
        (Some(&nobody), "no DNS name of the form NAME.ROLE.cistern.internal"),
    ] {
        let (from, talked) = bare_connect(Arc::new(bare_client(&pki.ca(), shown)), "a", door.address).await;
        assert!(talked.is_err(), "{reason}");
        until_logged(&from.to_string(), reason).await;
    }
    // the same client is let in with what is good, so that it was the certificate each time
    let good = pki.issue("main", &roles, today());
    let (_, talked) = bare_connect(Arc::new(bare_client(&pki.ca(), Some(&good))), "a", door.address).await;
    talked.unwrap();
}

#[tokio::test]
async fn a_refused_client_is_told_so_by_its_channel() {
    let (pki, other) = (Pki::new(), Pki::new());
    let door = Door::open(&pki.machine("a", &[Role::Host])).await;
    // it believes both authorities, and the server only one
    let both = format!("{}{}", pki.ca(), other.ca());
    let dir = other.directory("main", &both, &other.issue("main", &[Role::Controller], today()));
    let status = ask(&channel(&dir, "a", &[door.address])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("host a cannot be reached"), "{status:?}");
    assert!(status.message().contains("our certificate is not taken"), "{status:?}");
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_not_believed() {
    let (pki, other) = (Pki::new(), Pki::new());
    let main = pki.machine("main", &[Role::Controller]);
    let both = format!("{}{}", pki.ca(), other.ca());
    for (server, why) in [
        (pki.machine("b", &[Role::Host]), "not valid for name"),
        (pki.machine("a", &[Role::Node]), "not valid for name"),
        (pki.machine("a.b", &[Role::Host]), "not valid for name"),
        (other.directory("a", &both, &other.issue("a", &[Role::Host], today())), "UnknownIssuer"),
    ] {
        let door = Door::open(&server).await;
        let status = ask(&channel(&main, "a", &[door.address])).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains(why), "{}: {status:?}", server.display());
    }
}

#[tokio::test]
async fn a_wildcard_is_nobody() {
    let place = support::Place::bare();
    let (dir, own) = wildcard(&place);
    let tls = Tls::open(&dir).unwrap();
    assert_eq!(tls.identity().to_string(), "host b, controller b");
    let door = Door::open(&dir).await;
    // another client, which asks for what TLS asks for, takes it for a
    bare_connect(Arc::new(bare_client(&own.0, Some(&own.1))), "a", door.address).await.1.unwrap();
    let status = ask(&channel(&dir, "a", &[door.address])).await.unwrap_err();
    assert!(status.message().contains("another answers, host b, controller b"), "{status:?}");
    ask(&channel(&dir, "b", &[door.address])).await.unwrap();
}

/// What no authority of ours makes: a certificate for the host b, which is also for any host.
fn wildcard(place: &support::Place) -> (std::path::PathBuf, (String, cistern::peer::certs::Issued)) {
    let key = || rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = rcgen::CertifiedIssuer::self_signed(params, key()).unwrap();
    let names = ["b.host", "b.controller", "*.host"].map(|name| format!("{name}.cistern.internal"));
    let own = key();
    let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&own, &ca).unwrap().pem();
    let issued = cistern::peer::certs::Issued { certificate, key: own.serialize_pem() };
    let dir = place.path("wildcard");
    fs::create_dir(&dir).unwrap();
    write_all(&dir, &ca.pem(), &issued);
    (dir, (ca.pem(), issued))
}

#[tokio::test]
async fn what_is_no_tls_or_no_http2_is_refused_and_harms_nobody() {
    let pki = Pki::new();
    let door = Door::open(&pki.machine("a", &[Role::Host])).await;
    for (sent, reason) in [
        (&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], "corrupt message"),
        (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], "corrupt message"),
        (&[0; 4096][..], "corrupt message"),
        (&b""[..], "eof"),
    ] {
        let mut socket = TcpStream::connect(door.address).await.unwrap();
        let from = socket.local_addr().unwrap();
        let _ = socket.write_all(sent).await;
        if sent.is_empty() {
            socket.shutdown().await.unwrap();
        }
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
        until_logged(&from.to_string(), reason).await;
    }
    let good = pki.issue("main", &[Role::Controller], today());
    let mut old = bare_client(&pki.ca(), Some(&good));
    old.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (from, talked) = bare_connect(Arc::new(old), "a", door.address).await;
    assert!(talked.is_err());
    until_logged(&from.to_string(), "any known protocol").await;
    ask(&channel(&pki.machine("main", &[Role::Controller]), "a", &[door.address])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_clients_cost_nobody_a_place() {
    let pki = Pki::new();
    let door = Door::open(&pki.machine("a", &[Role::Host])).await;
    let main = pki.machine("main", &[Role::Controller]);
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(door.address).await.unwrap());
    }
    let began = Instant::now();
    ask(&channel(&main, "a", &[door.address])).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // the first had to go at once, for the last; the last is told when its time is over
    let (first, last) = (silent.remove(0), silent.pop().unwrap());
    for (mut socket, patience, reason) in [(first, 3, "others came after it"), (last, 20, "not finished")] {
        let from = socket.local_addr().unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(patience), socket.read_to_end(&mut rest)).await;
        let _ = closed.unwrap_or_else(|_| panic!("it is still there: {reason}"));
        until_logged(&from.to_string(), reason).await;
    }
}

#[tokio::test]
async fn nothing_is_resumed() {
    let pki = Pki::new();
    let door = Door::open(&pki.machine("a", &[Role::Host])).await;
    let config = Arc::new(bare_client(&pki.ca(), Some(&pki.issue("main", &[Role::Controller], today()))));
    for _ in 0..2 {
        let (_, talked) = bare_connect(Arc::clone(&config), "a", door.address).await;
        assert_eq!(talked.unwrap().get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

/// A directory as Kubernetes mounts a secret: the files are links into a directory that is swapped.
struct Mount<'a> {
    dir: &'a Path,
    swaps: u32,
}

impl Mount<'_> {
    fn swap(&mut self, ca: &str, issued: &cistern::peer::certs::Issued) {
        self.swaps += 1;
        let fresh = format!("..{}", self.swaps);
        fs::create_dir_all(self.dir.join(&fresh)).unwrap();
        write_all(&self.dir.join(&fresh), ca, issued);
        symlink(&fresh, self.dir.join("..data_tmp")).unwrap();
        fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data")).unwrap();
        for file in ["ca.crt", "tls.crt", "tls.key"] {
            let _ = symlink(Path::new("..data").join(file), self.dir.join(file));
        }
    }
}

#[tokio::test]
async fn certificates_are_renewed_while_connections_stand() {
    let pki = Pki::new();
    let dir = pki.place.path("mount");
    let mut mount = Mount { dir: &dir, swaps: 0 };
    mount.swap(&pki.ca(), &pki.issue("main", &[Role::Controller], today()));
    let door = Door::open(&pki.machine("a", &[Role::Host])).await;
    let tls = Tls::open(&dir).unwrap();
    let to_a = || tls.channel(Role::Host, name("a"), vec![door.address.to_string()]);
    let before = to_a();
    assert_eq!(ask(&before).await.unwrap(), "controller main");
    mount.swap(&pki.ca(), &pki.issue("renewed", &[Role::Controller], today()));
    until("a new connection shows the new certificate", async || ask(&to_a()).await.unwrap() == "controller renewed")
        .await;
    assert_eq!(ask(&before).await.unwrap(), "controller main", "the connection that stands is left alone");
    assert_eq!(tls.identity().to_string(), "controller renewed");
}

#[tokio::test]
async fn a_connection_that_broke_is_made_again_with_the_certificate_of_that_time() {
    let pki = Pki::new();
    let (server, client) = (pki.machine("a", &[Role::Host]), pki.machine("main", &[Role::Controller]));
    let door = Door::open(&server).await;
    let (address, tls) = (door.address, Tls::open(&client).unwrap());
    let channel = tls.channel(Role::Host, name("a"), vec![address.to_string()]);
    assert_eq!(ask(&channel).await.unwrap(), "controller main");
    drop(door);
    write_all(&client, &pki.ca(), &pki.issue("next", &[Role::Controller], today()));
    until("nobody answers, and the files were looked at", async || {
        ask(&channel).await.is_err() && tls.identity().to_string() == "controller next"
    })
    .await;
    let _door = Door::open_at(&server, address).await;
    until("it is there again", async || ask(&channel).await.is_ok_and(|who| who == "controller next")).await;
}

#[tokio::test]
async fn half_a_renewal_changes_nothing_and_is_told_once() {
    let pki = Pki::new();
    let dir = pki.directory("half", &pki.ca(), &pki.issue("a", &[Role::Host], today()));
    let door = Door::open(&dir).await;
    let main = pki.machine("main", &[Role::Controller]);
    let next = pki.issue("b", &[Role::Host], today());
    let told =
        || logged_of(dir.to_str().unwrap()).into_iter().filter(|line| line.contains("stay as they were")).count();
    fs::write(dir.join("tls.crt"), &next.certificate).unwrap();
    until("the half was seen", async || {
        ask(&channel(&main, "a", &[door.address])).await.unwrap();
        told() == 1
    })
    .await;
    // looked at again and again, each time at least a second after the last
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        ask(&channel(&main, "a", &[door.address])).await.unwrap();
    }
    assert_eq!(told(), 1, "{:#?}", logged_of(dir.to_str().unwrap()));
    fs::remove_file(dir.join("tls.key")).unwrap();
    until("a missing file was seen", async || {
        ask(&channel(&main, "a", &[door.address])).await.unwrap();
        told() == 2
    })
    .await;
    fs::write(dir.join("tls.key"), &next.key).unwrap();
    until("the whole is taken", async || ask(&channel(&main, "b", &[door.address])).await.is_ok()).await;
}

#[tokio::test]
async fn one_authority_takes_over_from_another() {
    let (old, new) = (Pki::new(), Pki::new());
    let (host, main) = ([Role::Host], [Role::Controller]);
    let both = format!("{}{}", old.ca(), new.ca());
    let server = old.directory("a", &old.ca(), &old.issue("a", &host, today()));
    let client = old.directory("main", &old.ca(), &old.issue("main", &main, today()));
    let door = Door::open(&server).await;
    let tls = Tls::open(&client).unwrap();
    let to_a = || tls.channel(Role::Host, name("a"), vec![door.address.to_string()]);
    let is_served = async |what: &str| {
        // longer than the files are left unlooked at
        let end = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < end {
            ask(&to_a()).await.unwrap_or_else(|status| panic!("{what}: {status}"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // everybody believes both; then everybody shows the new one's; then the old one is believed no more
    fs::write(server.join("ca.crt"), &both).unwrap();
    is_served("the server believes both").await;
    fs::write(client.join("ca.crt"), &both).unwrap();
    is_served("both believe both").await;
    write_all(&client, &both, &new.issue("main", &main, today()));
    is_served("the client is new").await;
    write_all(&server, &both, &new.issue("a", &host, today()));
    is_served("the server is new").await;
    fs::write(server.join("ca.crt"), new.ca()).unwrap();
    fs::write(client.join("ca.crt"), new.ca()).unwrap();
    is_served("the old one is gone").await;
    let late = old.directory("late", &both, &old.issue("main", &main, today()));
    let status = ask(&channel(&late, "a", &[door.address])).await.unwrap_err();
    assert!(status.message().contains("our certificate is not taken"), "{status:?}");
}

/// An address where connections are taken and nothing is said.
async fn silence() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn addresses_are_tried_in_order_and_none_for_long() {
    let pki = Pki::new();
    let main = pki.machine("main", &[Role::Controller]);
    let (door, other) =
        (Door::open(&pki.machine("a", &[Role::Host])).await, Door::open(&pki.machine("b", &[Role::Host])).await);
    let (gone, nobody) = silence().await;
    drop(gone);
    let (_silent, silent) = silence().await;
    let began = Instant::now();
    ask(&channel(&main, "a", &[nobody, other.address, silent, door.address])).await.unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(4), "one silent address: {took:?}");

    let all_silent = channel(&main, "a", &[silent, nobody, silent, silent, silent]);
    let began = Instant::now();
    let status = ask(&all_silent).await.unwrap_err();
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(7), "all of them: {took:?}");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(&format!("{nobody}: no connection: Connection refused")), "{status:?}");
    assert!(status.message().contains(&format!("{silent}: no answer in time")), "{status:?}");
    // those who waited behind the first do not begin anew one after another
    let began = Instant::now();
    let (one, two, three) = tokio::join!(ask(&all_silent), ask(&all_silent), ask(&all_silent));
    assert!(one.is_err() && two.is_err() && three.is_err());
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());

    let status = ask(&channel(&main, "a", &[])).await.unwrap_err();
    assert!(status.message().contains("it has no address"), "{status:?}");
}

/// A way to a server that can be cut as by a pulled cable: nothing passes, and nobody is told.
struct Cable {
    address: SocketAddr,
    cut: CancellationToken,
    /// When the client gives the connection up.
    given_up: CancellationToken,
}

impl Cable {
    async fn to(server: SocketAddr) -> Cable {
        let (listener, address) = silence().await;
        let cable = Cable { address, cut: CancellationToken::new(), given_up: CancellationToken::new() };
        let (cut, given_up) = (cable.cut.clone(), cable.given_up.clone());
        tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(server).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = cut.cancelled() => {
                    let mut unread = Vec::new();
                    let _ = near.read_to_end(&mut unread).await;
                    given_up.cancel();
                }
            }
        });
        cable
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_connection_is_noticed_also_when_nobody_uses_it() {
    let pki = Pki::new();
    let door = Door::open(&pki.machine("a", &[Role::Host])).await;
    let main = pki.machine("main", &[Role::Controller]);
    let (idle, busy) = (Cable::to(door.address).await, Cable::to(door.address).await);
    let (of_idle, of_busy) = (channel(&main, "a", &[idle.address]), channel(&main, "a", &[busy.address]));
    ask(&of_idle).await.unwrap();
    ask(&of_busy).await.unwrap();
    let call = tokio::spawn(async move { IdentityClient::new(of_busy).probe(csi::ProbeRequest {}).await });
    idle.cut.cancel();
    busy.cut.cancel();
    let patience = Duration::from_secs(25);
    tokio::time::timeout(patience, idle.given_up.cancelled()).await.expect("an idle connection is given up");
    let status = tokio::time::timeout(patience, call).await.expect("a call ends").unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

/// Runs in a process of its own: how many descriptors a process may have is the same for all of it.
const FEW_DESCRIPTORS: &str = "CISTERN_TEST_FEW_DESCRIPTORS";

/// The processor's time that this process has had, in hundredths of a second; the file is open already.
fn ticks(stat: &fs::File) -> u64 {
    let mut bytes = [0; 1024];
    let length = stat.read_at(&mut bytes, 0).unwrap();
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let (_, after_name) = text.rsplit_once(") ").unwrap();
    after_name.split(' ').skip(11).take(2).map(|number| number.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_server_without_descriptors_serves_again_when_there_are_some() {
    if std::env::var_os(FEW_DESCRIPTORS).is_none() {
        let this = std::env::current_exe().unwrap();
        let mut alone = std::process::Command::new(this);
        alone.args(["--exact", "a_server_without_descriptors_serves_again_when_there_are_some", "--nocapture"]);
        assert!(alone.env(FEW_DESCRIPTORS, "1").status().unwrap().success());
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let pki = Pki::new();
        let door = Door::open(&pki.machine("a", &[Role::Host])).await;
        let main = channel(&pki.machine("main", &[Role::Controller]), "a", &[door.address]);
        ask(&main).await.unwrap();
        let stat = fs::File::open("/proc/self/stat").unwrap();
        // descriptors are taken until there are none; connections then are made by the kernel and cannot be accepted
        let limit = rustix::process::Rlimit { current: Some(200), maximum: Some(200) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        let client = std::net::TcpStream::connect(door.address).unwrap();
        let mut taken = Vec::new();
        while let Ok(file) = fs::File::open("/dev/null") {
            taken.push(file);
        }
        taken.pop();
        let late = std::net::TcpStream::connect(door.address).unwrap();
        until_logged("could not be accepted", "").await;
        let before = ticks(&stat);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let spent = (ticks(&stat) - before) * 10;
        assert!(spent < 300, "{spent} ms of a second are spent on trying");
        assert_eq!(logged_of("could not be accepted").len(), 1);
        ask(&main).await.unwrap();
        drop((client, late, taken));
        let again = channel(&pki.place.path("ca/main"), "a", &[door.address]);
        until("it accepts again", async || ask(&again).await.is_ok()).await;
    });
}
