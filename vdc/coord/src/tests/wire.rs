//! One committed sample of each form: its bytes may never change meaning, only a new form may.

use std::fmt::Debug;

use minicbor::{Decode, Encode};
use vdc::codec;

use crate::limits::{KEY_BYTES_MAX, REQUEST_BYTES_MAX, STEPS_MAX, TRANSACTION_BYTES_MAX, check};

use super::{delete, delete_range, put, read, when};
use crate::{
    Answer, ClientId, Command, Condition, Done, Entry, Event, Lease, LeaseId, Page, Refusal, Request, Revision, Row,
    Summary, Transaction,
};

const COMMITTED: &str = include_str!("../../tests/golden/wire.txt");

/// Name and bytes; what is encoded must also come back.
struct Samples(Vec<(&'static str, Vec<u8>)>);

impl Samples {
    fn add<T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug>(&mut self, name: &'static str, value: T) {
        let bytes = codec::encode(&value);
        assert_eq!(codec::decode::<T>(name, &bytes, bytes.len()).expect("canonical"), value);
        for longer in [&[&bytes[..], &[0]].concat(), &bytes[..bytes.len() - 1]] {
            assert!(codec::decode::<T>(name, longer, 4_096).is_err(), "{name}: {longer:?}");
        }
        self.0.push((name, bytes));
    }
}

fn row() -> Row {
    let value = b"value".to_vec().into();
    Row { value, created: Revision(1), modified: Revision(300), version: 2, lease: Some(LeaseId(70_000)) }
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut samples = Samples(vec![]);
    let request = |number, command| Request { client: ClientId([7; 16]), number, command };
    let (revision, lease) = (Revision(9), LeaseId(5));
    samples.add("request-open", request(0, Command::Open));
    let conditions = [
        Condition::Absent,
        Condition::Present,
        Condition::Version(3),
        Condition::Modified(revision),
        Condition::Value(b"v".to_vec().into()),
        Condition::Lease(lease),
        Condition::LeaseHeld(lease),
    ];
    let transaction = Transaction {
        compares: conditions.map(|condition| when("k", condition)).to_vec(),
        success: vec![put("k", b"v", None), put("k", b"v", Some(lease)), read("k")],
        failure: vec![delete("k"), delete_range("k", "l")],
    };
    samples.add("request-transact", request(1, Command::Transact(transaction)));
    samples.add("request-grant", request(2, Command::GrantLease { ttl_ms: 5_000 }));
    samples.add("request-keep-alive", request(3, Command::KeepAlive { lease }));
    samples.add("request-revoke", request(4, Command::Revoke { lease }));
    samples.add("request-compact", request(5, Command::Compact { before: revision }));
    samples.add("entry", Entry { stamp_ms: 1_000, requests: vec![request(0, Command::Open)] });
    samples.add("entry-empty", Entry::default());
    samples.add("row", row());
    samples.add("lease", Lease { ttl_ms: 5_000, ends_ms: 6_000 });
    samples.add("event-put", Event { revision, key: b"k".to_vec().into(), before: None, after: Some(row()) });
    samples.add("event-deleted", Event { revision, key: b"k".to_vec().into(), before: Some(row()), after: None });
    samples.add("page", Page { rows: vec![(b"k".to_vec().into(), row())], revision, more: true });
    let done = Done { succeeded: true, revision, reads: vec![None, Some(row())], deleted: 4 };
    samples.add("answer-opened", Answer::Opened);
    samples.add("answer-done", Answer::Done(done));
    samples.add("answer-lease", Answer::Lease { lease, ttl_ms: 5_000 });
    samples.add("answer-revoked", Answer::Revoked { deleted: 3 });
    samples.add("answer-compacted", Answer::Compacted { oldest: revision });
    let summary = Summary {
        revision,
        time_ms: 1,
        oldest: Revision(2),
        keys: 3,
        bytes: 4,
        events: 5,
        event_bytes: 6,
        leases: 7,
        clients: 8,
        answer_bytes: 9,
    };
    samples.add("summary", summary);
    samples.add("refusal-empty-key", Refusal::EmptyKey);
    samples.add("refusal-key-too-long", Refusal::KeyTooLong { bytes: 2, bytes_max: 1 });
    samples.add("refusal-value-too-long", Refusal::ValueTooLong { bytes: 2, bytes_max: 1 });
    samples.add("refusal-transaction-too-long", Refusal::TransactionTooLong { bytes: 2, bytes_max: 1 });
    samples.add("refusal-too-many-steps", Refusal::TooManySteps { steps: 2, steps_max: 1 });
    samples.add("refusal-bad-range", Refusal::BadRange);
    samples.add("refusal-too-many-rows", Refusal::TooManyRows { rows_max: 1 });
    samples.add("refusal-compacted", Refusal::Compacted { oldest: revision });
    samples.add("refusal-future", Refusal::Future { asked: revision, now: Revision(8) });
    samples.add("refusal-lease-gone", Refusal::LeaseGone { lease });
    samples.add("refusal-bad-ttl", Refusal::BadTtl { ttl_ms: 4, ttl_ms_min: 5, ttl_ms_max: 6 });
    samples.add("refusal-too-many-leases", Refusal::TooManyLeases { leases_max: 1 });
    samples.add("refusal-unknown-client", Refusal::UnknownClient);
    samples.add("refusal-forgotten", Refusal::Forgotten { number: 6 });
    samples.add("refusal-displaces-too-much", Refusal::DisplacesTooMuch { bytes: 2, bytes_max: 1 });
    samples.0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_samples_are_encoded_as_they_were() {
    let today: String = samples().iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
    assert!(COMMITTED == today, "vdc/coord/tests/golden/wire.txt should hold:\n{today}");
}

/// What a lenient decoder forgives is refused.
#[test]
fn second_encodings_are_refused() {
    let entry = [0x82, 0x05, 0x80];
    assert_eq!(codec::encode(&Entry { stamp_ms: 5, requests: vec![] }), entry);
    for other in [
        &[0x82, 0x18, 0x05, 0x80][..],                                       // a longer number
        &[0x82, 0x05, 0x9f, 0xff],                                           // an indefinite list
        &[0x9f, 0x05, 0x80, 0xff],                                           // an indefinite entry
        &[0x83, 0x05, 0x80, 0x00],                                           // one field more
        &[0x81, 0x05],                                                       // one less
        &[0x82, 0x20, 0x80],                                                 // a negative number
        &[0xc1, 0x82, 0x05, 0x80],                                           // a tag
        &[0x82, 0x05, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], // a list of more than there is
    ] {
        assert!(codec::decode::<Entry>("entry", other, 64).is_err(), "{other:02x?}");
    }
    assert!(codec::decode::<Entry>("entry", &entry, 2).is_err(), "longer than allowed");
}

/// Lists a little too long are refused by name; lists that would only fill memory are not read at all.
#[test]
fn lists_of_a_transaction_are_bounded_before_they_take_memory() {
    let of = |steps| codec::encode(&Transaction { success: vec![read("k"); steps], ..Transaction::default() });
    assert!(codec::decode::<Transaction>("transaction", &of(4 * STEPS_MAX), 1 << 20).is_ok());
    assert!(codec::decode::<Transaction>("transaction", &of(4 * STEPS_MAX + 1), 1 << 20).is_err());
}

/// The largest request fits what is allowed for one.
#[test]
fn largest_request_is_within_its_limit() {
    let value = vec![0; (TRANSACTION_BYTES_MAX - STEPS_MAX * KEY_BYTES_MAX) / STEPS_MAX];
    let long = "k".repeat(KEY_BYTES_MAX);
    let success = vec![put(&long, &value, Some(LeaseId(u64::MAX))); STEPS_MAX];
    let transaction = Transaction { success, ..Transaction::default() };
    assert_eq!(check(&Command::Transact(transaction.clone())), Ok(()));
    let request = Request { client: ClientId([7; 16]), number: u64::MAX, command: Command::Transact(transaction) };
    assert!(codec::encode(&request).len() <= REQUEST_BYTES_MAX);
}
