//! The overlay's decoders, and its state machine under a script: the input is a list of operations on two nodes and the
//! wire between them, some of them hostile.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use vdc::{Key, NodePrefix, SiteNumber, VdcId, WgKey};
use vdc_overlay::demux::{self, Kind};
use vdc_overlay::packet::{self, Probe};
use vdc_overlay::sim::SimNoiseFactory;
use vdc_overlay::{Member, Overlay, OverlayConfig, PathAddress, TunnelIndex};

/// What comes first: any moment does, and one for all runs makes them repeatable.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

const ADDRESSES: [&str; 3] = ["192.0.2.1:4710", "192.0.2.2:4710", "198.51.100.66:4710"];
const ALICE: usize = 0;
const BOB: usize = 1;
const MALLORY: usize = 2;
/// Operations of one script, so that a long input is not a slow one.
const OPERATIONS_MAX: usize = 256;
/// Outputs of one operation: a queue of packets that waited for a tunnel, and some.
const OUTPUTS_MAX: usize = 2_000;

/// Classifies a datagram; whatever names a receiver must be long enough to have one.
pub(crate) fn classify(bytes: &[u8]) -> bool {
    match demux::classify(bytes) {
        Kind::Garbage => false,
        Kind::Data { .. } | Kind::HandshakeResponse { .. } | Kind::CookieReply { .. } => {
            assert!(bytes.len() >= 32, "too short for its kind");
            true
        }
        Kind::HandshakeInitiation | Kind::Quic | Kind::Stun | Kind::Frame => true,
    }
}

/// Parses a packet; what is answered to it must be a packet to its source, within the smallest MTU.
pub(crate) fn parse(bytes: &[u8]) -> bool {
    let parsed = packet::parse(bytes);
    if let Some(answer) = packet::unreachable(bytes, Ipv6Addr::LOCALHOST) {
        let parsed = parsed.expect("only packets are answered");
        let answered = packet::parse(&answer).expect("an answer is a packet");
        assert!(answered.destination == parsed.source, "an answer to somebody else");
        assert!(answer.len() <= 1_280, "{} bytes of answer", answer.len());
    }
    if Probe::decode(bytes).is_some() {
        assert!(parsed.is_ok(), "a probe that is no packet");
    }
    parsed.is_ok()
}

fn member(number: u8) -> Member {
    let node = Key([number; 32]);
    Member {
        node,
        wg: WgKey([number + 100; 32]),
        prefix: NodePrefix::derive(&VdcId([7; 32]), SiteNumber(1), &node, 0),
        ipv4: format!("10.64.0.{}/28", u32::from(number) * 16).parse().ok(),
    }
}

fn overlay(number: u8) -> Overlay<SimNoiseFactory> {
    let own = member(number);
    let factory = SimNoiseFactory::new(own.wg, Duration::from_secs(1_000_000), *START);
    let config = OverlayConfig { prefix: own.prefix, ipv4: own.ipv4, indices: 1..=8 };
    let mut overlay = Overlay::new(config, factory, [number; 32], *START);
    overlay.set_members(&[member(1), member(2)], *START);
    overlay
}

fn address(of: usize) -> SocketAddr {
    ADDRESSES[of].parse().expect("literal addresses")
}

/// A packet from one node's host to the other's, as a script's first operation.
#[must_use]
pub fn host_packet(from: u8, to: u8) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 4, 59, 64];
    for number in [from, to] {
        packet.extend(member(number).prefix.address(vdc::address::HOST).octets());
    }
    packet.extend(b"ping");
    packet
}

/// Two nodes, what flies between them, and the time.
struct Script {
    nodes: [Overlay<SimNoiseFactory>; 2],
    /// By sender.
    flying: [VecDeque<Vec<u8>>; 2],
    now: Instant,
}

impl Script {
    fn deliver(&mut self, to: usize, from: usize, datagram: &[u8]) {
        self.nodes[to].handle_datagram(PathAddress::main(address(from)), datagram, self.now);
    }

    /// Takes every output, and checks what must hold of each.
    fn drain(&mut self) {
        for own in [ALICE, BOB] {
            let peer = 1 - own;
            for count in 0.. {
                assert!(count < OUTPUTS_MAX, "outputs without end");
                let Some(transmit) = self.nodes[own].poll_transmit() else { break };
                if transmit.path.remote == address(peer) && self.flying[own].len() < OUTPUTS_MAX {
                    self.flying[own].push_back(transmit.datagram);
                }
            }
            while let Some(packet) = self.nodes[own].poll_tun() {
                let parsed = packet::parse(&packet).expect("what reaches the host is a packet");
                // Alice's host sends, so it may also get answers from its own node.
                if own == BOB {
                    let alice = member(1);
                    let is_alice = match parsed.source {
                        IpAddr::V6(source) => alice.prefix.contains(source),
                        IpAddr::V4(source) => alice.ipv4.is_some_and(|block| block.contains(source)),
                    };
                    assert!(is_alice, "a packet from {} came through Alice's tunnel", parsed.source);
                }
            }
            while self.nodes[own].poll_event().is_some() {}
        }
    }

    /// Lets time pass on both nodes; afterwards nothing may be due any more, or the driver would spin.
    fn advance(&mut self, by: Duration) {
        self.now += by;
        for node in &mut self.nodes {
            node.handle_timeout(self.now);
            node.handle_timeout(self.now);
            assert!(node.poll_timeout().is_none_or(|(at, _)| at > self.now), "due again: {:?}", node.poll_timeout());
        }
    }

    /// Performs one operation; none if the input does not hold a whole one.
    fn step(&mut self, input: &mut &[u8]) -> Option<()> {
        let (&[operation, argument], rest) = input.split_first_chunk()?;
        *input = rest;
        let now = self.now;
        let index = TunnelIndex(u32::from(argument) % 16);
        let hostile = PathAddress::main(address(MALLORY));
        match operation % 13 {
            0 => {
                let packet = take(input, argument)?;
                self.nodes[ALICE].handle_tun_packet(packet, now);
            }
            1 => {
                if let Some(datagram) = self.flying[ALICE].pop_front() {
                    self.deliver(BOB, ALICE, &datagram);
                }
            }
            2 => {
                if let Some(datagram) = self.flying[BOB].pop_front() {
                    self.deliver(ALICE, BOB, &datagram);
                }
            }
            3 => {
                if let Some(mut datagram) = self.flying[ALICE].pop_front() {
                    let at = usize::from(argument) % datagram.len().max(1);
                    if let Some(byte) = datagram.get_mut(at) {
                        *byte ^= 1 << (argument % 8);
                    }
                    self.deliver(BOB, ALICE, &datagram);
                }
            }
            4 => {
                // The same twice, and from somebody else's address.
                if let Some(datagram) = self.flying[ALICE].front().cloned() {
                    self.deliver(BOB, MALLORY, &datagram);
                    self.deliver(BOB, MALLORY, &datagram);
                }
            }
            5 => {
                let datagram = take(input, argument)?;
                self.deliver(BOB, MALLORY, datagram);
            }
            6 => self.advance(Duration::from_millis(50 * u64::from(argument))),
            7 => self.nodes[ALICE].set_candidates(&member(2).node, &[address(BOB)], now),
            8 => self.nodes[BOB].handle_boot_nonce(&member(1).node, [argument; 16], now),
            9 => self.nodes[BOB].handle_network_change(now),
            10 => self.nodes[BOB].handle_session_lost(index, now),
            11 => {
                self.nodes[BOB].handle_unknown_index(hostile, now);
                self.nodes[BOB].handle_roamed(index, hostile, now);
            }
            _ => {
                let both = [member(1), member(2)];
                self.nodes[BOB].set_members(&both[usize::from(argument % 2)..], now);
            }
        }
        self.drain();
        Some(())
    }
}

fn take<'a>(input: &mut &'a [u8], length: u8) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(usize::from(length))?;
    *input = rest;
    Some(taken)
}

/// Plays a script; accepted if Bob's tunnel is up in the end.
pub(crate) fn play(bytes: &[u8]) -> bool {
    let mut script =
        Script { nodes: [overlay(1), overlay(2)], flying: [VecDeque::new(), VecDeque::new()], now: *START };
    let mut input = bytes;
    for _ in 0..OPERATIONS_MAX {
        if script.step(&mut input).is_none() {
            break;
        }
    }
    script.nodes[BOB].tunnels().any(|tunnel| tunnel.path.is_some())
}
