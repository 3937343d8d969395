//! The transport under both swarms: QUIC, and TCP with Noise and yamux.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Either};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, OrTransport, PortUse, TransportError, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, Transport as _, noise, quic, swarm, tcp, yamux};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::error::ListenError;
use crate::key::Transport;

/// A QUIC connection without an answer for this long is dead: three keep-alives went unanswered.
const QUIC_IDLE_MS_MAX: u32 = 180_000;
/// Shortest and longest pause before a QUIC keep-alive. A keep-alive is two packets (PING, ACK) and restarts the timer
/// at both ends, so a link costs at most 0.8 packets in 20 s, and comparing records has a share of the one that it may
/// cost. Routers that translate addresses keep UDP mappings for two minutes (RFC 4787 §4.3). Each node has its own pause
/// within the range: with equal ones both ends would ask at the same moment.
const QUIC_KEEP_ALIVE_MS: std::ops::Range<u64> = 50_000..58_000;
/// Handshake of either transport, from the first packet.
const HANDSHAKE: Duration = Duration::from_secs(10);
const QUIC_HANDSHAKE: Duration = Duration::from_secs(5);
/// Unread bytes that a peer may have us hold: per stream, and per connection.
const QUIC_STREAM_WINDOW_BYTES: u32 = 256 << 10;
const QUIC_CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Streams that a peer may have open towards us; twice what the handlers serve, so that those answer "busy" themselves.
const STREAMS_MAX: u32 = 32;
/// TCP keep-alive: both kernels probe, four packets per 90 s; a dead peer is noticed after 150 s.
const TCP_KEEP_ALIVE_IDLE: Duration = Duration::from_secs(90);
const TCP_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const TCP_KEEP_ALIVE_PROBES: u32 = 4;
/// Connections that the kernel holds for us before we accept them.
const TCP_BACKLOG: u32 = 64;

/// Builds the transport for one identity.
pub(crate) fn build(keys: &Keypair) -> Boxed<(PeerId, StreamMuxerBox)> {
    let mut quic_config = quic::Config::new(keys).disable_path_mtu_discovery();
    quic_config.handshake_timeout = QUIC_HANDSHAKE;
    quic_config.max_idle_timeout = QUIC_IDLE_MS_MAX;
    quic_config.keep_alive_interval = Duration::from_millis(keep_alive_ms(keys));
    quic_config.max_concurrent_stream_limit = STREAMS_MAX;
    quic_config.max_stream_data = QUIC_STREAM_WINDOW_BYTES;
    quic_config.max_connection_data = QUIC_CONNECTION_WINDOW_BYTES;
    let quic = quic::tokio::Transport::new(quic_config);

    let mut yamux_config = yamux::Config::default();
    yamux_config.set_max_num_streams(2 * STREAMS_MAX as usize);
    let noise_config = noise::Config::new(keys).expect("an Ed25519 key signs the Noise static key");
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true).listen_backlog(TCP_BACKLOG));
    let tcp = FreshPort(tcp)
        .map(|stream, _| {
            keep_alive(&stream);
            stream
        })
        .upgrade(Version::V1Lazy)
        .authenticate(noise_config)
        .multiplex(yamux_config)
        .timeout(HANDSHAKE);

    let both = OrTransport::new(quic, tcp).map(|either, _| match either {
        Either::Left((peer, connection)) => (peer, StreamMuxerBox::new(connection)),
        Either::Right((peer, connection)) => (peer, StreamMuxerBox::new(connection)),
    });
    Pinned(both.boxed()).boxed()
}

/// Swarm settings that both doors share. A panic in a connection's task is sent to `panics`.
pub(crate) fn swarm_config(idle: Duration, tracker: &TaskTracker, panics: mpsc::Sender<String>) -> swarm::Config {
    let tracker = tracker.clone();
    let executor = move |task: Pin<Box<dyn Future<Output = ()> + Send>>| {
        let panics = panics.clone();
        tracker.spawn(std::panic::AssertUnwindSafe(task).catch_unwind().map(move |end| {
            if let Err(panic) = end {
                // One report is enough to have the swarm rebuilt; a full queue holds one.
                let _ = panics.try_send(panic_text(&*panic));
            }
        }));
    };
    swarm::Config::with_executor(executor)
        .with_idle_connection_timeout(idle)
        .with_smart_dial()
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_max_negotiating_inbound_streams(STREAMS_MAX as usize)
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panic without a message".to_owned())
}

fn keep_alive_ms(keys: &Keypair) -> u64 {
    let peer = keys.public().to_peer_id().to_bytes();
    let tail = peer.last_chunk::<4>().expect("a PeerId of Ed25519 has 38 bytes");
    let span = QUIC_KEEP_ALIVE_MS.end - QUIC_KEEP_ALIVE_MS.start;
    QUIC_KEEP_ALIVE_MS.start + u64::from(u32::from_be_bytes(*tail)) % span
}

fn keep_alive(stream: &tcp::tokio::TcpStream) {
    let settings = socket2::TcpKeepalive::new()
        .with_time(TCP_KEEP_ALIVE_IDLE)
        .with_interval(TCP_KEEP_ALIVE_INTERVAL)
        .with_retries(TCP_KEEP_ALIVE_PROBES);
    if let Err(error) = socket2::SockRef::from(&stream.0).set_tcp_keepalive(&settings) {
        tracing::debug!(%error, "TCP keep-alive not set: a dead peer will be noticed late");
    }
}

/// TCP that never dials from its listening port.
///
/// libp2p asks for the listening port unless told otherwise, for all addresses of a dial alike. QUIC wants that (one
/// socket, one NAT mapping). For TCP it invites a simultaneous open when two nodes dial each other, which leaves a
/// connection with two clients and no server.
struct FreshPort(tcp::tokio::Transport);

impl libp2p::core::Transport for FreshPort {
    type Output = tcp::tokio::TcpStream;
    type Error = io::Error;
    type ListenerUpgrade = <tcp::tokio::Transport as libp2p::core::Transport>::ListenerUpgrade;
    type Dial = <tcp::tokio::Transport as libp2p::core::Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.0.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        self.0.dial(address, DialOpts { port_use: PortUse::New, ..options })
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl fmt::Debug for FreshPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FreshPort")
    }
}

/// Checks at each address by itself that the expected node answers.
///
/// libp2p checks once, after the first address of a dial has answered, and then gives the others up. But private
/// addresses repeat from site to site: somebody else's box often answers first.
struct Pinned(Boxed<(PeerId, StreamMuxerBox)>);

/// What the swarm dials: it appends the expected PeerId to every address.
fn expected_peer(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

impl libp2p::core::Transport for Pinned {
    type Output = (PeerId, StreamMuxerBox);
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<Self::Output> as libp2p::core::Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<Self::Output>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.0.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        let expected = expected_peer(&address);
        let dial = self.0.dial(address, options)?;
        let checked = async move {
            let (peer, connection) = dial.await?;
            if expected.is_some_and(|expected| expected != peer) {
                return Err(io::Error::other("another node answers there"));
            }
            Ok((peer, connection))
        };
        Ok(checked.boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Finds out which of `ips` can be bound on one UDP and TCP port, before libp2p tries: its own errors do not say which
/// port was refused and why, and it would share a TCP port with another process that also shares it.
///
/// `port` 0 picks a free one. Addresses of a family that this host does not have are left out.
pub(crate) fn probe_port(ips: &[IpAddr], port: u16) -> Result<(Vec<IpAddr>, u16), ListenError> {
    /// A port that is free for UDP is hardly ever taken for TCP; 16 in a row means something else is wrong.
    const PICKS: usize = 16;
    let mut last = None;
    for _ in 0..PICKS {
        match probe_once(ips, port) {
            Err(ListenError::PortInUse { port: taken, transport, address }) if port == 0 => {
                last = Some(ListenError::PortInUse { port: taken, transport, address });
            }
            other => return other,
        }
    }
    Err(last.expect("the loop ran at least once"))
}

fn probe_once(ips: &[IpAddr], mut port: u16) -> Result<(Vec<IpAddr>, u16), ListenError> {
    // All probes stay open until all are done: they must not find each other free by turns.
    let mut held = Vec::new();
    let mut usable = Vec::new();
    for ip in ips {
        let refused = |transport, port, source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => Err(ListenError::PortInUse { port, transport, address: *ip }),
            io::ErrorKind::PermissionDenied => Err(ListenError::NoPermission { port, transport, address: *ip }),
            _ => Err(ListenError::Bind { address: SocketAddr::new(*ip, port), transport, source }),
        };
        let udp = match bind_udp(SocketAddr::new(*ip, port)) {
            Ok(socket) => socket,
            Err(error) if ip.is_unspecified() && is_family_missing(&error) => continue,
            Err(error) => return refused(Transport::Quic, port, error),
        };
        port = udp.local_addr().map_or(port, |a| a.port());
        match bind_tcp(SocketAddr::new(*ip, port)) {
            Ok(socket) => held.push((udp, socket)),
            Err(error) => return refused(Transport::Tcp, port, error),
        }
        usable.push(*ip);
    }
    if usable.is_empty() { Err(ListenError::NoAddress) } else { Ok((usable, port)) }
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Listens without sharing the port; a connection of the last run in TIME_WAIT is no obstacle.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)?;
    Ok(socket.into())
}

/// A kernel without IPv6 has no such family; one with IPv6 switched off by sysctl has no such address.
fn is_family_missing(error: &io::Error) -> bool {
    /// EAFNOSUPPORT of Linux, for which `ErrorKind` has no stable name.
    const EAFNOSUPPORT: i32 = 97;
    error.raw_os_error() == Some(EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn keep_alive_stays_within_its_range() {
        for seed in 0..64 {
            let pause = keep_alive_ms(&crate::key::keypair([seed; 32]));
            assert!(QUIC_KEEP_ALIVE_MS.contains(&pause), "{pause}");
        }
        // Two packets per pause, at most 0.8 per 20 s, and three pauses before the idle time-out.
        const { assert!(QUIC_KEEP_ALIVE_MS.start * 8 >= 20_000 * 2 * 10) };
        const { assert!(3 * QUIC_KEEP_ALIVE_MS.end < QUIC_IDLE_MS_MAX as u64) };
    }

    #[test]
    fn port_in_use_names_port_and_transport() {
        let udp = UdpSocket::bind((LOOPBACK, 0)).expect("loopback has free ports");
        let port = udp.local_addr().expect("it is bound").port();
        let error = probe_port(&[LOOPBACK], port).expect_err("taken");
        assert!(matches!(error, ListenError::PortInUse { port: p, transport: Transport::Quic, .. } if p == port));

        let tcp = TcpListener::bind((LOOPBACK, 0)).expect("loopback has free ports");
        let port = tcp.local_addr().expect("it is bound").port();
        let error = probe_port(&[LOOPBACK], port).expect_err("taken");
        assert!(matches!(error, ListenError::PortInUse { port: p, transport: Transport::Tcp, .. } if p == port));
    }

    #[test]
    fn free_port_is_found_for_both_transports() {
        let (ips, port) = probe_port(&[LOOPBACK], 0).expect("loopback has free ports");
        assert_eq!(ips, [LOOPBACK]);
        assert_ne!(port, 0);
    }

    #[test]
    fn address_of_another_host_is_an_error() {
        let foreign: IpAddr = "192.0.2.77".parse().expect("a literal");
        assert!(matches!(probe_port(&[foreign], 0), Err(ListenError::Bind { .. })));
    }
}
