//! Opening connections: to whom, at which addresses, and what came of it.

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt as _;
use libp2p::Multiaddr;
use libp2p::core::transport::TransportError;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use vdc::Key;

use super::{DIALS_MAX, Peer, RESOLVE, Resolved, Run};
use crate::error::{Attempt, CallError};
use crate::handle::Counters;
use crate::key::{self, Transport};

impl Run<'_> {
    /// Dials a missed node at once although a dial of what was known before is still under way.
    pub(super) fn dial_beside(&mut self, node: Key, now: Instant) {
        let beside = |peer: &Peer| {
            peer.is_missed() && !peer.dialling.is_empty() && peer.dialling.len() < DIALS_MAX && !peer.resolving
        };
        if self.peers.get(&node).is_some_and(beside) {
            self.dial(node, now);
        }
    }

    /// Tries a node again at once if it is missed: something about it changed for the better.
    pub(super) fn hurry(&mut self, node: &Key, now: Instant) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.forgive(now);
        }
    }

    /// Tries one address at once, beside whatever is under way: a dial of dead addresses takes until its time-out.
    pub(super) fn dial_by_hand(&mut self, node: Key, address: SocketAddr, now: Instant) {
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        if peer.connections.is_empty() {
            peer.forgive(now);
            self.dial_addresses(node, &[address]);
        }
    }

    /// Starts dialling a node at every address known.
    pub(super) fn dial(&mut self, node: Key, now: Instant) {
        let contact = self.facts.contacts.get(&node).map_or(&[][..], Vec::as_slice);
        let (addresses, names) = self.m.book.candidates(&node, contact);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.attempts.clear();
        peer.tried_at = Some(now);
        if !names.is_empty() {
            peer.resolving = true;
            let resolvers = Arc::clone(&self.resolvers);
            self.resolving.push(
                async move {
                    let (addresses, failed) = resolve(names, &resolvers).await;
                    Resolved { node, addresses, failed }
                }
                .boxed(),
            );
        }
        self.dial_addresses(node, &addresses);
        self.end_dial(node, now);
    }

    pub(super) fn on_resolved(&mut self, resolved: Resolved) {
        let Resolved { node, addresses, failed } = resolved;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.resolving = false;
        peer.attempts.extend(failed);
        if peer.is_missed() {
            self.dial_addresses(node, &addresses);
        }
        self.end_dial(node, Instant::now());
    }

    pub(super) fn dial_addresses(&mut self, node: Key, addresses: &[SocketAddr]) -> Option<ConnectionId> {
        let (peer, id) = self.peers.get_mut(&node).zip(key::peer_id(&node))?;
        if addresses.is_empty() {
            return None;
        }
        let options = dial_options(id, addresses);
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                peer.dialling.insert(connection);
                Some(connection)
            }
            Err(error) => {
                peer.attempts.extend(explain(&error));
                None
            }
        }
    }

    pub(super) fn on_dial_failed(&mut self, node: Key, connection: ConnectionId, error: &DialError) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.dialling.remove(&connection);
        let attempts = explain(error);
        peer.end_by_hand(connection, &attempts);
        peer.attempts.extend(attempts);
        self.end_dial(node, Instant::now());
    }

    /// If nothing more is under way to a node, the dial has failed: whoever waits is told.
    pub(super) fn end_dial(&mut self, node: Key, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.is_busy() {
            return;
        }
        Counters::count(&self.m.counters.dials_failed);
        peer.backoff.fail(now, jitter());
        for waiting in std::mem::take(&mut peer.waiting) {
            let _ = waiting.reply.send(Err(CallError::Unreachable { attempts: peer.attempts.clone() }));
        }
        self.prune(&node);
        self.publish_missing();
    }
}

/// All addresses by both transports in one dial: libp2p starts QUIC first and TCP shortly after.
pub(crate) fn dial_options(peer: libp2p::PeerId, addresses: &[SocketAddr]) -> DialOpts {
    let both = |a: &SocketAddr| [key::multiaddr(*a, Transport::Quic), key::multiaddr(*a, Transport::Tcp)];
    DialOpts::peer_id(peer)
        .condition(PeerCondition::Always)
        .addresses(addresses.iter().flat_map(both).collect())
        .build()
}

/// Looks names up, each with a time limit. The host's resolver is read anew each time.
pub(crate) async fn resolve(names: Vec<(String, u16)>, resolvers: &Semaphore) -> (Vec<SocketAddr>, Vec<Attempt>) {
    let mut addresses = Vec::new();
    let mut failed = Vec::new();
    for (name, port) in names {
        let _slot = resolvers.acquire().await.expect("the semaphore is never closed");
        let why = match timeout(RESOLVE, tokio::net::lookup_host((name.as_str(), port))).await {
            Ok(Ok(found)) => {
                addresses.extend(found.filter(|a| crate::dial::is_dialable(*a)).take(8));
                continue;
            }
            Ok(Err(error)) => format!("the name does not resolve: {error}"),
            Err(_) => "the name did not resolve in time".to_owned(),
        };
        failed.push(Attempt { address: format!("{name}:{port}"), transport: None, why });
    }
    (addresses, failed)
}

/// What came of a dial, address by address.
pub(crate) fn explain(error: &DialError) -> Vec<Attempt> {
    let attempt = |address: &Multiaddr, why: String| match key::socket_address(address) {
        Some((address, transport)) => Attempt { address: address.to_string(), transport: Some(transport), why },
        None => Attempt { address: address.to_string(), transport: None, why },
    };
    match error {
        DialError::Transport(errors) => errors
            .iter()
            .map(|(address, error)| match error {
                TransportError::MultiaddrNotSupported(_) => attempt(address, "cannot be dialled from here".to_owned()),
                TransportError::Other(error) => attempt(address, innermost(error)),
            })
            .collect(),
        DialError::WrongPeerId { address, .. } => {
            vec![attempt(address, "another node answers there".to_owned())]
        }
        DialError::LocalPeerId { address } => vec![attempt(address, "this node itself answers there".to_owned())],
        DialError::Denied { .. }
        | DialError::NoAddresses
        | DialError::DialPeerConditionFalse(_)
        | DialError::Aborted => Vec::new(),
    }
}

/// The text at the bottom of a chain of errors: libp2p's layers each repeat the one below.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A number that differs each time: spreading dials needs no better randomness than the hasher's seed.
pub(super) fn jitter() -> u16 {
    let [low, high, ..] = RandomState::new().hash_one(Instant::now()).to_le_bytes();
    u16::from_le_bytes([low, high])
}
