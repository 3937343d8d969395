//! The one task that owns a [`Core`]: waits, then applies.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use meshd_control::{ControlEvent, LinkDownReason};
use meshd_firewall::Firewall;
use meshd_state::VdcDir;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use vdc::invite::InviteState;
use vdc::peer::{Endpoints, Request, Response};
use vdc::roster::{Outcome, Roster};
use vdc::sync::{Event as SyncEvent, Syncer};
use vdc::{Hash, Key, Signed, UnixTime, codec};
use vdc_api::{ApiError, ErrorCode, Severity};

use super::effects::{FirewallState, Renewal, chain};
use super::{COMMANDS_MAX, Command, Core, CoreHandle, LinkFacts, META_INVITE, META_TIME, Secrets, Shared};
use crate::cache::{Places, SEEN_FILE};
use crate::clock::{Clock, PeerClock, StepWatch};
use crate::data_plane::{DataEvent, DataPlane};
use crate::entropy::random;
use crate::error::storage;
use crate::infra::remote::OperatorKeys;
use crate::infra::{InfraTls, MemberKeys};

/// How often the core looks after what only time changes: standings, renewals, caches.
const HOUSEKEEPING: Duration = Duration::from_secs(20);
/// How often the time floor is written down.
const TIME_PERSIST: Duration = Duration::from_secs(600);
/// How long a peer may take to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A future that the task runs on the core's behalf.
pub(super) type Job = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What came of a [`Job`].
#[derive(Debug)]
pub(super) enum Done {
    Nothing,
    Synced { node: Key, delivered: bool },
    Endpoints { node: Key, result: Result<Endpoints, String> },
    Firewall(Result<(), String>),
    Door(Result<Option<u16>, String>),
    Renewed(Result<Vec<Signed>, String>),
}

/// What a VDC's task starts from.
pub(crate) struct Start {
    pub(crate) dir: VdcDir,
    pub(crate) shared: Shared,
    pub(crate) data: DataPlane,
    pub(crate) data_events: mpsc::Receiver<DataEvent>,
    pub(crate) control: meshd_control::ControlHandle,
    pub(crate) control_events: mpsc::Receiver<ControlEvent>,
    pub(crate) infra_members: MemberKeys,
    pub(crate) infra_operators: OperatorKeys,
    pub(crate) infra_tls: InfraTls,
    pub(crate) namespace: std::path::PathBuf,
    pub(crate) in_use: bool,
    pub(crate) addresses: Vec<std::net::IpAddr>,
    pub(crate) loaded: Loaded,
}

/// What the state directory held.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) secrets: Secrets,
    pub(crate) roster: Roster,
    pub(crate) clock: Clock,
    store: meshd_state::Store,
    stored: std::collections::BTreeSet<Hash>,
    invites: BTreeMap<vdc::InviteId, InviteState>,
    joined_by: Option<vdc::InviteId>,
    pub(crate) seen: Places,
}

/// Reads one VDC from the state directory.
///
/// # Errors
/// [`ApiError`] if it cannot be read or holds no genesis record.
pub(crate) fn load(dir: &VdcDir) -> Result<Loaded, ApiError> {
    let secrets = Secrets::read(dir).map_err(|e| storage(&e))?;
    let mut store = dir.open_store().map_err(|e| storage(&e))?;
    let damaged = |what: &str| {
        ApiError::new(ErrorCode::Storage, format!("the state of VDC {} is damaged: {what}", dir.alias()))
            .hint("restore the state directory from a backup, or leave and join again")
    };
    let mut records = vec![];
    for bytes in store.records().map_err(|e| storage(&e))? {
        records.push(Signed::decode(&bytes).map_err(|e| damaged(&e.to_string()))?);
    }
    let genesis = records.iter().find(|r| matches!(r.body, vdc::Body::Genesis(_))).cloned();
    let genesis = genesis.ok_or_else(|| damaged("there is no genesis record"))?;
    let stored = records.iter().map(Signed::hash).collect();
    let mut roster = Roster::new(genesis).map_err(|e| damaged(&e.to_string()))?;
    // What gives a right may stand after what needs it: go round until nothing more is accepted.
    while !records.is_empty() {
        let before = records.len();
        records.retain(|record| {
            !matches!(roster.insert(record.clone()), Outcome::New | Outcome::Known | Outcome::Superseded)
        });
        if records.len() == before {
            tracing::warn!(vdc = %dir.alias(), records = before, "stored records that nothing justifies any more are left out");
            break;
        }
    }
    let mut invites = BTreeMap::new();
    for (id, bytes) in store.invites().map_err(|e| storage(&e))? {
        let state = InviteState::decode(&bytes).map_err(|e| damaged(&e.to_string()))?;
        invites.insert(id, state);
    }
    let mut clock = Clock::default();
    if let Some(bytes) = store.meta(META_TIME).map_err(|e| storage(&e))? {
        let time: UnixTime = codec::decode("time", &bytes, 16).map_err(|e| damaged(&e.to_string()))?;
        clock.raise_floor(time);
    }
    let joined_by = store.meta(META_INVITE).map_err(|e| storage(&e))?;
    let joined_by = joined_by
        .map(|bytes| <[u8; 16]>::try_from(bytes).map(vdc::InviteId).map_err(|_| damaged("the invite's id is cut off")))
        .transpose()?;
    let seen = dir.read_cache(SEEN_FILE).map(|bytes| Places::decode(SEEN_FILE, &bytes)).unwrap_or_default();
    Ok(Loaded { secrets, roster, clock, store, stored, invites, joined_by, seen })
}

/// Which VDC a part of the state directory belongs to, for as far as that can be read: keys and later records do not matter.
pub(crate) fn id_of(dir: &VdcDir) -> Option<vdc::VdcId> {
    let records = dir.open_store().ok()?.records().ok()?;
    let genesis = records.iter().filter_map(|bytes| Signed::decode(bytes).ok());
    let genesis = genesis.into_iter().find(|record| matches!(record.body, vdc::Body::Genesis(_)))?;
    Roster::new(genesis).ok().map(|roster| *roster.vdc_id())
}

/// Builds the core and its handle; the returned future is the task.
pub(crate) fn run(start: Start, token: CancellationToken) -> (CoreHandle, impl Future<Output = ()> + Send) {
    let Start {
        dir,
        shared,
        data,
        data_events,
        control,
        control_events,
        infra_members,
        infra_operators,
        infra_tls,
        namespace,
        in_use,
        addresses,
        loaded,
    } = start;
    let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
    let own = loaded.secrets.node.public();
    let view = Arc::new(loaded.roster.view(loaded.clock.now()));
    let views = watch::Sender::new(Arc::clone(&view));
    let claims = watch::Sender::default();
    let handle = CoreHandle {
        alias: dir.alias().clone(),
        commands: commands_in,
        control: control.clone(),
        views: views.subscribe(),
        claims: claims.clone(),
        coord: Arc::default(),
    };
    let core = Core {
        alias: dir.alias().clone(),
        shared,
        dir,
        store: loaded.store,
        secrets: loaded.secrets,
        clock: loaded.clock,
        roster: loaded.roster,
        view,
        views,
        claims: claims.subscribe(),
        handle: handle.clone(),
        stored: loaded.stored,
        write_failed: None,
        syncer: Syncer::new(own, random(), Instant::now()),
        control,
        data,
        firewall: Firewall::new(&namespace),
        firewall_state: FirewallState::default(),
        infra_members,
        infra_operators,
        infra_tls,
        links: BTreeMap::new(),
        alone_since: Some(Instant::now()),
        observed: BTreeMap::new(),
        local_addresses: addresses,
        kept_invites: loaded.invites.keys().copied().collect(),
        invites: loaded.invites,
        challenges: vdc::invite::Challenges::default(),
        door_port: None,
        seen: loaded.seen,
        caches_dirty: false,
        renewal: Renewal::default(),
        workloads: super::workloads::Workloads::default(),
        in_use,
        leaving: false,
        revocation_noted: false,
        joined_by: loaded.joined_by,
        spawned: vec![],
    };
    (handle, drive(core, control_events, data_events, commands, token))
}

async fn drive(
    mut core: Core,
    mut control_events: mpsc::Receiver<ControlEvent>,
    mut data_events: mpsc::Receiver<DataEvent>,
    mut commands: mpsc::Receiver<Command>,
    token: CancellationToken,
) {
    let mut jobs: FuturesUnordered<Job> = FuturesUnordered::new();
    let mut housekeeping = interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut time_written = Instant::now();
    let mut steps = StepWatch::new();
    core.refresh();
    core.open_door();
    core.publish_contact();
    core.found_groups();
    loop {
        core.pump(&mut jobs);
        let sync_due = core.syncer.poll_timeout().map(|(at, _)| at);
        let sync_timer = async {
            match sync_due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let record_due = core.workloads.record_due;
        let record_timer = async {
            match record_due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        // cancel-safe: every arm is a queue, a timer, or a set of futures that stay where they are.
        tokio::select! {
            biased;
            () = token.cancelled() => break,
            Some(event) = control_events.recv() => core.handle_control(event),
            Some(event) = data_events.recv() => core.handle_data(event),
            Some(command) = commands.recv() => command(&mut core),
            Some(done) = jobs.next(), if !jobs.is_empty() => core.handle_done(done),
            () = sync_timer => core.syncer.handle_timeout(&core.roster, Instant::now()),
            () = record_timer => core.publish_workloads(),
            Ok(()) = core.claims.changed() => core.refresh(),
            _ = housekeeping.tick() => {
                core.refresh();
                core.publish_workloads();
                core.open_door();
                core.publish_contact();
                core.renew_due();
                core.found_groups();
                core.persist_caches();
                if steps.stepped() {
                    core.greet_again();
                }
                if time_written.elapsed() > TIME_PERSIST {
                    core.persist_time();
                    time_written = Instant::now();
                }
            }
        }
    }
    core.persist_caches();
    core.persist_time();
}

impl Core {
    /// Turns what the state machines want into jobs.
    fn pump(&mut self, jobs: &mut FuturesUnordered<Job>) {
        while let Some((node, message)) = self.syncer.poll_transmit(&self.roster, Instant::now()) {
            let control = self.control.clone();
            self.spawn(async move {
                let answer = control.request(node, Request::Sync(message), REQUEST_TIMEOUT).await;
                Done::Synced { node, delivered: matches!(answer, Ok(Response::Done)) }
            });
        }
        while let Some(event) = self.syncer.poll_event() {
            match event {
                SyncEvent::Refused { from, refusals } => {
                    tracing::warn!(vdc = %self.alias, peer = %from.short(), ?refusals, "a peer sent what it should not have");
                }
                // Acted on where the message was handled.
                SyncEvent::Applied { .. } | SyncEvent::Confirmed { .. } => {}
            }
        }
        jobs.extend(self.spawned.drain(..));
    }

    fn handle_control(&mut self, event: ControlEvent) {
        let now = Instant::now();
        match event {
            ControlEvent::LinkUp { node, address, transport, hello } => {
                let peer_clock = PeerClock::new(hello.time);
                let facts = LinkFacts { address, transport, since: now, version: hello.version, peer_clock };
                self.links.insert(node, facts);
                self.alone_since = None;
                self.data.boot_nonce(node, hello.boot_nonce);
                if let Some(ip) = hello.observed
                    && !self.local_addresses.contains(&ip)
                    && self.observed.len() < 8
                {
                    self.observed.insert(ip, node);
                }
                self.seen.saw(node, address);
                self.caches_dirty = true;
                self.syncer.handle_link_up(node, now);
                self.note_link(node, "control link up");
            }
            ControlEvent::Greeted { node, time } => {
                if let Some(link) = self.links.get_mut(&node) {
                    link.peer_clock = PeerClock::new(time);
                }
            }
            ControlEvent::LinkDown { node, reason } => {
                self.links.remove(&node);
                if self.links.is_empty() {
                    self.alone_since.get_or_insert(now);
                }
                self.observed.retain(|_, by| *by != node);
                self.syncer.handle_link_down(&node, now);
                if !matches!(reason, LinkDownReason::Replaced) {
                    self.note_link(node, "control link down");
                }
            }
            ControlEvent::Request { from, request, reply } => {
                let response = self.answer(from, request, now);
                let _ = reply.send(response); // the asker may have gone
            }
            ControlEvent::Door { from, remote, request, reply } => self.handle_door(from, remote, *request, reply),
            ControlEvent::Seen { node, address } => {
                self.seen.saw(node, address);
                self.caches_dirty = true;
            }
            ControlEvent::Restarted { swarm, why } => {
                let text = format!("the {swarm:?} swarm failed and is being restarted: {why}").to_lowercase();
                self.event(Severity::Error, "swarm-restarted", None, text);
            }
        }
    }

    fn note_link(&self, node: Key, what: &str) {
        let name = self.view.members.get(&node).map_or_else(|| node.short(), |m| m.full_name());
        tracing::debug!(vdc = %self.alias, peer = name, "{what}");
    }

    fn answer(&mut self, from: Key, request: Request, now: Instant) -> Response {
        match request {
            // The control room greets by itself; a second greeting is harmless.
            Request::Hello(_) => Response::Refused("links greet once".into()),
            Request::Sync(message) => {
                let version = self.roster.version();
                self.syncer.handle_message(from, message, &mut self.roster, now);
                if self.roster.version() != version {
                    self.settle_received();
                    self.open_door();
                }
                Response::Done
            }
            Request::Revoked(tombstone) => self.handle_revoked(&from, &tombstone),
            Request::Endpoints(theirs) => {
                self.data.boot_nonce(from, theirs.boot_nonce);
                self.data.set_candidates(from, &theirs.candidates);
                Response::Endpoints(self.endpoints())
            }
        }
    }

    fn handle_data(&mut self, event: DataEvent) {
        match event {
            DataEvent::EndpointsWanted(node) => {
                let (control, ours) = (self.control.clone(), self.endpoints());
                self.spawn(async move {
                    let mut answer = control.request(node, Request::Endpoints(ours.clone()), REQUEST_TIMEOUT).await;
                    // The link was found dead over it: the next one is dialled for this.
                    if matches!(&answer, Err(error) if error.is_link_lost()) {
                        answer = control.request(node, Request::Endpoints(ours), REQUEST_TIMEOUT).await;
                    }
                    let result = match answer {
                        Ok(Response::Endpoints(theirs)) => Ok(theirs),
                        Ok(Response::Refused(why)) => Err(why),
                        Ok(Response::Hello(_) | Response::Done) => Err("it answered another question".into()),
                        Err(error) => Err(chain(&error)),
                    };
                    Done::Endpoints { node, result }
                });
            }
            DataEvent::PathChanged => self.caches_dirty = true,
            DataEvent::AddressesChanged(addresses) => {
                if addresses == self.local_addresses {
                    return;
                }
                tracing::info!(vdc = %self.alias, count = addresses.len(), "this host's addresses changed");
                self.local_addresses = addresses;
                self.observed.clear();
                self.greet_again();
                self.publish_contact();
            }
        }
    }

    fn greet_again(&mut self) {
        let control = self.control.clone();
        self.spawn(async move {
            control.greet_again().await;
            Done::Nothing
        });
    }

    fn handle_done(&mut self, done: Done) {
        match done {
            Done::Nothing | Done::Synced { delivered: true, .. } => {}
            Done::Synced { node, delivered: false } => self.syncer.handle_lost(&node, Instant::now()),
            Done::Endpoints { node, result: Ok(theirs) } => {
                self.data.boot_nonce(node, theirs.boot_nonce);
                self.data.set_candidates(node, &theirs.candidates);
            }
            Done::Endpoints { node, result: Err(why) } => {
                tracing::debug!(vdc = %self.alias, peer = %node.short(), why, "a peer's endpoints are not to be had");
                self.data.endpoints_failed(node, why);
            }
            Done::Firewall(result) => self.handle_firewall(result),
            Done::Door(result) => self.handle_door_state(result),
            Done::Renewed(result) => self.handle_renewed(result),
        }
    }
}

/// The set of keys that the infra plane accepts, empty until the core runs.
pub(crate) fn no_members() -> MemberKeys {
    Arc::new(RwLock::new(Arc::default()))
}
