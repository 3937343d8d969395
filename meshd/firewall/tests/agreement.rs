//! The kernel's verdicts against the reference evaluator, with real packets through a real namespace.
//!
//! Layout of one case, all inside a throw-away network namespace made by `unshare`:
//! `peer` namespace ─ veth named mesh0 ─ VDC namespace (the table under test) ─ veth named host0 ─ `host` namespace.
//! A veth stands in for the TUN: the table only sees interface names and packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use meshd_firewall::{Counter, Firewall, LocalWorkload, compile, relevant};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use vdc::address::HOST;
use vdc::policy::{ActiveBlock, Document, Flow, Kind, Model, Rule, Selector, Service, Subject};
use vdc::record::{BlockMatch, PortRange, Protocol, Role};
use vdc::{Hash, Ipv4Block, Key, Name, NodePrefix, SiteNumber, VdcId};

fn name(text: &str) -> Name {
    Name::new(text).expect("test names are labels")
}

fn subject(seed: u8, site: &str, label: Option<&str>, declared: Vec<PortRange>) -> Subject {
    let node = Key([seed; 32]);
    Subject {
        node,
        kind: Kind::Host,
        name: name(&format!("n{seed}")),
        site: name(site),
        roles: vec![Role::Host],
        labels: label.map(name).into_iter().collect(),
        prefix: NodePrefix::derive(&VdcId([1; 32]), SiteNumber(1), &node, 0),
        ipv4: "10.64.0.0/20".parse::<Ipv4Block>().expect("valid").sub_block(28, u32::from(seed)),
        declared,
        member_record: Hash([seed; 32]),
        exposure_record: None,
    }
}

const PORTS: std::ops::Range<u16> = 100..106;

fn ports() -> impl Strategy<Value = PortRange> {
    (prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)], PORTS, 0u16..3)
        .prop_map(|(protocol, first, more)| PortRange { protocol, first, last: first + more })
}

fn selector() -> impl Strategy<Value = Selector> {
    (proptest::option::of(prop_oneof![Just("paris"), Just("berlin")]), proptest::option::weighted(0.3, Just("web")))
        .prop_map(|(site, label)| Selector {
            sites: site.map(name).into_iter().collect(),
            roles: vec![],
            labels: label.map(name).into_iter().collect(),
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    let service = prop_oneof![
        2 => Just(Service::Icmp), 3 => Just(Service::Declared), 3 => ports().prop_map(Service::Ports), 1 => Just(Service::Any)
    ];
    (selector(), selector(), proptest::collection::vec(service, 1..3)).prop_map(|(from, to, services)| Rule {
        name: name("r"),
        from,
        to,
        services,
    })
}

/// Subject 0 is this node; 1 and 2 are peers; 3 is a stranger that the model does not know.
fn models() -> impl Strategy<Value = Model> {
    let label = || proptest::option::weighted(0.4, Just("web"));
    let declared = || {
        proptest::collection::vec(ports(), 0..2).prop_map(|mut ranges| {
            ranges.truncate(1);
            ranges
        })
    };
    let block = (proptest::option::of(0usize..3), proptest::option::of(0usize..3), proptest::option::of(ports()));
    (
        proptest::collection::vec(rule(), 0..4),
        proptest::collection::vec(block, 0..2),
        (label(), label(), label()),
        (declared(), declared()),
    )
        .prop_map(|(rules, blocks, (l0, l1, l2), (d0, d1))| {
            let subjects =
                vec![subject(1, "paris", l0, d0), subject(2, "berlin", l1, d1), subject(3, "paris", l2, vec![])];
            let key = |index: usize| subjects[index].node;
            let blocks = blocks
                .into_iter()
                .map(|(from, to, ports)| ActiveBlock {
                    matches: BlockMatch { from: from.map(key), to: to.map(key), ports },
                    record: Hash([5; 32]),
                    issuer: Key([6; 32]),
                    reason: String::new(),
                })
                .collect();
            let document = Document { grace_days: 14, rules };
            Model { document, policy_record: Hash([7; 32]), policy_version: 1, subjects, blocks }
        })
}

fn sh(script: &str) -> Output {
    Command::new("sh").args(["-euc", script]).output().expect("sh runs")
}

fn ok(script: &str) {
    let output = sh(script);
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Sends one packet by `python3` from namespace `from` to `to` and tells what arrived there.
struct Lab {
    id: String,
}

static LABS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    fn new(model: &Model) -> Self {
        let lab = Self { id: format!("{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed)) };
        let (vdc, host, peer) = (lab.ns("v"), lab.ns("h"), lab.ns("p"));
        let mut script = String::new();
        for ns in [&vdc, &host, &peer] {
            script += &format!("ip netns add {ns}; ip -n {ns} link set lo up;\n");
        }
        script += &format!(
            "ip link add mesh0 netns {vdc} address 02:00:00:00:00:01 type veth peer name eth0 netns {peer} address 02:00:00:00:00:02
             ip link add host0 netns {vdc} address 02:00:00:00:00:03 type veth peer name eth0 netns {host} address 02:00:00:00:00:04
             ip netns exec {vdc} sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1
             for p in '{vdc} mesh0' '{vdc} host0' '{host} eth0' '{peer} eth0'; do set -- $p
               ip netns exec $1 sysctl -qw net.ipv6.conf.$2.accept_dad=0; ip -n $1 link set $2 up; done\n"
        );
        let this = &model.subjects[0];
        let mut route = |ns: &str, address: String, dev: &str, via: &str, lladdr: &str| {
            let inet = if address.contains(':') { "-6" } else { "-4" };
            script += &format!(
                "ip {inet} -n {ns} route add {address} dev {dev} via {via} onlink
                 ip -n {ns} neigh replace {via} lladdr {lladdr} dev {dev}\n"
            );
        };
        for (v4, v6) in [(true, false), (false, true)] {
            let via = if v6 { "fe80::9" } else { "169.254.9.9" };
            let own = address(this, v4).to_string();
            route(&vdc, own, "host0", via, "02:00:00:00:00:04");
            let all = if v4 { "10.64.0.0/16" } else { "fd00::/8" }.to_owned();
            route(&vdc, all.clone(), "mesh0", via, "02:00:00:00:00:02");
            route(&host, all.clone(), "eth0", via, "02:00:00:00:00:03");
            route(&peer, all, "eth0", via, "02:00:00:00:00:01");
        }
        for (index, (role, interface)) in [("a", "w-a"), ("b", "w-b")].into_iter().enumerate() {
            let (ns, number) = (lab.ns(role), 5 + 2 * index);
            let (four, six) = workload_addresses(this, index);
            script += &format!(
                "ip netns add {ns}; ip -n {ns} link set lo up
                 ip link add {interface} netns {vdc} address 02:00:00:00:00:0{number} type veth peer name eth0 netns {ns} address 02:00:00:00:00:0{}
                 for p in '{vdc} {interface}' '{ns} eth0'; do set -- $p
                   ip netns exec $1 sysctl -qw net.ipv6.conf.$2.accept_dad=0; ip -n $1 link set $2 up; done
                 ip -n {ns} addr add {four}/32 dev eth0; ip -n {ns} addr add {six}/128 dev eth0 nodad
                 ip -n {vdc} addr add fe80::1/128 dev {interface} nodad
                 ip -n {ns} route add default dev eth0 via 169.254.1.1 onlink
                 ip -n {ns} neigh replace 169.254.1.1 lladdr 02:00:00:00:00:0{number} dev eth0
                 ip -n {ns} -6 route add default dev eth0 via fe80::1 onlink
                 ip -n {ns} neigh replace fe80::1 lladdr 02:00:00:00:00:0{number} dev eth0
                 for a in {four} {six}; do ip -n {vdc} route add $a dev {interface}
                   ip -n {vdc} neigh replace $a lladdr 02:00:00:00:00:0{} dev {interface}; done\n",
                number + 1,
                number + 1,
            );
        }
        script += &format!(
            "ip -n {vdc} addr add 169.254.1.1/32 dev lo; ip -n {vdc} link set lo up
             ip -n {vdc} addr add {}/128 dev lo nodad\n",
            this.prefix.address(0)
        );
        let stranger = stranger();
        for (ns, subjects) in [(&host, vec![this]), (&peer, vec![&model.subjects[1], &model.subjects[2], &stranger])] {
            for subject in subjects {
                let (four, six) = (address(subject, true), address(subject, false));
                script +=
                    &format!("ip -n {ns} addr add {four}/32 dev eth0; ip -n {ns} addr add {six}/128 dev eth0 nodad\n");
            }
        }
        ok(&script);
        lab
    }

    fn ns(&self, role: &str) -> String {
        format!("mfw{role}{}", self.id)
    }

    fn firewall(&self) -> Firewall {
        Firewall::new(Path::new(&format!("/run/netns/{}", self.ns("v"))))
    }

    /// Runs every probe at once: sends from `source`, receives at `destination`, and returns which arrived.
    fn probe(&self, from_host: bool, probes: &[Probe]) -> Vec<bool> {
        let (source, sink) = if from_host { ("h", "p") } else { ("p", "h") };
        self.probe_between(source, sink, probes)
    }

    /// As [`Lab::probe`], between any two of `h`, `p` and the workloads `a` and `b`.
    fn probe_between(&self, source: &str, sink: &str, probes: &[Probe]) -> Vec<bool> {
        let list: Vec<String> = probes
            .iter()
            .map(|p| {
                let (kind, port) = match p.flow {
                    Flow::Icmp => ("icmp", 0),
                    Flow::Port(Protocol::Tcp, port) => ("tcp", port),
                    Flow::Port(Protocol::Udp, port) => ("udp", port),
                    Flow::Other(protocol) => ("raw", u16::from(protocol)),
                };
                format!("[\"{kind}\",\"{}\",\"{}\",{port}]", p.source, p.destination)
            })
            .collect();
        let script = include_str!("probe.py");
        let output = Command::new("python3")
            .args(["-c", script, &self.ns(source), &self.ns(sink), &format!("[{}]", list.join(","))])
            .output()
            .expect("python3 runs (package python3)");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        text.trim().chars().map(|c| c == '1').collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for role in ["a", "b", "v", "h", "p"] {
            sh(&format!("ip netns del {}", self.ns(role)));
        }
    }
}

struct Probe {
    source: IpAddr,
    destination: IpAddr,
    flow: Flow,
}

fn address(subject: &Subject, v4: bool) -> IpAddr {
    if v4 {
        subject.ipv4.and_then(|b| b.address(HOST)).expect("subjects have IPv4").into()
    } else {
        subject.prefix.address(HOST).into()
    }
}

fn workload_addresses(this: &Subject, index: usize) -> (Ipv4Addr, Ipv6Addr) {
    let offset = u32::try_from(index).expect("small");
    let four = this.ipv4.and_then(|block| block.address(2 + offset)).expect("subjects have IPv4");
    (four, this.prefix.address(0x1_0000 + offset))
}

fn local(this: &Subject, index: usize, label: Option<&str>, declared: Vec<PortRange>) -> LocalWorkload {
    let (four, v6) = workload_addresses(this, index);
    LocalWorkload {
        name: Some(name(["a", "b"][index])),
        v6,
        v4: Some(four),
        labels: label.map(name).into_iter().collect(),
        declared,
        published: vec![],
    }
}

fn local_address(workload: &LocalWorkload, v4: bool) -> IpAddr {
    if v4 { workload.v4.expect("has IPv4").into() } else { workload.v6.into() }
}

fn stranger() -> Subject {
    subject(9, "paris", None, vec![])
}

fn flows() -> Vec<Flow> {
    let mut flows = vec![Flow::Icmp, Flow::Other(47)];
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        flows.extend((PORTS.start..PORTS.end + 2).map(|port| Flow::Port(protocol, port)));
    }
    flows
}

/// Every flow from each peer, known or not, to this node, in both families.
fn inward(model: &Model) -> Vec<Probe> {
    let stranger = stranger();
    let mut probes = vec![];
    for peer in [&model.subjects[1], &model.subjects[2], &stranger] {
        for v4 in [true, false] {
            let (source, destination) = (address(peer, v4), address(&model.subjects[0], v4));
            probes.extend(flows().into_iter().map(|flow| Probe { source, destination, flow }));
        }
    }
    probes
}

fn deterministic_runner(cases: u32) -> TestRunner {
    TestRunner::new_with_rng(
        Config { cases, failure_persistence: None, ..Config::default() },
        TestRng::from_seed(RngAlgorithm::ChaCha, &[42; 32]),
    )
}

#[test]
fn kernel_verdicts_equal_evaluator_with_counters() {
    let mut runner = deterministic_runner(1);
    let this = Key([1; 32]);
    let mut tried = 0;
    let lab = Lab::new(&models().new_tree(&mut runner).expect("generates").current());
    let mut seen = BTreeMap::<bool, u32>::new();
    for generation in 1..=16 {
        let model = models().new_tree(&mut runner).expect("generates").current();
        // Flows of the case before must not be known to conntrack, or they would be judged as old ones.
        ok(&format!("ip netns exec {} conntrack -F", lab.ns("v")));
        lab.firewall().load(&compile(&model, &this, &[], generation, &[4713])).expect("loads");
        let probes = inward(&model);
        let arrived = lab.probe(false, &probes);
        assert_eq!(arrived.len(), probes.len());
        let mut expected = BTreeMap::<Counter, u64>::new();
        for (probe, arrived) in probes.iter().zip(arrived) {
            let decision = model.evaluate(probe.source, probe.destination, probe.flow);
            assert_eq!(
                arrived, decision.allowed,
                "{} -> {} {:?}: evaluator says {:?}\n{model:#?}",
                probe.source, probe.destination, probe.flow, decision.reason
            );
            *seen.entry(decision.allowed).or_default() += 1;
            *expected.entry(counter_of(&decision.reason)).or_default() += 1;
            tried += 1;
        }
        let counters = lab.firewall().counters().expect("lists");
        for (counter, packets) in expected {
            assert_eq!(counters.get(&counter), Some(&packets), "{counter:?} of {counters:?}\n{model:#?}");
        }
    }
    assert!(seen[&true] > 100 && seen[&false] > 100, "both verdicts must occur often: {seen:?} of {tried}");
}

fn counter_of(reason: &vdc::policy::Reason) -> Counter {
    use vdc::policy::Reason;
    match reason {
        Reason::Rule { index, .. } => Counter::Rule(*index),
        Reason::Block { .. } => Counter::Blocked,
        Reason::NoRule { .. }
        | Reason::UnknownSource
        | Reason::UnknownDestination
        | Reason::UnlistedDestination
        | Reason::SameHost => Counter::Denied,
        Reason::InfraPlane => Counter::Infra,
    }
}

fn open_model(declared: Vec<PortRange>) -> Model {
    let subjects = vec![
        subject(1, "paris", None, declared),
        subject(2, "berlin", None, vec![]),
        subject(3, "paris", None, vec![]),
    ];
    let document = Document::default();
    Model { document, policy_record: Hash([7; 32]), policy_version: 1, subjects, blocks: vec![] }
}

#[test]
fn host_cannot_spoof_and_infra_plane_is_closed() {
    let model = open_model(vec![]);
    let lab = Lab::new(&model);
    lab.firewall().load(&compile(&model, &Key([1; 32]), &[], 1, &[4713])).expect("loads");
    let (this, peer) = (&model.subjects[0], &model.subjects[1]);
    ok(&format!(
        "ip -n {0} addr add {1}/128 dev eth0 nodad; ip -n {0} addr add {2}/128 dev eth0 nodad; ip -n {3} addr add {4}/128 dev eth0 nodad",
        lab.ns("h"),
        model.subjects[2].prefix.address(HOST),
        this.prefix.address(0),
        lab.ns("p"),
        peer.prefix.address(0),
    ));
    let to = address(peer, false);
    let probe = |source: IpAddr, destination: IpAddr| Probe { source, destination, flow: Flow::Icmp };
    let arrived = lab.probe(
        true,
        &[
            probe(address(this, false), to),
            probe(address(&model.subjects[2], false), to),
            probe(this.prefix.address(0).into(), to),
            probe(address(this, false), peer.prefix.address(0).into()),
        ],
    );
    assert_eq!(arrived, [true, false, false, false], "own address passes; spoofed, own infra and foreign infra do not");
    let counters = lab.firewall().counters().expect("lists");
    // What the lab's kernels say by themselves, like multicast reports, is counted as infra too.
    assert!(counters[&Counter::Spoofed] == 2 && counters[&Counter::Infra] >= 1, "{counters:?}");
}

#[test]
fn established_flow_is_judged_again_when_policy_changes() {
    let port = PortRange { protocol: Protocol::Udp, first: 100, last: 100 };
    let (open, closed) = (open_model(vec![port]), open_model(vec![]));
    let lab = Lab::new(&open);
    let this = Key([1; 32]);
    let table = |model: &Model, generation| compile(model, &this, &[], generation, &[4713]);
    lab.firewall().load(&table(&open, 1)).expect("loads");
    let source = address(&open.subjects[1], false);
    let destination = address(&open.subjects[0], false);
    // The same five-tuple each time: the probe binds its source port to the destination's.
    let probe = || lab.probe(false, &[Probe { source, destination, flow: Flow::Port(Protocol::Udp, 100) }]);
    assert_eq!(probe(), [true]);
    lab.firewall().load(&table(&closed, 2)).expect("loads");
    assert_eq!(probe(), [false], "the flow is known to conntrack, and closed all the same");
    lab.firewall().load(&table(&open, 3)).expect("loads");
    assert_eq!(probe(), [true]);
    // And a flow that this host opened stays open through a reload that does not concern it.
    let outward =
        || lab.probe(true, &[Probe { source: destination, destination: source, flow: Flow::Port(Protocol::Udp, 103) }]);
    assert_eq!(outward(), [true]);
    lab.firewall().load(&table(&closed, 4)).expect("loads");
    assert_eq!(outward(), [true]);
    let reply = lab.probe(false, &[Probe { source, destination, flow: Flow::Port(Protocol::Udp, 103) }]);
    assert_eq!(reply, [true], "the answer of a flow that this host opened needs no declared port");
}

/// A party of a probe: its addresses tell the evaluator who it is.
struct Party {
    namespace: &'static str,
    addresses: [IpAddr; 2],
}

/// What a peer's workload is reached at; `index` tells them apart.
fn remote_addresses(peer: &Subject, index: u32) -> (Ipv6Addr, Ipv4Addr) {
    let v4 = peer.ipv4.and_then(|block| block.address(5 + index)).expect("has IPv4");
    (peer.prefix.address(0x1_0007 + index), v4)
}

/// The model with the workloads that nodes name: this node's, and a peer's first two addresses for workloads.
fn with_workloads(mut model: Model, locals: &[LocalWorkload], labels: [Option<&str>; 2]) -> Model {
    let (this, peer) = (model.subjects[0].clone(), model.subjects[1].clone());
    let remote = labels.into_iter().zip(0..).map(|(label, index)| {
        let (v6, v4) = remote_addresses(&peer, index);
        let labels = label.map(name).into_iter().collect();
        peer.workload(Some(name(&format!("r{index}"))), (v6, Some(v4)), labels, vec![])
    });
    model.subjects.extend(locals.iter().map(|local| local.subject(&this)));
    model.subjects.extend(remote);
    model
}

fn parties(model: &Model, locals: &[LocalWorkload]) -> Vec<Party> {
    let (this, peer) = (&model.subjects[0], &model.subjects[1]);
    let of = |namespace, addresses| Party { namespace, addresses };
    let host = |subject: &Subject| [address(subject, true), address(subject, false)];
    let remote = |index| {
        let (v6, v4) = remote_addresses(peer, index);
        [v4.into(), v6.into()]
    };
    let here = |local: &LocalWorkload| [local_address(local, true), local_address(local, false)];
    // The third of the peer's workloads is named by no record.
    let remote = (0..3).map(|index| of("p", remote(index)));
    let mut parties =
        vec![of("p", host(peer)), of("h", host(this)), of("a", here(&locals[0])), of("b", here(&locals[1]))];
    parties.extend(remote);
    parties
}

#[test]
fn workloads_are_judged_as_the_evaluator_says_on_one_node_and_across() {
    let mut runner = deterministic_runner(1);
    let this = Key([1; 32]);
    let lab = Lab::new(&models().new_tree(&mut runner).expect("generates").current());
    let label = || proptest::option::weighted(0.6, Just("web"));
    let more = || (label(), proptest::option::weighted(0.6, ports()));
    let more = (more(), more(), label(), proptest::bool::ANY);
    let mut seen = BTreeMap::<(bool, bool), u32>::new();
    for generation in 1..=4 {
        let mut model = models().new_tree(&mut runner).expect("generates").current();
        // Who has a label is told apart in every case.
        let from = Selector { labels: vec![name("web")], ..Selector::default() };
        let services = vec![Service::Icmp, Service::Declared];
        model.document.rules.push(Rule { name: name("web"), from, to: Selector::default(), services });
        let ((label_a, port_a), (label_b, port_b), label_r, is_b_known) =
            more.new_tree(&mut runner).expect("generates").current();
        let locals = [
            local(&model.subjects[0], 0, label_a, port_a.into_iter().collect()),
            local(&model.subjects[0], 1, label_b, port_b.into_iter().collect()),
        ];
        let parties = parties(&model, &locals);
        // Of the second workload here nothing may be known either.
        let known = &locals[..if is_b_known { 2 } else { 1 }];
        let model = with_workloads(model, known, [label_r, None]);
        // What a table does not depend on may be left out.
        let table = compile(&model, &this, known, generation, &[4713]);
        assert_eq!(table, compile(&relevant(model.clone(), &this), &this, known, generation, &[4713]));
        lab.firewall().load(&table).expect("loads");
        let mut expected = BTreeMap::<Counter, u64>::new();
        // Host, workloads a and b here; the peer's host, two workloads that it names and one that it does not.
        for (from, to) in
            [(0, 2), (4, 2), (5, 2), (6, 2), (4, 1), (6, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 2), (3, 1), (0, 3)]
        {
            let (from, to) = (&parties[from], &parties[to]);
            // The probes' ports are equal at both ends, so a flow of the other direction would look like an answer.
            ok(&format!("ip netns exec {} conntrack -F", lab.ns("v")));
            let probes: Vec<Probe> = from
                .addresses
                .iter()
                .zip(to.addresses)
                .flat_map(|(&source, destination)| {
                    flows().into_iter().map(move |flow| Probe { source, destination, flow })
                })
                .collect();
            let arrived = lab.probe_between(from.namespace, to.namespace, &probes);
            assert_eq!(arrived.len(), probes.len());
            for (probe, arrived) in probes.iter().zip(arrived) {
                let decision = model.evaluate(probe.source, probe.destination, probe.flow);
                assert_eq!(
                    arrived, decision.allowed,
                    "{}: {} -> {} {:?}: evaluator says {:?}\n{locals:#?}\n{model:#?}",
                    from.namespace, probe.source, probe.destination, probe.flow, decision.reason
                );
                *seen.entry((decision.allowed, from.namespace != "p")).or_default() += 1;
                *expected.entry(counter_of(&decision.reason)).or_default() += 1;
            }
        }
        let counters = lab.firewall().counters().expect("lists");
        for (counter, packets) in expected {
            assert_eq!(counters.get(&counter), Some(&packets), "{counter:?} of {counters:?}");
        }
    }
    assert_eq!(seen.len(), 4, "both verdicts on one node and across: {seen:?}");
    assert!(seen.values().all(|&n| n > 20), "{seen:?}");
}

#[test]
fn table_depends_on_nothing_but_what_is_relevant() {
    let mut runner = deterministic_runner(1);
    let this = Key([1; 32]);
    let label = proptest::option::weighted(0.4, Just("web"));
    for _ in 0..200 {
        let model = models().new_tree(&mut runner).expect("generates").current();
        let label = label.new_tree(&mut runner).expect("generates").current();
        let locals = [local(&model.subjects[0], 0, label, vec![])];
        let model = with_workloads(model, &locals, [label, None]);
        let table = |model: &Model| compile(model, &this, &locals, 1, &[4713]);
        let without = relevant(model.clone(), &this);
        assert_eq!(table(&model), table(&without), "{model:#?}");
        // What comes and goes elsewhere all day is no reason to load a table.
        let mut other = model.clone();
        let peer = other.subjects[1].clone();
        let v6 = peer.prefix.address(0x1_0099);
        let port = PortRange { protocol: Protocol::Tcp, first: 100, last: 100 };
        other.subjects.push(peer.workload(Some(name("new")), (v6, None), vec![], vec![port]));
        other.subjects[1].declared = vec![port];
        for subject in &mut other.subjects {
            (subject.member_record, subject.exposure_record) = (Hash([8; 32]), Some(Hash([9; 32])));
        }
        assert_eq!(relevant(other, &this), without);
    }
}

#[test]
fn workload_cannot_spoof_nor_reach_the_infra_plane_but_opens_flows() {
    let udp = PortRange { protocol: Protocol::Udp, first: 100, last: 100 };
    let model = open_model(vec![]);
    let this = &model.subjects[0];
    let locals = [local(this, 0, None, vec![]), local(this, 1, None, vec![udp])];
    let lab = Lab::new(&model);
    lab.firewall().load(&compile(&model, &this.node, &locals, 1, &[4713])).expect("loads");
    let flow = |protocol, port| Flow::Port(protocol, port);
    let probe = |source: IpAddr, destination: IpAddr, flow| Probe { source, destination, flow };
    let peer = &model.subjects[1];
    for v4 in [true, false] {
        let (a, b) = (local_address(&locals[0], v4), local_address(&locals[1], v4));
        let count = |counter| lab.firewall().counters().expect("lists")[&counter];
        // Honest traffic passes: to the neighbour's declared port, to a peer, whose own table decides.
        assert_eq!(lab.probe_between("a", "b", &[probe(a, b, flow(Protocol::Udp, 100))]), [true]);
        assert_eq!(lab.probe_between("a", "p", &[probe(a, address(peer, v4), flow(Protocol::Tcp, 9))]), [true]);
        // The neighbour's name opens nothing: towards a peer, the host, the neighbour itself.
        let before = count(Counter::Spoofed);
        assert_eq!(lab.probe_between("a", "p", &[probe(b, address(peer, v4), flow(Protocol::Tcp, 10))]), [false]);
        assert_eq!(lab.probe_between("a", "h", &[probe(b, address(this, v4), Flow::Icmp)]), [false]);
        assert_eq!(lab.probe_between("a", "b", &[probe(address(this, v4), b, flow(Protocol::Udp, 100))]), [false]);
        assert_eq!(lab.probe_between("a", "b", &[probe(address(peer, v4), b, flow(Protocol::Udp, 100))]), [false]);
        assert_eq!(count(Counter::Spoofed), before + 4);
        // Same node, nothing declared: denied and counted.
        let before = count(Counter::Denied);
        assert_eq!(lab.probe_between("a", "b", &[probe(a, b, flow(Protocol::Udp, 101))]), [false]);
        assert_eq!(lab.probe_between("b", "a", &[probe(b, a, flow(Protocol::Udp, 102))]), [false]);
        assert_eq!(count(Counter::Denied), before + 2);
    }
    // The infra plane, of a peer and of this very node.
    let infra = |lab: &Lab| lab.firewall().counters().expect("lists")[&Counter::Infra];
    let before = infra(&lab);
    let a = local_address(&locals[0], false);
    for subject in [peer, this] {
        let to = subject.prefix.address(0).into();
        assert_eq!(lab.probe_between("a", "p", &[probe(a, to, flow(Protocol::Tcp, 4713))]), [false]);
    }
    // At least: what the kernels of the lab say by themselves, like multicast reports, is counted there too.
    assert!(infra(&lab) >= before + 2);
    // Its gateway answers echo, in both families.
    for gateway in ["169.254.1.1", "fe80::1%eth0"] {
        ok(&format!("ip netns exec {} ping -c1 -W2 {gateway}", lab.ns("a")));
    }
}
