//! Mutual TLS between controllers, hosts and nodes. Both ends show a certificate of the same authority; what it may be
//! used for is in its names (`identity.rs`) and in the table of calls (`roles.rs`).
//!
//! TLS 1.3 alone, HTTP/2 alone. Nothing is resumed: a resumed session would be believed without a look at its certificate,
//! also after its authority was taken out of `ca.crt`. A connection that stands keeps what it was made with.

mod accept;
mod connect;
mod guests;
mod set;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use accept::{Incoming, PeerInfo, PeerStream};
pub use guests::{GuestInfo, GuestStream};
pub(super) use guests::{greet_controller, of_controllers};
use set::Set;
pub use set::TlsError;
pub(super) use set::{Contents, FILES, read};

use tokio::sync::Semaphore;

use super::Identity;
use crate::domain::error::chain;

/// Whether these would do as `ca.crt`, `tls.crt` and `tls.key` of this directory.
pub(super) fn check(dir: &Path, files: [&[u8]; 3]) -> Result<(), TlsError> {
    Set::new(dir, &files.map(|bytes| Ok(bytes.to_vec()))).map(drop)
}

/// Who these files of a directory speak for.
pub(super) fn identity_of(dir: &Path, contents: &Contents) -> Result<Identity, TlsError> {
    Set::new(dir, contents).map(|set| (*set.identity).clone())
}

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many handshakes a client has under way: a controller that starts, or whose network was gone, connects to thousands of
/// hosts at once, and each costs both ends the better part of a millisecond of a processor.
const HANDSHAKES: usize = 256;

/// A machine's certificate and the authorities that it believes: `ca.crt`, `tls.crt` and `tls.key` in a directory, in PEM.
/// They are looked at again when a connection is made or accepted, so that they may be renewed under way.
pub struct Tls {
    dir: PathBuf,
    state: Mutex<State>,
    /// Turns to greet a server.
    handshakes: Semaphore,
}

struct State {
    set: Arc<Set>,
    /// What `set` was made of.
    contents: Contents,
    /// What was found and did not fit together, to say so once.
    refused: Option<Contents>,
    looked: Instant,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// One is missing or is not what it should be, or they do not fit together.
    pub fn open(dir: &Path) -> Result<Arc<Tls>, TlsError> {
        let contents = set::read(dir);
        let set = Arc::new(Set::new(dir, &contents)?);
        let state = State { set, contents, refused: None, looked: Instant::now() };
        let handshakes = Semaphore::new(HANDSHAKES);
        Ok(Arc::new(Tls { dir: dir.to_owned(), state: Mutex::new(state), handshakes }))
    }

    /// Who we are.
    pub fn identity(&self) -> Arc<Identity> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.set.identity)
    }

    /// What is to be used now.
    async fn current(self: &Arc<Self>) -> io::Result<Arc<Set>> {
        let tls = Arc::clone(self);
        Ok(tokio::task::spawn_blocking(move || tls.look()).await?)
    }

    /// Looks at the files, if that was not done a moment ago. What does not fit together may be half of a renewal: what was
    /// read before is used until the rest is there.
    fn look(&self) -> Arc<Set> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() < LOOK_EVERY {
            return Arc::clone(&state.set);
        }
        state.looked = Instant::now();
        let contents = set::read(&self.dir);
        if contents == state.contents {
            state.refused = None;
            return Arc::clone(&state.set);
        }
        match Set::new(&self.dir, &contents) {
            Ok(set) => {
                tracing::info!(dir = %self.dir.display(), identity = %set.identity, "certificates were read again");
                state.set = Arc::new(set);
                state.contents = contents;
                state.refused = None;
            }
            Err(error) if state.refused.as_ref() != Some(&contents) => {
                tracing::warn!(error = %chain(&error), "certificates stay as they were read before");
                state.refused = Some(contents);
            }
            Err(_) => {}
        }
        Arc::clone(&state.set)
    }
}
