//! What the API orders: each is one synchronous step of the core.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vdc::address::{HOST, INFRA};
use vdc::record::{BlockMatch, Role, Signed};
use vdc::roster::{MemberView, issue};
use vdc::{Hash, Key, Name};
use vdc_api::{self as api, ApiError, ErrorCode};

use super::Core;
use super::issuing::Signer;
use crate::entropy::random;
use crate::infra::{InfraError, InfraTls, ask_hello};
use crate::views;

/// Members that are looked for at an address given without a node, those without a link first: each costs a dial.
const PLACES_MAX: usize = 64;

/// Parses a name given by a user.
pub(crate) fn parse_name(field: &str, text: &str) -> Result<Name, ApiError> {
    Name::new(text).map_err(|error| ApiError::bad_request(field, error.to_string()))
}

impl Core {
    /// A name without the VDC's domain behind it.
    fn short<'a>(&self, text: &'a str) -> &'a str {
        let suffix = format!(".{}.{}", self.alias, views::TOP_DOMAIN);
        text.strip_suffix(&suffix).unwrap_or(text)
    }

    /// Resolves a node given as `NODE`, `NODE.SITE`, its DNS name, or part of its key.
    pub(crate) fn find(&self, text: &str) -> Result<&MemberView, ApiError> {
        let short = self.short(text);
        if let Ok(address) = short.parse::<IpAddr>() {
            let owns = |m: &&MemberView| match address {
                IpAddr::V6(v6) => m.prefix.contains(v6),
                IpAddr::V4(v4) => m.ipv4.is_some_and(|block| block.contains(v4)),
            };
            let found = self.view.reachable().find(owns);
            return found.ok_or_else(|| ApiError::not_found(format!("no node of the VDC has the address {address}")));
        }
        self.view.find(short).map_err(|error| {
            use vdc::roster::FindError;
            let (code, hint) = match error {
                FindError::Unknown { .. } => (ErrorCode::NotFound, "`meshctl node list` shows all nodes"),
                FindError::Ambiguous { .. } => {
                    (ErrorCode::AmbiguousName, "write NODE.SITE or a longer part of the key")
                }
            };
            let text = error.to_string();
            ApiError::new(code, text.split("; ").next().unwrap_or(&text)).hint(hint)
        })
    }

    // ---- grants

    pub(super) fn grant(&mut self, node: &str, change: &api::GrantChange) -> Result<api::NodeView, ApiError> {
        let member = self.find(node)?;
        let subject = member.node;
        let mut roles: Vec<Role> = member.roles.iter().copied().filter(|r| *r == Role::Operator).collect();
        let mut labels = member.labels.clone();
        for (field, texts, add) in
            [("add_roles", &change.add_roles, true), ("remove_roles", &change.remove_roles, false)]
        {
            for text in texts {
                let role = grantable(field, text)?;
                roles.retain(|r| *r != role);
                if add {
                    roles.push(role);
                }
            }
        }
        for (field, texts, add) in
            [("add_labels", &change.add_labels, true), ("remove_labels", &change.remove_labels, false)]
        {
            for text in texts {
                let label = parse_name(field, text)?;
                labels.retain(|l| *l != label);
                if add {
                    labels.push(label);
                }
            }
        }
        if labels.len() > 64 {
            return Err(ApiError::bad_request("add_labels", "a node can have at most 64 labels"));
        }
        let mut sorted = labels.clone();
        sorted.sort();
        let mut before: Vec<Role> = member.roles.iter().copied().filter(|r| *r == Role::Operator).collect();
        before.sort();
        if (before, member.labels.clone()) != (roles.clone(), sorted) {
            self.publish(Signer::NodeOrOwner, |view, key| {
                issue::grant(view, key, &subject, roles.clone(), labels.clone())
            })?;
        }
        let member = self.view.members.get(&subject).ok_or_else(not_a_member)?;
        Ok(self.with_context(|context| context.node(member)))
    }

    // ---- revoking

    pub(super) fn revoked(&self, member: &MemberView, tombstone: Hash) -> Revoked {
        let record = self.with_context(|context| context.record_or_hash("tombstone", &tombstone));
        let members: Vec<Key> =
            self.view.reachable().map(|m| m.node).filter(|key| *key != self.own_key() && *key != member.node).collect();
        let signed = self.record(&tombstone).cloned();
        Revoked { member: member.clone(), record, signed, members, void: vec![], notes: vec![] }
    }

    // ---- leaving

    /// Signs this node's own tombstone. Refused for the last admin or registrar unless forced.
    pub(crate) fn leave(&mut self, force: bool) -> Result<Revoked, ApiError> {
        let own_key = self.own_key();
        let own = self.own().ok_or_else(not_a_member)?.clone();
        let others = self.view.reachable().any(|m| m.node != own_key);
        let holds = |keys: &mut dyn Iterator<Item = Key>| {
            let keys: Vec<Key> = keys.collect();
            keys.contains(&own_key) && keys.len() == 1
        };
        let last_admin = holds(&mut self.view.admins.iter().filter(|a| a.active && !a.closed).map(|a| a.key));
        let last_registrar =
            self.view.sites.values().find(|s| holds(&mut s.registrars.iter().filter(|r| !r.closed).map(|r| r.key)));
        if others && !force && (last_admin || last_registrar.is_some()) {
            let what = match last_registrar {
                Some(site) => format!("this node is the only registrar of site {}", site.name),
                None => "this node is the only admin of the VDC".to_owned(),
            };
            return Err(ApiError::refused(what).hint(
                "let another node take over first (`meshctl site add` for a registrar, `meshctl grant NODE --role admin`), or end it with `meshctl leave --force`",
            ));
        }
        let now = self.now();
        self.leaving = true;
        let left = self.publish(Signer::Node, |view, key| issue::leave(view, key, now));
        self.leaving = left.is_ok();
        Ok(self.revoked(&own, left?))
    }

    // ---- blocks

    pub(crate) fn block_create(&mut self, request: &api::BlockCreate) -> Result<api::BlockView, ApiError> {
        let node = |text: &Option<String>| text.as_ref().map(|t| self.find(t).map(|m| m.node)).transpose();
        let (from, to) = (node(&request.from)?, node(&request.to)?);
        let ports = request
            .port
            .as_ref()
            .map(|text| text.parse().map(views::port_range))
            .transpose()
            .map_err(|e: api::PortSpecError| ApiError::bad_request("port", e.to_string()))?;
        if from.is_none() && to.is_none() && ports.is_none() {
            return Err(ApiError::bad_request("from", "a block must name a source, a destination or a port")
                .hint("for example `meshctl block --from NODE`"));
        }
        let (id, matches) = (Hash(random()), BlockMatch { from, to, ports });
        let reason = request.reason.clone().unwrap_or_default();
        self.publish(Signer::NodeOrOwner, |view, key| issue::block(view, key, id, matches.clone(), &reason))?;
        self.event(api::Severity::Warning, "block-signed", None, format!("block {} signed", id.short()));
        let block = self.view.blocks.iter().find(|b| b.block.id == id);
        let block = block.ok_or_else(|| ApiError::new(ErrorCode::Internal, "the block is not in the view"))?;
        Ok(self.with_context(|context| context.block(block)))
    }

    pub(crate) fn block_lift(&mut self, text: &str) -> Result<api::BlockView, ApiError> {
        let mut fitting =
            self.view.blocks.iter().filter(|b| text.len() >= 4 && b.block.id.to_string().starts_with(text));
        let block = match (fitting.next(), fitting.next()) {
            (Some(block), None) => block.clone(),
            (None, _) => {
                return Err(ApiError::not_found(format!("no active block begins with {text:?}"))
                    .hint("`meshctl blocks` lists them; give at least 4 digits"));
            }
            (Some(_), Some(_)) => {
                return Err(ApiError::new(ErrorCode::AmbiguousName, format!("several blocks begin with {text:?}"))
                    .hint("give more digits"));
            }
        };
        let hash = self.publish(Signer::NodeOrOwner, |view, key| issue::lift(view, key, &block.block.id))?;
        self.event(api::Severity::Info, "block-lifted", None, format!("block {} lifted", block.block.id.short()));
        let mut view = self.with_context(|context| context.block(&block));
        view.lifted = true;
        view.record = self.with_context(|context| context.record_or_hash("block", &hash));
        Ok(view)
    }

    // ---- renewing and routes of the host

    /// Starts a renewal; returns the serial that it will follow.
    pub(crate) fn renew_now(&mut self) -> Result<u64, ApiError> {
        self.check_not_revoked()?;
        let serial = self.own().ok_or_else(not_a_member)?.serial;
        self.renew();
        Ok(serial)
    }

    /// The renewal since `serial`, once it is there.
    pub(crate) fn renewed_since(&self, serial: u64) -> Result<Option<api::Renewed>, ApiError> {
        self.check_not_revoked()?;
        let own = self.own().ok_or_else(not_a_member)?;
        if own.serial > serial {
            return Ok(Some(api::Renewed {
                node: own.full_name(),
                serial: own.serial,
                not_after: own.not_after.to_string(),
                registrar: self.with_context(|context| context.name_of(&own.registrar)),
            }));
        }
        match &self.renewal.error {
            Some(error) => {
                Err(ApiError::new(ErrorCode::Unreachable, "the membership was not renewed").cause(error.clone()))
            }
            None => Ok(None),
        }
    }

    /// Leads the host's IPv4 routes into this VDC, or no longer.
    pub(crate) fn set_in_use(&mut self, in_use: bool) -> Result<(), ApiError> {
        self.in_use = in_use;
        self.data.set_host_ipv4(in_use)
    }

    // ---- looking

    /// Names of nodes, for people.
    pub(crate) fn names(&self, keys: &[Key]) -> Vec<String> {
        self.with_context(|context| keys.iter().map(|key| context.name_of(key)).collect())
    }

    /// From where to where a ping goes, and which node that is.
    pub(crate) fn ping_route(&self, target: &str) -> Result<(IpAddr, IpAddr, api::NodeView), ApiError> {
        let own = self.own().ok_or_else(not_a_member)?;
        let member = self.find(target)?;
        let asked: Option<IpAddr> = target.parse().ok();
        let (source, destination) = match (asked, views::host_ipv4(own), views::host_ipv4(member)) {
            (Some(IpAddr::V4(_)), Some(from), Some(to)) => (from.into(), to.into()),
            _ => (own.prefix.address(HOST).into(), member.prefix.address(HOST).into()),
        };
        Ok((source, destination, self.with_context(|context| context.node(member))))
    }

    /// The nodes that `on` means, a node or `site=SITE`: their keys and full names. This node comes first.
    pub(crate) fn nodes_meant(&self, on: &str) -> Result<Vec<(Key, String)>, ApiError> {
        let own = self.own_key();
        let Some(site) = on.strip_prefix("site=") else {
            let member = self.find(on)?;
            return Ok(vec![(member.node, member.full_name())]);
        };
        let of_site = self.view.reachable().filter(|member| member.site_name.as_str() == site);
        let mut nodes: Vec<(Key, String)> = of_site.map(|member| (member.node, member.full_name())).collect();
        nodes.sort_by_key(|(key, name)| (*key != own, name.clone()));
        if nodes.is_empty() {
            return Err(ApiError::not_found(format!("there is no node in a site {site:?}"))
                .hint("`meshctl site list` shows the sites"));
        }
        Ok(nodes)
    }

    /// What it takes to ask a node over the infra plane: a socket inside the VDC's namespace, and who is expected there.
    pub(crate) fn infra_route(&self, key: &str) -> Result<InfraRoute, ApiError> {
        let peer: Key = key.parse().map_err(|_| ApiError::not_found("there is no such node"))?;
        let own = self.own().ok_or_else(not_a_member)?;
        let member = self.view.members.get(&peer).ok_or_else(|| ApiError::not_found("there is no such node"))?;
        let source = SocketAddr::new(own.prefix.address(INFRA).into(), 0);
        let destination = SocketAddr::new(member.prefix.address(INFRA).into(), crate::infra::PORT);
        let socket = self.data.tcp_socket(source);
        let socket = socket.map_err(|error| crate::error::system("no socket on the infra plane", &error))?;
        let own = vdc::peer::Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            boot_nonce: self.shared.boot_nonce,
            time: self.now(),
            observed: None,
        };
        Ok(InfraRoute { tls: self.infra_tls.clone(), peer, socket, destination, own })
    }

    /// The path in use to a node, by its key.
    pub(crate) fn path_to(&self, key: &str) -> Option<api::PathView> {
        let key = key.parse().ok()?;
        self.with_context(|context| context.link(&key).path)
    }

    /// Why a node is not reached, where the data plane knows.
    pub(crate) fn why_unreached(&self, key: &str) -> Option<String> {
        let key = key.parse().ok()?;
        self.with_context(|context| context.link(&key).reason)
    }

    pub(crate) fn explain(&self, query: &api::ExplainQuery) -> Result<api::Explanation, ApiError> {
        let spec: api::FlowSpec =
            query.flow.parse().map_err(|e: api::PortSpecError| ApiError::bad_request("flow", e.to_string()))?;
        let model = self
            .model()
            .ok_or_else(|| ApiError::new(ErrorCode::Unavailable, "no policy is known yet, so nothing is allowed"))?;
        let destination = self.address_of("destination", &query.destination, None)?;
        let source = self.address_of("source", &query.source, Some(destination))?;
        Ok(self.with_context(|context| {
            let (from, to) = ((query.source.as_str(), source), (query.destination.as_str(), destination));
            context.explain(&model, from, to, (&spec, views::flow(spec)))
        }))
    }

    /// The overlay address that a user means: an address as it is, otherwise a node's or a workload's, in the family of
    /// `like`.
    pub(crate) fn address_of(&self, field: &str, text: &str, like: Option<IpAddr>) -> Result<IpAddr, ApiError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address);
        }
        let (v6, v4) = match self.find(text) {
            Ok(member) => (member.prefix.address(HOST), views::host_ipv4(member)),
            Err(error) => match self.view.find_workload(self.short(text)) {
                Some((_, workload)) => (workload.v6, workload.ipv4),
                None => return Err(ApiError { field: Some(field.to_owned()), ..error }),
            },
        };
        Ok(match (like, v4) {
            (Some(IpAddr::V4(_)), Some(v4)) => v4.into(),
            _ => v6.into(),
        })
    }

    /// Keeps an address by hand for `node`, or for every unreached member when none is named, and tries it.
    pub(crate) fn places_to_try(&mut self, node: Option<&str>, address: SocketAddr) -> Result<Vec<Key>, ApiError> {
        let keys = match node {
            Some(text) => vec![self.find(text)?.node],
            // Whoever is linked there already is the one that is meant.
            None if let Some((key, _)) = self.links.iter().find(|(_, link)| link.address == address) => vec![*key],
            None => {
                let own = self.own_key();
                let mut keys: Vec<Key> = self.view.reachable().map(|m| m.node).filter(|k| *k != own).collect();
                keys.sort_by_key(|key| self.links.contains_key(key));
                keys.truncate(PLACES_MAX);
                keys
            }
        };
        if node.is_some() {
            for key in &keys {
                self.seen.saw(*key, address);
            }
            self.caches_dirty = true;
        }
        Ok(keys)
    }

    pub(super) fn event(&self, severity: api::Severity, kind: &str, node: Option<String>, message: impl Into<String>) {
        self.shared.events.push(severity, kind, Some(self.alias.as_str()), node, message);
    }

    /// When both ends of a link last held the same records.
    pub(super) fn view_age(&self) -> Option<(Key, Duration)> {
        self.syncer.last_confirmed().map(|(key, at)| (key, Instant::now().saturating_duration_since(at)))
    }
}

/// What [`Core::infra_route`] found.
#[derive(Debug)]
pub(crate) struct InfraRoute {
    tls: InfraTls,
    peer: Key,
    socket: socket2::Socket,
    destination: SocketAddr,
    own: vdc::peer::Hello,
}

impl InfraRoute {
    /// Connects to the node's API.
    pub(crate) async fn api(self) -> std::io::Result<meshd_web::Pipe> {
        let socket = tokio::net::TcpSocket::from_std_stream(self.socket.into());
        let stream = socket.connect(self.destination).await?;
        crate::infra::remote::connect(&self.tls, self.peer, stream).await
    }

    /// Connects for what coordination groups say.
    pub(crate) async fn frames(self) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let socket = tokio::net::TcpSocket::from_std_stream(self.socket.into());
        let stream = socket.connect(self.destination).await?;
        crate::infra::groups::connect(&self.tls, self.peer, stream).await
    }

    /// Asks the node who it is, and returns how long that took in all.
    pub(crate) async fn ask(self) -> Result<Duration, InfraError> {
        let started = Instant::now();
        let address = self.destination;
        let io = |source| InfraError::Io { address, source };
        let socket = tokio::net::TcpSocket::from_std_stream(self.socket.into());
        let stream = socket.connect(address).await.map_err(io)?;
        ask_hello(&self.tls, self.peer, stream, self.own).await?;
        Ok(started.elapsed())
    }
}

/// What [`Core::revoke`] and [`Core::leave`] did.
#[derive(Debug)]
pub(crate) struct Revoked {
    pub(crate) member: MemberView,
    pub(crate) record: api::RecordView,
    /// The tombstone itself, to be told to everybody at once.
    pub(crate) signed: Option<Arc<Signed>>,
    /// Who should hear of it.
    pub(crate) members: Vec<Key>,
    /// Members that are void with it.
    pub(crate) void: Vec<String>,
    pub(crate) notes: Vec<String>,
}

pub(super) fn not_a_member() -> ApiError {
    ApiError::refused("this node is not a member of the VDC any more").hint("join it again with a new invite")
}

fn grantable(field: &str, text: &str) -> Result<Role, ApiError> {
    match text {
        "operator" => Ok(Role::Operator),
        "host" => Err(ApiError::bad_request(field, "every member is a host; it cannot be granted or removed")),
        "owner" | "registrar" => Err(ApiError::bad_request(field, format!("{text} is no role that a grant gives"))
            .hint("registrars come by `meshctl site add`; an owner is who holds an owner key")),
        other => {
            Err(ApiError::bad_request(field, format!("there is no role {other:?}")).hint("roles: operator, admin"))
        }
    }
}

/// Whether an address can be reached over the internet, as far as the address itself tells (RFC 6890).
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b); // RFC 6598
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || shared)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_are_told_from_private_ones() {
        for (text, public) in [
            ("192.0.2.1", true),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("2001:db8::1", true),
            ("fd00::1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_public(text.parse().expect("valid")), public, "{text}");
        }
    }
}
