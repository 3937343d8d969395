//! Links that somebody asked for by address: dialled at once, and believed only after a round trip.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;
use tokio::time::Instant;
use vdc::Key;

use super::{Peer, Run};
use crate::error::{Attempt, CallError};
use crate::handle::LinkView;

/// Links by hand to one node that are waited for; more are told to come again.
const WANTED_MAX: usize = 8;

/// Where the answer goes.
pub(crate) type Reply = oneshot::Sender<Result<LinkView, CallError>>;

/// A link by hand that is waited for.
pub(super) struct Wanted {
    address: SocketAddr,
    /// Whether only a connection to `address` counts.
    there: bool,
    /// Connections that may still become the link: the dial, and those being checked.
    hopes: BTreeSet<ConnectionId>,
    attempts: Vec<Attempt>,
    reply: Reply,
}

impl Peer {
    /// A dial or connection came to nothing: who hoped for it and for nothing else is told.
    pub(super) fn end_by_hand(&mut self, id: ConnectionId, attempts: &[Attempt]) {
        for mut wanted in std::mem::take(&mut self.by_hand) {
            if wanted.hopes.remove(&id) {
                wanted.attempts.extend_from_slice(attempts);
            }
            if !wanted.hopes.is_empty() {
                self.by_hand.push(wanted);
            } else {
                // The asker may have given up.
                let _ = wanted.reply.send(Err(CallError::Unreachable { attempts: wanted.attempts }));
            }
        }
    }
}

impl Run<'_> {
    pub(super) fn connect_by_hand(&mut self, node: Key, address: SocketAddr, there: bool, reply: Reply, now: Instant) {
        if node == self.m.node || !self.facts.members.contains(&node) {
            let _ = reply.send(Err(CallError::NotMember));
            return;
        }
        if !crate::dial::is_dialable(address) {
            let why = "not the address of one host".to_owned();
            let attempts = vec![Attempt { address: address.to_string(), transport: None, why }];
            let _ = reply.send(Err(CallError::Unreachable { attempts }));
            return;
        }
        self.m.book.add_manual(node, address);
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        peer.by_hand.retain(|wanted| !wanted.reply.is_closed());
        if peer.by_hand.len() >= WANTED_MAX {
            let _ = reply.send(Err(CallError::Busy));
            return;
        }
        peer.forgive(now);
        peer.tried_at = Some(now);
        let up = |peer: &Peer| peer.connections.iter().filter(|c| c.hello.is_some()).map(|c| c.id).collect();
        let mut hopes: BTreeSet<ConnectionId> = up(peer);
        let tried = peer.attempts.len();
        self.doubt(node, None);
        hopes.extend(self.dial_addresses(node, &[address]));
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let attempts = peer.attempts.get(tried..).map(<[_]>::to_vec).unwrap_or_default();
        if hopes.is_empty() {
            let _ = reply.send(Err(CallError::Unreachable { attempts }));
        } else {
            peer.by_hand.push(Wanted { address, there, hopes, attempts, reply });
        }
    }

    /// A dial has become a connection, whose hello is yet to come. libp2p keeps the id.
    pub(super) fn follow_by_hand(&mut self, node: &Key, id: ConnectionId) {
        if let Some(peer) = self.peers.get_mut(node) {
            // A connection that comes in meanwhile is as good.
            for wanted in peer.by_hand.iter_mut().filter(|wanted| !wanted.there) {
                wanted.hopes.insert(id);
            }
        }
    }

    /// A connection has just proved that it works: who waited for it has a link.
    pub(super) fn answer_by_hand(&mut self, node: &Key, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        let Some((remote, view)) =
            peer.connections.iter().find(|c| c.id == id).and_then(|c| Some((c.remote, c.view(node)?)))
        else {
            return;
        };
        let mut unfit = false;
        for wanted in std::mem::take(&mut peer.by_hand) {
            if wanted.there && wanted.address != remote {
                unfit |= wanted.hopes.contains(&id);
                peer.by_hand.push(wanted);
            } else {
                let _ = wanted.reply.send(Ok(view.clone())); // the asker may have given up
            }
        }
        if unfit {
            // It works, but it is not where the asker means.
            peer.end_by_hand(id, &[]);
        }
    }
}
