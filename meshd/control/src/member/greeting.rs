//! Hellos: whether a connection is up, whether it still works, and which of several is the link.

use std::net::IpAddr;
use std::time::Duration;

use futures::FutureExt as _;
use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;
use tokio::time::Instant;
use vdc::Key;
use vdc::peer::{self, Hello};

use super::{CHECK, Connection, DOUBT, LAST_WORD, OUTBOX_REQUESTS_MAX, Probe, RETIRE, Run, Waiting};
use crate::error::CallError;
use crate::handle::{ControlEvent, LinkDownReason};
use crate::key::Transport;

impl Run<'_> {
    /// Checks the connections of a node that were up, all but `fresh`, by a round trip: something speaks against them.
    /// Those that fail are closed, and the node is dialled anew.
    pub(super) fn doubt(&mut self, node: Key, fresh: Option<ConnectionId>) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let mut doubted = Vec::new();
        for c in peer.connections.iter_mut().filter(|c| c.hello.is_some() && c.doubted.is_none() && Some(c.id) != fresh)
        {
            c.doubted = Some(now);
            doubted.push((c.id, c.remote));
        }
        for (id, remote) in doubted {
            self.probe(node, id, remote.ip(), CHECK);
        }
    }

    /// Says hello on a connection; the answer proves that it works and how fast.
    pub(super) fn probe(&mut self, node: Key, connection: ConnectionId, remote: IpAddr, limit: Duration) {
        let hello = Hello { observed: Some(remote), ..(self.m.hello)() };
        let (reply, answer) = oneshot::channel();
        let sent = Instant::now();
        let bytes = peer::Request::Hello(hello).encode();
        self.send(&node, connection, Waiting { bytes, deadline: sent + limit, reply });
        let probe = async move {
            let result = answer.await.unwrap_or(Err(CallError::LinkLost));
            Probe { node, connection, took: sent.elapsed(), result }
        };
        self.probes.push(probe.boxed());
    }

    pub(super) fn on_probe(&mut self, probe: Probe) {
        let Probe { node, connection, took, result } = probe;
        match result {
            Ok(peer::Response::Hello(hello)) => {
                if let Some(c) = self.connection(&node, connection) {
                    c.rtt = Some(took);
                    c.doubted = None;
                }
                self.on_hello(node, connection, hello);
                self.settle(&node, Instant::now());
                self.publish();
                self.answer_by_hand(&node, connection);
            }
            Ok(_) | Err(_) => {
                let why =
                    result.err().map_or_else(|| "hello was answered by something else".to_owned(), |e| e.to_string());
                let Some(c) = self.connection(&node, connection) else { return };
                tracing::debug!(?node, why, "no hello: the connection is closed");
                if c.hello.is_some() {
                    self.replace(node, connection);
                } else {
                    c.retire_at = Some(Instant::now() + LAST_WORD);
                }
            }
        }
    }

    /// Closes a dead connection. What was under way on it may be lost, so the link counts as new if there is another.
    pub(super) fn replace(&mut self, node: Key, dead: ConnectionId) {
        self.swarm.close_connection(dead);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let me = self.m.node;
        if !peer.connections.iter().any(|c| c.id != dead && c.hello.is_some()) {
            return; // reported when it is closed
        }
        peer.connections.retain(|c| c.id != dead);
        peer.end_by_hand(dead, &[]);
        let next = peer.best(&me, &node).and_then(|c| {
            // What time it is there by now.
            let hello = c.hello.clone()?;
            let time = hello.time.plus(c.hello_at.elapsed());
            Some((c.remote, c.transport, Hello { time, ..hello }))
        });
        if let Some((address, transport, hello)) = next {
            self.m.outbox.push_back(ControlEvent::LinkDown { node, reason: LinkDownReason::Replaced });
            self.m.outbox.push_back(ControlEvent::LinkUp { node, address, transport, hello });
        }
        self.settle(&node, Instant::now());
        self.publish();
    }

    /// A peer said hello on a connection, by request or response.
    pub(super) fn on_hello(&mut self, node: Key, id: ConnectionId, hello: Hello) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let was_up = peer.connections.iter().any(|c| c.hello.is_some());
        let Some(connection) = peer.connections.iter_mut().find(|c| c.id == id) else { return };
        connection.hello_at = now;
        if connection.hello.replace(hello.clone()).is_some_and(|old| old.boot_nonce == hello.boot_nonce) {
            // A peer that greets without end must not fill the queue; what time it is there can wait.
            if self.m.outbox.len() < OUTBOX_REQUESTS_MAX {
                self.m.outbox.push_back(ControlEvent::Greeted { node, time: hello.time });
            }
            return;
        }
        let (address, transport) = (connection.remote, connection.transport);
        // The port of a TCP connection that came in is not one that listens.
        let is_listening = connection.dialled || transport == Transport::Quic;
        let early = std::mem::take(&mut connection.early);
        peer.backoff.reset(now);
        peer.attempts.clear();
        // Connections to what the node was before it started anew are dead, whether we were told or not; and so are those
        // that left a check unanswered until this one was dialled beside them.
        let unanswered = |c: &Connection| c.id != id && c.doubted.is_some_and(|at| at + DOUBT <= now);
        let stale =
            |c: &Connection| unanswered(c) || c.hello.as_ref().is_some_and(|h| h.boot_nonce != hello.boot_nonce);
        let dead: Vec<ConnectionId> = peer.connections.iter().filter(|c| stale(c)).map(|c| c.id).collect();
        peer.connections.retain(|c| !stale(c));
        for dead in &dead {
            peer.end_by_hand(*dead, &[]);
        }
        let waiting = std::mem::take(&mut peer.waiting);
        for dead in &dead {
            self.swarm.close_connection(*dead);
        }
        if !dead.is_empty() {
            self.m.outbox.push_back(ControlEvent::LinkDown { node, reason: LinkDownReason::Replaced });
        }
        if !was_up || !dead.is_empty() {
            self.m.outbox.push_back(ControlEvent::LinkUp { node, address, transport, hello });
        }
        // A node that comes in anew while it is linked may have lost its old address, and the old connection with it.
        self.doubt(node, Some(id));
        if is_listening && self.m.book.saw(node, address) {
            self.m.outbox.push_back(ControlEvent::Seen { node, address });
        }
        for (request, reply) in early {
            self.deliver(node, request, reply);
        }
        for request in waiting {
            self.send(&node, id, request);
        }
        self.settle(&node, now);
        self.publish();
    }

    /// Has our own surplus connections to a node retire.
    pub(super) fn settle(&mut self, node: &Key, now: Instant) {
        let me = self.m.node;
        let Some(peer) = self.peers.get_mut(node) else { return };
        let Some(best) = peer.best(&me, node).map(|c| c.id) else { return };
        for connection in peer.connections.iter_mut().filter(|c| c.hello.is_some()) {
            if connection.id == best {
                connection.retire_at = None;
            } else if connection.dialled && connection.retire_at.is_none() {
                connection.retire_at = Some(now + RETIRE);
            }
        }
    }
}
