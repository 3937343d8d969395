//! The lab tested with the lab: what a link is told to do is what programs on hosts see. Needs root.
#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module as a whole")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use meshlab::{
    BitRate, Direction, Family, Host, Lab, LinkOptions, Nat, Service, Signal, Site, SiteOptions, Transport,
    require_tools, wait_until,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Longer than anything here takes on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

fn tools() -> Result<()> {
    Ok(require_tools(&[
        "ping:iputils-ping",
        "ip:iproute2",
        "nft:nftables",
        "getent:libc-bin",
        "pgrep:procps",
        "setsid:util-linux",
    ])?)
}

fn two_sites(lab: &Lab) -> Result<[(Site, Host); 2]> {
    let paris = lab.site("paris", SiteOptions::default())?;
    let berlin = lab.site("berlin", SiteOptions::default())?;
    let (paris1, berlin1) = (paris.host("paris1")?, berlin.host("berlin1")?);
    Ok([(paris, paris1), (berlin, berlin1)])
}

struct Ping {
    sent: u64,
    received: u64,
    /// Milliseconds; infinite if nothing was received.
    rtt_min: f64,
}

fn ping_with(host: &Host, options: &[&str], to: IpAddr) -> Result<Ping> {
    let to = to.to_string();
    let words = [&["ping", "-n", "-q"], options, &[&to]].concat();
    let output = host.run(&words)?;
    let text = output.stdout + &output.stderr;
    let before = |mark: &str| -> Option<u64> { text.split(mark).next()?.split([' ', '\n']).next_back()?.parse().ok() };
    let rtt_min = text.split(" = ").nth(1).and_then(|t| t.split('/').next()).map_or(Ok(f64::INFINITY), str::parse)?;
    Ok(Ping {
        sent: before(" packets transmitted").with_context(|| text.clone())?,
        received: before(" received").with_context(|| text.clone())?,
        rtt_min,
    })
}

fn reaches(host: &Host, to: IpAddr) -> Result<bool> {
    Ok(ping_with(host, &["-c", "1", "-W", "1"], to)?.received == 1)
}

/// Waits until one of a few pings gets through.
fn wait_reachable(host: &Host, to: IpAddr) -> Result<()> {
    let look = || reaches(host, to).and_then(|r| if r { Ok(()) } else { anyhow::bail!("no answer") });
    Ok(wait_until(PATIENCE, &format!("{to} to answer {}", host.name()), look)?)
}

/// Sends `len` bytes over TCP and returns how long it took, from the connection's beginning to its end.
fn transfer(from: &Host, to: &Host, address: IpAddr, len: usize) -> Result<Duration> {
    let listener = to.enter(|| TcpListener::bind((address, 0)))??;
    let target = listener.local_addr()?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let (mut seen, mut buffer) = (0, vec![0; 256 * 1024]);
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    count => seen += count,
                }
            }
            ensure!(seen == len, "{seen} of {len} bytes arrived");
            Ok(())
        });
        let start = Instant::now();
        let mut stream = from.enter(|| TcpStream::connect_timeout(&target, PATIENCE))??;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&vec![7; len])?;
        drop(stream);
        receiver.join().expect("the receiver does not panic")?;
        Ok(start.elapsed())
    })
}

#[test]
fn every_host_reaches_every_other_at_the_configured_delay() -> Result<()> {
    tools()?;
    Lab::builder().run(|lab| {
        let mut hosts = Vec::new();
        for name in ["paris", "berlin", "lisbon"] {
            let site = lab.site(name, SiteOptions::default())?;
            hosts.push((name, site.host(&format!("{name}1"))?));
            hosts.push((name, site.host(&format!("{name}2"))?));
        }
        for (site, host) in &hosts {
            for (to_site, to) in hosts.iter().filter(|(_, to)| to.name() != host.name()) {
                for address in to.addresses() {
                    let (floor, ceiling) = if site == to_site { (0.0, 15.0) } else { (20.0, 60.0) };
                    let from_to = format!("{} to {address}", host.name());
                    // A busy machine may answer late, but never too early.
                    let rtt = wait_until(PATIENCE, &format!("{from_to} within {ceiling} ms"), || {
                        let ping = ping_with(host, &["-c", "2", "-i", "0.01", "-W", "5"], address)?;
                        ensure!(ping.rtt_min <= ceiling, "{} of 2 after {} ms", ping.received, ping.rtt_min);
                        Ok(ping.rtt_min)
                    })?;
                    ensure!(rtt >= floor, "{from_to} took {rtt} ms");
                }
            }
        }
        let (_, host) = &hosts[0];
        ensure!(host.ok(&["hostname"])?.trim() == "paris1");
        for server in lab.name_server().addresses() {
            wait_reachable(host, server)?;
        }
        Ok(())
    })
}

#[test]
fn lan_traffic_and_multicast_stay_in_the_site() -> Result<()> {
    tools()?;
    Lab::builder().run(|lab| {
        let [(paris, paris1), (_, berlin1)] = two_sites(lab)?;
        let paris2 = paris.host("paris2")?;
        let before = paris.uplink().counters();
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let listen = |host: &Host| -> Result<UdpSocket> {
            let own = host.v4().context("dual stack")?;
            let socket = host.enter(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5353))?;
                socket.join_multicast_v4(&group, &own)?;
                Ok::<_, std::io::Error>(socket)
            })??;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        let (near, far) = (listen(&paris2)?, listen(&berlin1)?);
        let sender = listen(&paris1)?;
        sender.send_to(b"who is there?", (group, 5353))?;
        let mut buffer = [0; 64];
        let (len, from) = near.recv_from(&mut buffer)?;
        ensure!(&buffer[..len] == b"who is there?" && from.ip() == paris1.addresses()[1]);
        for address in paris2.addresses() {
            wait_reachable(&paris1, address)?;
        }
        ensure!(paris.uplink().counters() == before, "LAN traffic crossed the uplink");

        // Unicast goes the longer way; when it has arrived, the multicast would have long ago.
        sender.send_to(b"unicast", (berlin1.v4().context("dual stack")?, 5353))?;
        let (len, _) = far.recv_from(&mut buffer)?;
        ensure!(&buffer[..len] == b"unicast", "multicast crossed the WAN");
        let sent = paris.uplink().counters() - before;
        ensure!(sent.up.packets == 1 && sent.up.bytes == 28 + 7, "{sent:?}");
        Ok(())
    })
}

#[test]
fn lost_packets_are_counted_and_their_share_is_the_configured_one() -> Result<()> {
    tools()?;
    Lab::builder().seed(11).run(|lab| {
        let [(paris, paris1), (_, berlin1)] = two_sites(lab)?;
        let to = berlin1.v4().context("dual stack")?.into();
        wait_reachable(&paris1, to)?;
        paris.uplink().set(|o| {
            o.loss = 0.2;
            o.reorder = 0.1;
        });
        let before = paris.uplink().counters();
        let ping = ping_with(&paris1, &["-c", "500", "-i", "0.002", "-W", "5"], to)?;
        let seen = paris.uplink().counters() - before;
        ensure!(ping.sent == 500 && seen.up.packets == 500, "{seen:?}");
        ensure!(ping.sent - ping.received == seen.up.lost + seen.down.lost, "{seen:?}, {} received", ping.received);
        // 0.8 × 0.8 of 500, ± 5 standard deviations of 10.7.
        ensure!((267..=373).contains(&ping.received), "{} received", ping.received);
        Ok(())
    })
}

#[test]
fn cut_link_carries_nothing_until_it_heals() -> Result<()> {
    tools()?;
    Lab::builder().run(|lab| {
        let [(paris, paris1), (_, berlin1)] = two_sites(lab)?;
        let [v6, v4] = berlin1.addresses()[..] else { anyhow::bail!("dual stack") };
        wait_reachable(&paris1, v6)?;
        paris.uplink().cut();
        let down = paris.uplink().counters().down.packets;
        ensure!(!reaches(&paris1, v4)? && !reaches(&paris1, v6)?);
        ensure!(paris.uplink().counters().down.packets == down && paris.uplink().counters().up.cut >= 2);
        paris.uplink().heal();
        wait_reachable(&paris1, v4)?;
        wait_reachable(&paris1, v6)?;

        paris.uplink().set(|o| o.family = Family::V6);
        ensure!(!reaches(&paris1, v4)?);
        wait_reachable(&paris1, v6)?;

        let berlin2 = &berlin1;
        berlin2.unplug()?;
        ensure!(!reaches(&paris1, v6)?);
        berlin2.plug()?;
        wait_reachable(&paris1, v6)
    })
}

#[test]
fn bandwidth_is_capped_near_the_configured_rate() -> Result<()> {
    Lab::builder().run(|lab| {
        let [(paris, paris1), (_, berlin1)] = two_sites(lab)?;
        paris.uplink().set(|o| o.bandwidth = Some(BitRate::mbit(20)));
        for address in berlin1.addresses() {
            let len = 3_000_000;
            let took = transfer(&paris1, &berlin1, address, len)?;
            let mbit = len as f64 * 8.0 / 1e6 / took.as_secs_f64();
            // Headers take 5 %, and nothing gets through faster. Slower is the machine's business.
            ensure!((4.0..=20.0).contains(&mbit), "{mbit:.1} Mbit/s to {address}");
        }
        Ok(())
    })
}

#[test]
fn uncapped_link_carries_super_packets_whole() -> Result<()> {
    Lab::builder().run(|lab| {
        let [(_, paris1), (berlin, berlin1)] = two_sites(lab)?;
        let large = berlin.uplink().count(|direction, packet| direction == Direction::Down && packet.len() > 4000);
        let before = berlin.uplink().counters();
        for address in berlin1.addresses() {
            transfer(&paris1, &berlin1, address, 20_000_000)?;
        }
        let seen = berlin.uplink().counters() - before;
        ensure!(large.packets() > 100, "{} super-packets", large.packets());
        // They count as what a wire would have carried: 1,448 or 1,428 bytes of payload each.
        ensure!((27_000..40_000).contains(&seen.down.packets), "{seen:?}");
        Ok(())
    })
}

#[test]
fn mtu_is_discovered_or_a_black_hole() -> Result<()> {
    tools()?;
    Lab::builder().run(|lab| {
        let [(_, paris1), (berlin, berlin1)] = two_sites(lab)?;
        let to_v4 = berlin1.v4().context("dual stack")?.into();
        berlin.uplink().set(|o| o.mtu = 1400);
        wait_reachable(&paris1, to_v4)?;
        let sized = |mode: &str, size: usize| {
            ping_with(&paris1, &["-c", "1", "-W", "2", "-M", mode, "-s", &size.to_string()], to_v4)
        };
        ensure!(sized("do", 1372)?.received == 1, "1400 bytes fit");
        ensure!(sized("do", 1373)?.received == 0, "1401 bytes do not");
        let route = paris1.ok(&["ip", "route", "get", &to_v4.to_string()])?;
        ensure!(route.contains("mtu 1400"), "the answer taught the sender: {route}");
        // Before the path's MTU is known, a sender that allows it is helped on the way.
        paris1.ok(&["ip", "route", "flush", "cache"])?;
        ensure!(sized("dont", 1450)?.received == 1, "fragments arrive");
        for address in berlin1.addresses() {
            transfer(&paris1, &berlin1, address, 1_000_000)?;
        }

        berlin.uplink().set(|o| {
            o.mtu = 1300;
            o.icmp_filtered = true;
        });
        let large = berlin.uplink().count(|direction, packet| direction == Direction::Down && packet.len() > 1300);
        let refused = berlin.uplink().counters().down.too_big;
        ensure!(sized("do", 1290)?.received == 0 && large.packets() == 0);
        ensure!(berlin.uplink().counters().down.too_big == refused + 1);
        let route = paris1.ok(&["ip", "route", "get", &to_v4.to_string()])?;
        ensure!(!route.contains("mtu 1300"), "nobody said so: {route}");
        Ok(())
    })
}

#[test]
fn renumbered_site_is_reached_at_its_new_addresses_only() -> Result<()> {
    tools()?;
    Lab::builder().run(|lab| {
        let [(paris, paris1), (_, berlin1)] = two_sites(lab)?;
        let old = paris1.addresses();
        for address in &old {
            wait_reachable(&berlin1, *address)?;
        }
        paris.renumber(lab.free_prefixes()?)?;
        let new = paris1.addresses();
        ensure!(new.len() == 2 && new.iter().all(|a| paris.prefixes().contains(*a) && !old.contains(a)));
        for address in &new {
            wait_reachable(&berlin1, *address)?;
        }
        for address in &old {
            ensure!(!reaches(&berlin1, *address)?, "{address} still answers");
        }
        for address in berlin1.addresses() {
            wait_reachable(&paris1, address)?;
        }
        Ok(())
    })
}

#[test]
fn names_resolve_by_the_lab_name_server_and_change_at_run_time() -> Result<()> {
    tools()?;
    Lab::builder().run(|lab| {
        let [(_, paris1), (_, berlin1)] = two_sites(lab)?;
        let names = lab.name_server();
        let resolve = |host: &Host| -> Result<BTreeSet<IpAddr>> {
            let output = host.run(&["getent", "ahosts", "seed.example"])?.stdout;
            let first_words = output.lines().filter_map(|line| line.split_whitespace().next());
            // Where there is no IPv4, its addresses come mapped.
            let addresses: Vec<IpAddr> = first_words.map(str::parse).collect::<Result<_, _>>()?;
            Ok(addresses.iter().map(IpAddr::to_canonical).collect())
        };
        let wait_resolved = |host: &Host, expected: &[IpAddr]| {
            let expected = expected.iter().copied().collect();
            let look = || resolve(host).and_then(|a| if a == expected { Ok(()) } else { anyhow::bail!("{a:?}") });
            wait_until(PATIENCE, &format!("seed.example as {expected:?} on {}", host.name()), look)
        };
        ensure!(resolve(&paris1)?.is_empty());
        names.set("seed.example", &berlin1.addresses());
        wait_resolved(&paris1, &berlin1.addresses())?;
        names.set("seed.example", &paris1.addresses()[1..]);
        wait_resolved(&berlin1, &paris1.addresses()[1..])?;
        names.set_silent(true);
        let before = names.queries();
        ensure!(resolve(&paris1)?.is_empty() && names.queries() > before);

        let lisbon = lab.site("lisbon", SiteOptions { family: Family::V6, ..SiteOptions::default() })?;
        let lisbon1 = lisbon.host("lisbon1")?;
        names.set_silent(false);
        ensure!(lisbon1.v4().is_none(), "a site without IPv4 resolves too");
        wait_resolved(&lisbon1, &paris1.addresses()[1..])?;
        Ok(())
    })
}

#[test]
fn masquerading_router_hides_its_hosts_but_for_forwarded_ports() -> Result<()> {
    tools()?;
    Lab::builder().run(|lab| {
        let home = SiteOptions { nat: Nat::Masquerade { accepts_input: false }, ..SiteOptions::default() };
        let home = lab.site("home", home)?;
        let home1 = home.host("home1")?;
        let paris1 = lab.site("paris", SiteOptions::default())?.host("paris1")?;
        for address in paris1.addresses() {
            wait_reachable(&home1, address)?;
        }
        let public = home.router().v4().context("dual stack")?;
        ensure!(home1.v4() == Some(Ipv4Addr::new(192, 168, 1, 10)));

        let outside = paris1.enter(|| UdpSocket::bind("[::]:7000"))??;
        let inside = home1.enter(|| UdpSocket::bind("[::]:7000"))??;
        for socket in [&outside, &inside] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        let mapped = |v4: Ipv4Addr| SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), 7000);
        let forwarded: IpAddr = home1.v6().context("dual stack")?.into();
        let mut buffer = [0; 64];

        // New flows from outside die at the router.
        let drops = home.uplink().counters().down.packets;
        outside.send_to(b"too early", mapped(public))?;
        outside.send_to(b"too early", (forwarded, 7000))?;
        wait_until(PATIENCE, "both datagrams at the router", || home.uplink().counters().down.packets == drops + 2)?;

        inside.send_to(b"out", mapped(paris1.v4().context("dual stack")?))?;
        let (len, from) = outside.recv_from(&mut buffer)?;
        ensure!(&buffer[..len] == b"out" && from.ip().to_canonical() == IpAddr::V4(public), "{from}");
        outside.send_to(b"back", from)?;
        let (len, _) = inside.recv_from(&mut buffer)?;
        ensure!(&buffer[..len] == b"back", "only the answer came in");

        let extra = home1.enter(|| UdpSocket::bind("[::]:7001"))??;
        extra.set_read_timeout(Some(PATIENCE))?;
        home.forward_port(Transport::Udp, 7001, &home1)?;
        let target = SocketAddr::new(mapped(public).ip(), 7001);
        for (target, text) in [(target, b"four"), (SocketAddr::new(forwarded, 7001), b"six!")] {
            outside.send_to(text, target)?;
            let (len, _) = extra.recv_from(&mut buffer)?;
            ensure!(&buffer[..len] == text);
        }

        home.renumber(lab.free_prefixes()?)?;
        let public = home.router().v4().context("dual stack")?;
        outside.send_to(b"moved", SocketAddr::new(mapped(public).ip(), 7001))?;
        let (len, _) = extra.recv_from(&mut buffer)?;
        ensure!(&buffer[..len] == b"moved", "the port is forwarded at the new address");
        Ok(())
    })
}

#[test]
fn hosts_have_private_files_namespaces_and_processes() -> Result<()> {
    tools()?;
    let real_resolver = fs::read("/etc/resolv.conf").ok();
    Lab::builder().run(|lab| {
        let [(_, paris1), (_, berlin1)] = two_sites(lab)?;
        paris1.sh(
            "ip netns add inner && ip -n inner link set lo up && mkdir -p /var/lib/x && echo here > /var/lib/x/y",
        )?;
        ensure!(paris1.ok(&["ip", "netns", "list"])?.starts_with("inner"));
        ensure!(paris1.sh("ip netns exec inner ls /sys/class/net")?.trim() == "lo");
        ensure!(paris1.read_file("/var/lib/x/y")?.trim() == "here");
        ensure!(berlin1.ok(&["ip", "netns", "list"])?.is_empty());
        ensure!(berlin1.read_file("/var/lib/x/y").is_err());
        berlin1.write_file("/etc/deep/file", "text")?;
        ensure!(berlin1.sh("cat /etc/deep/file")? == "text");
        ensure!(fs::read("/etc/resolv.conf").ok() == real_resolver, "the machine's own resolver changed");
        ensure!(!fs::exists("/etc/deep")? && !fs::exists("/var/lib/x")?);
        ensure!(paris1.sh("ls /sys/class/net")?.split_whitespace().eq(["eth0", "lo"]));
        ensure!(paris1.sh("test -e /proc/self/ns/net && cat /proc/1/comm").is_ok());

        let echoed = paris1.command("cat").input("to stdin").ok()?;
        ensure!(echoed == "to stdin");
        let failed = paris1.sh("echo reason >&2; exit 3").unwrap_err().to_string();
        ensure!(
            failed.contains("paris1") && failed.contains("exit status: 3") && failed.contains("reason"),
            "{failed}"
        );
        let late = paris1.command("sleep").arg("1000").timeout(Duration::from_millis(50)).run().unwrap_err();
        ensure!(late.to_string().contains("still ran"), "{late}");

        let service = paris1.command("sh").args(["-c", "echo up; sleep 1000 & wait"]).log_name("service").spawn()?;
        service.wait_for_log(PATIENCE, "up")?;
        ensure!(service.is_running() && paris1.sh("pgrep -x sleep")?.lines().count() == 1);
        service.kill()?;
        wait_until(PATIENCE, "the service's child to die", || {
            paris1.run(&["pgrep", "-x", "sleep"]).map(|o| !o.is_ok())
        })?;
        ensure!(!service.is_running() && service.signal(Signal::SIGTERM).is_err());
        let gone = paris1.spawn(&["sh", "-c", "echo last words"])?.wait_for_log(PATIENCE, "never").unwrap_err();
        ensure!(gone.to_string().contains("it ended; last words"), "{gone}");
        let polite = paris1.spawn(&["sleep", "1000"])?;
        ensure!(!polite.stop(PATIENCE)?.success());
        Ok(())
    })
}

#[test]
fn capture_and_names_are_checked() -> Result<()> {
    tools()?;
    Lab::builder().run(|lab| {
        let [(paris, paris1), (_, berlin1)] = two_sites(lab)?;
        let path = lab.dir().join("paris.pcap");
        paris.uplink().capture(&path)?;
        wait_reachable(&paris1, berlin1.addresses()[0])?;
        let bytes = fs::read(&path)?;
        // Request and answer: 24 bytes of head, 16 each and 104 of ICMPv6 in IPv6.
        ensure!(bytes.len() >= 24 + 2 * (16 + 104) && (bytes.len() - 24).is_multiple_of(120), "{} bytes", bytes.len());
        ensure!(bytes[..4] == 0xa1b2_c3d4_u32.to_ne_bytes() && bytes[40] >> 4 == 6);

        for name in ["paris", "paris1", "paris-router", "", "Paris", "a b"] {
            ensure!(lab.site(name, SiteOptions::default()).is_err(), "{name:?}");
        }
        ensure!(paris1.enter_hint().starts_with("nsenter --net=/proc/"));
        Ok(())
    })
}

/// Moves the calling thread, and those that it starts, into a machine of its own, whose traces nobody else changes.
fn leave_shared_machine() -> Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), NONE)?;
    Ok(())
}

/// What a lab could leave behind on the machine.
fn traces() -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    for file in ["/proc/thread-self/net/dev", "/proc/thread-self/mounts"] {
        // Traffic counters change by themselves.
        let text = fs::read_to_string(file)?;
        traces.extend(text.lines().map(|l| l.split(':').next().unwrap_or(l).to_owned()));
    }
    for entry in fs::read_dir("/run")? {
        traces.insert(entry?.path().display().to_string());
    }
    Ok(traces)
}

/// Something may go: mounts that were copied from the machine end with what is mounted there.
fn ensure_nothing_new(before: &BTreeSet<String>) -> Result<()> {
    let now = traces()?;
    let new: Vec<&String> = now.difference(before).collect();
    ensure!(new.is_empty(), "the lab is visible: {new:?}");
    Ok(())
}

/// Processes of which the command line contains `mark`.
fn processes(mark: &str) -> usize {
    let lines =
        fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|p| fs::read(p.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(mark)).count()
}

/// A process that left its group, so that killing its parent's does not reach it.
fn spawn_daemon(host: &Host, mark: &str) -> Result<Service> {
    Ok(host.command("sh").args(["-c", "setsid sleep $MARK & wait"]).env("MARK", mark).spawn()?)
}

#[test]
fn dropped_lab_leaves_nothing() -> Result<()> {
    let mark = format!("1000.{}", std::process::id());
    leave_shared_machine()?;
    let before = traces()?;
    let lab = Lab::builder().build()?;
    let [(_, paris1), (_, berlin1)] = two_sites(&lab)?;
    let service = paris1.spawn(&["sleep", &mark])?;
    let daemon = spawn_daemon(&berlin1, &mark)?;
    wait_until(PATIENCE, "both sleeps", || processes(&mark) == 2)?;
    ensure_nothing_new(&before)?;
    let dir = lab.dir().to_owned();
    ensure!(dir.exists());
    drop(lab);
    ensure!(processes(&mark) == 0 && !service.is_running());
    ensure!(paris1.run(&["true"]).is_err(), "a handle outlived the lab, but nothing runs any more");
    drop((paris1, berlin1, service, daemon));
    wait_until(PATIENCE, "the directory to go", || !dir.exists())?;
    ensure_nothing_new(&before)
}

/// Runs itself as another process, which is killed in the middle of a lab.
#[test]
fn killed_lab_leaves_nothing() -> Result<()> {
    const MARK: &str = "MESHLAB_TEST_KILLED_MARK";
    if let Ok(mark) = std::env::var(MARK) {
        let lab = Lab::builder().build()?;
        let [(_, paris1), (_, berlin1)] = two_sites(&lab)?;
        let service = paris1.spawn(&["sleep", &mark])?;
        let _daemon = spawn_daemon(&berlin1, &mark)?;
        fs::write(lab.dir().join("mark"), &mark)?;
        service.wait(PATIENCE * 10)?;
        return Ok(());
    }
    let mark = format!("2000.{}", std::process::id());
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "killed_lab_leaves_nothing"])
        .env(MARK, &mark)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let started = wait_until(PATIENCE, "both sleeps", || processes(&mark) == 2);
    child.kill()?;
    child.wait()?;
    started?;
    wait_until(PATIENCE, "the kernel to clean up", || processes(&mark) == 0)?;
    // Its directory goes with the next lab.
    let has_mark = |dir: &fs::DirEntry| fs::read_to_string(dir.path().join("mark")).is_ok_and(|m| m == mark);
    let left = || fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten().filter(has_mark).count();
    drop(Lab::builder().build()?);
    ensure!(left() == 0);
    Ok(())
}

#[test]
fn link_defaults_make_twenty_milliseconds_between_sites() {
    assert_eq!(LinkOptions::default().delay * 4, Duration::from_millis(20));
}
