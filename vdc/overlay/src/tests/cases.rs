//! Opening, using and closing tunnels.

use vdc::address::{HOST, INFRA};
use vdc::{Key, NodePrefix, SiteNumber, VdcId};

use super::wire::{MS, SECOND, Wire, at, packet, source};
use crate::overlay::{IDLE_MAX, IN_USE};
use crate::{DropReason, Event, QUEUE_PACKETS_MAX, Tier, TunnelState};

#[test]
fn first_packet_arrives_after_one_and_a_half_round_trips() {
    let mut wire = Wire::new(2);
    let there = wire.packet(0, 1, 100);
    wire.send(0, &there);
    wire.run(59 * MS);
    assert!(wire.nodes[1].received.is_empty());
    wire.run(2 * MS);
    assert_eq!(wire.nodes[1].received, [there]);
    let back = wire.packet(1, 0, 10);
    wire.send(1, &back);
    wire.run(21 * MS);
    assert_eq!(wire.nodes[0].received, [back], "the responder answers over the same session");
    let view = wire.view(0);
    assert_eq!((view.state, view.rtt, view.queued), (TunnelState::Up, Some(40 * MS), 0));
    assert_eq!(view.path.map(|(_, tier)| tier), Some(Tier::Host));
    assert_eq!(wire.nodes[1].events, [Event::TunnelUp(wire.nodes[0].member.node)], "who is called asks nobody");
}

#[test]
fn packets_of_both_families_are_routed_by_exact_prefix() {
    let mut wire = Wire::new(3);
    let block = |seed: usize| wire.nodes[seed].member.ipv4.and_then(|block| block.address(HOST)).expect("a block");
    let (from, to) = (block(0), block(2));
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend([0; 8]);
    wire.send(0, &packet);
    wire.run(SECOND);
    assert_eq!(wire.nodes[2].received, [packet]);
    assert!(wire.nodes[1].received.is_empty());
}

#[test]
fn unknown_destination_is_told_unreachable_in_its_own_name() {
    let mut wire = Wire::new(2);
    let stranger = NodePrefix::derive(&VdcId([1; 32]), SiteNumber(1), &Key([9; 32]), 0).address(HOST);
    let (host, infra) = (wire.host(0), wire.nodes[0].member.prefix.address(INFRA));
    wire.send(0, &packet(host, stranger, 10));
    assert_eq!(wire.drops(0, DropReason::NoRoute), 1);
    assert_eq!(wire.nodes[0].received[0][40..42], [1, 3], "ICMPv6 destination unreachable");
    assert_eq!(source(&wire.nodes[0].received[0]), stranger, "no firewall takes it for the infra plane's");
    wire.send(0, &packet(host, stranger, 10));
    assert_eq!(wire.nodes[0].received.len(), 1, "not one for each packet");
    wire.send(0, &packet(host, infra, 10));
    assert_eq!(wire.drops(0, DropReason::NoRoute), 3, "ourselves are no peer");
    assert_eq!(wire.sent, 0);
}

#[test]
fn flood_to_an_unreachable_peer_is_bounded_and_given_back() {
    let mut wire = Wire::new(2);
    wire.nodes[1].answers = false;
    let packet = wire.packet(0, 1, 1000);
    for _ in 0..1000 {
        wire.send(0, &packet);
    }
    assert_eq!(wire.drops(0, DropReason::QueueFull), 1000 - u64::try_from(QUEUE_PACKETS_MAX).expect("small"));
    assert_eq!(wire.view(0).queued, QUEUE_PACKETS_MAX);
    wire.run(6 * SECOND);
    assert_eq!(wire.drops(0, DropReason::Unreached), u64::try_from(QUEUE_PACKETS_MAX).expect("small"));
    assert_eq!(wire.nodes[0].received.len(), 1, "one unreachable message");
    assert_eq!(wire.view(0).reason.as_deref(), Some("out of reach"));
    assert!(wire.questions <= 4, "{} questions", wire.questions);
    assert_eq!(wire.sent, 0, "nowhere to send");
    wire.nodes[1].answers = true;
    for _ in 0..31 {
        wire.send(0, &packet);
        wire.run(SECOND);
    }
    assert!(!wire.nodes[1].received.is_empty(), "it recovers by itself");
}

#[test]
fn failed_tunnel_is_shown_for_a_while_and_then_forgotten() {
    let mut wire = Wire::new(2);
    wire.nodes[1].answers = false;
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.run(50 * SECOND);
    assert_eq!(wire.view(0).state, TunnelState::Connecting);
    wire.run(50 * SECOND);
    assert!(wire.nodes[0].overlay.views(wire.now).is_empty());
    assert_eq!(wire.nodes[0].overlay.poll_timeout(), None);
}

#[test]
fn peer_that_could_not_be_asked_is_asked_again_for_a_later_packet() {
    let mut wire = Wire::new(2);
    wire.nodes[1].answers = false;
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.run(20 * SECOND);
    let questions = wire.questions;
    wire.nodes[1].answers = true;
    wire.send(0, &packet);
    wire.run(61 * MS);
    assert_eq!((wire.questions, wire.nodes[1].received.len()), (questions + 1, 1));
}

#[test]
fn question_without_an_answer_is_asked_again_while_packets_wait() {
    let mut wire = Wire::new(2);
    let (peer, packet) = (wire.nodes[1].member.node, wire.packet(0, 1, 10));
    let overlay = &mut wire.nodes[0].overlay;
    let mut questions = 0;
    for second in 0..120u32 {
        let now = wire.now + SECOND * second;
        overlay.handle_timeout(now);
        overlay.handle_tun_packet(&packet, now);
        while let Some(event) = overlay.poll_event() {
            assert_eq!(event, Event::EndpointsWanted(peer));
            questions += 1;
        }
    }
    assert!((3..=10).contains(&questions), "{questions}: one at a time, each given up after 10 s, with growing pauses");
}

#[test]
fn idle_tunnel_closes_and_nothing_is_sent_to_idle_peers() {
    let mut wire = Wire::new(2);
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.run(IN_USE + SECOND);
    let quiet_from = wire.sent;
    wire.run(IDLE_MAX);
    assert_eq!(wire.sent, quiet_from, "neither probes nor keepalives while idle");
    assert!(wire.nodes.iter().all(|n| n.overlay.views(wire.now).is_empty()), "both ends have closed");
    wire.run(3600 * SECOND);
    assert_eq!(wire.sent, quiet_from, "an idle peer costs nothing");
    assert_eq!(wire.nodes[0].overlay.poll_timeout(), None);
    wire.send(0, &packet);
    wire.run(SECOND);
    assert_eq!(wire.nodes[1].received.len(), 2, "and opens again on demand");
}

#[test]
fn probes_do_not_keep_a_tunnel_open() {
    let mut wire = Wire::new(2);
    let opened = wire.now;
    wire.talk(0, 1, 20 * SECOND);
    let last = wire.log.len();
    wire.run(IDLE_MAX * 2);
    let afterwards = wire.log[last..].last().map(|(at, ..)| *at);
    assert!(afterwards.is_some_and(|at| at < 20 * SECOND + IN_USE + SECOND), "last datagram after {afterwards:?}");
    assert!(wire.nodes.iter().all(|n| n.overlay.views(wire.now).is_empty()));
    assert!(wire.now > opened);
}

#[test]
fn long_session_is_renewed_without_loss() {
    let mut wire = Wire::new(2);
    assert_eq!(wire.talk(0, 1, 600 * SECOND), (6000, 6000));
    assert_eq!(wire.drops(0, DropReason::Forged) + wire.drops(1, DropReason::Forged), 0);
}

#[test]
fn one_way_traffic_keeps_its_tunnel_and_path() {
    let mut wire = Wire::new(2);
    let packet = wire.packet(0, 1, 10);
    for _ in 0..600 {
        wire.send(0, &packet);
        wire.run(SECOND);
    }
    assert_eq!(wire.nodes[1].received.len(), 600);
    let down = |node: usize| wire.nodes[node].events.iter().filter(|e| matches!(e, Event::TunnelDown(_))).count();
    assert_eq!((down(0), down(1)), (0, 0));
}

#[test]
fn both_ends_opening_at_once_meet() {
    let mut wire = Wire::new(2);
    let (there, back) = (wire.packet(0, 1, 10), wire.packet(1, 0, 10));
    wire.send(0, &there);
    wire.send(1, &back);
    wire.run(SECOND);
    assert_eq!((wire.nodes[0].received.len(), wire.nodes[1].received.len()), (1, 1));
    assert_eq!(wire.talk(0, 1, 10 * SECOND), (100, 100));
}

#[test]
fn revoked_member_is_cut_off_at_once() {
    let mut wire = Wire::new(3);
    wire.talk(0, 1, SECOND);
    let before = wire.nodes[1].received.len();
    let others = [wire.nodes[2].member.clone()];
    let in_flight = wire.packet(0, 1, 10);
    wire.send(0, &in_flight);
    wire.tell(1, |overlay, now| overlay.set_members(&others, now));
    assert!(wire.nodes[1].overlay.views(wire.now).is_empty());
    assert_eq!(wire.nodes[1].events.last(), Some(&Event::TunnelDown(wire.nodes[0].member.node)));
    for _ in 0..20 {
        wire.send(0, &in_flight);
        wire.run(SECOND);
    }
    assert_eq!(wire.nodes[1].received.len(), before, "nothing more is accepted, not even what was under way");
    assert!(wire.drops(1, DropReason::NotMember) > 0, "its handshakes are refused");
    let back = wire.packet(1, 0, 10);
    wire.send(1, &back);
    assert_eq!(wire.drops(1, DropReason::NoRoute), 1);
}

#[test]
fn renewed_member_with_the_same_keys_keeps_its_tunnel() {
    let mut wire = Wire::new(2);
    wire.talk(0, 1, SECOND);
    let everybody = [wire.nodes[0].member.clone(), wire.nodes[1].member.clone()];
    let version = wire.nodes[0].overlay.snapshot_version();
    wire.tell(0, |overlay, now| overlay.set_members(&everybody, now));
    assert_eq!(wire.nodes[0].overlay.snapshot_version(), version);
    assert_eq!(wire.view(0).state, TunnelState::Up);
}

#[test]
fn candidates_pushed_before_they_are_asked_for_are_used() {
    let mut wire = Wire::new(2);
    wire.nodes[1].answers = false;
    let peer = wire.nodes[1].member.node;
    wire.tell(0, |overlay, now| overlay.set_candidates(&peer, &[at("192.0.2.2:4710")], now));
    assert_eq!(wire.sent, 0, "nobody has asked for a tunnel");
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.run(61 * MS);
    assert_eq!(wire.nodes[1].received, [packet]);
}

#[test]
fn packet_threads_picture_has_a_path_only_while_the_tunnel_carries_data() {
    let mut wire = Wire::new(2);
    let path = |wire: &Wire| wire.nodes[0].overlay.tunnels().map(|t| t.path.is_some()).collect::<Vec<_>>();
    assert!(path(&wire).is_empty());
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    let version = wire.nodes[0].overlay.snapshot_version();
    assert_eq!(path(&wire), [false]);
    wire.run(SECOND);
    assert_eq!(path(&wire), [true]);
    assert!(wire.nodes[0].overlay.snapshot_version() > version);
}
