//! The cluster's authority. Its certificate and key are in the Secret `cistern-ca`, made by the first controller that finds
//! none, or by cert-manager; what is believed is in the ConfigMap `cistern-ca`, which nodes mount. The controller gives
//! itself a certificate as well.
//!
//! Secret and ConfigMap are asked for, twice a minute, and not watched: nothing is in a hurry here, and `get`, `create` and
//! `update` on two names are all the rights this takes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use super::believed::Believed;
use crate::domain::error::chain;
use crate::domain::{NodeName, Role};
use crate::peer::certs::directory::{self, Lack};
use crate::peer::certs::{CertsError, Signer, SignerError};
use crate::peer::enrol::ROLES;

/// The name of the Secret and of the ConfigMap.
pub const NAME: &str = "cistern-ca";
/// How long certificates live. Older authorities are believed a day longer (`believed.rs`).
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// How often the cluster is asked, at most.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long to wait after a failure; twice as long after each, up to this often.
const PAUSE: Duration = Duration::from_millis(500);
/// How often something is tried that another controller may be just doing.
const TRIES: u32 = 5;
/// How long the cluster may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Where the authority is, and who the controller is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The namespace of cistern.
    pub namespace: String,
    /// The controller's name: its pod's.
    pub controller: NodeName,
    /// Where the controller's certificate is kept: what `--tls` takes.
    pub tls: PathBuf,
    /// How long certificates live.
    pub lifetime: Duration,
    /// How often the cluster is asked, at most.
    pub look_every: Duration,
}

impl Settings {
    /// With the times that are right outside of tests.
    pub fn new(namespace: &str, controller: NodeName, tls: &Path) -> Settings {
        let (namespace, tls) = (namespace.to_owned(), tls.to_owned());
        Settings { namespace, controller, tls, lifetime: LIFETIME, look_every: LOOK_EVERY }
    }
}

/// The authority cannot be had, or the controller has no certificate.
#[derive(Debug, thiserror::Error)]
enum AuthorityError {
    #[error("cannot {what} {kind} {NAME}")]
    Cluster { what: &'static str, kind: &'static str, source: Box<kube::Error> },
    #[error("the cluster does not answer")]
    Late,
    #[error("{kind} {NAME} is being changed by others again and again")]
    Contended { kind: &'static str },
    #[error("Secret {NAME} cannot be used; it is left alone")]
    Secret(#[source] SignerError),
    #[error("no certificate can be made")]
    Sign(#[source] SignerError),
    #[error(transparent)]
    Keep(#[from] CertsError),
    #[error("certificates of Secret {NAME} are not believed by those who have its authority")]
    Unfit(#[source] Lack),
    #[error("the work was cut off")]
    Cut(#[source] tokio::task::JoinError),
}

/// Whoever signs for the machines of the cluster.
pub struct ClusterAuthority {
    cluster: Cluster,
    now: Mutex<Arc<InForce>>,
}

/// What holds until the next look.
struct InForce {
    signer: Signer,
    believed: Believed,
}

/// A signed key.
pub struct Signed {
    /// The certificate, in PEM.
    pub certificate: String,
    /// All authorities that are believed, in PEM.
    pub authorities: String,
}

impl ClusterAuthority {
    /// Finds or makes the authority, and the controller's certificate: when this answers, `tls` of the settings can be opened.
    /// It waits for the cluster for as long as it must, and says so.
    pub async fn open(client: &Client, settings: Settings) -> Arc<ClusterAuthority> {
        let cluster = Cluster::new(client, settings);
        let mut pause = PAUSE;
        loop {
            let opened = match cluster.look().await {
                Ok(now) => {
                    let now = Arc::new(now);
                    cluster.equip(&now).await.map(|_| now)
                }
                Err(error) => Err(error),
            };
            match opened {
                Ok(now) => return Arc::new(ClusterAuthority { cluster, now: Mutex::new(now) }),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "there is no authority yet; once more in {pause:?}");
                    tokio::time::sleep(pause).await;
                    pause = cluster.settings.look_every.min(pause * 2);
                }
            }
        }
    }

    /// Follows the Secret and the ConfigMap, and renews the controller's certificate. Never ends.
    pub async fn follow(&self) {
        let look_every = self.cluster.settings.look_every;
        loop {
            let now = self.in_force();
            let renew_at = self.cluster.equip(&now).await.unwrap_or_else(|error| {
                tracing::error!(error = %chain(&error), "the controller's certificate is not renewed");
                SystemTime::now() + look_every
            });
            let left = renew_at.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left.min(look_every).max(PAUSE)).await;
            match self.cluster.look().await {
                Ok(next) => *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(next),
                Err(error) => tracing::warn!(error = %chain(&error), "the authority stays as it is"),
            }
        }
    }

    /// Signs the key of a request for this machine, as host and node.
    pub fn sign(&self, request: &[u8], name: &NodeName) -> Result<Signed, SignerError> {
        let now = self.in_force();
        let certificate = now.signer.sign(request, name, &ROLES, self.cluster.settings.lifetime)?;
        Ok(Signed { certificate, authorities: now.believed.text() })
    }

    /// The namespace of cistern.
    pub fn namespace(&self) -> &str {
        &self.cluster.settings.namespace
    }

    fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The objects in the cluster, and the controller's directory.
struct Cluster {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    settings: Settings,
}

impl Cluster {
    fn new(client: &Client, settings: Settings) -> Cluster {
        let (secrets, maps) = (client.clone(), client.clone());
        let namespace = &settings.namespace;
        Cluster { secrets: Api::namespaced(secrets, namespace), maps: Api::namespaced(maps, namespace), settings }
    }

    async fn look(&self) -> Result<InForce, AuthorityError> {
        let looked = tokio::time::timeout(ANSWER, async {
            let signer = self.signer().await?;
            let believed = self.believed(&signer).await?;
            Ok(InForce { signer, believed })
        });
        looked.await.map_err(|_| AuthorityError::Late)?
    }

    /// The Secret's. One that is there is never replaced.
    async fn signer(&self) -> Result<Signer, AuthorityError> {
        let failed = |what| move |source| AuthorityError::Cluster { what, kind: "Secret", source: Box::new(source) };
        for _ in 0..TRIES {
            if let Some(secret) = self.secrets.get_opt(NAME).await.map_err(failed("read"))? {
                let text = |key: &str| {
                    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
                    bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
                };
                return Signer::of(&text(CERTIFICATE), &text(KEY)).map_err(AuthorityError::Secret);
            }
            let (signer, key) = Signer::make().map_err(AuthorityError::Sign)?;
            match self.secrets.create(&PostParams::default(), &secret(&signer, &key)).await {
                Ok(_) => {
                    tracing::info!(fingerprint = signer.anchor().fingerprint, "made Secret {NAME}: the authority");
                    return Ok(signer);
                }
                // another controller was first: its is the one
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(error) => return Err(failed("make")(error)),
            }
        }
        Err(AuthorityError::Contended { kind: "Secret" })
    }

    /// Brings the ConfigMap to what is to be believed, and answers that.
    async fn believed(&self, signer: &Signer) -> Result<Believed, AuthorityError> {
        let failed = |what| move |source| AuthorityError::Cluster { what, kind: "ConfigMap", source: Box::new(source) };
        for _ in 0..TRIES {
            let found = self.maps.get_opt(NAME).await.map_err(failed("read"))?;
            let mut map = found.clone().unwrap_or_else(|| ConfigMap { metadata: named(), ..Default::default() });
            let before = Believed::read(&map);
            let next = before.with(signer.anchor(), SystemTime::now());
            if found.is_some() && next == before {
                return Ok(next);
            }
            next.write(&mut map);
            let (post, what) = (PostParams::default(), if found.is_some() { "change" } else { "make" });
            let written = match found {
                // with the version that was read: another's change in between is seen
                Some(_) => self.maps.replace(NAME, &post, &map).await,
                None => self.maps.create(&post, &map).await,
            };
            match written {
                Ok(_) => {
                    tracing::info!("ConfigMap {NAME} has the authorities that are believed");
                    return Ok(next);
                }
                Err(kube::Error::Api(status)) if status.is_already_exists() || status.is_conflict() => {}
                Err(error) => return Err(failed(what)(error)),
            }
        }
        Err(AuthorityError::Contended { kind: "ConfigMap" })
    }

    /// Gives the controller a certificate if it lacks one, and what is believed. Answers when it is to be renewed.
    async fn equip(&self, now: &Arc<InForce>) -> Result<SystemTime, AuthorityError> {
        let (settings, now) = (self.settings.clone(), Arc::clone(now));
        tokio::task::spawn_blocking(move || equip(&settings, &now)).await.map_err(AuthorityError::Cut)?
    }
}

fn equip(settings: &Settings, now: &InForce) -> Result<SystemTime, AuthorityError> {
    let Settings { controller, tls, lifetime, .. } = settings;
    let (roles, believed) = ([Role::Controller], now.believed.text().into_bytes());
    let look = || directory::look(tls, controller, &roles, Some(&believed), SystemTime::now());
    directory::finish(tls)?;
    match look() {
        Ok(renew_at) => {
            directory::believe(tls, &believed)?;
            Ok(renew_at)
        }
        Err(lack) => {
            tracing::info!(reason = %chain(&lack), "making the controller's certificate");
            let issued = now.signer.issue(controller, &roles, *lifetime).map_err(AuthorityError::Sign)?;
            directory::install(tls, [&believed, issued.certificate.as_bytes(), issued.key.as_bytes()])?;
            look().map_err(AuthorityError::Unfit)
        }
    }
}

fn named() -> ObjectMeta {
    let labels = [("app.kubernetes.io/name", "cistern"), ("app.kubernetes.io/managed-by", "cistern-controller")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    ObjectMeta { name: Some(NAME.to_owned()), labels: Some(BTreeMap::from(labels)), ..Default::default() }
}

fn secret(signer: &Signer, key: &str) -> Secret {
    let data = [(CERTIFICATE, signer.anchor().pem.as_str()), (KEY, key)];
    let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())));
    Secret {
        metadata: named(),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from(data)),
        ..Default::default()
    }
}
