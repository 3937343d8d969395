//! What follows from the view: tunnels, links, firewall, names, the node's own contact, and renewals.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use meshd_control::{DoorClient, DoorTarget};
use meshd_dns::Zone;
use meshd_firewall::LocalWorkload;
use tokio::sync::oneshot;
use vdc::invite::{DoorRequest, DoorResponse, Hello, Link, Renew};
use vdc::policy::Model;
use vdc::record::ContactAddress;
use vdc::roster::{MemberView, Outcome, Standing, issue};
use vdc::{Signed, links};
use vdc_api as api;

use super::commands::is_public;
use super::issuing::Signer;
use super::task::{Done, Job};
use super::workloads::Loaded;
use super::{Core, names};
use crate::entropy::random;
use crate::infra;

/// A delegation with less than this left is renewed by an admin that sees it.
const DELEGATION_RENEW_BEFORE: Duration = Duration::from_secs(90 * 86_400);
/// Pause after a failed renewal; doubles up to an hour.
const RENEWAL_PAUSE: Duration = Duration::from_secs(15);
const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(3_600);
/// How long dialling a registrar and its answer may take.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(15);
/// Revoked nodes that are told so when they come back.
const REVOKED_MAX: usize = 1024;
/// Length of [`vdc::address::vdc_prefix`].
const VDC_PREFIX_LENGTH: u8 = 48;
/// Own addresses that a contact lists.
const CONTACT_ADDRESSES_MAX: usize = 12;

/// The ports of this VDC on the underlay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) control: u16,
    pub(super) door: u16,
}

/// The kernel's policy table and what is on its way there.
#[derive(Debug, Default)]
pub(super) struct FirewallState {
    /// What the newest table was compiled from.
    compiled: Option<(Option<Model>, Vec<LocalWorkload>)>,
    pub(super) generation: u32,
    in_flight: bool,
    /// A newer table waits for the one in flight.
    waiting: Option<meshd_firewall::Table>,
    /// Who wants to know when the table in flight is loaded, and who when the waiting one is.
    told: [Vec<oneshot::Sender<Result<(), String>>>; 2],
    pub(super) error: Option<String>,
}

/// When this node's membership is renewed next.
#[derive(Debug)]
pub(super) struct Renewal {
    not_before: Instant,
    failures: u32,
    in_flight: bool,
    pub(super) error: Option<String>,
}

impl Default for Renewal {
    fn default() -> Self {
        Self { not_before: Instant::now(), failures: 0, in_flight: false, error: None }
    }
}

impl Core {
    /// Recomputes what is believed, and nothing else.
    pub(super) fn review(&mut self) {
        if let Some(newest) = self.view.newest_record_time() {
            self.clock.raise_floor(newest);
        }
        let mut view = self.roster.view(self.clock.now());
        self.tell_view_of_workloads(&mut view);
        let claims = Arc::clone(&self.claims.borrow_and_update());
        view.set_names(&claims);
        self.view = Arc::new(view);
    }

    /// Recomputes what is believed and acts on it. Idempotent; what did not change costs a comparison.
    pub(super) fn refresh(&mut self) {
        self.review();
        let own_key = self.own_key();
        // A node that is leaving keeps its links until it has told the others.
        let member = self.leaving || self.own().is_some_and(|own| own.standing.is_reachable());
        let peers: Vec<&MemberView> = self.view.reachable().filter(|peer| member && peer.node != own_key).collect();
        self.data.set_members(&peers);
        let keys: BTreeSet<vdc::Key> = peers.iter().map(|peer| peer.node).collect();
        let contacts: BTreeMap<_, _> = peers.iter().map(|peer| (peer.node, peer.addresses().to_vec())).collect();
        let may = |role: &vdc::record::Role| matches!(role, vdc::record::Role::Operator | vdc::record::Role::Admin);
        let operators = peers.iter().filter(|peer| peer.roles.iter().any(may)).map(|peer| peer.node).collect();
        *self.infra_operators.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(operators);
        *self.infra_members.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys.iter().copied().collect());
        // Whoever leaves by itself knows.
        let revoked = self.view.members.values().filter_map(|member| {
            let tombstone = self.roster.get(&member.records.tombstone?)?;
            let told = member.standing == Standing::Revoked && tombstone.issuer != member.node;
            told.then(|| (member.node, tombstone.encode()))
        });
        self.control.set_revoked(Arc::new(if member { revoked.take(REVOKED_MAX).collect() } else { BTreeMap::new() }));
        self.control.set_members(Arc::new(keys));
        self.control.set_contacts(Arc::new(contacts));
        self.control.set_wanted(if member { links::of_node(&self.view, &own_key) } else { vec![] });
        self.refresh_firewall();
        self.refresh_names();
        self.note_revocation();
        self.tell_view();
    }

    /// Tells everybody else of the view, if it says something new.
    fn tell_view(&self) {
        let (view, told) = (&self.view, self.views.borrow());
        // What only time changes is looked at again every few seconds anyway.
        let is_new = told.version != view.version || told.names != view.names || told.members != view.members;
        drop(told);
        if is_new {
            self.views.send_replace(Arc::clone(view));
        }
    }

    fn refresh_firewall(&mut self) {
        let own_key = self.own_key();
        let model = self.view.model().map(|model| meshd_firewall::relevant(model, &own_key));
        let compiled = (model, self.local_workloads());
        if self.firewall_state.compiled.as_ref() == Some(&compiled) {
            return;
        }
        if self.firewall_state.generation == 0 {
            // Marks of flows from before a restart must not pass as judged by this run's policy.
            self.firewall_state.generation = u32::from_le_bytes(random()) | 1;
        }
        self.firewall_state.generation = self.firewall_state.generation.wrapping_add(2) | 1;
        let generation = self.firewall_state.generation;
        let table = meshd_firewall::compile(
            compiled.0.as_ref().unwrap_or(&nothing_allowed()),
            &own_key,
            &compiled.1,
            generation,
            &[infra::PORT],
        );
        self.firewall_state.compiled = Some(compiled);
        if self.firewall_state.in_flight {
            self.firewall_state.waiting = Some(table);
        } else {
            self.load_firewall(table);
        }
    }

    fn load_firewall(&mut self, table: meshd_firewall::Table) {
        self.firewall_state.in_flight = true;
        let firewall = self.firewall.clone();
        self.spawn(async move {
            let loaded = tokio::task::spawn_blocking(move || firewall.load(&table)).await;
            Done::Firewall(match loaded {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(chain(&error)),
                Err(error) => Err(error.to_string()),
            })
        });
    }

    pub(super) fn handle_firewall(&mut self, result: Result<(), String>) {
        self.firewall_state.in_flight = false;
        if let Err(error) = &result {
            self.event(api::Severity::Error, "firewall", None, format!("the policy table was not loaded: {error}"));
            // Try again at the next housekeeping, even if nothing changes until then.
            self.firewall_state.compiled = None;
        }
        let [loaded, waiting] = &mut self.firewall_state.told;
        for teller in std::mem::replace(loaded, std::mem::take(waiting)) {
            let _ = teller.send(result.clone()); // whoever asked may have gone
        }
        self.firewall_state.error = result.err();
        if let Some(table) = self.firewall_state.waiting.take() {
            self.load_firewall(table);
        }
    }

    /// When the newest table is loaded; none if it is.
    pub(super) fn firewall_loaded(&mut self) -> Option<Loaded> {
        if !self.firewall_state.in_flight && self.firewall_state.error.is_some() {
            self.refresh_firewall();
        }
        if !self.firewall_state.in_flight {
            return None;
        }
        let (teller, loaded) = oneshot::channel();
        self.firewall_state.told[usize::from(self.firewall_state.waiting.is_some())].push(teller);
        Some(loaded)
    }

    fn refresh_names(&mut self) {
        let mut networks = vec![(IpAddr::from(vdc::address::vdc_prefix(&self.view.vdc)), VDC_PREFIX_LENGTH)];
        networks.extend(self.view.ipv4.map(|block| (IpAddr::from(block.network()), block.length())));
        let zone = Zone { hosts: names::hosts(&self.view), networks };
        let interface = self.data.host_interface_index().map(|index| (index, self.data.host_addresses()));
        self.shared.dns.set_zone(self.alias.as_str(), zone, interface);
    }

    // ---- where we are

    pub(super) fn ports(&self) -> Ports {
        Ports { control: self.control.port(), door: self.data.door_port() }
    }

    /// Where this box may be reached on the underlay at `port`: advertised first, then as others see it, then its own
    /// addresses, public ones first.
    pub(super) fn underlay_addresses(&self, port: u16) -> Vec<ContactAddress> {
        let advertised = self.shared.config.network.advertise.iter().map(|text| match text.parse::<IpAddr>() {
            Ok(ip) => ContactAddress::Ip(ip, port),
            Err(_) => ContactAddress::Dns(text.clone(), port),
        });
        let mut ips: Vec<IpAddr> = self.observed.keys().copied().filter(|ip| is_public(*ip)).collect();
        ips.extend(self.local_addresses.iter().copied());
        ips.sort_by_key(|ip| (!is_public(*ip), ip.is_ipv4()));
        ips.dedup();
        let mut addresses: Vec<ContactAddress> = advertised.collect();
        for ip in ips {
            let address = ContactAddress::Ip(ip, port);
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses.truncate(CONTACT_ADDRESSES_MAX);
        addresses
    }

    /// Where the data plane's socket can be tried.
    pub(super) fn endpoints(&self) -> vdc::peer::Endpoints {
        let port = self.data.port();
        let mut candidates: Vec<SocketAddr> =
            self.local_addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        for ip in self.observed.keys() {
            let candidate = SocketAddr::new(*ip, port);
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
        for text in &self.shared.config.network.advertise {
            if let Ok(ip) = text.parse::<IpAddr>() {
                candidates.push(SocketAddr::new(ip, port));
            }
        }
        candidates.truncate(vdc::peer::CANDIDATES_MAX);
        vdc::peer::Endpoints { boot_nonce: self.shared.boot_nonce, candidates }
    }

    /// Says in a signed record where this node's control swarm is, if that has changed.
    pub(super) fn publish_contact(&mut self) {
        let Some(own) = self.own() else { return };
        if !own.standing.is_reachable() {
            return;
        }
        let addresses = self.underlay_addresses(self.ports().control);
        let door_port = self.door_port;
        let unchanged = own.contact().is_some_and(|c| c.addresses == addresses && c.door_port == door_port);
        if unchanged || addresses.is_empty() {
            return;
        }
        let published = self.publish(Signer::Node, |view, key| issue::contact(view, key, addresses.clone(), door_port));
        if let Err(error) = published {
            tracing::warn!(vdc = %self.alias, %error, "this node's contact record was not renewed");
        }
    }

    /// Opens the door while this node is a registrar of some site.
    pub(super) fn open_door(&mut self) {
        let own = self.own_key();
        let registrar = self.own().is_some_and(|m| m.standing.is_reachable())
            && self.view.sites.keys().any(|site| self.view.registrars_for(*site).iter().any(|r| r.key == own));
        if registrar == self.door_port.is_some() {
            return;
        }
        let control = self.control.clone();
        self.spawn(async move { Done::Door(control.set_door_open(registrar).await.map_err(|error| chain(&error))) });
    }

    pub(super) fn handle_door_state(&mut self, result: Result<Option<u16>, String>) {
        match result {
            Ok(port) => {
                self.door_port = port;
                self.publish_contact();
            }
            Err(error) => {
                self.event(api::Severity::Error, "door", None, format!("the join door does not open: {error}"));
            }
        }
    }

    // ---- renewals

    /// Renews what is due: own membership at half of its life, and, as an admin, delegations near their end.
    pub(super) fn renew_due(&mut self) {
        self.renew_delegations();
        let Some(own) = self.own() else { return };
        if own.standing == Standing::Revoked || self.renewal.in_flight {
            return;
        }
        let life = own.not_after.since(own.not_before);
        let due = self.now() >= own.not_before.plus(life / 2);
        if due && Instant::now() >= self.renewal.not_before {
            self.renew();
        }
    }

    /// Renews this node's membership now: by itself if it is a registrar of its site, otherwise at a registrar's door.
    pub(super) fn renew(&mut self) {
        self.renewal.error = None;
        let Some(own) = self.own() else { return };
        let (own_key, site) = (self.own_key(), own.site);
        if self.view.registrars_for(site).iter().any(|r| r.key == own_key) {
            let result = self.renew_self().map_err(|error| error.to_string());
            return self.renewal.done(result);
        }
        let targets = self.registrar_doors();
        let (secrets, vdc) = (self.secrets.joining(), self.view.vdc);
        self.renewal.in_flight = true;
        self.spawn(async move { Done::Renewed(renew_at_door(secrets, vdc, targets).await) });
    }

    /// The doors at which this node can be renewed.
    fn registrar_doors(&self) -> Vec<DoorTarget> {
        let Some(own) = self.own() else { return vec![] };
        let registrars = self.view.registrars_for(own.site);
        let doors = registrars.iter().filter_map(|r| {
            let contact = self.view.members.get(&r.key)?.contact()?;
            let port = contact.door_port?;
            let addresses = contact.addresses.iter().map(|address| match address {
                ContactAddress::Ip(ip, _) => ContactAddress::Ip(*ip, port),
                ContactAddress::Dns(name, _) => ContactAddress::Dns(name.clone(), port),
            });
            Some(DoorTarget { registrar: r.key, addresses: addresses.collect() })
        });
        doors.collect()
    }

    pub(super) fn handle_renewed(&mut self, result: Result<Vec<Signed>, String>) {
        self.renewal.in_flight = false;
        let result = result.map(|records| {
            let new = |core: &mut Self, record: Signed| {
                let hash = record.hash();
                (core.roster.insert(record) == Outcome::New).then_some(hash)
            };
            let hashes: Vec<_> = records.into_iter().filter_map(|record| new(self, record)).collect();
            self.settle_received();
            self.syncer.handle_local(&hashes, &mut self.roster, Instant::now());
        });
        if let Err(error) = &result {
            self.event(
                api::Severity::Warning,
                "renewal-failed",
                None,
                format!("the membership was not renewed: {error}"),
            );
        }
        self.renewal.done(result);
    }

    fn renew_delegations(&mut self) {
        let now = self.now();
        let due = |not_after: vdc::UnixTime| not_after.since(now) < DELEGATION_RENEW_BEFORE;
        if self.view.is_admin(&self.own_key()) {
            let registrars: Vec<_> = self
                .view
                .sites
                .values()
                .flat_map(|s| s.registrars.iter().map(|r| (s.number, r)))
                .filter(|(_, r)| !r.closed && due(r.delegation.not_after))
                .map(|(site, r)| (site, r.key))
                .collect();
            for (site, key) in registrars {
                if let Err(error) =
                    self.publish(Signer::NodeOrOwner, |view, admin| issue::registrar(view, admin, key, site, now))
                {
                    tracing::warn!(%error, "a registrar's delegation was not renewed");
                }
            }
        }
        if self.secrets.owner.is_some() && self.view.threshold == 1 {
            let admins: Vec<_> = self
                .view
                .admins
                .iter()
                .filter(|a| !a.closed && !a.delegation.is_withdrawn() && due(a.delegation.not_after))
                .map(|a| a.key)
                .collect();
            for key in admins {
                if let Err(error) = self.publish(Signer::OwnerOrNode, |view, owner| issue::admin(view, owner, key, now))
                {
                    tracing::warn!(%error, "an admin's delegation was not renewed");
                }
            }
        }
    }

    pub(super) fn spawn(&mut self, future: impl Future<Output = Done> + Send + 'static) {
        let job: Job = Box::pin(future);
        self.spawned.push(job);
    }
}

impl Renewal {
    fn done(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => *self = Self::default(),
            Err(error) => {
                let pause = RENEWAL_PAUSE.saturating_mul(1 << self.failures.min(8)).min(RENEWAL_PAUSE_MAX);
                self.not_before = Instant::now() + pause;
                self.failures = self.failures.saturating_add(1);
                self.error = Some(error);
            }
        }
    }
}

/// Asks a registrar for the next member record.
async fn renew_at_door(
    secrets: vdc::invite::NodeSecrets,
    vdc: vdc::VdcId,
    targets: Vec<DoorTarget>,
) -> Result<Vec<Signed>, String> {
    if targets.is_empty() {
        return Err("no registrar of this site is known".into());
    }
    let mut door = DoorClient::connect(secrets.node.seed(), &targets, RENEWAL_TIMEOUT).await.map_err(|e| chain(&e))?;
    let hello = DoorRequest::Hello(Hello { vdc, invite: None });
    let question = match door.call(&hello, RENEWAL_TIMEOUT).await.map_err(|e| chain(&e))? {
        DoorResponse::Challenge(question) => question,
        DoorResponse::Refused(refusal) => return Err(refusal.message),
        DoorResponse::Granted(_) => return Err("the registrar answered another question".into()),
    };
    let link = Link { registrar: door.registrar(), joiner: secrets.node.public() };
    let answer = Renew::answer(&vdc, &secrets, &link, &question).ok_or("the registrar's challenge is not a key")?;
    match door.call(&DoorRequest::Renew(answer), RENEWAL_TIMEOUT).await.map_err(|e| chain(&e))? {
        DoorResponse::Granted(records) => {
            records.iter().map(|bytes| Signed::decode(bytes).map_err(|e| e.to_string())).collect()
        }
        DoorResponse::Refused(refusal) => Err(refusal.message),
        DoorResponse::Challenge(_) => Err("the registrar answered another question".into()),
    }
}

/// What is known while no policy is: nobody, and nothing allowed.
pub(crate) fn nothing_allowed() -> Model {
    Model {
        document: vdc::policy::Document { grace_days: 0, rules: vec![] },
        policy_record: vdc::Hash([0; 32]),
        policy_version: 0,
        subjects: vec![],
        blocks: vec![],
    }
}

/// An error and all that led to it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
