//! Three nodes of one process on a real disk, with tokio: the driver as the daemon runs it, but for the lines between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meshd_coord::env::{Class, Directory, Env, Transport, TransportError};
use meshd_coord::{Client, Group, GroupSettings, Node, Timing};
use openraft_rt_tokio::TokioRuntime;
use parking_lot::RwLock;
use vdc::{Hash, Key};
use vdc_coord::{Compare, Condition, Op, Revision, Transaction};

const LIMIT: Duration = Duration::from_secs(20);
const GROUP: Hash = Hash([7; 32]);

/// All nodes of the test by key; who is not in it cannot be reached.
type Lines = Arc<RwLock<BTreeMap<Key, Node<TestEnv>>>>;

#[derive(Clone, Debug)]
struct TestEnv {
    disk: Directory,
    lines: LocalTransport,
}

#[derive(Clone)]
struct LocalTransport {
    own: Key,
    lines: Lines,
}

impl std::fmt::Debug for LocalTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalTransport")
    }
}

impl Env for TestEnv {
    type Runtime = TokioRuntime;
    type Disk = Directory;
    type Transport = LocalTransport;

    fn disk(&self) -> &Directory {
        &self.disk
    }
    fn transport(&self) -> &LocalTransport {
        &self.lines
    }
    fn random(&self) -> [u8; 16] {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        bytes
    }
}

impl Transport for LocalTransport {
    async fn ask(&self, to: Key, _: Class, frame: Bytes, limit: Duration) -> Result<Bytes, TransportError> {
        let node = self.lines.read().get(&to).cloned();
        let Some(node) = node else {
            return Err(TransportError::Unreachable { node: to, why: "it is off".into() });
        };
        let from = self.own;
        let answered = tokio::time::timeout(limit, async move { node.answer(from, &frame).await }).await;
        answered.map_err(|_| TransportError::Broken { node: to, why: "it takes too long".into() })
    }
}

struct Cluster {
    scratch: tempfile::TempDir,
    lines: Lines,
    keys: Vec<Key>,
}

impl Cluster {
    async fn start(count: u8) -> Self {
        let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory");
        let keys: Vec<Key> = (1..=count).map(|number| Key([number; 32])).collect();
        let cluster = Self { scratch, lines: Lines::default(), keys };
        for key in cluster.keys.clone() {
            cluster.up(key).await;
        }
        let first = cluster.group(cluster.keys[0]);
        for key in &cluster.keys[1..] {
            first.add_learner(*key).await.expect("a learner is added");
        }
        first.set_voters(&cluster.keys).await.expect("they vote");
        cluster
    }

    async fn up(&self, key: Key) -> Node<TestEnv> {
        let disk = Directory::open(&self.scratch.path().join(key.short())).expect("its directory");
        let env = TestEnv { disk, lines: LocalTransport { own: key, lines: Arc::clone(&self.lines) } };
        let node = Node::new(env.clone(), key);
        let settings = GroupSettings {
            id: GROUP,
            node: key,
            files: "group".into(),
            timing: Timing::default(),
            found: key == self.keys[0],
        };
        node.add(Group::open(env, settings).await.expect("the group opens"));
        self.lines.write().insert(key, node.clone());
        node
    }

    async fn down(&self, key: Key) {
        let node = self.lines.write().remove(&key).expect("it is up");
        node.remove(&GROUP).expect("it serves the group").close().await;
    }

    fn node(&self, key: Key) -> Node<TestEnv> {
        self.lines.read().get(&key).cloned().expect("it is up")
    }

    fn group(&self, key: Key) -> Group<TestEnv> {
        self.node(key).group(&GROUP).expect("it serves the group")
    }

    fn client(&self, at: Key) -> Client<TestEnv> {
        Client::new(self.node(at), GROUP, &self.keys)
    }

    fn leader(&self) -> Option<Key> {
        let up: Vec<_> = self.lines.read().values().cloned().collect();
        up.iter().find_map(|node| node.group(&GROUP)?.standing().ok()?.leader)
    }
}

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
