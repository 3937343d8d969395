//! Bytes that no honest peer sends, at both doors. Positive controls run beside and after.

use std::io;
use std::net::SocketAddr;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, identity, noise, tcp, yamux};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use vdc::invite::DOOR_PROTOCOL;
use vdc::peer;

use crate::doors::{check_door, knock, open};
use crate::harness::{LOOPBACK, Node, PATIENCE, Setup, introduce, key, members};

/// Numbers that look random and are the same in every run (xorshift64).
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend(self.0.to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

#[tokio::test]
async fn garbage_on_the_wire_harms_neither_door() {
    let (mut a, mut b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    b.wait_up(a.key).await;
    let door = open(&a).await;
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for address in [a.address(), door] {
        udp_garbage(address, &mut noise).await;
        tcp_garbage(address, &mut noise).await;
        a.ask(b.key).await;
        b.ask(a.key).await;
    }
    check_door(&mut a, door, 50).await;
    assert!(a.handle.links().len() == 1 && b.saw.try_recv().is_ok());
    let mut downs = 0;
    while let Ok(saw) = b.saw.try_recv() {
        downs += usize::from(matches!(saw, crate::harness::Saw::Down { .. }));
    }
    assert_eq!(downs, 0, "the link lived through it");
    a.stop().await;
    b.stop().await;
}

async fn udp_garbage(to: SocketAddr, noise: &mut Noise) {
    let socket = UdpSocket::bind((LOOPBACK, 0)).await.expect("loopback has free ports");
    for length in [0, 1, 7, 20, 100, 1199, 1200, 1472, 9000] {
        for first in [0x00, 0x40, 0x7f, 0x80, 0xc0, 0xc3, 0xd0, 0xe0, 0xf0, 0xff] {
            let mut bytes = noise.bytes(length);
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            socket.send_to(&bytes, to).await.expect("loopback works");
            // The same as a QUIC version 1 packet with connection ids of legal and illegal lengths.
            if length >= 100 {
                bytes[1..5].copy_from_slice(&[0, 0, 0, 1]);
                for id_length in [0, 8, 20, 21, 255] {
                    bytes[5] = id_length;
                    socket.send_to(&bytes, to).await.expect("loopback works");
                }
            }
        }
    }
}

async fn tcp_garbage(to: SocketAddr, noise: &mut Noise) {
    let multistream = b"\x13/multistream/1.0.0\n";
    let noise_protocol = b"\x07/noise\n";
    let mut openings = vec![noise.bytes(1), noise.bytes(64), noise.bytes(70_000), vec![0xff; 4096], Vec::new()];
    openings.push(multistream.to_vec());
    openings.push([&multistream[..], &noise.bytes(300)].concat());
    openings.push([&multistream[..], noise_protocol, &noise.bytes(2000)].concat());
    openings.push([&multistream[..], noise_protocol, &[0xff, 0xff], &noise.bytes(65_535)].concat());
    openings.push(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec());
    for opening in openings {
        let mut stream = TcpStream::connect(to).await.expect("the port listens");
        // It may hang up in the middle of what we say.
        let _ = stream.write_all(&opening).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection ends");
    }
}

/// A peer with a good key that writes whatever it is told to.
#[derive(Clone, Default)]
struct Raw;

impl request_response::Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        _: &mut T,
    ) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        stream: &mut T,
    ) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        stream: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        stream.write_all(&bytes).await?;
        stream.flush().await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        stream: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        stream.write_all(&bytes).await
    }
}

struct Rogue {
    swarm: Swarm<request_response::Behaviour<Raw>>,
    victim: PeerId,
    address: Multiaddr,
}

impl Rogue {
    fn new(seed: u8, protocol: &'static str, victim: vdc::Key, address: Multiaddr) -> Self {
        let keys = identity::Keypair::ed25519_from_bytes([seed; 32]).expect("any seed is a key");
        let swarm = libp2p::SwarmBuilder::with_existing_identity(keys)
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .expect("noise takes the key")
            .with_quic()
            .with_behaviour(|_| {
                let protocols = [(StreamProtocol::new(protocol), ProtocolSupport::Full)];
                request_response::Behaviour::new(protocols, request_response::Config::default())
            })
            .expect("infallible")
            .build();
        let key = identity::ed25519::PublicKey::try_from_bytes(&victim.0).expect("a node key");
        let victim = identity::PublicKey::from(key).to_peer_id();
        Self { swarm, victim, address }
    }

    /// Sends `bytes` on a stream of its own, connecting first if need be; returns what came back, if anything did.
    async fn send(&mut self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let exchange = async {
            if !self.swarm.is_connected(&self.victim) {
                let options = DialOpts::peer_id(self.victim).addresses(vec![self.address.clone()]).build();
                self.swarm.dial(options).expect("it can be dialled");
            }
            while !self.swarm.is_connected(&self.victim) {
                if let SwarmEvent::OutgoingConnectionError { error, .. } = self.swarm.select_next_some().await {
                    panic!("{error}");
                }
            }
            self.swarm.behaviour_mut().send_request(&self.victim, bytes);
            loop {
                match self.swarm.select_next_some().await {
                    SwarmEvent::Behaviour(request_response::Event::Message {
                        message: request_response::Message::Response { response, .. },
                        ..
                    }) => return Some(response),
                    SwarmEvent::Behaviour(request_response::Event::Message {
                        message: request_response::Message::Request { channel, .. },
                        ..
                    }) => {
                        // It is polite where politeness keeps the connection: it answers the hello.
                        let hello = framed(&peer::Response::Hello(crate::harness::hello(3)).encode());
                        let _ = self.swarm.behaviour_mut().send_response(channel, hello);
                    }
                    SwarmEvent::Behaviour(request_response::Event::OutboundFailure { .. }) => return None,
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, exchange).await.expect("the exchange ends")
    }
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short");
    [&length.to_be_bytes()[..], bytes].concat()
}

/// Frames and messages that are wrong in one way each.
fn malformed(good: &[u8], length_max: usize, noise: &mut Noise) -> Vec<Vec<u8>> {
    let too_long = u32::try_from(length_max + 1).expect("a few MiB");
    let mut bad = vec![
        Vec::new(),
        vec![0, 0],
        framed(&[]),
        framed(&[0xff]),
        framed(&noise.bytes(300)),
        framed(&vec![0x9f; 4000]),
        framed(&[&[0x9b][..], &[0xff; 8]].concat()),
        framed(&[&[0x5b, 0x7f][..], &[0xff; 7]].concat()),
        framed(&[good, &[0]].concat()),
        [&too_long.to_be_bytes()[..], &[0; 64]].concat(),
        [&u32::MAX.to_be_bytes()[..], &[0; 64]].concat(),
    ];
    for at in 0..good.len().min(40) {
        let mut flipped = good.to_vec();
        flipped[at] ^= 0x80;
        bad.push(framed(&flipped));
        bad.push(framed(&good[..at]));
    }
    bad
}

fn tcp(address: SocketAddr) -> Multiaddr {
    format!("/ip4/{}/tcp/{}", address.ip(), address.port()).parse().expect("well formed")
}

fn quic(address: SocketAddr) -> Multiaddr {
    format!("/ip4/{}/udp/{}/quic-v1", address.ip(), address.port()).parse().expect("well formed")
}

#[tokio::test]
async fn malformed_messages_of_a_member_break_only_their_own_exchange() {
    let (mut a, mut b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    let rogue_key = key(3);
    a.handle.set_members(members(&[a.key, b.key, rogue_key]));
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    b.wait_up(a.key).await;
    let good = peer::Request::Hello(crate::harness::hello(3)).encode();
    for address in [tcp(a.address()), quic(a.address())] {
        let mut rogue = Rogue::new(3, peer::PROTOCOL, a.key, address);
        let mut noise = Noise(0x2545_f491_4f6c_dd1d);
        for bytes in malformed(&good, peer::MESSAGE_BYTES_MAX, &mut noise) {
            let flipped_into_something_else = peer::Request::decode(bytes.get(4..).unwrap_or_default()).is_ok();
            let answer = rogue.send(bytes.clone()).await;
            let refused = answer.as_ref().is_none_or(Vec::is_empty);
            assert!(refused || flipped_into_something_else, "{bytes:02x?} was answered by {answer:02x?}");
        }
        let answer = rogue.send(framed(&good)).await.expect("positive control: a good message is answered");
        let hello = peer::Response::decode(&answer[4..]).expect("well formed");
        assert!(matches!(hello, peer::Response::Hello(_)));
        a.ask(b.key).await;
        b.ask(a.key).await;
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn malformed_messages_of_a_stranger_end_its_visit_at_the_door() {
    let (mut a, mut b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    b.wait_up(a.key).await;
    let door = open(&a).await;
    let good = knock().encode();
    let mut noise = Noise(0x2545_f491_4f6c_dd1d);
    let bad = malformed(&good, vdc::invite::DOOR_REQUEST_BYTES_MAX, &mut noise);
    // Each one costs a connection: a dozen stay below what one address may open at once.
    for (i, bytes) in bad.into_iter().take(12).enumerate() {
        let address = if i % 2 == 0 { tcp(door) } else { quic(door) };
        let seed = 60 + u8::try_from(i).expect("a dozen");
        let mut rogue = Rogue::new(seed, DOOR_PROTOCOL, a.key, address);
        let answer = rogue.send(bytes.clone()).await;
        assert!(answer.as_ref().is_none_or(Vec::is_empty), "{bytes:02x?} was answered by {answer:02x?}");
    }
    check_door(&mut a, door, 90).await;
    a.ask(b.key).await;
    b.ask(a.key).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn connection_is_worth_nothing_to_a_rogue_that_is_no_member() {
    let (mut a, b) = (Node::start(&Setup::new(1)), Node::start(&Setup::new(2)));
    introduce(&[&a, &b]);
    a.handle.set_wanted([b.key]);
    a.wait_up(b.key).await;
    let good = peer::Request::Hello(crate::harness::hello(3)).encode();
    for address in [tcp(a.address()), quic(a.address())] {
        let mut rogue = Rogue::new(3, peer::PROTOCOL, a.key, address);
        let answer = rogue.send(framed(&good)).await;
        assert!(answer.as_ref().is_none_or(Vec::is_empty), "a stranger was answered: {answer:02x?}");
    }
    a.ask(b.key).await;
    b.ask(a.key).await;
    a.stop().await;
    b.stop().await;
}
