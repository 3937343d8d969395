use std::time::Duration;

use super::*;
use crate::link::{BitRate, Family};

struct Wan {
    network: Network,
    start: Instant,
    ports: [PortId; 2],
}

impl Wan {
    fn new(seed: u64, options: &LinkOptions) -> Self {
        let mut network = Network::new(seed);
        let ports = [1, 2].map(|n| network.add_port(Prefixes::numbered(n), options.clone()));
        Self { network, start: Instant::now(), ports }
    }

    fn at(&self, millis: f64) -> Instant {
        self.start + Duration::from_secs_f64(millis / 1000.0)
    }

    /// Sends a datagram of `len` bytes of IP from site 1 to `to`.
    fn send(&mut self, millis: f64, to: &str, len: usize) {
        let to: IpAddr = to.parse().unwrap();
        let from: IpAddr = if to.is_ipv4() { "198.18.1.10" } else { "2001:db8:1::10" }.parse().unwrap();
        let header_len = if to.is_ipv4() { 28 } else { 48 };
        let mut packet = frame::udp_packet((from, 1), (to, 2), &vec![0; len - header_len]).unwrap();
        if to.is_ipv4() {
            packet[6] = 0x40;
        }
        let now = self.at(millis);
        self.network.handle_frame(now, self.ports[0], Frame::from_packet(&packet));
    }

    /// Runs until nothing is under way; returns (milliseconds, port, length) of all deliveries.
    fn run(&mut self) -> Vec<(f64, usize, usize)> {
        let mut seen = Vec::new();
        while let Some(at) = self.network.poll_timeout() {
            self.network.handle_timeout(at);
            while let Some((port, frame)) = self.network.poll_transmit() {
                let millis = (at - self.start).as_secs_f64() * 1000.0;
                seen.push(((millis * 1000.0).round() / 1000.0, port.0, frame.packet().len()));
            }
        }
        seen
    }
}

#[test]
fn delays_of_both_uplinks_add_up() {
    let mut wan = Wan::new(1, &LinkOptions::default());
    wan.network.port(PortId(1)).options.delay = Duration::from_millis(7);
    wan.send(0.0, "198.18.2.10", 100);
    wan.send(1.0, "2001:db8:2::10", 200);
    assert_eq!(wan.run(), [(12.0, 1, 100), (13.0, 1, 200)]);
    let (a, b) = (wan.network.port(PortId(0)).counters, wan.network.port(PortId(1)).counters);
    assert_eq!((a.up.packets, a.up.bytes, a.down.packets), (2, 300, 0));
    assert_eq!((b.down.packets, b.down.bytes, b.up.packets), (2, 300, 0));
}

#[test]
fn loss_is_counted_near_its_rate_and_equal_for_a_seed() {
    let options = LinkOptions { loss: 0.1, ..LinkOptions::default() };
    let run = |seed| {
        let mut wan = Wan::new(seed, &options);
        for i in 0..10_000_u32 {
            wan.send(f64::from(i), "198.18.2.10", 100);
        }
        let seen = wan.run();
        let lost = wan.network.port(PortId(0)).counters.up.lost + wan.network.port(PortId(1)).counters.down.lost;
        assert_eq!(lost, 10_000 - seen.len() as u64);
        seen
    };
    let seen = run(7);
    // 0.9 × 0.9 of 10,000, ± 5 standard deviations of 39.
    assert!((7_900..8_300).contains(&seen.len()), "{} arrived", seen.len());
    assert_eq!(seen, run(7));
    assert_ne!(seen, run(8));
}

#[test]
fn reordered_packets_are_overtaken() {
    let options = LinkOptions { reorder: 0.2, ..LinkOptions::default() };
    let mut wan = Wan::new(3, &options);
    for i in 0..100_u8 {
        wan.send(f64::from(i), "198.18.2.10", 100 + usize::from(i));
    }
    let lengths: Vec<usize> = wan.run().iter().map(|(_, _, len)| *len).collect();
    assert_eq!(lengths.len(), 100);
    let overtaken = lengths.windows(2).filter(|w| w[1] < w[0]).count();
    assert!((5..60).contains(&overtaken), "{overtaken} of 100 out of order");
}

#[test]
fn bandwidth_spaces_packets_and_a_full_queue_drops() {
    let mut wan = Wan::new(1, &LinkOptions { delay: Duration::ZERO, ..LinkOptions::default() });
    // 1,250 bytes per millisecond.
    let options = &mut wan.network.port(PortId(0)).options;
    options.bandwidth = Some(BitRate::mbit(10));
    options.queue = Duration::from_millis(3);
    for _ in 0..10 {
        wan.send(0.0, "198.18.2.10", 1250);
    }
    let times: Vec<f64> = wan.run().iter().map(|(at, _, _)| *at).collect();
    assert_eq!(times, [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(wan.network.port(PortId(0)).counters.up.queue_full, 6);
}

#[test]
fn cut_link_drops_also_what_is_under_way_and_heals() {
    let mut wan = Wan::new(1, &LinkOptions::default());
    wan.send(0.0, "198.18.2.10", 100);
    wan.network.port(PortId(0)).is_cut = true;
    wan.send(1.0, "198.18.2.10", 100);
    assert_eq!(wan.run(), []);
    assert_eq!(wan.network.port(PortId(0)).counters.up.cut, 2);
    wan.network.port(PortId(0)).is_cut = false;
    wan.send(20.0, "198.18.2.10", 100);
    assert_eq!(wan.run(), [(30.0, 1, 100)]);
}

#[test]
fn packet_over_the_mtu_is_refused_aloud_or_in_silence() {
    let mut wan = Wan::new(1, &LinkOptions::default());
    wan.network.port(PortId(1)).options.mtu = 1400;
    for to in ["198.18.2.10", "2001:db8:2::10"] {
        wan.send(0.0, to, 1400);
        wan.send(0.0, to, 1401);
    }
    // The answers take the 5 ms of site 1's downlink, from where the packet got stuck.
    assert_eq!(wan.run(), [(10.0, 1, 1400), (10.0, 0, 576), (10.0, 1, 1400), (10.0, 0, 1280)]);
    wan.network.port(PortId(1)).options.icmp_filtered = true;
    wan.send(20.0, "198.18.2.10", 1401);
    assert_eq!(wan.run(), []);
    assert_eq!(wan.network.port(PortId(1)).counters.down.too_big, 3);
}

#[test]
fn family_and_unknown_destinations_are_dropped_and_counted() {
    let mut wan = Wan::new(1, &LinkOptions::default());
    wan.network.port(PortId(0)).options.family = Family::V4;
    wan.send(0.0, "2001:db8:2::10", 100);
    wan.send(0.0, "198.18.77.1", 100);
    wan.send(0.0, "224.0.0.251", 100);
    assert_eq!(wan.run(), []);
    let up = wan.network.port(PortId(0)).counters.up;
    assert_eq!((up.wrong_family, up.no_route, up.packets), (1, 1, 2));
}

#[test]
fn renumbered_site_is_reached_at_its_new_addresses_only() {
    let mut wan = Wan::new(1, &LinkOptions::default());
    wan.network.port(PortId(1)).prefixes = Prefixes::numbered(9);
    wan.send(0.0, "198.18.2.10", 100);
    wan.send(0.0, "198.18.9.10", 100);
    assert_eq!(wan.run(), [(10.0, 1, 100)]);
}

#[test]
fn name_server_and_ping_answer_at_the_wan_itself() {
    let mut wan = Wan::new(1, &LinkOptions::default());
    wan.network.zone.set("a.example", vec!["198.18.2.10".parse().unwrap()]);
    let query = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";
    for server in ["198.18.0.53", "2001:db8::35"] {
        let server: IpAddr = server.parse().unwrap();
        let server = wan_address(server, NAME_SERVER);
        let from: IpAddr = if server.is_ipv4() { "198.18.1.10" } else { "2001:db8:1::10" }.parse().unwrap();
        let packet = frame::udp_packet((from, 4000), (server, 53), query).unwrap();
        let now = wan.start;
        wan.network.handle_frame(now, PortId(0), Frame::from_packet(&packet));
        wan.network.handle_timeout(now + Duration::from_millis(10));
        let (port, answer) = wan.network.poll_transmit().unwrap();
        assert_eq!(port, PortId(0));
        assert!(answer.packet().ends_with(&[198, 18, 2, 10]));
    }
    assert_eq!(wan.network.zone.queries, 2);
}
