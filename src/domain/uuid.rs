//! Universally unique identifiers: of stores and of file systems.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A UUID (RFC 9562), shown in lower case with hyphens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid([u8; 16]);

/// The text is not five groups of hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a UUID: {0:?}")]
pub struct NotAUuid(String);

impl Uuid {
    /// The UUID with these bytes, in the order they are written.
    pub const fn from_bytes(bytes: [u8; 16]) -> Uuid {
        Uuid(bytes)
    }

    /// The UUID (version 4) that these 16 random bytes make.
    pub fn from_random(mut bytes: [u8; 16]) -> Uuid {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Uuid(bytes)
    }

    /// The bytes, in the order they are written.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = NotAUuid;

    fn from_str(text: &str) -> Result<Uuid, NotAUuid> {
        let refused = || NotAUuid(text.to_owned());
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|group| group.len()).ne([8, 4, 4, 4, 12]) {
            return Err(refused());
        }
        hex(&groups.concat()).map(Uuid).ok_or_else(refused)
    }
}

/// Sixteen bytes from 32 lower-case or upper-case hexadecimal digits.
pub(crate) fn hex(digits: &str) -> Option<[u8; 16]> {
    if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(digits, 16).ok().map(u128::to_be_bytes)
}

impl TryFrom<String> for Uuid {
    type Error = NotAUuid;

    fn try_from(text: String) -> Result<Uuid, NotAUuid> {
        text.parse()
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> String {
        uuid.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn is_written_as_it_is_read() {
        let text = "0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff";
        assert_eq!(text.parse::<Uuid>().unwrap().to_string(), text);
        for refused in ["", "0188e4b1", "0188e4b1-7c3a-4f00-8a1b-00ff00ff00fg", "0188e4b17c3a4f008a1b00ff00ff00ff"] {
            assert_eq!(refused.parse::<Uuid>(), Err(NotAUuid(refused.to_owned())));
        }
    }
}
