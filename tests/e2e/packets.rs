//! Packets that nobody should accept.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use tests::vdc_lab::{Node, ThreeSites, in_lab};

#[test]
fn garbage_at_every_port_changes_nothing() -> Result<()> {
    in_lab(|lab| {
        let vdc = ThreeSites::build(lab)?;
        vdc.wait()?;
        let target = vdc.paris.host.v4().context("IPv4")?;
        vdc.lisbon.host.enter(|| -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let mut state = 7_u64;
            for port in [4710, 4712, 4713] {
                for length in (0..300_usize).chain(1_200..1_300) {
                    let mut noise: Vec<u8> = (0..length)
                        .map(|_| {
                            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            state.to_be_bytes()[0]
                        })
                        .collect();
                    if let Some(first) = noise.first_mut() {
                        // WireGuard types, QUIC long headers, and the rest.
                        *first = [1, 2, 3, 4, 0xc3, *first][length % 6];
                    }
                    socket.send_to(&noise, SocketAddr::new(IpAddr::V4(target), port))?;
                }
                if port != 4710 {
                    use std::io::Write as _;
                    let mut stream = std::net::TcpStream::connect((target, port))?;
                    stream.write_all(&[0xff; 4096]).or_else(|_| anyhow::Ok(()))?; // it may hang up at once
                }
            }
            Ok(())
        })??;
        vdc.wait()?;
        let problems = vdc.paris.status()?["problems"].to_string();
        ensure!(!problems.contains("restarting"), "{problems}");
        Ok(())
    })
}

#[test]
fn spoofed_and_replayed_packets_are_not_accepted() -> Result<()> {
    in_lab(|lab| {
        let vdc = ThreeSites::build(lab)?;
        vdc.wait()?;
        let (paris6, berlin6) = (vdc.paris.address("ipv6")?, vdc.berlin.address("ipv6")?);
        let ping = |words: &[&str]| {
            let fixed = ["ping", "-n", "-q", "-c", "5", "-i", "0.05", "-W", "1"];
            vdc.lisbon.host.run(&[&fixed[..], words, &[berlin6.as_str()]].concat())
        };
        // Whoever is root at lisbon takes an address of paris: on the host's port first, then inside the VDC's own
        // namespace, behind lisbon's firewall.
        let before = echo_requests(&vdc.berlin)?;
        vdc.lisbon.host.ok(&["ip", "addr", "add", &format!("{paris6}/128"), "dev", "mesh-acme", "nodad"])?;
        ensure!(!ping(&["-I", &paris6])?.is_ok(), "a spoofed source was answered");
        vdc.lisbon.host.ok(&["ip", "addr", "del", &format!("{paris6}/128"), "dev", "mesh-acme"])?;
        let status = vdc.lisbon.status()?;
        let namespace = status["data_path"]["namespace"].as_str().context("its path")?.to_owned();
        let inside = |script: &str| vdc.lisbon.host.sh(&format!("nsenter --net={namespace} {script}"));
        inside(&format!("ip addr add {paris6}/128 dev lo nodad"))?;
        let spoofed = inside(&format!("ping -n -q -c 5 -i 0.05 -W 1 -I {paris6} {berlin6}"));
        ensure!(spoofed.is_err(), "a spoofed source was answered: {spoofed:?}");
        inside(&format!("ip addr del {paris6}/128 dev lo"))?;
        ensure!(echo_requests(&vdc.berlin)? == before, "spoofed packets were accepted");
        ensure!(ping(&[])?.is_ok(), "positive control: its own address is answered");
        ensure!(echo_requests(&vdc.berlin)? == before + 5, "positive control: and counted");
        let dropped = vdc.berlin.metric("meshd_dropped_packets_total{reason=\"source\"}")?;
        println!("berlin dropped {dropped} packets for their source");
        // Every datagram that crosses lisbon's uplink is sent again, from lisbon's own address.
        let (sender, receiver) = std::sync::mpsc::sync_channel::<Vec<u8>>(4096);
        vdc.sites[2].uplink().tap(move |direction, packet| {
            if direction == meshlab::Direction::Up {
                let _ = sender.try_send(packet.to_vec());
            }
        });
        let before = echo_requests(&vdc.berlin)?;
        vdc.lisbon.host.ok(&["ping", "-n", "-c", "20", "-i", "0.05", &berlin6])?;
        let captured: Vec<Vec<u8>> = receiver.try_iter().collect();
        ensure!(captured.len() >= 20, "captured {}", captured.len());
        let counted = echo_requests(&vdc.berlin)? - before;
        let replayed = vdc.sites[2].router().enter(|| replay(&captured))??;
        ensure!(replayed >= 20, "replayed {replayed}");
        vdc.lisbon.host.ok(&["ping", "-n", "-c", "1", &berlin6])?; // behind the replays on the same path
        let after = echo_requests(&vdc.berlin)? - before;
        ensure!(after == counted + 1, "{} replayed packets were accepted", after - counted - 1);
        let dropped = vdc.berlin.metric("meshd_dropped_packets_total{reason=\"replay\"}")?;
        ensure!(dropped >= 20.0, "positive control: the replays reached the window: {dropped}");
        Ok(())
    })
}

/// ICMPv6 echo requests that the host has seen.
fn echo_requests(member: &Node) -> Result<u64> {
    let text = member.host.ok(&["cat", "/proc/net/snmp6"])?;
    let line = text.lines().find(|line| line.starts_with("Icmp6InEchos")).context("the counter")?;
    Ok(line.split_whitespace().nth(1).context("its value")?.parse()?)
}

/// Sends captured UDP packets again through a raw socket, byte by byte but for the checksum, which may have been left for an
/// interface to finish.
fn replay(packets: &[Vec<u8>]) -> Result<usize> {
    let v4 = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(255.into()))?;
    v4.set_header_included_v4(true)?;
    let v6 = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::RAW, Some(255.into()))?;
    v6.set_header_included_v6(true)?;
    let mut sent = 0;
    for packet in packets {
        let mut packet = packet.clone();
        let (socket, to) = match packet.first().map(|first| first >> 4) {
            Some(4) if packet.get(9) == Some(&UDP) => {
                packet.get_mut(26..28).context("a UDP header")?.fill(0); // none, which IPv4 allows
                (&v4, IpAddr::from(<[u8; 4]>::try_from(&packet[16..20])?))
            }
            Some(6) if packet.get(6) == Some(&UDP) => {
                packet.get_mut(46..48).context("a UDP header")?.fill(0);
                let checksum = udp6_checksum(&packet);
                packet[46..48].copy_from_slice(&checksum.to_be_bytes());
                (&v6, IpAddr::from(<[u8; 16]>::try_from(&packet[24..40])?))
            }
            _ => continue,
        };
        sent += usize::from(socket.send_to(&packet, &SocketAddr::new(to, 0).into()).is_ok());
    }
    Ok(sent)
}

/// IANA's number of the protocol.
const UDP: u8 = 17;

/// The checksum (RFC 8200 §8.1) of an IPv6 packet with a UDP header right behind the fixed one, its own field zero.
fn udp6_checksum(packet: &[u8]) -> u16 {
    let length = u16::try_from(packet.len() - 40).expect("one datagram");
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
    };
    let mut sum = words(&packet[8..]) + u32::from(length) + u32::from(UDP);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !u16::try_from(sum).expect("folded") {
        0 => 0xffff,
        checksum => checksum,
    }
}
