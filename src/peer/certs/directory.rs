//! The directory that `--tls` takes, kept by its own machine: what it lacks, and how a new set gets into it.

use std::path::Path;
use std::time::SystemTime;

use super::{CertsError, Life, make_directory};
use crate::domain::{NodeName, Role};
use crate::machine::file::write_atomically;
use crate::peer::Identity;
use crate::peer::tls::{self, FILES, TlsError};

/// Where a new set is written before it takes its place, below the directory.
const NEXT: &str = "next";

/// Why a machine needs a new certificate.
#[derive(Debug, thiserror::Error)]
pub enum Lack {
    /// There is none, or it is of no use.
    #[error("there is no certificate that can be used")]
    Unusable(#[source] TlsError),
    /// It is another's, or another role's.
    #[error("the certificate is that of {0}")]
    Other(Identity),
    /// Its authority was taken out of those that are believed.
    #[error("the certificate's authority is believed no more")]
    NotBelieved,
    /// It is in the second half of its life.
    #[error("half of the certificate's life is over")]
    Old,
}

impl Lack {
    /// Whether what is there serves until there is something better.
    pub fn is_usable(&self) -> bool {
        matches!(self, Lack::NotBelieved | Lack::Old)
    }
}

/// Looks at what a machine has. Answers when it is to be renewed. `believed` are the authorities in force, if they are known;
/// without them those of the directory count.
pub fn look(
    dir: &Path,
    name: &NodeName,
    roles: &[Role],
    believed: Option<&[u8]>,
    now: SystemTime,
) -> Result<SystemTime, Lack> {
    let contents = tls::read(dir);
    let identity = tls::identity_of(dir, &contents).map_err(Lack::Unusable)?;
    if !roles.iter().all(|role| identity.speaks_for(name, *role)) {
        return Err(Lack::Other(identity));
    }
    let [_, certificate, key] = contents.map(Result::unwrap_or_default);
    if believed.is_some_and(|believed| tls::check(dir, [believed, &certificate, &key]).is_err()) {
        return Err(Lack::NotBelieved);
    }
    let renew_at = Life::of_pem(&certificate).map_or(now, |life| life.middle());
    if renew_at <= now { Err(Lack::Old) } else { Ok(renew_at) }
}

/// Brings a set (`ca.crt`, `tls.crt`, `tls.key`) into the directory. A crash leaves the old one or the new one: three files
/// cannot be changed at once, so the new set is whole beside the old one first, and [`finish`] goes on from there. Whoever
/// reads meanwhile sees files that do not fit together, and keeps what it has.
///
/// # Errors
/// [`CertsError::Useless`] for a set that would be of no use, which is not brought.
pub fn install(dir: &Path, files: [&[u8]; 3]) -> Result<(), CertsError> {
    tls::check(dir, files).map_err(CertsError::Useless)?;
    let next = dir.join(NEXT);
    make_directory(dir)?;
    make_directory(&next)?;
    for (name, bytes) in FILES.into_iter().zip(files) {
        write_atomically(&next, name, bytes)?;
    }
    finish(dir)
}

/// Brings what is whole in `next` to its place, and clears `next`. Nothing where there is none.
pub fn finish(dir: &Path) -> Result<(), CertsError> {
    let next = dir.join(NEXT);
    if !next.exists() {
        return Ok(());
    }
    let contents = tls::read(&next);
    if tls::identity_of(&next, &contents).is_ok() {
        for (name, bytes) in FILES.into_iter().zip(contents.map(Result::unwrap_or_default)) {
            write_atomically(dir, name, &bytes)?;
        }
    }
    std::fs::remove_dir_all(&next).map_err(|source| CertsError::Clear { path: next, source })
}

/// Takes over the authorities in force beside the certificate that is there. Answers whether they are others than before.
pub fn believe(dir: &Path, authorities: &[u8]) -> Result<bool, CertsError> {
    if std::fs::read(dir.join(FILES[0])).is_ok_and(|before| before == authorities) {
        return Ok(false);
    }
    write_atomically(dir, FILES[0], authorities)?;
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::machine::testing::TestDir;
    use crate::peer::certs::{Issued, Signer};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn set<'a>(signer: &'a Signer, issued: &'a Issued) -> [&'a [u8]; 3] {
        [signer.anchor().pem.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes()]
    }

    fn of(dir: &Path, believed: &Signer, after: Duration) -> Result<(), Lack> {
        let believed = Some(believed.anchor().pem.as_bytes());
        let (name, roles) = ("a".parse().unwrap(), [Role::Host, Role::Node]);
        look(dir, &name, &roles, believed, SystemTime::now() + after).map(drop)
    }

    #[test]
    fn what_is_lacking_is_told() {
        let dir = TestDir::new();
        let (dir, ours, other) = (dir.join("tls"), Signer::make().unwrap().0, Signer::make().unwrap().0);
        assert!(matches!(of(&dir, &ours, Duration::ZERO), Err(Lack::Unusable(_))));
        for (name, roles) in [("a", &[Role::Host][..]), ("b", &[Role::Host, Role::Node])] {
            install(&dir, set(&ours, &ours.issue(&name.parse().unwrap(), roles, DAY).unwrap())).unwrap();
            assert!(matches!(of(&dir, &ours, Duration::ZERO), Err(Lack::Other(_))), "{name}");
        }
        let good = ours.issue(&"a".parse().unwrap(), &[Role::Host, Role::Node], DAY).unwrap();
        install(&dir, set(&ours, &good)).unwrap();
        of(&dir, &ours, DAY / 4).unwrap();
        assert!(matches!(of(&dir, &ours, DAY / 2), Err(Lack::Old)));
        assert!(matches!(of(&dir, &other, Duration::ZERO), Err(Lack::NotBelieved)));
    }

    #[test]
    fn an_installation_that_was_cut_off_anywhere_leaves_the_old_set_or_the_new() {
        let dir = TestDir::new();
        let (dir, signer) = (dir.join("tls"), Signer::make().unwrap().0);
        let issue = || signer.issue(&"a".parse().unwrap(), &[Role::Host, Role::Node], DAY).unwrap();
        let (old, new) = (issue(), issue());
        let (old_set, new_set) = (set(&signer, &old), set(&signer, &new));
        // three files of `next` are written, then three in their place: after so many of them the power fails
        for written in 0..=6 {
            install(&dir, old_set).unwrap();
            let next = dir.join(NEXT);
            make_directory(&next).unwrap();
            for (at, (name, bytes)) in FILES.iter().zip(new_set).enumerate() {
                if at < written {
                    fs::write(next.join(name), bytes).unwrap();
                }
                if at + 3 < written {
                    fs::write(dir.join(name), bytes).unwrap();
                }
            }
            finish(&dir).unwrap();
            let now = tls::read(&dir).map(Result::unwrap);
            let expected = if written < 3 { old_set } else { new_set };
            assert!(now.iter().zip(expected).all(|(now, expected)| now == expected), "after {written}");
            assert!(!next.exists());
        }
    }
}
