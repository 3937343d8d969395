//! The control plane's swarms: links between members, and the door for joiners. The only crate that names libp2p.
//!
//! [`start`] binds the sockets and returns a [`Control`]: a [`ControlHandle`] to ask with, a queue of
//! [`ControlEvent`]s, and the [`ControlTask`] that the composition root runs. A joiner needs none of that, only a
//! [`DoorClient`].
//!
//! What it is not: it does not know records or invites. It is told who is a member, where members listen and which
//! links are wanted; it carries [`vdc::peer`] and [`vdc::invite`] messages and answers none of them but
//! [`Hello`](vdc::peer::Hello). Data-plane packets never pass here.
//!
//! Invariants:
//! - Two swarms share nothing but the identity: the *member* swarm lets nobody but current members past the
//!   handshake, and a node that leaves the set loses its connections at once, and a revoked one is
//!   told so on a connection of which nothing is read; the *door* speaks to anybody, and only
//!   `/meshd/door/1`.
//! - An idle link costs at most one packet per 20 s, both directions counted (`transport.rs` has the arithmetic).
//! - Every queue, message and connection count is bounded. At the limits a member swarm holds 16 MiB of requests, 16 MiB
//!   of answers and 1 MiB of unread QUIC data per connection; a door 1 MiB of requests and at most 32 connections.
//! - A panic in a swarm or one of its connections ends that swarm, never the task: it is reported as
//!   [`ControlEvent::Restarted`] and the swarm is rebuilt on the same port.
//! - Bytes of peers and strangers never panic: they are read with limits and decoded strictly.

mod admission;
mod client;
mod dial;
mod door;
mod error;
mod exchange;
mod handle;
mod key;
mod member;
mod transport;
mod wire;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use client::{DoorClient, DoorTarget};
pub use error::{Attempt, CallError, DoorError, ListenError, RequestError};
pub use handle::{
    ControlConfig, ControlEvent, ControlHandle, Counters, EVENTS_MAX, HelloSource, LinkDownReason, LinkView,
    MissingView, REQUESTS_MAX, SwarmKind,
};
pub use key::Transport;

/// How long [`ControlTask::run`] waits for the tasks of connections when it ends.
const TASKS_END: Duration = Duration::from_secs(2);

/// A control plane that listens and is yet to run.
#[derive(Debug)]
pub struct Control {
    pub handle: ControlHandle,
    /// At most [`EVENTS_MAX`] wait here. Whoever takes them must not wait for a request in between.
    pub events: mpsc::Receiver<ControlEvent>,
    pub task: ControlTask,
}

/// The work: to be run until it returns.
pub struct ControlTask {
    member: member::Member,
    built: member::Built,
    door: door::Door,
    tracker: TaskTracker,
}

impl std::fmt::Debug for ControlTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ControlTask")
    }
}

impl ControlTask {
    /// Runs both swarms until [`ControlHandle::shutdown`], or until the events are no longer taken.
    pub fn run(self) -> impl Future<Output = ()> + Send {
        let Self { member, built, door, tracker } = self;
        async move {
            futures::join!(Box::pin(member.run(built)), Box::pin(door.run()));
            tracker.close();
            if timeout(TASKS_END, tracker.wait()).await.is_err() {
                tracing::warn!(tasks = tracker.len(), "connections did not end in time");
            }
        }
    }
}

/// Binds the member swarm's sockets. To be called in a tokio runtime.
///
/// # Errors
/// [`ListenError`] if the port cannot be had on one of the addresses.
pub fn start(config: ControlConfig) -> Result<Control, ListenError> {
    let keys = key::keypair(config.node_seed);
    let node = key::node(&keys.public().to_peer_id()).expect("the key was made from an Ed25519 seed");
    let (ips, port) = transport::probe_port(&config.listen, config.port)?;
    let tracker = TaskTracker::new();
    let stop = CancellationToken::new();
    let (inputs_in, inputs) = watch::channel(handle::Inputs::default());
    let (commands_in, commands) = mpsc::channel(handle::COMMANDS_MAX);
    let (door_in, door_commands) = mpsc::channel(handle::COMMANDS_MAX);
    let (events_in, events) = mpsc::channel(EVENTS_MAX);
    let (links, links_out) = watch::channel(Arc::default());
    let (addresses, addresses_out) = watch::channel(Arc::default());
    let (missing, missing_out) = watch::channel(Arc::default());
    let counters = Arc::new(Counters::default());
    let mut book = dial::AddressBook::default();
    for (node, address) in config.seen {
        book.saw(node, address);
    }
    let member = member::Member {
        keys: keys.clone(),
        node,
        ips,
        port,
        mdns: config.mdns,
        links_inbound_max: config.links_inbound_max,
        link_idle: config.link_idle,
        hello: config.hello,
        tracker: tracker.clone(),
        book,
        inputs,
        commands,
        events: events_in.clone(),
        outbox: VecDeque::new(),
        links,
        addresses,
        missing,
        counters: Arc::clone(&counters),
        stop: stop.clone(),
    };
    let built = member.build()?;
    let door = door::Door {
        keys,
        ips: config.listen,
        port: config.door_port,
        tracker: tracker.clone(),
        commands: door_commands,
        events: events_in,
        stop: stop.clone(),
    };
    tracing::info!(vdc = %config.vdc.short(), port, "the member swarm listens");
    let handle = ControlHandle {
        node,
        port,
        inputs: inputs_in,
        members: commands_in,
        door: door_in,
        links: links_out,
        addresses: addresses_out,
        missing: missing_out,
        counters,
        in_flight: Arc::new(Semaphore::new(REQUESTS_MAX)),
        stop,
    };
    Ok(Control { handle, events, task: ControlTask { member, built, door, tracker } })
}
