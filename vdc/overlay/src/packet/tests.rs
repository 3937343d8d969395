use proptest::prelude::*;

use super::*;

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).expect("short").to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets());
    packet.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets());
    packet.extend(payload);
    packet
}

fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
    let fragment = fragment.to_be_bytes();
    let mut packet = vec![0x45, 0, total[0], total[1], 0, 0, fragment[0], fragment[1], 64, protocol, 0, 0];
    packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend(payload);
    packet
}

fn carried(packet: &[u8]) -> (u8, Transport) {
    let parsed = parse(packet).expect("a packet");
    (parsed.protocol, parsed.transport)
}

const PORTS: [u8; 8] = [0, 80, 1, 187, 0, 0, 0, 0];
const TCP_80_443: (u8, Transport) = (TCP, Transport::Tcp { source: 80, destination: 443 });

#[test]
fn ports_are_read_behind_known_headers_only() {
    assert_eq!(carried(&v4(TCP, 0, &PORTS)), TCP_80_443);
    assert_eq!(carried(&v4(UDP, 0x4000, &PORTS)), (UDP, Transport::Udp { source: 80, destination: 443 }));
    assert_eq!(carried(&v6(TCP, &PORTS)), TCP_80_443);
    let options = [&[TCP, 0, 1, 4, 0, 0, 0, 0][..], &PORTS].concat();
    assert_eq!(carried(&v6(HOP_BY_HOP, &options)), TCP_80_443);
    let nested = [&[ROUTING, 0, 0, 0, 0, 0, 0, 0][..], &options].concat();
    assert_eq!(carried(&v6(DESTINATION_OPTIONS, &nested)), TCP_80_443);
    let authenticated = [&[TCP, 4][..], &[0; 22], &PORTS].concat();
    assert_eq!(carried(&v6(AUTHENTICATION, &authenticated)), TCP_80_443);
    // Unknown next headers, encryption, "no next header", ICMP of the other family: never ports.
    for next in [50, 59, 135, 139, 200, 253, 255] {
        assert_eq!(carried(&v6(next, &PORTS)), (next, Transport::Unknown), "{next}");
    }
    assert_eq!(carried(&v6(ICMP, &[8, 0, 0, 0])), (ICMP, Transport::Unknown));
    assert_eq!(carried(&v4(ICMPV6, 0, &[128, 0, 0, 0])), (ICMPV6, Transport::Unknown));
}

#[test]
fn fragments_carry_ports_only_at_the_front() {
    assert_eq!(carried(&v4(TCP, 0x2000, &PORTS)), TCP_80_443, "the first of several");
    assert_eq!(carried(&v4(TCP, 0x2001, &PORTS)), (TCP, Transport::Fragment));
    let first = [&[TCP, 0, 0, 1, 0, 0, 0, 7][..], &PORTS].concat();
    assert_eq!(carried(&v6(FRAGMENT, &first)), TCP_80_443);
    let later = [&[TCP, 0, 0, 8, 0, 0, 0, 7][..], &PORTS].concat();
    assert_eq!(carried(&v6(FRAGMENT, &later)), (TCP, Transport::Fragment));
}

#[test]
fn cut_or_endless_headers_carry_nothing() {
    assert_eq!(carried(&v4(TCP, 0, &PORTS[..3])), (TCP, Transport::Unknown));
    assert_eq!(carried(&v6(HOP_BY_HOP, &[TCP])), (HOP_BY_HOP, Transport::Unknown));
    assert_eq!(carried(&v6(HOP_BY_HOP, &[TCP, 9, 0, 0, 0, 0, 0, 0])), (HOP_BY_HOP, Transport::Unknown));
    assert_eq!(carried(&v6(FRAGMENT, &[TCP, 0, 0, 0, 0])), (FRAGMENT, Transport::Unknown));
    let endless = [DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0].repeat(100);
    assert_eq!(carried(&v6(DESTINATION_OPTIONS, &endless)), (DESTINATION_OPTIONS, Transport::Unknown));
}

#[test]
fn length_must_agree() {
    assert_eq!(parse(&[]), Err(PacketError::Truncated));
    assert_eq!(parse(&[0x45; 10]), Err(PacketError::Truncated));
    assert_eq!(parse(&[0x10; 40]), Err(PacketError::Version));
    let mut long = v6(UDP, &[]);
    long.push(0);
    assert_eq!(parse(&long), Err(PacketError::Length));
    let mut short_header = v4(UDP, 0, &PORTS);
    short_header[0] = 0x44;
    assert_eq!(parse(&short_header), Err(PacketError::Length));
    let mut long_header = v4(UDP, 0, &PORTS);
    long_header[0] = 0x4f;
    assert_eq!(parse(&long_header), Err(PacketError::Length));
}

#[test]
fn unreachable_messages_have_good_checksums() {
    let reply = unreachable(&v4(UDP, 0, &PORTS), Ipv6Addr::LOCALHOST).expect("answered");
    let parsed = parse(&reply).expect("a packet");
    assert_eq!(parsed.destination, "10.0.0.1".parse::<IpAddr>().expect("valid"));
    assert_eq!(parsed.transport, Transport::Icmp { kind: 3, code: 1 });
    assert_eq!((checksum(&[&reply[..20]]), checksum(&[&reply[20..]])), (0, 0));
    let reply = unreachable(&v6(UDP, &PORTS), Ipv6Addr::LOCALHOST).expect("answered");
    assert_eq!(carried(&reply), (ICMPV6, Transport::Icmp { kind: 1, code: 3 }));
    let length = u8::try_from(reply.len() - 40).expect("short");
    let pseudo = [0, 0, 0, length, 0, 0, 0, ICMPV6];
    assert_eq!(checksum(&[&reply[8..40], &pseudo, &reply[40..]]), 0);
}

#[test]
fn errors_fragments_and_groups_are_not_answered() {
    let answered = |packet: &[u8]| unreachable(packet, Ipv6Addr::LOCALHOST).is_some();
    assert!(answered(&v4(ICMP, 0, &[8, 0, 0, 0])) && answered(&v6(ICMPV6, &[128, 0, 0, 0])), "positive control");
    assert!(!answered(&v4(ICMP, 0, &[3, 1, 0, 0])));
    assert!(!answered(&v6(ICMPV6, &[1, 3, 0, 0])));
    let hidden = [&[ICMPV6, 0, 1, 4, 0, 0, 0, 0][..], &[1, 3, 0, 0]].concat();
    assert!(!answered(&v6(DESTINATION_OPTIONS, &hidden)), "an error behind an extension header");
    assert!(!answered(&v6(ICMPV6, &[1])) && !answered(&v4(ICMP, 0, &[])), "cut, and perhaps an error");
    assert!(!answered(&v4(UDP, 0x0001, &PORTS)));
    for (range, octet) in [(24..26, 0xff), (8..10, 0xff)] {
        let mut group = v6(UDP, &PORTS);
        group[range].fill(octet);
        assert!(!answered(&group));
    }
    for (at, octets) in [(12, [0, 0, 0, 0]), (16, [255, 255, 255, 255]), (16, [224, 0, 0, 1])] {
        let mut group = v4(UDP, 0, &PORTS);
        group[at..at + 4].copy_from_slice(&octets);
        assert!(!answered(&group));
    }
}

proptest! {
    #[test]
    fn any_bytes_parse_or_fail_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..128),
        version in 0u8..16,
        fits in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = *first & 0x0f | version << 4;
        }
        let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
        let payload = u16::try_from(bytes.len().saturating_sub(40)).expect("short").to_be_bytes();
        if fits && bytes.len() > 6 {
            let (at, value) = if version == 4 { (2, length) } else { (4, payload) };
            bytes[at..at + 2].copy_from_slice(&value);
        }
        let parsed = parse(&bytes);
        if Probe::decode(&bytes).is_some() {
            prop_assert!(parsed.is_ok());
        }
        if let Some(answer) = unreachable(&bytes, Ipv6Addr::LOCALHOST) {
            let answer = parse(&answer).expect("answers are packets");
            prop_assert_eq!(answer.destination, parsed.expect("only packets are answered").source);
        }
    }

    #[test]
    fn probes_round_trip(reply in any::<bool>(), in_use in any::<bool>(), token in any::<u64>()) {
        let (a, b) = ("fd00::1:0:0".parse().expect("valid"), "fd00::2:0:0".parse().expect("valid"));
        let packet = Probe { reply, in_use, token }.encode(a, b);
        prop_assert_eq!(Probe::decode(&packet), Some(Probe { reply, in_use, token }));
        let parsed = parse(&packet).expect("a packet");
        prop_assert_eq!((parsed.source, parsed.destination), (IpAddr::V6(a), IpAddr::V6(b)));
        let mut longer = packet.clone();
        longer.push(0);
        prop_assert_eq!(Probe::decode(&longer), None);
        let mut lying = packet;
        lying[5] += 1;
        prop_assert_eq!(Probe::decode(&lying), None);
    }
}
