//! Lines between nodes: slow, lossy, cut one way or both, delivering twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use meshd_coord::Node;
use meshd_coord::env::{Class, Env, Transport, TransportError};
use openraft::AsyncRuntime as _;
use vdc::Key;
use vdc_coord::wire::{Ask, PayloadForm, Place, Reply, decode_frame, decode_reply};
use vdc_coord::{Answer, ClientId, Refusal};

use super::disk::SimDisk;
use super::runtime::{self, NodeNumber, SimRuntime, spawn_for};

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeNumber, Node<SimEnv>>,
    /// From and to.
    cut: BTreeSet<(NodeNumber, NodeNumber)>,
    loss_per_mille: u64,
    twice_per_mille: u64,
    /// Pieces of snapshots that were sent.
    pieces: u64,
    /// Every entry that was sent to a member, with what comes before it in the log.
    entries: BTreeMap<Place, (Option<Place>, PayloadForm)>,
    /// The last that a leader said was committed.
    committed: Option<Place>,
    told: BTreeMap<(ClientId, u64), Vec<Told>>,
}

/// What a request was answered.
pub(crate) type Told = Result<Answer, Refusal>;

/// All lines of a simulation.
#[derive(Clone, Default)]
pub(crate) struct Net(Arc<Mutex<State>>);

impl Net {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("unpoisoned")
    }

    pub(crate) fn up(&self, number: NodeNumber, node: Node<SimEnv>) {
        self.state().nodes.insert(number, node);
    }

    pub(crate) fn down(&self, number: NodeNumber) -> Option<Node<SimEnv>> {
        self.state().nodes.remove(&number)
    }

    pub(crate) fn node(&self, number: NodeNumber) -> Option<Node<SimEnv>> {
        self.state().nodes.get(&number).cloned()
    }

    pub(crate) fn cut(&self, from: NodeNumber, to: NodeNumber) {
        self.state().cut.insert((from, to));
    }

    pub(crate) fn pieces(&self) -> u64 {
        self.state().pieces
    }

    /// What the group agreed on, entry by entry from the first on: what was sent, as far as leaders called it committed. None
    /// if a part of it was never sent, which happens when one node votes alone.
    pub(crate) fn agreed(&self) -> Option<Vec<PayloadForm>> {
        let state = self.state();
        let mut entries = vec![];
        let mut next = state.committed;
        // The very first makes the group, with one member.
        while let Some(place) = next.filter(|place| place.index > 0) {
            let (before, payload) = state.entries.get(&place)?;
            entries.push(payload.clone());
            next = *before;
        }
        entries.reverse();
        Some(entries)
    }

    /// All answers to requests that arrived at those who asked.
    pub(crate) fn told(&self) -> BTreeMap<(ClientId, u64), Vec<Told>> {
        self.state().told.clone()
    }

    fn note_question(&self, ask: &Ask) {
        let Ask::Append { before, entries, committed, .. } = ask else { return };
        let mut state = self.state();
        let mut before = *before;
        for entry in entries {
            state.entries.insert(entry.place, (before, entry.payload.clone()));
            before = Some(entry.place);
        }
        if committed.map(|place| place.index) > state.committed.map(|place| place.index) {
            state.committed = *committed;
        }
    }

    fn note_answer(&self, ask: &Ask, answer: &[u8]) {
        let Ask::Requests(requests) = ask else { return };
        let Ok(Reply::Answers(answers)) = decode_reply(answer) else { return };
        for (request, answer) in requests.iter().zip(answers) {
            self.state().told.entry((request.client, request.number)).or_default().push(answer);
        }
    }

    pub(crate) fn heal(&self) {
        self.state().cut.clear();
    }

    pub(crate) fn set_noise(&self, loss_per_mille: u64, twice_per_mille: u64) {
        let mut state = self.state();
        (state.loss_per_mille, state.twice_per_mille) = (loss_per_mille, twice_per_mille);
    }

    /// Whether a frame arrives, and after what time.
    fn way(&self, from: NodeNumber, to: NodeNumber) -> Option<Duration> {
        let state = self.state();
        let lost = state.cut.contains(&(from, to)) || runtime::random() % 1_000 < state.loss_per_mille;
        let late = if runtime::random().is_multiple_of(50) { 30_000_000 } else { 2_000_000 };
        (!lost).then(|| Duration::from_nanos(200_000 + runtime::random() % late))
    }
}

pub(crate) fn key(number: NodeNumber) -> Key {
    Key([u8::try_from(number + 1).expect("few nodes"); 32])
}

fn number(key: Key) -> NodeNumber {
    usize::from(key.0[0]) - 1
}

/// One node's end of the lines.
#[derive(Clone)]
pub(crate) struct SimTransport {
    pub(crate) own: NodeNumber,
    pub(crate) net: Net,
}

impl Debug for SimTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimTransport")
    }
}

impl Transport for SimTransport {
    fn ask(
        &self,
        to: Key,
        class: Class,
        frame: Bytes,
        limit: Duration,
    ) -> impl Future<Output = Result<Bytes, TransportError>> + Send {
        let (own, net) = (self.own, self.net.clone());
        net.state().pieces += u64::from(class == Class::Snapshot);
        let ask = decode_frame(&frame).expect("nodes send good frames").ask;
        net.note_question(&ask);
        async move {
            let target = number(to);
            let broken = |why: &str| TransportError::Broken { node: to, why: why.into() };
            let exchange = async {
                let Some(there) = net.way(own, target) else { std::future::pending().await };
                SimRuntime::sleep(there).await;
                let Some(node) = net.node(target) else {
                    return Err(TransportError::Unreachable { node: to, why: "it is down".into() });
                };
                let twice = runtime::random() % 1_000 < net.state().twice_per_mille;
                if twice {
                    let (node, frame) = (node.clone(), frame.clone());
                    drop(spawn_for(target, async move {
                        SimRuntime::sleep(Duration::from_micros(runtime::random() % 50_000)).await;
                        let _nobody = node.answer(key(own), &frame).await;
                    }));
                }
                let (frame, from) = (frame.clone(), key(own));
                let answer = spawn_for(target, async move { node.answer(from, &frame).await });
                let Ok(answer) = answer.await else { return Err(broken("it died")) };
                let Some(back) = net.way(target, own) else { std::future::pending().await };
                SimRuntime::sleep(back).await;
                Ok(answer)
            };
            match SimRuntime::timeout(limit, exchange).await {
                Ok(result) => {
                    if let Ok(answer) = &result {
                        net.note_answer(&ask, answer);
                    }
                    result
                }
                Err(_) => Err(broken("time is up")),
            }
        }
    }
}

/// What the driver stands on in a simulation.
#[derive(Clone, Debug)]
pub(crate) struct SimEnv {
    pub(crate) disk: SimDisk,
    pub(crate) transport: SimTransport,
}

impl Env for SimEnv {
    type Runtime = SimRuntime;
    type Disk = SimDisk;
    type Transport = SimTransport;

    fn disk(&self) -> &SimDisk {
        &self.disk
    }

    fn transport(&self) -> &SimTransport {
        &self.transport
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&runtime::random().to_be_bytes());
        bytes[8..].copy_from_slice(&runtime::random().to_be_bytes());
        bytes
    }
}
