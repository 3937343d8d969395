//! A node for tests: a running control plane whose events are answered and kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meshd_control::{
    Control, ControlConfig, ControlEvent, ControlHandle, HelloSource, LinkDownReason, ListenError, Transport, start,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use vdc::invite::{DoorRequest, DoorResponse, Refusal, RefusalCode};
use vdc::peer::{self, Hello};
use vdc::record::ContactAddress;
use vdc::{Key, SigningKey, UnixTime, VdcId};

/// Longer than anything here should take, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(crate) const VDC: VdcId = VdcId([9; 32]);

/// How a node answers members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    Done,
    /// Holds the reply for ever.
    Never,
}

#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) seed: u8,
    pub(crate) port: u16,
    pub(crate) door_port: u16,
    pub(crate) boot: u8,
    pub(crate) answers: Answers,
    pub(crate) link_idle: Duration,
    pub(crate) hello: Option<HelloSource>,
}

impl Setup {
    pub(crate) fn new(seed: u8) -> Self {
        Self {
            seed,
            port: 0,
            door_port: 0,
            boot: seed,
            answers: Answers::Done,
            link_idle: Duration::from_secs(60),
            hello: None,
        }
    }

    pub(crate) fn config(&self) -> ControlConfig {
        let boot = self.boot;
        let hello = self.hello.clone().unwrap_or_else(|| Arc::new(move || hello(boot)));
        let mut config = ControlConfig::new(VDC, [self.seed; 32], hello);
        config.listen = vec![LOOPBACK];
        config.port = self.port;
        config.door_port = self.door_port;
        config.link_idle = self.link_idle;
        config
    }
}

pub(crate) fn hello(boot: u8) -> Hello {
    Hello { version: "0.1.0".to_owned(), boot_nonce: [boot; 16], time: UnixTime(1_800_000_000), observed: None }
}

pub(crate) fn key(seed: u8) -> Key {
    SigningKey::from_seed(&[seed; 32]).public()
}

/// What a node saw, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Saw {
    Up { node: Key, address: SocketAddr, transport: Transport, hello: Hello },
    Down { node: Key, reason: LinkDownReason },
    Request { from: Key, request: peer::Request },
    Door { from: Key, remote: IpAddr, request: Box<DoorRequest> },
    Greeted { node: Key, time: UnixTime },
    Seen { node: Key, address: SocketAddr },
    Restarted,
}

pub(crate) struct Node {
    pub(crate) handle: ControlHandle,
    pub(crate) key: Key,
    pub(crate) saw: mpsc::Receiver<Saw>,
    pub(crate) tasks: JoinSet<()>,
}

impl Node {
    pub(crate) fn start(setup: &Setup) -> Self {
        Self::of(start(setup.config()).expect("loopback has free ports"), setup)
    }

    /// Like [`Self::start`], on the port of a node that has just stopped: its QUIC driver lets go of it a little later.
    pub(crate) async fn restart(setup: &Setup) -> Self {
        let started = timeout(PATIENCE, async {
            loop {
                match start(setup.config()) {
                    Ok(control) => return control,
                    Err(ListenError::PortInUse { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        Self::of(started.await.expect("the port becomes free"), setup)
    }

    fn of(control: Control, setup: &Setup) -> Self {
        let (log, saw) = mpsc::channel(4096);
        let mut tasks = JoinSet::new();
        tasks.spawn(control.task.run());
        tasks.spawn(pump(control.events, log, setup.answers));
        Self { key: control.handle.node(), handle: control.handle, saw, tasks }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(LOOPBACK, self.handle.port())
    }

    /// Waits for something that `pick` recognises; what comes before it is passed over.
    pub(crate) async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&Saw) -> Option<T>) -> T {
        let found = timeout(PATIENCE, async {
            loop {
                let saw = self.saw.recv().await.expect("the pump runs as long as the node");
                if let Some(found) = pick(&saw) {
                    return found;
                }
            }
        });
        found.await.unwrap_or_else(|_| panic!("{what} did not happen"))
    }

    pub(crate) async fn wait_up(&mut self, peer: Key) -> (SocketAddr, Transport, Hello) {
        self.wait("link up", |saw| match saw {
            Saw::Up { node, address, transport, hello } if *node == peer => Some((*address, *transport, hello.clone())),
            _ => None,
        })
        .await
    }

    pub(crate) async fn wait_down(&mut self, peer: Key) -> LinkDownReason {
        self.wait("link down", |saw| match saw {
            Saw::Down { node, reason } if *node == peer => Some(reason.clone()),
            _ => None,
        })
        .await
    }

    /// Sends a question to `peer` and expects its answer.
    pub(crate) async fn ask(&self, peer: Key) {
        let answer = self.handle.request(peer, question(), PATIENCE).await.expect("the peer answers");
        assert_eq!(answer, peer::Response::Done);
    }

    pub(crate) async fn stop(mut self) {
        self.handle.shutdown();
        while let Some(end) = timeout(PATIENCE, self.tasks.join_next()).await.expect("shutdown ends") {
            end.expect("no task of a node panics");
        }
    }
}

pub(crate) fn question() -> peer::Request {
    peer::Request::Endpoints(peer::Endpoints { boot_nonce: [3; 16], candidates: Vec::new() })
}

pub(crate) fn members(nodes: &[Key]) -> Arc<BTreeSet<Key>> {
    Arc::new(nodes.iter().copied().collect())
}

pub(crate) fn contacts(entries: &[(Key, SocketAddr)]) -> Arc<BTreeMap<Key, Vec<ContactAddress>>> {
    Arc::new(entries.iter().map(|(node, a)| (*node, vec![ContactAddress::Ip(a.ip(), a.port())])).collect())
}

/// Makes every node a member everywhere and tells each where the others are.
pub(crate) fn introduce(nodes: &[&Node]) {
    let keys: Vec<Key> = nodes.iter().map(|n| n.key).collect();
    let places: Vec<(Key, SocketAddr)> = nodes.iter().map(|n| (n.key, n.address())).collect();
    for node in nodes {
        node.handle.set_members(members(&keys));
        node.handle.set_contacts(contacts(&places));
    }
}

async fn pump(mut events: mpsc::Receiver<ControlEvent>, log: mpsc::Sender<Saw>, answers: Answers) {
    let mut held = Vec::new();
    while let Some(event) = events.recv().await {
        let saw = match event {
            ControlEvent::LinkUp { node, address, transport, hello } => Saw::Up { node, address, transport, hello },
            ControlEvent::LinkDown { node, reason } => Saw::Down { node, reason },
            ControlEvent::Greeted { node, time } => Saw::Greeted { node, time },
            ControlEvent::Seen { node, address } => Saw::Seen { node, address },
            ControlEvent::Restarted { .. } => Saw::Restarted,
            ControlEvent::Request { from, request, reply } => {
                match answers {
                    Answers::Done => drop(reply.send(peer::Response::Done)),
                    Answers::Never => held.push(reply),
                }
                Saw::Request { from, request }
            }
            ControlEvent::Door { from, remote, request, reply } => {
                drop(reply.send(DoorResponse::Refused(Refusal::new(RefusalCode::InviteUnknown, "no such invite", ""))));
                Saw::Door { from, remote, request }
            }
        };
        if log.send(saw).await.is_err() {
            return;
        }
    }
}
