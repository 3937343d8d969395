//! A group of nodes that are killed, cut off and started again, and a supervisor as the daemon has one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshd_coord::{Client, Group, GroupSettings, Node, Timing, Trouble};
use openraft::AsyncRuntime as _;
use vdc::{Hash, Key};

use super::coverage::Coverage;
use super::disk::SimDisk;
use super::net::{Net, SimEnv, SimTransport, key};
use super::runtime::{self, NodeNumber, SimRuntime, kill, spawn_for};

pub(crate) const GROUP: Hash = Hash([7; 32]);
/// Clients are numbered from here on.
pub(crate) const CLIENTS: NodeNumber = 20;

/// A group and its world. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lab {
    seed: u64,
    entries_per_checkpoint: u64,
    pub(crate) net: Net,
    pub(crate) disks: Vec<SimDisk>,
    pub(crate) coverage: Coverage,
    /// Which nodes should run.
    wanted: Arc<Mutex<Vec<bool>>>,
}

impl Lab {
    /// Makes a group of `count` voters.
    pub(crate) async fn start(seed: u64, count: usize) -> Result<Self, String> {
        let coverage = Coverage::default();
        let disks = (0..count).map(|number| SimDisk::new(number, seed, coverage.clone())).collect();
        let entries_per_checkpoint = 10 + runtime::random() % 150;
        let lab = Self {
            seed,
            entries_per_checkpoint,
            net: Net::default(),
            disks,
            coverage,
            wanted: Arc::new(Mutex::new(vec![true; count])),
        };
        for number in 0..count {
            drop(spawn_for(runtime::TESTER, lab.clone().supervise(number)));
        }
        lab.have_all_vote().await?;
        Ok(lab)
    }

    /// Makes every node a member and a voter.
    pub(crate) async fn have_all_vote(&self) -> Result<(), String> {
        for node in self.keys() {
            self.learn(node).await?;
        }
        self.have_vote(&self.keys()).await
    }

    /// Makes a node a member, if it is none.
    pub(crate) async fn learn(&self, node: Key) -> Result<(), String> {
        self.change(move |group| async move {
            let standing = group.standing().map_err(|error| Trouble::Unavailable { why: error.to_string() })?;
            if standing.voters.contains(&node) || standing.learners.contains(&node) {
                return Ok(());
            }
            group.add_learner(node).await
        })
        .await
    }

    /// Has a node that does not vote be a member no more.
    pub(crate) async fn forget(&self, node: Key) -> Result<(), String> {
        self.change(move |group| async move { group.remove_learner(node).await }).await
    }

    /// Has these vote, and no others.
    pub(crate) async fn have_vote(&self, voters: &[Key]) -> Result<(), String> {
        let voters = voters.to_vec();
        self.change(move |group| {
            let voters = voters.clone();
            async move { group.set_voters(&voters).await }
        })
        .await
    }

    pub(crate) fn count(&self) -> usize {
        self.disks.len()
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        (0..self.count()).map(key).collect()
    }

    fn env(&self, number: NodeNumber) -> SimEnv {
        let disk =
            self.disks.get(number).cloned().unwrap_or_else(|| SimDisk::new(number, self.seed, Coverage::default()));
        SimEnv { disk, transport: SimTransport { own: number, net: self.net.clone() } }
    }

    /// Starts a node whenever it should run and does not, and again when it stopped by itself.
    async fn supervise(self, number: NodeNumber) {
        loop {
            if self.disks[number].is_dying() {
                self.crash(number);
            }
            let wanted = self.wanted.lock().expect("unpoisoned")[number];
            match self.net.node(number) {
                Some(node) => {
                    let stopped = node.group(&GROUP).is_none_or(|group| group.running().is_err());
                    if stopped || !wanted {
                        self.crash(number);
                    }
                }
                None if wanted => {
                    let env = self.env(number);
                    let settings = GroupSettings {
                        id: GROUP,
                        node: key(number),
                        files: "group".into(),
                        timing: Timing::default(),
                        found: number == 0,
                        entries_per_checkpoint: self.entries_per_checkpoint,
                    };
                    let opened = spawn_for(number, async move {
                        let node = Node::new(env.clone(), key(number));
                        let group = Group::open(env, settings).await;
                        group.map(|group| {
                            node.add(group);
                            node
                        })
                    });
                    // A disk that dies while it is opened never answers.
                    match SimRuntime::timeout(Duration::from_secs(5), opened).await {
                        Ok(Ok(Ok(node))) => self.net.up(number, node),
                        _ => self.crash(number),
                    }
                }
                None => {}
            }
            SimRuntime::sleep(Duration::from_millis(50)).await;
        }
    }

    /// As if its power was cut.
    pub(crate) fn crash(&self, number: NodeNumber) {
        let node = self.net.down(number);
        kill(number);
        drop(node);
        self.disks[number].crash();
    }

    /// Lets go of all nodes: they and the lines between them hold each other.
    pub(crate) fn end(&self) {
        for number in 0..self.count() {
            let node = self.net.down(number);
            kill(number);
            drop(node);
        }
    }

    pub(crate) fn want(&self, number: NodeNumber, up: bool) {
        self.wanted.lock().expect("unpoisoned")[number] = up;
    }

    pub(crate) fn leader(&self) -> Option<NodeNumber> {
        (0..self.count()).find(|number| {
            let standing = self.net.node(*number).and_then(|node| node.group(&GROUP)?.standing().ok());
            standing.is_some_and(|standing| standing.leader == Some(key(*number)))
        })
    }

    /// Has a change of members made by whoever leads.
    async fn change<F: Future<Output = Result<(), Trouble>> + Send + 'static>(
        &self,
        change: impl Fn(Group<SimEnv>) -> F,
    ) -> Result<(), String> {
        let mut last = "nobody leads".to_owned();
        for _ in 0..500 {
            let group = self.leader().and_then(|leader| Some((leader, self.net.node(leader)?.group(&GROUP)?)));
            if let Some((leader, group)) = group {
                let changed = spawn_for(leader, change(group));
                last = match SimRuntime::timeout(Duration::from_secs(5), changed).await {
                    Ok(Ok(Ok(()))) => return Ok(()),
                    Ok(Ok(Err(trouble))) => format!("node {leader}: {trouble}"),
                    Ok(Err(ended)) => format!("node {leader}: {ended}"),
                    Err(elapsed) => format!("node {leader}: {elapsed}"),
                };
            }
            SimRuntime::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("the members cannot be changed: {last}"))
    }

    /// A client on a box of its own.
    pub(crate) fn client(&self, number: usize) -> Client<SimEnv> {
        let number = CLIENTS + number;
        Client::new(Node::new(self.env(number), key(number)), GROUP, &self.keys())
    }
}
