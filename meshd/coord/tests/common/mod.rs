//! Nodes of one process on a real disk, with tokio: the driver as the daemon runs it, but for the lines between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meshd_coord::env::TokioRuntime;
use meshd_coord::env::{Class, Directory, Env, Transport, TransportError};
use meshd_coord::{Client, Group, GroupSettings, Node, Timing, Trouble};
use parking_lot::RwLock;
use vdc::{Hash, Key};

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const FILES: &str = "group";
pub(crate) const GROUP: Hash = Hash([7; 32]);

/// All nodes of the test by key; who is not in it cannot be reached.
pub(crate) type Lines = Arc<RwLock<BTreeMap<Key, Node<TestEnv>>>>;

#[derive(Clone, Debug)]
pub(crate) struct TestEnv {
    disk: Directory,
    lines: LocalTransport,
}

#[derive(Clone)]
pub(crate) struct LocalTransport {
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

pub(crate) struct Cluster {
    pub(crate) scratch: tempfile::TempDir,
    pub(crate) lines: Lines,
    pub(crate) keys: Vec<Key>,
}

impl Cluster {
    pub(crate) async fn start(count: u8) -> Self {
        let scratch =
            tempfile::tempdir_in(option_env!("CARGO_TARGET_TMPDIR").unwrap_or("/tmp")).expect("a scratch directory");
        let keys: Vec<Key> = (1..=count).map(|number| Key([number; 32])).collect();
        let cluster = Self { scratch, lines: Lines::default(), keys };
        for key in cluster.keys.clone() {
            cluster.up(key).await;
        }
        let keys = cluster.keys.clone();
        for key in &keys[1..] {
            cluster.change(|group| async move { group.add_learner(*key).await }).await;
        }
        let voters = &keys;
        cluster.change(|group| async move { group.set_voters(voters).await }).await;
        cluster
    }

    /// Has a change of members made by the leader, whoever that is.
    pub(crate) async fn change<F: Future<Output = Result<(), Trouble>>>(&self, change: impl Fn(Group<TestEnv>) -> F) {
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            let Some(leader) = self.leader() else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            match change(self.group(leader)).await {
                Ok(()) => return,
                Err(trouble) => assert!(std::time::Instant::now() < deadline, "{trouble}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn env(&self, key: Key) -> TestEnv {
        let disk = Directory::open(&self.scratch.path().join(key.short())).expect("its directory");
        TestEnv { disk, lines: LocalTransport { own: key, lines: Arc::clone(&self.lines) } }
    }

    pub(crate) async fn up(&self, key: Key) -> Node<TestEnv> {
        self.up_in(key, FILES, key == self.keys[0]).await
    }

    /// Opens the group by the files of this name.
    pub(crate) async fn up_in(&self, key: Key, files: &str, found: bool) -> Node<TestEnv> {
        let env = self.env(key);
        let node = Node::new(env.clone(), key);
        let settings = GroupSettings {
            id: GROUP,
            node: key,
            files: files.into(),
            timing: Timing::default(),
            found,
            entries_per_checkpoint: GroupSettings::ENTRIES_PER_CHECKPOINT,
        };
        node.add(Group::open(env, settings).await.expect("the group opens"));
        self.lines.write().insert(key, node.clone());
        node
    }

    pub(crate) async fn down(&self, key: Key) {
        let node = self.lines.write().remove(&key).expect("it is up");
        node.remove(&GROUP).expect("it serves the group").close().await;
    }

    pub(crate) fn node(&self, key: Key) -> Node<TestEnv> {
        self.lines.read().get(&key).cloned().expect("it is up")
    }

    pub(crate) fn group(&self, key: Key) -> Group<TestEnv> {
        self.node(key).group(&GROUP).expect("it serves the group")
    }

    pub(crate) fn client(&self, at: Key) -> Client<TestEnv> {
        Client::new(self.node(at), GROUP, &self.keys)
    }

    pub(crate) fn leader(&self) -> Option<Key> {
        let up: Vec<_> = self.lines.read().values().cloned().collect();
        up.iter().find_map(|node| node.group(&GROUP)?.standing().ok()?.leader)
    }
}
