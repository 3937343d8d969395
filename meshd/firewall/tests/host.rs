//! The way out of a VDC and published ports, with real packets: world ─ host ─ VDC namespace ─ workload.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Output};

use meshd_firewall::{Counter, EgressPort, Firewall, LocalWorkload, PublishedPort, compile, compile_host};
use vdc::address::HOST;
use vdc::policy::{Document, Kind, Model, Subject};
use vdc::record::{PortRange, Protocol, Role};
use vdc::{Hash, Ipv4Block, Key, Name, NodePrefix, SiteNumber, VdcId};

const MARK: u32 = 0x6d65_0001;

fn sh(script: &str) -> Output {
    Command::new("sh").args(["-euc", script]).output().expect("sh runs")
}

fn ok(script: &str) {
    let output = sh(script);
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Namespaces: `w` the world, `h` the host, `v` the VDC, `a` the workload.
struct Lab(u32);

impl Lab {
    fn ns(&self, role: &str) -> String {
        format!("mfo{role}{}", self.0)
    }

    fn new(this: &Subject, four: Ipv4Addr, six: Ipv6Addr) -> Self {
        let lab = Self(std::process::id());
        let (w, h, v, a) = (lab.ns("w"), lab.ns("h"), lab.ns("v"), lab.ns("a"));
        let block = this.ipv4.expect("has a block");
        let (prefix, own) = (this.prefix, this.prefix.address(2));
        ok(&format!(
            "for n in {w} {h} {v} {a}; do ip netns add $n; ip -n $n link set lo up
               ip netns exec $n sysctl -qw net.ipv6.conf.default.accept_dad=0; done
             for n in {h} {v}; do ip netns exec $n sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1; done
             ip link add wan netns {h} type veth peer name eth0 netns {w}
             ip link add x-t netns {h} address 02:00:00:00:00:01 type veth peer name egress0 netns {v} address 02:00:00:00:00:02
             ip link add w-a netns {v} address 02:00:00:00:00:05 type veth peer name eth0 netns {a} address 02:00:00:00:00:06
             for p in '{h} wan' '{w} eth0' '{h} x-t' '{v} egress0' '{v} w-a' '{a} eth0'; do set -- $p; ip -n $1 link set $2 up; done
             ip netns exec {h} sysctl -qw net.ipv4.conf.x-t.route_localnet=1 net.ipv4.conf.x-t.rp_filter=2
             ip -n {h} addr add 192.0.2.1/24 dev wan; ip -n {h} addr add 2001:db8::1/64 dev wan nodad
             ip -n {w} addr add 192.0.2.2/24 dev eth0; ip -n {w} addr add 2001:db8::2/64 dev eth0 nodad
             ip -n {h} route add default via 192.0.2.2; ip -n {h} -6 route add default via 2001:db8::2
             ip -n {h} addr add 169.254.1.2/32 dev x-t; ip -n {h} addr add {own}/128 dev x-t nodad
             for g in fe80::1 169.254.1.1; do ip -n {h} neigh replace $g lladdr 02:00:00:00:00:02 dev x-t
               ip -n {a} neigh replace $g lladdr 02:00:00:00:00:05 dev eth0; done
             for g in fe80::2 169.254.1.2 {own}; do ip -n {v} neigh replace $g lladdr 02:00:00:00:00:01 dev egress0; done
             ip -n {h} -6 route add {prefix} dev x-t via fe80::1 onlink table 1000
             ip -n {h} route add {block} dev x-t via 169.254.1.1 onlink table 1000
             ip -n {h} rule add fwmark {MARK} table 1000; ip -n {h} -6 rule add fwmark {MARK} table 1000
             ip -n {v} -6 route add {own}/128 dev egress0
             ip -n {v} -6 route add default dev egress0 via fe80::2 onlink
             ip -n {v} route add default dev egress0 via 169.254.1.2 onlink
             for x in {four} {six}; do ip -n {v} route add $x dev w-a; ip -n {v} neigh replace $x lladdr 02:00:00:00:00:06 dev w-a; done
             ip -n {a} addr add {four}/32 dev eth0; ip -n {a} addr add {six}/128 dev eth0 nodad
             ip -n {a} route add default dev eth0 via 169.254.1.1 onlink
             ip -n {a} -6 route add default dev eth0 via fe80::1 onlink",
        ));
        lab
    }

    /// Runs `server` in one namespace and connects to `address` and `port` from another one; what the server's program
    /// sent, or nothing if there was no connection.
    fn fetch(&self, listener: &str, listen_port: u16, client: &str, address: &str, port: u16) -> String {
        let (listener, client) = (self.ns(listener), self.ns(client));
        let script = format!(
            "import ctypes,os,socket
def enter(n):
    f=os.open('/run/netns/'+n,os.O_RDONLY); assert ctypes.CDLL(None).setns(f,0x40000000)==0; os.close(f)
enter('{listener}')
s=socket.socket(socket.AF_INET6); s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); s.setsockopt(socket.IPPROTO_IPV6,socket.IPV6_V6ONLY,0)
s.bind(('::',{listen_port})); s.listen(5)
enter('{client}')
try: c=socket.create_connection(('{address}',{port}),timeout=2)
except OSError: print('none'); raise SystemExit
k,who=s.accept(); k.sendall(who[0].encode()); k.close(); print(c.makefile().read())"
        );
        let output = Command::new("python3").args(["-c", &script]).output().expect("python3 runs (package python3)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for role in ["w", "h", "v", "a"] {
            sh(&format!("ip netns del {}", self.ns(role)));
        }
    }
}

#[test]
fn workload_reaches_the_world_but_not_its_host_and_published_port_is_reached() {
    let (node, name) = (Key([1; 32]), |text| Name::new(text).expect("a label"));
    let this = Subject {
        node,
        kind: Kind::Host,
        name: name("n1"),
        site: name("paris"),
        roles: vec![Role::Host],
        labels: vec![],
        prefix: NodePrefix::derive(&VdcId([1; 32]), SiteNumber(1), &node, 0),
        ipv4: "10.64.0.0/20".parse::<Ipv4Block>().expect("valid").sub_block(28, 1),
        declared: vec![],
        member_record: Hash([1; 32]),
        exposure_record: None,
    };
    let six = this.prefix.address(0x1_0000);
    let four = this.ipv4.and_then(|block| block.address(HOST + 1)).expect("has room");
    let lab = Lab::new(&this, four, six);
    let published = PortRange { protocol: Protocol::Tcp, first: 80, last: 80 };
    let workload = LocalWorkload {
        name: Some(name("a")),
        v6: six,
        v4: Some(four),
        labels: vec![],
        declared: vec![],
        published: vec![published],
    };
    let port = EgressPort { interface: "x-t".into(), mark: MARK, prefix: this.prefix, ipv4: this.ipv4 };
    let publish = PublishedPort {
        host: None,
        host_port: 8080,
        protocol: Protocol::Tcp,
        v6: six,
        v4: Some(four),
        port: 80,
        mark: MARK,
    };
    let model = Model {
        document: Document::default(),
        policy_record: Hash([7; 32]),
        policy_version: 1,
        subjects: vec![this],
        blocks: vec![],
    };
    let firewall = |role| Firewall::new(Path::new(&format!("/run/netns/{}", lab.ns(role))));
    firewall("v").load(&compile(&model, &node, &[workload], 1, &[4713])).expect("loads");
    firewall("h").load(&compile_host(&[publish], &[port])).expect("loads");

    // Out, with the host's address, in both families.
    assert_eq!(lab.fetch("w", 9000, "a", "192.0.2.2", 9000), "::ffff:192.0.2.1");
    assert_eq!(lab.fetch("w", 9000, "a", "2001:db8::2", 9000), "2001:db8::1");
    // Not the host: its outer addresses, its end of the veth, its loopback.
    for address in ["192.0.2.1", "2001:db8::1", "169.254.1.2"] {
        assert_eq!(lab.fetch("h", 9000, "a", address, 9000), "none", "{address}");
    }
    // In, by the published port only, from the world and from the host itself.
    assert_eq!(lab.fetch("a", 80, "w", "192.0.2.1", 8080), "::ffff:192.0.2.2");
    assert_eq!(lab.fetch("a", 80, "w", "2001:db8::1", 8080), "2001:db8::2");
    assert_ne!(lab.fetch("a", 80, "h", "127.0.0.1", 8080), "none");
    assert_ne!(lab.fetch("a", 80, "h", "2001:db8::1", 8080), "none");
    assert_eq!(lab.fetch("a", 81, "w", "192.0.2.1", 81), "none");
    // The world cannot address the workload itself.
    ok(&format!(
        "ip -n {} route add {four} via 192.0.2.1; ip -n {} -6 route add {six} via 2001:db8::1",
        lab.ns("w"),
        lab.ns("w")
    ));
    for address in [IpAddr::V4(four), IpAddr::V6(six)] {
        assert_eq!(lab.fetch("a", 80, "w", &address.to_string(), 80), "none", "{address}");
    }
    let counters = firewall("v").counters().expect("lists");
    assert!(counters[&Counter::Egress] >= 2 && counters[&Counter::Published] >= 3, "{counters:?}");
    // Of nothing there is no table, whether or not there was one.
    for _ in 0..2 {
        firewall("h").load(&compile_host(&[], &[])).expect("loads");
        ok(&format!("test -z \"$(ip netns exec {} nft list tables)\"", lab.ns("h")));
    }
}
