//! The member swarm: keeps the links that are wanted, and carries requests between members.
//!
//! A *link* is the relation to a node; it has one or, for moments, several connections. The end that dialled a
//! connection decides how long it lives; the other end holds it. When two ends dialled each other, both rank the
//! connections alike (QUIC first, then the one dialled by the smaller key, then the older) and each closes its own that
//! lost, after a pause in which running exchanges end.

mod by_hand;
mod dialling;
mod farewell;
mod greeting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::ConnectedPoint;
use libp2p::identity::Keypair;
use libp2p::mdns;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{ConnectionId, NetworkBehaviour, Swarm, SwarmEvent};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vdc::Key;
use vdc::peer::{self, Hello};

use crate::admission::{Admission, Rates};
use crate::dial::{AddressBook, Backoff};
use crate::error::{Attempt, CallError, ListenError};
use crate::exchange::{self, Exchange, Gate, Outgoing};
use crate::handle::{ControlEvent, Counters, HelloSource, Inputs, LinkDownReason, LinkView, MissingView, SwarmKind};
use crate::key::{self, Transport};
use crate::transport;
use crate::wire::PeerProtocol;

use self::dialling::jitter;
pub(crate) use self::dialling::{dial_options, explain, innermost, resolve};

/// Requests being read, and answers being read: 16 MiB each, four of the longest messages.
const BUDGET_BYTES: usize = 16 << 20;
const _: () = assert!(BUDGET_BYTES >= 4 * peer::MESSAGE_BYTES_MAX);
/// Handshakes under way, each direction: some 20 KiB each.
const PENDING_MAX: u32 = 128;
/// Connections to one node; the oldest idle one goes first. Two are normal while both ends dial each other.
const PER_NODE_MAX: usize = 4;
/// The other end must say hello within this time of a handshake, and after [`MemberCommand::GreetAgain`].
const HELLO: Duration = Duration::from_secs(10);
const CHECK: Duration = Duration::from_secs(3);
/// After this much of [`CHECK`] a node is dialled anew, beside the check.
const DOUBT: Duration = Duration::from_millis(700);
/// A peer that refused our hello has this long to say why: it may be that we were revoked.
const LAST_WORD: Duration = Duration::from_millis(500);
/// Dials of one node under way beside each other: what is new is tried at once, within reason.
const DIALS_MAX: usize = 4;
/// How long a connection that lost to a better one still serves what runs on it.
const RETIRE: Duration = Duration::from_secs(5);
/// An on-demand request does not dial again what failed this short a time ago.
const FRESH_FAILURE: Duration = Duration::from_secs(1);
/// Requests that wait for one node's link.
const WAITING_MAX: usize = 64;
/// Requests of a node that came before its hello, which travels on another stream.
const EARLY_MAX: usize = 8;
/// Events not yet taken: beyond the first bound members' requests are refused, beyond the second the swarm is not read.
const OUTBOX_REQUESTS_MAX: usize = 64;
const OUTBOX_MAX: usize = 256;
/// Name look-ups under way, and their limit.
const RESOLVING_MAX: usize = 4;
const RESOLVE: Duration = Duration::from_secs(3);
/// Nodes that mDNS may remember before it is switched off: its list has no limit of its own, and anybody on the LAN can
/// make it grow.
const MDNS_NODES_MAX: usize = 512;
/// Pause before a failed swarm is rebuilt: doubles from the first to the last.
const RESTART_FIRST: Duration = Duration::from_millis(200);
const RESTART_LAST: Duration = Duration::from_secs(30);
/// Time for closing links at shutdown, and for the QUIC driver to put the last packets on the wire.
const CLOSE: Duration = Duration::from_millis(500);
const LINGER: Duration = Duration::from_millis(50);

/// What the handle asks of the member swarm.
#[derive(Debug)]
pub(crate) enum MemberCommand {
    Request {
        node: Key,
        bytes: Vec<u8>,
        deadline: Instant,
        reply: oneshot::Sender<Result<peer::Response, CallError>>,
    },
    Dial {
        node: Key,
        address: SocketAddr,
    },
    Connect {
        node: Key,
        address: SocketAddr,
        there: bool,
        reply: by_hand::Reply,
    },
    /// A request of ours has had no answer for some time.
    Doubt {
        node: Key,
    },
    GreetAgain,
}

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    exchange: Exchange<PeerProtocol>,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

/// What outlives a swarm: inputs, outputs and plain knowledge.
pub(crate) struct Member {
    pub(crate) keys: Keypair,
    pub(crate) node: Key,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) port: u16,
    pub(crate) mdns: bool,
    pub(crate) links_inbound_max: u32,
    pub(crate) link_idle: Duration,
    pub(crate) hello: HelloSource,
    pub(crate) tracker: TaskTracker,
    pub(crate) book: AddressBook,
    pub(crate) inputs: watch::Receiver<Inputs>,
    pub(crate) commands: mpsc::Receiver<MemberCommand>,
    pub(crate) events: mpsc::Sender<ControlEvent>,
    pub(crate) outbox: VecDeque<ControlEvent>,
    pub(crate) links: watch::Sender<Arc<[LinkView]>>,
    pub(crate) addresses: watch::Sender<Arc<[SocketAddr]>>,
    pub(crate) missing: watch::Sender<Arc<[MissingView]>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stop: CancellationToken,
}

/// A swarm that listens, and where panics of its connections are reported.
pub(crate) struct Built {
    swarm: Swarm<Behaviour>,
    panics: mpsc::Receiver<String>,
}

/// Why a swarm's turn is over.
enum End {
    Stopped,
    Failed(String),
}

impl Member {
    /// Builds the swarm and binds its sockets.
    pub(crate) fn build(&self) -> Result<Built, ListenError> {
        let (panics_in, panics) = mpsc::channel(1);
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_MAX))
            .with_max_pending_outgoing(Some(PENDING_MAX))
            .with_max_established_incoming(Some(self.links_inbound_max));
        let peer = self.keys.public().to_peer_id();
        let mdns = if self.mdns {
            mdns::tokio::Behaviour::new(mdns::Config::default(), peer)
                .inspect_err(|error| tracing::warn!(%error, "no mDNS: nodes on this LAN are found by address only"))
                .ok()
        } else {
            None
        };
        let admission = Admission::new(Rates::MEMBERS, Instant::now().into_std());
        let behaviour = Behaviour {
            limits: connection_limits::Behaviour::new(limits),
            exchange: Exchange::new(Gate::Members(Arc::default(), admission), BUDGET_BYTES),
            mdns: Toggle::from(mdns),
        };
        let config = transport::swarm_config(self.link_idle, &self.tracker, panics_in);
        let mut swarm = Swarm::new(transport::build(&self.keys), behaviour, peer, config);
        listen(&mut swarm, &self.ips, self.port)?;
        Ok(Built { swarm, panics })
    }

    /// Runs swarm after swarm until stopped. A panic ends a swarm, not this.
    pub(crate) async fn run(mut self, first: Built) {
        let mut next = Some(first);
        let mut pause = RESTART_FIRST;
        loop {
            let built = match next.take() {
                Some(built) => Ok(built),
                None => self.build(),
            };
            let started = Instant::now();
            let why = match built {
                Ok(built) => match AssertUnwindSafe(Box::pin(self.turn(built))).catch_unwind().await {
                    Ok(End::Stopped) => {
                        self.drop_links();
                        return;
                    }
                    Ok(End::Failed(why)) => why,
                    Err(panic) => transport::panic_text(&*panic),
                },
                Err(error) => error.to_string(),
            };
            tracing::error!(why, "the member swarm failed and is rebuilt");
            self.drop_links();
            Counters::count(&self.counters.restarts);
            self.outbox.push_back(ControlEvent::Restarted { swarm: SwarmKind::Member, why });
            if started.elapsed() > RESTART_LAST {
                pause = RESTART_FIRST;
            }
            if timeout(pause, self.stop.cancelled()).await.is_ok() {
                return;
            }
            pause = (pause * 2).min(RESTART_LAST);
        }
    }

    /// Reports every published link as down.
    fn drop_links(&mut self) {
        let links = self.links.send_replace(Arc::default());
        for link in links.iter() {
            self.outbox.push_back(ControlEvent::LinkDown { node: link.node, reason: LinkDownReason::Local });
        }
        self.addresses.send_replace(Arc::default());
        self.missing.send_replace(Arc::default());
    }

    /// Runs one swarm.
    async fn turn(&mut self, built: Built) -> End {
        let Built { swarm, mut panics } = built;
        let mut run = Run {
            swarm,
            peers: BTreeMap::new(),
            probes: FuturesUnordered::new(),
            resolving: FuturesUnordered::new(),
            resolvers: Arc::new(Semaphore::new(RESOLVING_MAX)),
            farewells: farewell::Farewells::default(),
            facts: Inputs::default(),
            listening: BTreeSet::new(),
            m: self,
        };
        run.on_inputs();
        let events = run.m.events.clone();
        loop {
            run.on_time(Instant::now());
            let wake = run.next_wake();
            // cancel-safe: every branch is a queue, a watch or a timer that keeps what it has until it is taken.
            tokio::select! {
                () = run.m.stop.cancelled() => {
                    run.close_all().await;
                    return End::Stopped;
                }
                Some(why) = panics.recv() => return End::Failed(why),
                permit = events.reserve(), if !run.m.outbox.is_empty() => match permit {
                    Ok(permit) => {
                        let event = run.m.outbox.pop_front().expect("the branch is enabled by its presence");
                        permit.send(event);
                    }
                    Err(_) => return End::Stopped,
                },
                changed = run.m.inputs.changed() => match changed {
                    Ok(()) => run.on_inputs(),
                    Err(_) => return End::Stopped,
                },
                command = run.m.commands.recv() => match command {
                    Some(command) => run.on_command(command),
                    None => return End::Stopped,
                },
                Some(probe) = run.probes.next(), if !run.probes.is_empty() => run.on_probe(probe),
                Some(resolved) = run.resolving.next(), if !run.resolving.is_empty() => run.on_resolved(resolved),
                Some(told) = run.farewells.next(), if !run.farewells.is_empty() => run.on_farewell(told),
                event = run.swarm.select_next_some(), if run.m.outbox.len() < OUTBOX_MAX => {
                    if let Some(end) = run.on_swarm(event) {
                        return end;
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }
}

/// Listens on `port` of each address, by QUIC and TCP.
pub(crate) fn listen<B: NetworkBehaviour>(swarm: &mut Swarm<B>, ips: &[IpAddr], port: u16) -> Result<(), ListenError> {
    for ip in ips {
        let address = SocketAddr::new(*ip, port);
        for transport in [Transport::Quic, Transport::Tcp] {
            swarm.listen_on(key::multiaddr(address, transport)).map_err(|error| ListenError::Bind {
                address,
                transport,
                source: std::io::Error::other(error),
            })?;
        }
    }
    Ok(())
}

/// One connection of a link.
struct Connection {
    id: ConnectionId,
    dialled: bool,
    transport: Transport,
    remote: SocketAddr,
    since: Instant,
    /// Theirs; the connection is up once it is known.
    hello: Option<Hello>,
    /// When it came last.
    hello_at: Instant,
    rtt: Option<Duration>,
    /// Since when a hello has been on its way to find out whether the connection still works.
    doubted: Option<Instant>,
    early: Vec<(peer::Request, oneshot::Sender<peer::Response>)>,
    retire_at: Option<Instant>,
}

impl Connection {
    /// None before the hello.
    fn view(&self, node: &Key) -> Option<LinkView> {
        Some(LinkView {
            node: *node,
            address: self.remote,
            transport: self.transport,
            dialled: self.dialled,
            since: self.since,
            rtt: self.rtt,
            version: self.hello.as_ref()?.version.clone(),
        })
    }
}

/// A request that waits for a link.
struct Waiting {
    bytes: Vec<u8>,
    deadline: Instant,
    reply: oneshot::Sender<Result<peer::Response, CallError>>,
}

/// What is known about one node.
struct Peer {
    connections: Vec<Connection>,
    dialling: BTreeSet<ConnectionId>,
    resolving: bool,
    /// What came of the last dial.
    attempts: Vec<Attempt>,
    tried_at: Option<Instant>,
    backoff: Backoff,
    waiting: Vec<Waiting>,
    by_hand: Vec<by_hand::Wanted>,
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            connections: Vec::new(),
            dialling: BTreeSet::new(),
            resolving: false,
            attempts: Vec::new(),
            tried_at: None,
            backoff: Backoff::new(now),
            waiting: Vec::new(),
            by_hand: Vec::new(),
        }
    }

    /// Forgets earlier failures: something changed.
    fn forgive(&mut self, now: Instant) {
        self.backoff.reset(now);
        self.tried_at = None;
    }

    fn is_busy(&self) -> bool {
        !self.connections.is_empty() || !self.dialling.is_empty() || self.resolving
    }

    /// Whether no connection is there that is believed to work.
    fn is_missed(&self) -> bool {
        self.connections.iter().all(|c| c.doubted.is_some())
    }

    /// When to dial beside connections that are all doubted; once for each doubt.
    fn despaired_at(&self) -> Option<Instant> {
        let doubted_at = self.connections.iter().map(|c| c.doubted).collect::<Option<Vec<_>>>()?.into_iter().max()?;
        let idle = self.dialling.is_empty() && !self.resolving && self.tried_at.is_none_or(|at| at < doubted_at);
        idle.then_some(doubted_at + DOUBT)
    }

    /// The connection to use: both ends come to the same one, unless one of them has doubts for a moment.
    fn best(&self, me: &Key, node: &Key) -> Option<&Connection> {
        let smaller_dialled = |c: &Connection| if me < node { c.dialled } else { !c.dialled };
        self.connections
            .iter()
            .filter(|c| c.hello.is_some())
            .min_by_key(|c| (c.doubted.is_some(), c.transport, !smaller_dialled(c), c.id))
    }
}

/// Result of a hello of ours.
struct Probe {
    node: Key,
    connection: ConnectionId,
    took: Duration,
    result: Result<peer::Response, CallError>,
}

/// Result of looking names up.
struct Resolved {
    node: Key,
    addresses: Vec<SocketAddr>,
    failed: Vec<Attempt>,
}

/// One swarm's turn.
struct Run<'a> {
    m: &'a mut Member,
    swarm: Swarm<Behaviour>,
    /// Nodes that are wanted, linked, being dialled or waited for.
    peers: BTreeMap<Key, Peer>,
    probes: FuturesUnordered<BoxFuture<'static, Probe>>,
    resolving: FuturesUnordered<BoxFuture<'static, Resolved>>,
    resolvers: Arc<Semaphore>,
    farewells: farewell::Farewells,
    facts: Inputs,
    listening: BTreeSet<SocketAddr>,
}

impl Run<'_> {
    fn on_inputs(&mut self) {
        let new = self.m.inputs.borrow_and_update().clone();
        let old = std::mem::replace(&mut self.facts, new);
        let now = Instant::now();
        self.swarm.behaviour_mut().exchange.set_revoked(Arc::clone(&self.facts.revoked));
        if !Arc::ptr_eq(&old.members, &self.facts.members) {
            self.swarm.behaviour_mut().exchange.set_members(Arc::clone(&self.facts.members));
            self.m.book.retain(&self.facts.members);
            let gone: Vec<Key> = self.peers.keys().filter(|n| !self.facts.members.contains(n)).copied().collect();
            for node in gone {
                self.remove(node);
            }
        }
        if !Arc::ptr_eq(&old.contacts, &self.facts.contacts) {
            let mut news = Vec::new();
            for (node, peer) in &mut self.peers {
                if old.contacts.get(node) != self.facts.contacts.get(node) {
                    peer.forgive(now);
                    news.push(*node);
                }
            }
            for node in news {
                self.dial_beside(node, now);
            }
        }
        let keep: BTreeSet<Key> = self.facts.wanted.intersection(&self.facts.members).copied().collect();
        let dialled = |(node, peer): (&Key, &Peer)| {
            peer.connections.iter().filter(|c| c.dialled).map(|c| (*node, c.id)).collect::<Vec<_>>()
        };
        let connections: Vec<_> = self.peers.iter().flat_map(dialled).collect();
        for node in &keep {
            if *node != self.m.node {
                self.peers.entry(*node).or_insert_with(|| Peer::new(now));
            }
        }
        self.swarm.behaviour_mut().exchange.set_keep(Arc::new(keep), connections.into_iter());
        self.publish_missing();
    }

    /// Ends everything with a node that is no longer a member.
    fn remove(&mut self, node: Key) {
        let Some(mut peer) = self.peers.remove(&node) else { return };
        for waiting in std::mem::take(&mut peer.waiting) {
            let _ = waiting.reply.send(Err(CallError::NotMember));
        }
        let told = peer.best(&self.m.node, &node).map(|best| best.id).filter(|id| self.say_farewell(node, *id));
        if told.is_some() {
            // That one is closed when the node has taken it. Dials under way end at the gate.
            for connection in peer.connections.iter().filter(|c| Some(c.id) != told) {
                self.swarm.close_connection(connection.id);
            }
        } else if let Some(id) = key::peer_id(&node) {
            // Err means that no connection was established; dials under way are aborted in both cases.
            let _ = self.swarm.disconnect_peer_id(id);
        }
        if peer.connections.iter().any(|c| c.hello.is_some()) {
            self.m.outbox.push_back(ControlEvent::LinkDown { node, reason: LinkDownReason::Removed });
            self.publish();
        }
    }

    fn on_command(&mut self, command: MemberCommand) {
        // Whoever sets facts and then asks means the facts to count: the two come by different ways.
        if self.m.inputs.has_changed().unwrap_or(false) {
            self.on_inputs();
        }
        let now = Instant::now();
        match command {
            MemberCommand::Request { node, bytes, deadline, reply } => {
                self.on_request(node, Waiting { bytes, deadline, reply }, now);
            }
            MemberCommand::Dial { node, address } => {
                if self.facts.members.contains(&node) && crate::dial::is_dialable(address) {
                    self.m.book.add_manual(node, address);
                    self.dial_by_hand(node, address, now);
                }
            }
            MemberCommand::Connect { node, address, there, reply } => {
                self.connect_by_hand(node, address, there, reply, now);
            }
            MemberCommand::Doubt { node } => {
                self.doubt(node, None);
            }
            MemberCommand::GreetAgain => {
                let nodes: Vec<Key> = self.peers.keys().copied().collect();
                for node in nodes {
                    self.hurry(&node, now);
                    self.doubt(node, None);
                    self.dial_beside(node, now);
                }
            }
        }
    }

    fn on_request(&mut self, node: Key, request: Waiting, now: Instant) {
        if node == self.m.node || !self.facts.members.contains(&node) {
            let _ = request.reply.send(Err(CallError::NotMember));
            return;
        }
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        if let Some(best) = peer.best(&self.m.node, &node) {
            let id = best.id;
            self.send(&node, id, request);
            return;
        }
        if peer.waiting.len() >= WAITING_MAX {
            let _ = request.reply.send(Err(CallError::Busy));
            return;
        }
        if !peer.is_busy() {
            if peer.tried_at.is_some_and(|at| now < at + FRESH_FAILURE) && !peer.attempts.is_empty() {
                let attempts = peer.attempts.clone();
                let _ = request.reply.send(Err(CallError::Unreachable { attempts }));
                return;
            }
            peer.backoff.reset(now);
        }
        peer.waiting.push(request);
    }

    fn send(&mut self, node: &Key, connection: ConnectionId, request: Waiting) {
        let Waiting { bytes, deadline, reply } = request;
        self.swarm.behaviour_mut().exchange.send(node, connection, Outgoing { bytes, deadline, reply });
    }

    fn connection(&mut self, node: &Key, id: ConnectionId) -> Option<&mut Connection> {
        self.peers.get_mut(node)?.connections.iter_mut().find(|c| c.id == id)
    }

    fn deliver(&mut self, from: Key, request: peer::Request, reply: oneshot::Sender<peer::Response>) {
        if self.m.outbox.len() < OUTBOX_REQUESTS_MAX {
            Counters::count(&self.m.counters.requests_in);
            self.m.outbox.push_back(ControlEvent::Request { from, request, reply });
        } else {
            Counters::count(&self.m.counters.busy);
            let _ = reply.send(peer::Response::Refused("busy, try again later".to_owned()));
        }
    }

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) -> Option<End> {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Exchange(event)) => self.on_exchange(event),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(event)) => self.on_mdns(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => match key::node(&peer_id) {
                Some(node) => self.on_established(node, connection_id, &endpoint),
                None => {
                    self.swarm.close_connection(connection_id);
                }
            },
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                if let Some(node) = key::node(&peer_id) {
                    let why = cause.map_or_else(|| "closed".to_owned(), |cause| innermost(&cause));
                    self.on_closed(node, connection_id, why);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id, connection_id, error } => {
                if let Some(node) = peer_id.and_then(|p| key::node(&p)) {
                    self.on_dial_failed(node, connection_id, &error);
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                if let Some((address, Transport::Quic)) = key::socket_address(&address) {
                    self.listening.insert(address);
                    self.publish_addresses();
                }
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                if let Some((address, Transport::Quic)) = key::socket_address(&address) {
                    self.listening.remove(&address);
                    self.publish_addresses();
                }
            }
            SwarmEvent::ListenerClosed { reason, .. } => {
                let why = reason.err().map_or_else(|| "a listener ended".to_owned(), |e| e.to_string());
                return Some(End::Failed(why));
            }
            SwarmEvent::ListenerError { error, .. } => tracing::debug!(%error, "listener"),
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                Counters::count(&self.m.counters.refused);
                tracing::debug!(remote = %send_back_addr, %error, "connection refused or failed");
            }
            // Steps on the way to the above; the enum is non-exhaustive.
            _ => {}
        }
        None
    }

    fn on_exchange(&mut self, event: exchange::Event<PeerProtocol>) {
        match event {
            exchange::Event::Malformed { node, why, .. } => {
                Counters::count(&self.m.counters.malformed);
                // One bad message breaks its own exchange only: a newer release may say what this one cannot read.
                tracing::debug!(?node, why, "not a request");
            }
            exchange::Event::Request { node, connection, request: peer::Request::Hello(hello), reply } => {
                let Some(c) = self.connection(&node, connection) else { return };
                let observed = Some(c.remote.ip());
                let _ = reply.send(peer::Response::Hello(Hello { observed, ..(self.m.hello)() }));
                self.on_hello(node, connection, hello);
            }
            // Whoever says this has not greeted, and will not.
            exchange::Event::Request { node, request: request @ peer::Request::Revoked(_), reply, .. } => {
                self.deliver(node, request, reply);
            }
            exchange::Event::Request { node, connection, request, reply } => {
                let Some(c) = self.connection(&node, connection) else { return };
                if c.hello.is_some() {
                    self.deliver(node, request, reply);
                } else if c.early.len() < EARLY_MAX {
                    c.early.push((request, reply));
                }
            }
        }
    }

    fn on_mdns(&mut self, event: mdns::Event) {
        let now = Instant::now();
        let (found, is_new) = match event {
            mdns::Event::Discovered(found) => (found, true),
            mdns::Event::Expired(found) => (found, false),
        };
        for (peer, address) in found {
            let Some((node, (address, _))) = key::node(&peer).zip(key::socket_address(&address)) else { continue };
            if !is_new {
                self.m.book.remove_local(&node, address);
            } else if self.facts.members.contains(&node) && self.m.book.add_local(node, address) {
                self.hurry(&node, now);
            }
        }
        let mdns = &mut self.swarm.behaviour_mut().mdns;
        if mdns.as_ref().is_some_and(|m| m.discovered_nodes().len() > MDNS_NODES_MAX) {
            tracing::warn!("mDNS is off: this LAN announces more than {MDNS_NODES_MAX} addresses");
            *mdns = Toggle::from(None);
            self.m.mdns = false;
        }
    }

    fn on_established(&mut self, node: Key, id: ConnectionId, endpoint: &ConnectedPoint) {
        let now = Instant::now();
        let remote = key::socket_address(endpoint.get_remote_address());
        let Some((remote, transport)) = remote.filter(|_| self.facts.members.contains(&node)) else {
            if !self.say_farewell(node, id) {
                self.swarm.close_connection(id);
            }
            return;
        };
        self.follow_by_hand(&node, id);
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        peer.dialling.remove(&id);
        peer.connections.push(Connection {
            id,
            dialled: endpoint.is_dialer(),
            transport,
            remote,
            since: now,
            hello: None,
            hello_at: now,
            rtt: None,
            doubted: None,
            early: Vec::new(),
            retire_at: None,
        });
        if peer.connections.len() > PER_NODE_MAX {
            let best = peer.best(&self.m.node, &node).map(|c| c.id);
            let surplus = peer.connections.iter().map(|c| c.id).find(|c| Some(*c) != best);
            if let Some(surplus) = surplus {
                self.swarm.close_connection(surplus);
            }
        }
        self.probe(node, id, remote.ip(), HELLO);
    }

    fn on_closed(&mut self, node: Key, id: ConnectionId, why: String) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(at) = peer.connections.iter().position(|c| c.id == id) else { return };
        let closed = peer.connections.remove(at);
        peer.end_by_hand(
            id,
            &[Attempt { address: closed.remote.to_string(), transport: Some(closed.transport), why: why.clone() }],
        );
        let still_up = peer.connections.iter().any(|c| c.hello.is_some());
        if closed.hello.is_none() {
            let why = format!("the connection ended before its hello ({why})");
            let address = closed.remote.to_string();
            peer.attempts.push(Attempt { address, transport: Some(closed.transport), why });
            self.end_dial(node, now);
        } else if !still_up {
            peer.backoff.fail(now, jitter());
            self.m.outbox.push_back(ControlEvent::LinkDown { node, reason: LinkDownReason::Closed(why) });
        } else {
            self.settle(&node, now);
        }
        self.publish();
        self.prune(&node);
    }

    /// Forgets a node with which nothing is going on, unless a fresh failure is to be remembered.
    fn prune(&mut self, node: &Key) {
        let idle = |peer: &Peer| {
            !peer.is_busy() && peer.by_hand.is_empty() && peer.waiting.is_empty() && peer.attempts.is_empty()
        };
        if !self.facts.wanted.contains(node) && self.peers.get(node).is_some_and(idle) {
            self.peers.remove(node);
        }
    }

    /// Does what is due: dials, retirements, requests given up.
    fn on_time(&mut self, now: Instant) {
        let mut dial = Vec::new();
        let mut forget = Vec::new();
        for (node, peer) in &mut self.peers {
            peer.waiting.retain(|w| !w.reply.is_closed() && w.deadline > now);
            for connection in &mut peer.connections {
                if connection.retire_at.is_some_and(|at| at <= now) {
                    connection.retire_at = None;
                    self.swarm.close_connection(connection.id);
                }
            }
            if peer.despaired_at().is_some_and(|at| at <= now) {
                dial.push(*node);
            }
            if peer.is_busy() {
                continue;
            }
            if self.facts.wanted.contains(node) || !peer.waiting.is_empty() {
                if peer.backoff.retry_at <= now {
                    dial.push(*node);
                }
            } else if peer.tried_at.is_none_or(|at| at + FRESH_FAILURE <= now) {
                forget.push(*node);
            }
        }
        for node in forget {
            self.peers.remove(&node);
        }
        for node in dial {
            self.dial(node, now);
        }
    }

    /// When [`Self::on_time`] has something to do next.
    fn next_wake(&self) -> Option<Instant> {
        self.peers
            .iter()
            .flat_map(|(node, peer)| {
                let retire = peer.connections.iter().filter_map(|c| c.retire_at).min();
                let missed = self.facts.wanted.contains(node) || !peer.waiting.is_empty();
                let next = match (peer.is_busy(), missed) {
                    (true, _) => None,
                    (false, true) => Some(peer.backoff.retry_at),
                    (false, false) => peer.tried_at.map(|at| at + FRESH_FAILURE),
                };
                [retire, next, peer.despaired_at(), peer.waiting.iter().map(|w| w.deadline).min()]
            })
            .flatten()
            .min()
    }

    fn publish(&mut self) {
        let me = self.m.node;
        let view = |(node, peer): (&Key, &Peer)| peer.best(&me, node)?.view(node);
        self.m.links.send_replace(self.peers.iter().filter_map(view).collect());
        self.publish_missing();
    }

    fn publish_missing(&mut self) {
        let is_missing = |(node, peer): &(&Key, &Peer)| {
            self.facts.wanted.contains(*node) && peer.connections.iter().all(|c| c.hello.is_none())
        };
        let view = |(node, peer): (&Key, &Peer)| MissingView {
            node: *node,
            attempts: peer.attempts.clone(),
            retry_at: peer.backoff.retry_at,
        };
        self.m.missing.send_replace(self.peers.iter().filter(is_missing).map(view).collect());
    }

    fn publish_addresses(&mut self) {
        self.m.addresses.send_replace(self.listening.iter().copied().collect());
    }

    /// Closes every connection in good order.
    async fn close_all(&mut self) {
        let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let drained = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        // A peer that does not take the close is left to its own time-out.
        let _ = timeout(CLOSE, drained).await;
        tokio::time::sleep(LINGER).await;
    }
}
