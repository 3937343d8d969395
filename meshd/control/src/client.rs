//! The joiner's side of the door.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use libp2p::swarm::{ConnectionId, Swarm, SwarmEvent};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use vdc::Key;
use vdc::invite::{DoorRequest, DoorResponse};
use vdc::record::ContactAddress;

use crate::dial::{AddressBook, NAMES_MAX};
use crate::error::{Attempt, CallError, DoorError};
use crate::exchange::{Exchange, Gate, Outgoing};
use crate::key;
use crate::member::{dial_options, explain, innermost, resolve};
use crate::transport;
use crate::wire::{DoorProtocol, Protocol as _};

/// Answers being read: the longest one.
const BUDGET_BYTES: usize = 2 * DoorProtocol::RESPONSE_BYTES_MAX;
/// The door closes a connection that is idle for longer anyway.
const IDLE: Duration = Duration::from_secs(15);
/// Attempts that an error lists.
const ATTEMPTS_MAX: usize = 64;

/// One registrar that an invite names, with the addresses of its door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoorTarget {
    pub registrar: Key,
    pub addresses: Vec<ContactAddress>,
}

/// A connection to the door of one registrar, whose key was verified.
///
/// It needs no task: it works while [`DoorClient::call`] is being awaited. Dropping it closes the connection.
pub struct DoorClient {
    swarm: Swarm<Exchange<DoorProtocol>>,
    registrar: Key,
    address: SocketAddr,
    connection: ConnectionId,
}

impl fmt::Debug for DoorClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoorClient").field("registrar", &self.registrar).finish_non_exhaustive()
    }
}

impl DoorClient {
    /// Dials every address of every registrar at once and keeps the first that answers with the right key.
    ///
    /// `node_seed` is the seed of the joiner's new node key, which the registrar will see. To be called in a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`DoorError::Unreachable`] with each address and what came of it, after `deadline` at the latest.
    pub async fn connect(node_seed: [u8; 32], targets: &[DoorTarget], deadline: Duration) -> Result<Self, DoorError> {
        let deadline = Instant::now() + deadline;
        let keys = key::keypair(node_seed);
        // Panics in a connection's task are its own end here: the caller sees a lost link.
        let (panics, _) = mpsc::channel(1);
        let config = transport::swarm_config(IDLE, &TaskTracker::new(), panics);
        let gate = Gate::Registrars(targets.iter().map(|t| t.registrar).collect());
        let peer = keys.public().to_peer_id();
        let mut swarm = Swarm::new(transport::build(&keys), Exchange::new(gate, BUDGET_BYTES), peer, config);

        let resolvers = Semaphore::new(NAMES_MAX);
        let mut resolving = FuturesUnordered::new();
        let mut dialling = BTreeSet::new();
        let mut attempts = Vec::new();
        for target in targets {
            let (addresses, names) = AddressBook::default().candidates(&target.registrar, &target.addresses);
            dial(&mut swarm, &target.registrar, &addresses, &mut dialling, &mut attempts);
            if !names.is_empty() {
                resolving.push(async { (target.registrar, resolve(names, &resolvers).await) });
            }
        }
        let first = async {
            while !dialling.is_empty() || !resolving.is_empty() {
                // cancel-safe: look-ups and dials go on where they were.
                tokio::select! {
                    Some((registrar, (addresses, failed))) = resolving.next(), if !resolving.is_empty() => {
                        attempts.extend(failed);
                        dial(&mut swarm, &registrar, &addresses, &mut dialling, &mut attempts);
                    }
                    event = swarm.select_next_some() => match event {
                        SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                            let address = key::socket_address(endpoint.get_remote_address());
                            if let Some((registrar, (address, _))) = key::node(&peer_id).zip(address) {
                                return Some((registrar, address, connection_id));
                            }
                        }
                        SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                            dialling.remove(&connection_id);
                            attempts.extend(explain(&error));
                        }
                        // Steps on the way to the above; the enum is non-exhaustive.
                        _ => {}
                    },
                }
            }
            None
        };
        let first = timeout_at(deadline, Box::pin(first)).await;
        match first {
            Ok(Some((registrar, address, connection))) => Ok(Self { swarm, registrar, address, connection }),
            Ok(None) | Err(_) => {
                if first.is_err() {
                    let late = targets.iter().flat_map(|t| t.addresses.iter().map(address_text));
                    let missing = |text: &String| !attempts.iter().any(|a: &Attempt| a.address == *text);
                    let late: Vec<String> = late.filter(missing).collect();
                    let why = "no answer in time".to_owned();
                    attempts.extend(late.into_iter().map(|address| Attempt {
                        address,
                        transport: None,
                        why: why.clone(),
                    }));
                }
                attempts.truncate(ATTEMPTS_MAX);
                Err(DoorError::Unreachable { attempts })
            }
        }
    }

    /// The registrar that answered first.
    #[must_use]
    pub fn registrar(&self) -> Key {
        self.registrar
    }

    /// Where it answered.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks the registrar.
    ///
    /// # Errors
    /// [`DoorError::Call`] if there is no answer within `deadline`, or sooner if there cannot be one.
    pub async fn call(&mut self, request: &DoorRequest, deadline: Duration) -> Result<DoorResponse, DoorError> {
        let deadline = Instant::now() + deadline;
        let result = self.exchange(request, deadline).await;
        result.map_err(|cause| DoorError::Call { registrar: self.registrar, address: self.address, cause })
    }

    async fn exchange(&mut self, request: &DoorRequest, deadline: Instant) -> Result<DoorResponse, CallError> {
        let bytes = request.encode();
        if bytes.len() > DoorProtocol::REQUEST_BYTES_MAX {
            return Err(CallError::TooLong { length: bytes.len(), length_max: DoorProtocol::REQUEST_BYTES_MAX });
        }
        let (reply, mut answer) = oneshot::channel();
        self.swarm.behaviour_mut().send(&self.registrar, self.connection, Outgoing { bytes, deadline, reply });
        let answered = async {
            loop {
                // cancel-safe: the answer stays in its channel, the swarm keeps its events.
                tokio::select! {
                    biased;
                    result = &mut answer => return result.unwrap_or(Err(CallError::LinkLost)),
                    event = self.swarm.select_next_some() => {
                        if let SwarmEvent::ConnectionClosed { connection_id, cause: Some(cause), .. } = event
                            && connection_id == self.connection
                        {
                            tracing::debug!(why = innermost(&cause), "door: connection lost");
                        }
                    }
                }
            }
        };
        timeout_at(deadline, answered).await.unwrap_or(Err(CallError::Deadline))
    }
}

fn dial(
    swarm: &mut Swarm<Exchange<DoorProtocol>>,
    registrar: &Key,
    addresses: &[SocketAddr],
    dialling: &mut BTreeSet<ConnectionId>,
    attempts: &mut Vec<Attempt>,
) {
    let Some(peer) = key::peer_id(registrar) else { return };
    if addresses.is_empty() {
        return;
    }
    let options = dial_options(peer, addresses);
    let connection = options.connection_id();
    match swarm.dial(options) {
        Ok(()) => {
            dialling.insert(connection);
        }
        Err(error) => attempts.extend(explain(&error)),
    }
}

fn address_text(address: &ContactAddress) -> String {
    match address {
        ContactAddress::Ip(ip, port) => SocketAddr::new(*ip, *port).to_string(),
        ContactAddress::Dns(name, port) => format!("{name}:{port}"),
    }
}
