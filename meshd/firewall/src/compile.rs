//! From a policy model to the commands that replace a namespace's table.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};
use vdc::address::{HOST, INFRA};
use vdc::policy::{Kind, Model, Service, Subject};
use vdc::record::{PortRange, Protocol};
use vdc::{Hash, Ipv4Block, Key, Name, NodePrefix};

use crate::{EGRESS_INTERFACE, HOST_INTERFACE, MESH_INTERFACE, TABLE, WORKLOAD_INTERFACES};

/// A named counter of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counter {
    /// From the host or a workload with a source address that is not its own.
    Spoofed,
    /// To or from an infra address outside the infra plane, or neighbour discovery that has no business here.
    Infra,
    /// Packets that belong to no flow and open none.
    Invalid,
    /// Denied by a block record.
    Blocked,
    /// Denied because no rule allows it.
    Denied,
    /// Opened by the host or a workload towards a peer (the peer's own table decides).
    Outgoing,
    /// Opened by a workload towards the world outside the VDC.
    Egress,
    /// Opened from outside the VDC towards a published port of a workload.
    Published,
    /// Allowed by the rule of this index in the policy document.
    Rule(usize),
}

impl Counter {
    /// The counter's name in the kernel's table.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Spoofed => "spoofed".into(),
            Self::Infra => "infra".into(),
            Self::Invalid => "invalid".into(),
            Self::Blocked => "blocked".into(),
            Self::Denied => "denied".into(),
            Self::Outgoing => "outgoing".into(),
            Self::Egress => "egress".into(),
            Self::Published => "published".into(),
            Self::Rule(index) => format!("rule_{index}"),
        }
    }

    /// The inverse of [`Counter::name`].
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "spoofed" => Self::Spoofed,
            "infra" => Self::Infra,
            "invalid" => Self::Invalid,
            "blocked" => Self::Blocked,
            "denied" => Self::Denied,
            "outgoing" => Self::Outgoing,
            "egress" => Self::Egress,
            "published" => Self::Published,
            _ => Self::Rule(name.strip_prefix("rule_")?.parse().ok()?),
        })
    }
}

/// The compiled table: nftables JSON commands (libnftables-json(5)) that replace the old one in one transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub(crate) commands: Value,
}

/// A workload of this node, as policy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalWorkload {
    /// A workload without a name is judged no other way.
    pub name: Option<Name>,
    pub v6: Ipv6Addr,
    pub v4: Option<Ipv4Addr>,
    /// Labels that the node may give.
    pub labels: Vec<Name>,
    /// Ports that the workload declares to the VDC.
    pub declared: Vec<PortRange>,
    /// Ports of the workload that the host publishes to the world outside the VDC.
    pub published: Vec<PortRange>,
}

impl LocalWorkload {
    /// The workload as a party of the policy of `node`, whose host runs it.
    #[must_use]
    pub fn subject(&self, node: &Subject) -> Subject {
        node.workload(self.name.clone(), (self.v6, self.v4), self.labels.clone(), self.declared.clone())
    }
}

/// What of a model a table of `node`'s depends on: two models of which this is equal compile to one table.
///
/// Left out are the records that say so, what others declare, what the model knows of `node`'s own workloads (they are
/// given apart), and workloads elsewhere that are judged as any other of their node.
#[must_use]
pub fn relevant(mut model: Model, node: &Key) -> Model {
    let means_labels = model.document.rules.iter().any(|rule| !rule.from.labels.is_empty());
    model.subjects.retain(|s| s.is_host() || (s.node != *node && means_labels && !s.labels.is_empty()));
    for subject in &mut model.subjects {
        (subject.member_record, subject.exposure_record) = (Hash([0; 32]), None);
        if subject.node != *node {
            subject.declared.clear();
        }
    }
    for block in &mut model.blocks {
        (block.record, block.reason) = (Hash([0; 32]), String::new());
    }
    (model.policy_record, model.policy_version) = (Hash([0; 32]), 0);
    model
}

/// Sources that policy cannot tell apart share an identity, so the tables grow with policy, not with the VDC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    /// Indices of the rules that mean the source.
    rules: Vec<usize>,
    /// Indices of the blocks that deny the source's flows to here.
    blocked_in: Vec<usize>,
    /// Indices of the blocks that deny flows from here to the source.
    blocked_out: Vec<usize>,
}

/// Destinations here that policy cannot tell apart share their chains.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    /// Indices of the rules that mean the destination.
    rules: Vec<usize>,
    /// What it declared, if a rule asks for that.
    declared: Vec<PortRange>,
}

/// Where a source's packets come from.
#[derive(Clone, Copy)]
enum Place {
    Exact(Ipv6Addr, Option<Ipv4Addr>),
    Rest(NodePrefix, Option<Ipv4Block>),
    /// Any port of a workload.
    Port,
}

/// Compiles the table of `node`'s namespace, whose workloads are `locals`. `generation` must differ from the last one
/// whenever a verdict may have changed; `infra_ports` are the TCP ports of the infra plane. A node that the model does
/// not know gets a table that lets nothing through. What the model says of `node`'s own workloads is not looked at.
///
/// A workload that is not in `locals` may open flows and is the destination of none, so a table needs compiling anew
/// only for workloads that have a name, declare, publish or carry a label.
#[must_use]
pub fn compile(model: &Model, node: &Key, locals: &[LocalWorkload], generation: u32, infra_ports: &[u16]) -> Table {
    let mut builder = Builder::new(model, generation);
    let Some(this) = model.hosts().find(|s| s.node == *node) else {
        builder.frame(None, infra_ports);
        return builder.finish();
    };
    let own_host = |subject: &Subject| {
        Place::Exact(subject.prefix.address(HOST), subject.ipv4.and_then(|block| block.address(HOST)))
    };
    let mut classes: BTreeMap<Class, Vec<Place>> = BTreeMap::new();
    for peer in &model.subjects {
        let unlisted = class(model, &peer.unlisted(), this);
        match &peer.kind {
            Kind::Host => {
                let rest = if peer.node == *node { Place::Port } else { Place::Rest(peer.prefix, peer.ipv4) };
                classes.entry(class(model, peer, this)).or_default().push(own_host(peer));
                classes.entry(unlisted).or_default().push(rest);
            }
            Kind::Workload { v6, ipv4, .. } if peer.node != *node => {
                let class = class(model, peer, this);
                if class != unlisted {
                    classes.entry(class).or_default().push(Place::Exact(*v6, *ipv4));
                }
            }
            Kind::Workload { .. } | Kind::Unlisted => {}
        }
    }
    let mut targets: BTreeMap<Target, Vec<Place>> = BTreeMap::new();
    targets.entry(target(model, this)).or_default().push(own_host(this));
    for workload in locals {
        let (subject, place) = (workload.subject(this), Place::Exact(workload.v6, workload.v4));
        classes.entry(class(model, &subject, this)).or_default().push(place);
        targets.entry(target(model, &subject)).or_default().push(place);
        builder.published(workload);
    }
    for (index, (class, places)) in classes.iter().enumerate() {
        let identity = index + 1; // 0 is "nobody"
        builder.identity(identity, places);
        builder.blocks(identity, class);
    }
    builder.frame(Some(this), infra_ports);
    for (number, (target, places)) in targets.iter().enumerate() {
        builder.target(number, target, places, classes.keys());
    }
    builder.finish()
}

fn class(model: &Model, peer: &Subject, this: &Subject) -> Class {
    let pairs = |from: &Subject, to: &Subject| {
        let meets = |key: Option<Key>, subject: &Subject| key.is_none_or(|k| k == subject.node);
        let denies = |b: &vdc::policy::ActiveBlock| meets(b.matches.from, from) && meets(b.matches.to, to);
        (0..model.blocks.len()).filter(|&i| denies(&model.blocks[i])).collect()
    };
    Class {
        rules: rules_where(model, |rule| rule.from.matches(peer)),
        blocked_in: pairs(peer, this),
        blocked_out: pairs(this, peer),
    }
}

fn target(model: &Model, subject: &Subject) -> Target {
    let rules = rules_where(model, |rule| rule.to.matches(subject));
    let asked = rules.iter().any(|&i| model.document.rules[i].services.contains(&Service::Declared));
    Target { rules, declared: if asked { subject.declared.clone() } else { vec![] } }
}

fn rules_where(model: &Model, means: impl Fn(&vdc::policy::Rule) -> bool) -> Vec<usize> {
    (0..model.document.rules.len()).filter(|&i| means(&model.document.rules[i])).collect()
}

struct Builder<'a> {
    model: &'a Model,
    generation: u32,
    /// Nodes' prefixes; single addresses in them come from the `exact` maps.
    from6: Vec<Value>,
    from4: Vec<Value>,
    exact6: Vec<Value>,
    exact4: Vec<Value>,
    /// The identity of a workload of this node that no `exact` map knows.
    from_port: Option<usize>,
    deny_in: Vec<Value>,
    deny_in_all: Vec<Value>,
    deny_out: Vec<Value>,
    deny_out_all: Vec<Value>,
    /// Addresses here → chains of their target, for packets to it and from it.
    to: [Vec<Value>; 4],
    published6: Vec<Value>,
    published4: Vec<Value>,
    /// Maps of the targets.
    maps: Vec<Value>,
    commands: Vec<Value>,
}

impl<'a> Builder<'a> {
    fn new(model: &'a Model, generation: u32) -> Self {
        Self {
            model,
            generation,
            from6: vec![],
            from4: vec![],
            exact6: vec![],
            exact4: vec![],
            from_port: None,
            deny_in: vec![],
            deny_in_all: vec![],
            deny_out: vec![],
            deny_out_all: vec![],
            to: Default::default(),
            published6: vec![],
            published4: vec![],
            maps: vec![],
            commands: vec![],
        }
    }

    fn identity(&mut self, identity: usize, places: &[Place]) {
        for place in places {
            match *place {
                Place::Exact(v6, v4) => {
                    self.exact6.push(json!([v6.to_string(), identity]));
                    self.exact4.extend(v4.map(|v4| json!([v4.to_string(), identity])));
                }
                Place::Rest(prefix, block) => {
                    self.from6.push(json!([prefix6(prefix), identity]));
                    self.from4.extend(block.map(|block| json!([prefix4(block), identity])));
                }
                Place::Port => self.from_port = Some(identity),
            }
        }
    }

    fn published(&mut self, workload: &LocalWorkload) {
        for range in disjoint(workload.published.iter().map(|range| (*range, ())).collect()) {
            let ports = ports_value(&range.0);
            let key = |address: String| json!({"concat": [address, protocol_name(range.0.protocol), ports]});
            self.published6.push(key(workload.v6.to_string()));
            self.published4.extend(workload.v4.map(|v4| key(v4.to_string())));
        }
    }

    fn blocks(&mut self, identity: usize, class: &Class) {
        for (indices, some, all) in [
            (&class.blocked_in, &mut self.deny_in, &mut self.deny_in_all),
            (&class.blocked_out, &mut self.deny_out, &mut self.deny_out_all),
        ] {
            let ports = |i: &usize| self.model.blocks[*i].matches.ports;
            if indices.iter().any(|i| ports(i).is_none()) {
                all.push(json!(identity));
                continue;
            }
            for range in disjoint(indices.iter().filter_map(ports).map(|range| (range, ())).collect()) {
                some.push(concat_key(identity, &range.0));
            }
        }
    }

    /// The chains and maps of one target, and the way to them.
    fn target<'c>(
        &mut self,
        number: usize,
        target: &Target,
        places: &[Place],
        classes: impl Iterator<Item = &'c Class>,
    ) {
        let (mut allow, mut allow_icmp, mut allow_any) = (vec![], vec![], vec![]);
        for (index, class) in classes.enumerate() {
            let rules: Vec<usize> = target.rules.iter().copied().filter(|rule| class.rules.contains(rule)).collect();
            self.rules(index + 1, &rules, target, [&mut allow, &mut allow_icmp, &mut allow_any]);
        }
        for (kind, elements) in [("allow", allow), ("allow_icmp", allow_icmp), ("allow_any", allow_any)] {
            let ports = kind == "allow";
            let key = if ports { json!(["mark", "inet_proto", "inet_service"]) } else { json!("mark") };
            let mut map = json!({"family": "inet", "table": TABLE, "name": format!("{kind}_{number}"), "type": key,
                "map": "verdict"});
            if ports {
                map["flags"] = json!(["interval"]);
            }
            let mut elements = elements;
            self.maps.push(json!({"add": {"map": with_elements(map, &mut elements)}}));
        }
        for (index, port) in ["dport", "sport"].into_iter().enumerate() {
            let chain = format!("to_{number}_{port}");
            self.chain(&chain);
            let key = json!({"concat": [mark(), l4proto(), field("th", port)]});
            self.rule(&chain, [ported(), vmap(key, &format!("@allow_{number}"))]);
            let icmp = matches("==", l4proto(), json!({"set": ["icmp", "ipv6-icmp"]}));
            self.rule(&chain, [icmp, vmap(mark(), &format!("@allow_icmp_{number}"))]);
            self.rule(&chain, [vmap(mark(), &format!("@allow_any_{number}"))]);
            self.rule(&chain, [count(Counter::Denied), json!({"drop": null})]);
            for place in places {
                let Place::Exact(v6, v4) = *place else { continue };
                self.to[index].push(json!([v6.to_string(), goto(&chain)]));
                self.to[index + 2].extend(v4.map(|v4| json!([v4.to_string(), goto(&chain)])));
            }
        }
    }

    fn rules(
        &self,
        identity: usize,
        rules: &[usize],
        target: &Target,
        [allow, allow_icmp, allow_any]: [&mut Vec<Value>; 3],
    ) {
        let mut ports: Vec<(PortRange, usize)> = vec![];
        let (mut icmp, mut any) = (None, None);
        for &index in rules {
            for service in &self.model.document.rules[index].services {
                match service {
                    Service::Icmp => icmp = icmp.or(Some(index)),
                    Service::Declared => ports.extend(target.declared.iter().map(|range| (*range, index))),
                    Service::Ports(range) => ports.push((*range, index)),
                    Service::Any => any = any.or(Some(index)),
                }
            }
        }
        // A rule after an any-rule never decides; one before it does, which the order of the lookups alone cannot say.
        if let Some(any) = any {
            ports.retain(|(_, index)| *index <= any);
            icmp = icmp.filter(|index| *index <= any);
            allow_any.push(json!([identity, goto(&rule_chain(any))]));
        }
        if let Some(index) = icmp {
            allow_icmp.push(json!([identity, goto(&rule_chain(index))]));
        }
        for (range, index) in disjoint(ports) {
            allow.push(json!([concat_key(identity, &range), goto(&rule_chain(index))]));
        }
    }

    /// Everything but the elements: counters, chains and the fixed checks.
    fn frame(&mut self, this: Option<&Subject>, infra_ports: &[u16]) {
        let mut counters = vec![
            Counter::Spoofed,
            Counter::Infra,
            Counter::Invalid,
            Counter::Blocked,
            Counter::Denied,
            Counter::Outgoing,
            Counter::Egress,
            Counter::Published,
        ];
        counters.extend((0..self.model.document.rules.len()).map(Counter::Rule));
        for counter in &counters {
            self.add(json!({"counter": {"family": "inet", "table": TABLE, "name": counter.name()}}));
        }
        for index in 0..self.model.document.rules.len() {
            self.chain(&rule_chain(index));
            let accept = [count(Counter::Rule(index)), self.mark_flow(), json!({"accept": null})];
            self.rule(&rule_chain(index), accept);
        }
        for name in ["in_new", "in_reply", "out_new", "out_reply", "out_judge", "egress", "entry_new", "entry_reply"] {
            self.chain(name);
        }
        self.judge_chains();
        self.forward_chain(this);
        self.input_chain(infra_ports);
    }

    fn judge_chains(&mut self) {
        // The other party's address and the flow's destination port, by who opened the flow and which way the packet
        // goes. Inward the other party is who opened it, and the target's chain goes on.
        for (chain, address, target, port, through) in [
            ("in_new", "saddr", Some(("daddr", ["@to6_dport", "@to4_dport"])), "dport", "iifname"),
            ("in_reply", "daddr", Some(("saddr", ["@to6_sport", "@to4_sport"])), "sport", "oifname"),
            ("out_new", "daddr", None, "dport", "oifname"),
            ("out_reply", "saddr", None, "sport", "iifname"),
        ] {
            self.rule(chain, [set_mark(json!(0))]);
            if let Some(identity) = self.from_port {
                let port = matches("==", meta(through), json!(WORKLOAD_INTERFACES));
                self.rule(chain, [port, set_mark(json!(identity))]);
            }
            for (protocol, map) in [("ip6", "@from6"), ("ip", "@from4"), ("ip6", "@exact6"), ("ip", "@exact4")] {
                let peer = json!({"map": {"key": field(protocol, address), "data": map}});
                self.rule(chain, [set_mark(peer)]);
            }
            let (all, some) =
                if target.is_some() { ("@deny_in_all", "@deny_in") } else { ("@deny_out_all", "@deny_out") };
            let blocked = [count(Counter::Blocked), json!({"drop": null})];
            self.rule(chain, [vec![matches("==", mark(), json!(all))], blocked.to_vec()].concat());
            let key = json!({"concat": [mark(), l4proto(), field("th", port)]});
            self.rule(chain, [vec![ported(), matches("==", key, json!(some))], blocked.to_vec()].concat());
            if let Some((end, [six, four])) = target {
                self.rule(chain, [vmap(field("ip6", end), six)]);
                self.rule(chain, [vmap(field("ip", end), four)]);
                self.rule(chain, [count(Counter::Denied), json!({"drop": null})]);
            } else {
                self.rule(chain, [goto("out_judge")]);
            }
        }
        // Towards a peer the peer's own table decides; here only that it is one.
        let known = matches("!=", mark(), json!(0));
        self.rule("out_judge", [known, count(Counter::Outgoing), self.mark_flow(), json!({"accept": null})]);
        self.rule("out_judge", [count(Counter::Denied), json!({"drop": null})]);
        self.rule("egress", [count(Counter::Egress), self.mark_flow(), json!({"accept": null})]);
        for (chain, end, port) in [("entry_new", "daddr", "dport"), ("entry_reply", "saddr", "sport")] {
            for (protocol, set) in [("ip6", "@published6"), ("ip", "@published4")] {
                let key = json!({"concat": [field(protocol, end), l4proto(), field("th", port)]});
                let open = [ported(), matches("==", key, json!(set)), count(Counter::Published)];
                self.rule(chain, [open.to_vec(), vec![self.mark_flow(), json!({"accept": null})]].concat());
            }
            self.rule(chain, [count(Counter::Denied), json!({"drop": null})]);
        }
    }

    /// A workload's source must be its own: the route back to it leads out of the port that the packet came in by.
    fn workload_sources(&mut self, chain: &str) {
        let from_workload = || matches("==", meta("iifname"), json!(WORKLOAD_INTERFACES));
        let drop = [count(Counter::Spoofed), json!({"drop": null})];
        let no_way_back = matches("==", json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}), json!(0));
        self.rule(chain, [vec![from_workload(), no_way_back], drop.to_vec()].concat());
    }

    fn forward_chain(&mut self, this: Option<&Subject>) {
        self.base_chain("forward");
        let drop = |counter| vec![count(counter), json!({"drop": null})];
        let incoming = |name: &str| matches("==", meta("iifname"), json!(name));
        self.workload_sources("forward");
        // Link-local sources ask the name server here and nobody else.
        for (protocol, network, length) in [("ip6", "fe80::", 10), ("ip", "169.254.0.0", 16)] {
            let local = matches("==", field(protocol, "saddr"), json!({"prefix": {"addr": network, "len": length}}));
            self.rule("forward", [vec![incoming(WORKLOAD_INTERFACES), local], drop(Counter::Spoofed)].concat());
        }
        if let Some(this) = this {
            let host6 = matches("!=", field("ip6", "saddr"), json!(this.prefix.address(HOST).to_string()));
            self.rule("forward", [vec![incoming(HOST_INTERFACE), host6], drop(Counter::Spoofed)].concat());
            let host4 = this.ipv4.and_then(|block| block.address(HOST)).map_or_else(
                || matches("==", meta("nfproto"), json!("ipv4")),
                |address| matches("!=", field("ip", "saddr"), json!(address.to_string())),
            );
            self.rule("forward", [vec![incoming(HOST_INTERFACE), host4], drop(Counter::Spoofed)].concat());
        }
        let from_peer_to_peer = [incoming(MESH_INTERFACE), matches("==", meta("oifname"), json!(MESH_INTERFACE))];
        self.rule("forward", [from_peer_to_peer.to_vec(), drop(Counter::Denied)].concat());
        // Router and neighbour discovery and redirects (RFC 4861 types 133 to 137, RFC 792 type 5) have no routers here.
        let discovery = matches("==", field("icmpv6", "type"), json!({"range": [133, 137]}));
        self.rule("forward", [vec![discovery], drop(Counter::Infra)].concat());
        self.rule("forward", [vec![matches("==", field("icmp", "type"), json!(5))], drop(Counter::Infra)].concat());
        for end in ["saddr", "daddr"] {
            self.rule("forward", [vec![is_infra(end)], drop(Counter::Infra)].concat());
        }
        self.rule("forward", [vec![ct_state("invalid")], drop(Counter::Invalid)].concat());
        self.rule("forward", [matches("==", ct_mark(), json!(self.generation)), json!({"accept": null})]);
        self.rule("forward", [ct_state("related"), json!({"accept": null})]);
        let outgoing = |name: &str| matches("==", meta("oifname"), json!(name));
        let leaves = |original: bool, name: &str| if original { outgoing(name) } else { incoming(name) };
        let comes = |original: bool, name: &str| if original { incoming(name) } else { outgoing(name) };
        for (direction, original) in [("original", true), ("reply", false)] {
            let way = matches("==", json!({"ct": {"key": "direction"}}), json!(direction));
            let chain = |name: &str| goto(&format!("{name}_{}", if original { "new" } else { "reply" }));
            let egress = [comes(original, WORKLOAD_INTERFACES), leaves(original, EGRESS_INTERFACE)];
            self.rule("forward", [vec![way.clone()], egress.to_vec(), vec![goto("egress")]].concat());
            let entry = [comes(original, EGRESS_INTERFACE), leaves(original, WORKLOAD_INTERFACES)];
            self.rule("forward", [vec![way.clone()], entry.to_vec(), vec![chain("entry")]].concat());
            for end in ["iifname", "oifname"] {
                let other = matches("==", meta(end), json!(EGRESS_INTERFACE));
                self.rule("forward", [vec![way.clone(), other], drop(Counter::Denied)].concat());
            }
            self.rule("forward", [way.clone(), leaves(original, MESH_INTERFACE), chain("out")]);
            self.rule("forward", [way, chain("in")]);
        }
    }

    /// What reaches the namespace itself: the infra plane from members' infra addresses, and neighbour discovery of the
    /// host's end of the veth.
    fn input_chain(&mut self, infra_ports: &[u16]) {
        self.base_chain("input");
        let accept = json!({"accept": null});
        let from_workload = matches("==", meta("iifname"), json!(WORKLOAD_INTERFACES));
        let discovery = matches("==", field("icmpv6", "type"), json!({"set": [135, 136]}));
        self.rule("input", [from_workload.clone(), discovery.clone(), accept.clone()]);
        self.workload_sources("input");
        for (protocol, gateway, echo) in [
            ("ip6", "fe80::1", matches("==", field("icmpv6", "type"), json!(128))),
            ("ip", "169.254.1.1", matches("==", field("icmp", "type"), json!(8))),
        ] {
            let asked = [from_workload.clone(), matches("==", field(protocol, "daddr"), json!(gateway))];
            self.rule("input", [asked.to_vec(), vec![echo, accept.clone()]].concat());
            let names = [ported(), matches("==", field("th", "dport"), json!(53)), accept.clone()];
            self.rule("input", [asked.to_vec(), names.to_vec()].concat());
        }
        self.rule("input", [matches("==", meta("iifname"), json!("lo")), accept.clone()]);
        self.rule("input", [ct_state("established"), accept.clone()]);
        self.rule("input", [ct_state("related"), accept.clone()]);
        let from_host = matches("==", meta("iifname"), json!(HOST_INTERFACE));
        self.rule("input", [from_host, discovery, accept.clone()]);
        let infra = |this: &mut Self, service: Value| {
            let member = json!({"map": {"key": field("ip6", "saddr"), "data": "@from6"}});
            let checks = [matches("==", meta("iifname"), json!(MESH_INTERFACE)), is_infra("saddr"), is_infra("daddr")];
            let rule = [checks.to_vec(), vec![service, set_mark(member), json!({"accept": null})]].concat();
            this.rule("input", rule);
        };
        infra(self, matches("==", field("icmpv6", "type"), json!(128)));
        if !infra_ports.is_empty() {
            infra(self, matches("==", field("tcp", "dport"), json!({"set": infra_ports})));
        }
        self.rule("input", [count(Counter::Infra), json!({"drop": null})]);
    }

    fn finish(mut self) -> Table {
        let table = json!({"table": {"family": "inet", "name": TABLE}});
        // Adding before deleting makes the deletion valid whether or not the table exists.
        let mut commands = vec![json!({"add": table}), json!({"delete": table}), json!({"add": table})];
        let ports_key = json!(["mark", "inet_proto", "inet_service"]);
        for (name, key, elements) in [
            ("deny_in", ports_key.clone(), &mut self.deny_in),
            ("deny_out", ports_key.clone(), &mut self.deny_out),
            ("deny_in_all", json!("mark"), &mut self.deny_in_all),
            ("deny_out_all", json!("mark"), &mut self.deny_out_all),
            ("published6", json!(["ipv6_addr", "inet_proto", "inet_service"]), &mut self.published6),
            ("published4", json!(["ipv4_addr", "inet_proto", "inet_service"]), &mut self.published4),
        ] {
            let mut set = json!({"family": "inet", "table": TABLE, "name": name, "type": key});
            if !name.ends_with("all") {
                set["flags"] = json!(["interval"]);
            }
            commands.push(json!({"add": {"set": with_elements(set, elements)}}));
        }
        let (mut maps, mut rest) = (std::mem::take(&mut self.maps), std::mem::take(&mut self.commands));
        let [to6_new, to6_reply, to4_new, to4_reply] = &mut self.to;
        for (name, key, value, elements) in [
            ("from6", json!("ipv6_addr"), "mark", &mut self.from6),
            ("from4", json!("ipv4_addr"), "mark", &mut self.from4),
            ("exact6", json!("ipv6_addr"), "mark", &mut self.exact6),
            ("exact4", json!("ipv4_addr"), "mark", &mut self.exact4),
            ("to6_dport", json!("ipv6_addr"), "verdict", to6_new),
            ("to6_sport", json!("ipv6_addr"), "verdict", to6_reply),
            ("to4_dport", json!("ipv4_addr"), "verdict", to4_new),
            ("to4_sport", json!("ipv4_addr"), "verdict", to4_reply),
        ] {
            let mut map = json!({"family": "inet", "table": TABLE, "name": name, "type": key, "map": value});
            if matches!(name, "from6" | "from4") {
                map["flags"] = json!(["interval"]);
            }
            maps.push(json!({"add": {"map": with_elements(map, elements)}}));
        }
        // Verdict maps name the rule chains, which must therefore exist first; rules name the maps.
        let is_rule = |command: &Value| !command["add"]["rule"].is_null();
        let rules = rest.extract_if(.., |command| is_rule(command)).collect::<Vec<_>>();
        commands.append(&mut rest);
        commands.append(&mut maps);
        commands.extend(rules);
        Table { commands: json!({ "nftables": commands }) }
    }

    fn add(&mut self, object: Value) {
        self.commands.push(json!({ "add": object }));
    }

    fn chain(&mut self, name: &str) {
        self.add(json!({"chain": {"family": "inet", "table": TABLE, "name": name}}));
    }

    fn base_chain(&mut self, name: &str) {
        self.add(json!({"chain": {"family": "inet", "table": TABLE, "name": name,
            "type": "filter", "hook": name, "prio": 0, "policy": "drop"}}));
    }

    fn rule(&mut self, chain: &str, statements: impl Into<Vec<Value>>) {
        let statements: Vec<Value> = statements.into();
        self.add(json!({"rule": {"family": "inet", "table": TABLE, "chain": chain, "expr": statements}}));
    }

    fn mark_flow(&self) -> Value {
        json!({"mangle": {"key": ct_mark(), "value": self.generation}})
    }
}

fn with_elements(mut object: Value, elements: &mut Vec<Value>) -> Value {
    if !elements.is_empty() {
        object["elem"] = Value::Array(std::mem::take(elements));
    }
    object
}

fn rule_chain(index: usize) -> String {
    format!("rule_{index}")
}

pub(crate) fn prefix6(prefix: NodePrefix) -> Value {
    json!({"prefix": {"addr": prefix.address(0).to_string(), "len": 96}})
}

pub(crate) fn prefix4(block: Ipv4Block) -> Value {
    json!({"prefix": {"addr": IpAddr::from(block.network()).to_string(), "len": block.length()}})
}

pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn concat_key(identity: usize, range: &PortRange) -> Value {
    json!({"concat": [identity, protocol_name(range.protocol), ports_value(range)]})
}

fn ports_value(range: &PortRange) -> Value {
    if range.first == range.last { json!(range.first) } else { json!({"range": [range.first, range.last]}) }
}

pub(crate) fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn mark() -> Value {
    meta("mark")
}

fn l4proto() -> Value {
    meta("l4proto")
}

fn ct_mark() -> Value {
    json!({"ct": {"key": "mark"}})
}

pub(crate) fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

pub(crate) fn matches(op: &str, left: Value, right: Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

pub(crate) fn ct_state(state: &str) -> Value {
    matches("in", json!({"ct": {"key": "state"}}), json!(state))
}

/// Only protocols whose header starts with two ports.
fn ported() -> Value {
    matches("==", l4proto(), json!({"set": ["tcp", "udp"]}))
}

fn is_infra(end: &str) -> Value {
    let offset = json!({"&": [field("ip6", end), "::ffff:ffff"]});
    matches("==", offset, json!(Ipv6Addr::from(u128::from(INFRA)).to_string()))
}

fn set_mark(value: Value) -> Value {
    json!({"mangle": {"key": mark(), "value": value}})
}

fn vmap(key: Value, map: &str) -> Value {
    json!({"vmap": {"key": key, "data": map}})
}

fn goto(chain: &str) -> Value {
    json!({"goto": {"target": chain}})
}

fn count(counter: Counter) -> Value {
    json!({"counter": counter.name()})
}

/// Splits overlapping port ranges so that each port appears once, with the value of the first range given that has it.
fn disjoint<T: Copy>(ranges: Vec<(PortRange, T)>) -> Vec<(PortRange, T)> {
    let mut result: Vec<(PortRange, T)> = vec![];
    for (range, value) in ranges {
        let mut pieces = vec![(u32::from(range.first), u32::from(range.last))];
        for (taken, _) in result.iter().filter(|(taken, _)| taken.protocol == range.protocol) {
            let (low, high) = (u32::from(taken.first), u32::from(taken.last));
            let below = |(a, b): (u32, u32)| (low > a).then(|| (a, b.min(low - 1)));
            let above = |(a, b): (u32, u32)| (high < b).then(|| (a.max(high + 1), b));
            pieces = pieces.into_iter().flat_map(|piece| [below(piece), above(piece)]).flatten().collect();
        }
        for (first, last) in pieces {
            let port = |p: u32| u16::try_from(p).expect("a piece of a range of u16 ports");
            result.push((PortRange { protocol: range.protocol, first: port(first), last: port(last) }, value));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn disjoint_keeps_first_owner_of_each_port(
            ranges in proptest::collection::vec((0u16..40, 0u16..40), 0..6), port in 0u16..40,
        ) {
            let ranges: Vec<(PortRange, usize)> = ranges
                .into_iter()
                .enumerate()
                .map(|(i, (a, b))| (PortRange { protocol: Protocol::Tcp, first: a.min(b), last: a.max(b) }, i))
                .collect();
            let has = |r: &PortRange| (r.first..=r.last).contains(&port);
            let expected = ranges.iter().find(|(r, _)| has(r)).map(|(_, i)| *i);
            let found: Vec<usize> = disjoint(ranges).into_iter().filter(|(r, _)| has(r)).map(|(_, i)| i).collect();
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn disjoint_handles_the_ends_of_the_port_space() {
        let range = |first, last| PortRange { protocol: Protocol::Udp, first, last };
        let pieces = disjoint(vec![(range(0, 0), 0), (range(65535, 65535), 1), (range(0, 65535), 2)]);
        assert_eq!(pieces, [(range(0, 0), 0), (range(65535, 65535), 1), (range(1, 65534), 2)]);
    }
}
