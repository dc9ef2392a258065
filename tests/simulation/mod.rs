//! A fleet that is played: hosts that speak the real protocol over real mutual TLS, from memory. All of them listen on one
//! socket, and the address that is called says which one is meant. Most do well; some hang, are slow, drop their
//! connections, or lie.
// each program uses a part of it
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

pub mod controller;
mod services;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cistern::domain::{Id, Key, Kind, NodeName, Role, StoreId, Uuid};
use cistern::proto::csi::v1 as csi;
use cistern::proto::internal::report::News;
use cistern::proto::internal::{self, FindRequest, FindResponse, Report, Reports};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::support::peers::{Pki, name};

/// The pool that every host has.
pub const POOL: &str = "p";
/// What a volume that is there from the beginning has.
pub const SIZE: u64 = 1 << 30;
/// What each host has in all.
const TOTAL: u64 = 1 << 40;

/// How a host behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Well,
    /// Takes connections and says nothing, not even in TLS.
    Silent,
    /// Answers no Watch.
    Mute,
    /// Answers Watch, and never Find.
    Deaf,
    /// Waits this long before each answer.
    Slow(Duration),
    /// Drops each connection after this long.
    Flapping(Duration),
}

/// What a host says that is not so. Each changes what an honest host would have said.
#[derive(Default)]
pub struct Lies {
    /// Reported after all there is.
    pub reports: Vec<News>,
    pub find: Option<Lie<FindRequest, FindResponse>>,
    pub created: Option<Lie<csi::CreateVolumeRequest, Result<csi::Volume, Status>>>,
    pub cut: Option<Lie<csi::CreateSnapshotRequest, csi::Snapshot>>,
}

type Lie<Asked, Answer> = Box<dyn Fn(&Asked, Answer) -> Answer + Send + Sync>;

/// A host that is played.
pub struct Played {
    pub name: NodeName,
    pub store: StoreId,
    address: Ipv4Addr,
    tls: Arc<rustls::ServerConfig>,
    state: Mutex<State>,
}

struct State {
    manner: Manner,
    lies: Arc<Lies>,
    /// By their keys, as they are written.
    volumes: BTreeMap<String, Held>,
    snapshots: BTreeMap<String, internal::Snapshot>,
    claims: HashMap<String, String>,
    watchers: Vec<UnboundedSender<Result<Reports, Status>>>,
    /// Cancelled when the connections of now are to break.
    cut: CancellationToken,
    calls: BTreeMap<&'static str, u64>,
}

/// A volume that a host has.
#[derive(Debug, Clone, Default)]
pub struct Held {
    pub name: String,
    pub size: u64,
    pub nodes: Vec<String>,
    pub generation: u64,
    pub passed_over: Vec<String>,
}

impl Played {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn manner(&self) -> Manner {
        self.lock().manner
    }

    /// From now on; connections that stand are dropped.
    pub fn behaves(&self, manner: Manner) {
        let mut state = self.lock();
        state.manner = manner;
        state.watchers.clear();
        std::mem::take(&mut state.cut).cancel();
    }

    /// The same, over the connections there are.
    pub fn turns(&self, manner: Manner) {
        self.lock().manner = manner;
    }

    /// From now on; what it reports is told anew.
    pub fn lies(&self, lies: Lies) {
        self.lock().lies = Arc::new(lies);
        self.behaves(Manner::Well);
    }

    /// How often it was asked this.
    pub fn calls(&self, call: &str) -> u64 {
        self.lock().calls.get(call).copied().unwrap_or_default()
    }

    /// The id of a volume of this name on it.
    pub fn volume_id(&self, name: &str) -> String {
        Id { store: self.store, key: Key::of_name(Kind::Volume, name) }.to_string()
    }

    pub fn snapshot_id(&self, name: &str) -> String {
        Id { store: self.store, key: Key::of_name(Kind::Snapshot, name) }.to_string()
    }

    /// The volume of this name, if it is there.
    pub fn held(&self, name: &str) -> Option<Held> {
        self.lock().volumes.get(&Key::of_name(Kind::Volume, name).to_string()).cloned()
    }

    pub fn volumes(&self) -> usize {
        self.lock().volumes.len()
    }

    /// Puts a volume there, as if it had always been.
    pub fn hold(&self, held: Held) {
        let news = self.news(&held);
        let mut state = self.lock();
        state.volumes.insert(Key::of_name(Kind::Volume, &held.name).to_string(), held);
        state.tell(news);
    }

    fn news(&self, held: &Held) -> News {
        News::Volume(internal::Volume {
            id: self.volume_id(&held.name),
            name: held.name.clone(),
            pool: POOL.to_owned(),
            size_bytes: held.size,
            content: "block".to_owned(),
            allocation: "thin".to_owned(),
            nodes: held.nodes.clone(),
            generation: held.generation,
            made_on: self.name.to_string(),
            passed_over: held.passed_over.clone(),
            ..Default::default()
        })
    }

    /// The pool as an honest host has it.
    pub fn pool(&self) -> internal::Pool {
        let promised: u64 = self.lock().volumes.values().map(|held| held.size).sum();
        internal::Pool {
            name: POOL.to_owned(),
            medium: "dir".to_owned(),
            share: "local".to_owned(),
            place: "/srv/p".to_owned(),
            store: self.store.to_string(),
            total_bytes: TOTAL,
            free_bytes: TOTAL,
            promised_bytes: promised,
            available_bytes: TOTAL.saturating_sub(promised),
            host: self.name.to_string(),
            ..Default::default()
        }
    }

    /// All there is, as it is told first.
    fn all(&self) -> Vec<News> {
        let pool = News::Pool(self.pool());
        let greeting = News::Greeting(internal::Greeting { host: self.name.to_string(), version: "played".to_owned() });
        let state = self.lock();
        let volumes = state.volumes.values().map(|held| self.news(held));
        let snapshots = state.snapshots.values().cloned().map(News::Snapshot);
        let lies = state.lies.reports.iter().cloned();
        let whole = News::Whole(internal::Whole {});
        [greeting, pool].into_iter().chain(volumes).chain(snapshots).chain(lies).chain([whole]).collect()
    }
}

impl State {
    fn tell(&mut self, news: News) {
        let reports = Reports { reports: vec![Report { news: Some(news) }] };
        self.watchers.retain(|watcher| watcher.send(Ok(reports.clone())).is_ok());
    }
}

/// The hosts, and the machine that plays them.
pub struct Simulation {
    pub pki: Pki,
    pub hosts: Vec<Arc<Played>>,
    port: u16,
    /// One thread: the other core is the controller's.
    _runtime: Runtime,
}

impl Simulation {
    /// So many hosts, each with so many volumes.
    pub fn of(hosts: usize, volumes: usize) -> Simulation {
        let pki = Pki::new();
        let hosts: Vec<Arc<Played>> = (0..hosts).map(|number| Arc::new(played(&pki, number))).collect();
        for host in &hosts {
            for number in 0..volumes {
                let name = format!("{}-volume-{number}", host.name);
                host.hold(Held { name, size: SIZE, ..Held::default() });
            }
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let port = runtime.block_on(wire::serve(hosts.clone()));
        Simulation { pki, hosts, port, _runtime: runtime }
    }

    /// hosts.yaml. Each host's entry may say more.
    pub fn text(&self, more: impl Fn(&Played) -> String) -> PathBuf {
        let line = |host: &Arc<Played>| {
            let Played { name, address, .. } = &**host;
            format!("- {{ name: {name}, addresses: ['{address}:{}']{} }}\n", self.port, more(host))
        };
        let text: String = self.hosts.iter().map(line).collect();
        let path = self.pki.place.path("hosts.yaml");
        std::fs::write(&path, format!("hosts:\n{text}")).unwrap();
        path
    }
}

fn played(pki: &Pki, number: usize) -> Played {
    let its = name(&format!("host-{number}"));
    let part = |divisor: usize| u8::try_from(number / divisor % 250).unwrap();
    let mut id = [7; 16];
    id[..8].copy_from_slice(&u64::try_from(number).unwrap().reverse_bits().to_be_bytes());
    let issued = pki.authority.issue(&its, &[Role::Host], crate::support::peers::today()).unwrap();
    Played {
        store: StoreId(Uuid::from_bytes(id)),
        address: Ipv4Addr::new(127, 1 + part(62_500), part(250), 1 + part(1)),
        tls: wire::config(&pki.ca(), &issued),
        name: its,
        state: Mutex::new(State {
            manner: Manner::Well,
            lies: Arc::default(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            claims: HashMap::new(),
            watchers: Vec::new(),
            cut: CancellationToken::new(),
            calls: BTreeMap::new(),
        }),
    }
}
