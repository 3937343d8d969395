//! Nodes, peers, sites.

use vdc_api::{
    Connected, IssuedList, LinkState, LinkView, NodeList, NodeRevoked, NodeView, PathKind, PathView, PeerList,
    PeerView, RecordView, SiteList, Standing,
};

use super::table::{Cell, Table, or_none};
use super::{Show, facts, human, short, status};
use crate::terminal::{Paint, Style};

/// `direct 203.0.113.7:7301`, `relay 198.51.100.4:443 by paris1`.
pub(crate) fn path(path: &PathView) -> String {
    let kind = match path.kind {
        PathKind::Lan => "lan",
        PathKind::Direct => "direct",
        PathKind::Relay => "relay",
    };
    let relay = path.relay.as_ref().map(|relay| format!(" by {relay}")).unwrap_or_default();
    format!("{kind} {}{relay}", path.endpoint)
}

pub(super) fn path_cell(local: bool, link: Option<&LinkView>) -> Cell {
    match link {
        None if local => Cell::new("this node").paint(Paint::Dim),
        None => Cell::new(super::table::NONE).paint(Paint::Dim),
        Some(LinkView { state: LinkState::Active, path: Some(used), .. }) => {
            let paint = if used.kind == PathKind::Relay { Paint::Warn } else { Paint::Good };
            Cell::new(path(used)).paint(paint)
        }
        Some(link) => {
            let (state, paint) = link_state(link.state);
            Cell::new(state).paint(paint)
        }
    }
}

fn link_state(state: LinkState) -> (&'static str, Paint) {
    match state {
        LinkState::Active => ("active", Paint::Good),
        LinkState::Connecting => ("connecting", Paint::Warn),
        LinkState::Idle => ("idle", Paint::Dim),
        LinkState::Unreachable => ("unreachable", Paint::Bad),
    }
}

fn standing_text(standing: Standing) -> &'static str {
    match standing {
        Standing::Current => "current",
        Standing::Grace => "grace",
        Standing::Expired => "expired",
        Standing::Revoked => "revoked",
    }
}

pub(super) fn standing(standing: Standing) -> Cell {
    Cell::new(standing_text(standing)).paint(status::standing_paint(standing))
}

/// `current, renewal due in 21h00m`.
pub(super) fn standing_in_words(node: &NodeView, style: Style) -> String {
    let due = node.membership.renewal_due_s;
    let span = human::age_s(due.unsigned_abs());
    let ended = node.membership.ended_because.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let when = match node.standing {
        Standing::Current => format!(", renewal due in {span}"),
        Standing::Grace => format!(", renewal overdue by {span}, reachable until {}", node.membership.reachable_until),
        Standing::Expired => format!(", renewal overdue by {span}"),
        Standing::Revoked => ended,
    };
    format!("{}{when}", style.paint(status::standing_paint(node.standing), standing_text(node.standing)))
}

/// `member 0707070707070707, number 7 by paris1.paris`.
pub(super) fn record(record: &RecordView) -> String {
    format!("{} {}, number {} by {}", record.kind, record.hash, record.number, record.issuer)
}

impl Show for NodeList {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&["NODE", "SITE", "STANDING", "ROLES", "LABELS", "IPV4", "IPV6", "KEY"]);
        for node in &self.nodes {
            let name = if node.local { format!("{} *", node.name) } else { node.name.clone() };
            table.row([
                name.into(),
                node.site.as_str().into(),
                standing(node.standing),
                or_none(some_list(&node.roles), |roles| roles.join(",")),
                or_none(some_list(&node.labels), |labels| labels.join(",")),
                or_none(node.addresses.ipv4.clone(), |address| address),
                node.addresses.ipv6.as_str().into(),
                short(&node.key).into(),
            ]);
        }
        table.render_or("no nodes", style)
    }
}

fn some_list(list: &[String]) -> Option<&[String]> {
    Some(list).filter(|list| !list.is_empty())
}

impl Show for NodeView {
    fn show(&self, style: Style) -> String {
        let membership = &self.membership;
        let mut lines = vec![
            ("site", self.site.clone()),
            ("standing", standing_in_words(self, style)),
            ("roles", self.roles.join(", ")),
            ("labels", self.labels.join(", ")),
            ("ipv6", self.addresses.ipv6.clone()),
            ("ipv4", self.addresses.ipv4.clone().unwrap_or_default()),
            ("infra", self.addresses.infra.clone()),
            ("exposed", self.exposed.join(" ")),
            ("contacts", self.contacts.join(" ")),
            ("key", self.key.clone()),
            ("ephemeral", if membership.ephemeral { "yes, no grace after the deadline".into() } else { String::new() }),
            ("member", record(&membership.record)),
            ("grant", membership.grant.as_ref().map(record).unwrap_or_default()),
            ("ended by", membership.tombstone.as_ref().map(record).unwrap_or_default()),
        ];
        if let Some(link) = &self.link {
            lines.extend(link_facts(link, style));
        }
        let title = style.paint(Paint::Strong, &self.fqdn);
        let local = if self.local { "  this node" } else { "" };
        format!("{title}{local}\n{}", facts(&lines, style))
    }
}

fn link_facts(link: &LinkView, style: Style) -> Vec<(&'static str, String)> {
    let (state, paint) = link_state(link.state);
    let reason = link.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let ago = |age: Option<u64>| age.map(|age| format!("{} ago", human::age_ms(age))).unwrap_or_default();
    let control = link.control.as_ref().map(|control| {
        let version = control.version.as_ref().map(|version| format!(", meshd {version}")).unwrap_or_default();
        let clock = control.clock_offset_ms.map(|ms| format!(", {}", human::clock_offset(ms))).unwrap_or_default();
        format!("{} {}, open for {}{version}{clock}", control.transport, control.address, human::age_s(control.age_s))
    });
    vec![
        ("link", format!("{}{reason}", style.paint(paint, state))),
        ("path", link.path.as_ref().map(path).unwrap_or_default()),
        ("rtt", link.rtt_ms.map(human::rtt).unwrap_or_default()),
        ("handshake", ago(link.handshake_age_ms)),
        ("last heard", ago(link.received_age_ms)),
        ("traffic", format!("{} sent, {} received", human::bytes(link.bytes_sent), human::bytes(link.bytes_received))),
        ("control", control.unwrap_or_default()),
    ]
}

impl Show for PeerList {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&[
            "PEER",
            "SITE",
            "STANDING",
            "PATH",
            ">RTT",
            ">HANDSHAKE",
            ">HEARD",
            ">SENT",
            ">RECEIVED",
            "CONTROL",
        ]);
        for peer in &self.peers {
            let link = &peer.link;
            table.row([
                peer.node.as_str().into(),
                peer.site.as_str().into(),
                standing(peer.standing),
                path_cell(false, Some(link)),
                or_none(link.rtt_ms, human::rtt),
                or_none(link.handshake_age_ms, human::age_ms),
                or_none(link.received_age_ms, human::age_ms),
                human::bytes(link.bytes_sent).into(),
                human::bytes(link.bytes_received).into(),
                or_none(link.control.as_ref(), |control| format!("{} {}", control.transport, control.address)),
            ]);
        }
        table.render_or("no peers: this node is alone in the VDC", style)
    }
}

/// One peer with its candidates.
pub(crate) fn peer(peer: &PeerView, style: Style) -> String {
    let mut lines = vec![
        ("standing", style.paint(status::standing_paint(peer.standing), standing_text(peer.standing))),
        ("key", peer.key.clone()),
    ];
    lines.extend(link_facts(&peer.link, style));
    let title = style.paint(Paint::Strong, &format!("{}.{}", peer.node, peer.site));
    let mut table = Table::new(&["CANDIDATE", "KIND", ">RTT", "SOURCE", ""]);
    for candidate in &peer.candidates {
        table.row([
            candidate.endpoint.as_str().into(),
            match candidate.kind {
                PathKind::Lan => "lan",
                PathKind::Direct => "direct",
                PathKind::Relay => "relay",
            }
            .into(),
            or_none(candidate.rtt_ms, human::rtt),
            candidate.source.as_str().into(),
            Cell::new(if candidate.in_use { "in use" } else { "" }).paint(Paint::Good),
        ]);
    }
    format!("{title}\n{}\n{}", facts(&lines, style), table.render_or("no candidate addresses", style))
}

impl Show for NodeRevoked {
    fn show(&self, style: Style) -> String {
        let name = style.paint(Paint::Strong, &format!("{}.{}", self.node, self.site));
        let told = format!("{} of {}", self.confirmed, human::count(u64::from(self.members), "member"));
        let mut text = format!("revoked {name}\n");
        text.push_str(&facts(&[("record", record(&self.record)), ("confirmed", told)], style));
        if !self.unconfirmed.is_empty() {
            text.push_str(&format!(
                "{} not told yet: {}; they learn it from the first member they meet\n",
                style.paint(Paint::Warn, "warning:"),
                self.unconfirmed.join(", ")
            ));
        }
        text.push_str(&void(&self.void, "members void and cut off with it", style));
        self.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
        text
    }
}

/// Members whose record does not count.
fn void(members: &[String], verb: &str, style: Style) -> String {
    if members.is_empty() {
        return String::new();
    }
    format!("{} {verb}: {}\n", style.paint(Paint::Warn, "warning:"), members.join(", "))
}

impl Show for IssuedList {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&[">NUMBER", "KIND", "SUBJECT", "DATE", "RECORD", ""]);
        for one in &self.records {
            let fate = if one.void { Cell::new("void").paint(Paint::Bad) } else { Cell::new("") };
            table.row([
                one.number.to_string().into(),
                one.kind.as_str().into(),
                one.subject.as_str().into(),
                or_none(one.at.clone(), |at| at),
                one.hash.as_str().into(),
                fate,
            ]);
        }
        let name = format!("{}.{}", self.node, self.site);
        let mut text = table.render_or(&format!("{name} signed nothing that this node knows of"), style);
        if self.void.is_empty() {
            text.push_str("no member would be void\n");
        }
        text.push_str(&void(&self.void, "members that would be void and cut off", style));
        self.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
        text
    }
}

impl Show for Connected {
    fn show(&self, style: Style) -> String {
        let name = style.paint(Paint::Strong, &format!("{}.{}", self.node, self.site));
        format!("connected to {name} at {} by {} in {}\n", self.address, self.transport, human::age_ms(self.elapsed_ms))
    }
}

impl Show for SiteList {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&["SITE", ">NUMBER", ">NODES", ">REACHED", "REGISTRARS", "IPV4", "IPV6", "CREATED"]);
        for site in &self.sites {
            let registrars = match site.registrars.as_slice() {
                [] => format!("of {}", site.founder),
                names => names.join(", "),
            };
            table.row([
                site.name.as_str().into(),
                site.number.to_string().into(),
                site.nodes.to_string().into(),
                site.nodes_reached.to_string().into(),
                registrars.into(),
                or_none(site.ipv4.clone(), |block| block),
                site.ipv6.as_str().into(),
                site.created_at.as_str().into(),
            ]);
        }
        table.render_or("no sites", style)
    }
}

#[cfg(test)]
mod tests {
    use vdc_api::samples;

    use super::*;

    const PLAIN: fn() -> Style = || Style::new(false);

    #[test]
    fn node_list_marks_this_node() {
        assert_eq!(
            samples::node_list().show(PLAIN()),
            "\
NODE      SITE    STANDING  ROLES                                LABELS  IPV4         IPV6                            KEY
berlin1   berlin  current   host                                 web     10.64.32.17  fd5a:3c71:9e02:2:a1b2:c3d2:0:1  b2b2b2b2
lisbon1   lisbon  grace     host                                 -       10.64.48.17  fd5a:3c71:9e02:3:a1b2:c3d3:0:1  d3d3d3d3
paris1 *  paris   current   host,operator,registrar,admin,owner  -       10.64.16.17  fd5a:3c71:9e02:1:a1b2:c3d1:0:1  1c1c1c1c
"
        );
    }

    #[test]
    fn node_shows_its_records_and_its_link() {
        assert_eq!(
            samples::node_berlin().show(PLAIN()),
            "\
berlin1.berlin.acme.internal
  site        berlin
  standing    current, renewal due in 21h00m
  roles       host
  labels      web
  ipv6        fd5a:3c71:9e02:2:a1b2:c3d2:0:1
  ipv4        10.64.32.17
  infra       fd5a:3c71:9e02:2:a1b2:c3d2::
  exposed     80/tcp 8000-8010/udp
  contacts    203.0.113.7:7300 berlin.example.org:7300
  key         b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2
  member      member 0707070707070707, number 7 by paris1.paris
  link        active
  path        direct 203.0.113.7:7301
  rtt         21.4 ms
  handshake   41s ago
  last heard  800ms ago
  traffic     3.2 MB sent, 512 B received
  control     quic 203.0.113.7:7300, open for 1h01m, meshd 0.1.0, clock agrees
"
        );
        let lisbon = samples::node_lisbon().show(PLAIN());
        assert!(lisbon.contains("grace, renewal overdue by 2h00m, reachable until 2026-03-16T09:00:00Z"), "{lisbon}");
        assert!(lisbon.contains("unreachable: no answer from 2 addresses"), "{lisbon}");
    }

    #[test]
    fn peers_show_paths_and_candidates() {
        let list = samples::peer_list();
        assert_eq!(
            list.show(PLAIN()),
            "\
PEER     SITE    STANDING  PATH                         RTT  HANDSHAKE  HEARD    SENT  RECEIVED  CONTROL
berlin1  berlin  current   direct 203.0.113.7:7301  21.4 ms        41s  800ms  3.2 MB     512 B  quic 203.0.113.7:7300
lisbon1  lisbon  grace     unreachable                    -          -      -     0 B       0 B  -
"
        );
        let text = peer(&list.peers[0], PLAIN());
        assert!(text.contains("\nCANDIDATE           KIND        RTT  SOURCE\n"), "{text}");
        assert!(text.contains("203.0.113.7:7301    direct  21.4 ms  asked      in use\n"), "{text}");
    }

    #[test]
    fn revocation_says_who_was_not_told() {
        assert_eq!(
            samples::node_revoked().show(PLAIN()),
            "\
revoked lisbon1.lisbon
  record     tombstone 0c0c0c0c0c0c0c0c, number 12 by paris1.paris
  confirmed  1 of 2 members
warning: not told yet: berlin2; they learn it from the first member they meet
warning: members void and cut off with it: lisbon3.lisbon
note: 2 open invites of lisbon1 ended with it
"
        );
    }

    #[test]
    fn issued_records_show_what_would_be_void() {
        assert_eq!(
            samples::issued_list().show(PLAIN()),
            "\
NUMBER  KIND    SUBJECT         DATE                  RECORD
     4  member  lisbon2.lisbon  2026-03-01T12:04:00Z  0404040404040404
     7  member  lisbon3.lisbon  2026-03-01T12:07:00Z  0707070707070707  void
warning: members that would be void and cut off: lisbon3.lisbon
"
        );
    }

    #[test]
    fn relayed_path_names_the_relay() {
        let relayed =
            PathView { kind: PathKind::Relay, endpoint: "198.51.100.4:443".into(), relay: Some("paris1".into()) };
        assert_eq!(path(&relayed), "relay 198.51.100.4:443 by paris1");
    }

    #[test]
    fn sites_show_who_admits() {
        let text = samples::site_list().show(PLAIN());
        assert!(text.starts_with("SITE    NUMBER  NODES  REACHED  REGISTRARS  IPV4"), "{text}");
        assert!(text.contains("berlin       2      1        1  of paris    10.64.32.0/20"), "{text}");
    }
}
