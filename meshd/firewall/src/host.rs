//! The host's own table: the way of workloads to the world outside the VDCs, and of the world to published ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};
use vdc::record::Protocol;
use vdc::{Ipv4Block, NodePrefix};

use crate::Table;
use crate::compile::{ct_state, field, matches, meta, prefix4, prefix6, protocol_name};

/// The table's name in the host's namespace.
pub const HOST_TABLE: &str = "meshd-host";
/// The host's ends of the VDCs' ways out, as a pattern of interface names.
pub const EGRESS_HOST_INTERFACES: &str = "x-*";
/// The host's ports of the VDCs, as a pattern of interface names.
pub const HOST_PORT_INTERFACES: &str = "mesh-*";

/// The way out of one VDC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressPort {
    /// The host's end of the veth.
    pub interface: String,
    /// What marks the VDC's flows on the host, not 0; the host's routing rules lead it back into the veth.
    pub mark: u32,
    /// This node's own addresses in the VDC: nothing else may leave.
    pub prefix: NodePrefix,
    pub ipv4: Option<Ipv4Block>,
}

/// A port of the host that leads to a workload's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedPort {
    /// The host's address; `None`: all of them.
    pub host: Option<IpAddr>,
    pub host_port: u16,
    pub protocol: Protocol,
    /// The workload.
    pub v6: Ipv6Addr,
    pub v4: Option<Ipv4Addr>,
    pub port: u16,
    /// The mark of the VDC's [`EgressPort`].
    pub mark: u32,
}

/// Compiles the table of the host's namespace. Loading it replaces the one before; flows go on. Of nothing there is no
/// table: loading that takes the one before away.
#[must_use]
pub fn compile_host(publish: &[PublishedPort], egress: &[EgressPort]) -> Table {
    let table = json!({"table": {"family": "inet", "name": HOST_TABLE}});
    // Adding before deleting makes the deletion valid whether or not the table exists.
    let mut commands = vec![json!({"add": table}), json!({"delete": table})];
    if publish.is_empty() && egress.is_empty() {
        return Table { commands: json!({ "nftables": commands }) };
    }
    commands.push(json!({"add": table}));
    let mut host = Host { commands };
    host.marks(egress);
    host.published(publish);
    host.sources(egress);
    host.filters(egress);
    Table { commands: json!({ "nftables": host.commands }) }
}

struct Host {
    commands: Vec<Value>,
}

impl Host {
    fn chain(&mut self, name: &str, kind: &str, hook: &str, priority: i32) {
        self.commands.push(json!({"add": {"chain": {"family": "inet", "table": HOST_TABLE, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": "accept"}}}));
    }

    fn rule(&mut self, chain: &str, statements: impl Into<Vec<Value>>) {
        let statements: Vec<Value> = statements.into();
        self.commands.push(
            json!({"add": {"rule": {"family": "inet", "table": HOST_TABLE, "chain": chain, "expr": statements}}}),
        );
    }

    /// Flows of a VDC carry its mark in conntrack; their packets towards it carry it for the routing rules.
    fn marks(&mut self, egress: &[EgressPort]) {
        self.chain("mark_in", "filter", "prerouting", -150);
        self.chain("mark_out", "route", "output", -150);
        for port in egress {
            let from_vdc = matches("==", meta("iifname"), json!(port.interface));
            self.rule("mark_in", [from_vdc, set(ct_mark(), json!(port.mark)), json!({"return": null})]);
            let flow = matches("==", ct_mark(), json!(port.mark));
            for chain in ["mark_in", "mark_out"] {
                self.rule(chain, [flow.clone(), set(meta("mark"), json!(port.mark))]);
            }
        }
    }

    fn published(&mut self, publish: &[PublishedPort]) {
        self.chain("publish_in", "nat", "prerouting", -100);
        self.chain("publish_out", "nat", "output", -100);
        // What comes from a VDC asks its own policy, never the host's ports.
        for interface in [EGRESS_HOST_INTERFACES, HOST_PORT_INTERFACES] {
            let from_vdc = matches("==", meta("iifname"), json!(interface));
            self.rule("publish_in", [from_vdc, json!({"return": null})]);
        }
        for port in publish {
            let targets = [Some(IpAddr::V6(port.v6)), port.v4.map(IpAddr::V4)];
            for target in targets.into_iter().flatten() {
                if port.host.is_some_and(|host| host.is_ipv4() != target.is_ipv4()) {
                    continue;
                }
                let (family, name) = if target.is_ipv4() { ("ip", "ipv4") } else { ("ip6", "ipv6") };
                let mut statements = vec![matches("==", meta("nfproto"), json!(name)), is_local("daddr")];
                statements.extend(port.host.map(|host| matches("==", field(family, "daddr"), json!(host.to_string()))));
                statements.extend([
                    matches("==", field(protocol_name(port.protocol), "dport"), json!(port.host_port)),
                    set(ct_mark(), json!(port.mark)),
                    set(meta("mark"), json!(port.mark)),
                    json!({"dnat": {"family": family, "addr": target.to_string(), "port": port.port}}),
                ]);
                for chain in ["publish_in", "publish_out"] {
                    self.rule(chain, statements.clone());
                }
            }
        }
    }

    /// Outside, a workload has its host's address; inside, the host itself has that of its end of the veth.
    fn sources(&mut self, egress: &[EgressPort]) {
        self.chain("sources", "nat", "postrouting", 100);
        let to = |op: &str, interface: &str| matches(op, meta("oifname"), json!(interface));
        let own = [to("==", EGRESS_HOST_INTERFACES), is_local("saddr"), json!({"masquerade": null})];
        self.rule("sources", own);
        for port in egress {
            for source in own_sources(port, "==") {
                let out = [to("!=", EGRESS_HOST_INTERFACES), to("!=", HOST_PORT_INTERFACES)];
                let flow = matches("==", ct_mark(), json!(port.mark));
                self.rule("sources", [out.to_vec(), vec![flow, source, json!({"masquerade": null})]].concat());
            }
        }
    }

    fn filters(&mut self, egress: &[EgressPort]) {
        self.chain("input", "filter", "input", 0);
        let from_vdc = || matches("==", meta("iifname"), json!(EGRESS_HOST_INTERFACES));
        let drop = || json!({"drop": null});
        let answers = ct_state("established");
        self.rule("input", [from_vdc(), answers, json!({"accept": null})]);
        self.rule("input", [from_vdc(), ct_state("related"), json!({"accept": null})]);
        self.rule("input", [from_vdc(), json!({"counter": null}), drop()]);
        self.chain("forward", "filter", "forward", 0);
        for other in [HOST_PORT_INTERFACES, EGRESS_HOST_INTERFACES] {
            self.rule("forward", [from_vdc(), matches("==", meta("oifname"), json!(other)), drop()]);
        }
        for port in egress {
            let from = matches("==", meta("iifname"), json!(port.interface));
            for foreign in own_sources(port, "!=") {
                self.rule("forward", [from.clone(), foreign, drop()]);
            }
            if port.ipv4.is_none() {
                self.rule("forward", [from, matches("==", meta("nfproto"), json!("ipv4")), drop()]);
            }
        }
        // Into a VDC go answers and what a published port let in.
        let into = matches("==", meta("oifname"), json!(EGRESS_HOST_INTERFACES));
        let published = matches("==", json!({"&": [json!({"ct": {"key": "status"}}), "dnat"]}), json!(0));
        self.rule("forward", [into.clone(), ct_state("new"), published, drop()]);
        self.rule("forward", [into.clone(), ct_state("invalid"), drop()]);
        let syn = matches("in", field("tcp", "flags"), json!("syn"));
        let clamp = json!({"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}},
            "value": {"rt": {"key": "mtu"}}}});
        for way in [from_vdc(), into] {
            self.rule("forward", [way, syn.clone(), clamp.clone()]);
        }
    }
}

fn own_sources(port: &EgressPort, op: &str) -> Vec<Value> {
    let six = matches(op, field("ip6", "saddr"), prefix6(port.prefix));
    std::iter::once(six).chain(port.ipv4.map(|block| matches(op, field("ip", "saddr"), prefix4(block)))).collect()
}

fn is_local(end: &str) -> Value {
    matches("==", json!({"fib": {"result": "type", "flags": [end]}}), json!("local"))
}

fn ct_mark() -> Value {
    json!({"ct": {"key": "mark"}})
}

fn set(key: Value, value: Value) -> Value {
    json!({"mangle": {"key": key, "value": value}})
}
