//! Who a certificate speaks for.

use std::fmt;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::domain::{NodeName, Role};

/// Below this all names of ours are. Nobody resolves them: machines are reached by addresses.
pub(super) const DOMAIN: &str = "cistern.internal";

/// The name that stands for a machine in this role in a certificate, `NAME.ROLE.cistern.internal`.
pub fn dns_name(name: &NodeName, role: Role) -> String {
    format!("{name}.{role}.{DOMAIN}")
}

/// Who a certificate speaks for: machines, each in a role. Usually it is one machine, in one role or two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity(Vec<(Role, NodeName)>);

impl Identity {
    /// Reads the DNS subject alternative names. Those that are not of our form say nothing, wildcards among them.
    ///
    /// # Errors
    /// It is not a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Identity, webpki::Error> {
        let certificate = EndEntityCert::try_from(certificate)?;
        Ok(Identity(certificate.valid_dns_names().filter_map(parse).collect()))
    }

    /// Whether it speaks for nobody.
    pub fn is_nobody(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it speaks for a machine in this role.
    pub fn is(&self, role: Role) -> bool {
        self.name_as(role).is_some()
    }

    /// The first name in this role.
    pub fn name_as(&self, role: Role) -> Option<&NodeName> {
        self.0.iter().find(|(its, _)| *its == role).map(|(_, name)| name)
    }

    /// Whether it speaks for just this machine in this role.
    pub fn speaks_for(&self, name: &NodeName, role: Role) -> bool {
        self.0.iter().any(|(its_role, its_name)| *its_role == role && its_name == name)
    }
}

fn parse(dns_name: &str) -> Option<(Role, NodeName)> {
    let (name, role) = dns_name.strip_suffix(DOMAIN)?.strip_suffix('.')?.rsplit_once('.')?;
    Some((role.parse().ok()?, name.parse().ok()?))
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_nobody() {
            return f.write_str("nobody");
        }
        for (index, (role, name)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{role} {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["a", "a.b", "x.host"] {
            for role in Role::ALL {
                let name: NodeName = name.parse().unwrap();
                assert_eq!(parse(&dns_name(&name, role)), Some((role, name)));
            }
        }
    }

    #[test]
    fn names_of_other_forms_say_nothing() {
        for name in [
            "host.cistern.internal",
            ".host.cistern.internal",
            "a.guest.cistern.internal",
            "*.host.cistern.internal",
            "A.host.cistern.internal",
            "a.Host.cistern.internal",
            "a.host.cistern.internal.example.com",
            "a.host.evilcistern.internal",
            "a.host.cistern.internal.",
            "cistern.internal",
            "a",
            "",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
