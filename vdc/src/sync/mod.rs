//! Record sync between members: push on change, anti-entropy by hashed ranges.
//!
//! [`Syncer`] keeps a set of records ([`Records`], in practice the [`crate::roster::Roster`]) equal to that of every node
//! it has a control link with. New records are pushed at once. What pushes miss (links that were down, messages that were
//! lost, queues that overflowed) is found by comparing [`Fingerprint`]s of ranges of the sorted record hashes: equal sets
//! cost one small message each way, a difference of k records in n costs O(k log n) bytes.
//!
//! It trusts no peer. Whatever a peer sends is judged by the records' own signatures; what its answers and junk cost is
//! drawn from budgets of its own; everything kept for it is bounded.
//!
//! Sans-IO, no clock, no randomness. Drive order: any `handle_*`, then [`Syncer::poll_transmit`] and
//! [`Syncer::poll_event`] until both are empty, then sleep until [`Syncer::poll_timeout`] and call
//! [`Syncer::handle_timeout`]. Records reported by [`Event::Applied`] are made durable by the driver.

mod budget;
mod compare;
mod early;
mod message;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use budget::Budget;
use compare::{Answer, digest};
use early::{Declined, Early};
pub use message::{
    Content, Fingerprint, IDS_MAX, Ids, MESSAGE_BYTES_MAX, Message, Packed, Prefix, RANGES_MAX, RECORDS_MAX, Range,
};

use crate::record::Authority;
use crate::roster::{Outcome, RefusedReason, Roster};
use crate::{Body, Hash, Key, Signed};

/// Shortest time between two comparisons over a link whose ends were found equal; up to as much again is added at random.
/// A comparison takes about 8 packets (two requests with their responses and acknowledgements); every 30 minutes on
/// average they fit beside a 45 s keepalive into 1 packet per 20 s.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(20 * 60);
/// Pause before a comparison is repeated that found a difference and led to progress; doubles while there is none.
pub const RECHECK: Duration = Duration::from_millis(500);
/// Longest such pause, and up to as much again: a peer that stays different (it is of another release, or lies) costs a few
/// small messages in a minute or two.
pub const RECHECK_MAX: Duration = Duration::from_secs(60);
/// After a tombstone or block, all links are compared within this time: a push that was lost must not wait for
/// [`CHECK_INTERVAL`].
pub const CHECK_AFTER_END: Duration = Duration::from_secs(10);
/// A comparison without an answer for this long is given up.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// The end with the higher key leaves the first comparison on a new link to the other end for this long.
const CHECK_YIELD: Duration = Duration::from_secs(2);
/// Comparisons that we run at the same time.
pub const CHECKS_MAX: usize = 3;
/// Records up to this length are pushed, longer ones announced and fetched by those who lack them.
pub const PUSH_BYTES_MAX: usize = 16 << 10;
/// Records queued for pushing to one peer. On overflow the peer is compared instead.
pub const PUSH_MAX: usize = 1024;
/// Hashes queued for one peer in each of the queues "have" and "serve". On overflow the rest is left to the next
/// comparison.
pub const QUEUE_MAX: usize = 4096;
/// Answers to comparisons queued for one peer; beyond that they are dropped and the peer's comparison times out.
const REPLIES_MAX: usize = 2;
/// Fetches under way from one peer: 2,048 × (32 + 72) bytes = 208 KiB. A larger difference takes several comparisons.
pub const WANTED_MAX: usize = 2048;
/// Links that are synced; control keeps at most 30 of its own and accepts some more.
pub const PEERS_MAX: usize = 40;
/// An unanswered fetch goes to the next peer that announced the record after this long.
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);
/// Peers remembered per fetch as alternatives.
const FETCH_OTHERS_MAX: usize = 3;
/// Hashes of superseded records that are not asked for again: 32 KiB.
const DECLINED_MAX: usize = 1024;
/// Bytes of records kept because the right of their issuer is not known yet: from one peer and from all.
pub const EARLY_BYTES_MAX: usize = 1 << 20;
pub const EARLY_PEER_BYTES_MAX: usize = 128 << 10;
/// What a peer may send: burst and bytes per second. A roster of 1,000 nodes is 1.5 MB. Junk counts [`JUNK_WEIGHT`] times.
const INTAKE: (u64, u64) = (8 << 20, 256 << 10);
/// What a peer may make us send: burst and bytes per second.
const OUTPUT: (u64, u64) = (4 << 20, 256 << 10);
/// Reading a held hash for a comparison costs time, not bytes; this is what it is charged as.
const TOUCH_BYTES: usize = 4;
/// A refused record costs a signature check, about as much as hashing 16 good ones.
const JUNK_WEIGHT: usize = 16;
/// Nodes whose last confirmation is remembered beyond their link.
const CONFIRMED_MAX: usize = 64;

/// What sync needs of the set it keeps equal.
///
/// The set must be a join-semilattice: the order of [`Records::insert`]s never matters for what is held in the end.
pub trait Records {
    /// Changes whenever the set of held hashes changes.
    fn version(&self) -> u64;
    /// The hashes held from `first` to `last`, both included, ascending.
    fn hashes_in(&self, first: Hash, last: Hash) -> impl Iterator<Item = Hash>;
    fn record(&self, hash: &Hash) -> Option<Arc<Signed>>;
    fn contains(&self, hash: &Hash) -> bool;
    fn insert(&mut self, record: Arc<Signed>) -> Merge;
}

/// What became of an inserted record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    New,
    Known,
    /// What is held already outranks it, for good.
    Superseded,
    /// The right of the issuer is not known; it may be later.
    Early,
    Refused,
}

impl From<Outcome> for Merge {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::New => Self::New,
            Outcome::Known => Self::Known,
            // The owners' closings are final, and honest peers that have not heard of one offer what it voided.
            Outcome::Superseded | Outcome::Refused(RefusedReason::Closed) => Self::Superseded,
            Outcome::Refused(RefusedReason::UnknownIssuer) => Self::Early,
            Outcome::Refused(
                RefusedReason::Signature
                | RefusedReason::Form(_)
                | RefusedReason::NotAllowed
                | RefusedReason::Threshold
                | RefusedReason::Estate(_)
                | RefusedReason::Full,
            ) => Self::Refused,
        }
    }
}

impl Records for Roster {
    fn version(&self) -> u64 {
        Roster::version(self)
    }

    fn hashes_in(&self, first: Hash, last: Hash) -> impl Iterator<Item = Hash> {
        self.hashes_within(first..=last).copied()
    }

    fn record(&self, hash: &Hash) -> Option<Arc<Signed>> {
        self.get(hash).cloned()
    }

    fn contains(&self, hash: &Hash) -> bool {
        Roster::contains(self, hash)
    }

    fn insert(&mut self, record: Arc<Signed>) -> Merge {
        Roster::insert(self, record).into()
    }
}

/// What the driver learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The set grew by these, received from `from` (or kept [`Merge::Early`] until then).
    Applied { from: Key, records: Vec<Arc<Signed>> },
    /// A peer sent what it should not have.
    Refused { from: Key, refusals: Refusals },
    /// Both ends hold the same set.
    Confirmed { with: Key },
}

/// What a peer sent in vain, since its link came up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Messages outside the limits.
    pub messages_malformed: u64,
    /// Messages beyond the peer's budget, unread.
    pub messages_over_budget: u64,
    /// Records that do not decode.
    pub records_unreadable: u64,
    /// Records that the set refused.
    pub records_refused: u64,
    /// Records of unknown issuers for which there was no room.
    pub records_early: u64,
}

impl Refusals {
    fn since(self, before: Self) -> Self {
        Self {
            messages_malformed: self.messages_malformed - before.messages_malformed,
            messages_over_budget: self.messages_over_budget - before.messages_over_budget,
            records_unreadable: self.records_unreadable - before.records_unreadable,
            records_refused: self.records_refused - before.records_refused,
            records_early: self.records_early - before.records_early,
        }
    }
}

/// One linked peer as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerView {
    pub node: Key,
    pub up_since: Instant,
    /// When both ends were last known to hold the same.
    pub confirmed: Option<Instant>,
    pub refusals: Refusals,
}

/// The sync state machine of one node in one VDC.
#[derive(Debug)]
pub struct Syncer {
    own: Key,
    jitter: Jitter,
    peers: BTreeMap<Key, Peer>,
    confirmed: BTreeMap<Key, Instant>,
    wanted: BTreeMap<Hash, Want>,
    /// Wanted hashes in the order in which they time out.
    wanted_order: VecDeque<(Instant, Hash)>,
    early: Early,
    declined: Declined,
    /// Digest of the whole set and the version it was taken at.
    root: Option<(u64, u32, Fingerprint)>,
    events: VecDeque<Event>,
    now: Instant,
}

#[derive(Debug)]
struct Peer {
    up_since: Instant,
    check_at: Instant,
    check: Option<Check>,
    /// Version of the set at the last comparison that we started.
    checked: Option<u64>,
    /// Comparisons in a row between which the set stayed what it was.
    fruitless: u32,
    /// Entries of [`Syncer::wanted`] that name this peer as their source.
    wants: usize,
    push: VecDeque<Arc<Signed>>,
    have: BTreeSet<Hash>,
    fetch: BTreeSet<Hash>,
    serve: VecDeque<Hash>,
    replies: VecDeque<Message>,
    intake: Budget,
    output: Budget,
    refusals: Refusals,
}

/// A comparison that we started.
#[derive(Debug)]
struct Check {
    sent: Fingerprint,
    deadline: Instant,
}

/// A fetch under way.
#[derive(Debug)]
struct Want {
    from: Key,
    due: Instant,
    /// Further peers that offered it.
    others: Vec<Key>,
}

impl Peer {
    fn new(check_at: Instant, now: Instant) -> Self {
        Self {
            up_since: now,
            check_at,
            check: None,
            checked: None,
            fruitless: 0,
            wants: 0,
            push: VecDeque::new(),
            have: BTreeSet::new(),
            fetch: BTreeSet::new(),
            serve: VecDeque::new(),
            replies: VecDeque::new(),
            intake: Budget::new(INTAKE.0, INTAKE.1, now),
            output: Budget::new(OUTPUT.0, OUTPUT.1, now),
            refusals: Refusals::default(),
        }
    }

    /// Queues a record for pushing; `long` ones are announced.
    fn enqueue(&mut self, record: &Arc<Signed>, long: bool, now: Instant) {
        if long && self.have.len() < QUEUE_MAX {
            self.have.insert(record.hash());
        } else if !long && self.push.len() < PUSH_MAX {
            self.push.push_back(Arc::clone(record));
        } else {
            self.check_at = self.check_at.min(now + RECHECK);
        }
    }

    fn reply(&mut self, message: Message, now: Instant) {
        if self.replies.len() < REPLIES_MAX && self.output.take(message.cost(), now) {
            self.replies.push_back(message);
        }
    }
}

impl Syncer {
    /// A syncer without links. `seed` spreads its timers; it needs no secrecy.
    #[must_use]
    pub fn new(own: Key, seed: [u8; 32], now: Instant) -> Self {
        Self {
            own,
            jitter: Jitter { seed, drawn: 0 },
            peers: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            wanted: BTreeMap::new(),
            wanted_order: VecDeque::new(),
            early: Early::default(),
            declined: Declined::default(),
            root: None,
            events: VecDeque::new(),
            now,
        }
    }

    /// A link to `node` is up. Both ends are compared at once; the end with the lower key begins.
    ///
    /// Links beyond [`PEERS_MAX`] are not synced.
    pub fn handle_link_up(&mut self, node: Key, now: Instant) {
        self.handle_link_down(&node, now);
        if self.peers.len() >= PEERS_MAX {
            return;
        }
        let wait = if self.own < node { Duration::ZERO } else { CHECK_YIELD };
        let check_at = now + wait + self.jitter.up_to(RECHECK);
        self.peers.insert(node, Peer::new(check_at, now));
    }

    /// The link to `node` is gone, and with it everything queued for it.
    pub fn handle_link_down(&mut self, node: &Key, now: Instant) {
        self.advance(now);
        self.peers.remove(node);
        self.early.forget(node);
        let orphans: Vec<Hash> = self.wanted.iter().filter(|(_, w)| w.from == *node).map(|(hash, _)| *hash).collect();
        for hash in orphans {
            self.on_fetch_failed(hash, now);
        }
    }

    /// A message to `node` could not be delivered although the link is up.
    pub fn handle_lost(&mut self, node: &Key, now: Instant) {
        self.advance(now);
        if let Some(peer) = self.peers.get_mut(node) {
            peer.check_at = peer.check_at.min(now + RECHECK + self.jitter.up_to(RECHECK));
        }
    }

    /// The driver put these records into the set itself: its own, or those that a join granted.
    pub fn handle_local<R: Records>(&mut self, hashes: &[Hash], records: &mut R, now: Instant) {
        self.advance(now);
        let new: Vec<Arc<Signed>> = hashes.iter().filter_map(|hash| records.record(hash)).collect();
        self.on_applied(new.into_iter().map(|record| (None, record)).collect(), records, now);
    }

    /// A message came from `from`, whose link must be up; otherwise it is ignored.
    pub fn handle_message<R: Records>(&mut self, from: Key, message: Message, records: &mut R, now: Instant) {
        self.advance(now);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let before = peer.refusals;
        if message.check().is_err() {
            peer.refusals.messages_malformed += 1;
            peer.intake.drain(JUNK_WEIGHT * message.cost());
        } else if peer.intake.take(message.cost(), now) {
            match message {
                Message::Ranges(ranges) => self.on_ranges(from, ranges, records, now),
                Message::Equal(fingerprint) => self.on_equal(from, fingerprint, now),
                Message::Have(ids) => self.on_have(from, ids.as_slice(), records, now),
                Message::Fetch(ids) => self.on_fetch(&from, &ids, records),
                Message::Records(packed) => self.on_records(from, packed, records, now),
            }
        } else {
            peer.refusals.messages_over_budget += 1;
        }
        let after = self.peers.get(&from).map_or(before, |peer| peer.refusals);
        if after != before {
            self.events.push_back(Event::Refused { from, refusals: after.since(before) });
        }
    }

    /// Does what is due; see [`Syncer::poll_timeout`].
    pub fn handle_timeout<R: Records>(&mut self, records: &R, now: Instant) {
        self.advance(now);
        while let Some((_, hash)) = self.wanted_order.pop_front_if(|(due, _)| *due <= now) {
            // It may have been answered and asked for again since.
            if self.wanted.get(&hash).is_some_and(|want| want.due <= now) {
                self.on_fetch_failed(hash, now);
            }
        }
        let late: Vec<Key> = self
            .peers
            .iter()
            .filter(|(_, p)| p.check.as_ref().is_some_and(|c| c.deadline <= now))
            .map(|(k, _)| *k)
            .collect();
        for node in late {
            self.finish_check(&node, now);
        }
        self.start_checks(records, now);
    }

    /// When [`Syncer::handle_timeout`] wants to be called, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let mut next: Option<(Instant, &'static str)> = None;
        let mut consider = |at: Instant, why| {
            if next.is_none_or(|(soonest, _)| at < soonest) {
                next = Some((at, why));
            }
        };
        if let Some((due, _)) = self.wanted_order.front() {
            consider(*due, "fetch unanswered");
        }
        let mut running = 0;
        for check in self.peers.values().filter_map(|p| p.check.as_ref()) {
            running += 1;
            consider(check.deadline, "comparison unanswered");
        }
        for peer in self.peers.values() {
            if running < CHECKS_MAX && peer.check.is_none() {
                consider(peer.check_at, "comparison due");
            }
            if !peer.serve.is_empty() {
                consider(peer.output.ready_at(MESSAGE_BYTES_MAX), "peer's budget refills");
            }
        }
        next
    }

    /// The next message to send: pushes of any peer first, then what keeps comparisons and fetches going.
    pub fn poll_transmit<R: Records>(&mut self, records: &R, now: Instant) -> Option<(Key, Message)> {
        self.advance(now);
        for (node, peer) in &mut self.peers {
            if !peer.push.is_empty() {
                return Some((*node, Message::Records(take_push(&mut peer.push))));
            }
        }
        for (node, peer) in &mut self.peers {
            if let Some(message) = peer.replies.pop_front() {
                return Some((*node, message));
            }
            if !peer.fetch.is_empty() {
                return Some((*node, Message::Fetch(take(&mut peer.fetch))));
            }
            if !peer.have.is_empty() {
                return Some((*node, Message::Have(take(&mut peer.have))));
            }
            if let Some(message) = serve(peer, records, now) {
                return Some((*node, message));
            }
        }
        None
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When this node and `node` were last known to hold the same set: the age of the view, as seen by that node.
    #[must_use]
    pub fn confirmed_with(&self, node: &Key) -> Option<Instant> {
        self.confirmed.get(node).copied()
    }

    /// The latest confirmation with any node.
    #[must_use]
    pub fn last_confirmed(&self) -> Option<(Key, Instant)> {
        self.confirmed.iter().map(|(node, at)| (*node, *at)).max_by_key(|(_, at)| *at)
    }

    /// The linked peers, ascending by key.
    pub fn peers(&self) -> impl Iterator<Item = PeerView> + '_ {
        self.peers.iter().map(|(node, peer)| PeerView {
            node: *node,
            up_since: peer.up_since,
            confirmed: self.confirmed_with(node),
            refusals: peer.refusals,
        })
    }

    fn advance(&mut self, now: Instant) {
        assert!(now >= self.now, "the driver's clock is monotonic");
        self.now = now;
    }

    fn root<R: Records>(&mut self, records: &R) -> (u32, Fingerprint) {
        let version = records.version();
        match self.root {
            Some((at, count, fingerprint)) if at == version => (count, fingerprint),
            _ => {
                let (count, fingerprint) = digest(records, Prefix::ROOT);
                self.root = Some((version, count, fingerprint));
                (count, fingerprint)
            }
        }
    }

    fn start_checks<R: Records>(&mut self, records: &R, now: Instant) {
        let running = self.peers.values().filter(|p| p.check.is_some()).count();
        let mut due: Vec<(Instant, Key)> = self
            .peers
            .iter()
            .filter(|(_, p)| p.check.is_none() && p.check_at <= now)
            .map(|(node, p)| (p.check_at, *node))
            .collect();
        if due.is_empty() || running >= CHECKS_MAX {
            return;
        }
        due.sort_unstable();
        let (count, fingerprint) = self.root(records);
        let version = records.version();
        for (_, node) in due.into_iter().take(CHECKS_MAX - running) {
            let peer = self.peers.get_mut(&node).expect("its key was just read from the map");
            peer.fruitless = if peer.checked == Some(version) { peer.fruitless.saturating_add(1) } else { 0 };
            peer.checked = Some(version);
            peer.check = Some(Check { sent: fingerprint, deadline: now + CHECK_TIMEOUT });
            let content = Content::Digest(count, fingerprint);
            peer.reply(Message::Ranges(vec![Range { prefix: Prefix::ROOT, content }]), now);
        }
    }

    /// Ends the comparison that we started with `node`, without a confirmation, and plans the next one.
    fn finish_check(&mut self, node: &Key, now: Instant) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        if peer.check.take().is_none() {
            return;
        }
        let pause = (RECHECK * 2_u32.pow(peer.fruitless.min(8))).min(RECHECK_MAX);
        peer.check_at = now + pause + self.jitter.up_to(pause);
    }

    fn confirm(&mut self, with: Key, now: Instant) {
        let Some(peer) = self.peers.get_mut(&with) else { return };
        peer.check = None;
        peer.fruitless = 0;
        // The end with the lower key comes first next time as well.
        let interval = if self.own < with { CHECK_INTERVAL } else { CHECK_INTERVAL * 2 };
        peer.check_at = now + interval + self.jitter.up_to(CHECK_INTERVAL);
        if self.confirmed.len() >= CONFIRMED_MAX && !self.confirmed.contains_key(&with) {
            let oldest = self.confirmed.iter().min_by_key(|(_, at)| **at).map(|(node, _)| *node);
            oldest.map(|node| self.confirmed.remove(&node));
        }
        self.confirmed.insert(with, now);
        self.events.push_back(Event::Confirmed { with });
    }

    fn on_ranges<R: Records>(&mut self, from: Key, ranges: Vec<Range>, records: &R, now: Instant) {
        let mut answer = Answer::default();
        let mut equal = None;
        let mut ranges = ranges;
        // More may differ than one answer has room for. If those that do not fit were always the same, records that wait
        // for what lies in them would wait forever.
        let first = self.jitter.below(ranges.len());
        ranges.rotate_left(first);
        for Range { prefix, content } in ranges {
            match content {
                Content::Digest(theirs, fingerprint) if prefix == Prefix::ROOT => {
                    let mine = self.root(records);
                    if mine == (theirs, fingerprint) {
                        equal = Some(fingerprint);
                    } else {
                        answer.on_digest(records, prefix, mine.0, theirs);
                    }
                }
                Content::Digest(theirs, fingerprint) => {
                    let mine = digest(records, prefix);
                    answer.touched += mine.0 as usize;
                    if mine != (theirs, fingerprint) {
                        answer.on_digest(records, prefix, mine.0, theirs);
                    }
                }
                Content::Ids(ids) => answer.on_ids(records, prefix, ids.as_slice()),
            }
        }
        answer.ranges.sort_unstable_by_key(|range| range.prefix.first());
        self.on_have(from, &answer.want, records, now);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.intake.drain(TOUCH_BYTES * answer.touched);
        let room = QUEUE_MAX.saturating_sub(peer.have.len());
        peer.have.extend(answer.have.iter().take(room));
        if let Some(fingerprint) = equal {
            peer.reply(Message::Equal(fingerprint), now);
            self.confirm(from, now);
            return;
        }
        let goes_on = answer.goes_on();
        if !answer.ranges.is_empty() {
            peer.reply(Message::Ranges(answer.ranges), now);
        }
        match &mut peer.check {
            Some(check) if goes_on => check.deadline = now + CHECK_TIMEOUT,
            Some(_) | None => self.finish_check(&from, now),
        }
    }

    fn on_equal(&mut self, from: Key, fingerprint: Fingerprint, now: Instant) {
        let asked = self.peers.get(&from).and_then(|p| p.check.as_ref()).is_some_and(|c| c.sent == fingerprint);
        if asked {
            self.confirm(from, now);
        }
    }

    fn on_have<R: Records>(&mut self, from: Key, ids: &[Hash], records: &R, now: Instant) {
        for id in ids {
            if records.contains(id) || self.early.contains(id) || self.declined.contains(id) {
                continue;
            }
            if let Some(want) = self.wanted.get_mut(id) {
                if want.from != from && want.others.len() < FETCH_OTHERS_MAX && !want.others.contains(&from) {
                    want.others.push(from);
                }
            } else if !self.fetch(*id, from, Vec::new(), now) {
                return;
            }
        }
    }

    /// Asks `from` for a record; false if it owes us too many already, or is gone.
    fn fetch(&mut self, hash: Hash, from: Key, others: Vec<Key>, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&from) else { return false };
        if peer.wants >= WANTED_MAX {
            return false;
        }
        peer.wants += 1;
        peer.fetch.insert(hash);
        let due = now + FETCH_TIMEOUT;
        self.wanted.insert(hash, Want { from, due, others });
        self.wanted_order.push_back((due, hash));
        true
    }

    /// Ends a fetch, answered or not.
    fn unfetch(&mut self, hash: &Hash) -> Option<Want> {
        let want = self.wanted.remove(hash)?;
        if let Some(peer) = self.peers.get_mut(&want.from) {
            peer.wants -= 1;
            peer.fetch.remove(hash);
        }
        Some(want)
    }

    /// A fetch ran out of time or lost its link: asks the next peer that has the record, or gives up until a comparison.
    fn on_fetch_failed(&mut self, hash: Hash, now: Instant) {
        let Some(mut want) = self.unfetch(&hash) else { return };
        while !want.others.is_empty() {
            let from = want.others.remove(0);
            if self.fetch(hash, from, want.others.clone(), now) {
                return;
            }
        }
    }

    fn on_fetch<R: Records>(&mut self, from: &Key, ids: &Ids, records: &R) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        let mut held: Vec<Arc<Signed>> = ids.as_slice().iter().filter_map(|id| records.record(id)).collect();
        held.sort_by_key(|record| rank(record));
        let room = QUEUE_MAX.saturating_sub(peer.serve.len());
        peer.serve.extend(held.iter().take(room).map(|record| record.hash()));
    }

    fn on_records<R: Records>(&mut self, from: Key, packed: Vec<Packed>, records: &mut R, now: Instant) {
        let mut applied = Vec::new();
        for packed in packed {
            let Some(peer) = self.peers.get_mut(&from) else { return };
            let cost = packed.cost();
            let Ok(record) = packed.open() else {
                peer.refusals.records_unreadable += 1;
                peer.intake.drain(JUNK_WEIGHT * cost);
                continue;
            };
            let hash = record.hash();
            // It has the record, so it need not get it from us.
            peer.push.retain(|queued| queued.hash() != hash);
            peer.have.remove(&hash);
            self.unfetch(&hash);
            let merge = records.insert(Arc::clone(&record));
            let Some(peer) = self.peers.get_mut(&from) else { return };
            match merge {
                Merge::New => applied.push((Some(from), record)),
                Merge::Known => {}
                Merge::Superseded => self.declined.insert(hash),
                Merge::Early => {
                    if !self.early.insert(from, record, cost) {
                        peer.refusals.records_early += 1;
                    }
                }
                Merge::Refused => {
                    peer.refusals.records_refused += 1;
                    peer.intake.drain(JUNK_WEIGHT * cost);
                }
            }
        }
        self.on_applied(applied, records, now);
    }

    /// Pushes what is new to everybody but its source, then tries what was early until nothing moves.
    fn on_applied<R: Records>(&mut self, new: Vec<(Option<Key>, Arc<Signed>)>, records: &mut R, now: Instant) {
        let mut new = new;
        while !new.is_empty() {
            for (source, record) in &new {
                self.push(source.as_ref(), record, now);
            }
            let grounds = new.iter().any(|(_, record)| is_ground(record));
            let mut by_source: BTreeMap<Key, Vec<Arc<Signed>>> = BTreeMap::new();
            for (source, record) in new {
                if let Some(source) = source {
                    by_source.entry(source).or_default().push(record);
                }
            }
            self.events.extend(by_source.into_iter().map(|(from, records)| Event::Applied { from, records }));
            if !grounds || self.early.is_empty() {
                return;
            }
            new = self.retry_early(records);
        }
    }

    fn push(&mut self, source: Option<&Key>, record: &Arc<Signed>, now: Instant) {
        let may_be_long = matches!(record.body, Body::Tombstone(_) | Body::Policy(_));
        let long = may_be_long && record.encode().len() > PUSH_BYTES_MAX;
        for (node, peer) in &mut self.peers {
            if is_brake(record) {
                let wait = CHECK_AFTER_END / 2 + self.jitter.up_to(CHECK_AFTER_END / 2);
                peer.check_at = peer.check_at.min(now + wait);
            }
            if source != Some(node) {
                peer.enqueue(record, long, now);
            }
        }
    }

    fn retry_early<R: Records>(&mut self, records: &mut R) -> Vec<(Option<Key>, Arc<Signed>)> {
        let mut applied = Vec::new();
        for (from, record, cost) in self.early.take() {
            match records.insert(Arc::clone(&record)) {
                Merge::New => applied.push((Some(from), record)),
                Merge::Known => {}
                Merge::Superseded => self.declined.insert(record.hash()),
                Merge::Early => {
                    self.early.insert(from, record, cost);
                }
                Merge::Refused => {
                    if let Some(peer) = self.peers.get_mut(&from) {
                        peer.refusals.records_refused += 1;
                        peer.intake.drain(JUNK_WEIGHT * cost);
                    }
                }
            }
        }
        applied
    }
}

/// Order in which records are sent: what others stand on, then what ends rights or flows, then the rest.
fn rank(record: &Signed) -> u8 {
    match &record.body {
        Body::Genesis(_) => 0,
        Body::Delegation(delegation) => match delegation.authority {
            Authority::Admin => 1,
            Authority::Registrar(_) => 2,
        },
        Body::Tombstone(_) | Body::Block(_) => 3,
        Body::Site(_) => 4,
        Body::Member(_) => 5,
        Body::Grant(_) => 6,
        Body::Policy(_) | Body::Founding(_) => 7,
        Body::Contact(_) | Body::Exposure(_) => 8,
    }
}

/// Whether other records can stand on this one.
fn is_ground(record: &Signed) -> bool {
    matches!(record.body, Body::Delegation(_) | Body::Member(_))
}

/// Whether the record takes something away that must not be used a moment longer.
fn is_brake(record: &Signed) -> bool {
    matches!(record.body, Body::Tombstone(_) | Body::Block(_))
}

/// The next batch of a push queue, in the order of [`rank`].
fn take_push(queue: &mut VecDeque<Arc<Signed>>) -> Vec<Packed> {
    // As many of the longest that is pushed fill half a message; the other half is counted.
    const UNCOUNTED: usize = MESSAGE_BYTES_MAX / 2 / PUSH_BYTES_MAX;
    let waiting = queue.make_contiguous();
    waiting.sort_by_key(|record| rank(record));
    let mut bytes = 0;
    let mut count = waiting.len().min(UNCOUNTED);
    while let Some(record) = waiting.get(count) {
        bytes += record.encode().len();
        if bytes > MESSAGE_BYTES_MAX / 2 || count == RECORDS_MAX {
            break;
        }
        count += 1;
    }
    queue.drain(..count).map(Packed::Shared).collect()
}

/// Takes as many hashes as a message holds.
fn take(queue: &mut BTreeSet<Hash>) -> Ids {
    std::iter::from_fn(|| queue.pop_first()).take(IDS_MAX).collect()
}

/// The next batch of records that a peer fetched, if its budget has room for one.
fn serve<R: Records>(peer: &mut Peer, records: &R, now: Instant) -> Option<Message> {
    if peer.serve.is_empty() || !peer.output.has(MESSAGE_BYTES_MAX, now) {
        return None;
    }
    let mut batch = Vec::new();
    let mut bytes = 0;
    while let Some(hash) = peer.serve.front() {
        // Superseded since it was asked for: the newer one is on its way.
        let Some(record) = records.record(hash) else {
            peer.serve.pop_front();
            continue;
        };
        let length = record.encode().len();
        if !batch.is_empty() && (bytes + length > MESSAGE_BYTES_MAX || batch.len() == RECORDS_MAX) {
            break;
        }
        bytes += length;
        batch.push(Packed::Shared(record));
        peer.serve.pop_front();
    }
    peer.output.drain(bytes);
    (!batch.is_empty()).then_some(Message::Records(batch))
}

/// Small pseudo-random numbers from a seed.
#[derive(Debug)]
struct Jitter {
    seed: [u8; 32],
    drawn: u64,
}

impl Jitter {
    /// A duration from zero to `span`, in whole microseconds.
    fn up_to(&mut self, span: Duration) -> Duration {
        let span_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        Duration::from_micros(self.draw() % span_us)
    }

    /// A number below `bound`, which is not zero.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.draw() % bound as u64).expect("below a usize")
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        let hash = blake3::keyed_hash(&self.seed, &self.drawn.to_le_bytes());
        let (draw, _) = hash.as_bytes().split_first_chunk::<8>().expect("a hash has 32 bytes");
        u64::from_le_bytes(*draw)
    }
}

// Worst case over all peers: queues, fetches, early records.
const _: () = assert!(
    PEERS_MAX * (2 * QUEUE_MAX * 32 + PUSH_MAX * 8 + REPLIES_MAX * (RANGES_MAX * 36 + IDS_MAX * 32) + WANTED_MAX * 136)
        + EARLY_BYTES_MAX
        <= 40 << 20,
    "sync's memory is bounded"
);
