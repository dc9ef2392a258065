//! Names and ids. A volume's id is `store/key`; the key is a kind and a hash of the CSI name, so that the same name
//! finds the same volume without a table.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::uuid::{Uuid, hex};

/// The text is not what it should be; the field says what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct Malformed {
    text: String,
    expected: &'static str,
}

pub(super) fn malformed(text: &str, expected: &'static str) -> Malformed {
    Malformed { text: text.to_owned(), expected }
}

/// Gives a type that parses from and shows as text its serde form.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = Malformed;
            fn try_from(text: String) -> Result<Self, Malformed> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}

/// Whether the text is a DNS label (RFC 1123) of at most `longest` bytes.
fn is_dns_label(text: &str, longest: usize) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=longest).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// A pool's name: a DNS label of at most 40.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(String);

impl FromStr for PoolName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<PoolName, Malformed> {
        let label = is_dns_label(text, 40);
        label
            .then(|| PoolName(text.to_owned()))
            .ok_or_else(|| malformed(text, "a pool's name: a DNS label of at most 40"))
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(PoolName);

/// A machine's name, as host and as node: what Kubernetes accepts as a node's name and as a label's value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl FromStr for NodeName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<NodeName, Malformed> {
        let fits = text.len() <= 63 && text.split('.').all(|label| is_dns_label(label, 63));
        fits.then(|| NodeName(text.to_owned()))
            .ok_or_else(|| malformed(text, "a machine's name: DNS labels joined by dots, at most 63 bytes"))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(NodeName);

/// A node's id, `name,address[,address]`. Grants compare names; addresses may change between two publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId {
    /// The machine's name.
    pub name: NodeName,
    /// Where it is reached, the best first; never empty.
    pub addresses: Vec<std::net::IpAddr>,
}

impl FromStr for NodeId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<NodeId, Malformed> {
        let expected = "a node id: name,address[,address]";
        let (name, addresses) = text.split_once(',').ok_or_else(|| malformed(text, expected))?;
        let addresses: Result<Vec<_>, _> = addresses.split(',').map(str::parse).collect();
        Ok(NodeId { name: name.parse()?, addresses: addresses.map_err(|_| malformed(text, expected))? })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        self.addresses.iter().try_for_each(|address| write!(f, ",{address}"))
    }
}
serde_as_text!(NodeId);

/// A store's identity, written into the store itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreId(pub Uuid);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
    /// A piece of the medium's own that a job reads and then drops; it has no record.
    Temporary,
}

impl Kind {
    fn letter(self) -> char {
        match self {
            Kind::Volume => 'v',
            Kind::Snapshot => 's',
            Kind::Temporary => 't',
        }
    }

    fn of_letter(letter: &str) -> Option<Kind> {
        [Kind::Volume, Kind::Snapshot, Kind::Temporary].into_iter().find(|kind| letter == kind.letter().to_string())
    }
}

/// The name of a record and of its piece within a store: `v-` or `s-` and 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key {
    kind: Kind,
    hash: [u8; 16],
}

impl Key {
    /// The key of the volume or snapshot with this CSI name.
    pub fn of_name(kind: Kind, name: &str) -> Key {
        let digest = Sha256::digest(name.as_bytes());
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest[..16]);
        Key { kind, hash }
    }

    /// The key of the temporary piece that the making of `self` may need.
    pub fn temporary(&self) -> Key {
        Key::of_name(Kind::Temporary, &self.to_string())
    }

    /// What it names.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl FromStr for Key {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Key, Malformed> {
        let parse = || {
            let (letter, digits) = text.split_once('-')?;
            let lower = !digits.bytes().any(|byte| byte.is_ascii_uppercase());
            Some(Key { kind: Kind::of_letter(letter)?, hash: lower.then(|| hex(digits))?? })
        };
        parse().ok_or_else(|| malformed(text, "a key: v- or s- and 32 hexadecimal digits"))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:032x}", self.kind.letter(), u128::from_be_bytes(self.hash))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
serde_as_text!(Key);

/// The id of a volume or a snapshot, `store/key`: 71 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id {
    /// Where it lives.
    pub store: StoreId,
    /// Which one it is there.
    pub key: Key,
}

impl Id {
    /// Parses an id of this kind. Whatever else is an *unknown* volume or snapshot, never an invalid argument.
    pub fn parse(kind: Kind, text: &str) -> Option<Id> {
        text.parse().ok().filter(|id: &Id| id.key.kind == kind)
    }
}

impl FromStr for Id {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Id, Malformed> {
        let refused = || malformed(text, "an id: store/key");
        let (store, key) = text.split_once('/').ok_or_else(refused)?;
        let store: Uuid = store.parse().map_err(|_| refused())?;
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(refused());
        }
        Ok(Id { store: StoreId(store), key: key.parse()? })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.store, self.key)
    }
}
serde_as_text!(Id);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const STORE: &str = "0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff";

    #[test]
    fn ids_are_written_as_they_are_read_and_fit_csi() {
        let key = Key::of_name(Kind::Volume, &"ü".repeat(64));
        let id = Id { store: StoreId(STORE.parse().unwrap()), key };
        assert_eq!(Id::parse(Kind::Volume, &id.to_string()), Some(id));
        assert_eq!(Id::parse(Kind::Snapshot, &id.to_string()), None);
        assert!(id.to_string().len() <= 128);
    }

    #[test]
    fn what_is_not_an_id_is_unknown() {
        let upper = format!("{}/{}", STORE.to_uppercase(), Key::of_name(Kind::Volume, "a"));
        for text in ["", "/", "fake-vol-id", STORE, "../../etc/passwd", &format!("{STORE}/v-../../x"), &upper] {
            assert_eq!(Id::parse(Kind::Volume, text), None, "{text}");
        }
    }

    #[test]
    fn names_of_pools_and_machines() {
        for (text, pool, machine) in [
            ("fast", true, true),
            ("a.b", false, true),
            ("-a", false, false),
            ("a..b", false, false),
            ("A", false, false),
            ("", false, false),
            (&"x".repeat(41), false, true),
            (&"x".repeat(64), false, false),
        ] {
            assert_eq!(text.parse::<PoolName>().is_ok(), pool, "pool {text}");
            assert_eq!(text.parse::<NodeName>().is_ok(), machine, "machine {text}");
        }
    }

    #[test]
    fn node_ids_need_an_address() {
        for (text, known) in
            [("a,10.0.0.1", true), ("a,10.0.0.1,fe80::1", true), ("a", false), ("a,", false), ("a,b", false)]
        {
            assert_eq!(text.parse::<NodeId>().is_ok(), known, "{text}");
        }
    }
}
