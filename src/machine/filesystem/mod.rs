//! The file systems in volumes: making them, growing them while mounted, and giving a clone's an identity of its own.
//!
//! Only what cistern itself made is touched here: the content of a Block volume is its user's and never looked at.
//! Whether a device is free to be written at all is [`super::probe`]'s question; mounting for use is the node's.

mod adopt;
mod btrfs;
mod crc32c;
mod ext4;
mod grow;
mod ioctls;
mod make;
pub mod replay;
mod superblock;
mod xfs;

pub use adopt::{AdoptError, adopt};
pub use grow::{GrowError, grow};
pub use make::{MakeError, make};
pub use superblock::{Filesystem, Superblock};
pub(super) use superblock::{parse, place};
