//! Which authorities a cluster believes. The Secret's, and each that was the Secret's before for as long as a certificate of
//! its may live: certificates live seven days at most, so it goes eight days after a controller first saw another in its
//! place. Whoever wants one out at once takes it out of the ConfigMap; it is not put back.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::peer::certs::{Anchor, anchors};

/// The ConfigMap's key.
const KEY: &str = "ca.crt";
/// Until when authorities that are not the Secret's are believed: JSON, the time by fingerprint.
const UNTIL: &str = "cistern.dev/believed-until";
/// How long an authority is believed that is the Secret's no more.
const LINGER: Duration = Duration::from_secs(8 * 24 * 3600);

/// What stands in a ConfigMap.
#[derive(Debug, Clone, PartialEq)]
pub struct Believed {
    anchors: Vec<Anchor>,
    until: BTreeMap<String, Time>,
}

impl Believed {
    /// What this ConfigMap says. What cannot be understood is not in it.
    pub fn read(map: &ConfigMap) -> Believed {
        let text = map.data.as_ref().and_then(|data| data.get(KEY));
        let until = map.metadata.annotations.as_ref().and_then(|annotations| annotations.get(UNTIL));
        Believed {
            anchors: text.map(|text| anchors(text)).unwrap_or_default(),
            until: until.and_then(|until| serde_json::from_str(until).ok()).unwrap_or_default(),
        }
    }

    /// What is believed from now on, if this is the Secret's authority.
    #[must_use]
    pub fn with(&self, current: &Anchor, now: SystemTime) -> Believed {
        let mut next = Believed { anchors: vec![current.clone()], until: BTreeMap::new() };
        for old in &self.anchors {
            let until = self.until.get(&old.fingerprint).map_or(now + LINGER, |until| until.0.into());
            let is_known = next.anchors.iter().any(|anchor| anchor.fingerprint == old.fingerprint);
            if is_known || until <= now || old.life.until <= now {
                continue;
            }
            next.anchors.push(old.clone());
            next.until.extend(Timestamp::try_from(until).ok().map(|until| (old.fingerprint.clone(), Time(until))));
        }
        next
    }

    /// Writes it into a ConfigMap.
    pub fn write(&self, map: &mut ConfigMap) {
        map.data.get_or_insert_default().insert(KEY.to_owned(), self.text());
        let until = serde_json::to_string(&self.until).unwrap_or_default();
        map.metadata.annotations.get_or_insert_default().insert(UNTIL.to_owned(), until);
    }

    /// The certificates in PEM.
    pub fn text(&self) -> String {
        self.anchors.iter().map(|anchor| anchor.pem.as_str()).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::peer::certs::Signer;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn anchor() -> Anchor {
        Signer::make().unwrap().0.anchor().clone()
    }

    /// Through a ConfigMap, as from one look to the next.
    fn through(believed: &Believed) -> Believed {
        let mut map = ConfigMap::default();
        believed.write(&mut map);
        Believed::read(&map)
    }

    fn fingerprints(believed: &Believed) -> Vec<&str> {
        believed.anchors.iter().map(|anchor| anchor.fingerprint.as_str()).collect()
    }

    #[test]
    fn an_authority_goes_eight_days_after_another_took_its_place() {
        let (old, new, now) = (anchor(), anchor(), SystemTime::now());
        let first = through(&Believed::read(&ConfigMap::default()).with(&old, now));
        assert_eq!(fingerprints(&first), [&old.fingerprint]);
        assert_eq!(first.with(&old, now + DAY), first, "nothing changes by itself");
        let both = through(&first.with(&new, now));
        assert_eq!(fingerprints(&both), [&new.fingerprint, &old.fingerprint]);
        assert_eq!(both.with(&new, now + DAY * 7), both, "its time does not begin anew");
        let last = both.with(&new, now + DAY * 8);
        assert_eq!(fingerprints(&last), [&new.fingerprint]);
        // one that is the Secret's again stays, and so does the other for its time
        let back = through(&both.with(&old, now + DAY * 7));
        assert_eq!(fingerprints(&back), [&old.fingerprint, &new.fingerprint]);
        assert_eq!(fingerprints(&back.with(&old, now + DAY * 14)), [&old.fingerprint, &new.fingerprint]);
        assert_eq!(fingerprints(&back.with(&old, now + DAY * 15)), [&old.fingerprint]);
    }

    #[test]
    fn one_that_its_owner_took_out_is_not_put_back_and_what_is_none_goes() {
        let (old, new, now) = (anchor(), anchor(), SystemTime::now());
        let mut map = ConfigMap::default();
        Believed::read(&map).with(&old, now).with(&new, now).write(&mut map);
        let text = format!("of my own\n{}-----BEGIN CERTIFICATE-----\nwhat\n-----END CERTIFICATE-----\n", new.pem);
        map.data.as_mut().unwrap().insert(KEY.to_owned(), text);
        let next = Believed::read(&map).with(&new, now);
        assert_eq!(next.text(), new.pem);
        assert!(next.until.is_empty());
    }

    #[test]
    fn one_that_has_expired_goes() {
        let (old, new, now) = (anchor(), anchor(), SystemTime::now());
        let both = Believed::read(&ConfigMap::default()).with(&old, now).with(&new, now);
        assert_eq!(fingerprints(&both.with(&new, old.life.until)), [&new.fingerprint]);
    }
}
