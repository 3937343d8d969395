use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshd_tun::{BoringFactory, DataPlane, DataPlaneConfig, NetworkConfig, VdcConfig, VdcHandle, VdcNetwork};
use vdc::{Ipv4Block, Key};
use vdc_overlay::{Event, Member};

use crate::lab::{Host, block, command_in, ip_in, local_name, node_prefix, vdc_id};

const PORT: u16 = 51820;

fn ipv4_of(number: u8) -> Option<Ipv4Block> {
    block("10.77.0.0/24").sub_block(28, u32::from(number))
}

/// The VDC of most tests.
const VDC: u8 = 0x77;

fn member_of(vdc: u8, number: u8) -> Member {
    Member {
        node: Key([number; 32]),
        wg: BoringFactory::new(secret(vdc, number)).public(),
        prefix: node_prefix(&vdc_id(vdc), number),
        ipv4: ipv4_of(number),
    }
}

/// A node's WireGuard key: another one in each VDC.
fn secret(vdc: u8, number: u8) -> [u8; 32] {
    [vdc ^ number; 32]
}

fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited 5 s in vain: {what}");
        std::thread::yield_now();
    }
}

/// A host with one VDC and a running data plane.
struct Node {
    vdc: u8,
    number: u8,
    config: NetworkConfig,
    last_paths: Vec<(Key, SocketAddr)>,
    running: Option<Running>,
    host: Rc<Host>,
}

struct Running {
    plane: DataPlane,
    handle: VdcHandle,
    _network: VdcNetwork,
    answering: JoinHandle<()>,
}

impl Node {
    fn new(number: u8, host: Host) -> Self {
        Self::in_vdc(VDC, number, Rc::new(host))
    }

    fn in_vdc(vdc: u8, number: u8, host: Rc<Host>) -> Self {
        let config = NetworkConfig {
            vdc: vdc_id(vdc),
            name: local_name(),
            prefix: member_of(vdc, number).prefix,
            ipv4: ipv4_of(number),
            ipv4_ranges: vec![block("10.77.0.0/24")],
            mtu_bytes: meshd_tun::MTU_BYTES,
            host_ipv4: vdc == VDC,
        };
        Self { vdc, number, config, last_paths: Vec::new(), running: None, host }
    }

    /// Starts the data plane as a daemon would; `remote` answers every question for endpoints.
    fn start(&mut self, members: &[u8], remote: SocketAddr, offloads: bool) {
        let plane =
            self.host.netns.run(|| DataPlane::start(DataPlaneConfig { port: PORT }).map_err(std::io::Error::other));
        self.start_on(plane.expect("a free port"), members, remote, offloads);
    }

    /// Adds this VDC to a running data plane.
    fn start_on(&mut self, plane: DataPlane, members: &[u8], remote: SocketAddr, offloads: bool) {
        let (network, mut tun) = self.host.ensure(&self.config).expect("network");
        if !offloads {
            tun.disable_offloads().expect("switched off");
        }
        let (events, mut wanted) = tokio::sync::mpsc::channel(4);
        let own = member_of(self.vdc, self.number);
        let vdc = VdcConfig {
            wireguard_secret: secret(self.vdc, self.number),
            prefix: own.prefix,
            ipv4: own.ipv4,
            seed: [self.number; 32],
            members: vec![],
            last_paths: self.last_paths.clone(),
            tun,
            events,
        };
        let handle = block_on(plane.add_vdc(vdc)).expect("added");
        let answers = handle.clone();
        let answering = std::thread::spawn(move || {
            while let Some(event) = wanted.blocking_recv() {
                if let Event::EndpointsWanted(node) = event {
                    answers.set_candidates(node, vec![remote]).expect("room");
                }
            }
        });
        self.running = Some(Running { plane, handle, _network: network, answering });
        self.set_members(members);
    }

    fn set_members(&self, members: &[u8]) {
        self.running().handle.set_members(self.members(members)).expect("room");
    }

    fn members(&self, numbers: &[u8]) -> Vec<Member> {
        numbers.iter().map(|number| member_of(self.vdc, *number)).collect()
    }

    /// Where packets to the only peer go.
    fn peer_path(&self) -> Option<SocketAddr> {
        let view = self.running().handle.view();
        view.tunnels.first().and_then(|tunnel| tunnel.path).map(|(path, _)| path.remote)
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("started")
    }

    /// Ends the daemon and leaves its network, as a crash or an upgrade does.
    fn stop(&mut self) {
        let running = self.running.take().expect("started");
        self.last_paths = running.handle.view().last_paths.clone();
        block_on(running.handle.remove()).expect("removed");
        running.plane.stop();
        running.answering.join().expect("no panic");
    }

    /// Takes the VDC out of a data plane that goes on.
    fn leave(&mut self) {
        let running = self.running.take().expect("started");
        block_on(running.handle.remove()).expect("removed");
        running.answering.join().expect("no panic");
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.running().plane.counters();
        counters.each().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    /// Waits until a counter reaches `least`.
    fn await_counter(&self, name: &str, least: u64) -> u64 {
        await_that(&format!("{name} of {least}"), || self.counter(name) >= least);
        self.counter(name)
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.config.host_addresses()
    }

    fn pings(&self, address: IpAddr) -> bool {
        self.host.command(&format!("ping -c1 -W1 {address}")).status.success()
    }

    /// Pings until an answer comes: a busy machine may need more than one.
    fn reaches(&self, address: IpAddr) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.pings(address) {
            if Instant::now() > deadline {
                return false;
            }
        }
        true
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.stop();
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

/// Two hosts on one cable.
fn cable() -> (Host, Host) {
    let (a, b) = (Host::new(), Host::new());
    a.ip(&format!("link add wan type veth peer name wan netns {}", b.name));
    for (host, number) in [(&a, 1), (&b, 2)] {
        host.ip(&format!("addr add 192.0.2.{number}/24 dev wan"));
        host.ip(&format!("addr add 2001:db8::{number}/64 dev wan nodad"));
        host.ip("link set wan up");
    }
    // The kernel takes up to a second before a new link speaks IPv6.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !a.command("ping -c1 -W1 2001:db8::2").status.success() {
        assert!(Instant::now() < deadline, "the cable does not carry IPv6");
    }
    (a, b)
}

fn wan(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::from([192, 0, 2, number]), PORT)
}

fn wan6(number: u8) -> SocketAddr {
    format!("[2001:db8::{number}]:{PORT}").parse().expect("an address")
}

/// An iperf3 server for one client: the same one may still be busy with the last client when the next one comes.
struct Server(Child);

impl Server {
    fn start(node: &Node) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", node.host.name)).args(["iperf3", "-s", "-1"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("nsenter (util-linux)");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !String::from_utf8_lossy(&node.host.command("ss -ltn").stdout).contains(":5201") {
            assert!(Instant::now() < deadline, "iperf3 does not listen (Debian: iperf3, iproute2)");
            std::thread::yield_now();
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().expect("ours");
        self.0.wait().expect("ours");
    }
}

/// Moves 40 MB each way over both families.
fn iperf_both_ways(a: &Node, b: &Node) {
    for address in b.addresses() {
        for direction in ["", "-R"] {
            let _server = Server::start(b);
            let output = a.host.command(&format!("iperf3 -c {address} -n 40M {direction}"));
            assert!(output.status.success(), "{address} {direction}: {output:?}");
        }
    }
    let _server = Server::start(b);
    let output = a.host.command(&format!("iperf3 -c {} -u -b 200M -l 1300 -n 10M", b.addresses()[0]));
    assert!(output.status.success(), "{output:?}");
}

fn pair(remotes: [SocketAddr; 2], offloads: bool) -> (Node, Node) {
    let (a, b) = cable();
    let (mut a, mut b) = (Node::new(1, a), Node::new(2, b));
    a.start(&[2], remotes[0], offloads);
    b.start(&[1], remotes[1], offloads);
    (a, b)
}

#[test]
fn bulk_and_pings_pass_with_offloads_over_both_families() {
    for remotes in [[wan(2), wan(1)], [wan6(2), wan6(1)]] {
        let (a, b) = pair(remotes, true);
        for address in b.addresses() {
            assert!(a.reaches(address), "{address}");
        }
        for address in a.addresses() {
            assert!(b.reaches(address), "{address}");
        }
        iperf_both_ways(&a, &b);
        // Super-packets on both ends: many packets per read, many per write.
        assert!(a.counter("tun_packets") > 5 * a.counter("tun_reads"), "{:?}", a.running().plane.counters());
        assert!(b.counter("opened") > 3 * b.counter("tun_writes"), "{:?}", b.running().plane.counters());
        for (reason, packets) in b.running().plane.counters().drops() {
            assert_eq!(packets, 0, "{reason}");
        }
    }
}

#[test]
fn bulk_and_pings_pass_without_any_offload() {
    let (a, b) = pair([wan(2), wan(1)], false);
    for node in [&a, &b] {
        let off = node.host.command("ethtool -K wan tx-udp-segmentation off");
        assert!(off.status.success(), "{off:?} (Debian: ethtool)");
    }
    for address in b.addresses() {
        assert!(a.reaches(address), "{address}");
    }
    iperf_both_ways(&a, &b);
}

#[test]
fn small_underlay_mtu_falls_back_to_fragments() {
    let (a, b) = pair([wan(2), wan(1)], true);
    for node in [&a, &b] {
        node.host.ip("link set wan mtu 1400");
    }
    assert!(a.reaches(b.addresses()[0]));
    iperf_both_ways(&a, &b);
}

#[test]
fn spoofed_sources_are_dropped_and_counted() {
    let (a, b) = pair([wan(2), wan(1)], true);
    let target = b.addresses()[0];
    assert!(a.reaches(target), "positive control");
    // A member's root puts somebody else's address on its own namespace and sends with it.
    let stranger = node_prefix(&vdc_id(VDC), 9).address(1);
    let inside = a.config.netns_name();
    ip_in(&inside, &format!("addr add {stranger}/128 dev lo nodad"));
    ip_in(&inside, "addr add 10.77.0.145/32 dev lo");
    let received = pings_received(&b);
    for (source, target) in [(stranger.to_string(), target), ("10.77.0.145".to_owned(), b.addresses()[1])] {
        let before = b.counter("source_dropped");
        let output = command_in(&inside, &format!("ping -c3 -i0.2 -W1 -I {source} {target}"));
        assert!(!output.status.success(), "{output:?}");
        b.await_counter("source_dropped", before + 3);
    }
    assert_eq!(pings_received(&b), received, "nothing reached the host");
    assert!(a.reaches(target), "positive control");
}

/// Pings that the host's own stack saw, both families.
fn pings_received(node: &Node) -> String {
    let output = node.host.command("nstat -asz Icmp6InEchos IcmpInEchos");
    assert!(output.status.success(), "{output:?} (Debian: iproute2)");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn closed_tunnel_is_shown_no_more() {
    let (a, mut b) = pair([wan(2), wan(1)], true);
    assert!(a.reaches(b.addresses()[0]));
    b.stop(); // no packet of the peer shall be what wakes the thread
    let is_shown = || !a.running().handle.view().tunnels.is_empty();
    await_that("the tunnel is shown", is_shown);
    a.set_members(&[]);
    await_that("nothing is shown", || !is_shown());
}

#[test]
fn revoked_member_is_cut_off_at_once() {
    let (a, b) = pair([wan(2), wan(1)], true);
    let target = b.addresses()[0];
    assert!(a.reaches(target));
    b.set_members(&[]);
    let refused = b.counter("unknown_index_dropped");
    assert!(!a.pings(target));
    b.await_counter("unknown_index_dropped", refused + 1);
}

/// A relay between the two nodes that can repeat what it saw.
struct Tap {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
    injector: UdpSocket,
}

impl Tap {
    /// Listens on `a`'s host at port 6000 and passes on between `a` (local) and `b`.
    fn start(a: &Node, b: SocketAddr) -> Self {
        let socket = a.host.netns.run(|| UdpSocket::bind("0.0.0.0:6000")).expect("free");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
        let injector = socket.try_clone().expect("cloned");
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut local = None;
            let mut buffer = vec![0; 65_536];
            while !stopping.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let datagram = &buffer[..length];
                let to = if from == b {
                    local
                } else {
                    local = Some(from);
                    seen.push(datagram.to_vec());
                    Some(b)
                };
                if let Some(to) = to {
                    socket.send_to(datagram, to).expect("sent");
                }
            }
            seen
        });
        Self { stop, thread, injector }
    }

    fn finish(self) -> (Vec<Vec<u8>>, UdpSocket) {
        self.stop.store(true, Ordering::Relaxed);
        (self.thread.join().expect("no panic"), self.injector)
    }
}

#[test]
fn replayed_and_broken_datagrams_are_dropped_and_counted() {
    let (a, b) = cable();
    let (mut a, mut b) = (Node::new(1, a), Node::new(2, b));
    let tap = Tap::start(&a, wan(2));
    a.start(&[2], SocketAddr::new(wan(1).ip(), 6000), true);
    b.start(&[1], SocketAddr::new(wan(1).ip(), 6000), true);
    let target = b.addresses()[0];
    for _ in 0..5 {
        assert!(a.reaches(target), "positive control");
    }
    let (seen, injector) = tap.finish();
    let data: Vec<_> = seen.iter().filter(|datagram| datagram[0] == 4 && datagram.len() > 32).collect();
    assert!(data.len() >= 5, "the tap saw the pings");
    let (opened, replays) = (b.counter("opened"), b.counter("replay_dropped"));
    for datagram in &data {
        injector.send_to(datagram, wan(2)).expect("sent");
    }
    let count = u64::try_from(data.len()).expect("few");
    b.await_counter("replay_dropped", replays + count - 1); // the session's first datagram went another way
    let forged = b.counter("unauthentic_dropped");
    for datagram in &data {
        let mut broken = (*datagram).clone();
        broken[9] ^= 1; // another counter, so the seal cannot hold
        injector.send_to(&broken, wan(2)).expect("sent");
    }
    b.await_counter("unauthentic_dropped", forged + count);
    let garbage = b.counter("garbage_dropped");
    for rubbish in [&[][..], &[0], &[4, 0, 0, 0], &[0xff; 1400], &[1; 147], &[3; 65]] {
        injector.send_to(rubbish, wan(2)).expect("sent");
    }
    b.await_counter("garbage_dropped", garbage + 5);
    assert_eq!(b.counter("opened"), opened, "nothing of it was accepted");
}

#[test]
fn restarted_data_plane_adopts_the_network_and_flows_go_on() {
    let (mut a, b) = pair([wan(2), wan(1)], true);
    let target = b.addresses()[0];
    assert!(a.reaches(target));
    let _server = Server::start(&b);
    let mut client = Command::new("nsenter");
    client.arg(format!("--net=/run/netns/{}", a.host.name));
    client.args(["iperf3", "-c", &target.to_string(), "-t", "6"]);
    let client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("iperf3");
    let before = b.await_counter("opened", 1000);
    a.stop();
    let (opened, started) = (b.counter("opened"), Instant::now());
    a.start(&[2], wan(2), true);
    b.await_counter("opened", opened.max(before) + 500);
    assert!(started.elapsed() < Duration::from_secs(4), "the flow goes on while the client still runs");
    let output = client.wait_with_output().expect("ours");
    assert!(output.status.success(), "the TCP connection survives the restart: {output:?}");
}

#[test]
fn threads_end_with_the_data_plane() {
    let (mut a, b) = pair([wan(2), wan(1)], true);
    assert!(a.reaches(b.addresses()[0]));
    let port =
        a.host.netns.run(|| DataPlane::start(DataPlaneConfig { port: PORT }).map(drop).map_err(std::io::Error::other));
    let taken = port.expect_err("held").to_string();
    assert!(taken.contains("51820") && taken.contains("in use"), "{taken}");
    a.stop();
    let again = a.host.netns.run(|| DataPlane::start(DataPlaneConfig { port: PORT }).map_err(std::io::Error::other));
    again.expect("free again").stop();
}

#[test]
fn peer_that_moves_is_followed_at_once() {
    let (a, b) = pair([wan(2), wan(1)], true);
    let target = b.addresses()[0];
    assert!(a.reaches(target));
    let moved = SocketAddr::new(IpAddr::from([192, 0, 2, 11]), PORT);
    a.host.ip("addr del 192.0.2.1/24 dev wan");
    a.host.ip("addr add 192.0.2.11/24 dev wan");
    assert!(a.reaches(target));
    let deadline = Instant::now() + Duration::from_secs(5);
    while b.peer_path() != Some(moved) {
        assert!(Instant::now() < deadline, "{:?}", b.peer_path());
        std::thread::yield_now();
    }
    assert!(b.reaches(a.addresses()[0]));
}

#[test]
fn vdcs_share_the_socket_and_nothing_else() {
    let (mut a, mut b) = pair([wan(2), wan(1)], true);
    let (plane_a, plane_b) = (a.running().plane.clone(), b.running().plane.clone());
    let mut second = [Node::in_vdc(0x78, 1, Rc::clone(&a.host)), Node::in_vdc(0x78, 2, Rc::clone(&b.host))];
    second[0].start_on(plane_a, &[2], wan(2), true);
    second[1].start_on(plane_b, &[1], wan(1), true);
    let (first_address, second_address) = (b.addresses()[0], second[1].addresses()[0]);
    assert!(a.reaches(first_address) && second[0].reaches(second_address));
    // A source of the one VDC gets no answer from the other: no route leads there.
    let crossed = a.host.command(&format!("ping -c1 -W1 -I {} {second_address}", a.addresses()[0]));
    assert!(!crossed.status.success(), "{crossed:?}");
    // One VDC leaves; the other does not notice.
    second[0].leave();
    assert!(!second[1].pings(second[0].addresses()[0]));
    assert!(a.reaches(first_address));
    second[1].leave();
    b.stop();
    a.stop();
}
