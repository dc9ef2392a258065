//! What a node is to kubelet besides CSI Node: how it registers, and what its probes and whoever watches it are shown. A real
//! kubelet does the same on the cluster.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use cistern::proto::csi::v1 as csi;
use cistern::proto::registration::registration_client::RegistrationClient;
use cistern::proto::registration::{InfoRequest, RegistrationStatus};
use hyper_util::rt::TokioIo;
use support::client::MIB;
use support::machine::{Process, own_address};
use support::{Csi, Place, Volume, eventually};
use tonic::transport::{Channel, Endpoint};

/// A server of a test's own.
struct Node {
    process: Process,
    socket: PathBuf,
    metrics: SocketAddr,
}

impl Node {
    /// `cistern node` or `cistern serve` in this place, with these flags, once it answers.
    fn start(word: &str, place: &Place, flags: &[&str]) -> Node {
        let (socket, metrics) = (place.path("csi.sock"), own_address());
        let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
        command.args([word, "--node-id", "n", "--metrics", &metrics.to_string()]);
        command.arg("--endpoint").arg(&socket).arg("--data").arg(place.path("data")).args(flags);
        let process = Process::start(&mut command, &place.path("log"));
        eventually("it answers", || Csi::try_connect(&socket));
        eventually("it shows metrics", || TcpStream::connect(metrics).ok());
        Node { process, socket, metrics }
    }

    /// The status line and the body of a page.
    fn page(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

/// Dials a socket as kubelet does: the path, each `/` as `%2F`, stands where the server's name is.
async fn dial(socket: &Path) -> Channel {
    let authority = socket.to_str().unwrap().replace('/', "%2F");
    let path = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).unwrap();
    endpoint.connect_with_connector(connect).await.unwrap()
}

#[test]
fn a_node_registers_as_kubelet_asks_it_to() {
    let place = Place::bare();
    let plugins = place.path("plugins_registry");
    let mut node = Node::start(
        "node",
        &place,
        &["--driver-name", "csi.example.com", "--registration-dir", plugins.to_str().unwrap()],
    );
    let socket = plugins.join("csi.example.com@reg.sock");
    eventually("the socket is there", || socket.exists().then_some(()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut kubelet = RegistrationClient::new(runtime.block_on(dial(&socket)));
    let info = runtime.block_on(kubelet.get_info(InfoRequest {})).unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.example.com"));
    assert_eq!(
        (info.endpoint.as_str(), info.supported_versions),
        (node.socket.to_str().unwrap(), vec!["1.0.0".into()])
    );
    for (plugin_registered, error, logged) in
        [(true, "", "registered with kubelet"), (false, "no", "kubelet did not register the driver error=\"no\"")]
    {
        let status = RegistrationStatus { plugin_registered, error: error.to_owned() };
        runtime.block_on(kubelet.notify_registration_status(status)).unwrap();
        eventually("it is logged", || node.process.log().contains(logged).then_some(()));
    }
    assert!(node.process.stop().success());
    assert!(!socket.exists() && !node.socket.exists(), "kubelet is told that the driver has gone");
}

#[test]
fn a_node_whose_registration_is_gone_is_not_well() {
    let place = Place::bare();
    let plugins = place.path("plugins_registry");
    let node = Node::start("node", &place, &["--registration-dir", plugins.to_str().unwrap()]);
    eventually("it is well", || (node.page("/healthz").0 == "HTTP/1.1 200 OK").then_some(()));
    std::fs::remove_dir_all(&plugins).unwrap();
    assert_eq!(node.page("/healthz").0, "HTTP/1.1 500 Internal Server Error");
}

#[test]
fn what_is_done_is_counted() {
    let place = Place::with("xfs", "4G");
    let config = place.pool("");
    let node = Node::start("serve", &place, &["--config", config.to_str().unwrap()]);
    let client = eventually("it answers", || Csi::try_connect(&node.socket));
    client.create(&mut Volume::filesystem("v", "xfs", 512 * MIB)).unwrap();
    let unknown = csi::ControllerGetVolumeRequest { volume_id: "unknown".to_owned() };
    client.block_on(async { client.controller().controller_get_volume(unknown).await }).unwrap_err();
    let (status, page) = node.page("/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    for line in [
        "cistern_rpcs_total{method=\"CreateVolume\",code=\"OK\"} 1",
        "cistern_rpcs_total{method=\"ControllerGetVolume\",code=\"NOT_FOUND\"} 1",
        "cistern_rpc_duration_seconds_count{method=\"CreateVolume\"} 1",
        "cistern_rpcs_under_way{method=\"CreateVolume\"} 0",
        "cistern_tool_runs_total{tool=\"mkfs.xfs\",end=\"succeeded\"} ",
        "cistern_pool_up{pool=\"p\"} 1",
        "cistern_pool_promised_bytes{pool=\"p\"} 536870912",
        "cistern_pool_records{pool=\"p\",kind=\"volume\"} 1",
        "cistern_pool_records{pool=\"p\",kind=\"snapshot\"} 0",
        "cistern_pool_jobs{pool=\"p\"} 0",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(page.ends_with("# EOF\n"));
}
