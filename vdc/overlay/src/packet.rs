//! IP packets of the overlay: just enough parsing to know between whom they go, and the few packets that the overlay
//! makes itself (unreachable messages and probes).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Between whom a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IPv4 protocol, or the first IPv6 next header. Never read further: an unknown header has no ports.
    pub protocol: u8,
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
const ICMPV6: u8 = 58;
const ICMP: u8 = 1;

/// Reads a packet's addresses and protocol, and checks its length.
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
    Ok(Parsed { source: address(12), destination: address(16), protocol: header[9] })
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
    Ok(Parsed { source: address(8), destination: address(24), protocol: header[6] })
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

/// "No route to that destination" for a packet of our own host (RFC 4443 §3.1 code 3, RFC 792 code 1), from `router`.
/// None for packets that must not be answered: ICMP errors, and what has no address to answer to.
#[must_use]
pub fn unreachable(packet: &[u8], router: Ipv6Addr) -> Option<Vec<u8>> {
    let parsed = parse(packet).ok()?;
    match (parsed.source, parsed.destination) {
        (IpAddr::V6(source), _) => {
            if source.is_multicast() || source.is_unspecified() {
                return None;
            }
            // Never about an ICMPv6 error message (types below 128).
            if parsed.protocol == ICMPV6 && packet.get(40).is_none_or(|kind| *kind < 128) {
                return None;
            }
            let mut body = vec![1, 3, 0, 0, 0, 0, 0, 0];
            body.extend(&packet[..packet.len().min(1_232)]); // 1,280 bytes in all
            Some(icmpv6(router, source, &body))
        }
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            if parsed.protocol == ICMP {
                let header = usize::from(packet[0] & 0x0f) * 4;
                if packet.get(header).is_none_or(|kind| !matches!(kind, 0 | 8)) {
                    return None;
                }
            }
            // The node has no router address in IPv4: the unreachable host's own address answers, as a proxy would.
            let quoted = &packet[..packet.len().min(548)]; // 576 bytes in all
            let mut body = vec![3, 1, 0, 0, 0, 0, 0, 0];
            body.extend(quoted);
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

/// First bytes of a probe's payload.
const PROBE_MAGIC: [u8; 8] = *b"meshprb1";

/// A measuring packet: an ICMPv6 echo between two infra addresses, inside the tunnel and therefore authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub reply: bool,
    /// Which question this is, or answers.
    pub token: u64,
}

impl Probe {
    #[must_use]
    pub fn encode(self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut body = vec![if self.reply { 129 } else { 128 }, 0, 0, 0, 0, 0, 0, 0];
        body.extend(PROBE_MAGIC);
        body.extend(self.token.to_be_bytes());
        icmpv6(source, destination, &body)
    }

    /// Recognises a probe. The tunnel vouches for its sender, so no checksum is needed.
    #[must_use]
    pub fn decode(packet: &[u8]) -> Option<Self> {
        parse(packet).ok()?;
        if packet.len() != IPV6_HEADER_BYTES + 24 || packet[6] != ICMPV6 || packet[0] >> 4 != 6 {
            return None;
        }
        let body = &packet[IPV6_HEADER_BYTES..];
        let reply = match body[0] {
            128 => false,
            129 => true,
            _ => return None,
        };
        let token = u64::from_be_bytes(body[16..24].try_into().ok()?);
        (body[8..16] == PROBE_MAGIC).then_some(Self { reply, token })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse(&bytes);
            let _ = unreachable(&bytes, Ipv6Addr::LOCALHOST);
            let _ = Probe::decode(&bytes);
        }

        #[test]
        fn probes_round_trip(reply: bool, token: u64) {
            let (a, b) = ("fd00::1:0:0".parse().expect("valid"), "fd00::2:0:0".parse().expect("valid"));
            let packet = Probe { reply, token }.encode(a, b);
            prop_assert_eq!(Probe::decode(&packet), Some(Probe { reply, token }));
            let parsed = parse(&packet).expect("a packet");
            prop_assert_eq!((parsed.source, parsed.destination), (IpAddr::V6(a), IpAddr::V6(b)));
        }
    }

    #[test]
    fn unreachable_messages_are_packets_with_good_checksums_and_no_answer_to_errors() {
        let mut v4 = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        v4.extend([0; 8]);
        let reply = unreachable(&v4, Ipv6Addr::LOCALHOST).expect("answered");
        let parsed = parse(&reply).expect("a packet");
        assert_eq!(parsed.destination, "10.0.0.1".parse::<IpAddr>().expect("valid"));
        assert_eq!(checksum(&[&reply[..20]]), 0);
        assert_eq!(checksum(&[&reply[20..]]), 0);
        assert_eq!(unreachable(&reply, Ipv6Addr::LOCALHOST), None, "no error about an error");
        let probe = Probe { reply: false, token: 1 }.encode(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        let reply = unreachable(&probe, Ipv6Addr::LOCALHOST).expect("answered");
        assert!(parse(&reply).is_ok());
        assert_eq!(unreachable(&reply, Ipv6Addr::LOCALHOST), None, "no error about an error");
    }

    #[test]
    fn length_must_agree() {
        assert_eq!(parse(&[]), Err(PacketError::Truncated));
        assert_eq!(parse(&[0x45; 10]), Err(PacketError::Truncated));
        assert_eq!(parse(&[0x10; 40]), Err(PacketError::Version));
        let mut v6 = vec![0; 41];
        v6[0] = 0x60;
        assert_eq!(parse(&v6), Err(PacketError::Length));
    }
}
