//! Segmentation in user space, both ways: pure functions over byte slices.
//!
//! [`cut`] turns one super-packet read from a TUN (TCP or UDP segmentation offload) into the packets that go on the
//! wire. [`Joiner`] does the opposite with a batch of opened packets, so that one write hands many to the kernel.
//! `join(cut(x)) == x`. The field meanings are those of the virtio specification, section 5.1.6.
//!
//! Nothing here trusts a length: packets come from workloads and from peers.

use std::io::IoSlice;
use std::ops::Range;

use crate::sys::VNET_HEADER_BYTES;

#[cfg(test)]
mod tests;

const TCP: u8 = 6;
const UDP: u8 = 17;

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Set beside the type when the flow uses ECN; it changes nothing here.
const GSO_ECN: u8 = 0x80;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;
const TCP_CWR: u8 = 0x80;

const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const UDP_HEADER_BYTES: usize = 8;

/// Longest headers (IP with extensions, and TCP with options) of a super-packet that is cut. Linux writes 40 to 120.
const HEADERS_BYTES_MAX: usize = 256;

/// Packets in one joined super-packet: what one GSO receive may hold, and `UDP_MAX_SEGMENTS` of older kernels.
const JOIN_PACKETS_MAX: usize = 64;

/// Flows that are joined at the same time; a further one pushes the oldest out.
const JOIN_FLOWS_MAX: usize = 8;

/// `struct virtio_net_hdr`, in front of every packet on the TUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VnetHeader {
    pub(crate) flags: u8,
    pub(crate) gso_type: u8,
    pub(crate) headers_bytes: u16,
    /// Payload bytes per packet.
    pub(crate) gso_size: u16,
    /// Where the checksum begins to sum, from the packet's start.
    pub(crate) checksum_start: u16,
    /// Where the checksum stands, from `checksum_start`.
    pub(crate) checksum_offset: u16,
}

impl VnetHeader {
    pub(crate) const BYTES: usize = VNET_HEADER_BYTES as usize;

    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            headers_bytes: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    pub(crate) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, word) in
            [(2, self.headers_bytes), (4, self.gso_size), (6, self.checksum_start), (8, self.checksum_offset)]
        {
            bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// Why a super-packet cannot be cut. It is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CutError {
    #[error("headers are truncated or contradict the virtio header")]
    Malformed,
    #[error("segmentation type {0} is not one we asked for")]
    UnknownType(u8),
}

fn read16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn read32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The one's complement sum (RFC 1071) of `bytes`, in native byte order and unfolded, added to `start`.
fn sum(bytes: &[u8], start: u64) -> u64 {
    let mut total = start;
    // 32-bit words into 64-bit lanes: no carry to handle below 2^32 words, and a loop the compiler makes vector code of.
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    for word in words {
        total += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_ne_bytes(last))
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).expect("folded to 16 bits")
}

/// The pseudo header's sum (RFC 793 section 3.1, RFC 8200 section 8.1), in native byte order and unfolded.
fn pseudo_sum(packet: &[u8], protocol: u8, transport_bytes: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    let length = u32::try_from(transport_bytes).expect("packets are shorter than 64 KiB");
    sum(addresses, 0) + u64::from(u16::from(protocol).to_be()) + u64::from(length.to_be())
}

fn write_checksum(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

/// A length or count inside one IP packet.
fn narrow(value: usize) -> u16 {
    u16::try_from(value).expect("lengths inside one IP packet fit 16 bits")
}

fn write16(packet: &mut [u8], at: usize, value: usize) {
    packet[at..at + 2].copy_from_slice(&narrow(value).to_be_bytes());
}

/// Sets the IP length fields of a packet to its real length, and the IPv4 header checksum.
fn write_ip_length(packet: &mut [u8], ipv4_header_bytes: usize) {
    let length = packet.len();
    if packet[0] >> 4 == 4 {
        write16(packet, 2, length);
        write_ipv4_checksum(packet, ipv4_header_bytes);
    } else {
        write16(packet, 4, length - IPV6_HEADER_BYTES);
    }
}

fn write_ipv4_checksum(packet: &mut [u8], header_bytes: usize) {
    write_checksum(packet, 10, 0);
    let checksum = !fold(sum(&packet[..header_bytes], 0));
    write_checksum(packet, 10, checksum);
}

/// A UDP checksum of zero would mean "none" (RFC 768), so its complement stands for it.
fn udp_checksum(total: u64) -> u16 {
    match !fold(total) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Splits what a TUN read returned into wire packets, in order, and calls `emit` for each.
///
/// Cutting happens inside `packet`: each packet's headers are written over the end of the one before, which has been
/// emitted by then. So the payload is never copied here, and `packet` is garbage afterwards.
///
/// Returns how many packets were emitted.
///
/// # Errors
/// [`CutError`] if the headers are not what the virtio header says; nothing was emitted then.
pub(crate) fn cut(header: VnetHeader, packet: &mut [u8], mut emit: impl FnMut(&[u8])) -> Result<usize, CutError> {
    let gso_type = header.gso_type & !GSO_ECN;
    if gso_type == GSO_NONE {
        complete_checksum(header, packet)?;
        emit(packet);
        return Ok(1);
    }
    let (protocol, fixed_bytes) = match gso_type {
        GSO_TCP4 | GSO_TCP6 => (TCP, 20),
        GSO_UDP => (UDP, UDP_HEADER_BYTES),
        other => return Err(CutError::UnknownType(other)),
    };
    let transport = usize::from(header.checksum_start);
    let gso_size = usize::from(header.gso_size);
    if gso_size == 0 || packet.len() > usize::from(u16::MAX) || packet.len() < transport + fixed_bytes {
        return Err(CutError::Malformed);
    }
    let ip_header_bytes = match packet[0] >> 4 {
        4 => usize::from(packet[0] & 15) * 4,
        6 => transport, // extension headers, if any, are copied as they are
        _ => return Err(CutError::Malformed),
    };
    let ip_header_min = if packet[0] >> 4 == 4 { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES };
    let transport_header_bytes =
        if protocol == TCP { usize::from(packet[transport + 12] >> 4) * 4 } else { UDP_HEADER_BYTES };
    let headers_bytes = transport + transport_header_bytes;
    if ip_header_bytes != transport
        || transport < ip_header_min
        || transport_header_bytes < fixed_bytes
        || headers_bytes > HEADERS_BYTES_MAX
        || headers_bytes >= packet.len()
    {
        return Err(CutError::Malformed);
    }

    let mut template = [0; HEADERS_BYTES_MAX];
    let template = &mut template[..headers_bytes];
    template.copy_from_slice(&packet[..headers_bytes]);
    let count = (packet.len() - headers_bytes).div_ceil(gso_size);
    let first_sequence = if protocol == TCP { read32(template, transport + 4) } else { 0 };
    let first_id = read16(template, 4);
    for index in 0..count {
        let payload = headers_bytes + index * gso_size;
        let end = (payload + gso_size).min(packet.len());
        let segment = &mut packet[payload - headers_bytes..end];
        segment[..headers_bytes].copy_from_slice(template);
        if segment[0] >> 4 == 4 {
            segment[4..6].copy_from_slice(&first_id.wrapping_add(narrow(index)).to_be_bytes());
        }
        write_ip_length(segment, ip_header_bytes);
        let transport_bytes = segment.len() - transport;
        let pseudo = pseudo_sum(segment, protocol, transport_bytes);
        if protocol == TCP {
            let step = u32::from(narrow(index * gso_size));
            segment[transport + 4..transport + 8].copy_from_slice(&first_sequence.wrapping_add(step).to_be_bytes());
            if index + 1 < count {
                segment[transport + 13] &= !(TCP_FIN | TCP_PSH);
            }
            if index > 0 {
                segment[transport + 13] &= !TCP_CWR;
            }
            write_checksum(segment, transport + 16, 0);
            let checksum = !fold(sum(&segment[transport..], pseudo));
            write_checksum(segment, transport + 16, checksum);
        } else {
            write16(segment, transport + 4, transport_bytes);
            write_checksum(segment, transport + 6, 0);
            let checksum = udp_checksum(sum(&segment[transport..], pseudo));
            write_checksum(segment, transport + 6, checksum);
        }
        emit(segment);
    }
    Ok(count)
}

/// Finishes a transport checksum that the kernel left to its "network card". The field holds the pseudo header's sum.
fn complete_checksum(header: VnetHeader, packet: &mut [u8]) -> Result<(), CutError> {
    if header.flags & FLAG_NEEDS_CHECKSUM == 0 {
        return Ok(());
    }
    let start = usize::from(header.checksum_start);
    let field = start + usize::from(header.checksum_offset);
    if field + 2 > packet.len() {
        return Err(CutError::Malformed);
    }
    let total = sum(&packet[start..], 0);
    // Offset 6 is UDP's; TCP's is 16.
    let checksum = if header.checksum_offset == 6 { udp_checksum(total) } else { !fold(total) };
    write_checksum(packet, field, checksum);
    Ok(())
}

/// What the joiner needs to know about one packet that may be joined with its neighbours.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    protocol: u8,
    /// Bytes of the IP header: 20 or 40.
    transport: usize,
    /// Bytes of all headers.
    headers_bytes: usize,
    payload_bytes: usize,
    sequence: u32,
    /// No further packet may follow this one in a group.
    last: bool,
}

/// What a packet means to the joiner.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// May begin or continue a group.
    Candidate(Candidate),
    /// TCP or UDP that stands alone; the flow's group must leave before it.
    Alone { transport: usize },
    /// Anything else: every group leaves before it.
    Other,
}

/// Reads a packet that has been opened: at least an IP header long, and as long as its IP header says.
fn shape(packet: &[u8], join_udp: bool) -> Shape {
    let (transport, protocol) = match packet.first().map(|first| first >> 4) {
        Some(4)
            if packet.len() >= IPV4_HEADER_BYTES
                && packet[0] & 15 == 5
                && read16(packet, 6) & 0x3fff == 0
                && usize::from(read16(packet, 2)) == packet.len() =>
        {
            (IPV4_HEADER_BYTES, packet[9])
        }
        Some(6)
            if packet.len() >= IPV6_HEADER_BYTES
                && usize::from(read16(packet, 4)) + IPV6_HEADER_BYTES == packet.len() =>
        {
            (IPV6_HEADER_BYTES, packet[6])
        }
        _ => return Shape::Other,
    };
    let transport_bytes = packet.len() - transport;
    let alone = Shape::Alone { transport };
    let (headers_bytes, last) = match protocol {
        TCP if transport_bytes >= 20 => {
            let header = usize::from(packet[transport + 12] >> 4) * 4;
            let flags = packet[transport + 13];
            if header < 20 || header >= transport_bytes || flags & !TCP_PSH != TCP_ACK {
                return alone;
            }
            (transport + header, flags & TCP_PSH != 0)
        }
        UDP if transport_bytes >= UDP_HEADER_BYTES => {
            let length_matches = usize::from(read16(packet, transport + 4)) == transport_bytes;
            let unsummed = read16(packet, transport + 6) == 0;
            if !join_udp || !length_matches || unsummed || transport_bytes == UDP_HEADER_BYTES {
                return alone;
            }
            (transport + UDP_HEADER_BYTES, false)
        }
        _ => return Shape::Other,
    };
    // The joined packet carries fresh checksums, so a wrong one must not get in: it would come out right.
    if transport == IPV4_HEADER_BYTES && fold(sum(&packet[..IPV4_HEADER_BYTES], 0)) != 0xffff {
        return alone;
    }
    if fold(sum(&packet[transport..], pseudo_sum(packet, protocol, transport_bytes))) != 0xffff {
        return alone;
    }
    Shape::Candidate(Candidate {
        protocol,
        transport,
        headers_bytes,
        payload_bytes: packet.len() - headers_bytes,
        sequence: if protocol == TCP { read32(packet, transport + 4) } else { 0 },
        last,
    })
}

/// Packets of one flow that will be written as one.
#[derive(Debug)]
struct Group {
    head: Candidate,
    /// Where the packets are in the arena, in order.
    packets: Vec<Range<usize>>,
    /// Bytes of the joined packet so far.
    length: usize,
    next_sequence: u32,
    closed: bool,
}

/// Joins opened packets of a batch into super-packets.
///
/// Drive order: [`Joiner::push`] for every packet of a batch, then [`Joiner::flush`]. The sink gets the virtio header
/// and the slices of each packet to write. Packets of one flow leave in the order they came.
#[derive(Debug)]
pub(crate) struct Joiner {
    /// Oldest first. Emptied groups are kept for their allocation.
    groups: Vec<Group>,
    used: usize,
    join_udp: bool,
    /// Longest packet in bytes that takes part: the TUN's MTU.
    packet_bytes_max: usize,
}

impl Joiner {
    pub(crate) fn new(join_udp: bool, packet_bytes_max: usize) -> Self {
        let group = || Group {
            head: Candidate { protocol: 0, transport: 0, headers_bytes: 0, payload_bytes: 0, sequence: 0, last: true },
            packets: Vec::with_capacity(JOIN_PACKETS_MAX),
            length: 0,
            next_sequence: 0,
            closed: true,
        };
        Self { groups: (0..JOIN_FLOWS_MAX).map(|_| group()).collect(), used: 0, join_udp, packet_bytes_max }
    }

    /// Takes the opened packet at `range` of `arena`. It must stay there until the next [`Self::flush`].
    pub(crate) fn push(
        &mut self,
        arena: &mut [u8],
        range: Range<usize>,
        sink: &mut impl FnMut(VnetHeader, &[IoSlice<'_>]),
    ) {
        let packet = &arena[range.clone()];
        match shape(packet, self.join_udp) {
            Shape::Candidate(candidate) if packet.len() <= self.packet_bytes_max => {
                if let Some(index) = self.position(arena, &range, candidate.transport, candidate.protocol) {
                    if self.groups[index].accepts(arena, &range, candidate) {
                        self.groups[index].append(range, candidate);
                        return;
                    }
                    self.emit(arena, index, sink);
                }
                if self.used == JOIN_FLOWS_MAX {
                    self.emit(arena, 0, sink);
                }
                let group = &mut self.groups[self.used];
                self.used += 1;
                group.head = candidate;
                group.length = candidate.headers_bytes;
                group.closed = false;
                group.append(range, candidate);
            }
            Shape::Candidate(Candidate { transport, .. }) | Shape::Alone { transport } => {
                let protocol = if transport == IPV4_HEADER_BYTES { packet[9] } else { packet[6] };
                if let Some(index) = self.position(arena, &range, transport, protocol) {
                    self.emit(arena, index, sink);
                }
                write_alone(arena, range, sink);
            }
            Shape::Other => {
                self.flush(arena, sink);
                write_alone(arena, range, sink);
            }
        }
    }

    /// Writes everything that is held back.
    pub(crate) fn flush(&mut self, arena: &mut [u8], sink: &mut impl FnMut(VnetHeader, &[IoSlice<'_>])) {
        while self.used > 0 {
            self.emit(arena, 0, sink);
        }
    }

    /// The group of the packet's flow: same protocol, addresses and ports.
    fn position(&self, arena: &[u8], range: &Range<usize>, transport: usize, protocol: u8) -> Option<usize> {
        let addresses = if transport == IPV4_HEADER_BYTES { 12..20 } else { 8..40 };
        let packet = &arena[range.clone()];
        self.groups[..self.used].iter().position(|group| {
            let head = &arena[group.packets[0].clone()];
            group.head.transport == transport
                && group.head.protocol == protocol
                && head[addresses.clone()] == packet[addresses.clone()]
                && head[transport..transport + 4] == packet[transport..transport + 4]
        })
    }

    /// Writes one group and takes it out, keeping the order of the others.
    fn emit(&mut self, arena: &mut [u8], index: usize, sink: &mut impl FnMut(VnetHeader, &[IoSlice<'_>])) {
        self.groups[index].write(arena, sink);
        self.groups[index].packets.clear();
        self.groups[index..self.used].rotate_left(1);
        self.used -= 1;
    }
}

fn write_alone(arena: &[u8], range: Range<usize>, sink: &mut impl FnMut(VnetHeader, &[IoSlice<'_>])) {
    let header = VnetHeader::default().encode();
    sink(VnetHeader::default(), &[IoSlice::new(&header), IoSlice::new(&arena[range])]);
}

impl Group {
    fn append(&mut self, range: Range<usize>, candidate: Candidate) {
        self.packets.push(range);
        self.length += candidate.payload_bytes;
        let step = u32::try_from(candidate.payload_bytes).expect("packets are shorter than 64 KiB");
        self.next_sequence = candidate.sequence.wrapping_add(step);
        self.closed = candidate.last || candidate.payload_bytes < self.head.payload_bytes;
    }

    /// Whether a packet of the same flow continues this group.
    fn accepts(&self, arena: &[u8], range: &Range<usize>, candidate: Candidate) -> bool {
        let (head, packet) = (&arena[self.packets[0].clone()], &arena[range.clone()]);
        let transport = candidate.transport;
        let fits = !self.closed
            && candidate.payload_bytes <= self.head.payload_bytes
            && self.packets.len() < JOIN_PACKETS_MAX
            && self.length + candidate.payload_bytes <= usize::from(u16::MAX)
            && candidate.headers_bytes == self.head.headers_bytes;
        if !fits {
            return false;
        }
        let same_network = if transport == IPV4_HEADER_BYTES {
            let step = narrow(self.packets.len());
            let (first, id) = (read16(head, 4), read16(packet, 4));
            // TOS; flags (fragments never come here); TTL. The id must be what cutting would make of it again.
            head[1] == packet[1] && head[6] == packet[6] && head[8] == packet[8] && id == first.wrapping_add(step)
        } else {
            // Traffic class and flow label; hop limit.
            head[..4] == packet[..4] && head[7] == packet[7]
        };
        let same_transport = candidate.protocol == UDP
            || (candidate.sequence == self.next_sequence
                // Acknowledgement number; window; urgent pointer and options.
                && head[transport + 8..transport + 12] == packet[transport + 8..transport + 12]
                && head[transport + 14..transport + 16] == packet[transport + 14..transport + 16]
                && head[transport + 18..self.head.headers_bytes] == packet[transport + 18..self.head.headers_bytes]);
        same_network && same_transport
    }

    fn write(&self, arena: &mut [u8], sink: &mut impl FnMut(VnetHeader, &[IoSlice<'_>])) {
        let first = self.packets[0].clone();
        if self.packets.len() == 1 {
            return write_alone(arena, first, sink);
        }
        let Candidate { protocol, transport, headers_bytes, payload_bytes, .. } = self.head;
        let last = self.packets.last().expect("at least two").clone();
        let push = if protocol == TCP { arena[last.start + transport + 13] & TCP_PSH } else { 0 };
        let head = &mut arena[first.clone()];
        if transport == IPV4_HEADER_BYTES {
            write16(head, 2, self.length);
            write_ipv4_checksum(head, IPV4_HEADER_BYTES);
        } else {
            write16(head, 4, self.length - IPV6_HEADER_BYTES);
        }
        let transport_bytes = self.length - transport;
        let checksum_offset = if protocol == TCP { 16 } else { 6 };
        if protocol == TCP {
            head[transport + 13] |= push;
        } else {
            write16(head, transport + 4, transport_bytes);
        }
        let pseudo = fold(pseudo_sum(head, protocol, transport_bytes));
        write_checksum(head, transport + checksum_offset, pseudo);
        let header = VnetHeader {
            flags: FLAG_NEEDS_CHECKSUM,
            gso_type: match (protocol, transport) {
                (UDP, _) => GSO_UDP,
                (_, IPV4_HEADER_BYTES) => GSO_TCP4,
                _ => GSO_TCP6,
            },
            headers_bytes: narrow(headers_bytes),
            gso_size: narrow(payload_bytes),
            checksum_start: narrow(transport),
            checksum_offset: narrow(checksum_offset),
        };
        let encoded = header.encode();
        let mut slices = [IoSlice::new(&[]); JOIN_PACKETS_MAX + 1];
        slices[0] = IoSlice::new(&encoded);
        for (index, range) in self.packets.iter().enumerate() {
            let from = if index == 0 { range.start } else { range.start + headers_bytes };
            slices[index + 1] = IoSlice::new(&arena[from..range.end]);
        }
        sink(header, &slices[..=self.packets.len()]);
    }
}
