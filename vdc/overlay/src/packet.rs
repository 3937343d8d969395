//! IP packets of the overlay: just enough parsing to know between whom they go, and the few packets that the overlay
//! makes itself (unreachable messages and probes).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Between whom a packet goes, and what it says that it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// What follows the addresses: the IPv4 protocol, or in IPv6 the first header that is no known extension.
    pub protocol: u8,
    pub transport: Transport,
}

/// The first bytes of what a packet carries, if they can be read for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        source: u16,
        destination: u16,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp {
        kind: u8,
        code: u8,
    },
    /// A fragment after the first: what it carries stands in another packet.
    Fragment,
    /// An unknown or cut header: nothing in it is ever taken for ports.
    Unknown,
}

/// Why bytes are no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("shorter than its header")]
    Truncated,
    #[error("neither IPv4 nor IPv6")]
    Version,
    #[error("its header contradicts its length")]
    Length,
}

const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Extension headers that are followed (RFC 8200 §4, RFC 4302); anything else ends the search.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers looked at: RFC 8200 §4.1 has each once, destination options twice.
const EXTENSIONS_MAX: usize = 6;

/// Reads a packet's addresses and what it carries, and checks its length.
///
/// # Errors
/// [`PacketError`] if the bytes are not exactly one IP packet.
pub fn parse(packet: &[u8]) -> Result<Parsed, PacketError> {
    match packet.first().ok_or(PacketError::Truncated)? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => Err(PacketError::Version),
    }
}

fn parse_v4(packet: &[u8]) -> Result<Parsed, PacketError> {
    let header = packet.first_chunk::<IPV4_HEADER_BYTES>().ok_or(PacketError::Truncated)?;
    let header_bytes = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_bytes < IPV4_HEADER_BYTES || total < header_bytes || total != packet.len() {
        return Err(PacketError::Length);
    }
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
    let protocol = header[9];
    let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let transport = match (offset, protocol) {
        (1.., _) => Transport::Fragment,
        (0, ICMPV6) => Transport::Unknown,
        (0, _) => transport(protocol, &packet[header_bytes..]),
    };
    Ok(Parsed { source: address(12), destination: address(16), protocol, transport })
}

fn parse_v6(packet: &[u8]) -> Result<Parsed, PacketError> {
    let header = packet.first_chunk::<IPV6_HEADER_BYTES>().ok_or(PacketError::Truncated)?;
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if payload + IPV6_HEADER_BYTES != packet.len() {
        return Err(PacketError::Length);
    }
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().expect("16 bytes of a 40-byte header");
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let (protocol, transport) = skip_extensions(header[6], &packet[IPV6_HEADER_BYTES..]);
    Ok(Parsed { source: address(8), destination: address(24), protocol, transport })
}

/// Follows the extension headers to what the packet carries.
fn skip_extensions(mut next: u8, mut rest: &[u8]) -> (u8, Transport) {
    for _ in 0..=EXTENSIONS_MAX {
        let bytes = match (next, rest) {
            (FRAGMENT, [_, _, high, low, ..]) if u16::from_be_bytes([*high, *low]) >> 3 != 0 => {
                return (rest[0], Transport::Fragment);
            }
            (FRAGMENT, [_, _, _, _, _, _, _, _, ..]) => 8,
            (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS, [_, length, ..]) => (usize::from(*length) + 1) * 8,
            // Counted in words of 4 bytes, less 2 (RFC 4302 §2.2).
            (AUTHENTICATION, [_, length, ..]) => (usize::from(*length) + 2) * 4,
            (FRAGMENT | HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | ICMP, _) => break,
            _ => return (next, transport(next, rest)),
        };
        let Some(after) = rest.get(bytes..) else { break };
        (next, rest) = (rest[0], after);
    }
    (next, Transport::Unknown)
}

fn transport(protocol: u8, bytes: &[u8]) -> Transport {
    let ports = |bytes: &[u8; 4]| (u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]]));
    match (protocol, bytes.first_chunk::<4>()) {
        (TCP, Some(head)) => {
            let (source, destination) = ports(head);
            Transport::Tcp { source, destination }
        }
        (UDP, Some(head)) => {
            let (source, destination) = ports(head);
            Transport::Udp { source, destination }
        }
        (ICMP | ICMPV6, Some(head)) => Transport::Icmp { kind: head[0], code: head[1] },
        _ => Transport::Unknown,
    }
}

/// The internet checksum (RFC 1071) over parts of even length, except the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = parts.iter().flat_map(|part| part.chunks(2)).map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

fn icmpv6(source: Ipv6Addr, destination: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("bodies here are shorter than 1,240 bytes");
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([ICMPV6, 255]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(body);
    let pseudo = [0, 0, length.to_be_bytes()[0], length.to_be_bytes()[1], 0, 0, 0, ICMPV6];
    let sum = checksum(&[&packet[8..40], &pseudo, body]);
    packet[42..44].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// "Nobody is there" for a packet of our own host (RFC 4443 §3.1 code 3, RFC 792 code 1). In IPv6 it comes from `router`;
/// in IPv4 from the unreachable address itself, since a node has no router address there.
///
/// None for packets that must not be answered (RFC 4443 §2.4, RFC 1122 §3.2.2): ICMP errors, fragments after the first,
/// and what has no single sender or receiver.
#[must_use]
pub fn unreachable(packet: &[u8], router: Ipv6Addr) -> Option<Vec<u8>> {
    let parsed = parse(packet).ok()?;
    let silent = match (parsed.transport, parsed.source) {
        (Transport::Fragment, _) => true,
        // ICMPv6 errors have types below 128; in ICMP only echoes are safe to answer.
        (Transport::Icmp { kind, .. }, IpAddr::V6(_)) => kind < 128,
        (Transport::Icmp { kind, .. }, IpAddr::V4(_)) => !matches!(kind, 0 | 8),
        (Transport::Unknown, _) => matches!(parsed.protocol, ICMP | ICMPV6),
        (Transport::Tcp { .. } | Transport::Udp { .. }, _) => false,
    };
    if silent || !is_one_host(parsed.source) || !is_one_host(parsed.destination) {
        return None;
    }
    match (parsed.source, parsed.destination) {
        (IpAddr::V6(source), _) => {
            let mut body = vec![1, 3, 0, 0, 0, 0, 0, 0];
            body.extend(&packet[..packet.len().min(1_232)]); // 1,280 bytes in all
            Some(icmpv6(router, source, &body))
        }
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut body = vec![3, 1, 0, 0, 0, 0, 0, 0];
            body.extend(&packet[..packet.len().min(548)]); // 576 bytes in all
            let sum = checksum(&[&body]);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            let total = u16::try_from(IPV4_HEADER_BYTES + body.len()).expect("at most 576 bytes");
            let mut reply = vec![0x45, 0];
            reply.extend(total.to_be_bytes());
            reply.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
            reply.extend(destination.octets());
            reply.extend(source.octets());
            let sum = checksum(&[&reply]);
            reply[10..12].copy_from_slice(&sum.to_be_bytes());
            reply.extend(body);
            Some(reply)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) => None,
    }
}

fn is_one_host(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !address.is_multicast() && !address.is_unspecified() && !broadcast
}

/// First bytes of a probe's payload.
const PROBE_MAGIC: [u8; 8] = *b"meshprb1";
const PROBE_BYTES: usize = IPV6_HEADER_BYTES + 24;

/// A measuring packet: an ICMPv6 echo between two infra addresses, inside the tunnel and therefore authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub reply: bool,
    /// Whether the sender's data takes the path of this packet too: such a probe tells where the sender is, as data would.
    pub in_use: bool,
    /// Which question this is, or answers.
    pub token: u64,
}

impl Probe {
    #[must_use]
    pub fn encode(self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        // Type, code, checksum, identifier (1 for the path in use), sequence number.
        let mut body = vec![if self.reply { 129 } else { 128 }, 0, 0, 0, 0, u8::from(self.in_use), 0, 0];
        body.extend(PROBE_MAGIC);
        body.extend(self.token.to_be_bytes());
        icmpv6(source, destination, &body)
    }

    /// Recognises a probe. The tunnel vouches for its sender, so no checksum is needed.
    #[must_use]
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let (head, body) = packet.split_first_chunk::<IPV6_HEADER_BYTES>()?;
        let is_whole = packet.len() == PROBE_BYTES && usize::from(u16::from_be_bytes([head[4], head[5]])) == body.len();
        if !is_whole || head[0] >> 4 != 6 || head[6] != ICMPV6 || body[8..16] != PROBE_MAGIC {
            return None;
        }
        let reply = match body[0] {
            128 => false,
            129 => true,
            _ => return None,
        };
        let in_use = match body[4..8] {
            [0, 0, 0, 0] => false,
            [0, 1, 0, 0] => true,
            _ => return None,
        };
        Some(Self { reply, in_use, token: u64::from_be_bytes(body[16..24].try_into().ok()?) })
    }
}

#[cfg(test)]
mod tests;
