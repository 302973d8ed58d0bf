//! Accounts that logins authenticate against by CHAP.
//!
//! Each target, and discovery, has [`Accounts`]: any number of incoming ones, whose secrets prove the initiator, and at
//! most one outgoing, by which the target proves itself to initiators that ask (mutual CHAP). Without incoming accounts
//! no authentication is asked for.
//!
//! A [`Secret`] has no `Display`, and its `Debug` does not show it, so that none gets into a log.
//!
//! C source: `accounts` of `iscsi-scst/usr/config.c`, `iscsi-scst/usr/chap.c`

use crate::login::chap::{Algorithm, Chap, ChapHost};
use kshim::sys::rand;
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;
use sha3::Sha3_256;
use std::sync::Arc;

/// Fewest bytes of a secret (RFC 7143 9.2.1 asks for 96 bits).
pub const SECRET_MIN: usize = 12;
/// Most bytes of a secret.
pub const SECRET_MAX: usize = 255;
/// Most bytes of an account's name.
pub const USER_MAX: usize = 255;

/// Why an account was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// The secret has fewer than [`SECRET_MIN`] bytes.
    #[error("the secret has {0} bytes, CHAP wants at least {SECRET_MIN}")]
    SecretTooShort(usize),
    /// The secret has more than [`SECRET_MAX`] bytes.
    #[error("the secret has {0} bytes, more than {SECRET_MAX}")]
    SecretTooLong(usize),
    /// The name is empty, too long, or has characters that a text key's value cannot have.
    #[error("the user's name is empty, too long or not printable")]
    BadUser,
    /// There is an account of that name.
    #[error("the user is there already")]
    Exists,
    /// The same secret in both directions would let an initiator be answered with its own words (RFC 7143 9.2.1).
    #[error("the secrets of both directions are the same")]
    SameSecret,
}

/// A CHAP secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret of these bytes.
    ///
    /// # Errors
    /// [`AccountError::SecretTooShort`], [`AccountError::SecretTooLong`].
    pub fn new(bytes: &[u8]) -> Result<Self, AccountError> {
        match bytes.len() {
            n if n < SECRET_MIN => Err(AccountError::SecretTooShort(n)),
            n if n > SECRET_MAX => Err(AccountError::SecretTooLong(n)),
            _ => Ok(Self(bytes.to_vec())),
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A name and its secret.
#[derive(Clone, Debug)]
struct Account {
    user: String,
    secret: Secret,
}

impl Account {
    fn new(user: &str, secret: Secret) -> Result<Self, AccountError> {
        let printable = user.chars().all(|c| !c.is_control() && !c.is_whitespace());
        if user.is_empty() || user.len() > USER_MAX || !printable {
            return Err(AccountError::BadUser);
        }
        Ok(Self {
            user: user.to_owned(),
            secret,
        })
    }
}

/// The accounts of a target or of discovery.
///
/// ```
/// use iscsi_scst::accounts::{Accounts, Secret};
///
/// let mut accounts = Accounts::default();
/// accounts.add_incoming("alice", Secret::new(b"correct horse")?)?;
/// assert!(accounts.requires_auth());
/// assert!(!format!("{accounts:?}").contains("horse"));
/// # Ok::<(), iscsi_scst::accounts::AccountError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    incoming: Vec<Account>,
    outgoing: Option<Account>,
}

impl Accounts {
    /// Adds an account by which initiators prove themselves.
    ///
    /// # Errors
    /// [`AccountError::BadUser`], [`AccountError::Exists`], [`AccountError::SameSecret`].
    #[doc(alias = "IncomingUser")]
    pub fn add_incoming(&mut self, user: &str, secret: Secret) -> Result<(), AccountError> {
        if self.incoming.iter().any(|a| a.user == user) {
            return Err(AccountError::Exists);
        }
        if self.outgoing.as_ref().is_some_and(|a| a.secret == secret) {
            return Err(AccountError::SameSecret);
        }
        self.incoming.push(Account::new(user, secret)?);
        Ok(())
    }

    /// Sets the account by which the target proves itself.
    ///
    /// # Errors
    /// [`AccountError::BadUser`], [`AccountError::SameSecret`].
    #[doc(alias = "OutgoingUser")]
    pub fn set_outgoing(&mut self, user: &str, secret: Secret) -> Result<(), AccountError> {
        if self.incoming.iter().any(|a| a.secret == secret) {
            return Err(AccountError::SameSecret);
        }
        self.outgoing = Some(Account::new(user, secret)?);
        Ok(())
    }

    /// Whether initiators have to authenticate themselves.
    #[doc(alias = "accounts_empty")]
    pub fn requires_auth(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Starts the authentication of one login. Errors: those of the host's randomness. Context: reactor-safe.
    pub(crate) fn start_chap(
        self: &Arc<Self>,
    ) -> kshim::error::Result<Chap<impl ChapHost + use<>>> {
        let mut random = [0; RANDOM_LEN];
        rand::fill(&mut random)?;
        Ok(Chap::new(Host {
            accounts: Arc::clone(self),
            random,
        }))
    }
}

/// Random bytes that one exchange needs: an identifier, a length and a challenge.
const RANDOM_LEN: usize = 64;

/// What one exchange knows.
struct Host {
    accounts: Arc<Accounts>,
    /// Drawn at the beginning, where a failure can still be answered.
    random: [u8; RANDOM_LEN],
}

impl ChapHost for Host {
    fn supports(&self, _algorithm: Algorithm) -> bool {
        true
    }

    fn hash(&self, algorithm: Algorithm, parts: [&[u8]; 3]) -> Option<Vec<u8>> {
        Some(match algorithm {
            Algorithm::Md5 => digest::<Md5>(parts),
            Algorithm::Sha1 => digest::<Sha1>(parts),
            Algorithm::Sha256 => digest::<Sha256>(parts),
            Algorithm::Sha3_256 => digest::<Sha3_256>(parts),
        })
    }

    fn random(&self, buf: &mut [u8]) {
        debug_assert!(buf.len() <= RANDOM_LEN, "more randomness than was drawn");
        for (to, from) in buf.iter_mut().zip(self.random) {
            *to = from;
        }
    }

    fn incoming_secret(&self, user: &str) -> Option<Vec<u8>> {
        let account = self.accounts.incoming.iter().find(|a| a.user == user)?;
        Some(account.secret.0.clone())
    }

    fn outgoing_account(&self) -> Option<(String, Vec<u8>)> {
        let account = self.accounts.outgoing.as_ref()?;
        Some((account.user.clone(), account.secret.0.clone()))
    }
}

fn digest<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
    let mut hash = D::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(accounts: Accounts) -> Host {
        Host {
            accounts: Arc::new(accounts),
            random: [7; RANDOM_LEN],
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn hashes_are_the_published_ones() {
        let host = host(Accounts::default());
        let abc: [&[u8]; 3] = [b"a", b"", b"bc"];
        for (algorithm, expected) in [
            (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (Algorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (
                Algorithm::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                Algorithm::Sha3_256,
                "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532",
            ),
        ] {
            assert!(host.supports(algorithm));
            assert_eq!(
                host.hash(algorithm, abc).map(|h| hex(&h)).as_deref(),
                Some(expected)
            );
        }
    }

    #[test]
    fn secrets_have_a_length_and_are_never_shown() {
        assert_eq!(Secret::new(b"eleven bytes").map(|_| ()), Ok(()));
        assert_eq!(
            Secret::new(b"too short").unwrap_err(),
            AccountError::SecretTooShort(9)
        );
        assert_eq!(
            Secret::new(&[1; 256]).unwrap_err(),
            AccountError::SecretTooLong(256)
        );
        let mut accounts = Accounts::default();
        accounts
            .add_incoming("u", Secret::new(b"a secret of mine").unwrap())
            .unwrap();
        assert!(!format!("{accounts:?}").contains("mine"));
    }

    #[test]
    fn accounts_are_found_by_name_and_refused_when_wrong() {
        let secret = |s: &str| Secret::new(s.as_bytes()).unwrap();
        let mut accounts = Accounts::default();
        assert!(!accounts.requires_auth());
        accounts
            .add_incoming("alice", secret("alice's secret"))
            .unwrap();
        assert_eq!(
            accounts.add_incoming("alice", secret("another secret")),
            Err(AccountError::Exists)
        );
        for bad in ["", "a b", "a\u{7}", &"x".repeat(256)] {
            assert_eq!(
                accounts.add_incoming(bad, secret("some secret!")),
                Err(AccountError::BadUser)
            );
        }
        assert_eq!(
            accounts.set_outgoing("t", secret("alice's secret")),
            Err(AccountError::SameSecret)
        );
        accounts
            .set_outgoing("target", secret("target's secret"))
            .unwrap();
        let same = accounts.add_incoming("bob", secret("target's secret"));
        assert_eq!(same, Err(AccountError::SameSecret));
        let host = host(accounts);
        assert_eq!(
            host.incoming_secret("alice").as_deref(),
            Some(&b"alice's secret"[..])
        );
        assert_eq!(host.incoming_secret("bob"), None);
        assert_eq!(
            host.outgoing_account().map(|a| a.0).as_deref(),
            Some("target")
        );
    }

    #[test]
    fn challenges_differ() {
        let accounts = Arc::new(Accounts::default());
        let mut seen = std::collections::HashSet::new();
        for _ in 0..64 {
            use crate::login::auth::Authenticator as _;
            let mut answer = crate::text::TextBuf::with_limit(8192);
            let _ = accounts
                .start_chap()
                .unwrap()
                .step(b"CHAP_A=5\0", &mut answer);
            assert!(seen.insert(answer.into_bytes()));
        }
    }
}
