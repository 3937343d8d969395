//! What goes wrong, and what is said about it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use meshlab::wait_until;
use tests::vdc_lab::{Box_, PATIENCE, ThreeSites, binary, expect_refusal, in_lab, site, token};

#[test]
fn bad_tokens_are_told_apart() -> Result<()> {
    in_lab(|lab| {
        let (paris_site, berlin_site) = (site(lab, "paris")?, site(lab, "berlin")?);
        let paris = Box_::start(paris_site.host("paris1")?, "")?;
        let berlin = Box_::start(berlin_site.host("berlin1")?, "")?;
        let other = Box_::start(berlin_site.host("berlin2")?, "")?;
        paris.create("acme", "paris")?;
        let good = paris.invite("berlin")?;
        for (bad, part) in [
            (good[..good.len() - 7].to_owned(), "cut off"),
            (flip(&good), "damaged"),
            (good.replace("vdc1.", "vdc9."), "upgrade"),
            ("hello".to_owned(), "not an invite"),
        ] {
            expect_refusal(berlin.refused(&["join", &bad])?, 4, &[part])?;
        }
        let short = paris.ctl(&["invite", "create", "--site", "berlin", "--expires", "1s"])?;
        let short = token(&short)?;
        wait_until(PATIENCE, "the invite expires", || {
            let list = paris.ctl(&["invite", "list"]);
            list.is_ok_and(|list| list["invites"].to_string().contains("\"expired\""))
        })?;
        expect_refusal(berlin.refused(&["join", &short])?, 4, &["expired"])?;
        berlin.join(&good)?;
        let (_, text) = other.refused(&["join", &good])?;
        ensure!(text.contains("used already"), "{text}");
        // The same box again: the same membership.
        let again = berlin.run(&["join", &good])?;
        ensure!(again.is_ok(), "{}", again.stderr);
        // Another VDC's token under a local name that is taken.
        other.create("acme", "lisbon")?;
        let foreign = other.invite("lisbon")?;
        let (_, text) = berlin.refused(&["join", &foreign])?;
        ensure!(text.contains("--as"), "{text}");
        let renamed = berlin.run(&["join", &foreign, "--as", "second"])?;
        ensure!(renamed.is_ok(), "two VDCs on one box: {}", renamed.stderr);
        ensure!(berlin.ctl(&["vdc", "list"])?["vdcs"].as_array().is_some_and(|vdcs| vdcs.len() == 2));
        expect_refusal(berlin.refused(&["--vdc", "nope", "node", "list"])?, 1, &["nope"])?;
        berlin.ctl(&["vdc", "use", "second"])?;
        Ok(())
    })
}

fn flip(token: &str) -> String {
    let middle = token.len() / 2;
    let other = if token.as_bytes()[middle] == b'A' { 'B' } else { 'A' };
    format!("{}{other}{}", &token[..middle], &token[middle + 1..])
}

/// Rounds of the race; the longer campaign sets `E2E_ROUNDS`.
fn rounds() -> usize {
    std::env::var("E2E_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

#[test]
fn one_of_two_boxes_wins_a_race_for_one_token() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let mut paris = Box_::start(lan.host("paris1")?, "")?;
        let one = Box_::start(lan.host("one")?, "")?;
        let two = Box_::start(lan.host("two")?, "")?;
        paris.create("acme", "paris")?;
        for round in 0..rounds() {
            let token = paris.invite("paris")?;
            let barrier = Barrier::new(2);
            let race = |member: &Box_| {
                barrier.wait();
                let output = member.run(&["join", &token])?;
                println!("round {round}, {}: {}{}", member.host.name(), output.stdout, output.stderr);
                anyhow::Ok(output.is_ok())
            };
            let (a, b) = std::thread::scope(|scope| {
                let (a, b) = (scope.spawn(|| race(&one)), scope.spawn(|| race(&two)));
                (a.join(), b.join())
            });
            let (mut a, mut b) = (a.expect("no panic")?, b.expect("no panic")?);
            if round % 4 == 3 {
                // The registrar dies after the race; whoever won gets the same answer from what it wrote down.
                paris.kill_daemon()?;
                paris.start_daemon()?;
                a = a || one.run(&["join", &token])?.is_ok();
                b = b || two.run(&["join", &token])?.is_ok();
            }
            ensure!(a != b, "round {round}: exactly one wins, got {a} and {b}");
            let winner = if a { &one } else { &two };
            winner.ctl(&["leave", "--force"])?;
        }
        Ok(())
    })
}

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
                for length in 0..300_usize {
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
        // A third address of the VDC, set on lisbon's own port by an attacker who is root there.
        let paris6 = vdc.paris.address("ipv6")?;
        let berlin6 = vdc.berlin.address("ipv6")?;
        vdc.lisbon.host.ok(&["ip", "addr", "add", &format!("{paris6}/128"), "dev", "mesh-acme", "nodad"])?;
        let spoofed = vdc.lisbon.host.run(&["ping", "-n", "-c", "3", "-W", "1", "-I", &paris6, &berlin6])?;
        ensure!(!spoofed.is_ok(), "a spoofed source was answered: {}", spoofed.stdout);
        vdc.lisbon.host.ok(&["ip", "addr", "del", &format!("{paris6}/128"), "dev", "mesh-acme"])?;
        ensure!(vdc.lisbon.pings(&berlin6), "positive control: its own address still is");
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
        Ok(())
    })
}

/// ICMPv6 echo requests that the host has seen.
fn echo_requests(member: &Box_) -> Result<u64> {
    let text = member.host.ok(&["cat", "/proc/net/snmp6"])?;
    let line = text.lines().find(|line| line.starts_with("Icmp6InEchos")).context("the counter")?;
    Ok(line.split_whitespace().nth(1).context("its value")?.parse()?)
}

/// Sends captured IP packets again, byte by byte, through a raw socket.
fn replay(packets: &[Vec<u8>]) -> Result<usize> {
    let v4 = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(255.into()))?;
    v4.set_header_included_v4(true)?;
    let v6 = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::RAW, Some(255.into()))?;
    v6.set_header_included_v6(true)?;
    let mut sent = 0;
    for packet in packets {
        let to = match packet.first().map(|first| first >> 4) {
            Some(4) => IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20).context("IPv4")?)?),
            Some(6) => IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40).context("IPv6")?)?),
            _ => continue,
        };
        let socket = if to.is_ipv4() { &v4 } else { &v6 };
        sent += usize::from(socket.send_to(packet, &SocketAddr::new(to, 0).into()).is_ok());
    }
    Ok(sent)
}

#[test]
fn daemon_says_why_it_does_not_start() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let host = lan.host("paris1")?;
        let meshd = binary("meshd")?;
        let fails = |script: &str, code: i32, part: &str| -> Result<()> {
            let output = host.run(&["sh", "-c", script])?;
            let text = output.stderr.clone();
            ensure!(output.status.code() == Some(code) && text.contains(part), "{script}: {:?} {text}", output.status);
            Ok(())
        };
        host.write_file("/etc/meshd/bad.toml", "prot = 1\n")?;
        fails(&format!("{meshd} --check --config /etc/meshd/bad.toml"), 2, "prot")?;
        host.write_file("/etc/meshd/good.toml", "log = 'info'\n")?;
        ensure!(host.run(&[&meshd, "--check", "--config", "/etc/meshd/good.toml"])?.is_ok());
        // The data plane's port is taken.
        host.enter(|| -> Result<()> {
            let _taken = UdpSocket::bind("[::]:4710")?;
            fails(&format!("timeout 20 {meshd}"), 1, "4710")
        })??;
        // A read-only and a full state directory.
        host.sh("mkdir -p /var/lib/ro /var/lib/full && mount -t tmpfs -o ro tmpfs /var/lib/ro")?;
        host.write_file("/etc/meshd/ro.toml", "state_dir = '/var/lib/ro/meshd'\n")?;
        fails(&format!("timeout 20 {meshd} --config /etc/meshd/ro.toml"), 1, "read-only")?;
        host.sh("mount -t tmpfs -o size=16k tmpfs /var/lib/full")?;
        let full = Box_::start(host.clone(), "state_dir = '/var/lib/full/meshd'\n")?;
        let (code, text) = full.refused(&["vdc", "create", "acme", "--site", "paris"])?;
        ensure!(code != 0 && text.contains("no space left") && text.contains("hint:"), "{text}");
        ensure!(full.ctl(&["vdc", "list"])?["vdcs"].as_array().is_some_and(Vec::is_empty), "nothing half-made is left");
        // A second daemon beside the first.
        fails(&format!("timeout 20 {meshd}"), 1, "another meshd")?;
        Ok(())
    })
}

#[test]
fn members_find_each_other_after_every_address_changed() -> Result<()> {
    in_lab(|lab| {
        let (paris_site, berlin_site) = (site(lab, "paris")?, site(lab, "berlin")?);
        let mut paris = Box_::start(paris_site.host("paris1")?, "[network]\nadvertise = ['paris.example']\n")?;
        lab.name_server().set("paris.example", &paris.host.addresses());
        let mut berlin = Box_::start(berlin_site.host("berlin1")?, "")?;
        paris.create("acme", "paris")?;
        berlin.join(&paris.invite("berlin")?)?;
        berlin.wait_for(&paris)?;
        let address = paris.address("ipv6")?;
        for round in ["by DNS name", "by hand"] {
            paris.kill_daemon()?;
            berlin.kill_daemon()?;
            paris_site.renumber(lab.free_prefixes()?)?;
            berlin_site.renumber(lab.free_prefixes()?)?;
            if round == "by DNS name" {
                lab.name_server().set("paris.example", &paris.host.addresses());
            } else {
                lab.name_server().remove("paris.example");
            }
            paris.start_daemon()?;
            berlin.start_daemon()?;
            if round == "by hand" {
                let v4 = paris.host.v4().context("IPv4")?;
                berlin.ctl(&["connect", &format!("{v4}:4712")])?;
            }
            wait_until(Duration::from_secs(60), round, || berlin.pings(&address))?;
        }
        Ok(())
    })
}
