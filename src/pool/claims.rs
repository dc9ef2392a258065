//! Claims: who may make a volume of a name on this host. A controller that is about to choose a host asks all of them for
//! the name first, and each answers with a claim that ends every earlier one of that name. What an earlier call left on its
//! way, through whatever controller, can then no longer make a second volume here. Claims live in memory, by this host's
//! own clock: after a restart none is known, and the caller asks again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::{Key, Uuid};

/// How long a claim is good for.
const LIFE: Duration = Duration::from_secs(120);
/// How many claims are kept before the expired ones are looked for.
const MANY: usize = 1024;

/// The right to make a volume of one name on one host, until somebody else asks for the name.
pub type Claim = Uuid;

/// The newest claim of each name.
#[derive(Debug, Default)]
pub struct Claims(Mutex<HashMap<Key, (Claim, Instant)>>);

impl Claims {
    /// Makes this the only claim of the name.
    pub fn set(&self, key: &Key, claim: Claim) {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if claims.len() >= MANY {
            claims.retain(|_, (_, given)| given.elapsed() < LIFE);
        }
        claims.insert(*key, (claim, Instant::now()));
    }

    /// Whether this is the newest claim of the name.
    pub fn is_newest(&self, key: &Key, claim: &Claim) -> bool {
        let claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        claims.get(key).is_some_and(|(newest, given)| newest == claim && given.elapsed() < LIFE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Kind;

    #[test]
    fn the_newest_claim_ends_all_others_of_its_name() {
        let claims = Claims::default();
        let (one, two) = (Uuid::from_bytes([1; 16]), Uuid::from_bytes([2; 16]));
        let (key, other) = (Key::of_name(Kind::Volume, "a"), Key::of_name(Kind::Volume, "b"));
        claims.set(&key, one);
        claims.set(&other, one);
        assert!(claims.is_newest(&key, &one) && !claims.is_newest(&key, &two));
        claims.set(&key, two);
        assert!(!claims.is_newest(&key, &one) && claims.is_newest(&key, &two) && claims.is_newest(&other, &one));
    }
}
