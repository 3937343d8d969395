//! Ways to a peer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A way to a peer: which of our sockets, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathAddress {
    /// 0 is the main socket; spare ones are for punching.
    pub socket: u8,
    pub remote: SocketAddr,
}

impl PathAddress {
    /// Over the main socket.
    #[must_use]
    pub fn main(remote: SocketAddr) -> Self {
        Self { socket: 0, remote }
    }
}

/// How good a kind of path is before anything is measured; lower is better, and a better tier beats any RTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// An address of a network that we are in too.
    Lan,
    /// An address that the peer names as its own, over routers.
    Host,
    /// An address that the peer does not name: as a router's mapping shows it.
    Reflexive,
    /// Through another member.
    Relayed,
}

/// Where a candidate was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The peer said so over a control link.
    Asked,
    /// An authentic packet came from there.
    Observed,
    /// It was in use before a restart, or when the tunnel was last open.
    LastSeen,
}

/// One place where a peer may be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub address: PathAddress,
    pub tier: Tier,
    pub source: Source,
    /// From the newest probe or handshake over it.
    pub rtt: Option<Duration>,
}

/// The networks that this host is in, to tell which candidates are on its LAN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalNetworks(pub(crate) Vec<(IpAddr, u8)>);

impl LocalNetworks {
    pub(crate) fn tier(&self, remote: SocketAddr, source: Source) -> Tier {
        if self.0.iter().any(|(network, length)| same_network(remote.ip(), *network, *length)) {
            return Tier::Lan;
        }
        match source {
            Source::Asked => Tier::Host,
            Source::Observed | Source::LastSeen => Tier::Reflexive,
        }
    }

    pub(crate) fn candidate(&self, address: PathAddress, source: Source) -> Candidate {
        Candidate { address, tier: self.tier(address.remote, source), source, rtt: None }
    }
}

fn same_network(a: IpAddr, b: IpAddr, length: u8) -> bool {
    let (a, b, width) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    let host_bits = width - u32::from(length).min(width);
    host_bits >= 128 || a >> host_bits == b >> host_bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tier_follows_from_networks_and_source() {
        let networks = LocalNetworks(vec![
            ("192.168.1.7".parse().expect("valid"), 24),
            ("2001:db8::7".parse().expect("valid"), 64),
        ]);
        for (remote, source, tier) in [
            ("192.168.1.9:1", Source::Observed, Tier::Lan),
            ("192.168.2.9:1", Source::Asked, Tier::Host),
            ("192.168.2.9:1", Source::Observed, Tier::Reflexive),
            ("[2001:db8::9]:1", Source::LastSeen, Tier::Lan),
            ("[2001:db8:0:1::9]:1", Source::LastSeen, Tier::Reflexive),
        ] {
            assert_eq!(networks.tier(remote.parse().expect("valid"), source), tier, "{remote} {source:?}");
        }
        assert!(same_network("10.0.0.1".parse().expect("valid"), "11.0.0.1".parse().expect("valid"), 0));
        assert!(!same_network("10.0.0.1".parse().expect("valid"), "::1".parse().expect("valid"), 0));
    }
}
