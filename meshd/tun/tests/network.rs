use std::net::SocketAddr;

use meshd_tun::{AddressWatch, Netns, NetworkConfig, NetworkError};

use crate::lab::{Host, block, ip_in, local_name, node_prefix, vdc_id};

fn config(seed: u8) -> NetworkConfig {
    let vdc = vdc_id(seed);
    NetworkConfig {
        vdc,
        name: local_name(),
        prefix: node_prefix(&vdc, 1),
        ipv4: Some(block("10.99.0.16/28")),
        ipv4_ranges: vec![block("10.99.0.0/20"), block("10.98.0.0/20")],
        mtu_bytes: meshd_tun::MTU_BYTES,
        host_ipv4: true,
    }
}

/// Everything of the kernel's that `ensure` decides, as text.
fn picture(host: &Host, config: &NetworkConfig) -> String {
    let inside = config.netns_name();
    let mut text = String::new();
    let ours = ["-o addr show", "route show proto 109", "-6 route show proto 109", "neigh show nud permanent"];
    for list in ours {
        text += &format!("host {list}\n{}vdc {list}\n{}", host.ip(list), ip_in(&inside, list));
    }
    text
}

#[test]
fn ensure_is_idempotent_and_remove_leaves_nothing() {
    let host = Host::new();
    let config = config(7);
    let before = host.ip("-o link");
    let (network, tun) = host.ensure(&config).expect("ensured");
    let first = picture(&host, &config);
    for wanted in ["fe80::1", "169.254.1.1", "10.99.0.17", "10.98.0.0/20", "unreachable"] {
        assert!(first.contains(wanted), "{wanted} is missing in\n{first}");
    }
    // The host reaches its gateway inside, so both ends of the port work.
    let host_address = config.host_addresses()[0];
    let infra = config.prefix.address(0);
    assert!(host.command(&format!("ping -c1 -W1 -I {host_address} {infra}")).status.success(), "{first}");
    let refused = host.command("ping -c1 -W1 10.99.0.20");
    assert!(String::from_utf8_lossy(&refused.stdout).contains("From 169.254.1.1"), "{refused:?}");

    // A second daemon cannot take the TUN; a restarted one adopts everything, byte for byte.
    let taken = host.ensure(&config).expect_err("held");
    assert!(matches!(taken, NetworkError::TunBusy { .. }), "{taken}");
    drop((network, tun));
    let (network, tun) = host.ensure(&config).expect("adopted");
    assert_eq!(picture(&host, &config), first);

    // A range that is gone takes its routes along, on both sides.
    let smaller = NetworkConfig { ipv4_ranges: vec![block("10.99.0.0/20")], ..config.clone() };
    host.netns.run(|| network.update(&smaller)).expect("updated");
    assert!(!picture(&host, &config).contains("10.98.0.0/20"));

    drop((network, tun));
    for _ in 0..2 {
        host.remove(&config);
    }
    assert_eq!(host.ip("-o link"), before);
    assert!(!Netns::path_of(&config.netns_name()).exists());
    assert_eq!(host.ip("route show table all proto 109"), "");
    assert_eq!(host.ip("-6 route show table all proto 109"), "");
}

#[test]
fn foreign_interface_of_the_same_name_is_left_alone() {
    let host = Host::new();
    let config = config(8);
    host.ip(&format!("link add {} type veth peer name other", config.host_interface()));
    let refused = host.ensure(&config).expect_err("taken");
    assert!(matches!(refused, NetworkError::NameTaken { .. }), "{refused}");
    assert!(refused.hint().is_some());
    host.remove(&config);
    assert!(host.ip("-o link").contains(&config.host_interface()));
}

#[test]
fn sockets_of_the_infra_plane_live_in_the_vdc() {
    let host = Host::new();
    let config = config(9);
    let (network, tun) = host.ensure(&config).expect("ensured");
    let infra = SocketAddr::new(config.prefix.address(0).into(), 7);
    let listener = network.netns().bind_tcp(infra).expect("bound");
    assert_eq!(listener.local_addr().expect("bound"), infra);
    network.netns().bind_udp(infra).expect("bound");
    let outside = host.netns.bind_tcp(infra);
    assert!(outside.is_err(), "the infra address must not be the host's");
    drop((network, tun, listener));
    host.remove(&config);
}

#[test]
fn routes_of_the_host_are_told_without_ours() {
    let host = Host::new();
    let config = config(10);
    host.ip("link add wan type veth peer name other");
    host.ip("addr add 192.0.2.1/24 dev wan");
    host.ip("link set wan up");
    host.ip("link set other up");
    host.ip("route add default via 192.0.2.2");
    host.ip("route add 10.5.0.0/16 via 192.0.2.2");
    let (network, _tun) = host.ensure(&config).expect("ensured");
    let routes = host.netns.run(meshd_tun::ipv4_routes).expect("listed");
    assert_eq!(routes, [block("10.5.0.0/16"), block("192.0.2.0/24")]);
    let index = host.netns.run(|| network.host_interface_index()).expect("there");
    assert!(host.ip("-o link").contains(&format!("{index}: {}", config.host_interface())));
}

#[test]
fn address_changes_are_told_and_our_own_interfaces_left_out() {
    let host = Host::new();
    let config = config(11);
    host.ip("link add wan type veth peer name other");
    host.ip("addr add 192.0.2.1/24 dev wan");
    host.ip("link set other up");
    let _network = host.ensure(&config).expect("ensured");
    let name = host.name.clone();
    let told = host.netns.run(|| -> std::io::Result<Vec<_>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut watch = AddressWatch::new()?;
            let mut told = vec![watch.changed().await?];
            for change in ["link set wan up", "addr add 2001:db8::1/64 dev wan nodad", "addr del 192.0.2.1/24 dev wan"]
            {
                ip_in(&name, change);
                told.push(watch.changed().await?);
            }
            Ok(told)
        })
    });
    let (v4, v6) = (("192.0.2.1".parse().expect("v4"), 24), ("2001:db8::1".parse().expect("v6"), 64));
    assert_eq!(told.expect("told"), [vec![], vec![v4], vec![v6, v4], vec![v6]]);
}
