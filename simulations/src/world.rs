//! The event loop: virtual time, messages in flight, links that come and go.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vdc::links::{self, Topology};
use vdc::roster::{MemberView, Standing, Verifier, View};
use vdc::sync::{Event as SyncEvent, Fingerprint, Message, Packed, Records as _, Syncer};
use vdc::{Body, Hash, Key, Signed, SigningKey};
use vdc_overlay::Member;

use crate::founding::{self, Identity, SiteInfo};
use crate::network::Network;
use crate::node::{Node, RecordsSim};
use crate::random::Random;
use crate::trace::Trace;
use crate::traffic::{Flow, Host};

pub(crate) const SECOND_US: u64 = 1_000_000;
/// How long a node waits after a change of members until it computes its links anew.
const REFRESH_US: u64 = 5 * SECOND_US;
/// Longest pause between two attempts to dial a peer.
const REDIAL_US_MAX: u64 = 30 * SECOND_US;
/// What an attempt takes that nobody answers.
const DIAL_TIMEOUT_US: u64 = 5 * SECOND_US;
/// Lead of the end that dials first.
const DIAL_YIELD_US: u64 = 3 * SECOND_US;
/// Retransmissions of what is in flight on a path that was cut.
const RETRY_US: u64 = SECOND_US / 2;
/// Distinct sets of records whose views are remembered.
const KNOWN_MAX: usize = 512;

/// What every run depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Knobs {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) sites: usize,
    pub(crate) minutes: u64,
}

#[derive(Debug)]
pub(crate) enum Event {
    Deliver {
        from: usize,
        to: usize,
        link: u64,
        message: Box<Message>,
    },
    Timer {
        node: usize,
    },
    Refresh {
        node: usize,
    },
    Dial {
        from: usize,
        to: usize,
    },
    LinkUp {
        from: usize,
        to: usize,
    },
    /// `node` finds out that its link to `peer` is dead.
    LinkLost {
        node: usize,
        peer: usize,
        link: u64,
    },
    Boot {
        node: usize,
    },
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    HostTimer {
        node: usize,
    },
    /// The answer to a question over control links: where is `peer`'s socket?
    Endpoints {
        node: usize,
        peer: usize,
    },
    FlowTick {
        flow: usize,
    },
}

struct Scheduled {
    at_us: u64,
    /// Breaks ties in the order of scheduling.
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.sequence).cmp(&(other.at_us, other.sequence))
    }
}

/// What follows from one set of records for every node that holds it.
#[derive(Debug)]
pub(crate) struct Known {
    topology: Topology,
    /// Reachable members by index.
    members: Vec<bool>,
    /// The same as overlays want them.
    pub(crate) peers: Vec<Member>,
}

/// A record whose spreading is measured.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) issued_us: u64,
    /// When each node that has it learned of it.
    pub(crate) learned_us: BTreeMap<usize, u64>,
}

/// All nodes of a run and everything between them.
pub(crate) struct World {
    pub(crate) knobs: Knobs,
    pub(crate) now_us: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) sites: Vec<SiteInfo>,
    pub(crate) network: Network,
    pub(crate) random: Random,
    pub(crate) trace: Trace,
    pub(crate) owner: SigningKey,
    pub(crate) owner_number: u64,
    pub(crate) watches: BTreeMap<Hash, Watch>,
    pub(crate) verifier: Rc<RefCell<Verifier>>,
    /// Nodes that must not be let in by anybody any more, and the links to them that are still up.
    pub(crate) revoked: BTreeSet<usize>,
    /// Data planes, of the nodes that have one.
    pub(crate) hosts: BTreeMap<usize, Host>,
    pub(crate) flows: Vec<Flow>,
    pub(crate) addresses: HashMap<SocketAddr, usize>,
    pub(crate) base: Instant,
    events: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    links_made: u64,
    pub(crate) index: HashMap<Key, usize>,
    lengths: HashMap<Hash, usize>,
    known: HashMap<(Fingerprint, i64), Rc<Known>>,
}

impl World {
    /// A founded VDC whose boxes are all off.
    pub(crate) fn new(knobs: Knobs) -> Self {
        let mut random = Random::new(knobs.seed);
        let mut verifier = Verifier::new(1 << 20);
        let founded = founding::found(knobs.nodes, knobs.sites, &mut verifier, &mut random);
        let verifier = Rc::new(RefCell::new(verifier));
        let base = Instant::now();
        let mut world = Self {
            knobs,
            now_us: 0,
            nodes: Vec::new(),
            sites: founded.sites,
            network: Network::new(knobs.sites, Random::new(random.draw())),
            trace: Trace::new(knobs.seed),
            owner: founded.owner,
            owner_number: founded.owner_number,
            watches: BTreeMap::new(),
            verifier,
            revoked: BTreeSet::new(),
            hosts: BTreeMap::new(),
            flows: Vec::new(),
            addresses: HashMap::new(),
            base,
            events: BinaryHeap::new(),
            sequence: 0,
            links_made: 0,
            index: HashMap::new(),
            lengths: HashMap::new(),
            known: HashMap::new(),
            random,
        };
        for (index, identity) in founded.identities.into_iter().enumerate() {
            // Who joined last cannot have been off before it joined.
            let is_stale = index < knobs.nodes / 2 && world.random.chance(200);
            let roster = if is_stale { founded.stale.clone() } else { founded.roster.clone() };
            world.add(identity, roster);
        }
        world
    }

    /// Adds a box that is off.
    pub(crate) fn add(&mut self, identity: Identity, roster: vdc::roster::Roster) -> usize {
        let syncer = Syncer::new(identity.key, self.random.bytes32(), self.instant());
        let records = RecordsSim { roster, verifier: Rc::clone(&self.verifier) };
        let index = self.nodes.len();
        self.index.insert(identity.key, index);
        self.nodes.push(Node::new(identity, records, syncer));
        index
    }

    pub(crate) fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now_us)
    }

    pub(crate) fn note(&mut self, line: &str) {
        self.trace.note(self.now_us, line);
    }

    pub(crate) fn schedule(&mut self, after_us: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse(Scheduled { at_us: self.now_us + after_us, sequence: self.sequence, event }));
    }

    /// Switches a box on after a while.
    pub(crate) fn boot(&mut self, node: usize, after_us: u64) {
        self.schedule(after_us, Event::Boot { node });
    }

    /// Runs until `at_us`.
    pub(crate) fn run_until(&mut self, at_us: u64) {
        while let Some(Reverse(next)) = self.events.peek() {
            if next.at_us > at_us {
                break;
            }
            let Some(Reverse(scheduled)) = self.events.pop() else { break };
            self.now_us = scheduled.at_us;
            self.handle(scheduled.event);
        }
        self.now_us = self.now_us.max(at_us);
    }

    pub(crate) fn run_for(&mut self, span_us: u64) {
        self.run_until(self.now_us + span_us);
    }

    /// Runs until all nodes hold the same records; how long that took, or none if it takes longer than `limit_us`.
    pub(crate) fn run_until_converged(&mut self, limit_us: u64) -> Option<u64> {
        let start_us = self.now_us;
        while !self.is_converged() {
            if self.now_us - start_us >= limit_us {
                return None;
            }
            self.run_for(SECOND_US / 4);
        }
        Some(self.now_us - start_us)
    }

    /// Whether all nodes that are up and were not revoked hold the same records.
    pub(crate) fn is_converged(&self) -> bool {
        let rosters = || self.members().map(|node| &self.nodes[node].records.roster);
        let Some(first) = rosters().next() else { return true };
        // Lengths first: they tell most of what differs, at a thousandth of the cost.
        rosters().all(|roster| roster.len() == first.len())
            && rosters().all(|roster| roster.hashes().eq(first.hashes()))
    }

    /// Nodes that are up and were not revoked.
    pub(crate) fn members(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_up && !self.revoked.contains(node))
    }

    pub(crate) fn view(&self, node: usize) -> View {
        self.nodes[node].records.roster.view(self.nodes[node].unix_time(self.now_us))
    }

    /// A node stores records that it made or was granted, and tells its links.
    pub(crate) fn store(&mut self, node: usize, records: &[Arc<Signed>]) {
        let mut new = Vec::new();
        for record in records {
            let merge = self.nodes[node].records.insert(Arc::clone(record));
            if merge == vdc::sync::Merge::New {
                new.push(Arc::clone(record));
            }
            self.trace.event(self.now_us, 1, node, merge as usize, 0);
        }
        let hashes: Vec<Hash> = new.iter().map(|record| record.hash()).collect();
        self.on_applied(node, &new);
        let now = self.instant();
        let Node { syncer, records, .. } = &mut self.nodes[node];
        syncer.handle_local(&hashes, records, now);
        self.pump(node);
    }

    /// From now on it is measured when nodes learn of the record.
    pub(crate) fn watch(&mut self, hash: Hash) {
        self.watches.insert(hash, Watch { issued_us: self.now_us, learned_us: BTreeMap::new() });
    }

    /// Links between any node and a revoked one, seen from the other end.
    pub(crate) fn links_to_revoked(&self) -> usize {
        self.members()
            .map(|node| self.nodes[node].links.keys().filter(|peer| self.revoked.contains(peer)).count())
            .sum()
    }

    pub(crate) fn heal(&mut self) {
        self.network.heal();
        self.note("network healed");
    }

    /// Cuts the network into islands; links across notice within 5 to 30 s.
    pub(crate) fn cut(&mut self, island: impl Fn(usize) -> usize) {
        self.network.cut(island);
        self.note("network cut");
        for node in 0..self.nodes.len() {
            let dead: Vec<(usize, u64)> = self.nodes[node]
                .links
                .iter()
                .filter(|(p, _)| !self.reaches(node, **p))
                .map(|(p, l)| (*p, *l))
                .collect();
            for (peer, link) in dead {
                let after_us = self.random.between(5 * SECOND_US, 30 * SECOND_US);
                self.schedule(after_us, Event::LinkLost { node, peer, link });
            }
        }
    }

    pub(crate) fn reaches(&self, a: usize, b: usize) -> bool {
        self.network.reaches(self.nodes[a].identity.site, self.nodes[b].identity.site)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, link, message } => self.on_deliver(from, to, link, message),
            Event::Timer { node } => self.on_timer(node),
            Event::Refresh { node } => self.on_refresh(node),
            Event::Dial { from, to } => self.on_dial(from, to),
            Event::LinkUp { from, to } => self.on_link_up(from, to),
            Event::LinkLost { node, peer, link } => {
                // A path that healed in time never looked dead, unless the other end gave up.
                let other_gave_up = self.nodes[peer].links.get(&node) != Some(&link);
                if self.nodes[node].links.get(&peer) == Some(&link) && (other_gave_up || !self.reaches(node, peer)) {
                    self.drop_link(node, peer);
                }
            }
            Event::Boot { node } => {
                self.nodes[node].is_up = true;
                self.trace.event(self.now_us, 2, node, 0, 0);
                self.on_refresh(node);
            }
            Event::Datagram { from, to, bytes } => self.on_datagram(from, to, &bytes),
            Event::HostTimer { node } => self.on_host_timer(node),
            Event::Endpoints { node, peer } => self.on_endpoints(node, peer),
            Event::FlowTick { flow } => self.on_flow_tick(flow),
        }
    }

    fn on_deliver(&mut self, from: usize, to: usize, link: u64, message: Box<Message>) {
        let link_is_up = |node: &Node, peer: &usize| node.links.get(peer) == Some(&link);
        if !link_is_up(&self.nodes[to], &from) || !link_is_up(&self.nodes[from], &to) {
            return;
        }
        if !self.reaches(from, to) {
            self.schedule(RETRY_US, Event::Deliver { from, to, link, message });
            return;
        }
        self.trace.event(self.now_us, 3, from, to, 0);
        let (now, key) = (self.instant(), self.nodes[from].identity.key);
        let Node { syncer, records, .. } = &mut self.nodes[to];
        syncer.handle_message(key, *message, records, now);
        self.pump(to);
    }

    fn on_timer(&mut self, node: usize) {
        if self.nodes[node].timer_us != Some(self.now_us) {
            return;
        }
        self.nodes[node].timer_us = None;
        self.trace.event(self.now_us, 4, node, 0, 0);
        let now = self.instant();
        let Node { syncer, records, .. } = &mut self.nodes[node];
        syncer.handle_timeout(records, now);
        self.pump(node);
    }

    /// Carries out what the syncer wants, as its documentation says.
    fn pump(&mut self, node: usize) {
        let now = self.instant();
        loop {
            let Node { syncer, records, .. } = &mut self.nodes[node];
            let Some((peer, message)) = syncer.poll_transmit(records, now) else { break };
            self.send(node, &peer, message);
        }
        while let Some(event) = self.nodes[node].syncer.poll_event() {
            match event {
                SyncEvent::Applied { records, .. } => self.on_applied(node, &records),
                SyncEvent::Refused { refusals, .. } => {
                    self.nodes[node].refused += refusals.records_refused + refusals.records_unreadable;
                    self.trace.event(self.now_us, 5, node, 0, 0);
                }
                SyncEvent::Confirmed { .. } => {}
            }
        }
        self.set_timer(node);
    }

    fn set_timer(&mut self, node: usize) {
        let Some((due, _)) = self.nodes[node].syncer.poll_timeout() else { return };
        let due_us = micros_up(due - self.base).max(self.now_us);
        if self.nodes[node].timer_us.is_none_or(|set_us| due_us < set_us) {
            self.nodes[node].timer_us = Some(due_us);
            self.schedule(due_us - self.now_us, Event::Timer { node });
        }
    }

    fn send(&mut self, from: usize, peer: &Key, message: Message) {
        let to = self.index[peer];
        let Some(link) = self.nodes[from].links.get(&to).copied() else { return };
        let bytes = self.message_bytes(&message);
        self.nodes[from].bytes_sent += bytes as u64;
        self.nodes[from].messages_sent += 1;
        self.trace.event(self.now_us, 6, from, to, bytes);
        let (a, b) = (self.nodes[from].identity.site, self.nodes[to].identity.site);
        let transit_us = self.network.transit_us(a, b, bytes);
        self.schedule(transit_us, Event::Deliver { from, to, link, message: Box::new(message) });
    }

    /// Length on the wire. Records are encoded once and remembered by hash.
    fn message_bytes(&mut self, message: &Message) -> usize {
        let Message::Records(packed) = message else { return message.encode().len() };
        let length = |packed: &Packed| match packed {
            Packed::Shared(record) => *self.lengths.entry(record.hash()).or_insert_with(|| record.encode().len()),
            Packed::Bytes(bytes) => bytes.len(),
        };
        // Heads of the message and of each byte string: 5 and 3 bytes at most.
        packed.iter().map(length).map(|bytes| bytes + 3).sum::<usize>() + 5
    }

    /// What the daemon does when records were stored: revocations cut off at once, links follow a little later.
    fn on_applied(&mut self, node: usize, records: &[Arc<Signed>]) {
        let mut members_changed = false;
        for record in records {
            self.trace.event(self.now_us, 7, node, usize::from(record.hash().0[0]), 0);
            if let Some(watch) = self.watches.get_mut(&record.hash()) {
                watch.learned_us.entry(node).or_insert(self.now_us);
            }
            match &record.body {
                Body::Tombstone(tombstone) => {
                    members_changed = true;
                    if let Some(subject) = self.index.get(&tombstone.subject).copied()
                        && self.revoked.contains(&subject)
                    {
                        self.nodes[node].set_member(subject, false);
                        self.drop_link(node, subject);
                        self.cut_off(node, &tombstone.subject);
                    }
                }
                Body::Member(member) => {
                    if let Some(index) = self.index.get(&member.node).copied()
                        && !self.nodes[node].lets_in(index)
                        && !self.revoked.contains(&index)
                    {
                        self.nodes[node].set_member(index, true);
                        members_changed = true;
                    }
                }
                Body::Delegation(_) => members_changed = true,
                Body::Genesis(_)
                | Body::Site(_)
                | Body::Grant(_)
                | Body::Contact(_)
                | Body::Exposure(_)
                | Body::Block(_)
                | Body::Policy(_)
                | Body::Founding(_) => {}
            }
        }
        if members_changed && self.nodes[node].is_up && !self.nodes[node].refresh_planned {
            self.nodes[node].refresh_planned = true;
            self.schedule(REFRESH_US, Event::Refresh { node });
        }
    }

    /// Computes links from what the node holds now.
    fn on_refresh(&mut self, node: usize) {
        self.nodes[node].refresh_planned = false;
        if !self.nodes[node].is_up || self.revoked.contains(&node) {
            return;
        }
        let known = self.known(node);
        let own = self.nodes[node].identity.key;
        self.nodes[node].members.clone_from(&known.members);
        let wanted: BTreeSet<usize> =
            known.topology.links(&own).filter_map(|key| self.index.get(&key).copied()).collect();
        let unwanted: Vec<usize> = self.nodes[node]
            .links
            .keys()
            .copied()
            .filter(|peer| !wanted.contains(peer) && !self.nodes[*peer].wanted.contains(&node))
            .chain(self.nodes[node].links.keys().copied().filter(|peer| !self.nodes[node].lets_in(*peer)))
            .collect();
        for peer in unwanted {
            self.drop_link(node, peer);
        }
        self.nodes[node].wanted.clone_from(&wanted);
        for peer in wanted {
            self.dial_soon(node, peer);
        }
        self.tell_host(node, &known);
    }

    /// What follows from the records of a node; nodes that hold the same share the answer.
    pub(crate) fn known(&mut self, node: usize) -> Rc<Known> {
        let (_, fingerprint) = Fingerprint::of(self.nodes[node].records.roster.hashes().copied());
        let key = (fingerprint, self.nodes[node].clock_ahead);
        if let Some(known) = self.known.get(&key) {
            return Rc::clone(known);
        }
        let view = self.view(node);
        let mut members = vec![false; self.nodes.len()];
        for member in view.reachable() {
            if let Some(index) = self.index.get(&member.node) {
                members[*index] = true;
            }
        }
        let peer = |m: &MemberView| Member { node: m.node, wg: m.wg, prefix: m.prefix, ipv4: m.ipv4 };
        let peers = view.reachable().map(peer).collect();
        let known = Rc::new(Known { topology: Topology::of_view(&view), members, peers });
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(key, Rc::clone(&known));
        known
    }

    fn dial_soon(&mut self, from: usize, to: usize) {
        let node = &mut self.nodes[from];
        if node.links.contains_key(&to) || node.dialling.contains_key(&to) {
            return;
        }
        node.dialling.insert(to, 0);
        let first = links::dials_first(&self.nodes[from].identity.key, &self.nodes[to].identity.key);
        let after_us = self.random.below(SECOND_US / 2) + if first { 0 } else { DIAL_YIELD_US };
        self.schedule(after_us, Event::Dial { from, to });
    }

    fn on_dial(&mut self, from: usize, to: usize) {
        let node = &self.nodes[from];
        if node.links.contains_key(&to) || !node.wanted.contains(&to) || !node.is_up || !node.lets_in(to) {
            self.nodes[from].dialling.remove(&to);
            return;
        }
        let answers = self.nodes[to].is_up && self.reaches(from, to);
        if answers && self.nodes[to].lets_in(from) {
            // One and a half round trips: handshake, then the first request.
            let (a, b) = (self.nodes[from].identity.site, self.nodes[to].identity.site);
            let after_us = 3 * self.network.base_us(a, b);
            self.schedule(after_us, Event::LinkUp { from, to });
            return;
        }
        let failures = self.nodes[from].dialling.get(&to).copied().unwrap_or(0).saturating_add(1);
        self.nodes[from].dialling.insert(to, failures);
        let pause_us = (SECOND_US << failures.min(6)).min(REDIAL_US_MAX);
        let timeout_us = if answers { 0 } else { DIAL_TIMEOUT_US };
        let after_us = timeout_us + pause_us / 2 + self.random.below(pause_us / 2);
        self.schedule(after_us, Event::Dial { from, to });
    }

    fn on_link_up(&mut self, from: usize, to: usize) {
        self.nodes[from].dialling.remove(&to);
        let both_let_in = self.nodes[from].lets_in(to) && self.nodes[to].lets_in(from);
        if self.nodes[from].links.contains_key(&to) {
            return;
        }
        if !self.reaches(from, to) || !both_let_in {
            self.dial_soon(from, to);
            return;
        }
        // The other end may not have noticed that an earlier link died.
        if self.nodes[to].links.contains_key(&from) {
            self.drop_link(to, from);
        }
        self.links_made += 1;
        let now = self.instant();
        self.trace.event(self.now_us, 8, from, to, 0);
        for (node, peer) in [(from, to), (to, from)] {
            let key = self.nodes[peer].identity.key;
            let link = self.links_made;
            let node_state = &mut self.nodes[node];
            node_state.dialling.remove(&peer);
            node_state.links.insert(peer, link);
            node_state.links_max = node_state.links_max.max(node_state.links.len());
            node_state.syncer.handle_link_up(key, now);
        }
        self.pump(from);
        self.pump(to);
    }

    /// One end closes a link, or finds it dead; the other end hears of it, or finds out by itself.
    fn drop_link(&mut self, node: usize, peer: usize) {
        let Some(link) = self.nodes[node].links.remove(&peer) else { return };
        let (now, key) = (self.instant(), self.nodes[peer].identity.key);
        self.trace.event(self.now_us, 9, node, peer, 0);
        self.nodes[node].syncer.handle_link_down(&key, now);
        let after_us = if self.reaches(node, peer) {
            self.network.base_us(self.nodes[node].identity.site, self.nodes[peer].identity.site)
        } else {
            30 * SECOND_US
        };
        self.schedule(after_us, Event::LinkLost { node: peer, peer: node, link });
        if self.nodes[node].wanted.contains(&peer) {
            self.dial_soon(node, peer);
        }
        self.set_timer(node);
    }

    /// How many members a node's view shows in each standing: current, in grace, expired, revoked.
    pub(crate) fn standings(&self, node: usize) -> [usize; 4] {
        let mut counts = [0; 4];
        for member in self.view(node).members.values() {
            let at = match member.standing {
                Standing::Current => 0,
                Standing::Grace { .. } => 1,
                Standing::Expired => 2,
                Standing::Revoked => 3,
            };
            counts[at] += 1;
        }
        counts
    }

    pub(crate) fn checks(&self) -> u64 {
        self.verifier.borrow().checks()
    }
}

/// Rounded up, or a timer would fire before it is due.
pub(crate) fn micros_up(span: Duration) -> u64 {
    u64::try_from(span.as_nanos().div_ceil(1000)).expect("fewer than 584,000 years")
}
