//! `status`.

use vdc_api::{
    DnsState, DnsView, LinkState, NotServedView, Problem, ProblemCode, ProblemSeverity, Standing, Status, VdcStatus,
};

use super::table::{Cell, Table, or_none};
use super::{Show, facts, human, network};
use crate::terminal::{Paint, Style};

impl Show for Status {
    fn show(&self, style: Style) -> String {
        let mut text = String::new();
        if self.vdcs.is_empty() && self.not_served.is_empty() {
            text.push_str("this box is in no VDC\n");
            text.push_str(&super::hint(
                "create one with `meshctl vdc create`, or join one with `meshctl join TOKEN`",
                style,
            ));
        }
        for (index, vdc) in self.vdcs.iter().enumerate() {
            if index > 0 {
                text.push('\n');
            }
            text.push_str(&vdc_status(vdc, style));
        }
        if !self.not_served.is_empty() {
            if !self.vdcs.is_empty() {
                text.push('\n');
            }
            text.push_str(&not_served(&self.not_served, style));
        }
        // Those that are not served were just shown.
        let of_node = self.problems.iter().filter(|problem| problem.code != ProblemCode::VdcNotServed);
        let of_node: Vec<Problem> = of_node.cloned().collect();
        if !of_node.is_empty() {
            text.push_str(&format!("\n{}\n", style.paint(Paint::Strong, "this node")));
            text.push_str(&problems(&of_node, style));
        }
        let (version, uptime) = (&self.version.daemon, human::age_s(self.uptime_s));
        text.push_str(&format!("\n{}\n", style.paint(Paint::Dim, &format!("meshd {version}, up {uptime}"))));
        text
    }
}

/// VDCs that could not be brought up: why, and what happens next.
pub(super) fn not_served(list: &[NotServedView], style: Style) -> String {
    let mut text = String::new();
    for (index, vdc) in list.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        let title = style.paint(Paint::Strong, &vdc.name);
        text.push_str(&format!("{title}  {}\n", style.paint(Paint::Bad, "not served")));
        let reason = std::iter::once(&vdc.reason).chain(&vdc.causes).cloned().collect::<Vec<_>>().join(": ");
        let retry = if vdc.retry_s == 0 { "now".to_owned() } else { format!("in {}", human::age_s(vdc.retry_s)) };
        text.push_str(&facts(
            &[("reason", reason), ("since", vdc.since.clone()), ("next try", format!("{retry}, by itself"))],
            style,
        ));
        text.extend(vdc.hint.as_ref().map(|hint| format!("  {}", super::hint(hint, style))));
    }
    text
}

fn vdc_status(status: &VdcStatus, style: Style) -> String {
    let VdcStatus { vdc, node, roster, listen, data_path, .. } = status;
    let mut title = vec![style.paint(Paint::Strong, &vdc.name), vdc.ipv6.clone()];
    title.extend(vdc.ipv4.clone());
    if vdc.genesis_name != vdc.name {
        title.push(format!("({} elsewhere)", vdc.genesis_name));
    }
    if vdc.in_use {
        title.push("in use".to_owned());
    }
    let mut text = format!("{}\n", title.join("  "));

    let age = roster.age_s.map_or_else(
        || "not compared with any member yet".to_owned(),
        |age| {
            format!("compared with {} {} ago", roster.compared_with.as_deref().unwrap_or("a member"), human::age_s(age))
        },
    );
    let (records, size) = (human::count(roster.records, "record"), human::bytes(roster.size_bytes));
    let mut ports = vec![format!("data {}", listen.data_port), format!("control {}", listen.control_port)];
    ports.extend(listen.door_port.map(|port| format!("door {port}")));
    if !listen.observed.is_empty() {
        ports.push(format!("seen as {}", listen.observed.join(", ")));
    }
    let offload = |on, name: &str| format!("{name} {}", if on { "on" } else { "off" });
    let offloads = [
        offload(data_path.udp_gso, "UDP GSO"),
        offload(data_path.udp_gro, "UDP GRO"),
        offload(data_path.tun_offload, "TUN offload"),
    ];
    let (device, namespace, mtu) = (&data_path.device, &data_path.namespace, data_path.mtu_bytes);
    let mut addresses = vec![node.addresses.ipv6.clone()];
    addresses.extend(node.addresses.ipv4.clone());
    text.push_str(&facts(
        &[
            ("node", format!("{} ({})", node.fqdn, node.roles.join(", "))),
            ("standing", network::standing_in_words(node, style)),
            ("addresses", addresses.join("  ")),
            ("infra", node.addresses.infra.clone()),
            ("exposed", node.exposed.join(" ")),
            ("listens", ports.join(", ")),
            ("view", format!("{records} ({size}), policy version {}, {age}", roster.policy_version)),
            ("names", dns(&status.dns)),
            ("data path", format!("{device} in {namespace}, MTU {mtu}, {}", offloads.join(", "))),
        ],
        style,
    ));
    text.push_str(&format!("\n{}\n{}", nodes(status, style), sites(status, style)));
    if !status.problems.is_empty() || !roster.conflicts.is_empty() {
        text.push('\n');
    }
    text.push_str(&problems(&status.problems, style));
    for conflict in &roster.conflicts {
        text.push_str(&format!("{} {conflict}\n", style.paint(Paint::Warn, "conflict:")));
    }
    text
}

fn dns(dns: &DnsView) -> String {
    let how = match dns.state {
        DnsState::Resolved => "resolved by this host".to_owned(),
        DnsState::Stub => match &dns.server {
            Some(server) => format!("served at {server}, not resolved by this host"),
            None => "not resolved by this host".to_owned(),
        },
        DnsState::Off => "off".to_owned(),
    };
    let detail = dns.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
    format!("{} {how}{detail}", dns.domain)
}

fn nodes(status: &VdcStatus, style: Style) -> String {
    let mut table =
        Table::new(&["NODE", "SITE", "STANDING", "PATH", ">RTT", ">HANDSHAKE", ">SENT", ">RECEIVED", "ADDRESS"]);
    for node in &status.nodes {
        let link = node.link.as_ref();
        // A link that never carried anything shows no zeros.
        let used = link.filter(|link| link.state == LinkState::Active || link.bytes_sent + link.bytes_received > 0);
        table.row([
            node.name.as_str().into(),
            node.site.as_str().into(),
            network::standing(node.standing),
            network::path_cell(node.local, link),
            or_none(link.and_then(|link| link.rtt_ms), human::rtt),
            or_none(link.and_then(|link| link.handshake_age_ms), human::age_ms),
            or_none(used, |link| human::bytes(link.bytes_sent)),
            or_none(used, |link| human::bytes(link.bytes_received)),
            node.addresses.ipv4.as_deref().unwrap_or(&node.addresses.ipv6).into(),
        ]);
    }
    table.render(style)
}

fn sites(status: &VdcStatus, style: Style) -> String {
    let mut table = Table::new(&["SITE", ">NODES", ">REACHED", "REGISTRARS"]);
    for site in &status.sites {
        let registrars = match site.registrars.as_slice() {
            [] => Cell::new(format!("of {}", site.founder)),
            names => Cell::new(names.join(", ")),
        };
        let reached = Cell::new(site.nodes_reached.to_string());
        let reached = if site.nodes_reached < site.nodes { reached.paint(Paint::Warn) } else { reached };
        table.row([site.name.as_str().into(), site.nodes.to_string().into(), reached, registrars]);
    }
    table.render(style)
}

/// Problems with their hints, worst first.
pub(super) fn problems(problems: &[Problem], style: Style) -> String {
    let mut sorted: Vec<&Problem> = problems.iter().collect();
    sorted.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    let mut text = String::new();
    for problem in sorted {
        let (label, paint) = match problem.severity {
            ProblemSeverity::Degraded => ("degraded:", Paint::Bad),
            ProblemSeverity::Warning => ("warning:", Paint::Warn),
        };
        text.push_str(&format!("{} {}\n", style.paint(paint, label), problem.message));
        if let Some(hint) = &problem.hint {
            text.push_str(&format!("  {}", super::hint(hint, style)));
        }
    }
    text
}

/// The colour of a standing.
pub(super) fn standing_paint(standing: Standing) -> Paint {
    match standing {
        Standing::Current => Paint::Good,
        Standing::Grace => Paint::Warn,
        Standing::Expired | Standing::Revoked => Paint::Bad,
    }
}

#[cfg(test)]
mod tests {
    use vdc_api::samples;

    use super::*;

    #[test]
    fn status_shows_everything_at_a_glance() {
        assert_eq!(
            samples::status().show(Style::new(false)),
            "\
acme  fd5a:3c71:9e02::/48  10.64.0.0/12  in use
  node       paris1.paris.acme.internal (host, operator, registrar, admin, owner)
  standing   current, renewal due in 21h00m
  addresses  fd5a:3c71:9e02:1:a1b2:c3d1:0:1  10.64.16.17
  infra      fd5a:3c71:9e02:1:a1b2:c3d1::
  listens    data 7301, control 7300, door 7302, seen as 198.51.100.4:7301
  view       17 records (9.4 kB), policy version 1, compared with berlin1 12s ago
  names      acme.internal resolved by this host
  data path  mesh0 in meshd-acme, MTU 1280, UDP GSO on, UDP GRO on, TUN offload off

NODE     SITE    STANDING  PATH                         RTT  HANDSHAKE    SENT  RECEIVED  ADDRESS
berlin1  berlin  current   direct 203.0.113.7:7301  21.4 ms        41s  3.2 MB     512 B  10.64.32.17
lisbon1  lisbon  grace     unreachable                    -          -       -         -  10.64.48.17
paris1   paris   current   this node                      -          -       -         -  10.64.16.17

SITE    NODES  REACHED  REGISTRARS
berlin      1        1  of paris
lisbon      1        0  lisbon1
paris       1        1  paris1

warning: nobody outside this site can open a connection to this node
  hint: forward UDP port 7300 to this node at one site, or give it a public IPv6 address
conflict: two nodes of berlin are named berlin2

this node
degraded: this node's clock is 412 s behind its peers
  hint: set the clock, for example with `timedatectl set-ntp true`

meshd 0.1.0, up 2h05m
"
        );
    }

    #[test]
    fn status_without_a_vdc_says_what_to_do() {
        let status = Status { vdcs: vec![], problems: vec![], ..samples::status() };
        let text = status.show(Style::new(false));
        assert!(text.starts_with("this box is in no VDC\nhint: create one"), "{text}");
    }

    #[test]
    fn vdc_that_is_not_served_is_shown_with_reason_and_hint() {
        let mut status = Status { vdcs: vec![], not_served: vec![samples::not_served()], ..samples::status() };
        status.problems = vec![Problem { code: ProblemCode::VdcNotServed, ..status.problems[0].clone() }];
        assert_eq!(
            status.show(Style::new(false)),
            "\
old  not served
  reason    the control plane cannot listen: UDP port 4722 is in use
  since     2027-01-15T07:58:00Z
  next try  in 4s, by itself
  hint: stop the other program, or change network.control_port in /etc/meshd/meshd.toml

meshd 0.1.0, up 2h05m
"
        );
        let list = vdc_api::VdcList { vdcs: vec![], not_served: status.not_served };
        assert!(list.show(Style::new(false)).starts_with("old  not served\n  reason "));
    }

    #[test]
    fn unconnected_node_says_so() {
        let mut status = samples::status();
        let vdc = &mut status.vdcs[0];
        vdc.roster.age_s = None;
        vdc.dns.state = DnsState::Stub;
        vdc.vdc.name = "customer-a".into();
        let text = status.show(Style::new(false));
        assert!(text.contains("not compared with any member yet"), "{text}");
        assert!(text.contains("not resolved by this host"), "{text}");
        assert!(
            text.starts_with("customer-a  fd5a:3c71:9e02::/48  10.64.0.0/12  (acme elsewhere)  in use\n"),
            "{text}"
        );
    }
}
