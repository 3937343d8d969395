//! Requests and responses over authenticated connections: one stream each.
//!
//! [`Exchange`] is the libp2p behaviour; its [`Handler`] lives in the connection's task and does all the reading and
//! writing there. It differs from libp2p's own request-response in what this room needs: the caller chooses the
//! connection, each request has its own deadline, the bytes held are budgeted, and keeping a connection is explicit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, Ready, ready};
use futures::stream::FuturesUnordered;
use futures::{AsyncWriteExt as _, FutureExt as _, StreamExt as _};
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, Stream, StreamProtocol};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use vdc::Key;

use crate::admission::Admission;
use crate::error::CallError;
use crate::key;
use crate::wire::{Protocol, ReadBudget, read_message, write_message};

/// A peer's request must have come in, and later our answer gone out, within this time each.
const INBOUND: Duration = Duration::from_secs(30);
/// Requests of ours that wait for a stream of one connection.
const OUTBOUND_QUEUE_MAX: usize = 64;
/// Requests of ours that one connection has open: what the other end serves at a time.
const OUTBOUND_STREAMS_MAX: usize = 16;

/// Who gets past the handshake.
#[derive(Debug)]
pub(crate) enum Gate {
    /// Current members, both ways; handshakes begin at a limited rate.
    Members(Arc<BTreeSet<Key>>, Admission),
    /// Whoever comes in, slowly; nobody is dialled.
    Door(Admission),
    /// Nobody comes in; only these are dialled.
    Registrars(BTreeSet<Key>),
}

/// A connection was refused by the [`Gate`].
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("not a current member")]
    NotMember,
    #[error("no Ed25519 identity")]
    NotEd25519,
    #[error("this swarm takes no connection in this direction")]
    Direction,
    #[error("too many connections from this address")]
    Rate,
}

/// A request on its way out.
pub(crate) struct Outgoing<P: Protocol> {
    /// The encoded request.
    pub(crate) bytes: Vec<u8>,
    pub(crate) deadline: Instant,
    /// Dropped unanswered if the connection ends first.
    pub(crate) reply: oneshot::Sender<Result<P::Response, CallError>>,
}

impl<P: Protocol> fmt::Debug for Outgoing<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// What the behaviour tells a handler.
#[derive(Debug)]
pub(crate) enum Command<P: Protocol> {
    Send(Outgoing<P>),
    /// Whether the connection stays open while nothing happens on it.
    Keep(bool),
}

/// What a handler tells the behaviour.
#[derive(Debug)]
pub(crate) enum FromHandler<P: Protocol> {
    Request { request: P::Request, reply: oneshot::Sender<P::Response> },
    Malformed { why: String },
}

/// What the behaviour tells the swarm's owner.
#[derive(Debug)]
pub(crate) enum Event<P: Protocol> {
    Request {
        node: Key,
        connection: ConnectionId,
        request: P::Request,
        /// Dropping it resets the stream.
        reply: oneshot::Sender<P::Response>,
    },
    /// The peer sent bytes that are no request.
    Malformed { node: Key, connection: ConnectionId, why: String },
}

/// The behaviour: a gate, and a handler for each connection that passed it.
#[derive(Debug)]
pub(crate) struct Exchange<P: Protocol> {
    gate: Gate,
    /// Revoked nodes that may come in to be told so; nothing that they say is read.
    revoked: Arc<BTreeMap<Key, Vec<u8>>>,
    /// Nodes whose dialled connections stay open while idle.
    keep: Arc<BTreeSet<Key>>,
    requests: ReadBudget,
    responses: ReadBudget,
    queue: VecDeque<ToSwarm<Event<P>, Command<P>>>,
}

impl<P: Protocol> Exchange<P> {
    pub(crate) fn new(gate: Gate, budget_bytes: usize) -> Self {
        Self {
            gate,
            revoked: Arc::default(),
            keep: Arc::default(),
            requests: ReadBudget::new(budget_bytes),
            responses: ReadBudget::new(budget_bytes),
            queue: VecDeque::new(),
        }
    }

    /// Replaces the member set. Connections that it no longer covers are the owner's to close.
    pub(crate) fn set_members(&mut self, members: Arc<BTreeSet<Key>>) {
        if let Gate::Members(current, _) = &mut self.gate {
            *current = members;
        }
    }

    /// Replaces the revoked nodes that are to be told.
    pub(crate) fn set_revoked(&mut self, revoked: Arc<BTreeMap<Key, Vec<u8>>>) {
        self.revoked = revoked;
    }

    /// Replaces the nodes whose dialled connections stay open; tells the handlers of `connections` what changed.
    pub(crate) fn set_keep(
        &mut self,
        keep: Arc<BTreeSet<Key>>,
        connections: impl Iterator<Item = (Key, ConnectionId)>,
    ) {
        for (node, connection) in connections {
            if self.keep.contains(&node) != keep.contains(&node) {
                self.notify(&node, connection, Command::Keep(keep.contains(&node)));
            }
        }
        self.keep = keep;
    }

    pub(crate) fn send(&mut self, node: &Key, connection: ConnectionId, outgoing: Outgoing<P>) {
        self.notify(node, connection, Command::Send(outgoing));
    }

    fn notify(&mut self, node: &Key, connection: ConnectionId, event: Command<P>) {
        if let Some(peer_id) = key::peer_id(node) {
            self.queue.push_back(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event });
        }
    }

    fn handler(&self, serve: bool, keep: bool) -> Handler<P> {
        Handler {
            serve,
            keep,
            waiting: VecDeque::new(),
            outbound: 0,
            inbound: 0,
            work: FuturesUnordered::new(),
            requests: self.requests.clone(),
            responses: self.responses.clone(),
        }
    }
}

impl<P: Protocol> NetworkBehaviour for Exchange<P> {
    type ConnectionHandler = Handler<P>;
    type ToSwarm = Event<P>;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        match &mut self.gate {
            Gate::Members(_, admission) | Gate::Door(admission) => {
                let admitted = key::socket_address(remote)
                    .is_some_and(|(a, _)| admission.admit(a.ip(), Instant::now().into_std()));
                if admitted { Ok(()) } else { Err(ConnectionDenied::new(Refused::Rate)) }
            }
            Gate::Registrars(_) => Err(ConnectionDenied::new(Refused::Direction)),
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let node = key::node(&peer).ok_or_else(|| ConnectionDenied::new(Refused::NotEd25519))?;
        match &self.gate {
            // The end that dialled decides how long the link lives.
            Gate::Members(members, _) if members.contains(&node) => Ok(self.handler(true, true)),
            Gate::Members(..) if self.revoked.contains_key(&node) => Ok(self.handler(false, false)),
            Gate::Members(..) => Err(ConnectionDenied::new(Refused::NotMember)),
            Gate::Door(_) => Ok(self.handler(true, false)),
            Gate::Registrars(_) => Err(ConnectionDenied::new(Refused::Direction)),
        }
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let node = key::node(&peer).ok_or_else(|| ConnectionDenied::new(Refused::NotEd25519))?;
        match &self.gate {
            Gate::Members(members, _) if members.contains(&node) => Ok(self.handler(true, self.keep.contains(&node))),
            Gate::Registrars(nodes) if nodes.contains(&node) => Ok(self.handler(false, true)),
            Gate::Members(..) | Gate::Registrars(_) => Err(ConnectionDenied::new(Refused::NotMember)),
            Gate::Door(_) => Err(ConnectionDenied::new(Refused::Direction)),
        }
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        let Some(node) = key::node(&peer) else { return };
        // The member set may have changed while the request was being read.
        if matches!(&self.gate, Gate::Members(members, _) if !members.contains(&node)) {
            return;
        }
        self.queue.push_back(ToSwarm::GenerateEvent(match event {
            FromHandler::Request { request, reply } => Event::Request { node, connection, request, reply },
            FromHandler::Malformed { why } => Event::Malformed { node, connection, why },
        }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // No waker is kept: the queue is filled by the swarm, which polls again, or by the owner, who then polls it.
        self.queue.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// The protocol to negotiate on a stream, if any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer(Option<&'static str>);

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = std::option::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.map(StreamProtocol::new).into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

/// What became of one piece of work on a stream.
enum Done<P: Protocol> {
    /// A request came in whole; the budget is held until it is answered.
    Read {
        stream: Stream,
        request: P::Request,
        held: OwnedSemaphorePermit,
    },
    Malformed {
        why: String,
    },
    /// An inbound stream is over, answered or not.
    Inbound,
    /// A request of ours is over; its caller knows.
    Outbound,
}

/// The end of one connection; runs in the connection's task.
pub(crate) struct Handler<P: Protocol> {
    serve: bool,
    keep: bool,
    /// At most [`OUTBOUND_QUEUE_MAX`]; beyond that the caller is told it is busy.
    waiting: VecDeque<Outgoing<P>>,
    outbound: usize,
    inbound: usize,
    /// At most [`OUTBOUND_STREAMS_MAX`] + [`Protocol::INBOUND_STREAMS_MAX`].
    work: FuturesUnordered<BoxFuture<'static, Done<P>>>,
    requests: ReadBudget,
    responses: ReadBudget,
}

impl<P: Protocol> fmt::Debug for Handler<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("keep", &self.keep)
            .field("waiting", &self.waiting.len())
            .field("outbound", &self.outbound)
            .field("inbound", &self.inbound)
            .finish_non_exhaustive()
    }
}

impl<P: Protocol> Handler<P> {
    fn on_inbound(&mut self, mut stream: Stream) {
        if self.inbound >= P::INBOUND_STREAMS_MAX {
            // Dropping the stream resets it: the peer sees its exchange broken off.
            return;
        }
        self.inbound += 1;
        let budget = self.requests.clone();
        let read = async move {
            let (bytes, held) = match timeout(INBOUND, read_message(&mut stream, P::REQUEST_BYTES_MAX, &budget)).await {
                Ok(Ok(message)) => message,
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    return Done::Malformed { why: error.to_string() };
                }
                Ok(Err(_)) | Err(_) => return Done::Inbound,
            };
            match P::decode_request(&bytes) {
                Ok(request) => Done::Read { stream, request, held },
                Err(error) => Done::Malformed { why: error.to_string() },
            }
        };
        self.work.push(read.boxed());
    }

    /// Waits for the answer to a request that came in, and writes it.
    fn answer(&mut self, mut stream: Stream, held: OwnedSemaphorePermit) -> oneshot::Sender<P::Response> {
        let (reply, answer) = oneshot::channel();
        let write = async move {
            if let Ok(Ok(response)) = timeout(INBOUND, answer).await {
                let bytes = P::encode_response(&response);
                drop((response, held));
                let written = timeout(INBOUND, async {
                    write_message(&mut stream, &bytes).await?;
                    stream.close().await
                });
                if let Ok(Err(error)) = written.await {
                    tracing::debug!(%error, "answer not taken");
                }
            }
            Done::Inbound
        };
        self.work.push(write.boxed());
        reply
    }

    fn on_outbound(&mut self, mut stream: Stream, outgoing: Outgoing<P>) {
        let Outgoing { bytes, deadline, mut reply } = outgoing;
        let budget = self.responses.clone();
        let call = async move {
            let exchange = async {
                write_message(&mut stream, &bytes).await.map_err(broken)?;
                drop(bytes);
                stream.close().await.map_err(broken)?;
                let (bytes, _held) = read_message(&mut stream, P::RESPONSE_BYTES_MAX, &budget).await.map_err(broken)?;
                P::decode_response(&bytes).map_err(CallError::Malformed)
            };
            tokio::select! {
                // cancel-safe: both branches end the exchange, and its stream is dropped with it.
                result = timeout_at(deadline, exchange) => {
                    let _ = reply.send(result.unwrap_or(Err(CallError::Deadline)));
                }
                () = reply.closed() => {}
            }
            Done::Outbound
        };
        self.work.push(call.boxed());
    }
}

/// A peer that speaks our protocol but not on this stream answers the lazy negotiation with a refusal, which surfaces
/// only when the stream is read.
fn broken(error: io::Error) -> CallError {
    CallError::Broken(error)
}

impl<P: Protocol> ConnectionHandler for Handler<P> {
    type FromBehaviour = Command<P>;
    type ToBehaviour = FromHandler<P>;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Outgoing<P>;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(self.serve.then_some(P::NAME)), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep
    }

    fn on_behaviour_event(&mut self, command: Command<P>) {
        match command {
            Command::Keep(keep) => self.keep = keep,
            Command::Send(outgoing) if self.waiting.len() < OUTBOUND_QUEUE_MAX => self.waiting.push_back(outgoing),
            Command::Send(outgoing) => {
                let _ = outgoing.reply.send(Err(CallError::Busy));
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Offer, Outgoing<P>, FromHandler<P>>> {
        while let Poll::Ready(Some(done)) = self.work.poll_next_unpin(cx) {
            match done {
                Done::Read { stream, request, held } => {
                    let reply = self.answer(stream, held);
                    let event = FromHandler::Request { request, reply };
                    return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
                }
                Done::Malformed { why } => {
                    self.inbound -= 1;
                    return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(FromHandler::Malformed { why }));
                }
                Done::Inbound => self.inbound -= 1,
                Done::Outbound => self.outbound -= 1,
            }
        }
        while self.outbound < OUTBOUND_STREAMS_MAX {
            let Some(outgoing) = self.waiting.pop_front() else { break };
            if outgoing.reply.is_closed() {
                continue;
            }
            self.outbound += 1;
            let protocol = SubstreamProtocol::new(Offer(Some(P::NAME)), outgoing);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer, (), Outgoing<P>>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                self.on_inbound(protocol);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                self.on_outbound(protocol, info);
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.outbound -= 1;
                let _ = info.reply.send(Err(match error {
                    StreamUpgradeError::Timeout => CallError::Deadline,
                    StreamUpgradeError::NegotiationFailed => CallError::Unsupported { protocol: P::NAME },
                    StreamUpgradeError::Io(error) => CallError::Broken(error),
                    StreamUpgradeError::Apply(never) => match never {},
                }));
            }
            // The rest tells nothing that this protocol acts on; the enum is non-exhaustive.
            _ => {}
        }
    }
}
