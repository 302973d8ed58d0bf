//! Portals in access control: which of them a target is reached by, and where it sends initiators instead.
//!
//! A portal is named by its IP address alone, as text: patterns of `allowed_portal` are matched against it, and with
//! `per_portal_acl` it becomes part of the initiator's name (`NAME#ADDRESS`) that access control groups see.
//!
//! C source: `target_portal_allowed`, `target_redirected`, `iscsi_make_full_initiator_name` of
//! `iscsi-scst/usr/target.c`, `handle_target_redirect` of `iscsi-scst/usr/event.c`

use crate::login::{Redirect, RedirectKind};
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::str::FromStr;
use kshim::error::{Error, Result, code};
use scst_core::acn::wildcmp;

/// The registered port of iSCSI, which the text of a [`Redirection`] leaves out.
#[doc(alias = "ISCSI_LISTEN_PORT")]
pub const ISCSI_PORT: u16 = 3260;

/// Patterns of `allowed_portal`.
///
/// Without patterns every portal is allowed. Otherwise one of the patterns without `!` has to match, if there are such,
/// and none of those with `!` may say no.
///
/// ```
/// use iscsi_scst::portal::PortalFilter;
///
/// let mut filter = PortalFilter::default();
/// assert!(filter.allows("192.0.2.7"));
/// filter.add("192.0.2.*")?;
/// filter.add("!192.0.2.9")?;
/// assert!(filter.allows("192.0.2.7") && !filter.allows("192.0.2.9") && !filter.allows("198.51.100.1"));
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "allowed_portals")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortalFilter(Vec<String>);

impl PortalFilter {
    /// The patterns, in the order of their addition.
    pub fn patterns(&self) -> &[String] {
        &self.0
    }

    /// Adds a pattern: letters for themselves (ASCII case does not matter), `*` and `?` as in file names, a `!` in
    /// front negates. Errors: EINVAL (empty), EEXIST.
    pub fn add(&mut self, pattern: &str) -> Result {
        if pattern.is_empty() {
            return Err(code::EINVAL);
        }
        if self.0.iter().any(|p| p == pattern) {
            return Err(code::EEXIST);
        }
        self.0.push(pattern.to_owned());
        Ok(())
    }

    /// Removes a pattern. Errors: ENOENT.
    pub fn remove(&mut self, pattern: &str) -> Result {
        let at = self.0.iter().position(|p| p == pattern);
        self.0.remove(at.ok_or(code::ENOENT)?);
        Ok(())
    }

    /// Puts a pattern in the place of another. Errors: EINVAL (empty), ENOENT.
    pub fn replace(&mut self, old: &str, new: &str) -> Result {
        if new.is_empty() {
            return Err(code::EINVAL);
        }
        let place = self.0.iter_mut().find(|p| *p == old);
        new.clone_into(place.ok_or(code::ENOENT)?);
        Ok(())
    }

    /// Whether a portal may be used.
    #[doc(alias = "target_portal_allowed")]
    pub fn allows(&self, portal: &str) -> bool {
        let (negative, positive): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|p| p.starts_with('!'));
        let matches = |p: &&String| wildcmp(p, portal);
        (positive.is_empty() || positive.iter().any(matches)) && negative.iter().all(matches)
    }
}

/// Where a target has moved, as `redirect` has it: `ADDRESS[:PORT] temp|perm`.
///
/// ```
/// use iscsi_scst::portal::Redirection;
///
/// let to: Redirection = "[2001:db8::1]:3261 perm".parse()?;
/// assert_eq!(to.to_string(), "[2001:db8::1]:3261 perm");
/// let to: Redirection = "192.0.2.1:3260 temp".parse()?;
/// assert_eq!(to.to_string(), "192.0.2.1 temp");
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "redirect_addr")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirection {
    /// The portal to use instead.
    pub to: SocketAddr,
    /// For how long.
    pub kind: RedirectKind,
}

impl Redirection {
    /// What a login by the portal `local` is answered: nothing if that is where the target has moved to. As in SCST the
    /// port does not count.
    #[doc(alias = "target_redirected")]
    pub(crate) fn of(self, local: &SocketAddr) -> Option<Redirect> {
        (self.to.ip() != local.ip()).then(|| Redirect {
            address: self.to.to_string(),
            kind: self.kind,
        })
    }
}

impl FromStr for Redirection {
    type Err = Error;

    /// Errors: EINVAL.
    #[doc(alias = "handle_target_redirect")]
    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let (Some(address), Some(kind), None) = (words.next(), words.next(), words.next()) else {
            return Err(code::EINVAL);
        };
        let kind = match kind.to_ascii_lowercase().as_str() {
            "temp" => RedirectKind::Temporary,
            "perm" => RedirectKind::Permanent,
            _ => return Err(code::EINVAL),
        };
        let to = portal_address(address).filter(|to| to.port() != 0);
        Ok(Self {
            to: to.ok_or(code::EINVAL)?,
            kind,
        })
    }
}

impl fmt::Display for Redirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RedirectKind::Temporary => "temp",
            RedirectKind::Permanent => "perm",
        };
        match (self.to, self.to.port()) {
            (SocketAddr::V6(to), ISCSI_PORT) => write!(f, "[{}] {kind}", to.ip()),
            (SocketAddr::V4(to), ISCSI_PORT) => write!(f, "{} {kind}", to.ip()),
            (to, _) => write!(f, "{to} {kind}"),
        }
    }
}

/// `ADDRESS` or `ADDRESS:PORT`, with brackets around an IPv6 address.
fn portal_address(text: &str) -> Option<SocketAddr> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Some(addr);
    }
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let ip: IpAddr = inner.unwrap_or(text).parse().ok()?;
    Some(SocketAddr::new(ip, ISCSI_PORT))
}

/// The name of a portal in access control.
#[doc(alias = "target_portal")]
pub(crate) fn portal_name(portal: &SocketAddr) -> String {
    portal.ip().to_string()
}

/// The initiator's name as access control groups see it.
#[doc(alias = "iscsi_make_full_initiator_name")]
pub(crate) fn full_initiator_name(per_portal_acl: bool, initiator: &str, portal: &str) -> String {
    if per_portal_acl {
        format!("{initiator}#{portal}")
    } else {
        initiator.to_owned()
    }
}

/// A list of IP addresses with blanks between, as in `internal_portal`. Errors: EINVAL.
pub fn parse_addresses(text: &str) -> Result<Vec<IpAddr>> {
    let words = text.split_whitespace();
    let parsed: core::result::Result<_, _> = words.map(str::parse).collect();
    parsed.map_err(|_| code::EINVAL)
}

/// Whether an address is of the loopback interface.
pub(crate) fn is_loopback(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback(),
    }
}

/// Whether an address is one of IPv6 that means something on its own link only.
pub(crate) fn is_link_local(addr: &IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(patterns: &[&str]) -> PortalFilter {
        PortalFilter(patterns.iter().map(|p| (*p).to_owned()).collect())
    }

    #[test]
    fn positive_patterns_are_alternatives_and_negative_ones_all_hold() {
        for (patterns, portal, allowed) in [
            (&[][..], "10.0.0.1", true),
            (&["10.0.0.1"], "10.0.0.1", true),
            (&["10.0.0.1"], "10.0.0.2", false),
            (&["10.0.0.1", "10.0.0.2"], "10.0.0.2", true),
            (&["!10.0.0.1"], "10.0.0.1", false),
            (&["!10.0.0.1"], "10.0.0.2", true),
            (&["!10.0.0.1", "!10.0.0.2"], "10.0.0.2", false),
            (&["!10.0.0.1", "!10.0.0.2"], "10.0.0.3", true),
            (&["10.*", "!10.0.0.1"], "10.0.0.1", false),
            (&["10.*", "!10.0.0.1"], "10.0.0.7", true),
            (&["10.*", "!10.0.0.1"], "11.0.0.7", false),
            (&["FE80::*"], "fe80::1", true),
        ] {
            assert_eq!(
                filter(patterns).allows(portal),
                allowed,
                "{patterns:?} {portal}"
            );
        }
    }

    #[test]
    fn patterns_are_kept_once() {
        let mut f = PortalFilter::default();
        assert_eq!(f.add(""), Err(code::EINVAL));
        assert_eq!(f.add("10.*"), Ok(()));
        assert_eq!(f.add("10.*"), Err(code::EEXIST));
        assert_eq!(f.replace("11.*", "12.*"), Err(code::ENOENT));
        assert_eq!(f.replace("10.*", "12.*"), Ok(()));
        assert_eq!(f.patterns(), ["12.*"]);
        assert_eq!(f.remove("10.*"), Err(code::ENOENT));
        assert_eq!(f.remove("12.*"), Ok(()));
        assert!(f.patterns().is_empty());
    }

    #[test]
    fn redirections_are_read_and_shown() {
        for (text, shown) in [
            ("10.9.9.9:3260 temp", "10.9.9.9 temp"),
            ("10.9.9.9 PERM", "10.9.9.9 perm"),
            ("10.9.9.9:99 perm", "10.9.9.9:99 perm"),
            ("[2001:db8::1] temp", "[2001:db8::1] temp"),
            ("[2001:db8::1]:1 temp", "[2001:db8::1]:1 temp"),
            ("2001:db8::1 temp", "[2001:db8::1] temp"),
        ] {
            let parsed: Result<Redirection> = text.parse();
            assert_eq!(
                parsed.map(|r| r.to_string()).as_deref(),
                Ok(shown),
                "{text}"
            );
        }
        for bad in [
            "10.9.9.9",
            "host temp",
            "10.9.9.9:0 temp",
            "10.9.9.9:x temp",
            "10.9.9.9 now",
            "1.2.3.4 temp x",
        ] {
            assert_eq!(bad.parse::<Redirection>(), Err(code::EINVAL), "{bad}");
        }
    }

    #[test]
    fn nobody_is_redirected_to_where_it_is() {
        let to: Redirection = "127.0.0.1:4000 temp"
            .parse()
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(to.of(&([127, 0, 0, 1], 3260).into()), None);
        let redirect = to.of(&([127, 0, 0, 2], 3260).into());
        assert_eq!(
            redirect.map(|r| r.address).as_deref(),
            Some("127.0.0.1:4000")
        );
    }

    #[test]
    fn address_lists() {
        assert_eq!(parse_addresses(""), Ok(vec![]));
        assert_eq!(parse_addresses("127.0.0.1 ::1").map(|a| a.len()), Ok(2));
        assert_eq!(parse_addresses("127.0.0.1 x"), Err(code::EINVAL));
    }
}
