//! What logins ask, answered by the driver's configuration.
//!
//! C source: `login_start` and `on_internal_portal` of `iscsi-scst/usr/iscsid.c`, `target_list_build` of
//! `iscsi-scst/usr/target.c`

use crate::accounts::Accounts;
use crate::driver::IscsiDriver;
use crate::login::auth::Authenticator;
use crate::login::{DiscoveredTarget, LoginEnv, ServiceState, SessionState, TargetInfo};
use crate::pdu::{Cid, Isid};
use crate::portal::{is_link_local, is_loopback};
use crate::target::IscsiTarget;
use kshim::net::interface_addrs;
use kshim::pr_err_ratelimited;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The surroundings of one login: the driver, and the portal that the initiator came by.
pub(crate) struct Env<'a> {
    driver: &'a IscsiDriver,
    local: SocketAddr,
}

impl<'a> Env<'a> {
    pub(crate) fn new(driver: &'a IscsiDriver, local: SocketAddr) -> Self {
        Self { driver, local }
    }

    /// The accounts of a target, or of discovery.
    fn accounts(&self, target: Option<&Arc<IscsiTarget>>) -> Arc<Accounts> {
        match target {
            Some(target) => target.accounts(),
            None => self.driver.discovery_accounts(),
        }
    }

    /// Where the server can be reached from where this initiator is.
    fn all_portals(&self) -> Vec<SocketAddr> {
        let addrs = || {
            interface_addrs().unwrap_or_else(|e| {
                pr_err_ratelimited!("The host's addresses cannot be listed: {e}");
                Vec::new()
            })
        };
        let link_local = self.driver.link_local();
        portals_for(self.local, &self.driver.portals(), addrs, link_local)
    }

    fn is_visible(&self, target: &IscsiTarget, initiator: &str) -> bool {
        target.tgt().enabled.load(Ordering::Acquire) && self.may_use(target, initiator)
    }

    fn may_use(&self, target: &IscsiTarget, initiator: &str) -> bool {
        target.allows(&self.local, initiator) && self.driver.isns_allows(target, initiator)
    }
}

impl LoginEnv for Env<'_> {
    type Target = Arc<IscsiTarget>;

    fn service(&self) -> ServiceState {
        if self.driver.is_stopping() {
            ServiceState::Suspended
        } else if self.driver.is_enabled() {
            ServiceState::Up
        } else {
            ServiceState::Disabled
        }
    }

    fn find_target(&self, name: &str, initiator: &str) -> Option<TargetInfo<Self::Target>> {
        let target = self
            .driver
            .targets()
            .into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(name))?;
        let max = usize::try_from(target.params().max_sessions).unwrap_or(usize::MAX);
        Some(TargetInfo {
            enabled: target.tgt().enabled.load(Ordering::Acquire),
            allowed: self.may_use(&target, initiator),
            redirect: target.redirect().and_then(|to| to.of(&self.local)),
            alias: target.alias(),
            params: target.keys(),
            is_full: max != 0 && target.session_count() >= max,
            target,
        })
    }

    fn session_state(
        &self,
        target: &Self::Target,
        initiator: &str,
        isid: Isid,
        cid: Cid,
    ) -> SessionState {
        match target.find_session(initiator, isid, cid) {
            None => SessionState::None,
            Some((tsih, has_connection)) => SessionState::Exists {
                tsih,
                has_connection,
            },
        }
    }

    fn requires_auth(&self, target: Option<&Self::Target>) -> bool {
        self.accounts(target).requires_auth()
    }

    fn is_internal_portal(&self) -> bool {
        self.driver.internal_portals().contains(&self.local.ip())
    }

    fn start_chap(
        &self,
        target: Option<&Self::Target>,
        _initiator: &str,
    ) -> Option<Box<dyn Authenticator>> {
        let chap = self.accounts(target).start_chap();
        let chap = chap.inspect_err(|e| pr_err_ratelimited!("No randomness for CHAP: {e}"));
        Some(Box::new(chap.ok()?))
    }

    fn list_targets(&self, name: Option<&str>, initiator: &str) -> Vec<DiscoveredTarget> {
        let all = self.all_portals();
        let targets = self.driver.targets();
        let wanted = targets
            .iter()
            .filter(|t| name.is_none_or(|n| n == t.name()) && self.is_visible(t, initiator));
        let list = |t: &Arc<IscsiTarget>| DiscoveredTarget {
            name: t.name().to_owned(),
            portals: (all.iter().copied())
                .filter(|p| *p == self.local || t.allows(p, initiator))
                .collect(),
        };
        wanted.map(list).collect()
    }
}

/// What an initiator that came by `local` is told: that portal, then the others of the same family, a wildcard portal at
/// each address of the host (`addrs`). `link_local`: IPv6 addresses of one link are told.
#[doc(alias = "target_list_build")]
fn portals_for(
    local: SocketAddr,
    portals: &[SocketAddr],
    addrs: impl Fn() -> Vec<IpAddr>,
    link_local: bool,
) -> Vec<SocketAddr> {
    let mut told = vec![local];
    let mut add = |portal: SocketAddr| {
        if !told.contains(&portal) {
            told.push(portal);
        }
    };
    let same_family = |a: &IpAddr| a.is_ipv4() == local.is_ipv4();
    for portal in portals {
        let ip = portal.ip();
        if !same_family(&ip) {
            continue;
        }
        if !ip.is_unspecified() {
            // DIFFERS: SCST never lists the loopback address. Who came by it is on this host.
            if !is_loopback(&ip) || is_loopback(&local.ip()) {
                add(*portal);
            }
            continue;
        }
        for addr in addrs() {
            if same_family(&addr) && !is_loopback(&addr) {
                add(SocketAddr::new(addr, portal.port()));
            }
        }
    }
    if !link_local {
        told.retain(|p| !is_link_local(&p.ip()));
    }
    told
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may fail loudly")]
mod tests {
    use super::*;

    fn told(local: &str, portals: &[&str], link_local: bool) -> Vec<String> {
        let portals: Vec<SocketAddr> = portals.iter().map(|p| p.parse().unwrap()).collect();
        let addrs = ["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1", "fe80::1"];
        let addrs = || addrs.map(|a| a.parse().unwrap()).to_vec();
        let told = portals_for(local.parse().unwrap(), &portals, addrs, link_local);
        told.iter().map(SocketAddr::to_string).collect()
    }

    #[test]
    fn a_wildcard_is_told_as_the_addresses_of_its_family() {
        let all = ["0.0.0.0:3260", "[::]:3260"];
        assert_eq!(told("192.0.2.1:3260", &all, true), ["192.0.2.1:3260"]);
        assert_eq!(
            told("[2001:db8::1]:3260", &all, true),
            ["[2001:db8::1]:3260", "[fe80::1]:3260"]
        );
        assert_eq!(
            told("127.0.0.1:3260", &all, true),
            ["127.0.0.1:3260", "192.0.2.1:3260"]
        );
    }

    #[test]
    fn link_local_addresses_are_left_out_where_that_is_wanted() {
        let all = ["[::]:3260", "[fe80::2]:3261"];
        assert_eq!(
            told("[2001:db8::1]:3260", &all, false),
            ["[2001:db8::1]:3260"]
        );
        assert_eq!(
            told("[fe80::1]:3260", &all, false),
            ["[2001:db8::1]:3260"],
            "also the one by which it came"
        );
        assert_eq!(
            told("[fe80::1]:3260", &all, true),
            ["[fe80::1]:3260", "[2001:db8::1]:3260", "[fe80::2]:3261"]
        );
        let v4 = ["169.254.1.1:3260"];
        assert_eq!(told("169.254.1.1:3260", &v4, false), v4, "IPv6 only");
    }

    #[test]
    fn loopback_portals_are_for_who_is_there() {
        let both = ["127.0.0.1:3261", "192.0.2.1:3260"];
        assert_eq!(told("192.0.2.1:3260", &both, true), ["192.0.2.1:3260"]);
        assert_eq!(
            told("127.0.0.1:3261", &both, true),
            ["127.0.0.1:3261", "192.0.2.1:3260"]
        );
    }
}
