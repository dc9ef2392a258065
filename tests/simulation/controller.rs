//! A `cistern controller` of the program's own, and what the kernel says of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cistern::proto::csi::v1 as csi;
use csi::controller_client::ControllerClient;
use csi::identity_client::IdentityClient;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::{POOL, Played};
use crate::support::peers::Pki;
use crate::support::{Volume, eventually};
use cistern::domain::Role;

/// How long a call may take: that of the sidecars is 10 to 15 seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A controller that is killed when the program ends, and a client of it.
pub struct Controller {
    child: Child,
    log: PathBuf,
    runtime: Runtime,
    channel: Channel,
    /// From its start until all hosts were heard or found away.
    pub ready_after: Duration,
}

impl Controller {
    /// Starts one for the hosts of this text, with these flags, and waits until it is ready.
    pub fn start(pki: &Pki, hosts: &Path, flags: &[&str]) -> Controller {
        let place = &pki.place;
        let (log, socket) = (place.path("controller.log"), place.path("controller.sock"));
        let output = std::fs::File::create(&log).unwrap();
        let tls = pki.machine("main", &[Role::Controller]);
        let mut command = Command::new(env!("CARGO_BIN_EXE_cistern"));
        command.arg("controller").arg("--config").arg(hosts).arg("--tls").arg(tls).args(flags);
        command.arg("--endpoint").arg(&socket);
        let begun = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let channel = eventually("its socket answers", || runtime.block_on(cistern::peer::channel(&socket)).ok());
        let mut controller = Controller { child, log, runtime, channel, ready_after: Duration::ZERO };
        eventually("it is ready", || {
            let mut identity = IdentityClient::new(controller.channel.clone());
            let answer = controller.runtime.block_on(identity.probe(csi::ProbeRequest {})).ok()?;
            (answer.into_inner().ready == Some(true)).then_some(())
        });
        controller.ready_after = begun.elapsed();
        controller
    }

    pub fn client(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    /// Waits for a call.
    pub fn wait<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
        self.runtime.block_on(call).map(tonic::Response::into_inner)
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Makes a volume; on this host, if one is named.
    pub fn create(&self, name: &str, on: Option<&Played>) -> Result<csi::Volume, Status> {
        let asked = request(create(name, on));
        self.wait(self.client().create_volume(asked)).map(|answer| answer.volume.unwrap())
    }

    pub fn publish(&self, id: &str, host: &Played) -> Result<(), Status> {
        self.wait(self.client().controller_publish_volume(request(publish(id, host)))).map(drop)
    }

    pub fn delete(&self, id: &str) -> Result<(), Status> {
        let asked = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.wait(self.client().delete_volume(request(asked))).map(drop)
    }

    pub fn snapshot(&self, id: &str, name: &str) -> Result<csi::Snapshot, Status> {
        let asked =
            csi::CreateSnapshotRequest { source_volume_id: id.to_owned(), name: name.to_owned(), ..Default::default() };
        self.wait(self.client().create_snapshot(request(asked))).map(|answer| answer.snapshot.unwrap())
    }

    /// All volumes, page by page.
    pub fn list(&self) -> Vec<csi::list_volumes_response::Entry> {
        let (mut entries, mut starting_token) = (Vec::new(), String::new());
        loop {
            let asked = csi::ListVolumesRequest { starting_token, ..Default::default() };
            let page = self.wait(self.client().list_volumes(request(asked))).unwrap();
            entries.extend(page.entries);
            if page.next_token.is_empty() {
                return entries;
            }
            starting_token = page.next_token;
        }
    }

    pub fn capacity(&self) -> i64 {
        let parameters = [("pool".to_owned(), POOL.to_owned())].into();
        let asked = csi::GetCapacityRequest { parameters, ..Default::default() };
        self.wait(self.client().get_capacity(request(asked))).unwrap().available_capacity
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn logged(&self, what: &str) -> usize {
        self.log().lines().filter(|line| line.contains(what)).count()
    }

    fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.child.id()))
    }

    /// How many files it has open.
    pub fn files(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// `VmRSS`, `VmHWM`: in bytes.
    pub fn memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{what}:"))).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// The time that processors have spent on its threads of now.
    pub fn cpu(&self) -> Duration {
        let threads = std::fs::read_dir(self.proc("task")).unwrap();
        let spent = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok());
        Duration::from_nanos(spent.map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap()).sum())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the end of the controller's log:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

pub fn create(name: &str, on: Option<&Played>) -> csi::CreateVolumeRequest {
    let mut asked = Volume::block(name, 1 << 30).request();
    asked.accessibility_requirements = on.map(|host| {
        let segments = [("topology.cistern.dev/host".to_owned(), host.name.to_string())].into();
        let there = vec![csi::Topology { segments }];
        csi::TopologyRequirement { requisite: there.clone(), preferred: there }
    });
    asked
}

pub fn publish(id: &str, host: &Played) -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: format!("{},10.0.0.1", host.name),
        volume_capability: Some(Volume::block("", 0).capability()),
        ..Default::default()
    }
}

pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}
