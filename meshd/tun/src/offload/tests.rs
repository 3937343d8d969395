use proptest::prelude::*;

use super::*;

/// Adds up 16-bit words the slow, obvious way (RFC 1071 section 4.1).
fn naive_sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut total: u32 = 0;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).expect("folded")
}

fn naive_pseudo(packet: &[u8], protocol: u8, transport: usize) -> Vec<u8> {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    let length = u32::try_from(packet.len() - transport).expect("short");
    [addresses, &length.to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

fn checksums_are_right(packet: &[u8], protocol: u8) -> bool {
    let transport = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let ip_right = transport == 40 || naive_sum(&[&packet[..20]]) == 0xffff;
    ip_right && naive_sum(&[&naive_pseudo(packet, protocol, transport), &packet[transport..]]) == 0xffff
}

/// A flow's packets described by values, from which a reference builder makes bytes.
#[derive(Clone, Debug)]
struct Flow {
    v6: bool,
    protocol: u8,
    ports: (u16, u16),
    id: u16,
    sequence: u32,
    options: Vec<u8>,
    push: bool,
    payload: Vec<u8>,
    size: usize,
}

impl Flow {
    fn transport(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn headers_bytes(&self) -> usize {
        self.transport() + if self.protocol == TCP { 20 + self.options.len() } else { 8 }
    }

    /// One packet with this flow's headers; the checksums are made the slow way.
    fn packet(&self, index: usize, payload: &[u8], push: bool) -> Vec<u8> {
        let mut packet = vec![0; self.headers_bytes()];
        packet.extend_from_slice(payload);
        let total = packet.len();
        let transport = self.transport();
        if self.v6 {
            packet[0] = 0x60;
            packet[3] = 0x77;
            packet[4..6].copy_from_slice(&u16::try_from(total - 40).expect("short").to_be_bytes());
            packet[6] = self.protocol;
            packet[7] = 64;
            packet[8..24].copy_from_slice(&[0xfd; 16]);
            packet[24..40].copy_from_slice(&[0xfc; 16]);
        } else {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&u16::try_from(total).expect("short").to_be_bytes());
            let id = self.id.wrapping_add(u16::try_from(index).expect("short"));
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[6] = 0x40;
            packet[8] = 64;
            packet[9] = self.protocol;
            packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
            packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
            let checksum = !naive_sum(&[&packet[..20]]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet[transport..transport + 2].copy_from_slice(&self.ports.0.to_be_bytes());
        packet[transport + 2..transport + 4].copy_from_slice(&self.ports.1.to_be_bytes());
        let field = if self.protocol == TCP {
            let offset = u32::try_from(index * self.size).expect("short");
            packet[transport + 4..transport + 8].copy_from_slice(&self.sequence.wrapping_add(offset).to_be_bytes());
            packet[transport + 8..transport + 12].copy_from_slice(&[9, 8, 7, 6]);
            packet[transport + 12] = u8::try_from((20 + self.options.len()) / 4).expect("short") << 4;
            packet[transport + 13] = TCP_ACK | if push { TCP_PSH } else { 0 };
            packet[transport + 14..transport + 16].copy_from_slice(&[1, 2]);
            packet[transport + 20..transport + 20 + self.options.len()].copy_from_slice(&self.options);
            transport + 16
        } else {
            let length = u16::try_from(total - transport).expect("short");
            packet[transport + 4..transport + 6].copy_from_slice(&length.to_be_bytes());
            transport + 6
        };
        let mut checksum = !naive_sum(&[&naive_pseudo(&packet, self.protocol, transport), &packet[transport..]]);
        if checksum == 0 && self.protocol == UDP {
            checksum = 0xffff;
        }
        packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// What the wire must carry.
    fn wire(&self) -> Vec<Vec<u8>> {
        let chunks: Vec<&[u8]> = self.payload.chunks(self.size).collect();
        let last = chunks.len() - 1;
        chunks.iter().enumerate().map(|(i, chunk)| self.packet(i, chunk, self.push && i == last)).collect()
    }

    /// The super-packet as the kernel hands it over: lengths of the whole, checksum field holding the pseudo sum.
    fn super_packet(&self) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.packet(0, &self.payload, self.push);
        let transport = self.transport();
        let offset = if self.protocol == TCP { 16 } else { 6 };
        let pseudo = naive_sum(&[&naive_pseudo(&packet, self.protocol, transport)]);
        packet[transport + offset..transport + offset + 2].copy_from_slice(&pseudo.to_be_bytes());
        let narrow = |value: usize| u16::try_from(value).expect("short");
        let header = VnetHeader {
            flags: FLAG_NEEDS_CHECKSUM,
            gso_type: match (self.protocol, self.v6) {
                (UDP, _) => GSO_UDP,
                (_, false) => GSO_TCP4,
                (_, true) => GSO_TCP6,
            },
            headers_bytes: narrow(self.headers_bytes()),
            gso_size: narrow(self.size),
            checksum_start: narrow(transport),
            checksum_offset: narrow(offset),
        };
        (header, packet)
    }
}

fn flow() -> impl Strategy<Value = Flow> {
    (
        any::<bool>(),
        prop_oneof![Just(TCP), Just(UDP)],
        any::<(u16, u16)>(),
        any::<u16>(),
        any::<u32>(),
        0..=10usize,
        any::<bool>(),
        1..=1400usize,
        1..=20_000usize,
        any::<u8>(),
    )
        .prop_map(|(v6, protocol, ports, id, sequence, options, push, size, length, seed)| {
            let size = size.max(length.div_ceil(JOIN_PACKETS_MAX));
            Flow {
                v6,
                protocol,
                ports,
                id,
                sequence,
                options: if protocol == TCP { vec![1; options * 4] } else { Vec::new() },
                push: push && protocol == TCP,
                payload: (0..length).map(|i| (i.wrapping_mul(31)).to_le_bytes()[0] ^ seed).collect(),
                size,
            }
        })
}

fn cut_all(header: VnetHeader, packet: &[u8]) -> Result<Vec<Vec<u8>>, CutError> {
    let mut packet = packet.to_vec();
    let mut wire = Vec::new();
    let count = cut(header, &mut packet, |segment| wire.push(segment.to_vec()))?;
    assert_eq!(count, wire.len());
    Ok(wire)
}

fn join_all(wire: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut arena = wire.concat();
    let mut joiner = Joiner::new(true, 65_535);
    let mut out = Vec::new();
    let mut sink = |header: VnetHeader, slices: &[IoSlice<'_>]| {
        assert_eq!(slices[0][..], header.encode());
        out.push((header, slices[1..].iter().flat_map(|slice| slice.to_vec()).collect()));
    };
    let mut at = 0;
    for packet in wire {
        joiner.push(&mut arena, at..at + packet.len(), &mut sink);
        at += packet.len();
    }
    joiner.flush(&mut arena, &mut sink);
    out
}

/// What a receiver sees of written packets: super-packets cut again.
fn seen(written: &[(VnetHeader, Vec<u8>)]) -> Vec<Vec<u8>> {
    written.iter().flat_map(|(header, packet)| cut_all(*header, packet).expect("we wrote it")).collect()
}

proptest! {
    #[test]
    fn cut_equals_the_reference(flow in flow()) {
        let (header, packet) = flow.super_packet();
        prop_assert_eq!(cut_all(header, &packet).expect("well formed"), flow.wire());
    }

    #[test]
    fn joining_what_was_cut_gives_the_original(flow in flow()) {
        let (header, packet) = flow.super_packet();
        let joined = join_all(&cut_all(header, &packet).expect("well formed"));
        prop_assert_eq!(joined.len(), 1);
        if flow.payload.len() > flow.size {
            prop_assert_eq!(&joined[0], &(header, packet));
        } else {
            prop_assert_eq!(&joined[0], &(VnetHeader::default(), flow.wire().remove(0)));
        }
    }

    #[test]
    fn interleaved_flows_keep_their_own_order_and_bytes(
        flows in proptest::collection::vec(flow(), 1..12),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 0..200),
    ) {
        let mut queues: Vec<Vec<Vec<u8>>> = flows.iter().map(|f| f.wire().into_iter().rev().collect()).collect();
        let mut wire = Vec::new();
        for index in order {
            let index = index.index(queues.len());
            wire.extend(queues[index].pop());
        }
        for queue in &mut queues {
            queue.reverse();
            wire.append(queue);
        }
        let mut received = seen(&join_all(&wire));
        prop_assert_eq!(received.len(), wire.len());
        // Same packets; and inside a flow (equal addresses, protocol and ports) the same order.
        let key = |packet: &Vec<u8>| {
            let transport = if packet[0] >> 4 == 4 { 20 } else { 40 };
            let protocol = if transport == 20 { packet[9] } else { packet[6] };
            (transport, protocol, packet[transport..transport + 4].to_vec())
        };
        let mut sent = wire.clone();
        sent.sort_by_key(key);
        received.sort_by_key(key);
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn damaged_packets_pass_unchanged(flow in flow(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut wire = flow.wire();
        let index = at.index(wire.len());
        let position = at.index(wire[index].len());
        wire[index][position] ^= 1 << bit;
        let mut received = seen(&join_all(&wire));
        let mut sent = wire.clone();
        received.sort();
        sent.sort();
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn foreign_bytes_never_panic(
        header in any::<[u8; VnetHeader::BYTES]>(),
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..8),
        v6 in any::<bool>(),
    ) {
        let mut packets = packets;
        for packet in &mut packets {
            if let Some(first) = packet.first_mut() {
                *first = if v6 { 0x60 } else { 0x45 };
            }
        }
        let decoded = VnetHeader::decode(&header);
        prop_assert_eq!(decoded.encode(), header);
        for gso_type in [decoded.gso_type, GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP] {
            for start in [decoded.checksum_start, 20, 40] {
                let header = VnetHeader { gso_type, checksum_start: start, ..decoded };
                for packet in &packets {
                    let _ = cut(header, &mut packet.clone(), |_| {});
                }
            }
        }
        let written = join_all(&packets);
        prop_assert!(written.len() <= packets.len());
    }

    #[test]
    fn partial_checksum_is_completed(flow in flow()) {
        let (header, packet) = flow.super_packet();
        let header = VnetHeader { gso_type: GSO_NONE, ..header };
        let wire = cut_all(header, &packet).expect("well formed");
        prop_assert_eq!(wire.len(), 1);
        prop_assert!(checksums_are_right(&wire[0], flow.protocol));
    }
}

#[test]
fn flags_of_a_super_packet_land_on_the_right_segments() {
    let flow = Flow {
        v6: false,
        protocol: TCP,
        ports: (1, 2),
        id: 65_535,
        sequence: u32::MAX - 50,
        options: vec![1; 12],
        push: true,
        payload: vec![7; 300],
        size: 100,
    };
    let (header, mut packet) = flow.super_packet();
    packet[33] |= TCP_FIN | TCP_CWR;
    let wire = cut_all(VnetHeader { gso_type: GSO_TCP4 | GSO_ECN, ..header }, &packet).expect("well formed");
    let flags: Vec<u8> = wire.iter().map(|packet| packet[33]).collect();
    assert_eq!(flags, [TCP_ACK | TCP_CWR, TCP_ACK, TCP_ACK | TCP_PSH | TCP_FIN]);
    assert_eq!(read16(&wire[1], 4), 0);
    assert_eq!(read32(&wire[1], 24), 49);
    assert!(wire.iter().all(|packet| checksums_are_right(packet, TCP)));
}

#[test]
fn pure_acknowledgement_of_another_flow_does_not_break_a_group() {
    let data = Flow {
        v6: true,
        protocol: TCP,
        ports: (1, 2),
        id: 0,
        sequence: 0,
        options: Vec::new(),
        push: false,
        payload: vec![7; 200],
        size: 100,
    };
    let ack = Flow { ports: (3, 4), payload: Vec::new(), ..data.clone() };
    let mut wire = data.wire();
    wire.insert(1, ack.packet(0, &[], false));
    let written = join_all(&wire);
    assert_eq!(written.len(), 2);
    assert_eq!(written[1].0.gso_size, 100);
}

#[test]
fn packets_beyond_the_mtu_stand_alone() {
    let flow = Flow {
        v6: true,
        protocol: UDP,
        ports: (1, 2),
        id: 0,
        sequence: 0,
        options: Vec::new(),
        push: false,
        payload: vec![7; 400],
        size: 200,
    };
    let mut arena = flow.wire().concat();
    let length = arena.len() / 2;
    for (mtu, writes) in [(length, 1), (length - 1, 2)] {
        let mut joiner = Joiner::new(true, mtu);
        let mut count = 0;
        for start in [0, length] {
            joiner.push(&mut arena, start..start + length, &mut |_, _| count += 1);
        }
        joiner.flush(&mut arena, &mut |_, _| count += 1);
        assert_eq!(count, writes);
        arena = flow.wire().concat();
    }
}
