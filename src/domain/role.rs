//! What a machine is to the others.

use std::fmt;
use std::str::FromStr;

use super::Malformed;
use super::ids::malformed;

/// What the holder of a certificate may be; a machine may be several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It sends calls to hosts.
    Controller,
    /// It serves stores.
    Host,
    /// It uses volumes.
    Node,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 3] = [Role::Controller, Role::Host, Role::Node];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Role::Controller => "controller",
            Role::Host => "host",
            Role::Node => "node",
        }
    }
}

impl FromStr for Role {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Role, Malformed> {
        let named = Role::ALL.into_iter().find(|role| role.name() == text);
        named.ok_or_else(|| malformed(text, "a role: controller, host or node"))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
