use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;
use crate::record::{Estate, Exposure, Tombstone};
use crate::roster::issue;
use crate::{Name, Office, SigningKey, UnixTime, VdcId, WgKey};

const VDC: VdcId = VdcId([9; 32]);

/// A set that takes everything: sync without the rules of the roster.
#[derive(Debug, Default)]
struct RecordsFake {
    held: BTreeMap<Hash, Arc<Signed>>,
    version: u64,
    refuse: bool,
}

impl Records for RecordsFake {
    fn version(&self) -> u64 {
        self.version
    }

    fn hashes_in(&self, first: Hash, last: Hash) -> impl Iterator<Item = Hash> {
        self.held.range(first..=last).map(|(hash, _)| *hash)
    }

    fn record(&self, hash: &Hash) -> Option<Arc<Signed>> {
        self.held.get(hash).cloned()
    }

    fn contains(&self, hash: &Hash) -> bool {
        self.held.contains_key(hash)
    }

    fn insert(&mut self, record: Arc<Signed>) -> Merge {
        if self.refuse {
            return Merge::Refused;
        }
        if self.held.insert(record.hash(), record).is_some() {
            return Merge::Known;
        }
        self.version += 1;
        Merge::New
    }
}

fn signer() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn sign(number: u64, body: Body) -> Arc<Signed> {
    Arc::new(Signed::sign(&VDC, &signer(), Office::root(&VDC), number, body, &[]))
}

fn plain(number: u64) -> Arc<Signed> {
    sign(
        number,
        Body::Exposure(Exposure { node: Key([2; 32]), serial: number, ports: Vec::new(), workloads: Vec::new() }),
    )
}

fn tombstone(number: u64, estate_bytes: usize) -> Arc<Signed> {
    let estate = (estate_bytes > 0).then(|| Estate { last: 1, records: vec![vec![7; estate_bytes].into()] });
    let subject = Key([3; 32]);
    sign(number, Body::Tombstone(Tombstone { subject, floor: 1, at: UnixTime(5), reason: String::new(), estate }))
}

/// `count` distinct hashes for messages that need no records behind them.
fn made_up(count: u64) -> Vec<Hash> {
    (0..count).map(|n| Hash(*blake3::hash(&n.to_le_bytes()).as_bytes())).collect()
}

/// What the network does to a message, out of 100.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    lost: u64,
    repeated: u64,
    /// Most milliseconds by which a message is late; more than the spacing of messages reorders them.
    late_ms: u64,
}

type Flight = Reverse<(Instant, u64, usize, usize, Vec<u8>)>;

/// Replicas on a network under virtual time. Messages travel as bytes.
struct Net {
    now: Instant,
    nodes: Vec<(Key, Syncer, RecordsFake)>,
    flights: BinaryHeap<Flight>,
    faults: Faults,
    random: Jitter,
    sent: u64,
    bytes: usize,
}

impl Net {
    fn new(count: u8, seed: u64, faults: Faults) -> Self {
        let now = Instant::now();
        let node = |n: u8| (Key([n; 32]), Syncer::new(Key([n; 32]), [n; 32], now), RecordsFake::default());
        let mut seed_bytes = [0; 32];
        seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let random = Jitter { seed: seed_bytes, drawn: 0 };
        let nodes = (0..count).map(node).collect();
        Self { now, nodes, flights: BinaryHeap::new(), faults, random, sent: 0, bytes: 0 }
    }

    fn draw(&mut self, below: u64) -> u64 {
        u64::try_from(self.random.up_to(Duration::from_micros(below - 1)).as_micros()).expect("below u64::MAX")
    }

    fn hold(&mut self, at: usize, records: &[Arc<Signed>]) {
        for record in records {
            self.nodes[at].2.insert(Arc::clone(record));
        }
    }

    fn link(&mut self, a: usize, b: usize) {
        let (a_key, b_key) = (self.nodes[a].0, self.nodes[b].0);
        self.nodes[a].1.handle_link_up(b_key, self.now);
        self.nodes[b].1.handle_link_up(a_key, self.now);
    }

    fn issue(&mut self, at: usize, record: &Arc<Signed>) {
        let (_, syncer, records) = &mut self.nodes[at];
        records.insert(Arc::clone(record));
        syncer.handle_local(&[record.hash()], records, self.now);
        self.drain(at);
    }

    fn drain(&mut self, at: usize) {
        loop {
            let (_, syncer, records) = &mut self.nodes[at];
            let Some((node, message)) = syncer.poll_transmit(records, self.now) else { return };
            let bytes = message.encode();
            assert!(bytes.len() <= MESSAGE_BYTES_MAX || matches!(&message, Message::Records(r) if r.len() == 1));
            self.sent += 1;
            self.bytes += bytes.len();
            let to = self.nodes.iter().position(|(key, ..)| *key == node).expect("a node of this net");
            let copies = 1 + u64::from(self.draw(100) < self.faults.repeated);
            for _ in 0..copies {
                if self.draw(100) < self.faults.lost {
                    continue;
                }
                let late = Duration::from_millis(20 + self.draw(self.faults.late_ms + 1));
                let flight = (self.now + late, self.random.drawn, at, to, bytes.clone());
                self.flights.push(Reverse(flight));
            }
        }
    }

    /// Runs for `span`, or until nothing is left to do in it.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        for at in 0..self.nodes.len() {
            self.drain(at);
        }
        loop {
            let timer =
                (0..self.nodes.len()).filter_map(|at| self.nodes[at].1.poll_timeout().map(|(due, _)| (due, at))).min();
            let flight = self.flights.peek().map(|Reverse((due, ..))| *due);
            let next = timer.map(|(due, _)| due).into_iter().chain(flight).min();
            let Some(next) = next.filter(|due| *due <= end) else { break };
            self.now = self.now.max(next);
            let at = if flight == Some(next) {
                let Some(Reverse((_, _, from, to, bytes))) = self.flights.pop() else { break };
                let from = self.nodes[from].0;
                let message = Message::decode(&bytes).expect("what we encode decodes");
                let (_, syncer, records) = &mut self.nodes[to];
                syncer.handle_message(from, message, records, self.now);
                to
            } else {
                let Some((_, at)) = timer else { break };
                let (_, syncer, records) = &mut self.nodes[at];
                syncer.handle_timeout(records, self.now);
                at
            };
            self.drain(at);
        }
        self.now = end;
    }

    fn is_converged(&self) -> bool {
        self.nodes.windows(2).all(|pair| pair[0].2.held.keys().eq(pair[1].2.held.keys()))
    }
}

fn records(numbers: std::ops::Range<u64>) -> Vec<Arc<Signed>> {
    numbers.map(plain).collect()
}

#[test]
fn equal_sets_cost_one_small_message_each_way() {
    let mut net = Net::new(2, 1, Faults::default());
    let shared = records(1..500);
    net.hold(0, &shared);
    net.hold(1, &shared);
    net.link(0, 1);
    net.run(Duration::from_secs(60));
    assert_eq!(net.sent, 2);
    assert!(net.bytes <= 64, "{} bytes", net.bytes);
    for (at, other) in [(0, 1), (1, 0)] {
        let (other, (_, syncer, _)) = (net.nodes[other].0, &net.nodes[at]);
        assert!(syncer.confirmed_with(&other).is_some());
        assert_eq!(syncer.last_confirmed().map(|(node, _)| node), Some(other));
    }
    // A day of silence: at most one comparison per interval.
    net.run(Duration::from_secs(86_400));
    assert!(net.sent <= 2 + 2 * 86_400 / CHECK_INTERVAL.as_secs(), "{} messages", net.sent);
}

#[test]
fn difference_of_k_in_n_costs_k_log_n() {
    let shared = records(1..4001);
    for (k, bytes_max) in [(1, 6_000), (8, 30_000), (64, 150_000)] {
        let mut net = Net::new(2, k, Faults::default());
        net.hold(0, &shared);
        net.hold(1, &shared);
        net.hold(1, &records(10_000..10_000 + k));
        net.link(0, 1);
        net.run(Duration::from_secs(30));
        assert!(net.is_converged());
        assert!(net.bytes <= bytes_max, "{k} of 4000: {} bytes", net.bytes);
    }
}

#[test]
fn empty_replica_is_filled_within_its_records_and_a_quarter() {
    let mut net = Net::new(2, 3, Faults::default());
    let all = records(1..3001);
    net.hold(1, &all);
    net.link(0, 1);
    net.run(Duration::from_secs(30));
    assert!(net.is_converged());
    let length: usize = all.iter().map(|record| record.encode().len()).sum();
    assert!(net.bytes <= length * 5 / 4 + 2 * 32 * 3000, "{} bytes for {length}", net.bytes);
}

#[test]
fn ten_replicas_converge_after_a_partition() {
    let mut net = Net::new(10, 4, Faults::default());
    for at in 0..10_usize {
        let start = 1000 * at as u64 + 1;
        net.hold(at, &records(start..start + 100));
        net.link(at, (at + 1) % 10);
        net.link(at, (at + 3) % 10);
    }
    net.run(Duration::from_secs(60));
    assert!(net.is_converged());
    assert_eq!(net.nodes[0].2.held.len(), 1000);
}

#[test]
fn new_record_is_pushed_at_once() {
    let mut net = Net::new(5, 5, Faults::default());
    for at in 0..4 {
        net.link(at, at + 1);
    }
    net.run(Duration::from_secs(5));
    net.issue(0, &plain(1));
    net.run(Duration::from_millis(80));
    assert!(net.is_converged(), "four hops of 20 ms");
    let from = net.nodes[3].0;
    let events: Vec<Event> = std::iter::from_fn(|| net.nodes[4].1.poll_event()).collect();
    assert!(events.contains(&Event::Applied { from, records: vec![plain(1)] }), "{events:?}");
}

#[test]
fn brakes_are_sent_before_everything_else() {
    let mut net = Net::new(2, 6, Faults::default());
    net.link(0, 1);
    let batch: Vec<Arc<Signed>> = (1..40).map(plain).chain([tombstone(50, 0)]).collect();
    net.hold(0, &batch);
    let hashes: Vec<Hash> = batch.iter().map(|record| record.hash()).collect();
    let (now, (_, syncer, records)) = (net.now, &mut net.nodes[0]);
    syncer.handle_local(&hashes, records, now);
    let Some((_, Message::Records(sent))) = syncer.poll_transmit(records, now) else { panic!("no records") };
    assert_eq!(sent[0], Packed::Shared(tombstone(50, 0)));
}

#[test]
fn long_tombstone_is_announced_and_travels_each_way_once() {
    let mut net = Net::new(4, 7, Faults::default());
    for (a, b) in [(0, 1), (0, 2), (1, 3), (2, 3), (1, 2)] {
        net.link(a, b);
    }
    net.run(Duration::from_secs(5));
    let before = net.bytes;
    net.issue(0, &tombstone(1, 300 << 10));
    net.run(Duration::from_secs(2));
    assert!(net.is_converged());
    assert!(net.bytes - before < 3 * (310 << 10), "{} bytes for 3 receivers", net.bytes - before);
}

#[test]
fn lost_push_of_a_brake_is_found_within_seconds() {
    let mut net = Net::new(2, 8, Faults::default());
    net.link(0, 1);
    net.run(Duration::from_secs(5));
    net.faults.lost = 100;
    net.issue(0, &tombstone(1, 0));
    net.faults.lost = 0;
    net.run(CHECK_AFTER_END + Duration::from_secs(2));
    assert!(net.is_converged());
}

#[test]
fn undelivered_push_is_found_once_the_driver_says_so() {
    let mut net = Net::new(2, 8, Faults::default());
    net.link(0, 1);
    net.run(Duration::from_secs(5));
    net.faults.lost = 100;
    net.issue(0, &plain(1));
    net.faults.lost = 0;
    let (other, now) = (net.nodes[1].0, net.now);
    net.nodes[0].1.handle_lost(&other, now);
    net.run(Duration::from_secs(2));
    assert!(net.is_converged());
}

#[test]
fn fetch_goes_to_another_peer_when_the_first_is_silent() {
    let now = Instant::now();
    let (liar, honest) = (Key([1; 32]), Key([2; 32]));
    let mut records = RecordsFake::default();
    let mut syncer = Syncer::new(Key([0; 32]), [0; 32], now);
    syncer.handle_link_up(liar, now);
    syncer.handle_link_up(honest, now);
    let wanted: Ids = [plain(1).hash()].into_iter().collect();
    syncer.handle_message(liar, Message::Have(wanted.clone()), &mut records, now);
    syncer.handle_message(honest, Message::Have(wanted.clone()), &mut records, now);
    assert_eq!(syncer.poll_transmit(&records, now), Some((liar, Message::Fetch(wanted.clone()))));
    assert_eq!(syncer.poll_transmit(&records, now), None, "one fetch at a time");
    let later = now + FETCH_TIMEOUT;
    syncer.handle_timeout(&records, later);
    let fetches = std::iter::from_fn(|| syncer.poll_transmit(&records, later));
    assert!(fetches.into_iter().any(|sent| sent == (honest, Message::Fetch(wanted.clone()))));
    // A dead link frees its fetches as well.
    syncer.handle_message(liar, Message::Have(wanted.clone()), &mut records, later);
    syncer.handle_link_down(&honest, later);
    assert_eq!(syncer.poll_transmit(&records, later), Some((liar, Message::Fetch(wanted))));
}

#[test]
fn liar_that_offers_made_up_records_is_bounded_and_harms_nobody() {
    let mut net = Net::new(2, 9, Faults::default());
    let liar = Key([77; 32]);
    net.nodes[0].1.handle_link_up(liar, net.now);
    net.link(0, 1);
    net.hold(1, &records(1..200));
    for chunk in made_up(40_000).chunks(IDS_MAX) {
        let (_, syncer, records) = &mut net.nodes[0];
        syncer.handle_message(liar, Message::Have(chunk.iter().copied().collect()), records, net.now);
        assert!(syncer.wanted.len() <= WANTED_MAX);
        while syncer.poll_transmit(records, net.now).is_some() {}
    }
    net.nodes[0].1.handle_link_down(&liar, net.now);
    assert!(net.nodes[0].1.wanted.is_empty());
    net.run(Duration::from_secs(10));
    assert!(net.is_converged());
}

#[test]
fn flood_is_dropped_unread_once_the_budget_is_gone() {
    let now = Instant::now();
    let (liar, honest) = (Key([1; 32]), Key([2; 32]));
    let mut records = RecordsFake::default();
    for record in (1..2000).map(plain) {
        records.insert(record);
    }
    let mut syncer = Syncer::new(Key([0; 32]), [0; 32], now);
    syncer.handle_link_up(liar, now);
    syncer.handle_link_up(honest, now);
    let root = |seed: u8| {
        let content = Content::Digest(5, Fingerprint([seed; 16]));
        Message::Ranges(vec![Range { prefix: Prefix::ROOT, content }])
    };
    let mut answered = 0;
    for seed in 0..20_000_u32 {
        syncer.handle_message(liar, root(seed.to_le_bytes()[0]), &mut records, now);
        answered += std::iter::from_fn(|| syncer.poll_transmit(&records, now)).count();
    }
    let over = |syncer: &Syncer, node| syncer.peers().find(|p| p.node == node).map(|p| p.refusals.messages_over_budget);
    assert!(answered < 1100 && over(&syncer, liar) > Some(18_000), "{answered} answered");
    syncer.handle_message(honest, root(1), &mut records, now);
    assert_eq!(over(&syncer, honest), Some(0));
    assert!(matches!(syncer.poll_transmit(&records, now), Some((node, Message::Ranges(_))) if node == honest));
    // The budget comes back.
    let later = now + Duration::from_secs(60);
    syncer.handle_message(liar, root(1), &mut records, later);
    assert!(std::iter::from_fn(|| syncer.poll_transmit(&records, later)).any(|(node, _)| node == liar));
}

#[test]
fn junk_records_are_counted_and_end_the_budget() {
    let now = Instant::now();
    let liar = Key([1; 32]);
    let mut records = RecordsFake { refuse: true, ..RecordsFake::default() };
    let mut syncer = Syncer::new(Key([0; 32]), [0; 32], now);
    syncer.handle_link_up(liar, now);
    let garbage = || Packed::Bytes(vec![0xff; 300].into());
    syncer.handle_message(liar, Message::Records(vec![garbage(), Packed::Shared(plain(1))]), &mut records, now);
    let refusals = Refusals { records_unreadable: 1, records_refused: 1, ..Refusals::default() };
    assert_eq!(syncer.poll_event(), Some(Event::Refused { from: liar, refusals }));
    let malformed = Message::Have(Ids::default());
    syncer.handle_message(liar, malformed, &mut records, now);
    for _ in 0..100 {
        let many = (0..RECORDS_MAX).map(|_| garbage()).collect();
        syncer.handle_message(liar, Message::Records(many), &mut records, now);
    }
    let view = syncer.peers().next().expect("one link");
    assert_eq!(view.refusals.messages_malformed, 1);
    assert_eq!(view.refusals.messages_over_budget, 98, "of 8 MiB, each message costs 5.2 MB");
    let strangers = Key([9; 32]);
    syncer.handle_message(strangers, Message::Records(vec![garbage()]), &mut records, now);
    assert_eq!(syncer.peers().count(), 1);
}

#[test]
fn early_records_are_bounded_per_peer_and_in_all() {
    let mut early = Early::default();
    let record = |n: u64| plain(n);
    let mut number = 0;
    for peer in 0..20_u8 {
        loop {
            number += 1;
            if !early.insert(Key([peer; 32]), record(number), 16 << 10) {
                break;
            }
        }
    }
    assert_eq!(early.take().len(), EARLY_BYTES_MAX / (16 << 10));
    assert!(early.insert(Key([0; 32]), record(1), 100) && early.contains(&record(1).hash()));
    early.forget(&Key([0; 32]));
    assert!(early.is_empty());
}

#[test]
fn real_rosters_converge_whatever_the_order_of_arrival() {
    let now = Instant::now();
    let node = signer();
    let founded = issue::found(issue::Founding {
        name: Name::new("acme").expect("a label"),
        site: Name::new("paris").expect("a label"),
        node_name: Name::new("paris1").expect("a label"),
        owner: &SigningKey::from_seed(&[2; 32]),
        recovery: Key([3; 32]),
        node: &node,
        wg: WgKey([4; 32]),
        nonce: Hash([5; 32]),
        ipv4: None,
        now: UnixTime(1_000_000),
    });
    let full = founded.roster;
    let mut empty = Roster::new(founded.records[0].clone()).expect("a genesis");
    let peer = Key([1; 32]);
    let mut syncer = Syncer::new(Key([0; 32]), [0; 32], now);
    syncer.handle_link_up(peer, now);
    // What needs a right comes before what gives it: kept, and applied when its ground arrives.
    for record in founded.records[1..].iter().rev() {
        let packed = Packed::Bytes(record.encode().into());
        syncer.handle_message(peer, Message::Records(vec![packed]), &mut empty, now);
    }
    assert!(empty.hashes().eq(full.hashes()));
    assert!(syncer.early.is_empty());
    let applied: usize = std::iter::from_fn(|| syncer.poll_event())
        .map(|event| if let Event::Applied { records, .. } = event { records.len() } else { 0 })
        .sum();
    assert_eq!(applied, founded.records.len() - 1);
    // A record of somebody without any right stays out.
    let stranger = Packed::Shared(plain(1));
    syncer.handle_message(peer, Message::Records(vec![stranger]), &mut empty, now);
    assert!(empty.hashes().eq(full.hashes()));
}

#[test]
fn ranges_beyond_one_answer_get_their_turn() {
    let now = Instant::now();
    let peer = Key([1; 32]);
    let mut records = RecordsFake::default();
    for record in (1..12_000).map(plain) {
        records.insert(record);
    }
    let mut syncer = Syncer::new(Key([2; 32]), [0; 32], now);
    syncer.handle_link_up(peer, now);
    let everything_differs = || {
        let content = Content::Digest(50, Fingerprint([0; 16]));
        let prefixes = Prefix::ROOT.children().flat_map(Prefix::children);
        Message::Ranges(prefixes.map(|prefix| Range { prefix, content: content.clone() }).collect())
    };
    let mut answered = BTreeSet::new();
    for _ in 0..40 {
        syncer.handle_message(peer, everything_differs(), &mut records, now);
        let Some((_, message)) = syncer.poll_transmit(&records, now) else { panic!("no answer") };
        assert!(message.check().is_ok());
        let Message::Ranges(ranges) = message else { panic!("not ranges") };
        assert_eq!(ranges.len(), RANGES_MAX);
        answered.extend(ranges.into_iter().map(|range| range.prefix));
    }
    assert_eq!(answered.len(), 4096, "every range was split in some answer");
}

#[test]
fn links_beyond_the_limit_are_not_synced() {
    let now = Instant::now();
    let mut syncer = Syncer::new(Key([0; 32]), [0; 32], now);
    for n in 1..=u8::try_from(PEERS_MAX + 5).expect("small") {
        syncer.handle_link_up(Key([n; 32]), now);
    }
    assert_eq!(syncer.peers().count(), PEERS_MAX);
}

#[test]
fn full_push_queue_falls_back_to_a_comparison() {
    let mut net = Net::new(2, 10, Faults::default());
    net.link(0, 1);
    net.run(Duration::from_secs(5));
    let many = records(1..3000);
    net.hold(0, &many);
    let hashes: Vec<Hash> = many.iter().map(|record| record.hash()).collect();
    let (now, (_, syncer, records)) = (net.now, &mut net.nodes[0]);
    syncer.handle_local(&hashes, records, now);
    net.run(Duration::from_secs(10));
    assert!(net.is_converged());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn replicas_converge_whatever_the_network_does(
        seed: u64,
        count in 2_u8..6,
        shared in 0_u64..300,
        own in 0_u64..60,
        lost in 0_u64..40,
        repeated in 0_u64..40,
        late_ms in 0_u64..800,
    ) {
        let mut net = Net::new(count, seed, Faults { lost, repeated, late_ms });
        let common = records(1..shared + 1);
        for at in 0..usize::from(count) {
            net.hold(at, &common);
            let start = 10_000 * (at as u64 + 1);
            net.hold(at, &records(start..start + own));
            if at > 0 {
                net.link(at - 1, at);
            }
        }
        // Nobody tells the sender of a loss here, so a lost push waits for the next comparison over its link.
        for _ in 0..24 {
            net.run(CHECK_INTERVAL);
            if net.is_converged() {
                break;
            }
        }
        prop_assert!(net.is_converged());
        prop_assert_eq!(net.nodes[0].2.held.len() as u64, shared + own * u64::from(count));
    }

    #[test]
    fn message_decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(Message::decode(&bytes));
    }

    #[test]
    fn messages_survive_encoding(count in 1_u64..50, nibbles in 0_u8..=Prefix::NIBBLES_MAX, at: u64) {
        let value = if nibbles == 0 { 0 } else { at % (1 << (4 * u32::from(nibbles))) };
        let prefix = Prefix::new(nibbles, value).expect("made to fit");
        let (number, fingerprint) = Fingerprint::of(made_up(count).into_iter());
        let ids: Ids = made_up(count).into_iter().collect();
        let messages = [
            Message::Ranges(vec![Range { prefix, content: Content::Digest(number, fingerprint) }]),
            Message::Ranges(vec![Range { prefix: Prefix::ROOT, content: Content::Ids(ids.clone()) }]),
            Message::Equal(fingerprint),
            Message::Have(ids.clone()),
            Message::Fetch(ids),
            Message::Records(vec![Packed::Shared(plain(1)), Packed::Bytes(vec![1, 2].into())]),
        ];
        for message in messages {
            let bytes = message.encode();
            prop_assert_eq!(Message::decode(&bytes).expect("canonical"), message);
        }
    }

    #[test]
    fn children_part_their_prefix(nibbles in 0_u8..Prefix::NIBBLES_MAX, at: u64) {
        let value = if nibbles == 0 { 0 } else { at % (1 << (4 * u32::from(nibbles))) };
        let prefix = Prefix::new(nibbles, value).expect("made to fit");
        let children: Vec<Prefix> = prefix.children().collect();
        prop_assert_eq!(children.len(), 16);
        prop_assert_eq!(children[0].first(), prefix.first());
        prop_assert_eq!(children[15].last(), prefix.last());
        prop_assert!(children.is_sorted_by(|a, b| a.last() < b.first()));
    }
}

#[test]
fn messages_beyond_the_limits_are_refused() {
    let range = |nibbles, value| {
        let prefix = Prefix::new(nibbles, value).expect("valid");
        Range { prefix, content: Content::Digest(0, Fingerprint([0; 16])) }
    };
    let outside: Ids = [Hash([0xff; 32])].into_iter().collect();
    let misplaced = Range { prefix: Prefix::new(1, 0).expect("valid"), content: Content::Ids(outside) };
    for message in [
        Message::Ranges(Vec::new()),
        Message::Ranges(vec![range(1, 2), range(1, 1)]),
        Message::Ranges(vec![range(1, 1), range(2, 0x1f)]),
        Message::Ranges(vec![misplaced]),
        Message::Have(Ids::default()),
        Message::Fetch(made_up(IDS_MAX as u64 + 1).into_iter().collect()),
        Message::Records(Vec::new()),
    ] {
        assert!(Message::decode(&message.encode()).is_err(), "{message:?}");
    }
    assert!(Prefix::new(1, 16).is_none() && Prefix::new(16, 0).is_none());
    assert_eq!(Prefix::new(Prefix::NIBBLES_MAX, 5).map(|p| p.children().count()), Some(0));
}

#[test]
fn wire_form_is_what_it_was() {
    let ids: Ids = [Hash([1; 32])].into_iter().collect();
    let ones = "01".repeat(32);
    let fingerprint = Fingerprint([0xaa; 16]);
    let aas = "aa".repeat(16);
    let digest = Range { prefix: Prefix::new(2, 0x1f).expect("valid"), content: Content::Digest(3, fingerprint) };
    let listed = Range { prefix: Prefix::ROOT, content: Content::Ids(ids.clone()) };
    for (message, hex) in [
        (Message::Ranges(vec![digest]), format!("82008182 82 02181f 83 00 03 50{aas}")),
        (Message::Ranges(vec![listed]), format!("82008182 82 0000 82 01 5820{ones}")),
        (Message::Equal(fingerprint), format!("820150{aas}")),
        (Message::Have(ids.clone()), format!("82025820{ones}")),
        (Message::Fetch(ids), format!("82035820{ones}")),
        (Message::Records(vec![Packed::Bytes(vec![5, 6].into())]), "820481420506".to_owned()),
    ] {
        let golden = data_encoding::HEXLOWER.decode(hex.replace(' ', "").as_bytes()).expect("hexadecimal");
        assert_eq!(data_encoding::HEXLOWER.encode(&message.encode()), hex.replace(' ', ""));
        assert_eq!(Message::decode(&golden).expect("golden"), message);
    }
}
