//! From what the daemon believes to what the API shows. Pure conversions; every figure with its unit.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use vdc::address::{HOST, INFRA, site_prefix, vdc_prefix};
use vdc::policy::{Flow, Kind, Model, Reason, Subject};
use vdc::record::{Body, ContactAddress, PortRange, Protocol, Role};
use vdc::roster::{BlockView, Clash, MemberView, Roster, SiteView, Standing, View, WorkloadView};
use vdc::{Hash, Home, Key, UnixTime};
use vdc_api as api;

/// The top-level domain of all VDC names (reserved for private use, ICANN 2024).
pub(crate) const TOP_DOMAIN: &str = "internal";

/// How this node reaches a peer, as the data plane tells it.
#[derive(Clone, Debug, Default)]
pub(crate) struct TunnelInfo {
    pub(crate) up: bool,
    pub(crate) connecting: bool,
    pub(crate) path: Option<(api::PathKind, SocketAddr)>,
    pub(crate) rtt: Option<Duration>,
    pub(crate) handshake_age: Option<Duration>,
    pub(crate) received_age: Option<Duration>,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) reason: Option<String>,
    pub(crate) candidates: Vec<CandidateInfo>,
}

/// One endpoint of a peer, as the path agent sees it.
#[derive(Clone, Debug)]
pub(crate) struct CandidateInfo {
    pub(crate) endpoint: SocketAddr,
    pub(crate) kind: api::PathKind,
    pub(crate) rtt: Option<Duration>,
    pub(crate) in_use: bool,
    pub(crate) source: &'static str,
}

/// An open control link.
#[derive(Clone, Debug)]
pub(crate) struct LinkInfo {
    pub(crate) address: String,
    pub(crate) transport: &'static str,
    pub(crate) since: Instant,
    pub(crate) version: Option<String>,
    /// The peer's clock minus ours in seconds, now.
    pub(crate) clock_offset_s: Option<i64>,
}

/// What the conversions look at.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) own: Key,
    /// Whether an owner key of the VDC is kept on this node.
    pub(crate) keeps_owner_key: bool,
    /// Local name of the VDC, also the first label of its domain.
    pub(crate) alias: &'a str,
    pub(crate) view: &'a View,
    pub(crate) roster: &'a Roster,
    pub(crate) now: UnixTime,
    pub(crate) tunnels: &'a BTreeMap<Key, TunnelInfo>,
    pub(crate) links: &'a BTreeMap<Key, LinkInfo>,
}

impl Context<'_> {
    pub(crate) fn domain(&self) -> String {
        format!("{}.{TOP_DOMAIN}", self.alias)
    }

    pub(crate) fn fqdn(&self, member: &MemberView) -> String {
        format!("{}.{}", member.full_name(), self.domain())
    }

    /// A node's name, or the first digits of its key where it is no member.
    pub(crate) fn name_of(&self, key: &Key) -> String {
        self.view.members.get(key).map_or_else(
            || if self.view.owners.contains(key) { format!("owner {}", key.short()) } else { key.short() },
            MemberView::full_name,
        )
    }

    /// `the VDC`, or `site NAME`.
    pub(crate) fn home_words(&self, home: Home) -> String {
        match home {
            Home::Vdc => "the VDC".to_owned(),
            Home::Site(number) => match self.view.sites.get(&number) {
                Some(site) => format!("site {}", site.name),
                None => format!("site {}", number.0),
            },
        }
    }

    pub(crate) fn addresses(&self, member: &MemberView) -> api::Addresses {
        api::Addresses {
            ipv6: member.prefix.address(HOST).to_string(),
            ipv4: host_ipv4(member).map(|address| address.to_string()),
            infra: member.prefix.address(INFRA).to_string(),
            prefix: member.prefix.to_string(),
        }
    }

    pub(crate) fn record(&self, hash: &Hash) -> Option<api::RecordView> {
        let record = self.roster.get(hash)?;
        let kind = match record.body {
            Body::Genesis(_) => "genesis",
            Body::Delegation(_) => "delegation",
            Body::Site(_) => "site",
            Body::Member(_) => "member",
            Body::Grant(_) => "grant",
            Body::Contact(_) => "contact",
            Body::Exposure(_) => "exposure",
            Body::Tombstone(_) => "tombstone",
            Body::Block(_) => "block",
            Body::Policy(_) => "policy",
            Body::Founding(_) => "founding",
        };
        let (issuer, number) = (self.name_of(&record.issuer), record.number);
        Some(api::RecordView { kind: kind.into(), hash: hash.short(), issuer, number })
    }

    /// Like [`Self::record`], for a record that may have left the roster since the view was made.
    pub(crate) fn record_or_hash(&self, kind: &str, hash: &Hash) -> api::RecordView {
        self.record(hash).unwrap_or_else(|| api::RecordView {
            kind: kind.into(),
            hash: hash.short(),
            issuer: "unknown".into(),
            number: 0,
        })
    }

    pub(crate) fn roles(&self, member: &MemberView) -> Vec<String> {
        let mut roles: Vec<&str> = vec!["host"];
        if member.roles.contains(&Role::Operator) {
            roles.push("operator");
        }
        let registrar = |site: &SiteView| site.registrars.iter().any(|r| r.key == member.node && r.active && !r.closed);
        if self.view.sites.values().any(registrar) {
            roles.push("registrar");
        }
        if self.view.is_admin(&member.node) {
            roles.push("admin");
        }
        // Which box keeps an owner key stands in no record: of this one it is known.
        if member.roles.contains(&Role::Owner) || (self.keeps_owner_key && member.node == self.own) {
            roles.push("owner");
        }
        roles.into_iter().map(str::to_owned).collect()
    }

    pub(crate) fn node(&self, member: &MemberView) -> api::NodeView {
        let grace = if member.ephemeral { Duration::ZERO } else { self.view.grace() };
        let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        let tombstone = member.records.tombstone.as_ref();
        let ended = tombstone.and_then(|hash| self.view.tombstones.iter().find(|t| t.record == *hash));
        api::NodeView {
            name: member.name.to_string(),
            site: member.site_name.to_string(),
            fqdn: self.fqdn(member),
            key: member.node.to_string(),
            local: member.node == self.own,
            standing: standing(member.standing),
            roles: self.roles(member),
            labels: member.labels.iter().map(ToString::to_string).collect(),
            addresses: self.addresses(member),
            exposed: member.ports().iter().map(port_text).collect(),
            membership: api::MembershipView {
                serial: member.serial,
                not_before: member.not_before.to_string(),
                not_after: member.not_after.to_string(),
                renewal_due_s: signed(member.not_after.0) - signed(self.now.0),
                reachable_until: member.not_after.plus(grace).to_string(),
                ephemeral: member.ephemeral,
                record: self.record_or_hash("member", &member.records.member),
                grant: member.records.grant.as_ref().and_then(|hash| self.record(hash)),
                tombstone: tombstone.map(|hash| self.record_or_hash("tombstone", hash)),
                ended_because: ended.map(|t| t.reason.clone()).filter(|reason| !reason.is_empty()),
            },
            contacts: member.addresses().iter().map(contact_text).collect(),
            link: (member.node != self.own).then(|| self.link(&member.node)),
        }
    }

    /// All nodes by site and name.
    pub(crate) fn nodes(&self) -> Vec<api::NodeView> {
        let mut nodes: Vec<_> = self.view.members.values().map(|member| self.node(member)).collect();
        nodes.sort_by(|a, b| (&a.site, &a.name).cmp(&(&b.site, &b.name)));
        nodes
    }

    pub(crate) fn link(&self, node: &Key) -> api::LinkView {
        let control = self.links.get(node).map(|link| api::ControlLinkView {
            address: link.address.clone(),
            transport: link.transport.into(),
            age_s: link.since.elapsed().as_secs(),
            version: link.version.clone(),
            clock_offset_ms: link.clock_offset_s.map(|seconds| seconds.saturating_mul(1000)),
        });
        let none = TunnelInfo::default();
        let tunnel = self.tunnels.get(node).unwrap_or(&none);
        let state = match (tunnel.up, tunnel.connecting, &tunnel.reason) {
            (true, _, _) => api::LinkState::Active,
            (false, true, _) => api::LinkState::Connecting,
            (false, false, Some(_)) => api::LinkState::Unreachable,
            (false, false, None) => api::LinkState::Idle,
        };
        api::LinkView {
            state,
            path: tunnel.path.map(path_view),
            rtt_ms: tunnel.rtt.map(milliseconds),
            handshake_age_ms: tunnel.handshake_age.map(whole_milliseconds),
            received_age_ms: tunnel.received_age.map(whole_milliseconds),
            bytes_sent: tunnel.bytes_sent,
            bytes_received: tunnel.bytes_received,
            control,
            reason: tunnel.reason.clone(),
        }
    }

    pub(crate) fn peers(&self) -> api::PeerList {
        let peer = |member: &MemberView| api::PeerView {
            node: member.name.to_string(),
            site: member.site_name.to_string(),
            key: member.node.to_string(),
            standing: standing(member.standing),
            link: self.link(&member.node),
            candidates: self
                .tunnels
                .get(&member.node)
                .map_or(&[][..], |t| &t.candidates)
                .iter()
                .map(candidate)
                .collect(),
        };
        let mut peers: Vec<_> =
            self.view.members.values().filter(|m| m.node != self.own && m.standing.is_reachable()).map(peer).collect();
        peers.sort_by(|a, b| (&a.site, &a.node).cmp(&(&b.site, &b.node)));
        api::PeerList { vdc: self.alias.into(), peers }
    }

    pub(crate) fn site(&self, site: &SiteView) -> api::SiteView {
        let of_site = || self.view.reachable().filter(|m| m.site == site.number);
        // Tunnels are lazy: a control link shows as well that somebody is there.
        let reached = |m: &&MemberView| {
            m.node == self.own || self.links.contains_key(&m.node) || self.tunnels.get(&m.node).is_some_and(|t| t.up)
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        api::SiteView {
            name: site.name.to_string(),
            number: site.number.0,
            ipv6: format!("{}/64", site_prefix(&self.view.vdc, site.number)),
            ipv4: site.ipv4.map(|block| block.to_string()),
            founder: self
                .view
                .sites
                .get(&site.founder)
                .map_or_else(|| site.founder.0.to_string(), |s| s.name.to_string()),
            registrars: site.registrars.iter().filter(|r| !r.closed).map(|r| self.name_of(&r.key)).collect(),
            nodes: count(of_site().count()),
            nodes_reached: count(of_site().filter(reached).count()),
            created_at: site.created.to_string(),
        }
    }

    pub(crate) fn sites(&self) -> Vec<api::SiteView> {
        let mut sites: Vec<_> = self.view.sites.values().map(|site| self.site(site)).collect();
        sites.sort_by(|a, b| a.name.cmp(&b.name));
        sites
    }

    pub(crate) fn vdc(&self, in_use: bool) -> api::VdcView {
        let own = self.view.members.get(&self.own);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        api::VdcView {
            name: self.alias.into(),
            genesis_name: self.view.name.to_string(),
            id: self.view.vdc.to_string(),
            in_use,
            node: own.map_or_else(|| self.own.short(), |m| m.name.to_string()),
            site: own.map_or_else(String::new, |m| m.site_name.to_string()),
            nodes: count(self.view.reachable().count()),
            sites: count(self.view.sites.len()),
            domain: self.domain(),
            ipv6: format!("{}/48", vdc_prefix(&self.view.vdc)),
            ipv4: self.view.ipv4.map(|block| block.to_string()),
            created_at: self.roster.genesis().created.to_string(),
        }
    }

    pub(crate) fn exposure(&self, member: &MemberView) -> api::ExposureView {
        api::ExposureView {
            node: member.name.to_string(),
            site: member.site_name.to_string(),
            fqdn: self.fqdn(member),
            local: member.node == self.own,
            ports: member.ports().iter().map(port_text).collect(),
            workloads: member.workloads.iter().map(|workload| self.workload(member, workload)).collect(),
            record: member.records.exposure.as_ref().and_then(|hash| self.record(hash)),
        }
    }

    fn workload(&self, member: &MemberView, workload: &WorkloadView) -> api::ExposedWorkload {
        let place = if workload.has_short_name { member.site_name.to_string() } else { member.full_name() };
        api::ExposedWorkload {
            name: workload.name.to_string(),
            fqdn: format!("{}.{place}.{}", workload.name, self.domain()),
            ipv6: workload.v6.to_string(),
            ipv4: workload.ipv4.map(|address| address.to_string()),
            ports: workload.ports.iter().map(port_text).collect(),
            labels: workload.labels.iter().map(ToString::to_string).collect(),
        }
    }

    pub(crate) fn block(&self, block: &BlockView) -> api::BlockView {
        let matches = &block.block.matches;
        api::BlockView {
            id: block.block.id.to_string(),
            from: matches.from.map(|key| self.name_of(&key)),
            to: matches.to.map(|key| self.name_of(&key)),
            port: matches.ports.as_ref().map(port_text),
            reason: block.block.reason.clone(),
            lifted: block.block.lifted,
            record: self.record_or_hash("block", &block.record),
        }
    }

    /// Contradictions among the records, one phrase each.
    pub(crate) fn conflicts(&self) -> Vec<String> {
        let mut conflicts: Vec<String> = self.view.clashes.iter().map(|clash| self.clash(clash)).collect();
        conflicts.extend(self.roster.conflicts().map(|c| {
            format!(
                "{} signed two records of one serial; {} is kept, {} dropped",
                self.name_of(&c.issuer),
                c.kept.short(),
                c.dropped.short()
            )
        }));
        conflicts
    }

    fn clash(&self, clash: &Clash) -> String {
        let site_name =
            |number| self.view.sites.get(number).map_or_else(|| "?".to_owned(), |s: &SiteView| s.name.to_string());
        match clash {
            Clash::NodeName { site, name, keeps, other, shown } => format!(
                "two nodes of site {} are called {name}: {} keeps the name, {} is shown as {shown}",
                site_name(site),
                keeps.short(),
                other.short()
            ),
            Clash::NodePrefix { keeps, other, .. } => {
                format!("{} and {} have the same prefix; the second got the next one", keeps.short(), other.short())
            }
            Clash::NodeIpv4 { block, other, .. } => {
                format!(
                    "the IPv4 block {block} of {} is taken or not its site's; it has no IPv4 address",
                    other.short()
                )
            }
            Clash::NodeSite { node, chosen, other } => format!(
                "registrars of {} and {} both claim {}; it counts as {}",
                site_name(chosen),
                site_name(other),
                node.short(),
                site_name(chosen)
            ),
            Clash::WgKey { keeps, other } => {
                format!(
                    "{} and {} have the same WireGuard key; the second cannot be reached",
                    keeps.short(),
                    other.short()
                )
            }
            Clash::SiteName { name, shown, .. } => {
                format!("two sites are called {name}; the second is shown as {shown}")
            }
            Clash::SiteIpv4 { keeps, other } => format!(
                "the IPv4 blocks of sites {} and {} overlap; the second has none",
                site_name(keeps),
                site_name(other)
            ),
            Clash::WorkloadName { site, name, keeps, other } => {
                let (site, keeps, other) = (site_name(site), self.name_of(keeps), self.name_of(other));
                format!("{name}.{site} is {keeps}'s; the workload of {other} is {name}.{other} only")
            }
            Clash::WorkloadIpv4 { node, name, address } => {
                let node = self.name_of(node);
                format!("{address} of {name}.{node} is not its node's to give; it has no IPv4 address")
            }
            Clash::Policy { version, .. } => {
                format!("two different policies of version {version} exist; sign a new one to settle it")
            }
            Clash::Founding { home, group, founder, other, other_founder, .. } => {
                let (keeps, loses) = (self.name_of(founder), self.name_of(other_founder));
                told_to_found(&self.home_words(*home), (&keeps, group), (&loses, other))
            }
        }
    }

    fn party(&self, asked: &str, subject: Option<&Subject>, address: Option<IpAddr>) -> api::PartyView {
        let host = subject.filter(|s| s.is_host()).and_then(|s| self.view.members.get(&s.node));
        let workload = match subject.map(|s| &s.kind) {
            Some(Kind::Workload { name, .. }) => name.as_ref().map(ToString::to_string),
            Some(Kind::Host | Kind::Unlisted) | None => None,
        };
        api::PartyView {
            asked: asked.into(),
            node: subject.map(|s| s.name.to_string()),
            kind: if subject.is_none_or(Subject::is_host) { api::PartyKind::Host } else { api::PartyKind::Workload },
            workload,
            site: subject.map(|s| s.site.to_string()),
            address: address.map(|a| a.to_string()),
            roles: host.map(|m| self.roles(m)).unwrap_or_default(),
            labels: subject.map(|s| s.labels.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        }
    }

    /// Judges a flow and says why, record by record.
    pub(crate) fn explain(
        &self,
        model: &Model,
        source: (&str, IpAddr),
        destination: (&str, IpAddr),
        flow: (&api::FlowSpec, Flow),
    ) -> api::Explanation {
        let decision = model.evaluate(source.1, destination.1, flow.1);
        let (from, to) = (model.subject_at(source.1), model.subject_at(destination.1));
        let (from, to) = (from.as_deref(), to.as_deref());
        let mut steps = vec![];
        let mut step = |title: &str, verdict, detail: String, record: Option<api::RecordView>| {
            steps.push(api::ExplainStep { title: title.into(), verdict, detail, record });
        };
        use api::StepVerdict::{Allow, Continue, Deny};
        for (title, party, (_, address)) in [("source", from, source), ("destination", to, destination)] {
            match party {
                Some(s) => step(
                    title,
                    Continue,
                    format!("{address} is {}", s.full_name()),
                    Some(match (&s.kind, &s.exposure_record) {
                        (Kind::Workload { .. }, Some(exposure)) => self.record_or_hash("exposure", exposure),
                        _ => self.record_or_hash("member", &s.member_record),
                    }),
                ),
                None => step(title, Deny, format!("no reachable member owns {address}"), None),
            }
        }
        let blocked = matches!(decision.reason, Reason::Block { .. });
        if !blocked && from.is_some() && to.is_some() {
            step("block records", Continue, format!("{} active, none matches", model.blocks.len()), None);
        }
        let policy = self.record_or_hash("policy", &model.policy_record);
        let (decided_by, reason, hint) = match &decision.reason {
            Reason::UnknownSource => (None, "the source is no reachable member".to_owned(), None),
            Reason::UnknownDestination => (None, "the destination is no reachable member".to_owned(), None),
            Reason::UnlistedDestination => (
                None,
                "no workload is known at the destination".to_owned(),
                Some("`meshctl expose` lists the workloads that nodes name".to_owned()),
            ),
            Reason::InfraPlane => (None, "infra addresses are open to the nodes' own services only".to_owned(), None),
            Reason::SameHost => (None, "a host's traffic to itself never enters the VDC".to_owned(), None),
            Reason::Block { record, reason, .. } => {
                let record = self.record_or_hash("block", record);
                let why = if reason.is_empty() {
                    "a block record denies it".to_owned()
                } else {
                    format!("blocked: {reason}")
                };
                step("block records", Deny, why.clone(), Some(record.clone()));
                (Some(record), why, Some("`meshctl blocks` lists blocks, `meshctl unblock ID` lifts one".to_owned()))
            }
            Reason::Rule { name, version, exposure, .. } => {
                step("policy", Allow, format!("rule {name:?} of version {version} allows it"), Some(policy.clone()));
                let exposure = exposure.as_ref().map(|hash| self.record_or_hash("exposure", hash));
                let declared =
                    exposure.as_ref().map_or_else(String::new, |_| ", and the destination declared the port".into());
                if exposure.is_some() {
                    step("exposure", Allow, "the destination declared the port".into(), exposure.clone());
                }
                (Some(exposure.unwrap_or(policy)), format!("rule {name:?} allows it{declared}"), None)
            }
            Reason::NoRule { version, undeclared, .. } => {
                step("policy", Deny, format!("no rule of version {version} allows it"), Some(policy.clone()));
                let (why, hint) = if *undeclared {
                    let port = flow.0.to_string();
                    let hint = match to {
                        Some(s) if !s.is_host() => format!("run {} with `--port {port}`", s.full_name()),
                        Some(s) => format!("run `meshctl expose {port}` on {}", s.full_name()),
                        None => format!("run `meshctl expose {port}`"),
                    };
                    ("the destination has not declared the port", Some(hint))
                } else {
                    ("no rule allows it, and what is not allowed is denied", None)
                };
                (Some(policy), why.to_owned(), hint)
            }
        };
        api::Explanation {
            vdc: self.alias.into(),
            allowed: decision.allowed,
            source: self.party(source.0, from, Some(source.1)),
            destination: self.party(destination.0, to, Some(destination.1)),
            flow: flow.0.to_string(),
            decided_by,
            reason,
            steps,
            hint,
        }
    }
}

/// The host's IPv4 address, if the member has a block.
pub(crate) fn host_ipv4(member: &MemberView) -> Option<std::net::Ipv4Addr> {
    member.ipv4.and_then(|block| block.address(HOST))
}

fn path_view((kind, endpoint): (api::PathKind, SocketAddr)) -> api::PathView {
    api::PathView { kind, endpoint: endpoint.to_string(), relay: None }
}

fn candidate(info: &CandidateInfo) -> api::CandidateView {
    api::CandidateView {
        endpoint: info.endpoint.to_string(),
        kind: info.kind,
        rtt_ms: info.rtt.map(milliseconds),
        in_use: info.in_use,
        source: info.source.into(),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    // Whole microseconds: more digits would be noise in a table.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn standing(standing: Standing) -> api::Standing {
    match standing {
        Standing::Current => api::Standing::Current,
        Standing::Grace { .. } => api::Standing::Grace,
        Standing::Expired => api::Standing::Expired,
        Standing::Revoked => api::Standing::Revoked,
    }
}

/// A declared range as the API writes it: `80/tcp`, `8000-8010/udp`.
pub(crate) fn port_text(range: &PortRange) -> String {
    let transport = match range.protocol {
        Protocol::Tcp => api::Transport::Tcp,
        Protocol::Udp => api::Transport::Udp,
    };
    api::PortSpec { transport, first: range.first, last: range.last }.to_string()
}

/// Says of two foundings with one serial which one counts: each is a founder and its group.
fn told_to_found(home: &str, (keeps, group): (&str, &Hash), (loses, other): (&str, &Hash)) -> String {
    let (group, other) = (group.short(), other.short());
    if keeps == loses {
        format!(
            "{keeps} was told twice to found the group of {home}: group {group} counts, because its hash is higher; \
             {other} must not serve"
        )
    } else {
        format!(
            "two nodes were told to found the group of {home}: that of {keeps} counts ({group}), because its hash is \
             higher; that of {loses} must not serve ({other})"
        )
    }
}

/// The inverse of [`port_text`].
pub(crate) fn port_range(spec: api::PortSpec) -> PortRange {
    let protocol = match spec.transport {
        api::Transport::Tcp => Protocol::Tcp,
        api::Transport::Udp => Protocol::Udp,
    };
    PortRange { protocol, first: spec.first, last: spec.last }
}

/// The evaluator's flow of an API text.
pub(crate) fn flow(spec: api::FlowSpec) -> Flow {
    match spec {
        api::FlowSpec::Icmp => Flow::Icmp,
        api::FlowSpec::Port(api::Transport::Tcp, port) => Flow::Port(Protocol::Tcp, port),
        api::FlowSpec::Port(api::Transport::Udp, port) => Flow::Port(Protocol::Udp, port),
    }
}

pub(crate) fn contact_text(address: &ContactAddress) -> String {
    match address {
        ContactAddress::Ip(ip, port) => SocketAddr::new(*ip, *port).to_string(),
        ContactAddress::Dns(name, port) => format!("{name}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_foundings_of_one_home_are_told_apart_in_words() {
        let (nine, four) = (Hash([9; 32]), Hash([4; 32]));
        let text = told_to_found("site berlin", ("berlin1.berlin", &nine), ("berlin2.berlin", &four));
        let expected = "two nodes were told to found the group of site berlin: that of berlin1.berlin counts \
                        (0909090909090909), because its hash is higher; that of berlin2.berlin must not serve \
                        (0404040404040404)";
        assert_eq!(text, expected);
        let text = told_to_found("the VDC", ("paris1.paris", &nine), ("paris1.paris", &four));
        let expected = "paris1.paris was told twice to found the group of the VDC: group 0909090909090909 counts, \
                        because its hash is higher; 0404040404040404 must not serve";
        assert_eq!(text, expected);
    }
}
