//! One VDC on this node: what it knows, what it decides, and the handles through which it acts.
//!
//! [`Core`] is owned by exactly one task ([`task`]), which waits for something to happen and then calls one synchronous
//! method of it. Whatever changes the roster goes through [`Core::settle`]: durable first, then believed, then acted on
//! (tunnels, links, firewall, names), then pushed to the peers.

mod authority;
mod commands;
mod door;
mod effects;
mod exposure;
mod founding;
mod invites;
mod issuing;
mod names;
mod revoked;
mod status;
mod task;
mod workloads;

pub(crate) use authority::{parse_owner_key, print_owner_key};
pub(crate) use commands::{Revoked, parse_name};
pub(crate) use effects::{chain, nothing_allowed};
pub(crate) use invites::Revoking;
pub(crate) use issuing::{Wish, found};
pub(crate) use task::{Start, id_of, load, no_members, run};
pub(crate) use workloads::CoreWorkload;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use meshd_control::ControlHandle;
use meshd_firewall::Firewall;
use meshd_state::{Changes, KeyKind, StateError, Store, VdcDir};
use tokio::sync::{mpsc, oneshot, watch};
use vdc::invite::{Challenges, InviteState, NodeSecrets};
use vdc::roster::{MemberView, Roster, View};
use vdc::sync::Syncer;
use vdc::{Hash, InviteId, Key, Name, Signed, SigningKey, UnixTime};
use vdc_api::ApiError;

use crate::cache::{PATHS_FILE, Places, SEEN_FILE};
use crate::clock::{Clock, PeerClock};
use crate::config::Config;
use crate::coord::{Claims, Coord};
use crate::data_plane::DataPlane;
use crate::dns_hub::DnsHub;
use crate::error::{storage, unavailable};
use crate::events::Events;
use crate::infra::remote::OperatorKeys;
use crate::infra::{InfraTls, MemberKeys};

/// Commands of the API that may wait; callers wait when it is full.
const COMMANDS_MAX: usize = 64;
/// Name of the stored time floor.
const META_TIME: &str = "time";
/// Name of the stored id of the invite by which this node joined.
pub(crate) const META_INVITE: &str = "invite";

/// A question or order from the API: runs inside the VDC's task, between two events.
type Command = Box<dyn FnOnce(&mut Core) + Send>;

/// Talks to the task of one VDC. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CoreHandle {
    alias: Name,
    commands: mpsc::Sender<Command>,
    control: ControlHandle,
    views: watch::Receiver<Arc<View>>,
    claims: watch::Sender<Arc<Claims>>,
    /// The VDC's coordination groups, once they are looked after.
    coord: Arc<OnceLock<Coord>>,
}

impl std::fmt::Debug for CoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CoreHandle({})", self.alias)
    }
}

impl CoreHandle {
    pub(crate) fn alias(&self) -> &Name {
        &self.alias
    }

    pub(crate) fn control(&self) -> &ControlHandle {
        &self.control
    }

    /// What is believed, as it changes.
    pub(crate) fn views(&self) -> watch::Receiver<Arc<View>> {
        self.views.clone()
    }

    /// Where it is said which node took which short name.
    pub(crate) fn claims(&self) -> watch::Sender<Arc<Claims>> {
        self.claims.clone()
    }

    /// Tells by what the VDC's groups are asked.
    pub(crate) fn set_coord(&self, coord: Coord) {
        let _ = self.coord.set(coord); // there is one for a VDC's task
    }

    pub(crate) fn coord(&self) -> Option<&Coord> {
        self.coord.get()
    }

    /// Whether the VDC's task has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    /// Runs `work` inside the VDC's task and returns what it returned.
    ///
    /// # Cancel safety
    /// Once sent, the work is done whether or not the future is dropped.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |core| {
            let _ = reply.send(work(core)); // the caller may have gone; the work is done all the same
        });
        self.commands.send(command).await.map_err(|_| unavailable())?;
        answer.await.map_err(|_| unavailable())
    }
}

/// The secrets of this node in one VDC.
#[derive(Debug)]
pub(crate) struct Secrets {
    pub(crate) node: SigningKey,
    pub(crate) wg: [u8; 32],
    pub(crate) owner: Option<SigningKey>,
}

impl Secrets {
    pub(crate) fn read(dir: &VdcDir) -> Result<Self, StateError> {
        let owner = if dir.has_key(KeyKind::Owner) { Some(dir.read_key(KeyKind::Owner)?) } else { None };
        Ok(Self {
            node: SigningKey::from_seed(&dir.read_key(KeyKind::Node)?),
            wg: dir.read_key(KeyKind::WireGuard)?,
            owner: owner.map(|seed| SigningKey::from_seed(&seed)),
        })
    }

    pub(crate) fn joining(&self) -> NodeSecrets {
        NodeSecrets::from_seeds(&self.node.seed(), &self.wg)
    }
}

/// An open control link, as far as the core minds.
#[derive(Clone, Debug)]
struct LinkFacts {
    address: SocketAddr,
    transport: meshd_control::Transport,
    since: Instant,
    version: String,
    peer_clock: PeerClock,
}

/// What the core shares with the rest of the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) events: Events,
    pub(crate) dns: Arc<DnsHub>,
    /// Drawn at this start of the daemon.
    pub(crate) boot_nonce: [u8; 16],
}

/// The state of one VDC on this node.
pub(crate) struct Core {
    alias: Name,
    shared: Shared,
    dir: VdcDir,
    store: Store,
    secrets: Secrets,
    clock: Clock,
    roster: Roster,
    view: Arc<View>,
    /// Tells everybody else of the view.
    views: watch::Sender<Arc<View>>,
    /// Which node took which short name, by what the groups say.
    claims: watch::Receiver<Arc<Claims>>,
    /// Talks to this very task, for what it begins and others finish.
    handle: CoreHandle,
    /// Hashes of the records in the store.
    stored: BTreeSet<Hash>,
    /// Whether the last write failed, and why.
    write_failed: Option<String>,
    syncer: Syncer,
    control: ControlHandle,
    data: DataPlane,
    firewall: Firewall,
    firewall_state: effects::FirewallState,
    infra_members: MemberKeys,
    infra_operators: OperatorKeys,
    infra_tls: InfraTls,
    links: BTreeMap<Key, LinkFacts>,
    /// Since when there is no link at all; none while there is one.
    alone_since: Option<Instant>,
    /// Addresses at which peers see us, with the peer that said so last.
    observed: BTreeMap<IpAddr, Key>,
    local_addresses: Vec<IpAddr>,
    invites: BTreeMap<InviteId, InviteState>,
    /// Those of them that stand in the store; the others stand in the site's group.
    kept_invites: BTreeSet<InviteId>,
    /// Challenges that joiners have not answered yet.
    challenges: Challenges,
    door_port: Option<u16>,
    seen: Places,
    caches_dirty: bool,
    renewal: effects::Renewal,
    workloads: workloads::Workloads,
    in_use: bool,
    /// Whether this node's own tombstone is being spread.
    leaving: bool,
    /// Whether the events say already that this node was revoked.
    revocation_noted: bool,
    /// By which invite this node joined; none where it founded the VDC.
    joined_by: Option<InviteId>,
    /// Futures that the task runs on the core's behalf.
    spawned: Vec<task::Job>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Core({})", self.alias)
    }
}

impl Core {
    pub(crate) fn own_key(&self) -> Key {
        self.secrets.node.public()
    }

    /// This node's own member record as the view shows it; none when it was never or is no longer a member.
    fn own(&self) -> Option<&MemberView> {
        self.view.members.get(&self.own_key())
    }

    fn now(&self) -> UnixTime {
        self.clock.now()
    }

    /// Makes the roster's state durable together with `extra`, then acts on it.
    ///
    /// # Errors
    /// [`ApiError`] if the write failed; the caller's change must then be undone (see [`Core::transact`]).
    fn settle(&mut self, mut extra: Changes) -> Result<(), ApiError> {
        let held: BTreeSet<Hash> = self.roster.hashes().copied().collect();
        for hash in held.difference(&self.stored) {
            if let Some(record) = self.roster.get(hash) {
                extra.put_records.push((*hash, record.encode()));
            }
        }
        extra.remove_records.extend(self.stored.difference(&held).copied());
        if let Err(error) = self.store.commit(&extra) {
            self.write_failed = Some(error.to_string());
            return Err(storage(&error));
        }
        self.write_failed = None;
        self.stored = held;
        self.refresh();
        Ok(())
    }

    /// Does `change` and settles it, or undoes it: a record is pushed to nobody before it is durable.
    fn transact<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<(T, Vec<Hash>, Changes), ApiError>,
    ) -> Result<T, ApiError> {
        let before = self.roster.clone();
        let result = change(self).and_then(|(value, hashes, extra)| {
            self.settle(extra)?;
            Ok((value, hashes))
        });
        match result {
            Ok((value, hashes)) => {
                self.syncer.handle_local(&hashes, &mut self.roster, Instant::now());
                Ok(value)
            }
            Err(error) => {
                self.roster = before;
                self.refresh();
                Err(error)
            }
        }
    }

    /// Keeps what sync brought. A full disk costs durability, not belief: a tombstone must count all the same.
    fn settle_received(&mut self) {
        if let Err(error) = self.settle(Changes::default()) {
            tracing::error!(vdc = %self.alias, %error, "records could not be stored; they count until the next start");
            self.refresh();
        }
    }

    fn persist_caches(&mut self) {
        if !std::mem::take(&mut self.caches_dirty) {
            return;
        }
        let paths = Places(self.data.last_paths());
        for (name, places) in [(SEEN_FILE, &self.seen), (PATHS_FILE, &paths)] {
            if let Err(error) = self.dir.write_cache(name, &places.encode()) {
                tracing::warn!(%error, "a cache file could not be written");
            }
        }
    }

    /// Writes down how late it is, so that a clock that falls back is noticed after a restart too.
    fn persist_time(&mut self) {
        let time = vdc::codec::encode(&self.now());
        let changes = Changes { put_meta: vec![(META_TIME, time)], ..Changes::default() };
        if let Err(error) = self.store.commit(&changes) {
            self.write_failed = Some(error.to_string());
            tracing::error!(%error, "the state directory cannot be written");
        } else {
            self.write_failed = None;
        }
    }

    fn record(&self, hash: &Hash) -> Option<&Arc<Signed>> {
        self.roster.get(hash)
    }
}
