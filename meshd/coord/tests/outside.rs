//! What comes from outside and must do no harm: too much, nonsense, and voices that are none of the group's.

mod common;

use common::{Cluster, GROUP, LIMIT};
use meshd_coord::{Client, ClientError, FRAME_BYTES_MAX};
use vdc::{Hash, Key};
use vdc_coord::limits::{KEY_BYTES_MAX, STEPS_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};
use vdc_coord::wire::{Ask, Ballot, Frame, Place, Reply, SnapshotForm, Trouble, VoteForm, decode_reply};
use vdc_coord::{Command, Op, Refusal, Revision, Transaction};

fn put(key: &[u8], value: &[u8]) -> Op {
    Op::Put { key: key.to_vec().into(), value: value.to_vec().into(), lease: None }
}

fn all(success: Vec<Op>) -> Transaction {
    Transaction { success, ..Transaction::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_by_name_and_changes_nothing() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(cluster.keys[1]);
    let long_key = vec![b'k'; KEY_BYTES_MAX + 1];
    let long_value = vec![0; VALUE_BYTES_MAX + 1];
    let many = (0..=STEPS_MAX).map(|number| put(format!("{number}").as_bytes(), b"")).collect();
    let large = (0..=TRANSACTION_BYTES_MAX / VALUE_BYTES_MAX)
        .map(|number| put(format!("{number}").as_bytes(), &long_value[1..]))
        .collect();
    for (transaction, expected) in [
        (all(vec![put(b"", b"")]), "a key must have"),
        (all(vec![put(&long_key, b"")]), "a key of 1025 bytes is longer than the 1024"),
        (all(vec![put(b"a", b"1"), put(b"b", &long_value)]), "a value of 262145 bytes is longer"),
        (all(many), "a transaction of 513 comparisons and changes"),
        (all(large), "a transaction with"),
        (all((0..40).map(|n| put(format!("{n}").as_bytes(), &long_value[1..])).collect()), "a transaction with"),
    ] {
        match client.transact(transaction, LIMIT).await {
            Err(ClientError::Refused(refusal)) => assert!(refusal.to_string().contains(expected), "{refusal}"),
            other => panic!("expected {expected:?}: {other:?}"),
        }
    }
    let read = client.get(&long_key, LIMIT).await;
    assert!(matches!(read, Err(ClientError::Refused(Refusal::KeyTooLong { .. }))), "{read:?}");
    let page = client.range(b"", b"", 10, None, LIMIT).await.expect("it is read");
    assert_eq!((page.rows.len(), page.revision), (0, Revision(0)), "nothing was changed");
    client.transact(all(vec![put(b"a", b"1")]), LIMIT).await.expect("the same client goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn group_that_is_not_there_is_said_to_be_unknown() {
    let cluster = Cluster::start(1).await;
    let client = Client::new(cluster.node(cluster.keys[0]), Hash([9; 32]), &cluster.keys);
    let asked = client.get(b"a", std::time::Duration::from_millis(300)).await.expect_err("there is none");
    assert!(asked.to_string().contains("does not serve group"), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_that_was_overtaken_reads_again_and_goes_on() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(cluster.keys[2]);
    for number in 0..20_u8 {
        client.transact(all(vec![put(b"a", &[number])]), LIMIT).await.expect("it is written");
    }
    client.command(Command::Compact { before: Revision(15) }, LIMIT).await.expect("it is done");
    // Which member answers is left open: none of them keeps them, once it is as far.
    let refused = loop {
        match client.watch(b"", b"", Revision(3)).next().await {
            Err(refusal) => break refusal,
            Ok(events) => {
                assert_eq!(events.first().map(|event| event.revision), Some(Revision(3)), "no gap is kept quiet")
            }
        }
    };
    assert_eq!(refused, Refusal::Compacted { oldest: Revision(15) });
    let page = client.range(b"", b"", 10, None, LIMIT).await.expect("it is read");
    assert_eq!((page.rows.len(), page.revision), (1, Revision(20)));
    let mut watch = client.watch(b"", b"", Revision(page.revision.0 + 1));
    client.transact(all(vec![put(b"b", b"new")]), LIMIT).await.expect("it is written");
    let events = watch.next().await.expect("they are kept");
    assert_eq!(events.iter().map(|event| (event.revision.0, &event.key[..])).collect::<Vec<_>>(), [(21, &b"b"[..])]);
    let early = client.command(Command::Compact { before: Revision(100) }, LIMIT).await;
    assert!(matches!(early, Err(ClientError::Refused(Refusal::Future { .. }))), "{early:?}");
}

async fn tell(cluster: &Cluster, to: Key, from: Key, bytes: &[u8]) -> Reply {
    decode_reply(&cluster.node(to).answer(from, bytes).await).expect("answers are sound")
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_answered_as_such() {
    let cluster = Cluster::start(1).await;
    let own = cluster.keys[0];
    let sound = vdc::codec::encode(&Frame { group: GROUP, ask: Ask::Status });
    let mut pieces: Vec<Vec<u8>> = (0..sound.len()).map(|length| sound[..length].to_vec()).collect();
    pieces.push([&sound[..], b"\0"].concat());
    pieces.push(vec![0xff; 1_000]);
    pieces.push(vec![0; FRAME_BYTES_MAX + 1]);
    pieces.push(
        b"\x82\x58\x20".iter().copied().chain([7; 32]).chain([0x9b, 255, 255, 255, 255, 255, 255, 255, 255]).collect(),
    );
    for piece in pieces {
        let reply = tell(&cluster, own, Key([9; 32]), &piece).await;
        assert!(matches!(reply, Reply::Trouble(Trouble::Malformed { .. })), "{reply:?} to {} bytes", piece.len());
    }
    let reply = tell(&cluster, own, own, &vdc::codec::encode(&Frame { group: Hash([9; 32]), ask: Ask::Status })).await;
    assert_eq!(reply, Reply::Trouble(Trouble::UnknownGroup { group: Hash([9; 32]) }));
}

/// All that is said in the name of `speaker` of a term that would win.
fn voices(speaker: Key) -> Vec<Ask> {
    let vote = |committed| VoteForm { term: 1_000, leader: speaker, committed };
    let place = Place { term: 1_000, leader: speaker, index: 1_000 };
    let ballot = || Ballot { vote: vote(false), last: Some(place), transfer: true };
    let append = |vote| Ask::Append { vote, before: None, entries: vec![], committed: None };
    let form = SnapshotForm { place: Some(place), ..SnapshotForm::default() };
    vec![
        append(vote(true)),
        Ask::Vote(ballot()),
        Ask::PreVote(ballot()),
        Ask::Transfer { from: vote(true), to: speaker, last: None },
        Ask::SnapshotBegin { vote: vote(true), form: form.clone() },
        Ask::SnapshotEnd { vote: vote(true), form, rows: 0, hash: Hash([0; 32]) },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_another_and_strangers_are_not_heard() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(cluster.keys[0]);
    client.transact(all(vec![put(b"a", b"1")]), LIMIT).await.expect("it is written");
    let term = |key| cluster.group(key).standing().expect("readable").term;
    let terms = cluster.keys.clone().into_iter().map(term).collect::<Vec<_>>();
    let stranger = Key([77; 32]);
    for to in cluster.keys.clone() {
        for from in cluster.keys.iter().copied().chain([stranger]) {
            for speaker in cluster.keys.iter().copied().chain([stranger]) {
                if from == speaker && from != stranger {
                    continue; // a member, for itself
                }
                for ask in voices(speaker) {
                    let frame = vdc::codec::encode(&Frame { group: GROUP, ask: ask.clone() });
                    let reply = tell(&cluster, to, from, &frame).await;
                    assert!(
                        matches!(reply, Reply::Trouble(Trouble::Forbidden { .. })),
                        "{reply:?} to {ask:?} of {from}"
                    );
                }
            }
        }
        let form = SnapshotForm::default();
        let rows =
            vdc::codec::encode(&Frame { group: GROUP, ask: Ask::SnapshotRows { form, behind: None, rows: vec![] } });
        let reply = tell(&cluster, to, stranger, &rows).await;
        assert!(matches!(reply, Reply::Trouble(Trouble::Forbidden { .. })), "{reply:?}");
        // A vote that claims to have won, and a leader that admits that it has not.
        let speaker = cluster.keys.iter().copied().find(|key| *key != to).expect("there are three");
        for mut ask in voices(speaker).into_iter().take(2) {
            match &mut ask {
                Ask::Append { vote, .. } => vote.committed = false,
                Ask::Vote(ballot) => ballot.vote.committed = true,
                other => panic!("{other:?}"),
            }
            let reply = tell(&cluster, to, speaker, &vdc::codec::encode(&Frame { group: GROUP, ask })).await;
            assert!(matches!(reply, Reply::Trouble(Trouble::Forbidden { .. })), "{reply:?}");
        }
    }
    assert_eq!(cluster.keys.clone().into_iter().map(term).collect::<Vec<_>>(), terms, "nobody took notice");
    // Nor has anybody promised them anything: the group goes on, also without its leader.
    let leader = cluster.leader().expect("one leads");
    cluster.down(leader).await;
    let other = cluster.keys.iter().copied().find(|key| *key != leader).expect("two are left");
    let (row, _) = cluster.client(other).get(b"a", LIMIT).await.expect("the group goes on");
    assert!(row.is_some());
}
