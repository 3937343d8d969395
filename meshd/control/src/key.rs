//! Our words for libp2p's: node keys and PeerIds, socket addresses and multiaddresses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use libp2p::identity::{Keypair, PublicKey, ed25519};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use vdc::Key;

/// Multihash code of the identity function: an Ed25519 PeerId carries the key itself, not its hash.
const MULTIHASH_IDENTITY: u64 = 0;

/// What carries a control link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// QUIC over UDP: preferred.
    Quic,
    /// TCP with Noise and yamux, for networks that drop UDP.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        })
    }
}

pub(crate) fn keypair(mut seed: [u8; 32]) -> Keypair {
    Keypair::ed25519_from_bytes(&mut seed).expect("every 32-byte string is an Ed25519 seed (RFC 8032 §5.1.5)")
}

/// The PeerId of a node, unless its key is no point on the curve.
pub(crate) fn peer_id(node: &Key) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&node.0).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// The node behind a PeerId, unless it is no Ed25519 key.
pub(crate) fn node(peer: &PeerId) -> Option<Key> {
    let hash = peer.as_ref();
    if hash.code() != MULTIHASH_IDENTITY {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?.try_into_ed25519().ok()?;
    Some(Key(key.to_bytes()))
}

pub(crate) fn multiaddr(address: SocketAddr, transport: Transport) -> Multiaddr {
    let base = Multiaddr::from(address.ip());
    match transport {
        Transport::Quic => base.with(Protocol::Udp(address.port())).with(Protocol::QuicV1),
        Transport::Tcp => base.with(Protocol::Tcp(address.port())),
    }
}

/// Address and transport of a multiaddress of ours; a trailing PeerId is ignored.
pub(crate) fn socket_address(address: &Multiaddr) -> Option<(SocketAddr, Transport)> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(v4) => IpAddr::V4(v4),
        Protocol::Ip6(v6) => IpAddr::V6(v6),
        _ => return None,
    };
    let (port, transport) = match parts.next()? {
        Protocol::Udp(port) => match parts.next()? {
            Protocol::QuicV1 => (port, Transport::Quic),
            _ => return None,
        },
        Protocol::Tcp(port) => (port, Transport::Tcp),
        _ => return None,
    };
    match parts.next() {
        None | Some(Protocol::P2p(_)) => Some((SocketAddr::new(ip, port), transport)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_keys_are_peer_ids() {
        let signing = vdc::SigningKey::from_seed(&[7; 32]);
        let peer = keypair([7; 32]).public().to_peer_id();
        assert_eq!(node(&peer), Some(signing.public()));
        assert_eq!(peer_id(&signing.public()), Some(peer));
        assert_ne!(node(&keypair([8; 32]).public().to_peer_id()), Some(signing.public()));
        // A PeerId that is a hash names a key that is no Ed25519 key.
        let hashed = libp2p::multihash::Multihash::wrap(0x12, &[3; 32]).expect("32 bytes fit");
        let hashed = PeerId::from_multihash(hashed).expect("a SHA-256 PeerId");
        assert_eq!(node(&hashed), None);
    }

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["192.0.2.1:4242", "[2001:db8::1]:4242"] {
            let address: SocketAddr = text.parse().expect("a literal");
            for transport in [Transport::Quic, Transport::Tcp] {
                let multi = multiaddr(address, transport);
                assert_eq!(socket_address(&multi), Some((address, transport)));
                let peer = keypair([1; 32]).public().to_peer_id();
                assert_eq!(socket_address(&multi.with(Protocol::P2p(peer))), Some((address, transport)));
            }
        }
        for foreign in ["/dns4/example.org/tcp/1", "/ip4/192.0.2.1/udp/1", "/ip4/192.0.2.1/tcp/1/ws"] {
            assert_eq!(socket_address(&foreign.parse().expect("a literal")), None, "{foreign}");
        }
    }
}
