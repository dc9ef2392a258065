//! A caller like the external-provisioner, for one name: one call at a time, each with a deadline, through whatever
//! controller; asked again after every answer that is not final; and the last answer is what it believes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cistern::proto::csi::v1 as csi;
use csi::controller_client::ControllerClient;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::fleet::Fleet;
use super::support::client::MIB;
use super::support::dice::Dice;
use super::support::{Csi, Volume};

/// What a caller believes of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Belief {
    /// A call is on its way that may make or remove it.
    Unsure,
    /// This volume was answered, and stays.
    Stands { id: String, data: Option<u64> },
    /// It is deleted, or was never made: nothing is to be left of it.
    Nothing,
}

/// All that the callers know, and the story so far.
pub struct Log {
    begun: Instant,
    beliefs: Mutex<BTreeMap<String, (u64, Belief)>>,
    story: Mutex<Vec<String>>,
    /// No more faults come: callers bring to an end what they are at.
    pub calm: AtomicBool,
    /// Callers that still wait by then wait for ever.
    pub end: Mutex<Option<Instant>>,
}

impl Default for Log {
    fn default() -> Log {
        let (beliefs, story, calm, end) = Default::default();
        Log { begun: Instant::now(), beliefs, story, calm, end }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    pub fn tell(&self, text: impl AsRef<str>) {
        lock(&self.story).push(format!("{:>6} {}", self.begun.elapsed().as_millis(), text.as_ref()));
    }

    pub fn story(&self) -> String {
        lock(&self.story).join("\n")
    }

    /// What is believed now, each with a number that changes with it.
    pub fn beliefs(&self) -> BTreeMap<String, (u64, Belief)> {
        lock(&self.beliefs).clone()
    }

    fn believe(&self, name: &str, belief: Belief) {
        let mut beliefs = lock(&self.beliefs);
        let number = beliefs.get(name).map_or(0, |(number, _)| number + 1);
        beliefs.insert(name.to_owned(), (number, belief));
    }

    fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }
}

pub struct Caller<'a> {
    pub fleet: &'a Fleet,
    pub log: &'a Log,
    pub name: String,
    pub dice: Dice,
    runtime: Runtime,
}

/// How the sidecar takes an answer: after these it must not give up, since the call may still be under way.
fn is_final(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted | Code::ResourceExhausted
    )
}

impl<'a> Caller<'a> {
    pub fn new(fleet: &'a Fleet, log: &'a Log, name: &str, seed: u64) -> Caller<'a> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Caller { fleet, log, name: name.to_owned(), dice: Dice::new(seed), runtime }
    }

    /// Some lives of the name, one after the other.
    pub fn live(&mut self) -> Result<(), String> {
        let mut lives = 1 + self.dice.below(4);
        loop {
            self.pause(400);
            let Some(id) = self.create()? else { return Ok(()) };
            if self.dice.below(10) < 6 {
                self.publish_and_use(&id)?;
            }
            if self.dice.below(10) < 3 {
                return Ok(());
            }
            self.pause(600);
            self.delete(&id)?;
            lives -= 1;
            if lives == 0 || self.log.is_calm() {
                return Ok(());
            }
        }
    }

    fn pause(&mut self, most: usize) {
        std::thread::sleep(Duration::from_millis(self.dice.below(most) as u64));
    }

    fn tell(&self, text: impl AsRef<str>) {
        self.log.tell(format!("{} {}", self.name, text.as_ref()));
    }

    fn believe(&self, belief: Belief) {
        self.log.believe(&self.name, belief);
    }

    /// One call through one of the controllers.
    fn call<T, F>(
        &mut self,
        what: &str,
        make: impl FnOnce(ControllerClient<Channel>, Duration) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let controller = self.dice.below(2);
        let deadline = [1500, 3000, 4500][self.dice.below(3)];
        let deadline = Duration::from_millis(deadline);
        let socket = self.fleet.controller_socket(controller);
        self.tell(format!("{what} through c{controller} ..."));
        let answered = self.runtime.block_on(async {
            let call = async {
                let channel = cistern::peer::channel(&socket).await;
                let channel = channel.map_err(|_| Status::unavailable("no controller answers"))?;
                make(ControllerClient::new(channel), deadline).await
            };
            let late = |_| Status::deadline_exceeded("the caller waits no longer");
            tokio::time::timeout(deadline, call).await.map_err(late)?
        });
        // a connection that breaks is UNAVAILABLE to the sidecars
        let answered = answered.map_err(|status| match std::error::Error::source(&status) {
            Some(_) => Status::unavailable(status.message()),
            None => status,
        });
        match &answered {
            Ok(_) => self.tell(format!("{what}: OK")),
            Err(status) => self.tell(format!("{what}: {:?} {}", status.code(), status.message())),
        }
        answered.map(Response::into_inner)
    }

    fn still_waiting(&mut self, what: &str, last: &Status) -> Result<(), String> {
        self.pause(300);
        match *lock(&self.log.end) {
            Some(end) if Instant::now() > end => Err(format!("{}: {what} never comes to its end: {last:?}", self.name)),
            _ => Ok(()),
        }
    }

    /// The id that is believed; `None` after a final answer, after which the caller never calls again.
    fn create(&mut self) -> Result<Option<String>, String> {
        self.believe(Belief::Unsure);
        let mut answered: Option<String> = None;
        loop {
            let request = Volume::block(&self.name, 4 * MIB).request();
            let made = self.call("create", |mut client, deadline| async move {
                client.create_volume(with_deadline(request, deadline)).await
            });
            match made {
                Ok(made) => {
                    let id = made.volume.map(|volume| volume.volume_id).unwrap_or_default();
                    self.tell(format!("is answered {id}"));
                    answered = Some(id.clone());
                    // one that died before it wrote the answer down asks again
                    if self.dice.below(4) > 0 {
                        self.believe(Belief::Stands { id, data: None });
                        return Ok(answered);
                    }
                    self.pause(300);
                }
                Err(status) if is_final(&status) && answered.is_none() && self.dice.below(2) == 0 => {
                    self.tell("gives up");
                    self.believe(Belief::Nothing);
                    return Ok(None);
                }
                Err(status) => self.still_waiting("create", &status)?,
            }
        }
    }

    fn delete(&mut self, id: &str) -> Result<(), String> {
        self.believe(Belief::Unsure);
        loop {
            let request = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
            let deleted = self.call("delete", |mut client, deadline| async move {
                client.delete_volume(with_deadline(request, deadline)).await
            });
            match deleted {
                Ok(_) => {
                    self.believe(Belief::Nothing);
                    return Ok(());
                }
                Err(status) if status.code() == Code::FailedPrecondition => self.unpublish(id)?,
                Err(status) => self.still_waiting("delete", &status)?,
            }
        }
    }

    /// The node that has the volume's disk is given it, sometimes writes, and gives it back.
    fn publish_and_use(&mut self, id: &str) -> Result<(), String> {
        let mut volume = Volume::block(&self.name, 4 * MIB);
        volume.id = id.to_owned();
        let host = loop {
            let host = self.fleet.host_with(id);
            let request = csi::ControllerPublishVolumeRequest {
                volume_id: id.to_owned(),
                node_id: format!("{host},10.0.0.1"),
                volume_capability: Some(volume.capability()),
                ..Default::default()
            };
            let published = self.call("publish", |mut client, deadline| async move {
                client.controller_publish_volume(with_deadline(request, deadline)).await
            });
            match published {
                Ok(published) => {
                    volume.context = published.publish_context;
                    break host;
                }
                // its disk was moved while a node had it
                Err(status) if status.code() == Code::FailedPrecondition => {
                    self.unpublish(id)?;
                    self.still_waiting("publish", &status)?;
                }
                Err(status) => self.still_waiting("publish", &status)?,
            }
        };
        if self.dice.below(2) == 0 {
            self.write(&volume, &host)?;
        }
        self.unpublish(id)
    }

    fn unpublish(&mut self, id: &str) -> Result<(), String> {
        loop {
            let request = csi::ControllerUnpublishVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
            let unpublished = self.call("unpublish", |mut client, deadline| async move {
                client.controller_unpublish_volume(with_deadline(request, deadline)).await
            });
            match unpublished {
                Ok(_) => return Ok(()),
                Err(status) => self.still_waiting("unpublish", &status)?,
            }
        }
    }

    /// Writes through the block device; once it was begun, it is given back, however often that must be tried.
    fn write(&mut self, volume: &Volume, host: &str) -> Result<(), String> {
        let _stays = self.fleet.disks_stay();
        if self.fleet.host_with(&volume.id) != host {
            return Ok(());
        }
        let at = self.fleet.kubelet(host).join(&self.name);
        let (staging, target) = (at.join("staging"), at.join("target"));
        let data = self.dice.next();
        let used = self.node(host).map_or(Ok(false), |csi| -> Result<bool, Status> {
            csi.stage(volume, &staging)?;
            csi.publish(volume, &staging, &target, false)?;
            Ok(self.fleet.write(&target, &pattern(data)))
        });
        match used {
            Ok(true) => {
                self.tell(format!("wrote {data:x} on {host}"));
                self.believe(Belief::Stands { id: volume.id.clone(), data: Some(data) });
            }
            Ok(false) => {}
            Err(status) => self.tell(format!("did not write on {host}: {}", status.message())),
        }
        loop {
            let back = self.node(host).map_or(Err(Status::unavailable("the node is away")), |csi| {
                csi.unpublish(volume, &target)?;
                csi.unstage(volume, &staging)
            });
            match back {
                Ok(()) => return Ok(()),
                Err(status) => self.still_waiting("giving back", &status)?,
            }
        }
    }

    fn node(&self, host: &str) -> Option<Csi> {
        self.fleet.node(host)
    }
}

fn with_deadline<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// What is written: a sector's worth, from a number.
pub fn pattern(data: u64) -> Vec<u8> {
    let mut dice = Dice::new(data);
    (0..512).flat_map(|_| dice.next().to_le_bytes()).collect()
}

/// Whether a file begins with it.
pub fn is_written(image: &Path, data: u64) -> bool {
    use std::io::Read;
    let mut bytes = vec![0; 4096];
    std::fs::File::open(image).and_then(|mut file| file.read_exact(&mut bytes)).is_ok() && bytes == pattern(data)
}
