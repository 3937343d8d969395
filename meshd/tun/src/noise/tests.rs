use std::net::SocketAddr;

use super::*;

const INDEX: TunnelIndex = TunnelIndex(0x0102);

fn pair() -> ((BoringFactory, BoringNoise), (BoringFactory, BoringNoise), Instant) {
    let now = Instant::now();
    let (mut a, mut b) = (BoringFactory::new([1; 32]), BoringFactory::new([2; 32]));
    let (tunnel_a, tunnel_b) = (a.tunnel(&b.public(), INDEX, now), b.tunnel(&a.public(), INDEX, now));
    ((a, tunnel_a), (b, tunnel_b), now)
}

fn remote() -> SocketAddr {
    "192.0.2.1:51820".parse().expect("an address")
}

/// An IPv4 packet with this many bytes of payload.
fn packet(payload: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20 + payload, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.resize(20 + usize::from(payload), payload);
    packet
}

/// Shakes hands from `a` to `b`; `a`'s confirmation is not delivered yet but returned.
fn shake(a: &mut BoringNoise, b: &mut BoringNoise, now: Instant) -> Vec<u8> {
    let (mut out, mut answer) = (Vec::new(), Vec::new());
    assert!(a.initiate(&mut out, now));
    assert_eq!(b.decapsulate(remote(), &out, &mut answer, now), Opened::Reply { session: false });
    assert_eq!(a.decapsulate(remote(), &answer, &mut out, now), Opened::Reply { session: true });
    out
}

#[test]
fn session_carries_data_both_ways_after_one_round_trip() {
    let ((_, mut a), (_, mut b), now) = pair();
    let mut out = Vec::new();
    assert_eq!(a.encapsulate(&packet(1), &mut out, now), Sealed::NoSession);
    assert!(out.is_empty(), "nothing is kept inside");
    let confirmation = shake(&mut a, &mut b, now);
    assert_eq!(b.encapsulate(&packet(1), &mut out, now), Sealed::NoSession, "not before it is confirmed");
    assert_eq!(b.decapsulate(remote(), &confirmation, &mut out, now), Opened::Keepalive);
    let mut opened = Vec::new();
    assert_eq!(a.encapsulate(&packet(9), &mut out, now), Sealed::Data);
    assert_eq!(b.decapsulate(remote(), &out, &mut opened, now), Opened::Packet);
    assert_eq!(opened, packet(9));
    assert_eq!(b.encapsulate(&packet(7), &mut out, now), Sealed::Data);
    assert_eq!(a.decapsulate(remote(), &out, &mut opened, now), Opened::Packet);
    assert_eq!(opened, packet(7));
    let status = a.status(now);
    assert_eq!((status.has_session, status.sent_bytes, status.received_bytes), (true, 29, 27));
    assert!(status.last_sent.is_some() && status.handshake_age.is_some());
}

#[test]
fn repeated_tampered_and_foreign_datagrams_are_refused() {
    let ((_, mut a), (_, mut b), now) = pair();
    let confirmation = shake(&mut a, &mut b, now);
    let (mut datagram, mut out) = (Vec::new(), Vec::new());
    b.decapsulate(remote(), &confirmation, &mut out, now);
    assert_eq!(a.encapsulate(&packet(9), &mut datagram, now), Sealed::Data);
    assert_eq!(b.decapsulate(remote(), &datagram, &mut out, now), Opened::Packet);
    assert_eq!(b.decapsulate(remote(), &datagram, &mut out, now), Opened::Refused(Refusal::Replay));
    let mut broken = datagram.clone();
    broken[8] = 77;
    assert_eq!(b.decapsulate(remote(), &broken, &mut out, now), Opened::Refused(Refusal::Forged));
    // A counter near the end of its range would overflow the window's arithmetic.
    broken[8..16].fill(0xff);
    assert_eq!(b.decapsulate(remote(), &broken, &mut out, now), Opened::Refused(Refusal::Forged));
    let mut unknown = datagram.clone();
    unknown[4] ^= 4;
    assert_eq!(b.decapsulate(remote(), &unknown, &mut out, now), Opened::Refused(Refusal::NoSession));
    for length in 0..datagram.len() {
        let opened = b.decapsulate(remote(), &datagram[..length], &mut out, now);
        assert!(matches!(opened, Opened::Refused(_) | Opened::Nothing), "{length}: {opened:?}");
    }
}

#[test]
fn initiations_are_rate_limited_and_replays_of_them_refused() {
    let ((_, mut a), (_, mut b), now) = pair();
    let (mut initiation, mut out) = (Vec::new(), Vec::new());
    assert!(a.initiate(&mut initiation, now));
    assert!(!a.initiate(&mut out, now + Duration::from_millis(100)));
    assert!(a.initiate(&mut out, now + Duration::from_millis(300)));
    assert_eq!(b.decapsulate(remote(), &initiation, &mut out, now), Opened::Reply { session: false });
    assert_eq!(b.decapsulate(remote(), &initiation, &mut out, now), Opened::Refused(Refusal::Replay));
}

#[test]
fn factory_tells_whose_handshake_it_is() {
    let ((a_keys, mut a), (mut b_keys, _), now) = pair();
    let (mut initiation, mut out) = (Vec::new(), Vec::new());
    assert!(a.initiate(&mut initiation, now));
    assert!(b_keys.is_for_us(&initiation));
    assert_eq!(b_keys.identify(&initiation, remote(), &mut out, now), Identified::Peer(a_keys.public()));
    let mut stranger = BoringFactory::new([3; 32]);
    assert!(!stranger.is_for_us(&initiation));
    assert_eq!(stranger.identify(&initiation, remote(), &mut out, now), Identified::NotOurs);
    let mut tampered = initiation.clone();
    tampered[50] ^= 1;
    assert_eq!(b_keys.identify(&tampered, remote(), &mut out, now), Identified::NotOurs);
    for length in 0..initiation.len() {
        assert!(!b_keys.is_for_us(&initiation[..length]));
    }
}

#[test]
fn flood_is_answered_with_cookies_that_work() {
    let ((a_keys, mut a), (mut b_keys, _), now) = pair();
    let (mut initiation, mut out) = (Vec::new(), Vec::new());
    assert!(a.initiate(&mut initiation, now));
    let mut identified = Identified::Refused;
    // The limiter starts a new second now and then, so twice the limit is sure to exceed it once.
    for _ in 0..HANDSHAKES_PER_SECOND * 2 {
        identified = b_keys.identify(&initiation, remote(), &mut out, now);
        if identified == Identified::Reply {
            break;
        }
    }
    assert_eq!(identified, Identified::Reply);
    assert_eq!(a.decapsulate(remote(), &out.clone(), &mut initiation, now), Opened::Nothing);
    assert!(a.initiate(&mut initiation, now + Duration::from_secs(1)));
    assert_eq!(b_keys.identify(&initiation, remote(), &mut out, now), Identified::Peer(a_keys.public()));
}
