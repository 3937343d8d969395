//! ICMP echo from this host into the VDC (RFC 792, RFC 4443 §4.1).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

/// One raw ICMP socket that asks one address.
#[derive(Debug)]
pub(crate) struct Pinger {
    /// A raw ICMP socket: the runtime's datagram type does for it, as neither looks at ports.
    socket: UdpSocket,
    destination: IpAddr,
    identifier: u16,
    payload_bytes: u16,
}

impl Pinger {
    /// Opens the socket, bound to this host's own overlay address so that policy sees the right source.
    pub(crate) fn open(source: IpAddr, destination: IpAddr, identifier: u16, payload_bytes: u16) -> io::Result<Self> {
        let (domain, protocol) = match destination {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect(&SocketAddr::new(destination, 0).into())?;
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, destination, identifier, payload_bytes })
    }

    /// Sends echo request `sequence` and waits for its reply. `None` when it did not come in time.
    ///
    /// # Cancel safety
    /// Dropping the future loses at most this reply.
    pub(crate) async fn ping(&self, sequence: u16, timeout: Duration) -> io::Result<Option<Duration>> {
        let sent = Instant::now();
        let packet = self.request(sequence);
        match self.socket.send(&packet).await {
            Ok(_) => {}
            // An ICMP error that an earlier request met: it says nothing about this one.
            Err(error) if is_unreachable(&error) => {}
            Err(error) => return Err(error),
        }
        tokio::time::timeout(timeout, self.reply(sequence))
            .await
            .map_or(Ok(None), |received| received.map(|()| Some(sent.elapsed())))
    }

    async fn reply(&self, sequence: u16) -> io::Result<()> {
        let mut buffer = [0; 1500];
        loop {
            let length = match self.socket.recv(&mut buffer).await {
                Ok(length) => length,
                Err(error) if is_unreachable(&error) => continue,
                Err(error) => return Err(error),
            };
            if self.is_reply(&buffer[..length], sequence) {
                return Ok(());
            }
        }
    }

    fn request(&self, sequence: u16) -> Vec<u8> {
        let kind = if self.destination.is_ipv4() { 8 } else { 128 };
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend(self.identifier.to_be_bytes());
        packet.extend(sequence.to_be_bytes());
        packet.resize(8 + usize::from(self.payload_bytes), 0x42);
        if self.destination.is_ipv4() {
            // The kernel computes ICMPv6 checksums itself (RFC 3542 §3.1), ICMPv4 ones not.
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    /// Raw IPv4 sockets deliver the IP header too, IPv6 ones do not.
    fn is_reply(&self, packet: &[u8], sequence: u16) -> bool {
        let (icmp, kind) = match self.destination {
            IpAddr::V4(_) => {
                let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
                (packet.get(header..).unwrap_or_default(), 0)
            }
            IpAddr::V6(_) => (packet, 129),
        };
        let expected = [self.identifier.to_be_bytes(), sequence.to_be_bytes()].concat();
        icmp.first() == Some(&kind) && icmp.get(4..8) == Some(expected.as_slice())
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::ConnectionRefused
    ) || error.raw_os_error() == Some(13) // EACCES: "administratively prohibited"
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loopback_answers_in_both_families() {
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().expect("valid");
            let pinger = Pinger::open(address, address, 4242, 56).expect("raw sockets need root");
            for sequence in 1..=3 {
                let rtt = pinger.ping(sequence, Duration::from_secs(5)).await.expect("works");
                assert!(rtt.is_some(), "{address} {sequence}");
            }
        }
    }

    #[test]
    fn checksum_of_a_packet_with_its_checksum_is_zero() {
        let mut bytes = vec![8, 0, 0, 0, 1, 2, 3, 4, 5];
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&bytes), 0);
    }
}
