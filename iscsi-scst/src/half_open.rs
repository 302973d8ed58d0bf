//! Connections that are not in full feature phase: logins and discovery sessions.
//!
//! Whoever reaches the port can open them without a name or a secret, so that their number is limited, and a flood of
//! them must not keep others out: where there is no room, the *oldest* makes way for the newest, and it is one of the
//! address that has the most. An honest login is done long before it has become the oldest.
//!
//! C source: `incoming` of `iscsi-scst/usr/iscsi_scstd.c`, which refuses the newest

use crate::login::{MAX_HALF_OPEN_LOGINS, MAX_HALF_OPEN_PER_PEER};
use core::net::{IpAddr, SocketAddr};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Who counts as one peer: an IPv4 address, or an IPv6 network of 64 bits, of which a host may take any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Peer {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Peer {
    fn of(addr: &SocketAddr) -> Self {
        match addr.ip() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// The half-open connections, oldest first for each peer. `C`: a connection.
#[derive(Debug)]
pub(crate) struct HalfOpen<C> {
    peers: HashMap<Peer, VecDeque<Arc<C>>>,
    len: usize,
}

impl<C> Default for HalfOpen<C> {
    fn default() -> Self {
        Self {
            peers: HashMap::new(),
            len: 0,
        }
    }
}

impl<C> HalfOpen<C> {
    /// Adds a connection. Answers the one that has to make way for it, which counts no longer.
    pub(crate) fn add(&mut self, peer: &SocketAddr, conn: Arc<C>) -> Option<Arc<C>> {
        let peer = Peer::of(peer);
        let own = self.peers.get(&peer).map_or(0, VecDeque::len);
        let from = if own >= MAX_HALF_OPEN_PER_PEER {
            Some(peer)
        } else if self.len >= MAX_HALF_OPEN_LOGINS {
            let most = self.peers.iter().max_by_key(|(_, conns)| conns.len());
            most.map(|(peer, _)| *peer)
        } else {
            None
        };
        let out = from.and_then(|from| self.take_oldest(from));
        self.peers.entry(peer).or_default().push_back(conn);
        self.len = self.len.saturating_add(1);
        out
    }

    fn take_oldest(&mut self, peer: Peer) -> Option<Arc<C>> {
        let oldest = self.peers.get_mut(&peer)?.pop_front()?;
        self.len = self.len.saturating_sub(1);
        Some(oldest)
    }

    /// A connection is closed, or in full feature phase; it may have been made to go before.
    pub(crate) fn remove(&mut self, peer: &SocketAddr, conn: &Arc<C>) {
        let peer = Peer::of(peer);
        let Some(conns) = self.peers.get_mut(&peer) else {
            return;
        };
        if let Some(at) = conns.iter().position(|c| Arc::ptr_eq(c, conn)) {
            conns.remove(at);
            self.len = self.len.saturating_sub(1);
        }
        if conns.is_empty() {
            self.peers.remove(&peer);
        }
    }

    /// How many there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap_or_else(|e| panic!("{e}")), 1000)
    }

    #[test]
    fn the_oldest_of_a_crowded_peer_makes_way() {
        let mut half_open = HalfOpen::default();
        let (crowd, other) = (addr("192.0.2.1"), addr("192.0.2.2"));
        let conns: Vec<_> = (0..MAX_HALF_OPEN_PER_PEER).map(Arc::new).collect();
        assert!(half_open.add(&other, Arc::new(usize::MAX)).is_none());
        for conn in &conns {
            assert!(half_open.add(&crowd, Arc::clone(conn)).is_none());
        }
        let newest = Arc::new(1_000_000);
        assert_eq!(
            half_open.add(&crowd, Arc::clone(&newest)).as_deref(),
            Some(&0)
        );
        assert_eq!(half_open.len(), MAX_HALF_OPEN_PER_PEER + 1);
        half_open.remove(&crowd, &conns[0]);
        assert_eq!(
            half_open.len(),
            MAX_HALF_OPEN_PER_PEER + 1,
            "it went before"
        );
        half_open.remove(&crowd, &newest);
        assert!(
            half_open.add(&crowd, newest).is_none(),
            "there is room again"
        );
    }

    #[test]
    fn a_full_house_takes_from_the_peer_that_has_most() {
        let mut half_open = HalfOpen::default();
        let mut n = 0;
        let mut add = |half_open: &mut HalfOpen<usize>, from: &SocketAddr| {
            n += 1;
            half_open.add(from, Arc::new(n))
        };
        let crowd = addr("2001:db8::1");
        for _ in 0..MAX_HALF_OPEN_PER_PEER {
            assert!(add(&mut half_open, &crowd).is_none());
        }
        // Each alone is modest.
        let mut host = 0u32;
        while half_open.len() < MAX_HALF_OPEN_LOGINS {
            host += 1;
            let from = SocketAddr::new(IpAddr::from(host.to_be_bytes()), 1);
            assert!(add(&mut half_open, &from).is_none());
        }
        let out = add(&mut half_open, &addr("198.51.100.1"));
        assert_eq!(out.as_deref(), Some(&1), "the oldest of the crowd");
        assert_eq!(half_open.len(), MAX_HALF_OPEN_LOGINS);
    }

    #[test]
    fn an_ipv6_network_is_one_peer() {
        assert_eq!(
            Peer::of(&addr("2001:db8::1")),
            Peer::of(&addr("2001:db8::ffff"))
        );
        assert_ne!(
            Peer::of(&addr("2001:db8::1")),
            Peer::of(&addr("2001:db8:0:1::1"))
        );
        assert_ne!(Peer::of(&addr("192.0.2.1")), Peer::of(&addr("192.0.2.2")));
    }

    #[test]
    fn nothing_is_kept_of_peers_that_are_gone() {
        let mut half_open = HalfOpen::default();
        let conn = Arc::new(1);
        for host in 0..100u32 {
            let from = SocketAddr::new(IpAddr::from(host.to_be_bytes()), 1);
            assert!(half_open.add(&from, Arc::clone(&conn)).is_none());
            half_open.remove(&from, &conn);
        }
        assert_eq!((half_open.len(), half_open.peers.len()), (0, 0));
    }
}
