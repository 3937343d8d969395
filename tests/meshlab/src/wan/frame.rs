//! Frames: what a TUN with `IFF_VNET_HDR` reads and writes, a virtio header followed by an IP packet.
//!
//! The kernel hands over up to 64 KiB of one TCP or UDP flow as a single super-packet and leaves checksums unfinished;
//! the header says how. A frame that only passes through is copied as it is. What a real wire would treat packet by packet
//! (loss, pacing, fragmentation) cuts it first with [`Frame::segments`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length of `struct virtio_net_hdr`, the kernel's default for `IFF_VNET_HDR`.
pub(crate) const VNET_HEADER_LEN: usize = 10;
/// Largest frame that a TUN can hand over: the header and a full IPv6 packet.
pub(crate) const FRAME_LEN_MAX: usize = VNET_HEADER_LEN + 40 + 65_535;

const VNET_NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

pub(crate) const ICMP4: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP6: u8 = 58;

/// One frame, virtio header first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame(Vec<u8>);

/// What the WAN needs to know about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// Where the payload of the IP header begins.
    pub(crate) payload_at: usize,
    /// IPv6, or IPv4 with the bit set: nobody on the way may fragment it.
    pub(crate) dont_fragment: bool,
    /// IPv4 only: this is a part of a larger packet.
    pub(crate) is_fragment: bool,
}

/// How a frame looks on a wire: super-packets count as the packets they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WireSize {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) largest: usize,
}

impl Frame {
    /// A frame as read from a TUN; `None` when it is too short or longer than an IP packet can be.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() > VNET_HEADER_LEN && bytes.len() <= FRAME_LEN_MAX).then(|| Self(bytes.to_vec()))
    }

    /// A finished packet: no offloads, checksums complete.
    pub(crate) fn from_packet(packet: &[u8]) -> Self {
        let mut bytes = vec![0; VNET_HEADER_LEN];
        bytes.extend_from_slice(packet);
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The IP packet.
    pub(crate) fn packet(&self) -> &[u8] {
        &self.0[VNET_HEADER_LEN..]
    }

    fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.0[VNET_HEADER_LEN..]
    }

    fn gso_type(&self) -> u8 {
        self.0[1] & !GSO_ECN
    }

    /// The virtio header is in the machine's byte order.
    fn header_u16(&self, at: usize) -> usize {
        usize::from(u16::from_ne_bytes([self.0[at], self.0[at + 1]]))
    }

    fn gso_size(&self) -> usize {
        self.header_u16(4)
    }

    fn checksum_start(&self) -> usize {
        self.header_u16(6)
    }

    fn checksum_offset(&self) -> usize {
        self.header_u16(8)
    }

    fn needs_checksum(&self) -> bool {
        self.0[0] & VNET_NEEDS_CHECKSUM != 0
    }

    /// Offset of the first payload byte of a super-packet, or `None` for a plain packet or a header that makes no sense.
    fn gso_payload_at(&self) -> Option<usize> {
        if self.gso_type() == GSO_NONE || self.gso_size() == 0 || !self.needs_checksum() {
            return None;
        }
        let start = self.checksum_start();
        let transport_len = match self.gso_type() {
            GSO_TCP4 | GSO_TCP6 => usize::from(self.packet().get(start + 12)? >> 4).max(5) * 4,
            GSO_UDP => 8,
            _ => return None,
        };
        let at = start + transport_len;
        let is_after_ip = parse(self.packet())?.payload_at <= start;
        (is_after_ip && at < self.packet().len()).then_some(at)
    }

    pub(crate) fn wire_size(&self) -> WireSize {
        let len = self.packet().len();
        let Some(at) = self.gso_payload_at() else {
            return WireSize { packets: 1, bytes: len as u64, largest: len };
        };
        let payload = len - at;
        let packets = payload.div_ceil(self.gso_size());
        WireSize {
            packets: packets as u64,
            bytes: (payload + packets * at) as u64,
            largest: at + payload.min(self.gso_size()),
        }
    }

    /// The packets that a wire would carry: one frame each, checksums complete.
    pub(crate) fn segments(mut self) -> Vec<Self> {
        let (Some(at), Some(ip)) = (self.gso_payload_at(), parse(self.packet())) else {
            self.complete_checksum();
            return vec![self];
        };
        let (start, size, is_udp) = (self.checksum_start(), self.gso_size(), self.gso_type() == GSO_UDP);
        let (header, payload) = self.packet().split_at(at);
        let count = payload.len().div_ceil(size);
        payload
            .chunks(size)
            .enumerate()
            .map(|(index, chunk)| {
                let mut segment = Self::from_packet(header);
                segment.0.extend_from_slice(chunk);
                let packet = segment.packet_mut();
                write_ip_length(packet, index);
                if is_udp {
                    put_u16(packet, start + 4, packet.len() - start);
                } else {
                    advance_tcp(&mut packet[start..], index, index * size, index + 1 == count);
                }
                write_transport_checksum(packet, &ip, start, if is_udp { 6 } else { 16 });
                segment
            })
            .collect()
    }

    /// Finishes the checksum that the kernel left to the device.
    fn complete_checksum(&mut self) {
        if !self.needs_checksum() {
            return;
        }
        let (start, offset) = (self.checksum_start(), self.checksum_offset());
        let packet = self.packet_mut();
        if start + offset + 2 <= packet.len() {
            // The field holds the sum of the pseudo header, so summing it along is right.
            let sum = checksum(&[&packet[start..]]);
            put_u16(packet, start + offset, usize::from(if sum == 0 { 0xffff } else { sum }));
        }
        self.0[..VNET_HEADER_LEN].fill(0);
    }

    /// Cuts an IPv4 packet into fragments of at most `mtu` bytes, as a router does when the sender allows it.
    pub(crate) fn fragments(mut self, mtu: usize) -> Vec<Self> {
        self.complete_checksum();
        let packet = self.packet();
        let header_len = usize::from(packet[0] & 0x0f) * 4;
        let step = (mtu.saturating_sub(header_len) / 8 * 8).max(8);
        let (header, payload) = packet.split_at(header_len);
        let field = u16::from_be_bytes([header[6], header[7]]);
        let (offset, more) = (usize::from(field & 0x1fff), field & 0x2000 != 0);
        let count = payload.len().div_ceil(step);
        payload
            .chunks(step)
            .enumerate()
            .map(|(index, chunk)| {
                let mut fragment = Self::from_packet(header);
                fragment.0.extend_from_slice(chunk);
                let packet = fragment.packet_mut();
                let follows = more || index + 1 < count;
                put_u16(packet, 6, (offset + index * step / 8) | usize::from(follows) << 13);
                write_ip_length(packet, 0);
                fragment
            })
            .collect()
    }
}

/// Reads the IP header; `None` for anything that is not a whole IPv4 or IPv6 packet.
pub(crate) fn parse(packet: &[u8]) -> Option<Ip> {
    match packet.first()? >> 4 {
        4 => {
            let header_len = usize::from(packet[0] & 0x0f) * 4;
            if header_len < 20 || packet.len() < header_len {
                return None;
            }
            let field = u16::from_be_bytes([packet[6], packet[7]]);
            Some(Ip {
                source: ipv4_at(packet, 12).into(),
                destination: ipv4_at(packet, 16).into(),
                protocol: packet[9],
                payload_at: header_len,
                dont_fragment: field & 0x4000 != 0,
                is_fragment: field & 0x3fff != 0,
            })
        }
        6 if packet.len() >= 40 => Some(Ip {
            source: ipv6_at(packet, 8).into(),
            destination: ipv6_at(packet, 24).into(),
            protocol: packet[6],
            payload_at: 40,
            dont_fragment: true,
            is_fragment: false,
        }),
        _ => None,
    }
}

fn ipv4_at(packet: &[u8], at: usize) -> Ipv4Addr {
    let octets: [u8; 4] = packet[at..at + 4].try_into().expect("the caller checked the length");
    octets.into()
}

fn ipv6_at(packet: &[u8], at: usize) -> Ipv6Addr {
    let octets: [u8; 16] = packet[at..at + 16].try_into().expect("the caller checked the length");
    octets.into()
}

/// Writes the low 16 bits of `value`; every field that this module writes fits, or wraps as IP identifiers do.
fn put_u16(packet: &mut [u8], at: usize, value: usize) {
    let bytes = value.to_be_bytes();
    packet[at..at + 2].copy_from_slice(&bytes[bytes.len() - 2..]);
}

/// Sets the length of the IP header to the packet's, moves an IPv4 identifier on and renews the header checksum.
fn write_ip_length(packet: &mut [u8], identifier_step: usize) {
    let len = packet.len();
    if packet[0] >> 4 == 6 {
        put_u16(packet, 4, len - 40);
        return;
    }
    let header_len = usize::from(packet[0] & 0x0f) * 4;
    put_u16(packet, 2, len);
    let identifier = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    put_u16(packet, 4, identifier + identifier_step);
    put_u16(packet, 10, 0);
    let sum = checksum(&[&packet[..header_len]]);
    put_u16(packet, 10, usize::from(sum));
}

/// Makes a copied TCP header that of segment `index`, whose payload begins `offset` bytes after the first one's.
fn advance_tcp(tcp: &mut [u8], index: usize, offset: usize, is_last: bool) {
    const FIN: u8 = 0x01;
    const PSH: u8 = 0x08;
    const CWR: u8 = 0x80;
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let offset = u32::try_from(offset).expect("a super-packet has at most 64 KiB");
    tcp[4..8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
    if !is_last {
        tcp[13] &= !(FIN | PSH);
    }
    if index > 0 {
        tcp[13] &= !CWR;
    }
}

/// Computes the checksum of the transport header at `start` from scratch into its field at `offset`.
fn write_transport_checksum(packet: &mut [u8], ip: &Ip, start: usize, offset: usize) {
    put_u16(packet, start + offset, 0);
    let len = packet.len() - start;
    let protocol = if offset == 6 { UDP } else { TCP };
    let sum = pseudo_checksum(ip, protocol, &packet[start..len + start]);
    put_u16(packet, start + offset, usize::from(if sum == 0 { 0xffff } else { sum }));
}

/// The internet checksum of `payload` with the pseudo header of `ip`.
pub(crate) fn pseudo_checksum(ip: &Ip, protocol: u8, payload: &[u8]) -> u16 {
    let len = u32::try_from(payload.len()).expect("a packet has at most 64 KiB").to_be_bytes();
    let tail = [len[0], len[1], len[2], len[3], 0, 0, 0, protocol];
    match (ip.source, ip.destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => checksum(&[&s.octets(), &d.octets(), &tail, payload]),
        (IpAddr::V6(s), IpAddr::V6(d)) => checksum(&[&s.octets(), &d.octets(), &tail, payload]),
        _ => unreachable!("both addresses come from one header"),
    }
}

/// The internet checksum (RFC 1071) over the parts; all but the last have an even length.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        let mut words = part.chunks_exact(2);
        sum += words.by_ref().map(|w| u64::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u64>();
        if let [odd] = words.remainder() {
            sum += u64::from(*odd) << 8;
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// A whole packet around `payload`, whose own checksum is complete.
pub(crate) fn ip_packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(40 + payload.len());
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            packet.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend_from_slice(&s.octets());
            packet.extend_from_slice(&d.octets());
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            packet.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, 64]);
            packet.extend_from_slice(&s.octets());
            packet.extend_from_slice(&d.octets());
        }
        _ => return None,
    }
    packet.extend_from_slice(payload);
    write_ip_length(&mut packet, 0);
    Some(packet)
}

/// A UDP packet from `source` to `destination`, checksum complete.
pub(crate) fn udp_packet(source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(8 + payload.len()).ok()?;
    let mut datagram = Vec::with_capacity(usize::from(len));
    for word in [source.1, destination.1, len, 0] {
        datagram.extend_from_slice(&word.to_be_bytes());
    }
    datagram.extend_from_slice(payload);
    let mut packet = ip_packet(source.0, destination.0, UDP, &datagram)?;
    let ip = parse(&packet)?;
    write_transport_checksum(&mut packet, &ip, ip.payload_at, 6);
    Some(packet)
}

/// The answer of `router` to a packet longer than `mtu`: fragmentation needed (RFC 792, RFC 1191) or packet too big (RFC 4443).
pub(crate) fn too_big_packet(router: IpAddr, offending: &[u8], mtu: usize) -> Option<Vec<u8>> {
    let ip = parse(offending)?;
    let mtu = u32::try_from(mtu).ok()?.to_be_bytes();
    // The quoted packet fills the answer up to what every link carries: 576 and 1280 bytes.
    let (kind, quote_max) = match ip.source {
        IpAddr::V4(_) => ([3, 4, 0, 0, 0, 0, mtu[2], mtu[3]], 576 - 28),
        IpAddr::V6(_) => ([2, 0, 0, 0, mtu[0], mtu[1], mtu[2], mtu[3]], 1280 - 48),
    };
    let mut message = kind.to_vec();
    message.extend_from_slice(&offending[..offending.len().min(quote_max)]);
    icmp_packet(router, ip.source, message)
}

/// The answer to an echo request (ping) that was sent to the WAN itself.
pub(crate) fn echo_reply(request: &[u8]) -> Option<Vec<u8>> {
    let ip = parse(request)?;
    let mut message = request.get(ip.payload_at..)?.to_vec();
    let (request_type, reply_type) = if ip.protocol == ICMP4 { (8, 0) } else { (128, 129) };
    if message.len() < 8 || message[0] != request_type || ip.is_fragment {
        return None;
    }
    message[0] = reply_type;
    icmp_packet(ip.destination, ip.source, message)
}

fn icmp_packet(source: IpAddr, destination: IpAddr, mut message: Vec<u8>) -> Option<Vec<u8>> {
    message[2..4].fill(0);
    let protocol = if source.is_ipv4() { ICMP4 } else { ICMP6 };
    let mut packet = ip_packet(source, destination, protocol, &message)?;
    let ip = parse(&packet)?;
    let sum = match source {
        IpAddr::V4(_) => checksum(&[&message]),
        IpAddr::V6(_) => pseudo_checksum(&ip, ICMP6, &message),
    };
    put_u16(&mut packet, ip.payload_at + 2, usize::from(sum));
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 10);
    const B: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 10);
    const A6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 10);
    const B6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 10);

    fn transport_sum(packet: &[u8]) -> u16 {
        let ip = parse(packet).unwrap();
        pseudo_checksum(&ip, ip.protocol, &packet[ip.payload_at..])
    }

    /// A super-packet as the kernel would hand it over.
    fn super_packet(gso_type: u8, source: IpAddr, destination: IpAddr, payload: &[u8], gso_size: u16) -> Frame {
        let (header, protocol, offset): (Vec<u8>, u8, u16) = if gso_type == GSO_UDP {
            (vec![0x30, 0x39, 0, 53, 0, 0, 0, 0], UDP, 6)
        } else {
            let mut tcp = vec![0; 20];
            tcp[4..8].copy_from_slice(&0xffff_fff0_u32.to_be_bytes());
            tcp[12] = 5 << 4;
            tcp[13] = 0x80 | 0x10 | 0x08 | 0x01;
            (tcp, TCP, 16)
        };
        let packet = ip_packet(source, destination, protocol, &[header, payload.to_vec()].concat()).unwrap();
        let mut frame = Frame::from_packet(&packet);
        let start: u16 = if source.is_ipv4() { 20 } else { 40 };
        frame.0[0] = VNET_NEEDS_CHECKSUM;
        frame.0[1] = gso_type;
        frame.0[4..6].copy_from_slice(&gso_size.to_ne_bytes());
        frame.0[6..8].copy_from_slice(&start.to_ne_bytes());
        frame.0[8..10].copy_from_slice(&offset.to_ne_bytes());
        frame
    }

    #[test]
    fn tcp_super_packet_is_cut_into_consecutive_segments_with_valid_checksums() {
        for (source, destination) in [(A.into(), B.into()), (A6.into(), B6.into())] {
            let payload: Vec<u8> = (0..2500_u16).map(|i| i.to_be_bytes()[1]).collect();
            let gso_type = if matches!(source, IpAddr::V4(_)) { GSO_TCP4 } else { GSO_TCP6 };
            let frame = super_packet(gso_type, source, destination, &payload, 1000);
            let header_len = frame.packet().len() - payload.len();
            assert_eq!(
                frame.wire_size(),
                WireSize { packets: 3, bytes: (payload.len() + 3 * header_len) as u64, largest: header_len + 1000 }
            );
            let segments = frame.segments();
            let mut joined = Vec::new();
            for (index, segment) in segments.iter().enumerate() {
                let packet = segment.packet();
                assert_eq!(transport_sum(packet), 0, "segment {index}");
                assert_eq!(segment.wire_size().packets, 1);
                let tcp = &packet[header_len - 20..];
                let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
                assert_eq!(sequence, 0xffff_fff0_u32.wrapping_add(u32::try_from(index).unwrap() * 1000));
                let flags = [0x80 | 0x10, 0x10, 0x10 | 0x08 | 0x01][index];
                assert_eq!(tcp[13], flags, "segment {index}");
                joined.extend_from_slice(&packet[header_len..]);
                if source.is_ipv4() {
                    assert_eq!(checksum(&[&packet[..20]]), 0);
                }
            }
            assert_eq!(joined, payload);
        }
    }

    #[test]
    fn udp_super_packet_is_cut_into_datagrams_with_valid_checksums() {
        for (source, destination) in [(A.into(), B.into()), (A6.into(), B6.into())] {
            let segments = super_packet(GSO_UDP, source, destination, &[7; 2001], 1000).segments();
            let lengths: Vec<usize> = segments
                .iter()
                .map(|s| {
                    let ip = parse(s.packet()).unwrap();
                    let udp = &s.packet()[ip.payload_at..];
                    assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len());
                    assert_eq!(transport_sum(s.packet()), 0);
                    udp.len() - 8
                })
                .collect();
            assert_eq!(lengths, [1000, 1000, 1]);
        }
    }

    #[test]
    fn unfinished_checksum_is_completed() {
        let packet = udp_packet((A.into(), 4000), (B.into(), 53), b"question").unwrap();
        assert_eq!(transport_sum(&packet), 0);
        let mut frame = Frame::from_packet(&packet);
        // What the kernel leaves in the field: the folded sum of the pseudo header, not inverted.
        let ip = parse(&packet).unwrap();
        let len = u32::try_from(packet.len() - 20).unwrap().to_be_bytes();
        let pseudo = !checksum(&[&A.octets(), &B.octets(), &len, &[0, 0, 0, ip.protocol]]);
        put_u16(frame.packet_mut(), 26, usize::from(pseudo));
        frame.0[0] = VNET_NEEDS_CHECKSUM;
        frame.0[6..8].copy_from_slice(&20_u16.to_ne_bytes());
        frame.0[8..10].copy_from_slice(&6_u16.to_ne_bytes());
        assert_eq!(frame.segments()[0].packet(), packet);
    }

    #[test]
    fn ipv4_packet_is_fragmented_and_fragments_again() {
        let payload: Vec<u8> = (0..1400_u16).map(|i| i.to_be_bytes()[1]).collect();
        let packet = udp_packet((A.into(), 1), (B.into(), 2), &payload).unwrap();
        let fragments: Vec<Frame> =
            Frame::from_packet(&packet).fragments(900).into_iter().flat_map(|f| f.fragments(500)).collect();
        let mut whole = vec![0; packet.len() - 20];
        for (index, fragment) in fragments.iter().enumerate() {
            let bytes = fragment.packet();
            assert!(bytes.len() <= 500);
            assert_eq!(checksum(&[&bytes[..20]]), 0);
            let field = u16::from_be_bytes([bytes[6], bytes[7]]);
            assert_eq!(field & 0x2000 == 0, index + 1 == fragments.len());
            let offset = usize::from(field & 0x1fff) * 8;
            whole[offset..offset + bytes.len() - 20].copy_from_slice(&bytes[20..]);
        }
        assert_eq!(whole, packet[20..]);
    }

    #[test]
    fn icmp_answers_have_valid_checksums() {
        let big = udp_packet((A.into(), 1), (B.into(), 2), &[0; 1472]).unwrap();
        let answer = too_big_packet(Ipv4Addr::new(198, 18, 0, 1).into(), &big, 1400).unwrap();
        assert_eq!((answer.len(), answer[20], answer[21]), (576, 3, 4));
        assert_eq!(u16::from_be_bytes([answer[26], answer[27]]), 1400);
        assert_eq!(checksum(&[&answer[20..]]), 0);

        let big = udp_packet((A6.into(), 1), (B6.into(), 2), &[0; 1452]).unwrap();
        let answer = too_big_packet(B6.into(), &big, 1280).unwrap();
        assert_eq!((answer.len(), answer[40], transport_sum(&answer)), (1280, 2, 0));

        let ping = icmp_packet(A6.into(), B6.into(), vec![128, 0, 0, 0, 1, 2, 3, 4, 5]).unwrap();
        let pong = echo_reply(&ping).unwrap();
        assert_eq!((pong[40], transport_sum(&pong)), (129, 0));
        assert_eq!(echo_reply(&pong), None);
    }

    #[test]
    fn foreign_bytes_never_panic() {
        let mut seed = 1_u32;
        for len in 0..200 {
            for _ in 0..50 {
                let bytes: Vec<u8> = (0..len)
                    .map(|i| {
                        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let byte = seed.to_be_bytes()[0];
                        // Steer half of them into the parsers.
                        if i == VNET_HEADER_LEN && byte & 1 == 0 { [0x45, 0x60][usize::from(byte >> 7)] } else { byte }
                    })
                    .collect();
                let Some(frame) = Frame::from_bytes(&bytes) else { continue };
                frame.wire_size();
                let _ = echo_reply(frame.packet());
                let _ = too_big_packet(A.into(), frame.packet(), 1400);
                if parse(frame.packet()).is_some_and(|ip| ip.source.is_ipv4()) {
                    frame.clone().fragments(576);
                }
                frame.segments();
            }
        }
    }
}
