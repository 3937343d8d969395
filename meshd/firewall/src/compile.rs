//! From a policy model to the commands that replace a namespace's table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};
use vdc::address::{HOST, INFRA};
use vdc::policy::{Model, Service, Subject};
use vdc::record::{PortRange, Protocol};
use vdc::{Ipv4Block, Key, NodePrefix};

use crate::{HOST_INTERFACE, MESH_INTERFACE, TABLE};

/// A named counter of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counter {
    /// From the host with a source address that is not the host's.
    Spoofed,
    /// To or from an infra address outside the infra plane, or neighbour discovery that has no business here.
    Infra,
    /// Packets that belong to no flow and open none.
    Invalid,
    /// Denied by a block record.
    Blocked,
    /// Denied because no rule allows it.
    Denied,
    /// Opened by the host towards a peer (the peer's own table decides).
    Outgoing,
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
            _ => Self::Rule(name.strip_prefix("rule_")?.parse().ok()?),
        })
    }
}

/// The compiled table: nftables JSON commands (libnftables-json(5)) that replace the old one in one transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub(crate) commands: Value,
}

/// Peers that policy cannot tell apart share an identity, so the tables grow with policy, not with the VDC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    /// Indices of the rules that let the peer in here.
    rules: Vec<usize>,
    /// Indices of the blocks that deny the peer's flows to here.
    blocked_in: Vec<usize>,
    /// Indices of the blocks that deny flows from here to the peer.
    blocked_out: Vec<usize>,
}

/// Compiles the table of `node`'s namespace. `generation` must differ from the last one whenever a verdict may have
/// changed; `infra_ports` are the TCP ports of the infra plane. A node that the model does not know gets a table that
/// lets nothing through.
#[must_use]
pub fn compile(model: &Model, node: &Key, generation: u32, infra_ports: &[u16]) -> Table {
    let mut builder = Builder::new(model, generation);
    let Some(this) = model.subjects.iter().find(|s| s.node == *node) else {
        builder.frame(None, infra_ports);
        return builder.finish();
    };
    let mut classes: BTreeMap<Class, Vec<&Subject>> = BTreeMap::new();
    for peer in model.subjects.iter().filter(|s| s.node != *node) {
        classes.entry(class(model, peer, this)).or_default().push(peer);
    }
    builder.frame(Some(this), infra_ports);
    for (index, (class, peers)) in classes.iter().enumerate() {
        let identity = index + 1; // 0 is "nobody"
        builder.identity(identity, peers);
        builder.blocks(identity, class);
        builder.rules(identity, class, this);
    }
    builder.finish()
}

fn class(model: &Model, peer: &Subject, this: &Subject) -> Class {
    let pairs = |from: &Subject, to: &Subject| {
        let meets = |key: Option<Key>, subject: &Subject| key.is_none_or(|k| k == subject.node);
        let denies = |b: &vdc::policy::ActiveBlock| meets(b.matches.from, from) && meets(b.matches.to, to);
        (0..model.blocks.len()).filter(|&i| denies(&model.blocks[i])).collect()
    };
    let opens = |rule: &vdc::policy::Rule| rule.from.matches(peer) && rule.to.matches(this);
    Class {
        rules: (0..model.document.rules.len()).filter(|&i| opens(&model.document.rules[i])).collect(),
        blocked_in: pairs(peer, this),
        blocked_out: pairs(this, peer),
    }
}

struct Builder<'a> {
    model: &'a Model,
    generation: u32,
    from6: Vec<Value>,
    from4: Vec<Value>,
    deny_in: Vec<Value>,
    deny_in_all: Vec<Value>,
    deny_out: Vec<Value>,
    deny_out_all: Vec<Value>,
    /// Identity and ports → rule; the first rule of the document that opens a port wins, as in the evaluator.
    allow: Vec<Value>,
    allow_icmp: Vec<Value>,
    allow_any: Vec<Value>,
    commands: Vec<Value>,
}

impl<'a> Builder<'a> {
    fn new(model: &'a Model, generation: u32) -> Self {
        Self {
            model,
            generation,
            from6: vec![],
            from4: vec![],
            deny_in: vec![],
            deny_in_all: vec![],
            deny_out: vec![],
            deny_out_all: vec![],
            allow: vec![],
            allow_icmp: vec![],
            allow_any: vec![],
            commands: vec![],
        }
    }

    fn identity(&mut self, identity: usize, peers: &[&Subject]) {
        for peer in peers {
            self.from6.push(json!([prefix6(peer.prefix), identity]));
            if let Some(block) = peer.ipv4 {
                self.from4.push(json!([prefix4(block), identity]));
            }
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

    fn rules(&mut self, identity: usize, class: &Class, this: &Subject) {
        let mut ports: Vec<(PortRange, usize)> = vec![];
        let (mut icmp, mut any) = (None, None);
        for &index in &class.rules {
            for service in &self.model.document.rules[index].services {
                match service {
                    Service::Icmp => icmp = icmp.or(Some(index)),
                    Service::Declared => ports.extend(this.declared.iter().map(|range| (*range, index))),
                    Service::Ports(range) => ports.push((*range, index)),
                    Service::Any => any = any.or(Some(index)),
                }
            }
        }
        // A rule after an any-rule never decides; one before it does, which the order of the lookups alone cannot say.
        if let Some(any) = any {
            ports.retain(|(_, index)| *index <= any);
            icmp = icmp.filter(|index| *index <= any);
            self.allow_any.push(json!([identity, goto(&rule_chain(any))]));
        }
        if let Some(index) = icmp {
            self.allow_icmp.push(json!([identity, goto(&rule_chain(index))]));
        }
        for (range, index) in disjoint(ports) {
            self.allow.push(json!([concat_key(identity, &range), goto(&rule_chain(index))]));
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
        for name in ["in_new", "in_reply", "out_new", "out_reply", "in_judge", "out_judge"] {
            self.chain(name);
        }
        self.judge_chains();
        self.forward_chain(this);
        self.input_chain(infra_ports);
    }

    fn judge_chains(&mut self) {
        // The peer's address and the flow's destination port, by who opened the flow and which way the packet goes.
        for (chain, address, port, next) in [
            ("in_new", "saddr", "dport", "in_judge"),
            ("in_reply", "daddr", "sport", "in_judge"),
            ("out_new", "daddr", "dport", "out_judge"),
            ("out_reply", "saddr", "sport", "out_judge"),
        ] {
            self.rule(chain, [set_mark(json!(0))]);
            for (protocol, map) in [("ip6", "@from6"), ("ip", "@from4")] {
                let peer = json!({"map": {"key": field(protocol, address), "data": map}});
                self.rule(chain, [set_mark(peer)]);
            }
            let inward = next == "in_judge";
            let (all, some) = if inward { ("@deny_in_all", "@deny_in") } else { ("@deny_out_all", "@deny_out") };
            let blocked = [count(Counter::Blocked), json!({"drop": null})];
            self.rule(chain, [vec![matches("==", mark(), json!(all))], blocked.to_vec()].concat());
            let key = json!({"concat": [mark(), l4proto(), field("th", port)]});
            self.rule(chain, [vec![ported(), matches("==", key.clone(), json!(some))], blocked.to_vec()].concat());
            if inward {
                self.rule(chain, [ported(), vmap(key, "@allow")]);
            }
            self.rule(chain, [goto(next)]);
        }
        let icmp = matches("==", l4proto(), json!({"set": ["icmp", "ipv6-icmp"]}));
        self.rule("in_judge", [icmp, vmap(mark(), "@allow_icmp")]);
        self.rule("in_judge", [vmap(mark(), "@allow_any")]);
        self.rule("in_judge", [count(Counter::Denied), json!({"drop": null})]);
        // Towards a peer the peer's own table decides; here only that it is one.
        let known = matches("!=", mark(), json!(0));
        self.rule("out_judge", [known, count(Counter::Outgoing), self.mark_flow(), json!({"accept": null})]);
        self.rule("out_judge", [count(Counter::Denied), json!({"drop": null})]);
    }

    fn forward_chain(&mut self, this: Option<&Subject>) {
        self.base_chain("forward");
        let drop = |counter| vec![count(counter), json!({"drop": null})];
        let incoming = |name: &str| matches("==", meta("iifname"), json!(name));
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
        for (interface, direction, chain) in [
            (MESH_INTERFACE, "original", "in_new"),
            (HOST_INTERFACE, "reply", "in_reply"),
            (HOST_INTERFACE, "original", "out_new"),
            (MESH_INTERFACE, "reply", "out_reply"),
        ] {
            let direction = matches("==", json!({"ct": {"key": "direction"}}), json!(direction));
            self.rule("forward", [incoming(interface), direction, goto(chain)]);
        }
    }

    /// What reaches the namespace itself: the infra plane from members' infra addresses, and neighbour discovery of the
    /// host's end of the veth.
    fn input_chain(&mut self, infra_ports: &[u16]) {
        self.base_chain("input");
        let accept = json!({"accept": null});
        self.rule("input", [matches("==", meta("iifname"), json!("lo")), accept.clone()]);
        self.rule("input", [ct_state("established"), accept.clone()]);
        self.rule("input", [ct_state("related"), accept.clone()]);
        let from_host = matches("==", meta("iifname"), json!(HOST_INTERFACE));
        let discovery = matches("==", field("icmpv6", "type"), json!({"set": [135, 136]}));
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
        ] {
            let mut set = json!({"family": "inet", "table": TABLE, "name": name, "type": key});
            if !name.ends_with("all") {
                set["flags"] = json!(["interval"]);
            }
            commands.push(json!({"add": {"set": with_elements(set, elements)}}));
        }
        let (mut maps, mut rest): (Vec<Value>, Vec<Value>) = (vec![], std::mem::take(&mut self.commands));
        for (name, key, value, elements) in [
            ("from6", json!("ipv6_addr"), "mark", &mut self.from6),
            ("from4", json!("ipv4_addr"), "mark", &mut self.from4),
            ("allow", ports_key, "verdict", &mut self.allow),
            ("allow_icmp", json!("mark"), "verdict", &mut self.allow_icmp),
            ("allow_any", json!("mark"), "verdict", &mut self.allow_any),
        ] {
            let mut map = json!({"family": "inet", "table": TABLE, "name": name, "type": key, "map": value});
            if matches!(name, "from6" | "from4" | "allow") {
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

fn prefix6(prefix: NodePrefix) -> Value {
    json!({"prefix": {"addr": prefix.address(0).to_string(), "len": 96}})
}

fn prefix4(block: Ipv4Block) -> Value {
    json!({"prefix": {"addr": IpAddr::from(block.network()).to_string(), "len": block.length()}})
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn concat_key(identity: usize, range: &PortRange) -> Value {
    let ports = json!({"range": [range.first, range.last]});
    let ports = if range.first == range.last { json!(range.first) } else { ports };
    json!({"concat": [identity, protocol_name(range.protocol), ports]})
}

fn meta(key: &str) -> Value {
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

fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn matches(op: &str, left: Value, right: Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

fn ct_state(state: &str) -> Value {
    matches("in", json!({"ct": {"key": "state"}}), json!(state))
}

/// Only protocols whose header starts with two ports.
fn ported() -> Value {
    matches("==", l4proto(), json!({"set": ["tcp", "udp"]}))
}

fn is_infra(end: &str) -> Value {
    let offset = json!({"&": [field("ip6", end), "::ffff:ffff"]});
    matches("==", offset, json!(std::net::Ipv6Addr::from(u128::from(INFRA)).to_string()))
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
