//! A ticket: what a node must know to reach a volume. It travels as publish_context and holds no secret.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::{Bytes, Content, FsType, Id, Uuid};

/// What a node must know to reach a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The volume.
    pub volume: Id,
    /// The number of the grant it was written for.
    pub generation: u64,
    /// What the volume holds.
    pub content: Content,
    /// Its logical sector in bytes.
    pub sector: u32,
    /// Whether the node may only read.
    pub read_only: bool,
    /// Whether its space is its own and must stay so: no discard.
    pub keeps_blocks: bool,
    /// How far the kernel is to read ahead, in KiB, if the volume's owner said so.
    pub read_ahead_kib: Option<u32>,
    /// The way, by share.
    pub reach: Reach,
}

/// The way to a volume, by share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// It is on this very machine.
    Local(Bytes),
}

/// The publish_context is not one that a host wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("publish_context: {0}")]
pub struct NotATicket(String);

// the keys of publish_context: fixed, since a host and a node may be one release apart
const SHARE: &str = "share";
const VOLUME: &str = "volume";
const GENERATION: &str = "generation";
const CONTENT: &str = "content";
const UUID: &str = "uuid";
const SECTOR: &str = "sector";
const READ_ONLY: &str = "readOnly";
const KEEPS_BLOCKS: &str = "keepsBlocks";
const READ_AHEAD: &str = "readAheadKiB";
const FILE: &str = "file";
const DEVICE: &str = "device";

impl Ticket {
    /// The ticket as publish_context.
    pub fn to_context(&self) -> HashMap<String, String> {
        let mut context = HashMap::new();
        let mut put = |key: &str, value: String| context.insert(key.to_owned(), value);
        put(VOLUME, self.volume.to_string());
        put(GENERATION, self.generation.to_string());
        put(SECTOR, self.sector.to_string());
        put(READ_ONLY, self.read_only.to_string());
        put(KEEPS_BLOCKS, self.keeps_blocks.to_string());
        match self.content {
            Content::Block => {
                put(CONTENT, "block".to_owned());
            }
            Content::Filesystem { fs, uuid } => {
                put(CONTENT, fs.to_string());
                put(UUID, uuid.to_string());
            }
        }
        if let Some(kib) = self.read_ahead_kib {
            put(READ_AHEAD, kib.to_string());
        }
        let Reach::Local(bytes) = &self.reach;
        put(SHARE, "local".to_owned());
        let key = match bytes {
            Bytes::File(_) => FILE,
            Bytes::Device(_) => DEVICE,
        };
        put(key, bytes.path().display().to_string());
        context
    }

    /// The ticket that a publish_context holds.
    pub fn from_context(context: &HashMap<String, String>) -> Result<Ticket, NotATicket> {
        let get = |key: &str| context.get(key).ok_or_else(|| NotATicket(format!("{key} is missing")));
        let content = match get(CONTENT)?.as_str() {
            "block" => Content::Block,
            name => {
                let fs = FsType::parse(name).ok_or_else(|| NotATicket(format!("{CONTENT}: {name:?} is unknown")))?;
                Content::Filesystem { fs, uuid: parse::<Uuid>(UUID, get(UUID)?)? }
            }
        };
        let reach = match get(SHARE)?.as_str() {
            "local" => match context.get(FILE) {
                Some(file) => Reach::Local(Bytes::File(PathBuf::from(file))),
                None => Reach::Local(Bytes::Device(PathBuf::from(get(DEVICE)?))),
            },
            other => return Err(NotATicket(format!("{SHARE}: {other:?} is unknown to this version"))),
        };
        Ok(Ticket {
            volume: parse(VOLUME, get(VOLUME)?)?,
            generation: parse(GENERATION, get(GENERATION)?)?,
            content,
            sector: parse(SECTOR, get(SECTOR)?)?,
            read_only: parse(READ_ONLY, get(READ_ONLY)?)?,
            keeps_blocks: parse(KEEPS_BLOCKS, get(KEEPS_BLOCKS)?)?,
            read_ahead_kib: context.get(READ_AHEAD).map(|kib| parse(READ_AHEAD, kib)).transpose()?,
            reach,
        })
    }
}

fn parse<T: FromStr<Err: std::fmt::Display>>(key: &str, text: &str) -> Result<T, NotATicket> {
    text.parse().map_err(|error| NotATicket(format!("{key}: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let id = "0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff/v-00000000000000000000000000000001";
        Ticket {
            volume: id.parse().unwrap(),
            generation: 7,
            content: Content::Filesystem { fs: FsType::Xfs, uuid: Uuid::from_bytes([9; 16]) },
            sector: 512,
            read_only: true,
            keeps_blocks: false,
            read_ahead_kib: Some(128),
            reach: Reach::Local(Bytes::File("/pool/images/v-1".into())),
        }
    }

    #[test]
    fn a_ticket_travels_as_text() {
        let file = ticket();
        let reach = Reach::Local(Bytes::Device("/dev/vg/v-1".into()));
        let device = Ticket { content: Content::Block, read_ahead_kib: None, reach, ..ticket() };
        for ticket in [file, device] {
            assert_eq!(Ticket::from_context(&ticket.to_context()), Ok(ticket));
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for key in [SHARE, VOLUME, GENERATION, CONTENT, UUID, SECTOR, READ_ONLY, KEEPS_BLOCKS, FILE] {
            let mut context = ticket().to_context();
            context.remove(key);
            let named = if key == FILE { DEVICE } else { key };
            assert!(Ticket::from_context(&context).unwrap_err().to_string().contains(named), "{key}");
            context.insert(key.to_owned(), "\u{7f}".to_owned());
            assert_eq!(Ticket::from_context(&context).is_err(), key != FILE, "{key}");
        }
    }
}
