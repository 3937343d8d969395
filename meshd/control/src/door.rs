//! The join door: a swarm of its own, open to strangers, that speaks one small protocol.
//!
//! It exists only while it is open. What a stranger can cost is bounded before the handshake (rate per source and in
//! all, handshakes under way), after it (connections, their life, requests on each) and while reading (message size).

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::swarm::{ConnectionId, NetworkBehaviour, Swarm, SwarmEvent};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, Rates};
use crate::error::ListenError;
use crate::exchange::{self, Exchange, Gate};
use crate::handle::{ControlEvent, SwarmKind};
use crate::key;
use crate::member::listen;
use crate::transport;
use crate::wire::{DoorProtocol, Protocol as _};

/// Handshakes under way, and strangers inside.
const PENDING_MAX: u32 = 64;
const CONNECTIONS_MAX: u32 = 32;
const CONNECTIONS_PER_SOURCE_MAX: usize = 16;
/// A connection that does nothing is closed after [`IDLE`], any after [`LIFE`].
const IDLE: Duration = Duration::from_secs(15);
const LIFE: Duration = Duration::from_secs(60);
/// Joining takes two requests, renewing two.
const REQUESTS_PER_CONNECTION_MAX: u32 = 8;
/// Requests that are read or answered at a time, in bytes.
const BUDGET_BYTES: usize = 1 << 20;
const _: () = assert!(BUDGET_BYTES >= 4 * DoorProtocol::REQUEST_BYTES_MAX);
/// Pause before a door that failed opens again.
const REOPEN: Duration = Duration::from_secs(5);

/// How long a port may stay in use by our own last opening.
const DRAIN: Duration = Duration::from_secs(2);

/// What the handle asks of the door.
#[derive(Debug)]
pub(crate) struct DoorCommand {
    pub(crate) open: bool,
    /// The port that the door is open on.
    pub(crate) reply: oneshot::Sender<Result<Option<u16>, ListenError>>,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    limits: connection_limits::Behaviour,
    exchange: Exchange<DoorProtocol>,
}

/// What outlives an opening of the door.
pub(crate) struct Door {
    pub(crate) keys: Keypair,
    pub(crate) ips: Vec<IpAddr>,
    /// As configured: 0 picks a free port.
    pub(crate) port: u16,
    pub(crate) tracker: TaskTracker,
    pub(crate) commands: mpsc::Receiver<DoorCommand>,
    pub(crate) events: mpsc::Sender<ControlEvent>,
    pub(crate) stop: CancellationToken,
}

struct Built {
    swarm: Swarm<Behaviour>,
    panics: mpsc::Receiver<String>,
    port: u16,
}

/// Why an opening is over.
enum End {
    Closed(oneshot::Sender<Result<Option<u16>, ListenError>>),
    Stopped,
    Failed(String),
}

/// A stranger inside.
struct Guest {
    id: ConnectionId,
    ip: IpAddr,
    leaves_at: Instant,
    requests: u32,
}

impl Door {
    fn build(&self) -> Result<Built, ListenError> {
        let (ips, port) = transport::probe_port(&self.ips, self.port)?;
        let (panics_in, panics) = mpsc::channel(1);
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_MAX))
            .with_max_established_incoming(Some(CONNECTIONS_MAX));
        let gate = Gate::Door(Admission::new(Rates::DOOR, Instant::now().into_std()));
        let behaviour = Behaviour {
            limits: connection_limits::Behaviour::new(limits),
            exchange: Exchange::new(gate, BUDGET_BYTES),
        };
        let config = transport::swarm_config(IDLE, &self.tracker, panics_in);
        let peer = self.keys.public().to_peer_id();
        let mut swarm = Swarm::new(transport::build(&self.keys), behaviour, peer, config);
        listen(&mut swarm, &ips, port)?;
        Ok(Built { swarm, panics, port })
    }

    /// Like [`Self::build`], but waits for the sockets of the last opening: the QUIC driver keeps its own until the
    /// last packets of its connections are drained.
    async fn build_patiently(&self) -> Result<Built, ListenError> {
        let give_up_at = Instant::now() + DRAIN;
        loop {
            match self.build() {
                Err(ListenError::PortInUse { .. }) if Instant::now() < give_up_at => {
                    tokio::time::sleep(DRAIN / 20).await
                }
                result => return result,
            }
        }
    }

    /// Waits closed, serves open, until stopped. A panic closes the door for a moment, not for good.
    pub(crate) async fn run(mut self) {
        loop {
            // cancel-safe: a command not taken stays in its queue.
            let command = tokio::select! {
                command = self.commands.recv() => command,
                () = self.stop.cancelled() => None,
            };
            let Some(DoorCommand { open, reply }) = command else { return };
            if !open {
                let _ = reply.send(Ok(None));
                continue;
            }
            match self.build_patiently().await {
                Ok(built) => {
                    let _ = reply.send(Ok(Some(built.port)));
                    if self.stay_open(built).await.is_none() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            }
        }
    }

    /// Serves until the door is closed; none if everything stops.
    async fn stay_open(&mut self, first: Built) -> Option<()> {
        let port = first.port;
        let mut next = Some(first);
        loop {
            let built = match next.take() {
                Some(built) => Ok(built),
                None => self.build(),
            };
            let why = match built {
                Ok(built) => match AssertUnwindSafe(Box::pin(self.serve(built))).catch_unwind().await {
                    Ok(End::Closed(reply)) => {
                        let _ = reply.send(Ok(None));
                        return Some(());
                    }
                    Ok(End::Stopped) => return None,
                    Ok(End::Failed(why)) => why,
                    Err(panic) => transport::panic_text(&*panic),
                },
                Err(error) => error.to_string(),
            };
            tracing::error!(why, "the join door failed and is opened again");
            // Invites name the port: it is kept even if it was picked.
            self.port = port;
            let _ = self.events.try_send(ControlEvent::Restarted { swarm: SwarmKind::Door, why });
            let reopen_at = Instant::now() + REOPEN;
            loop {
                // cancel-safe: a command not taken stays in its queue.
                tokio::select! {
                    () = sleep_until(reopen_at) => break,
                    () = self.stop.cancelled() => return None,
                    command = self.commands.recv() => {
                        let DoorCommand { open, reply } = command?;
                        let _ = reply.send(Ok(open.then_some(port)));
                        if !open {
                            return Some(());
                        }
                    }
                }
            }
        }
    }

    async fn serve(&mut self, built: Built) -> End {
        let Built { mut swarm, mut panics, port } = built;
        let mut guests: BTreeMap<ConnectionId, Guest> = BTreeMap::new();
        // Guests in the order in which they came, which is the order in which their time is up.
        let mut leaving: VecDeque<(Instant, ConnectionId)> = VecDeque::new();
        loop {
            let wake = leaving.front().map(|(at, _)| *at);
            // cancel-safe: every branch is a queue, a token or a timer that keeps what it has until it is taken.
            tokio::select! {
                () = self.stop.cancelled() => return End::Stopped,
                Some(why) = panics.recv() => return End::Failed(why),
                command = self.commands.recv() => match command {
                    Some(DoorCommand { open: true, reply }) => {
                        let _ = reply.send(Ok(Some(port)));
                    }
                    Some(DoorCommand { open: false, reply }) => return End::Closed(reply),
                    None => return End::Stopped,
                },
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    if let Some((_, id)) = leaving.pop_front() {
                        swarm.close_connection(id);
                    }
                }
                event = swarm.select_next_some() => match event {
                    SwarmEvent::Behaviour(BehaviourEvent::Exchange(event)) => {
                        if let Some(id) = self.on_exchange(event, &mut guests) {
                            swarm.close_connection(id);
                        }
                    }
                    SwarmEvent::ConnectionEstablished { connection_id: id, endpoint, .. } => {
                        let ip = key::socket_address(endpoint.get_remote_address()).map(|(a, _)| a.ip());
                        let same = guests.values().filter(|g| Some(g.ip) == ip).count();
                        let Some(ip) = ip.filter(|_| same < CONNECTIONS_PER_SOURCE_MAX) else {
                            swarm.close_connection(id);
                            continue;
                        };
                        let leaves_at = Instant::now() + LIFE;
                        guests.insert(id, Guest { id, ip, leaves_at, requests: 0 });
                        leaving.push_back((leaves_at, id));
                    }
                    SwarmEvent::ConnectionClosed { connection_id: id, .. } => {
                        if let Some(guest) = guests.remove(&id) {
                            leaving.retain(|l| *l != (guest.leaves_at, guest.id));
                        }
                    }
                    SwarmEvent::ListenerClosed { reason, .. } => {
                        return End::Failed(reason.err().map_or_else(|| "a listener ended".to_owned(), |e| e.to_string()));
                    }
                    SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                        tracing::debug!(remote = %send_back_addr, %error, "door: connection refused or failed");
                    }
                    // Steps on the way to the above; the enum is non-exhaustive.
                    _ => {}
                },
            }
        }
    }

    /// Passes a request on; returns the connection if it is to be closed instead.
    fn on_exchange(
        &self,
        event: exchange::Event<DoorProtocol>,
        guests: &mut BTreeMap<ConnectionId, Guest>,
    ) -> Option<ConnectionId> {
        let (from, connection, request, reply) = match event {
            exchange::Event::Request { node, connection, request, reply } => (node, connection, request, reply),
            exchange::Event::Malformed { connection, why, .. } => {
                tracing::debug!(why, "door: not a request");
                return Some(connection);
            }
        };
        let guest = guests.get_mut(&connection)?;
        guest.requests += 1;
        if guest.requests > REQUESTS_PER_CONNECTION_MAX {
            return Some(connection);
        }
        // A full queue turns the stranger away: its exchange is broken off and it may come again.
        let _ = self.events.try_send(ControlEvent::Door { from, remote: guest.ip, request: Box::new(request), reply });
        None
    }
}
