//! Limits, what is forgotten, what ends, and the twin, case by case.

use std::future::Future;
use std::task::{Context, Poll, Waker};

use super::{all, delete, delete_range, put, read, transact, when};
use crate::limits::{
    ANSWER_BYTES_MAX, CLIENTS_MAX, DELETE_MAX, DISPLACED_BYTES_MAX, EVENT_BYTES_MAX, EVENTS_MAX, KEY_BYTES_MAX,
    LEASE_MS_MAX, LEASE_MS_MIN, PAGE_BYTES_MAX, PAGE_ROWS_MAX, STEPS_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX,
    WINDOW,
};
use crate::{
    Answer, ClientId, Command, Condition, Entry, LeaseId, Machine, MemoryRows, MemoryStore, Refusal, Request, Revision,
    Store, Transaction, Watch,
};

fn request(client: u8, number: u64, command: Command) -> Request {
    Request { client: ClientId([client; 16]), number, command }
}

fn one(store: &mut MemoryStore, request: Request) -> Result<Answer, Refusal> {
    store.apply(vec![request]).pop().expect("an answer for each request")
}

/// A store in which key `k` stands, once it refused something.
fn check_refused(transaction: Transaction, refusal: &Refusal, said: &str) {
    let mut store = MemoryStore::new();
    store.transact(all(vec![put("k", b"v", None)])).expect("small");
    let before = (store.prefix(b""), store.summary().revision);
    assert_eq!(store.transact(transaction), Err(refusal.clone()));
    assert_eq!((store.prefix(b""), store.summary().revision), before, "refused, and done in part");
    assert_eq!(refusal.to_string(), said);
}

#[test]
fn sizes_beyond_the_limits_are_refused_with_thing_size_and_limit() {
    let (bytes, bytes_max) = (1_025, KEY_BYTES_MAX as u64);
    check_refused(
        all(vec![put("k", b"w", None), put(&"k".repeat(1_025), b"", None)]),
        &Refusal::KeyTooLong { bytes, bytes_max },
        "a key of 1025 bytes is longer than the 1024 allowed",
    );
    check_refused(all(vec![delete("")]), &Refusal::EmptyKey, "a key must have at least one byte");
    let (bytes, bytes_max) = (262_145, VALUE_BYTES_MAX as u64);
    check_refused(
        all(vec![put("k", &vec![0; VALUE_BYTES_MAX + 1], None)]),
        &Refusal::ValueTooLong { bytes, bytes_max },
        "a value of 262145 bytes is longer than the 262144 allowed",
    );
    let (bytes, bytes_max) = (5 + 4 * VALUE_BYTES_MAX as u64, TRANSACTION_BYTES_MAX as u64);
    let large = ["a", "b", "c", "d"].map(|key| put(key, &vec![0; VALUE_BYTES_MAX], None));
    check_refused(
        all([vec![read("k")], large.to_vec()].concat()),
        &Refusal::TransactionTooLong { bytes, bytes_max },
        "a transaction with 1048581 bytes of keys and values is longer than the 1048576 allowed",
    );
    check_refused(
        Transaction { compares: vec![when("k", Condition::Present)], ..all(vec![read("k"); STEPS_MAX]) },
        &Refusal::TooManySteps { steps: 513, steps_max: STEPS_MAX as u64 },
        "a transaction of 513 comparisons and changes has more than the 512 allowed",
    );
    check_refused(all(vec![delete_range("b", "a")]), &Refusal::BadRange, "a range must begin before it ends");
    check_refused(all(vec![delete_range("b", "b")]), &Refusal::BadRange, "a range must begin before it ends");
    let lease = LeaseId(7);
    check_refused(
        all(vec![delete("k"), put("l", b"", Some(lease))]),
        &Refusal::LeaseGone { lease },
        "lease 7 has ended",
    );
}

#[test]
fn sizes_at_the_limits_are_done() {
    let mut store = MemoryStore::new();
    let key = "k".repeat(KEY_BYTES_MAX);
    store.transact(all(vec![put(&key, &vec![1; VALUE_BYTES_MAX], None)])).expect("as long as allowed");
    assert!(store.get(key.as_bytes()).expect("a key").0.is_some());
    store.transact(all(vec![read(&key); 4])).expect("a mebibyte of reads");
    let beyond = store.transact(all(vec![read(&key); 5]));
    assert!(matches!(beyond, Err(Refusal::TransactionTooLong { .. })));
    store.transact(all(vec![delete("k"); STEPS_MAX])).expect("as many as allowed");
    let of_lease = Transaction { compares: vec![when("", Condition::LeaseHeld(LeaseId(1)))], ..Transaction::default() };
    assert!(!store.transact(of_lease).expect("no key is meant").succeeded);
}

#[test]
fn leases_live_from_a_second_to_a_day() {
    let mut store = MemoryStore::new();
    for ttl_ms in [LEASE_MS_MIN, LEASE_MS_MAX] {
        store.grant(ttl_ms).expect("within");
    }
    for ttl_ms in [0, LEASE_MS_MIN - 1, LEASE_MS_MAX + 1, u64::MAX] {
        assert!(matches!(store.grant(ttl_ms), Err(Refusal::BadTtl { .. })), "{ttl_ms}");
    }
}

#[test]
fn lease_ends_on_time_with_its_keys_and_not_before() {
    let mut store = MemoryStore::new();
    store.set_time_ms(5_000);
    let lease = store.grant(2_000).expect("within");
    store.transact(all(vec![put("a", b"", Some(lease)), put("b", b"", Some(lease)), put("c", b"", None)])).expect("ok");
    store.transact(all(vec![put("b", b"kept", None)])).expect("taken out of the lease");
    store.set_time_ms(6_999);
    assert_eq!(store.prefix(b"").len(), 3);
    store.keep_alive(lease).expect("it is held");
    store.set_time_ms(8_998);
    assert_eq!(store.prefix(b"").len(), 3);
    let before = store.summary().revision;
    store.set_time_ms(8_999);
    assert_eq!(store.prefix(b"").into_keys().collect::<Vec<_>>(), [b"b", b"c"]);
    assert_eq!(store.summary().revision, Revision(before.0 + 1));
    assert_eq!(store.keep_alive(lease), Err(Refusal::LeaseGone { lease }));
    assert_eq!(store.revoke(lease), Err(Refusal::LeaseGone { lease }));
    store.set_time_ms(0);
    assert_eq!(store.summary().time_ms, 8_999, "time never goes back");
}

#[test]
fn leases_that_end_together_are_all_gone_after_a_few_entries() {
    let mut store = MemoryStore::new();
    for number in 0..250 {
        let lease = store.grant(1_000).expect("within");
        store.transact(all(vec![put(&format!("k{number}"), b"", Some(lease))])).expect("held");
    }
    for left in [150, 50, 0] {
        store.set_time_ms(1_000);
        assert_eq!((store.summary().leases, store.prefix(b"").len() as u64), (left, left));
    }
}

#[test]
fn lease_with_more_than_a_revision_may_displace_ends_in_parts() {
    let mut store = MemoryStore::new();
    let lease = store.grant(1_000).expect("within");
    for number in 0..20 {
        let value = vec![0; VALUE_BYTES_MAX];
        store.transact(all(vec![put(&format!("k{number:02}"), &value, Some(lease))])).expect("held");
    }
    let before = store.summary().revision;
    assert_eq!(store.revoke(lease), Ok(20));
    assert_eq!((store.summary().keys, store.summary().leases), (0, 0));
    let mut watch = Watch::new(b"", b"", Revision(before.0 + 1));
    let mut told = 0;
    loop {
        let events = store.poll(&mut watch).expect("kept");
        let bytes: usize = events.iter().filter_map(|event| event.before.as_ref()).map(|row| row.value.len()).sum();
        assert!(bytes <= PAGE_BYTES_MAX + DISPLACED_BYTES_MAX, "{bytes} at once");
        told += events.len();
        if events.is_empty() {
            break;
        }
    }
    assert_eq!(told, 20);
}

#[test]
fn deletion_of_more_than_the_limit_is_refused() {
    let mut store = MemoryStore::new();
    for hundred in 0..=100 {
        let count = if hundred == 100 { 1 } else { 100 };
        let puts = (0..count).map(|number| put(&format!("k{hundred:03}{number:02}"), b"", None)).collect();
        store.transact(all(puts)).expect("within");
    }
    let refused = store.transact(all(vec![delete_range("k", "")]));
    assert_eq!(refused, Err(Refusal::TooManyRows { rows_max: DELETE_MAX as u64 }));
    let in_two_halves = all(vec![delete_range("k", "k050"), delete_range("k050", "")]);
    assert_eq!(store.transact(in_two_halves), Err(Refusal::TooManyRows { rows_max: DELETE_MAX as u64 }));
    assert_eq!(store.transact(all(vec![delete_range("k", "k100")])).map(|done| done.deleted), Ok(10_000));
    assert_eq!(store.summary().keys, 1);
}

#[test]
fn transaction_that_displaces_too_much_is_refused() {
    let mut store = MemoryStore::new();
    let keys: Vec<_> = (0..9).map(|number| format!("k{number}")).collect();
    for key in &keys {
        store.transact(all(vec![put(key, &vec![0; VALUE_BYTES_MAX], None)])).expect("within");
    }
    let puts = |count: usize| all(keys[..count].iter().map(|key| put(key, b"", None)).collect());
    for transaction in [puts(9), puts(8), all(vec![delete_range("k", "")])] {
        let refused = store.transact(transaction);
        assert!(matches!(refused, Err(Refusal::DisplacesTooMuch { .. })), "{refused:?}");
    }
    assert!(store.transact(puts(7)).is_ok());
    assert_eq!(store.transact(all(vec![delete_range("k", "")])).map(|done| done.deleted), Ok(9));
}

#[test]
fn client_that_is_not_known_is_refused_and_can_open_as_a_new_one() {
    let mut store = MemoryStore::new();
    let change = transact(vec![put("k", b"", None)]);
    assert_eq!(one(&mut store, request(1, 1, change.clone())), Err(Refusal::UnknownClient));
    assert_eq!(one(&mut store, request(1, 0, change.clone())), Err(Refusal::UnknownClient));
    assert_eq!(one(&mut store, request(1, 0, Command::Open)), Ok(Answer::Opened));
    assert_eq!(one(&mut store, request(1, 0, Command::Open)), Ok(Answer::Opened));
    assert!(one(&mut store, request(1, 1, change)).is_ok());
    assert_eq!(store.summary().clients, 1);
}

#[test]
fn requests_with_the_highest_numbers_are_answered() {
    let mut store = MemoryStore::new();
    one(&mut store, request(1, 0, Command::Open)).expect("opens");
    let change = |value: &[u8]| transact(vec![put("k", value, None)]);
    let last = one(&mut store, request(1, u64::MAX, change(b"1")));
    assert!(last.is_ok());
    assert_eq!(one(&mut store, request(1, u64::MAX, change(b"2"))), last, "done once");
    assert!(one(&mut store, request(1, u64::MAX - WINDOW + 1, change(b"3"))).is_ok());
    let number = u64::MAX - WINDOW;
    assert_eq!(one(&mut store, request(1, number, change(b"4"))), Err(Refusal::Forgotten { number }));
}

#[test]
fn idle_clients_make_way_for_new_ones() {
    let mut store = MemoryStore::new();
    for client in [1, 2, 3] {
        one(&mut store, request(client, 0, Command::Open)).expect("opens");
    }
    store.set_time_ms(3_599_999);
    one(&mut store, request(3, 1, transact(vec![]))).expect("known");
    one(&mut store, request(4, 0, Command::Open)).expect("opens");
    assert_eq!(store.summary().clients, 4, "an hour is not over");
    store.set_time_ms(3_600_000);
    one(&mut store, request(5, 0, Command::Open)).expect("opens");
    assert_eq!(store.summary().clients, 3);
    for (client, known) in [(1, false), (2, false), (3, true), (4, true), (5, true)] {
        let refused = one(&mut store, request(client, 2, transact(vec![]))) == Err(Refusal::UnknownClient);
        assert_eq!(!refused, known, "client {client}");
    }
}

#[test]
fn clients_and_their_answers_are_bounded() {
    let mut rows = MemoryRows::default();
    let mut machine = Machine::new(&mut rows).expect("memory");
    let client = |number: u64| ClientId([number.to_be_bytes(), [7; 8]].concat().try_into().expect("16 bytes"));
    let mut apply = |requests| machine.apply(&Entry { stamp_ms: 0, requests }).expect("memory");
    for number in 0..CLIENTS_MAX + 10 {
        apply(vec![Request { client: client(number), number: 0, command: Command::Open }]);
    }
    let first = Request { client: client(0), number: 1, command: transact(vec![]) };
    assert_eq!(apply(vec![first]), [Err(Refusal::UnknownClient)]);
    let last = CLIENTS_MAX + 9;
    let large = transact(vec![put("k", &vec![0; VALUE_BYTES_MAX], None)]);
    apply(vec![Request { client: client(last), number: 1, command: large }]);
    let reads = transact(vec![read("k"); 4]);
    // Three clients with all the answers that they may keep are more than all may keep together.
    for number in [last - 2, last - 1, last] {
        for request in 2..WINDOW + 2 {
            let answers = apply(vec![Request { client: client(number), number: request, command: reads.clone() }]);
            assert!(answers[0].is_ok(), "whoever asks is not forgotten");
        }
    }
    assert!(machine.summary().answer_bytes <= ANSWER_BYTES_MAX);
    assert!(machine.summary().clients <= CLIENTS_MAX);
}

#[test]
fn oldest_changes_go_when_there_are_too_many() {
    let mut store = MemoryStore::new();
    let mut told = 0;
    let large = vec![0; VALUE_BYTES_MAX];
    while store.summary().oldest <= Revision(1) {
        store.transact(all(vec![put("k", &large, None), delete("l")])).expect("within");
        told += 1;
        assert!(told < 1_000, "nothing goes");
    }
    let summary = store.summary();
    assert!(summary.event_bytes <= EVENT_BYTES_MAX && summary.event_bytes > EVENT_BYTES_MAX / 2);
    let refused = Err(Refusal::Compacted { oldest: summary.oldest });
    assert_eq!(store.poll(&mut Watch::new(b"", b"", Revision(1))), refused);
    assert!(store.poll(&mut Watch::new(b"", b"", summary.oldest)).is_ok());
    let mut store = MemoryStore::new();
    let puts: Vec<_> = (0..STEPS_MAX).map(|number| put(&format!("k{number}"), b"", None)).collect();
    for _ in 0..=EVENTS_MAX / STEPS_MAX as u64 {
        store.transact(all(puts.clone())).expect("within");
    }
    let summary = store.summary();
    assert_eq!(summary.oldest, Revision(2), "all changes of a revision go together");
    assert!(summary.events <= EVENTS_MAX && summary.events > EVENTS_MAX - STEPS_MAX as u64);
}

#[test]
fn pages_are_bounded_in_rows_and_bytes_and_hold_one_row_at_least() {
    let mut store = MemoryStore::new();
    for part in 0..5 {
        let puts = (0..500).map(|number| put(&format!("k{part}{number:03}"), b"", None)).collect();
        store.transact(all(puts)).expect("within");
    }
    let page = store.range(b"k", b"", usize::MAX, None).expect("a range");
    assert_eq!((page.rows.len(), page.more), (PAGE_ROWS_MAX, true));
    assert_eq!(store.range(b"k", b"", 0, None).expect("a range").rows.len(), 1);
    assert_eq!(store.prefix(b"k").len(), 2_500);
    for key in ["l1", "l2", "l3", "l4", "l5"] {
        store.transact(all(vec![put(key, &vec![0; VALUE_BYTES_MAX], None)])).expect("within");
    }
    let page = store.range(b"l", b"m", 10, None).expect("a range");
    assert_eq!((page.rows.len(), page.more), (3, true), "three and their keys are within a mebibyte");
}

#[test]
fn rows_tell_when_they_came_to_be_and_how_often_they_were_put() {
    let mut store = MemoryStore::new();
    for _ in 0..2 {
        store.transact(all(vec![put("k", b"v", None)])).expect("within");
    }
    let (row, revision) = store.get(b"k").expect("a key");
    let row = row.expect("it is there");
    assert_eq!((row.created, row.modified, row.version, revision), (Revision(1), Revision(2), 2, Revision(2)));
    store.transact(all(vec![delete("k"), put("k", b"v", None)])).expect("within");
    let row = store.get(b"k").expect("a key").0.expect("it is there");
    assert_eq!((row.created, row.version), (Revision(3), 1), "a key that was deleted begins anew");
    let nothing = store.transact(all(vec![put("x", b"", None), delete("x"), read("x")])).expect("within");
    assert_eq!((nothing.revision, nothing.reads, nothing.deleted), (Revision(3), vec![None], 1));
}

#[test]
fn leap_keeps_generations_growing_and_sends_watches_back_to_read() {
    let mut rows = MemoryRows::default();
    let mut machine = Machine::new(&mut rows).expect("memory");
    assert_eq!(machine.leap(Revision(1_000)), Ok(Revision(1_000)));
    assert_eq!(machine.leap(Revision(10)), Ok(Revision(1_000)), "never back");
    let open = request(1, 0, Command::Open);
    let grant = request(1, 1, Command::GrantLease { ttl_ms: 1_000 });
    let answers = machine.apply(&Entry { stamp_ms: 0, requests: vec![open, grant] }).expect("memory");
    assert_eq!(answers[1], Ok(Answer::Lease { lease: LeaseId(1_001), ttl_ms: 1_000 }));
    let reader = crate::Reader(&rows);
    assert_eq!(reader.events(Revision(500), 10), Ok(Err(Refusal::Compacted { oldest: Revision(1_001) })));
    assert!(reader.range(b"", b"", 10, Some(Revision(1_000))).expect("memory").is_ok());
}

#[test]
fn watch_tells_its_range_in_order_and_nothing_twice() {
    let mut store = MemoryStore::new();
    let mut watch = Watch::new(b"b", b"c", Revision(0));
    assert_eq!(store.poll(&mut watch), Ok(vec![]));
    for key in ["a", "b1", "c", "b2"] {
        store.transact(all(vec![put(key, b"", None)])).expect("within");
    }
    let told: Vec<_> = store.poll(&mut watch).expect("kept").iter().map(|event| event.key.to_vec()).collect();
    assert_eq!(told, [b"b1", b"b2"]);
    assert_eq!(store.poll(&mut watch), Ok(vec![]));
    store.compact(Revision(5)).expect("there");
    assert_eq!(store.poll(&mut watch), Ok(vec![]), "it had seen what is forgotten");
    assert_eq!(store.compact(Revision(7)), Err(Refusal::Future { asked: Revision(7), now: Revision(4) }));
    store.transact(all(vec![put("b3", b"", None)])).expect("within");
    let (events, next) = store.reader().events(Revision(5), 10).expect("memory").expect("kept");
    let mut late = Watch::new(b"", b"", Revision(6));
    assert_eq!(late.take(events, next), [], "what a node that is behind tells again is left out");
}

/// Something that takes any store, as what runs on a group does.
fn add<S: Store>(store: &mut S, key: &str) -> Result<Revision, S::Error> {
    now(store.transact(all(vec![put(key, b"", None)]))).map(|done| done.revision)
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the twin never waits"),
    }
}

#[test]
fn twin_serves_whoever_takes_a_store_and_answers_at_once() {
    let mut store = MemoryStore::new();
    assert_eq!(add(&mut store, "a"), Ok(Revision(1)));
    let lease = now(Store::grant(&mut store, 1_000)).expect("within");
    now(Store::keep_alive(&mut store, lease)).expect("held");
    assert_eq!(now(Store::revoke(&mut store, lease)), Ok(0));
    assert!(now(Store::get(&mut store, b"a")).expect("a key").0.is_some());
    assert_eq!(now(Store::range(&mut store, b"", b"", 9, None)).expect("a range").rows.len(), 1);
    assert_eq!(now(Store::poll(&mut store, &mut Watch::new(b"", b"", Revision(1)))).expect("kept").len(), 1);
}

#[test]
fn twin_goes_on_when_its_own_client_was_pushed_out() {
    let mut store = MemoryStore::new();
    store.transact(all(vec![put("a", b"", None)])).expect("within");
    store.set_time_ms(3_600_000);
    one(&mut store, request(1, 0, Command::Open)).expect("opens");
    let done = store.transact(all(vec![put("a", b"", None)])).expect("within");
    assert_eq!(done.revision, Revision(2));
}
