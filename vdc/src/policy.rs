//! Policy: who may reach what in a VDC. Default deny; rules only allow; block records only deny and come first.
//!
//! [`Document`] is what an admin signs. [`Model`] is what a node knows when it judges: the document, who everybody is and
//! which ports they declared, and the active blocks. [`Model::evaluate`] is the reference evaluator: `explain` prints its
//! [`Decision`], and the compiled kernel tables must agree with it flow by flow.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use minicbor::{Decode, Encode};

use crate::address::{HOST, INFRA};
use crate::record::{BlockMatch, PortRange, Protocol, Role};
use crate::{Hash, Ipv4Block, Key, Name, NodePrefix};

/// A policy document.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Document {
    /// Days that a member stays reachable after its renewal deadline.
    #[n(0)]
    pub grace_days: u16,
    /// What is allowed, at most [`Document::RULES_MAX`]; everything else is denied.
    #[n(1)]
    pub rules: Vec<Rule>,
}

impl Document {
    pub const RULES_MAX: usize = 256;

    /// How long a member stays reachable after its renewal deadline.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.grace_days) * 86_400)
    }

    /// Whether the document keeps its limits.
    #[must_use]
    pub fn is_within_limits(&self) -> bool {
        let lists_short = |s: &Selector| s.sites.len() <= 64 && s.roles.len() <= 16 && s.labels.len() <= 64;
        let ports_valid = |s: &Service| !matches!(s, Service::Ports(p) if p.last < p.first);
        self.rules.len() <= Self::RULES_MAX
            && self.rules.iter().all(|r| {
                lists_short(&r.from)
                    && lists_short(&r.to)
                    && r.services.len() <= 64
                    && r.services.iter().all(ports_valid)
            })
    }
}

impl Default for Document {
    /// Version 1 of every VDC: members may reach declared ports and ICMP, nothing else.
    fn default() -> Self {
        let members = Rule {
            name: Name::new("members").expect("a literal label"),
            from: Selector::default(),
            to: Selector::default(),
            services: vec![Service::Icmp, Service::Declared],
        };
        Self { grace_days: 14, rules: vec![members] }
    }
}

/// One allowance.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Rule {
    #[n(0)]
    pub name: Name,
    #[n(1)]
    pub from: Selector,
    #[n(2)]
    pub to: Selector,
    #[n(3)]
    pub services: Vec<Service>,
}

/// Which subjects a rule means. Each non-empty list must contain one of the subject's; the empty selector is everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Selector {
    #[n(0)]
    pub sites: Vec<Name>,
    #[n(1)]
    pub roles: Vec<Role>,
    #[n(2)]
    pub labels: Vec<Name>,
}

impl Selector {
    #[must_use]
    pub fn matches(&self, subject: &Subject) -> bool {
        (self.sites.is_empty() || self.sites.contains(&subject.site))
            && (self.roles.is_empty() || self.roles.iter().any(|r| subject.roles.contains(r)))
            && (self.labels.is_empty() || self.labels.iter().any(|l| subject.labels.contains(l)))
    }
}

/// What a rule opens at its `to` side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(flat)]
pub enum Service {
    /// ICMP and ICMPv6 echo and errors.
    #[n(0)]
    Icmp,
    /// The ports that the destination declared itself (`meshctl expose`).
    #[n(1)]
    Declared,
    #[n(2)]
    Ports(#[n(0)] PortRange),
    /// Every protocol and port.
    #[n(3)]
    Any,
}

/// What of a node a [`Subject`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its host-as-a-tenant.
    Host,
    /// A workload that its exposure record names, or that only the node itself knows: then it may be without a name.
    Workload { name: Option<Name>, v6: Ipv6Addr, ipv4: Option<Ipv4Addr> },
    /// Whatever is at an address of the node that is none of the above. May open flows, and nobody may open one to it.
    Unlisted,
}

/// One party of a flow: a node's host-as-a-tenant or a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub node: Key,
    pub kind: Kind,
    /// The node's name.
    pub name: Name,
    pub site: Name,
    /// Those of a host; a workload has none.
    pub roles: Vec<Role>,
    pub labels: Vec<Name>,
    /// The node's, whatever the kind.
    pub prefix: NodePrefix,
    /// The node's, whatever the kind.
    pub ipv4: Option<Ipv4Block>,
    /// The subject's own ports.
    pub declared: Vec<PortRange>,
    /// The member record that says who this is.
    pub member_record: Hash,
    /// The exposure record that declares the ports, if there is one.
    pub exposure_record: Option<Hash>,
}

impl Subject {
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.kind == Kind::Host
    }

    /// Whether the subject (not the node's infra plane) owns `address`.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        match (&self.kind, address) {
            (Kind::Host, IpAddr::V6(v6)) => self.prefix.address(HOST) == v6,
            (Kind::Host, IpAddr::V4(v4)) => self.ipv4.and_then(|block| block.address(HOST)) == Some(v4),
            (Kind::Workload { v6: own, .. }, IpAddr::V6(v6)) => *own == v6,
            (Kind::Workload { ipv4: own, .. }, IpAddr::V4(v4)) => *own == Some(v4),
            (Kind::Unlisted, _) => false,
        }
    }

    /// `NODE.SITE`, `WORKLOAD.NODE.SITE`, or what else can be said.
    #[must_use]
    pub fn full_name(&self) -> String {
        let node = format!("{}.{}", self.name, self.site);
        match &self.kind {
            Kind::Host => node,
            Kind::Workload { name: Some(name), .. } => format!("{name}.{node}"),
            Kind::Workload { name: None, .. } | Kind::Unlisted => format!("a workload of {node}"),
        }
    }

    /// A workload of the node: of the node's site, never with its roles; labels must be the node's to give.
    #[must_use]
    pub fn workload(
        &self,
        name: Option<Name>,
        (v6, ipv4): (Ipv6Addr, Option<Ipv4Addr>),
        labels: Vec<Name>,
        declared: Vec<PortRange>,
    ) -> Self {
        let exposure_record = self.exposure_record.filter(|_| name.is_some());
        let kind = Kind::Workload { name, v6, ipv4 };
        Self { kind, roles: vec![], labels, declared, exposure_record, ..self.clone() }
    }

    /// The party behind an address of the node that is neither its host's nor that of a workload known here.
    #[must_use]
    pub fn unlisted(&self) -> Self {
        let (kind, exposure_record) = (Kind::Unlisted, None);
        Self { kind, roles: vec![], labels: vec![], declared: vec![], exposure_record, ..self.clone() }
    }

    /// Whether an address is in the node's prefix or block, the infra plane's left out.
    fn holds(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V6(v6) => self.prefix.contains(v6) && !is_infra(address),
            IpAddr::V4(v4) => self.ipv4.is_some_and(|block| block.contains(v4)),
        }
    }
}

/// An active block record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveBlock {
    pub matches: BlockMatch,
    pub record: Hash,
    pub issuer: Key,
    pub reason: String,
}

/// Everything that decides about a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub document: Document,
    /// The policy record that holds the document.
    pub policy_record: Hash,
    pub policy_version: u64,
    /// Reachable members only, ascending by node key: each node's host, then its workloads.
    pub subjects: Vec<Subject>,
    pub blocks: Vec<ActiveBlock>,
}

/// What a packet asks for at its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flow {
    Icmp,
    Port(Protocol, u16),
    /// Another IP protocol; only [`Service::Any`] opens it.
    Other(u8),
}

/// Why a flow is allowed or denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No reachable member owns the source address.
    UnknownSource,
    /// No reachable member owns the destination address.
    UnknownDestination,
    /// The destination is an address of a node at which no workload is known.
    UnlistedDestination,
    /// The infra plane is not expressible in user policy.
    InfraPlane,
    /// A block record denies it.
    Block { record: Hash, issuer: Key, reason: String },
    /// A rule allows it; `exposure` is the record that declared the port, where that mattered.
    Rule { index: usize, name: Name, policy: Hash, version: u64, exposure: Option<Hash> },
    /// No rule allows it. `undeclared` if a rule would, had the destination declared the port.
    NoRule { policy: Hash, version: u64, undeclared: bool },
    /// Traffic of a host to itself never enters the VDC.
    SameHost,
}

/// The verdict on one flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: Reason,
}

impl Decision {
    fn allow(reason: Reason) -> Self {
        Self { allowed: true, reason }
    }

    fn deny(reason: Reason) -> Self {
        Self { allowed: false, reason }
    }
}

impl Model {
    /// The subject at an overlay address: its owner, or the unlisted workloads of the node that it belongs to.
    #[must_use]
    pub fn subject_at(&self, address: IpAddr) -> Option<Cow<'_, Subject>> {
        let owner = self.subjects.iter().find(|s| s.owns(address)).map(Cow::Borrowed);
        owner.or_else(|| self.hosts().find(|s| s.holds(address)).map(|host| Cow::Owned(host.unlisted())))
    }

    /// The hosts among the subjects.
    pub fn hosts(&self) -> impl Iterator<Item = &Subject> {
        self.subjects.iter().filter(|s| s.is_host())
    }

    /// Judges a new flow from `source` to `destination`.
    #[must_use]
    pub fn evaluate(&self, source: IpAddr, destination: IpAddr, flow: Flow) -> Decision {
        if is_infra(source) || is_infra(destination) {
            return Decision::deny(Reason::InfraPlane);
        }
        let Some(from) = self.subject_at(source) else { return Decision::deny(Reason::UnknownSource) };
        let Some(to) = self.subject_at(destination) else { return Decision::deny(Reason::UnknownDestination) };
        self.judge(&from, &to, flow)
    }

    /// Judges a new flow between two subjects. Workloads are no more to each other, or to their node's host, than to
    /// anybody else.
    #[must_use]
    pub fn judge(&self, from: &Subject, to: &Subject, flow: Flow) -> Decision {
        if from.node == to.node && from.is_host() && to.is_host() {
            return Decision::allow(Reason::SameHost);
        }
        if let Some(block) = self.blocks.iter().find(|b| block_matches(&b.matches, from, to, flow)) {
            let (record, issuer, reason) = (block.record, block.issuer, block.reason.clone());
            return Decision::deny(Reason::Block { record, issuer, reason });
        }
        if to.kind == Kind::Unlisted {
            return Decision::deny(Reason::UnlistedDestination);
        }
        let mut undeclared = false;
        for (index, rule) in self.document.rules.iter().enumerate() {
            if !(rule.from.matches(from) && rule.to.matches(to)) {
                continue;
            }
            for service in &rule.services {
                if !service_matches(service, to, flow) {
                    undeclared |= matches!((service, flow), (Service::Declared, Flow::Port(..)));
                    continue;
                }
                return Decision::allow(Reason::Rule {
                    index,
                    name: rule.name.clone(),
                    policy: self.policy_record,
                    version: self.policy_version,
                    exposure: matches!(service, Service::Declared).then_some(to.exposure_record).flatten(),
                });
            }
        }
        Decision::deny(Reason::NoRule { policy: self.policy_record, version: self.policy_version, undeclared })
    }
}

/// Whether a port lies in a declared range.
#[must_use]
pub fn range_contains(range: &PortRange, flow: Flow) -> bool {
    matches!(flow, Flow::Port(protocol, port)
        if range.protocol == protocol && (range.first..=range.last).contains(&port))
}

fn service_matches(service: &Service, to: &Subject, flow: Flow) -> bool {
    match service {
        Service::Icmp => flow == Flow::Icmp,
        Service::Declared => to.declared.iter().any(|range| range_contains(range, flow)),
        Service::Ports(range) => range_contains(range, flow),
        Service::Any => true,
    }
}

/// Whether a block denies the flow. A block with ports leaves other protocols alone.
#[must_use]
pub fn block_matches(matches: &BlockMatch, from: &Subject, to: &Subject, flow: Flow) -> bool {
    matches.from.is_none_or(|key| key == from.node)
        && matches.to.is_none_or(|key| key == to.node)
        && matches.ports.is_none_or(|range| range_contains(&range, flow))
}

/// Whether an overlay address is some node's infra plane (offset 0 of its /96).
#[must_use]
pub fn is_infra(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if NodePrefix::of(v6).address(INFRA) == v6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SiteNumber, VdcId};

    fn name(text: &str) -> Name {
        Name::new(text).expect("test names are labels")
    }

    fn subject(seed: u8, site: &str, declared: &[(Protocol, u16, u16)]) -> Subject {
        let node = Key([seed; 32]);
        Subject {
            node,
            kind: Kind::Host,
            name: name("n"),
            site: name(site),
            roles: vec![Role::Host],
            labels: vec![],
            prefix: NodePrefix::derive(&VdcId([1; 32]), SiteNumber(1), &node, 0),
            ipv4: "10.64.0.0/20".parse::<Ipv4Block>().expect("valid").sub_block(28, u32::from(seed)),
            declared: declared.iter().map(|&(protocol, first, last)| PortRange { protocol, first, last }).collect(),
            member_record: Hash([seed; 32]),
            exposure_record: Some(Hash([seed + 100; 32])),
        }
    }

    fn model() -> Model {
        Model {
            document: Document::default(),
            policy_record: Hash([9; 32]),
            policy_version: 1,
            subjects: vec![subject(1, "paris", &[]), subject(2, "berlin", &[(Protocol::Tcp, 80, 81)])],
            blocks: vec![],
        }
    }

    fn host(model: &Model, index: usize) -> (IpAddr, IpAddr) {
        let subject = &model.subjects[index];
        let v4 = subject.ipv4.and_then(|b| b.address(HOST)).expect("block has a host address");
        (subject.prefix.address(HOST).into(), v4.into())
    }

    #[test]
    fn version_1_allows_declared_ports_and_icmp_only() {
        let model = model();
        for ((from, to), family) in
            [((host(&model, 0).0, host(&model, 1).0), "v6"), ((host(&model, 0).1, host(&model, 1).1), "v4")]
        {
            for (flow, allowed) in [
                (Flow::Icmp, true),
                (Flow::Port(Protocol::Tcp, 80), true),
                (Flow::Port(Protocol::Tcp, 81), true),
                (Flow::Port(Protocol::Tcp, 82), false),
                (Flow::Port(Protocol::Udp, 80), false),
                (Flow::Other(47), false),
            ] {
                assert_eq!(model.evaluate(from, to, flow).allowed, allowed, "{family} {flow:?}");
            }
            assert!(
                !model.evaluate(to, from, Flow::Port(Protocol::Tcp, 80)).allowed,
                "{family}: paris declared nothing"
            );
        }
    }

    #[test]
    fn decision_names_the_record_that_decided() {
        let mut model = model();
        let ((from, _), (to, _)) = (host(&model, 0), host(&model, 1));
        let decision = model.evaluate(from, to, Flow::Port(Protocol::Tcp, 80));
        assert!(matches!(decision.reason, Reason::Rule { exposure: Some(h), version: 1, .. } if h == Hash([102; 32])));
        let decision = model.evaluate(from, to, Flow::Port(Protocol::Tcp, 22));
        assert!(matches!(decision.reason, Reason::NoRule { undeclared: true, .. }));

        let matches = BlockMatch { from: Some(model.subjects[0].node), ..BlockMatch::default() };
        model.blocks.push(ActiveBlock { matches, record: Hash([7; 32]), issuer: Key([3; 32]), reason: "worm".into() });
        let decision = model.evaluate(from, to, Flow::Icmp);
        assert!(!decision.allowed);
        assert!(matches!(decision.reason, Reason::Block { record, .. } if record == Hash([7; 32])));
        assert!(model.evaluate(to, from, Flow::Icmp).allowed, "the block names one direction");
    }

    #[test]
    fn infra_plane_is_not_expressible() {
        let mut model = model();
        model.document.rules[0].services = vec![Service::Any];
        let (from, _) = host(&model, 0);
        let infra = model.subjects[1].prefix.address(INFRA).into();
        assert_eq!(model.evaluate(from, infra, Flow::Icmp).reason, Reason::InfraPlane);
    }

    #[test]
    fn selectors_need_one_of_each_given_list() {
        let mut model = model();
        model.document.rules[0].to.sites = vec![name("lisbon")];
        let ((from, _), (to, _)) = (host(&model, 0), host(&model, 1));
        assert!(!model.evaluate(from, to, Flow::Icmp).allowed);
        model.document.rules[0].to.sites.push(name("berlin"));
        model.document.rules[0].from.labels = vec![name("web")];
        assert!(!model.evaluate(from, to, Flow::Icmp).allowed);
        model.subjects[0].labels = vec![name("db"), name("web")];
        assert!(model.evaluate(from, to, Flow::Icmp).allowed);
    }
}
