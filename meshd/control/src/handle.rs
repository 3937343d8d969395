//! What the composition root holds: configuration in, events out, and a handle in between.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use vdc::invite::{DoorRequest, DoorResponse};
use vdc::peer::{self, Hello};
use vdc::record::ContactAddress;
use vdc::{Key, UnixTime, VdcId};

use crate::door::DoorCommand;
use crate::error::{Attempt, CallError, ListenError, RequestError};
use crate::key::Transport;
use crate::member::MemberCommand;

/// Events that wait for the composition root. When full, the member swarm stops reading (nothing of its own is lost,
/// members' requests are refused as busy) and the door turns joiners away.
pub const EVENTS_MAX: usize = 256;
/// Requests of ours that may be under way at a time; more are refused as [`CallError::Busy`].
pub const REQUESTS_MAX: usize = 256;
/// A request without an answer for this long has its link checked: many round trips, and less than anybody waits.
const UNANSWERED: Duration = Duration::from_millis(1_500);
/// Commands that wait for a swarm; callers wait when it is full.
pub(crate) const COMMANDS_MAX: usize = 64;

/// Says who we are at this moment; the observed address is filled in by the control task.
pub type HelloSource = Arc<dyn Fn() -> Hello + Send + Sync>;

/// Static input of one VDC's control plane.
#[derive(Clone)]
pub struct ControlConfig {
    pub vdc: VdcId,
    /// Seed of the node key, which is also the libp2p identity.
    pub node_seed: [u8; 32],
    /// Port of the member swarm, UDP and TCP; 0 picks a free one.
    pub port: u16,
    /// Port of the join door, UDP and TCP; 0 picks a free one each time it opens.
    pub door_port: u16,
    /// Addresses that both swarms listen on. A family that the host does not have is left out if it stands here as the
    /// unspecified address.
    pub listen: Vec<IpAddr>,
    /// Whether to announce and look for nodes on the LAN.
    pub mdns: bool,
    /// Where members were found in the last run, oldest first.
    pub seen: Vec<(Key, SocketAddr)>,
    /// Links that others may have open to us at a time.
    pub links_inbound_max: u32,
    /// A link that nobody wants is closed after this long without a request.
    pub link_idle: Duration,
    pub hello: HelloSource,
}

impl ControlConfig {
    /// The usual settings: all addresses of both families, free ports, no mDNS.
    #[must_use]
    pub fn new(vdc: VdcId, node_seed: [u8; 32], hello: HelloSource) -> Self {
        Self {
            vdc,
            node_seed,
            port: 0,
            door_port: 0,
            listen: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            mdns: false,
            seen: Vec::new(),
            links_inbound_max: 256,
            link_idle: Duration::from_secs(60),
            hello,
        }
    }
}

impl fmt::Debug for ControlConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlConfig")
            .field("vdc", &self.vdc)
            .field("port", &self.port)
            .field("door_port", &self.door_port)
            .field("listen", &self.listen)
            .field("mdns", &self.mdns)
            .finish_non_exhaustive()
    }
}

/// Why a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkDownReason {
    /// Its last connection was closed or broke.
    Closed(String),
    /// The node is no longer a member.
    Removed,
    /// The node started anew, or the connection was found dead; a new link is already up.
    Replaced,
    /// Our own swarm is being rebuilt, or stops.
    Local,
}

/// One of the two swarms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwarmKind {
    Member,
    Door,
}

/// What happened. Events of one link come in order: [`LinkUp`](Self::LinkUp), requests, [`LinkDown`](Self::LinkDown).
#[derive(Debug)]
pub enum ControlEvent {
    /// A link is up: both ends have said [`Hello`].
    LinkUp {
        node: Key,
        address: SocketAddr,
        transport: Transport,
        /// Theirs; `observed` is the address from which they see us.
        hello: Hello,
    },
    LinkDown {
        node: Key,
        reason: LinkDownReason,
    },
    /// A node greeted again over its link, which tells the time there anew.
    Greeted {
        node: Key,
        /// The node's system clock.
        time: UnixTime,
    },
    /// A member asks. Dropping `reply` breaks the exchange off, and so does taking longer than 30 s.
    Request {
        from: Key,
        request: peer::Request,
        reply: oneshot::Sender<peer::Response>,
    },
    /// A stranger asks at the join door. `from` is the key that it proved to hold.
    Door {
        from: Key,
        remote: IpAddr,
        request: Box<DoorRequest>,
        reply: oneshot::Sender<DoorResponse>,
    },
    /// A member can be found here; worth keeping for the next start.
    Seen {
        node: Key,
        address: SocketAddr,
    },
    /// A swarm failed and is being rebuilt; all its links are down.
    Restarted {
        swarm: SwarmKind,
        why: String,
    },
}

/// One link that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkView {
    pub node: Key,
    pub address: SocketAddr,
    pub transport: Transport,
    /// Whether this node opened it.
    pub dialled: bool,
    pub since: Instant,
    /// Time of the last exchange of [`Hello`].
    pub rtt: Option<Duration>,
    /// Release that the peer runs.
    pub version: String,
}

/// One node to which a link is wanted and there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingView {
    pub node: Key,
    /// What came of the last dial, or of the dial so far; empty if no address is known.
    pub attempts: Vec<Attempt>,
    /// When it is tried again, unless that is in the past: then it is being tried.
    pub retry_at: Instant,
}

/// What the member swarm counted since the start; shared with it.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests of members that were passed on.
    pub requests_in: AtomicU64,
    /// Requests of members that were refused because too many waited.
    pub busy: AtomicU64,
    /// Messages of members that could not be read.
    pub malformed: AtomicU64,
    /// Connections that did not get past the handshake, or were turned away before it.
    pub refused: AtomicU64,
    /// Times that no address of a node led to it.
    pub dials_failed: AtomicU64,
    /// Times that the swarm was rebuilt after a failure.
    pub restarts: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The facts that the swarm acts on; the latest ones count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) members: Arc<BTreeSet<Key>>,
    pub(crate) contacts: Arc<BTreeMap<Key, Vec<ContactAddress>>>,
    pub(crate) wanted: Arc<BTreeSet<Key>>,
    /// Encoded tombstones of revoked nodes.
    pub(crate) revoked: Arc<BTreeMap<Key, Vec<u8>>>,
}

/// Talks to the control task; cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    pub(crate) node: Key,
    pub(crate) port: u16,
    pub(crate) inputs: watch::Sender<Inputs>,
    pub(crate) members: mpsc::Sender<MemberCommand>,
    pub(crate) door: mpsc::Sender<DoorCommand>,
    pub(crate) links: watch::Receiver<Arc<[LinkView]>>,
    pub(crate) addresses: watch::Receiver<Arc<[SocketAddr]>>,
    pub(crate) missing: watch::Receiver<Arc<[MissingView]>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) in_flight: Arc<Semaphore>,
    pub(crate) stop: CancellationToken,
}

impl ControlHandle {
    /// Replaces the set of nodes that may have links. Links of nodes that left it are closed at once.
    pub fn set_members(&self, members: Arc<BTreeSet<Key>>) {
        self.inputs.send_modify(|inputs| inputs.members = members);
    }

    /// Replaces the encoded tombstones of revoked nodes: what such a node is told, and nothing else, before its link is cut
    /// or when it comes back. To be set before [`Self::set_members`] takes the node out.
    pub fn set_revoked(&self, revoked: Arc<BTreeMap<Key, Vec<u8>>>) {
        self.inputs.send_modify(|inputs| inputs.revoked = revoked);
    }

    /// Replaces what contact records say about where members listen.
    pub fn set_contacts(&self, contacts: Arc<BTreeMap<Key, Vec<ContactAddress>>>) {
        self.inputs.send_modify(|inputs| inputs.contacts = contacts);
    }

    /// Replaces the members to which links are kept up. Others keep their links until they have been idle.
    pub fn set_wanted(&self, wanted: impl IntoIterator<Item = Key>) {
        let wanted = Arc::new(wanted.into_iter().collect());
        self.inputs.send_modify(|inputs| inputs.wanted = wanted);
    }

    /// Asks a member, over its link or a new one.
    ///
    /// # Errors
    /// [`RequestError`] if there is no answer within `deadline`, or sooner if there cannot be one.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the request; the member may have acted on it.
    pub async fn request(
        &self,
        node: Key,
        request: peer::Request,
        deadline: Duration,
    ) -> Result<peer::Response, RequestError> {
        self.call(node, &request, Instant::now() + deadline).await.map_err(|cause| RequestError { node, cause })
    }

    async fn call(&self, node: Key, request: &peer::Request, deadline: Instant) -> Result<peer::Response, CallError> {
        let _slot = self.in_flight.try_acquire().map_err(|_| CallError::Busy)?;
        let bytes = request.encode();
        if bytes.len() > peer::MESSAGE_BYTES_MAX {
            return Err(CallError::TooLong { length: bytes.len(), length_max: peer::MESSAGE_BYTES_MAX });
        }
        let (reply, mut answer) = oneshot::channel();
        let command = MemberCommand::Request { node, bytes, deadline, reply };
        match timeout_at(deadline, self.members.send(command)).await {
            Err(_) => return Err(CallError::Deadline),
            Ok(Err(_)) => return Err(CallError::Stopped),
            Ok(Ok(())) => {}
        }
        let patience = deadline.min(Instant::now() + UNANSWERED);
        let answered = match timeout_at(patience, &mut answer).await {
            Ok(answered) => Ok(answered),
            Err(_) => {
                // A full queue or a stopped task: the answer or the deadline says so.
                let _ = self.members.try_send(MemberCommand::Doubt { node });
                timeout_at(deadline, answer).await
            }
        };
        match answered {
            Err(_) => Err(CallError::Deadline),
            // Whoever gives up at the deadline may be a moment earlier than this timer.
            Ok(Err(_)) if Instant::now() >= deadline => Err(CallError::Deadline),
            Ok(Err(_)) => Err(CallError::LinkLost),
            Ok(Ok(result)) => result,
        }
    }

    /// Links to `node` at `address`, at once and beside whatever else is being tried. Links that are up already are
    /// checked by a round trip meanwhile, and closed if it fails. With `there` only a link at this very address counts,
    /// otherwise any to the node that has just answered.
    ///
    /// # Errors
    /// [`RequestError`] if there is no such link within `deadline`, or sooner if there cannot be one.
    pub async fn connect(
        &self,
        node: Key,
        address: SocketAddr,
        there: bool,
        deadline: Duration,
    ) -> Result<LinkView, RequestError> {
        let (reply, answer) = oneshot::channel();
        let command = MemberCommand::Connect { node, address, there, reply };
        let result = match self.members.send(command).await {
            Err(_) => Err(CallError::Stopped),
            Ok(()) => match timeout_at(Instant::now() + deadline, answer).await {
                Err(_) => Err(CallError::Deadline),
                Ok(Err(_)) => Err(CallError::LinkLost),
                Ok(Ok(result)) => result,
            },
        };
        result.map_err(|cause| RequestError { node, cause })
    }

    /// Adds an address at which `node` may be found, and tries it at once unless there is a link.
    pub async fn dial(&self, node: Key, address: SocketAddr) {
        // Fails only when the control task has stopped: then there is nothing to dial from.
        let _ = self.members.send(MemberCommand::Dial { node, address }).await;
    }

    /// Opens or closes the join door. Returns the port it is open on.
    ///
    /// # Errors
    /// [`ListenError`] if the door's port cannot be had.
    pub async fn set_door_open(&self, open: bool) -> Result<Option<u16>, ListenError> {
        let (reply, answer) = oneshot::channel();
        self.door.send(DoorCommand { open, reply }).await.map_err(|_| ListenError::Stopped)?;
        answer.await.map_err(|_| ListenError::Stopped)?
    }

    /// The links that are up, ascending by node.
    #[must_use]
    pub fn links(&self) -> Arc<[LinkView]> {
        self.links.borrow().clone()
    }

    /// The same as a value to wait on.
    #[must_use]
    pub fn watch_links(&self) -> watch::Receiver<Arc<[LinkView]>> {
        self.links.clone()
    }

    /// Nodes to which a link is wanted and there is none, and why, ascending by node.
    #[must_use]
    pub fn missing(&self) -> Arc<[MissingView]> {
        self.missing.borrow().clone()
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The addresses of this host's interfaces on which the member swarm listens, UDP and TCP; they come and go with the
    /// interfaces.
    #[must_use]
    pub fn listen_addresses(&self) -> Arc<[SocketAddr]> {
        self.addresses.borrow().clone()
    }

    /// The same as a value to wait on.
    #[must_use]
    pub fn watch_listen_addresses(&self) -> watch::Receiver<Arc<[SocketAddr]>> {
        self.addresses.clone()
    }

    /// The port of the member swarm.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Our own node key.
    #[must_use]
    pub fn node(&self) -> Key {
        self.node
    }

    /// Greets over every link again, for when addresses, routes or the clock of this host changed: the others hear what
    /// time it is here, dead links are found within 3 s, lost nodes are tried at once.
    pub async fn greet_again(&self) {
        let _ = self.members.send(MemberCommand::GreetAgain).await;
    }

    /// Closes all links and ends the task; [`ControlTask::run`](crate::ControlTask::run) then returns.
    pub fn shutdown(&self) {
        self.stop.cancel();
    }
}
