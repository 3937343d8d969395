//! Links between members.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use meshd_control::{CallError, LinkDownReason, ListenError, Transport, start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use vdc::peer;
use vdc::record::ContactAddress;

use crate::harness::{
    Answers, LOOPBACK, Node, PATIENCE, Saw, Setup, contacts, hello, introduce, key, members, question,
};

#[tokio::test]
async fn members_link_over_quic_and_ask_each_other() {
    let (mut a, mut b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    a.handle.set_wanted([b.key]);

    let (address, transport, theirs) = a.wait_up(b.key).await;
    assert_eq!((address, transport), (b.address(), Transport::Quic));
    assert_eq!(theirs, peer::Hello { observed: Some(LOOPBACK), ..hello(2) });
    let (address, transport, theirs) = b.wait_up(a.key).await;
    assert_eq!((address, transport), (a.address(), Transport::Quic), "QUIC leaves from the port it listens on");
    assert_eq!(theirs, peer::Hello { observed: Some(LOOPBACK), ..hello(1) });

    a.ask(b.key).await;
    b.ask(a.key).await;
    let asked = b.wait("a request", |s| match s {
        Saw::Request { from, request } => Some((*from, request.clone())),
        _ => None,
    });
    assert_eq!(asked.await, (a.key, question()));

    let mut links = a.handle.watch_links();
    let seen = timeout(PATIENCE, links.wait_for(|l| l.iter().any(|l| l.rtt.is_some()))).await;
    let links = seen.expect("the round trip is measured").expect("the node runs").clone();
    assert_eq!(links.len(), 1);
    assert_eq!((links[0].node, links[0].dialled, links[0].version.as_str()), (b.key, true, "0.1.0"));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn members_link_over_tcp_where_udp_is_dropped() {
    let (mut a, mut b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    // A firewall: TCP passes, UDP to the same port goes nowhere.
    let (mut tasks, door, _) = tcp_proxy(b.address()).await;
    a.handle.set_contacts(contacts(&[(b.key, door)]));
    a.handle.set_wanted([b.key]);
    let (address, transport, _) = a.wait_up(b.key).await;
    assert_eq!((address, transport), (door, Transport::Tcp));
    assert_eq!(b.wait_up(a.key).await.1, Transport::Tcp);
    a.ask(b.key).await;
    b.ask(a.key).await;
    // A long message crosses many windows.
    let long =
        peer::Request::Sync(vdc::sync::Message::Records(vec![vdc::sync::Packed::Bytes(vec![7; 1 << 20].into())]));
    let answer = a.handle.request(b.key, long, PATIENCE).await.expect("it fits");
    assert_eq!(answer, peer::Response::Done);
    tasks.abort_all();
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn idle_tcp_link_is_silent() {
    let (mut a, mut b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    let (mut tasks, door, bytes) = tcp_proxy(b.address()).await;
    a.handle.set_contacts(contacts(&[(b.key, door)]));
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    b.wait_up(a.key).await;
    a.ask(b.key).await;
    wait_for_quiet(&bytes).await;
    let before = bytes.load(Ordering::SeqCst);
    assert!(before > 100, "positive control: the link runs through the proxy");
    // Longer than the pause between pings that the multiplexer sends on a busy connection.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(bytes.load(Ordering::SeqCst), before, "bytes in 12 s of idling");
    a.ask(b.key).await;
    tasks.abort_all();
    a.stop().await;
    b.stop().await;
}

/// Waits until nothing was counted for half a second: the last acknowledgements come within their delay of 25 ms.
async fn wait_for_quiet(counter: &AtomicU64) {
    let quiet = async {
        let mut last = counter.load(Ordering::SeqCst);
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = counter.load(Ordering::SeqCst);
            if now == last {
                return;
            }
            last = now;
        }
    };
    timeout(PATIENCE, quiet).await.expect("the exchange ends");
}

/// Carries TCP to `to`, drops UDP, and counts the bytes carried.
async fn tcp_proxy(to: SocketAddr) -> (JoinSet<()>, SocketAddr, Arc<AtomicU64>) {
    // The UDP socket keeps the port from answering with an ICMP error.
    let (listener, udp) = loop {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        if let Ok(udp) = UdpSocket::bind(address).await {
            break (listener, udp);
        }
    };
    let address = listener.local_addr().expect("it is bound");
    let bytes = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&bytes);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _udp = udp;
        let mut streams = JoinSet::new();
        while let Ok((inner, _)) = listener.accept().await {
            let outer = TcpStream::connect(to).await.expect("the node listens");
            let ((read_in, write_in), (read_out, write_out)) = (inner.into_split(), outer.into_split());
            streams.spawn(carry(read_in, write_out, Arc::clone(&counter)));
            streams.spawn(carry(read_out, write_in, Arc::clone(&counter)));
        }
    });
    (tasks, address, bytes)
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counter: Arc<AtomicU64>) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length) = from.read(&mut buffer).await {
        counter.fetch_add(length as u64, Ordering::SeqCst);
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn request_dials_on_demand_and_idle_link_closes() {
    let mut setup = Setup::new(1);
    setup.link_idle = Duration::from_millis(300);
    let (mut a, mut b) = (Node::start(&setup), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    a.ask(b.key).await;
    b.wait_up(a.key).await;
    assert!(matches!(a.wait_down(b.key).await, LinkDownReason::Closed(_)));
    assert!(matches!(b.wait_down(a.key).await, LinkDownReason::Closed(_)));

    // Wanted, it stays: it is still there after many idle times.
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    let down = timeout(10 * setup.link_idle, a.wait_down(b.key)).await;
    assert!(down.is_err(), "a wanted link does not close");
    // No longer wanted, it closes.
    a.handle.set_wanted([]);
    assert!(matches!(a.wait_down(b.key).await, LinkDownReason::Closed(_)));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn contact_by_name_is_resolved() {
    let (a, b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    let by_name = |name: &str| {
        let address = ContactAddress::Dns(name.to_owned(), b.handle.port());
        a.handle.set_contacts(Arc::new(BTreeMap::from([(b.key, vec![address])])));
    };
    by_name("localhost");
    a.ask(b.key).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn stranger_is_refused_in_both_directions() {
    let (mut a, mut b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    let mut stranger = Node::start(&Setup::new(3));
    introduce(&[&a, &b]);
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    b.wait_up(a.key).await;

    // Towards a: the stranger believes that all are members.
    stranger.handle.set_members(members(&[a.key, b.key, stranger.key]));
    stranger.handle.set_contacts(contacts(&[(a.key, a.address()), (b.key, b.address())]));
    stranger.handle.set_wanted([b.key]);
    let error = stranger.handle.request(a.key, question(), PATIENCE).await.expect_err("refused");
    let CallError::Unreachable { attempts } = error.cause else { panic!("{error:?}") };
    assert!(attempts.iter().any(|t| t.address == a.address().to_string()), "{attempts:?}");
    assert!(a.handle.counters().refused.load(Ordering::Relaxed) > 0, "it is counted");

    // From a, which believes that the stranger is a member, which the stranger does not believe of a.
    a.handle.set_members(members(&[a.key, b.key, stranger.key]));
    a.handle.set_contacts(contacts(&[(b.key, b.address()), (stranger.key, stranger.address())]));
    stranger.handle.set_wanted([]);
    stranger.handle.set_members(members(&[stranger.key]));
    let error = a.handle.request(stranger.key, question(), PATIENCE).await.expect_err("refused");
    assert!(matches!(error.cause, CallError::Unreachable { .. }), "{error:?}");
    // Not a member here: not even dialled.
    let error = b.handle.request(stranger.key, question(), PATIENCE).await.expect_err("refused");
    assert!(matches!(error.cause, CallError::NotMember), "{error:?}");

    a.ask(b.key).await;
    b.ask(a.key).await;
    stranger.handle.shutdown();
    for node in [&mut a, &mut b, &mut stranger] {
        while let Ok(saw) = node.saw.try_recv() {
            let with_stranger = match &saw {
                Saw::Up { node: peer, .. } | Saw::Down { node: peer, .. } | Saw::Greeted { node: peer, .. } => {
                    *peer == key(3) || node.key == key(3)
                }
                Saw::Request { from, .. } => *from == key(3) || node.key == key(3),
                Saw::Door { .. } | Saw::Seen { .. } | Saw::Restarted => false,
            };
            assert!(!with_stranger, "{saw:?}");
        }
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn removed_member_loses_its_links_at_once() {
    let (mut a, mut b, mut c) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)), Node::start(&Setup::new(3)));
    introduce(&[&a, &b, &c]);
    a.handle.set_wanted([b.key, c.key]);
    b.handle.set_wanted([a.key]);
    a.wait_up(b.key).await;
    a.wait_up(c.key).await;
    b.wait_up(a.key).await;
    c.wait_up(a.key).await;

    let removed_at = Instant::now();
    a.handle.set_members(members(&[a.key, c.key]));
    assert_eq!(a.wait_down(b.key).await, LinkDownReason::Removed);
    // Where both had dialled, one of the two connections may be missed before the other.
    let mut reason = b.wait_down(a.key).await;
    while reason == LinkDownReason::Replaced {
        reason = b.wait_down(a.key).await;
    }
    assert!(matches!(reason, LinkDownReason::Closed(_)), "{reason:?}");
    let took = removed_at.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    let error = b.handle.request(a.key, question(), PATIENCE).await.expect_err("refused");
    assert!(matches!(error.cause, CallError::Unreachable { .. } | CallError::LinkLost), "{error:?}");
    let error = a.handle.request(b.key, question(), PATIENCE).await.expect_err("refused");
    assert!(matches!(error.cause, CallError::NotMember), "{error:?}");
    a.ask(c.key).await;

    // Admitted again, it returns by itself.
    a.handle.set_members(members(&[a.key, b.key, c.key]));
    b.wait_up(a.key).await;
    b.ask(a.key).await;
    a.stop().await;
    b.stop().await;
    c.stop().await;
}

#[tokio::test]
async fn unanswered_request_ends_at_its_deadline() {
    let mut setup = Setup::new(2);
    setup.answers = Answers::Never;
    let (a, b) = (Node::start(&Setup::new(1)), Node::start(&setup));
    introduce(&[&a, &b]);
    // The link comes up first, so that the deadline is the answer's.
    let mut links = a.handle.watch_links();
    a.handle.set_wanted([b.key]);
    timeout(PATIENCE, links.wait_for(|l| !l.is_empty())).await.expect("link up").expect("the node runs");
    let asked_at = Instant::now();
    let deadline = Duration::from_millis(400);
    let error = a.handle.request(b.key, question(), deadline).await.expect_err("nobody answers");
    assert!(matches!(error.cause, CallError::Deadline), "{error:?}");
    assert!(asked_at.elapsed() >= deadline);
    // The link outlives it.
    b.ask(a.key).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn unreachable_node_is_named_with_what_was_tried() {
    let (a, b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    let nobody = b.address();
    let b_key = b.key;
    b.stop().await;
    let error = a.handle.request(b_key, question(), PATIENCE).await.expect_err("nobody is there");
    let CallError::Unreachable { attempts } = &error.cause else { panic!("{error:?}") };
    for transport in [Transport::Quic, Transport::Tcp] {
        let tried = attempts.iter().any(|t| t.transport == Some(transport) && t.address == nobody.to_string());
        assert!(tried, "{transport}: {attempts:?}");
    }
    let text = format!("{error}: {}", error.cause);
    assert!(text.contains(&nobody.to_string()) && text.contains("refused"), "{text}");
    // A link that is wanted and missing says why.
    a.handle.set_wanted([b_key]);
    let wait = async {
        loop {
            let missing = a.handle.missing();
            if let [view] = &missing[..]
                && view.node == b_key
                && view.attempts.iter().any(|t| t.why.contains("refused"))
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.expect("the missing link is shown");
    a.handle.set_wanted([]);
    // Somebody else on that address is not taken for it.
    let mut setup = Setup::new(3);
    setup.port = nobody.port();
    let imposter = Node::restart(&setup).await;
    let wait = async {
        loop {
            let error = a.handle.request(b_key, question(), PATIENCE).await.expect_err("the key differs");
            if error.to_string().contains(&b_key.short()) && error.cause.to_string().contains("another node") {
                return;
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("the imposter is recognised");
    a.stop().await;
    imposter.stop().await;
}

#[tokio::test]
async fn link_returns_after_the_peer_restarts() {
    let (mut a, b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    let mut again = Setup::new(2);
    again.port = b.handle.port();
    again.boot = 77;
    let (a_key, b_key) = (a.key, b.key);
    b.stop().await;
    assert!(matches!(a.wait_down(b_key).await, LinkDownReason::Closed(_)));

    let b = Node::restart(&again).await;
    b.handle.set_members(members(&[a_key, b_key]));
    let (_, _, theirs) = a.wait_up(b_key).await;
    assert_eq!(theirs.boot_nonce, [77; 16]);
    a.ask(b_key).await;
    b.ask(a_key).await;
    a.stop().await;
    b.stop().await;
}

#[test]
fn link_returns_at_once_after_the_peer_is_killed() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let (ours, theirs) = (runtime(), runtime());
    let mut a = ours.block_on(async { Node::start(&Setup::new(1)) });
    let b = theirs.block_on(async { Node::start(&Setup::new(2)) });
    introduce(&[&a, &b]);
    let (a_key, b_key, a_address) = (a.key, b.key, a.address());
    a.handle.set_wanted([b_key]);
    ours.block_on(a.wait_up(b_key));
    let mut again = Setup::new(2);
    again.port = b.handle.port();
    again.boot = 77;
    // Nothing says goodbye: the tasks that would are gone with their runtime.
    drop(b);
    theirs.shutdown_timeout(PATIENCE);

    ours.block_on(async {
        let restarted_at = Instant::now();
        let b = Node::restart(&again).await;
        b.handle.set_members(members(&[a_key, b_key]));
        b.handle.set_contacts(contacts(&[(a_key, a_address)]));
        b.handle.set_wanted([a_key]);
        let (_, _, theirs) = a.wait_up(b_key).await;
        assert_eq!(theirs.boot_nonce, [77; 16]);
        let took = restarted_at.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        a.ask(b_key).await;
        b.ask(a_key).await;
        a.stop().await;
        b.stop().await;
    });
}

#[tokio::test]
async fn two_nodes_that_dial_each_other_agree_on_one_connection() {
    for round in 0..5 {
        let (a, b) = (Node::start(&Setup::new(10 + 2 * round)), Node::start(&Setup::new(11 + 2 * round)));
        introduce(&[&a, &b]);
        a.handle.set_wanted([b.key]);
        b.handle.set_wanted([a.key]);
        let (mut at_a, mut at_b) = (a.handle.watch_links(), b.handle.watch_links());
        let agree = async {
            loop {
                let (x, y) = (at_a.borrow_and_update().clone(), at_b.borrow_and_update().clone());
                if x.len() == 1 && y.len() == 1 && x[0].dialled != y[0].dialled {
                    return;
                }
                // cancel-safe: both are watches, looked at again at the top.
                tokio::select! {
                    changed = at_a.changed() => changed.expect("the node runs"),
                    changed = at_b.changed() => changed.expect("the node runs"),
                }
            }
        };
        timeout(PATIENCE, agree).await.expect("one of the two dialled, in the view of both");
        // Nothing is lost while the surplus connection retires.
        let until = Instant::now() + if round == 0 { Duration::from_secs(7) } else { Duration::ZERO };
        let mut beat = tokio::time::interval(Duration::from_millis(20));
        loop {
            beat.tick().await;
            a.ask(b.key).await;
            b.ask(a.key).await;
            if Instant::now() >= until {
                break;
            }
        }
        a.stop().await;
        b.stop().await;
    }
}

#[tokio::test]
async fn panic_in_the_swarm_is_reported_and_links_return() {
    let armed = Arc::new(AtomicBool::new(false));
    let mut setup = Setup::new(1);
    let trigger = Arc::clone(&armed);
    setup.hello = Some(Arc::new(move || {
        assert!(!trigger.swap(false, Ordering::SeqCst), "a bug, for the test");
        hello(1)
    }));
    let (mut a, mut b) = (Node::start(&setup), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    b.wait_up(a.key).await;
    armed.store(true, Ordering::SeqCst);
    a.handle.greet_again().await;
    assert_eq!(a.wait_down(b.key).await, LinkDownReason::Local);
    a.wait("restart", |s| matches!(s, Saw::Restarted).then_some(())).await;
    a.wait_up(b.key).await;
    a.ask(b.key).await;
    b.ask(a.key).await;
    a.stop().await;
    b.stop().await;
}

/// Two nodes with a link whose datagrams pass a proxy.
async fn linked_by_proxy() -> (Node, Node, UdpProxy) {
    let (mut a, mut b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    let proxy = UdpProxy::start(b.address()).await;
    a.handle.set_contacts(contacts(&[(b.key, proxy.address)]));
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    b.wait_up(a.key).await;
    (a, b, proxy)
}

#[tokio::test]
async fn network_change_checks_links_and_drops_dead_ones() {
    let (mut a, mut b, proxy) = linked_by_proxy().await;
    a.handle.greet_again().await;
    let heard = |of| move |s: &Saw| matches!(s, Saw::Greeted { node, .. } if *node == of).then_some(());
    a.wait("the other's time", heard(b.key)).await;
    b.wait("the other's time", heard(a.key)).await;
    a.ask(b.key).await;
    // The way is gone, silently; another one is known by the time we notice.
    proxy.cut.store(true, Ordering::SeqCst);
    a.handle.dial(b.key, b.address()).await;
    a.handle.greet_again().await;
    assert_eq!(a.wait_down(b.key).await, LinkDownReason::Replaced, "dialled anew before the check is over");
    a.wait_up(b.key).await;
    a.ask(b.key).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn address_given_by_hand_does_not_wait_for_a_dial_of_dead_ones() {
    let (mut a, b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    // Takes datagrams and connections, and never answers: a dial of it lasts until its time-outs of 5 and 10 s.
    let dead = std::net::UdpSocket::bind((LOOPBACK, 0)).expect("loopback has free ports");
    let address = dead.local_addr().expect("it is bound");
    let _listener = std::net::TcpListener::bind(address).expect("hardly ever taken for TCP as well");
    a.handle.set_contacts(contacts(&[(b.key, address)]));
    a.handle.set_wanted([b.key]);
    // Positive control: the dial of the dead address is under way.
    tokio::task::spawn_blocking(move || dead.recv_from(&mut [0; 2048])).await.expect("no panic").expect("a datagram");
    let started = Instant::now();
    a.handle.dial(b.key, b.address()).await;
    a.wait_up(b.key).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    a.ask(b.key).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn unanswered_request_has_its_dead_link_replaced() {
    let (a, b, proxy) = linked_by_proxy().await;
    proxy.cut.store(true, Ordering::SeqCst);
    a.handle.set_contacts(contacts(&[(b.key, b.address())]));
    let asked_at = Instant::now();
    let error = a.handle.request(b.key, question(), PATIENCE).await.expect_err("the way is cut");
    assert!(error.is_link_lost(), "{error:?}");
    a.ask(b.key).await;
    assert!(asked_at.elapsed() < Duration::from_secs(10), "{:?}", asked_at.elapsed());
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn link_by_hand_is_proven_and_replaces_a_dead_one() {
    let (a, b, proxy) = linked_by_proxy().await;
    // The link works: wherever it is asked for, it is there; but not at an address where nobody is.
    let nobody = SocketAddr::new(LOOPBACK, 9);
    let link = a.handle.connect(b.key, nobody, false, PATIENCE).await.expect("there is a link");
    assert_eq!(link.address, proxy.address);
    let error = a.handle.connect(b.key, nobody, true, PATIENCE).await.expect_err("nobody is there");
    assert!(matches!(&error.cause, CallError::Unreachable { attempts } if !attempts.is_empty()), "{error:?}");
    let link = a.handle.connect(b.key, b.address(), true, PATIENCE).await.expect("it is there");
    assert_eq!(link.address, b.address());
    a.stop().await;

    let mut a = Node::start(&Setup::new(1));
    introduce(&[&a, &b]);
    proxy.cut.store(false, Ordering::SeqCst);
    a.handle.set_contacts(contacts(&[(b.key, proxy.address)]));
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    proxy.cut.store(true, Ordering::SeqCst);
    // Dead, and nobody has noticed: it is not reported as a link.
    let error = a.handle.connect(b.key, nobody, false, PATIENCE).await.expect_err("the link is dead");
    assert!(matches!(error.cause, CallError::Unreachable { .. }), "{error:?}");
    let started = Instant::now();
    let link = a.handle.connect(b.key, b.address(), false, PATIENCE).await.expect("it answers there");
    assert_eq!(link.address, b.address());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    a.ask(b.key).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn revoked_node_hears_that_and_nothing_else() {
    let (mut a, mut b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    a.handle.set_wanted([b.key]);
    b.handle.set_wanted([a.key]);
    a.wait_up(b.key).await;
    b.wait_up(a.key).await;
    let tombstone = vec![7; 300];
    a.handle.set_revoked(Arc::new(BTreeMap::from([(b.key, tombstone.clone())])));
    a.handle.set_members(members(&[a.key]));
    let told = |s: &Saw| match s {
        Saw::Request { from, request: peer::Request::Revoked(bytes) } => Some((*from, bytes.to_vec())),
        _ => None,
    };
    assert_eq!(b.wait("a farewell", told).await, (a.key, tombstone.clone()));
    assert_eq!(a.wait_down(b.key).await, LinkDownReason::Removed);
    b.wait_down(a.key).await;
    // It does not believe it and comes back: it is told again, by either transport, and gets no answer.
    for _ in 0..2 {
        assert_eq!(b.wait("another farewell", told).await, (a.key, tombstone.clone()));
    }
    let error = b.handle.request(a.key, question(), Duration::from_secs(3)).await.expect_err("refused");
    assert!(!matches!(error.cause, CallError::Busy), "{error:?}");
    while let Ok(saw) = a.saw.try_recv() {
        assert!(!matches!(saw, Saw::Request { .. } | Saw::Up { .. }), "{saw:?}");
    }
    while let Ok(saw) = b.saw.try_recv() {
        assert!(!matches!(saw, Saw::Up { .. }), "{saw:?}");
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn idle_link_is_silent() {
    let (a, b, proxy) = linked_by_proxy().await;
    a.ask(b.key).await;
    wait_for_quiet(&proxy.packets).await;
    let before = proxy.packets.load(Ordering::SeqCst);
    assert!(before > 4, "positive control: the link runs through the proxy");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(proxy.packets.load(Ordering::SeqCst), before, "packets in 10 s of idling");
    a.ask(b.key).await;
    a.stop().await;
    b.stop().await;
}

/// Carries UDP of one client to `to` and back, counts it, and can be cut.
struct UdpProxy {
    address: SocketAddr,
    packets: Arc<AtomicU64>,
    cut: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl UdpProxy {
    async fn start(to: SocketAddr) -> Self {
        let front = UdpSocket::bind((LOOPBACK, 0)).await.expect("loopback has free ports");
        let back = UdpSocket::bind((LOOPBACK, 0)).await.expect("loopback has free ports");
        let address = front.local_addr().expect("it is bound");
        let (packets, cut) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        let (count, is_cut) = (Arc::clone(&packets), Arc::clone(&cut));
        tasks.spawn(async move {
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            let mut client = None;
            loop {
                // cancel-safe: a datagram not taken stays in its socket.
                tokio::select! {
                    got = front.recv_from(&mut up) => {
                        let (length, from) = got.expect("loopback works");
                        client = Some(from);
                        count.fetch_add(1, Ordering::SeqCst);
                        if !is_cut.load(Ordering::SeqCst) {
                            back.send_to(&up[..length], to).await.expect("loopback works");
                        }
                    }
                    got = back.recv(&mut down) => {
                        let length = got.expect("loopback works");
                        count.fetch_add(1, Ordering::SeqCst);
                        if let Some(client) = client.filter(|_| !is_cut.load(Ordering::SeqCst)) {
                            front.send_to(&down[..length], client).await.expect("loopback works");
                        }
                    }
                }
            }
        });
        Self { address, packets, cut, _tasks: tasks }
    }
}

#[tokio::test]
async fn port_in_use_is_named() {
    let a = Node::start(&Setup::new(1));
    let mut setup = Setup::new(2);
    setup.port = a.handle.port();
    let error = start(setup.config()).expect_err("the port is taken");
    assert!(matches!(error, ListenError::PortInUse { port, .. } if port == a.handle.port()), "{error:?}");
    assert!(error.to_string().contains("in use"), "{error}");
    a.ask_nobody().await;
    a.stop().await;
}

#[tokio::test]
async fn first_start_on_both_families_finds_one_port() {
    let mut config = Setup::new(1).config();
    config.listen = meshd_control::ControlConfig::new(crate::harness::VDC, [1; 32], config.hello.clone()).listen;
    let control = start(config).expect("every host has one family");
    assert_ne!(control.handle.port(), 0);
    let mut tasks = JoinSet::new();
    tasks.spawn(control.task.run());
    let mut addresses = control.handle.watch_listen_addresses();
    let found = timeout(PATIENCE, addresses.wait_for(|a| a.iter().any(|a| a.ip() == LOOPBACK))).await;
    let port = found.expect("loopback is an interface").expect("the node runs")[0].port();
    assert_eq!(port, control.handle.port());
    control.handle.shutdown();
    while tasks.join_next().await.is_some() {}
}

impl Node {
    /// The node still works: it refuses a request properly.
    async fn ask_nobody(&self) {
        let error = self.handle.request(key(250), question(), PATIENCE).await.expect_err("nobody");
        assert!(matches!(error.cause, CallError::NotMember), "{error:?}");
    }
}
