//! Ports of workloads, with real packets.

use std::sync::atomic::{AtomicU32, Ordering};

use meshd_tun::{
    EgressConfig, Netns, NetworkError, WorkloadNetns, WorkloadPort, ensure_egress, ensure_workload_port,
    list_workload_ports, remove_egress, remove_workload_port,
};

use crate::lab::{Host, block, command_in, ip_in, local_name, node_prefix, vdc_id};

/// The ids of a test's workloads, removed with it.
struct Ids(Vec<[u8; 16]>);

impl Ids {
    fn new(count: usize) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = || {
            let (count, process) = (NEXT.fetch_add(1, Ordering::Relaxed), std::process::id());
            let mut id = [0xaa; 16];
            id[..4].copy_from_slice(&count.to_be_bytes());
            id[4..8].copy_from_slice(&process.to_be_bytes());
            id
        };
        Self((0..count).map(|_| next()).collect())
    }
}

impl Drop for Ids {
    fn drop(&mut self) {
        for id in &self.0 {
            remove_workload_port(id).expect("removed");
        }
    }
}

fn config(seed: u8) -> meshd_tun::NetworkConfig {
    let vdc = vdc_id(seed);
    meshd_tun::NetworkConfig {
        vdc,
        name: local_name(),
        prefix: node_prefix(&vdc, 1),
        ipv4: Some(block("10.99.0.16/28")),
        ipv4_ranges: vec![block("10.99.0.0/20")],
        mtu_bytes: meshd_tun::MTU_BYTES,
        host_ipv4: true,
    }
}

fn port(config: &meshd_tun::NetworkConfig, id: [u8; 16], number: u32) -> WorkloadPort {
    WorkloadPort {
        id,
        interface: WorkloadPort::interface_of(&id),
        v6: config.prefix.address(0x1_0000 + number),
        v4: config.ipv4.and_then(|b| b.address(2 + number)),
        mtu_bytes: config.mtu_bytes,
    }
}

/// The names of the links in the VDC's namespace. (Their states are not a port's: the TUN has a carrier while it is held.)
fn link_names(config: &meshd_tun::NetworkConfig) -> Vec<String> {
    let links = ip_in(&config.netns_name(), "-o link");
    links.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

fn picture(config: &meshd_tun::NetworkConfig, ids: &Ids) -> String {
    let mut text = String::new();
    let names = ids.0.iter().map(WorkloadNetns::name_of);
    for name in std::iter::once(config.netns_name()).chain(names) {
        for list in ["-o addr show", "route show proto 109", "-6 route show proto 109", "neigh show nud permanent"] {
            text += &format!("{name} {list}\n{}", ip_in(&name, list));
        }
    }
    text
}

#[test]
fn workloads_reach_gateway_host_and_each_other_and_are_adopted() {
    let host = Host::new();
    let config = config(31);
    let (network, tun) = host.ensure(&config).expect("ensured");
    let before = link_names(&config);
    let ids = Ids::new(2);
    let ports = [port(&config, ids.0[0], 0), port(&config, ids.0[1], 1)];
    for port in &ports {
        ensure_workload_port(network.netns(), port).expect("ensured");
    }
    let first = picture(&config, &ids);
    let (a, b) = (WorkloadNetns::name_of(&ids.0[0]), WorkloadNetns::name_of(&ids.0[1]));
    let v4 = |port: &WorkloadPort| port.v4.expect("the block has room").to_string();
    let ping = |from: &str, to: &str| {
        let output = command_in(from, &format!("ping -c1 -W2 {to}"));
        assert!(output.status.success(), "{from} {to}: {output:?}\n{first}");
    };
    for to in [ports[1].v6.to_string(), v4(&ports[1]), "169.254.1.1".to_owned(), "fe80::1%eth0".to_owned()] {
        ping(&a, &to);
    }
    for address in config.host_addresses() {
        ping(&b, &address.to_string());
    }
    for address in [ports[0].v6.to_string(), v4(&ports[0])] {
        let output = host.command(&format!("ping -c1 -W2 {address}"));
        assert!(output.status.success(), "{output:?}\n{first}");
    }

    // A restarted daemon adopts them byte for byte, and its VDC set-up leaves them alone.
    host.netns.run(|| network.update(&config)).expect("updated");
    assert_eq!(picture(&config, &ids), first);
    drop((network, tun));
    let (network, tun) = host.ensure(&config).expect("adopted");
    for port in &ports {
        ensure_workload_port(network.netns(), port).expect("adopted");
    }
    assert_eq!(picture(&config, &ids), first);
    let listed = list_workload_ports().expect("listed");
    assert!(ids.0.iter().all(|id| listed.contains(id)), "{listed:?}");

    for _ in 0..2 {
        for id in &ids.0 {
            remove_workload_port(id).expect("removed");
            assert!(!Netns::path_of(&WorkloadNetns::name_of(id)).exists());
        }
    }
    assert_eq!(link_names(&config), before);
    for list in ["route show table all proto 109", "-6 route show table all proto 109"] {
        assert!(!ip_in(&config.netns_name(), list).contains("w-"));
    }
    let listed = list_workload_ports().expect("listed");
    assert!(!ids.0.iter().any(|id| listed.contains(id)), "{listed:?}");
    drop((network, tun));
}

#[test]
fn half_made_port_is_made_whole_and_foreign_one_left_alone() {
    let host = Host::new();
    let config = config(32);
    let (network, _tun) = host.ensure(&config).expect("ensured");
    let ids = Ids::new(2);
    let first = port(&config, ids.0[0], 0);
    ensure_workload_port(network.netns(), &first).expect("ensured");
    let other = WorkloadPort { interface: first.interface.clone(), ..port(&config, ids.0[1], 1) };
    let refused = ensure_workload_port(network.netns(), &other).expect_err("taken");
    assert!(matches!(refused, NetworkError::NameTaken { .. }), "{refused}");
    // The namespace survives without its port, as after a crash between the two.
    ip_in(&config.netns_name(), &format!("link delete {}", first.interface));
    ensure_workload_port(network.netns(), &first).expect("made again");
    let name = WorkloadNetns::name_of(&first.id);
    assert!(command_in(&name, "ping -c1 -W2 169.254.1.1").status.success());
}

#[test]
fn egress_leads_out_and_back_by_its_mark_and_leaves_nothing() {
    let host = Host::new();
    let config = config(33);
    let before = host.ip("-o link");
    host.ip("link add wan type veth peer name other");
    host.ip("addr add 192.0.2.1/24 dev wan");
    host.ip("addr add 2001:db8::1/64 dev wan nodad");
    host.ip("link set wan up");
    let (network, tun) = host.ensure(&config).expect("ensured");
    let egress = EgressConfig { mark: 0x6d65_0001, links: vec!["wan".to_owned()] };
    let ensure = || host.netns.run(|| ensure_egress(&network, &config, &egress)).expect("ensured");
    let inside = config.netns_name();
    let ids = Ids::new(1);
    let port = port(&config, ids.0[0], 0);
    let picture = || {
        let lists =
            ["-o addr show", "route show table all proto 109", "-6 route show table all proto 109", "rule", "-6 rule"];
        lists.map(|list| format!("{}{}", host.ip(list), ip_in(&inside, list))).concat()
    };
    ensure();
    ensure_workload_port(network.netns(), &port).expect("ensured");
    let first = picture();
    ensure();
    host.netns.run(|| network.update(&config)).expect("updated");
    assert_eq!(picture(), first, "adopted");
    let way = |netns: &str, to: &str| ip_in(netns, &format!("route get {to}"));
    for address in [port.v6.to_string(), port.v4.expect("the block has room").to_string()] {
        assert!(way(&host.name, &format!("{address} mark 0x6d650001")).contains("dev x-"), "{first}");
        assert!(way(&host.name, &address).contains("dev mesh-"), "{first}");
    }
    for world in ["192.0.2.1", "2001:db8::1"] {
        assert!(way(&inside, world).contains("dev egress0"), "{first}");
    }
    for _ in 0..2 {
        host.netns.run(|| remove_egress(&config.name, &config.vdc, egress.mark)).expect("removed");
    }
    assert!(!picture().contains("6d65") && !picture().contains("egress0"), "{}", picture());
    drop((network, tun));
    host.remove(&config);
    host.ip("link del wan");
    assert_eq!(host.ip("-o link"), before);
}
