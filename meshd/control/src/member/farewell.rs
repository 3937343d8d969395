//! The last word to a revoked node: its tombstone, and then the end of the connection.
//!
//! A revoked node that is linked is told before the link is cut; one that comes back later is told after its handshake,
//! on a connection on which nothing of it is read. Handshakes are limited as everybody's, and few are told at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Next};
use futures::{FutureExt as _, StreamExt as _};
use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use vdc::{Key, peer};

use super::Run;
use crate::exchange::Outgoing;

/// How long a revoked node may take to hear it.
const FAREWELL: Duration = Duration::from_secs(2);
/// Revoked nodes that are being told at a time, each on one connection; others are cut off unheard and may come again.
const FAREWELLS_MAX: usize = 8;

/// The farewells under way.
#[derive(Default)]
pub(super) struct Farewells {
    connections: BTreeMap<ConnectionId, Key>,
    told: FuturesUnordered<BoxFuture<'static, ConnectionId>>,
}

impl Farewells {
    pub(super) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// The next connection on which all is said.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken before it is returned.
    pub(super) fn next(&mut self) -> Next<'_, FuturesUnordered<BoxFuture<'static, ConnectionId>>> {
        self.told.next()
    }
}

impl Run<'_> {
    /// Tells a node on a connection that it was revoked. False if there is nothing to tell, or no room to.
    pub(super) fn say_farewell(&mut self, node: Key, connection: ConnectionId) -> bool {
        let Some(tombstone) = self.facts.revoked.get(&node) else { return false };
        let connections = &mut self.farewells.connections;
        if connections.len() >= FAREWELLS_MAX || connections.values().any(|other| *other == node) {
            return false;
        }
        connections.insert(connection, node);
        let deadline = Instant::now() + FAREWELL;
        let (reply, answer) = oneshot::channel();
        let bytes = peer::Request::Revoked(tombstone.clone().into()).encode();
        self.swarm.behaviour_mut().exchange.send(&node, connection, Outgoing { bytes, deadline, reply });
        let told = async move {
            // Heard or not: this was all there is to say.
            let _ = timeout_at(deadline, answer).await;
            connection
        };
        self.farewells.told.push(told.boxed());
        true
    }

    pub(super) fn on_farewell(&mut self, connection: ConnectionId) {
        self.farewells.connections.remove(&connection);
        self.swarm.close_connection(connection);
    }
}
