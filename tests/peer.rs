//! What a host tells controllers, and what it lets them do: its report, its claims, the pools that are
//! brought to it, the blocks of its snapshots.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use cistern::domain::{Key, Kind, Role};
use cistern::peer::Tls;
use cistern::proto::csi::v1 as csi;
use cistern::proto::internal::host_client::HostClient;
use cistern::proto::internal::report::News;
use cistern::proto::internal::settle_request::Act;
use cistern::proto::internal::{
    ApplyRequest, FindRequest, FindResponse, ReadRequest, Report, Reports, SettleRequest, WatchRequest,
};
use csi::controller_client::ControllerClient;
use csi::volume_capability::access_mode::Mode;
use support::client::MIB;
use support::machine::Machine;
use support::peers::{Pki, name};
use support::{Place, Volume, fleet};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

/// A host `a` with a pool `p`, and those who talk to it.
struct Talk {
    controller: ControllerClient<Channel>,
    host: HostClient<Channel>,
    process: Machine,
    place: Place,
    pki: Pki,
}

impl Talk {
    fn begin() -> Talk {
        let (place, pki) = (Place::with("xfs", "4G"), Pki::new());
        let mut process = fleet::host("a", place.path("a"), Some(&place.pool("")), &pki);
        process.start();
        let tls = Tls::open(&pki.machine("main", &[Role::Controller])).unwrap();
        let main = tls.channel(Role::Host, name("a"), vec![process.address.to_string()]);
        Talk { controller: ControllerClient::new(main.clone()), host: HostClient::new(main), process, place, pki }
    }

    async fn find(&mut self, name: &str, claim: bool) -> FindResponse {
        let key = Key::of_name(Kind::Volume, name).to_string();
        self.host.find(FindRequest { key, claim }).await.unwrap().into_inner()
    }

    /// CreateVolume as a controller hands it on.
    async fn create(&mut self, name: &str, claim: &str, passed_over: &str) -> Result<String, Status> {
        let mut request = Request::new(Volume::block(name, 32 * MIB).request());
        request.metadata_mut().insert("cistern-claim", claim.parse().unwrap());
        request.metadata_mut().insert("cistern-passed-over", passed_over.parse().unwrap());
        Ok(self.controller.create_volume(request).await?.into_inner().volume.unwrap().volume_id)
    }

    async fn make(&mut self, name: &str, passed_over: &str) -> String {
        let claim = self.find(name, true).await.claim;
        self.create(name, &claim, passed_over).await.unwrap()
    }

    async fn delete(&mut self, id: &str) {
        let asked = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.controller.delete_volume(asked).await.unwrap();
    }

    async fn settle(&mut self, id: &str, claim: &str, act: Act) -> Result<(), Status> {
        let asked = SettleRequest { id: id.to_owned(), claim: claim.to_owned(), act: Some(act) };
        self.host.settle(asked).await.map(|_| ())
    }

    async fn watch(&mut self) -> Told {
        let stream = self.host.watch(WatchRequest {}).await.unwrap().into_inner();
        let mut told = Told { stream, is_whole: false, pools: BTreeMap::new(), volumes: BTreeMap::new() };
        while !told.is_whole {
            told.listen().await;
        }
        told
    }
}

/// What a watcher knows.
struct Told {
    stream: Streaming<Reports>,
    is_whole: bool,
    /// Names of those that are up, and what is available.
    pools: BTreeMap<String, u64>,
    /// Ids, with the names of those that are there, and whether they are deleted.
    volumes: BTreeMap<String, (String, bool)>,
}

impl Told {
    async fn listen(&mut self) {
        let next = tokio::time::timeout(Duration::from_secs(30), self.stream.message()).await.expect("news in time");
        for Report { news } in next.unwrap().expect("the report goes on").reports {
            match news.unwrap() {
                News::Greeting(greeting) => assert_eq!(greeting.host, "a"),
                News::Pool(pool) if pool.store.is_empty() => {
                    self.pools.remove(&pool.name);
                }
                News::Pool(pool) => {
                    self.pools.insert(pool.name, pool.available_bytes);
                }
                News::PoolGone(name) => assert!(self.pools.remove(&name).is_some(), "{name}"),
                News::Volume(volume) => {
                    self.volumes.insert(volume.id, (volume.name, volume.deleted));
                }
                News::Snapshot(_) => {}
                News::Gone(id) => {
                    self.volumes.remove(&id);
                }
                News::Whole(_) => self.is_whole = true,
            }
        }
    }

    async fn until(&mut self, what: impl Fn(&Told) -> bool) {
        while !what(self) {
            self.listen().await;
        }
    }
}

#[tokio::test]
async fn a_watcher_is_told_all_there_is_and_then_every_change() {
    let mut talk = Talk::begin();
    let first = talk.make("first", "").await;
    let mut told = talk.watch().await;
    assert_eq!(told.volumes, BTreeMap::from([(first.clone(), ("first".to_owned(), false))]));
    let before = told.pools["p"];

    let second = talk.make("second", "").await;
    told.until(|told| told.volumes.contains_key(&second) && told.pools["p"] == before - 32 * MIB.unsigned_abs()).await;
    talk.delete(&first).await;
    told.until(|told| !told.volumes.contains_key(&first)).await;

    // a pool that comes brings what is in it, one that goes takes it along
    std::fs::write(talk.place.path("pools.yaml"), "pools: []\n").unwrap();
    told.until(|told| told.pools.is_empty()).await;
    talk.place.pool("");
    told.until(|told| told.pools.contains_key("p") && told.volumes.contains_key(&second)).await;
    let again = talk.watch().await;
    assert_eq!(again.volumes.keys().collect::<Vec<_>>(), [&second]);
}

#[tokio::test]
async fn only_the_newest_claim_of_a_name_makes_a_volume() {
    let mut talk = Talk::begin();
    let (old, other) = (talk.find("v", true).await.claim, talk.find("w", true).await.claim);
    let new = talk.find("v", true).await.claim;
    let _looked = talk.find("v", false).await;
    for claim in [&old, &other, "00000000-0000-0000-0000-000000000000"] {
        assert_eq!(talk.create("v", claim, "").await.unwrap_err().code(), Code::Aborted, "{claim}");
    }
    let mut bare = Request::new(Volume::block("v", 32 * MIB).request());
    assert_eq!(talk.controller.create_volume(bare).await.unwrap_err().code(), Code::InvalidArgument);
    bare = Request::new(Volume::block("v", 32 * MIB).request());
    bare.metadata_mut().insert("cistern-claim", "no claim".parse().unwrap());
    assert_eq!(talk.controller.create_volume(bare).await.unwrap_err().code(), Code::InvalidArgument);

    let made = talk.create("v", &new, "").await.unwrap();
    // found, with the same claim, and not with an older one
    assert_eq!(talk.create("v", &new, "").await.unwrap(), made);
    assert_eq!(talk.create("v", &old, "").await.unwrap_err().code(), Code::Aborted);
    let found = talk.find("v", false).await.found;
    assert_eq!(
        (found[0].id.as_str(), found[0].state.as_str(), found[0].made_on.as_str()),
        (made.as_str(), "ready", "a")
    );
}

#[tokio::test]
async fn who_was_passed_over_is_remembered_until_it_was_asked() {
    let mut talk = Talk::begin();
    let id = talk.make("v", "b,c").await;
    assert_eq!(talk.find("v", false).await.found[0].passed_over, ["b", "c"]);
    // answered again, when another could not be asked
    let claim = talk.find("v", true).await.claim;
    talk.create("v", &claim, "c,d").await.unwrap();
    assert_eq!(talk.find("v", false).await.found[0].passed_over, ["b", "c", "d"]);

    talk.delete(&id).await;
    let found = talk.find("v", true).await;
    assert_eq!((found.found[0].state.as_str(), found.found[0].passed_over.len()), ("deleted", 3));
    let mut told = talk.watch().await;
    assert_eq!(told.volumes[&id], ("v".to_owned(), true));
    assert_eq!(talk.place.inventory().files.len(), 1, "a record without a piece");
    // one that is deleted promises nothing, and can be made again
    let hosts = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Act::Asked(cistern::proto::internal::Hosts { names })
    };
    talk.settle(&id, &found.claim, hosts(&["b"])).await.unwrap();
    assert_eq!(talk.find("v", false).await.found[0].passed_over, ["c", "d"]);
    talk.settle(&id, &found.claim, hosts(&["c", "d"])).await.unwrap();
    told.until(|told| told.volumes.is_empty()).await;
    talk.place.inventory().assert_empty();
}

#[tokio::test]
async fn a_volume_yields_only_if_nobody_ever_had_it() {
    let mut talk = Talk::begin();
    let id = talk.make("v", "").await;
    let other = id.replace(&id[..8], "00000000");
    let stale = talk.find("v", true).await.claim;
    let claim = talk.find("v", true).await.claim;
    let yield_to = || Act::YieldTo(other.clone());
    assert_eq!(talk.settle(&id, &stale, yield_to()).await.unwrap_err().code(), Code::Aborted);
    talk.settle(&id, &claim, yield_to()).await.unwrap();
    talk.place.inventory().assert_empty();
    talk.settle(&id, &claim, yield_to()).await.unwrap();

    let id = talk.make("v", "").await;
    let publish = csi::ControllerPublishVolumeRequest {
        volume_id: id.clone(),
        node_id: "a,127.0.0.1".to_owned(),
        volume_capability: Some(Volume::block("v", MIB).mode(Mode::SingleNodeWriter).capability()),
        ..Default::default()
    };
    talk.controller.controller_publish_volume(publish).await.unwrap();
    let unpublish = csi::ControllerUnpublishVolumeRequest { volume_id: id.clone(), ..Default::default() };
    talk.controller.controller_unpublish_volume(unpublish).await.unwrap();
    let claim = talk.find("v", true).await.claim;
    assert_eq!(talk.settle(&id, &claim, yield_to()).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(talk.find("v", false).await.found[0].generation, 1);
}

#[tokio::test]
async fn pools_that_are_brought_are_opened_and_kept() {
    let mut talk = Talk::begin();
    let entry = |name: &str, below: &str| {
        format!(r#"{{"name":"{name}","dir":{{"path":"{}"}}}}"#, talk.place.path(below).display())
    };
    let entries = vec![entry("fleet", "disk/fleet"), entry("p", "disk/other"), entry("inside", "disk/pool/x")];
    let answer = talk.host.apply(ApplyRequest { pools: entries.clone() }).await.unwrap().into_inner();
    let refused: Vec<&str> = answer.refusals.iter().map(|refusal| refusal.pool.as_str()).collect();
    assert_eq!(refused, ["p", "inside"]);
    talk.watch().await.until(|told| told.pools.keys().eq(["fleet", "p"])).await;

    // it starts alone, without anybody who brings them
    let Talk { mut process, place, pki, .. } = talk;
    process.kill();
    process.start();
    let tls = Tls::open(&pki.machine("main", &[Role::Controller])).unwrap();
    let mut host = HostClient::new(tls.channel(Role::Host, name("a"), vec![process.address.to_string()]));
    let pools = host.describe(cistern::proto::internal::DescribeRequest::default()).await.unwrap().into_inner().pools;
    assert_eq!(pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["fleet", "p"]);
    host.apply(ApplyRequest { pools: Vec::new() }).await.unwrap();
    support::eventually("the pool is let go of", || {
        (!place.path("disk/fleet/lock").exists() || released(&place)).then_some(())
    });
}

/// Whether nobody holds the lock of the pool that was brought.
fn released(place: &Place) -> bool {
    let lock = std::fs::File::open(place.path("disk/fleet/lock")).unwrap();
    lock.try_lock().is_ok()
}

#[tokio::test]
async fn a_controller_reads_the_blocks_of_what_nobody_writes() {
    let mut talk = Talk::begin();
    let id = talk.make("v", "").await;
    let key = id.split('/').nth(1).unwrap();
    let piece =
        std::fs::OpenOptions::new().write(true).open(talk.place.pool_directory().join("images").join(key)).unwrap();
    for (at, byte) in [(0, 1), (5, 2), (31, 3)] {
        std::os::unix::fs::FileExt::write_all_at(&piece, &vec![byte; 1 << 20], at << 20).unwrap();
    }
    drop(piece);
    let read = async |host: &mut HostClient<Channel>, id: &str, from: u64| {
        let asked = ReadRequest { id: id.to_owned(), from };
        let mut stream = host.read(asked).await?.into_inner();
        let mut bytes = vec![0; 32 << 20];
        while let Some(blocks) = stream.message().await? {
            let at = usize::try_from(blocks.at).unwrap();
            bytes[at..at + blocks.data.len()].copy_from_slice(&blocks.data);
        }
        Ok::<_, Status>([0, 5, 6, 31].map(|mib: usize| bytes[(mib << 20) + 77]))
    };
    assert_eq!(read(&mut talk.host, &id, 0).await.unwrap(), [1, 2, 0, 3]);
    assert_eq!(read(&mut talk.host, &id, 5 << 20).await.unwrap(), [0, 2, 0, 3]);

    let cut = csi::CreateSnapshotRequest { source_volume_id: id.clone(), name: "s".to_owned(), ..Default::default() };
    let snapshot = talk.controller.create_snapshot(cut).await.unwrap().into_inner().snapshot.unwrap().snapshot_id;
    let publish = csi::ControllerPublishVolumeRequest {
        volume_id: id.clone(),
        node_id: "a,127.0.0.1".to_owned(),
        volume_capability: Some(Volume::block("v", MIB).capability()),
        ..Default::default()
    };
    talk.controller.controller_publish_volume(publish).await.unwrap();
    assert_eq!(read(&mut talk.host, &id, 0).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(read(&mut talk.host, &snapshot, 0).await.unwrap(), [1, 2, 0, 3]);
    let gone = snapshot.replace(&snapshot[40..44], "ffff");
    assert_eq!(read(&mut talk.host, &gone, 0).await.unwrap_err().code(), Code::NotFound);
}
