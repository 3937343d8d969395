//! Three nodes of one process on a real disk.

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, FILES, LIMIT};
use meshd_coord::succession;
use vdc_coord::{Compare, Condition, Op, Refusal, Revision, Transaction};

fn put(key: &str, value: &[u8]) -> Transaction {
    let op = Op::Put { key: key.as_bytes().to_vec().into(), value: value.to_vec().into(), lease: None };
    Transaction { success: vec![op], ..Transaction::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_read_everywhere_and_outlive_the_leader_and_all() {
    let cluster = Cluster::start(3).await;
    let clients: Vec<_> = cluster.keys.iter().map(|key| cluster.client(*key)).collect();
    let first = clients[0].transact(put("a", b"1"), LIMIT).await.expect("it is written");
    assert!(first.succeeded && first.revision == Revision(1), "{first:?}");
    for client in &clients {
        let (row, _) = client.get(b"a", LIMIT).await.expect("it is read");
        assert_eq!(row.expect("it is there").value.as_slice(), b"1");
    }
    let held = Compare { key: b"a".to_vec().into(), condition: Condition::Version(1) };
    let swap = Transaction { compares: vec![held], ..put("a", b"2") };
    assert!(clients[1].transact(swap.clone(), LIMIT).await.expect("it is done").succeeded);
    assert!(!clients[2].transact(swap, LIMIT).await.expect("it is done").succeeded, "the version is another one now");

    let mut watch = clients[2].watch(b"", b"", Revision(1));
    assert_eq!(watch.next().await.expect("they are kept").len(), 2);

    let leader = cluster.leader().expect("one leads");
    cluster.down(leader).await;
    let other = cluster.keys.iter().copied().find(|key| *key != leader).expect("two are left");
    let started = Instant::now();
    cluster.client(other).transact(put("b", b"3"), LIMIT).await.expect("the others go on");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    cluster.up(leader).await;
    for key in &cluster.keys {
        let (row, _) = cluster.client(*key).get(b"b", LIMIT).await.expect("it is read");
        assert_eq!(row.expect("it is there").value.as_slice(), b"3");
    }
    for key in &cluster.keys {
        cluster.down(*key).await;
    }
    for key in &cluster.keys {
        cluster.up(*key).await;
    }
    let (row, revision) = cluster.client(other).get(b"a", LIMIT).await.expect("it is read");
    assert_eq!((row.expect("it is there").value.as_slice(), revision), (&b"2"[..], Revision(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn group_goes_on_from_what_one_node_holds() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(cluster.keys[0]);
    for number in 0..300 {
        client.transact(put(&format!("key {number:03}"), b"value"), LIMIT).await.expect("it is written");
    }
    let lease = client.grant(Duration::from_secs(60), LIMIT).await.expect("it is granted");
    for key in &cluster.keys {
        cluster.down(*key).await;
    }
    let survivor = cluster.keys[2];
    let env = cluster.env(survivor);
    let held = succession::succeed(&env, FILES, "next", survivor).await.expect("the files are whole");
    // The same again, as after a crash: the older files are as they were.
    let again = succession::succeed(&env, FILES, "next", survivor).await.expect("the files are whole");
    assert_eq!((held.revision, held.index), (again.revision, again.index));
    assert!(held.revision >= Revision(300), "the log behind the last checkpoint counts: {held:?}");
    let next = cluster.up_in(survivor, "next", false).await;
    let client = cluster.client(survivor);
    let (row, revision) = client.get(b"key 299", LIMIT).await.expect("one node is a majority of one");
    assert!(row.is_some() && revision.0 > held.revision.0 + 1_000_000, "{revision:?}");
    let later = client.grant(Duration::from_secs(60), LIMIT).await.expect("it is granted");
    assert!(later.0 > lease.0 + 1_000_000, "no generation is given twice: {lease:?}, {later:?}");
    let old = client.watch(b"", b"", Revision(1)).next().await.expect_err("what was between is not known");
    assert!(matches!(old, Refusal::Compacted { .. }), "{old}");

    // The others follow it as new members, whatever they held.
    for key in &cluster.keys[..2] {
        cluster.up_in(*key, "next", false).await;
        cluster.change(|group| async move { group.add_learner(*key).await }).await;
    }
    let voters = &cluster.keys;
    cluster.change(|group| async move { group.set_voters(voters).await }).await;
    drop(next);
    cluster.down(survivor).await;
    let client = cluster.client(cluster.keys[0]);
    client.transact(put("after", b"value"), LIMIT).await.expect("two of three go on");
    assert!(client.get(b"key 000", LIMIT).await.expect("it is read").0.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn group_begins_with_rows() {
    let cluster = Cluster::start(1).await;
    let key = cluster.keys[0];
    cluster.down(key).await;
    let env = cluster.env(key);
    let rows = |count: u32, value: usize| {
        let mut rows = (0..count).map(move |number| (format!("key {number:06}").into_bytes(), vec![7; value]));
        move || Ok(rows.next())
    };
    let refused = succession::fill(&env, "bad", key, Revision(10), rows(3, 300_000)).await.expect_err("too long");
    assert!(std::error::Error::source(&refused).is_some_and(|why| why.to_string().contains("300000")), "{refused:?}");
    assert!(!succession::exists(&env, "bad").await.expect("readable"), "nothing is left");
    let at = succession::fill(&env, "next", key, Revision(10), rows(25_000, 1_500)).await.expect("they are kept");
    cluster.up_in(key, "next", false).await;
    let client = cluster.client(key);
    let (row, revision) = client.get(b"key 024999", LIMIT).await.expect("it is read");
    let row = row.expect("it is there");
    assert_eq!((row.version, row.created, row.value.len(), revision), (1, at, 1_500, at));
    let standing = cluster.group(key).standing().expect("readable");
    assert_eq!((standing.summary.keys, standing.summary.bytes), (25_000, 25_000 * (10 + 1_500)));
    let done = client.transact(put("key 000000", b"new"), LIMIT).await.expect("it is written");
    assert_eq!(done.revision, Revision(at.0 + 1));
}
