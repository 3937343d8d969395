//! The join door.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use meshd_control::{CallError, DoorClient, DoorError, DoorTarget, ListenError};
use tokio::task::JoinSet;
use vdc::Key;
use vdc::invite::{DoorRequest, DoorResponse, Hello};
use vdc::record::ContactAddress;

use crate::harness::{LOOPBACK, Node, PATIENCE, Saw, Setup, VDC, contacts, introduce, key, members, question};

fn target(registrar: Key, addresses: &[SocketAddr]) -> DoorTarget {
    let addresses = addresses.iter().map(|a| ContactAddress::Ip(a.ip(), a.port())).collect();
    DoorTarget { registrar, addresses }
}

pub(crate) fn knock() -> DoorRequest {
    DoorRequest::Hello(Hello { vdc: VDC, invite: None })
}

/// Opens the door of `node` and returns its address.
pub(crate) async fn open(node: &Node) -> SocketAddr {
    let port = node.handle.set_door_open(true).await.expect("loopback has free ports").expect("it is open");
    SocketAddr::new(LOOPBACK, port)
}

/// A new joiner gets an answer.
pub(crate) async fn check_door(node: &mut Node, door: SocketAddr, seed: u8) {
    let mut client =
        DoorClient::connect([seed; 32], &[target(node.key, &[door])], PATIENCE).await.expect("the door is open");
    assert_eq!((client.registrar(), client.address()), (node.key, door));
    let answer = client.call(&knock(), PATIENCE).await.expect("the registrar answers");
    assert!(matches!(answer, DoorResponse::Refused(_)), "{answer:?}");
    let knocked = node.wait("a knock", |s| match s {
        Saw::Door { from, remote, request } => Some((*from, *remote, (**request).clone())),
        _ => None,
    });
    assert_eq!(knocked.await, (key(seed), LOOPBACK, knock()), "the door knows who asks and from where");
    // The same connection carries the second step.
    client.call(&knock(), PATIENCE).await.expect("the registrar answers again");
}

#[tokio::test]
async fn joiner_asks_at_the_door() {
    let mut a = Node::start(&Setup::new(1));
    let door = open(&a).await;
    assert_ne!(door.port(), a.handle.port());
    assert_eq!(open(&a).await, door, "opening an open door changes nothing");
    check_door(&mut a, door, 50).await;
    a.stop().await;
}

#[tokio::test]
async fn joiner_finds_the_one_registrar_that_answers() {
    let mut a = Node::start(&Setup::new(1));
    let door = open(&a).await;
    let dead = |port| SocketAddr::new(LOOPBACK, port);
    let taken = std::net::UdpSocket::bind((LOOPBACK, 0)).expect("loopback has free ports");
    let silent = taken.local_addr().expect("it is bound");
    let targets = [target(key(8), &[dead(1), silent]), target(a.key, &[dead(2), door]), target(key(9), &[door])];
    let mut client = DoorClient::connect([50; 32], &targets, PATIENCE).await.expect("one answers");
    assert_eq!((client.registrar(), client.address()), (a.key, door));
    client.call(&knock(), PATIENCE).await.expect("the registrar answers");
    a.wait("a knock", |s| matches!(s, Saw::Door { .. }).then_some(())).await;
    a.stop().await;
}

#[tokio::test]
async fn unreachable_door_is_named_with_what_was_tried() {
    let a = Node::start(&Setup::new(1));
    let door = open(&a).await;
    // The wrong key at the right address, nobody at another, and a name that no one has.
    let mut wrong = target(key(9), &[door, SocketAddr::new(LOOPBACK, 1)]);
    wrong.addresses.push(ContactAddress::Dns("registrar.invalid".to_owned(), 7));
    let error = DoorClient::connect([50; 32], &[wrong], PATIENCE).await.expect_err("nobody has this key");
    let text = error.to_string();
    assert!(matches!(error, DoorError::Unreachable { .. }));
    for part in [&door.to_string(), "127.0.0.1:1 (tcp)", "registrar.invalid:7", "another node", "refused"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    // Closed, it is not there.
    assert_eq!(a.handle.set_door_open(false).await.expect("closing cannot fail"), None);
    let error = DoorClient::connect([50; 32], &[target(a.key, &[door])], PATIENCE).await.expect_err("closed");
    assert!(error.to_string().contains(&door.to_string()), "{error}");
    // Opened again it is there, and a wrong answer at one address does not hide the right one at another.
    let door = open(&a).await;
    let b = Node::start(&Setup::new(2));
    let other = open(&b).await;
    let both = target(a.key, &[other, door]);
    DoorClient::connect([50; 32], &[both], PATIENCE).await.expect("the right one is found behind the wrong one");
    b.stop().await;
    // A silent address ends at the deadline, by name.
    let taken = std::net::UdpSocket::bind((LOOPBACK, 0)).expect("loopback has free ports");
    let silent = taken.local_addr().expect("it is bound");
    let listener = TcpListener::bind(silent);
    let deadline = Duration::from_millis(300);
    let error = DoorClient::connect([50; 32], &[target(a.key, &[silent])], deadline).await.expect_err("silent");
    assert!(error.to_string().contains(&silent.to_string()), "{error}");
    drop(listener);
    a.stop().await;
}

#[tokio::test]
async fn door_and_member_swarm_do_not_speak_each_others_protocol() {
    let (mut a, b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    let door = open(&a).await;

    // A member at the door: it gets in like anybody, and nobody there speaks of membership.
    b.handle.set_contacts(contacts(&[(a.key, door)]));
    let error = b.handle.request(a.key, question(), PATIENCE).await.expect_err("wrong door");
    assert!(matches!(error.cause, CallError::Unreachable { .. }), "{error:?}");

    // A member that asks to join at the member port: it gets in, and nobody there speaks of joining.
    let mut client =
        DoorClient::connect([2; 32], &[target(a.key, &[a.address()])], PATIENCE).await.expect("b is a member");
    let error = client.call(&knock(), PATIENCE).await.expect_err("wrong door");
    let DoorError::Call { cause, .. } = error else { panic!("{error:?}") };
    assert!(matches!(cause, CallError::Unsupported { .. } | CallError::Broken(_)), "{cause:?}");
    drop(client);

    // A stranger that asks to join at the member port does not get in at all.
    let stranger = DoorClient::connect([50; 32], &[target(a.key, &[a.address()])], PATIENCE).await;
    if let Ok(mut client) = stranger {
        // QUIC's handshake ends at the client before the server has seen the client's key.
        client.call(&knock(), PATIENCE).await.expect_err("refused after the handshake");
    }

    // Positive controls.
    b.handle.set_contacts(contacts(&[(a.key, a.address())]));
    b.ask(a.key).await;
    check_door(&mut a, door, 51).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn door_port_in_use_is_named_and_can_be_tried_again() {
    let taken = TcpListener::bind((LOOPBACK, 0)).expect("loopback has free ports");
    let mut setup = Setup::new(1);
    setup.door_port = taken.local_addr().expect("it is bound").port();
    let mut a = Node::start(&setup);
    let error = a.handle.set_door_open(true).await.expect_err("the port is taken");
    assert!(matches!(error, ListenError::PortInUse { port, .. } if port == setup.door_port), "{error:?}");
    drop(taken);
    let door = open(&a).await;
    assert_eq!(door.port(), setup.door_port);
    check_door(&mut a, door, 50).await;
    a.stop().await;
}

#[tokio::test]
async fn door_slows_down_whoever_knocks_too_fast() {
    let mut a = Node::start(&Setup::new(1));
    let door = open(&a).await;
    let mut knocks = JoinSet::new();
    for seed in 100..180 {
        let targets = [target(a.key, &[door])];
        knocks.spawn(async move {
            let connected = DoorClient::connect([seed; 32], &targets, Duration::from_secs(5)).await;
            match connected {
                Ok(mut client) => client.call(&knock(), Duration::from_secs(5)).await.is_ok(),
                Err(_) => false,
            }
        });
    }
    let answered = knocks.join_all().await.into_iter().filter(|ok| *ok).count();
    assert!(answered > 0, "somebody got through");
    assert!(answered < 80, "not everybody at once");
    // Members are not affected, and the door answers again once the rush is over.
    let b = Node::start(&Setup::new(2));
    introduce(&[&a, &b]);
    a.handle.set_members(members(&[a.key, b.key]));
    b.ask(a.key).await;
    let again = async {
        loop {
            let connected = DoorClient::connect([200; 32], &[target(a.key, &[door])], Duration::from_secs(5)).await;
            if let Ok(mut client) = connected
                && client.call(&knock(), Duration::from_secs(5)).await.is_ok()
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the door answers again");
    a.wait("a knock", |s| matches!(s, Saw::Door { .. }).then_some(())).await;
    a.stop().await;
    b.stop().await;
}
