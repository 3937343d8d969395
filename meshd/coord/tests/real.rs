//! Three nodes of one process on a real disk.

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, LIMIT};
use vdc_coord::{Compare, Condition, Op, Revision, Transaction};

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
