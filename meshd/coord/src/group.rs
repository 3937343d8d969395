//! One group on one node: openraft, its log and its rows, and what is asked of it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::impls::{EmptyNode, OneshotResponder};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, ReadPolicy, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, Config, Instant as _, Raft, RaftMetrics, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use vdc::{Hash, Key};
use vdc_coord::limits::{ENTRY_BYTES_MAX, REQUEST_BYTES_MAX};
use vdc_coord::{Answer, Entry, Refusal, Request, Revision};

use crate::clock::GroupClock;
use crate::copy::Copy;
use crate::door::Door;
use crate::env::{Disk as _, Env};
use crate::incoming::Incoming;
use crate::log::LogStore;
use crate::network::Network;
use crate::state::{CHANGES_BYTES, StateStore};
use crate::succession::{log_file, state_file};
use crate::types::{EntryExt as _, Packed, PlaceExt as _, Types, VoteExt as _};
use vdc_coord::wire::{Appended, Ask, Ballot, Place, Reply, SnapshotForm, Standing, Trouble, VoteForm};

/// Bytes of requests that wait for the leader to propose them; more are refused as busy.
const WAITING_BYTES: usize = 8 << 20;
/// Requests, and reads, that wait.
const WAITING_MAX: usize = 16_384;
/// Requests of one entry.
const ENTRY_REQUESTS: usize = 1_024;
/// Entries that are under way at a time: while they are, what comes gathers for the next.
const ENTRIES_UNDER_WAY: usize = 3;
/// How often a leader looks whether a lease has ended.
pub(crate) const LEASE_STEP: Duration = Duration::from_millis(250);
/// How often a node looks whether its changes should be written.
const CHECKPOINT_STEP: Duration = Duration::from_millis(500);
/// Longest that a watch waits before it says that there was nothing.
const WATCH_MS_MAX: u64 = 30_000;
/// Changes in one answer to a watch.
const EVENTS_MAX: usize = 1_000;

/// Beats and patience of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Default for Timing {
    /// For members within 60 ms: a leader that is gone is replaced within two seconds. A follower waits for its leader's lease,
    /// which is `election_max`, and then for a time between both: from 1.2 to 1.4 s since it heard from it. A beat also sets how
    /// often a group looks at its clock (five times as often), which is most of what one costs that nobody asks.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(400),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(700),
        }
    }
}

/// What a group is to this node.
#[derive(Clone, Debug)]
pub struct GroupSettings {
    /// Its founding record.
    pub id: Hash,
    /// This node.
    pub node: Key,
    /// What its files begin with.
    pub files: String,
    pub timing: Timing,
    /// Whether this node makes the group, if it is not there yet.
    pub found: bool,
    /// Entries after which the rows are written down and the log is purged; half as many stay in it, for members that are a
    /// little late.
    pub entries_per_checkpoint: u64,
}

impl GroupSettings {
    /// Usual number of [`Self::entries_per_checkpoint`].
    pub const ENTRIES_PER_CHECKPOINT: u64 = 2_000;
}

/// A node that follows a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// The last entry that it is known to have.
    pub matched_index: u64,
    /// How long ago it answered; none if it never did.
    pub heard: Option<Duration>,
}

/// Why a group cannot be served here.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("the files of the group cannot be used")]
    Files(#[source] io::Error),
    #[error("the group does not run: {0}")]
    Raft(String),
}

pub(crate) type RaftOf<E> = Raft<Types<<E as Env>::Runtime>, StateStore<E>>;
/// Who waits to hear that this node leads, and how far the store must be.
type Confirmation = oneshot::Sender<Result<Option<Place>, Trouble>>;
type Clock<E> = Arc<Mutex<GroupClock<E>>>;
type Outcome = Result<Result<Answer, Refusal>, Trouble>;

struct Proposal {
    request: Request,
    bytes: usize,
    reply: oneshot::Sender<Outcome>,
    _room: OwnedSemaphorePermit,
}

struct Inner<E: Env> {
    env: E,
    settings: GroupSettings,
    raft: RaftOf<E>,
    state: StateStore<E>,
    proposals: mpsc::Sender<Proposal>,
    room: Arc<Semaphore>,
    reads: mpsc::Sender<Confirmation>,
    incoming: tokio::sync::Mutex<Option<Incoming>>,
    clock: Clock<E>,
    door: Door<E::Runtime>,
    /// Where the log ends.
    last: Box<dyn Fn() -> Option<Place> + Send + Sync>,
}

/// One group on this node. Cheap to clone.
pub struct Group<E: Env>(Arc<Inner<E>>);

impl<E: Env> Clone for Group<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Env> Debug for Group<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({})", self.0.settings.id.short())
    }
}

pub(crate) fn unavailable(why: impl ToString) -> Trouble {
    Trouble::Unavailable { why: why.to_string() }
}

fn full<T>(error: &mpsc::error::TrySendError<T>) -> Trouble {
    match error {
        mpsc::error::TrySendError::Full(_) => Trouble::Busy,
        mpsc::error::TrySendError::Closed(_) => unavailable("the group was closed"),
    }
}

/// Who leads, as far as this node knows. One that led until it was taken out of the group still counts as leader of its term with
/// openraft, and hears of no other.
pub(crate) fn leader<R: AsyncRuntime>(metrics: &RaftMetrics<Types<R>>) -> Option<Key> {
    metrics.current_leader.filter(|leader| *leader != metrics.id || metrics.state.is_leader())
}

fn config(settings: &GroupSettings) -> Config {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: settings.id.short(),
        heartbeat_interval: millis(settings.timing.heartbeat),
        election_timeout_min: millis(settings.timing.election_min),
        election_timeout_max: millis(settings.timing.election_max),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(settings.entries_per_checkpoint),
        max_in_snapshot_log_to_keep: settings.entries_per_checkpoint / 2,
        replication_lag_threshold: settings.entries_per_checkpoint,
        max_payload_entries: 256,
        enable_pre_vote: Some(true),
        // A leader that starts again has lost what was applied since its last checkpoint, and does not know how far it was
        // committed: it asks for votes, and knows again.
        enable_leader_restore: Some(false),
        // One that no majority answers stops leading, also where its own beats still arrive.
        quorum_loss_probe_interval: Some(2 * millis(settings.timing.election_max)),
        api_channel_size: Some(4_096),
        notification_channel_size: Some(4_096),
        ..Config::default()
    }
}

impl<E: Env> Group<E> {
    /// Opens the group's files and takes part.
    ///
    /// # Errors
    /// [`GroupError`] if the files cannot be used.
    pub async fn open(env: E, settings: GroupSettings) -> Result<Self, GroupError> {
        let stale = format!("{}.incoming", settings.files);
        let disk = env.disk().clone();
        env.disk().run(move || disk.remove(&stale)).await.map_err(GroupError::Files)?;
        let log = LogStore::open(env.clone(), log_file(&settings.files)).await.map_err(GroupError::Files)?;
        let last = log.last();
        let state = StateStore::open(env.clone(), state_file(&settings.files)).await.map_err(GroupError::Files)?;
        let config = config(&settings).validate().map_err(|error| GroupError::Raft(error.to_string()))?;
        let network = Network { env: env.clone(), group: settings.id };
        let raft = Raft::new(settings.node, Arc::new(config), network, log, state.clone());
        let raft = raft.await.map_err(|error| GroupError::Raft(error.to_string()))?;
        let fatal = |error: &dyn ToString| GroupError::Raft(error.to_string());
        if settings.found && !raft.is_initialized().await.map_err(|error| fatal(&error))? {
            let members = BTreeMap::from([(settings.node, EmptyNode {})]);
            raft.initialize(members).await.map_err(|error| fatal(&error))?;
        }
        let clock = Clock::<E>::default();
        let (proposals, proposed) = mpsc::channel(WAITING_MAX);
        let (reads, asked) = mpsc::channel(WAITING_MAX);
        let door = Door::new(settings.timing.election_max);
        let group = Self(Arc::new(Inner {
            env,
            settings,
            raft: raft.clone(),
            state: state.clone(),
            proposals,
            room: Arc::new(Semaphore::new(WAITING_BYTES)),
            reads,
            incoming: tokio::sync::Mutex::new(None),
            last,
            clock: Arc::clone(&clock),
            door,
        }));
        drop(E::Runtime::spawn(propose::<E>(raft.clone(), state.clone(), clock, proposed)));
        drop(E::Runtime::spawn(confirm::<E>(raft.clone(), asked)));
        drop(E::Runtime::spawn(write_down::<E>(raft, state)));
        drop(E::Runtime::spawn(end_leases::<E>(Arc::downgrade(&group.0))));
        Ok(group)
    }

    /// Stops taking part. What was acknowledged is on disk.
    pub async fn close(&self) {
        let _panicked = self.0.raft.shutdown().await;
    }

    #[must_use]
    pub fn id(&self) -> Hash {
        self.0.settings.id
    }

    /// Whether it runs; why not, if it stopped by itself.
    ///
    /// # Errors
    /// What stopped it.
    pub fn running(&self) -> Result<(), String> {
        self.metrics().running_state.map_err(|error| error.to_string())
    }

    pub(crate) fn metrics(&self) -> RaftMetrics<Types<E::Runtime>> {
        self.0.raft.metrics().borrow_watched().clone()
    }

    /// Where this node stands.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn standing(&self) -> io::Result<Standing> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let last = (self.0.last)();
        Ok(Standing {
            leader: leader(&metrics),
            term: metrics.current_term,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            last_index: last.map_or(0, |place| place.index),
            last_term: last.map_or(0, |place| place.term),
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            summary: self.0.state.summary()?,
        })
    }

    /// Who follows this node, as far as it leads.
    #[must_use]
    pub fn followers(&self) -> Option<BTreeMap<Key, Follower>> {
        let metrics = self.metrics();
        if !metrics.state.is_leader() {
            return None;
        }
        let (replication, heard) = (metrics.replication?, metrics.heartbeat.unwrap_or_default());
        let followers = replication.into_iter().map(|(key, matched)| {
            let heard = heard.get(&key).copied().flatten().map(|at| at.elapsed());
            (key, Follower { matched_index: matched.map_or(0, |place| place.index), heard })
        });
        Some(followers.collect())
    }

    /// Whether a change of members is under way.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        let membership = self.metrics().membership_config;
        let settled = self.metrics().last_applied >= *membership.log_id();
        membership.membership().get_joint_config().len() > 1 || !settled
    }

    /// Beats and patience.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.0.settings.timing
    }

    /// Has a node follow the group, without a vote.
    ///
    /// # Errors
    /// [`Trouble`] if this node does not lead, or another change is under way.
    pub async fn add_learner(&self, node: Key) -> Result<(), Trouble> {
        self.0.raft.add_learner(node, EmptyNode {}, false).await.map(drop).map_err(changing::<E>)
    }

    /// Has these nodes vote; who voted before and does not any more goes on as a learner.
    ///
    /// # Errors
    /// [`Trouble`] if this node does not lead, or another change is under way, or one of them does not follow yet.
    pub async fn set_voters(&self, voters: &[Key]) -> Result<(), Trouble> {
        let voters: std::collections::BTreeSet<Key> = voters.iter().copied().collect();
        self.0.raft.change_membership(voters, true).await.map(drop).map_err(changing::<E>)
    }

    /// Has a learner follow no more.
    ///
    /// # Errors
    /// [`Trouble`] if this node does not lead, or another change is under way.
    pub async fn remove_learner(&self, node: Key) -> Result<(), Trouble> {
        let change = openraft::ChangeMembers::RemoveNodes(std::collections::BTreeSet::from([node]));
        self.0.raft.change_membership(change, false).await.map(drop).map_err(changing::<E>)
    }

    /// Waits until a revision is here.
    ///
    /// # Errors
    /// If the group is closed meanwhile.
    pub async fn wait_revision(&self, revision: Revision) -> io::Result<()> {
        let mut revisions = self.0.state.revisions();
        let waited = revisions.wait_for(|here| *here >= revision).await;
        waited.map(drop).map_err(io::Error::other)
    }

    /// All that is here, as it is now, for as long as the copy is kept.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn copy(&self) -> io::Result<Copy> {
        self.0.state.checkpoint().await.map(Copy)
    }

    /// Proposes a request and waits for what it did.
    ///
    /// # Errors
    /// [`Trouble`]; only after [`Trouble::Unknown`] may it have been done or still be.
    pub async fn request(&self, request: Request) -> Outcome {
        let bytes = vdc::codec::encode(&request).len();
        if bytes > REQUEST_BYTES_MAX {
            let (bytes, bytes_max) = (bytes as u64, REQUEST_BYTES_MAX as u64);
            return Ok(Err(Refusal::TransactionTooLong { bytes, bytes_max }));
        }
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.0.room).try_acquire_many_owned(permits) else { return Err(Trouble::Busy) };
        let (reply, outcome) = oneshot::channel();
        let proposal = Proposal { request, bytes, reply, _room: room };
        self.0.proposals.try_send(proposal).map_err(|error| full(&error))?;
        outcome.await.unwrap_or_else(|_| Err(Trouble::Unknown { why: "the group was closed".into() }))
    }

    /// Waits until everything that was acknowledged before the call can be read here.
    ///
    /// # Errors
    /// [`Trouble`] if this node does not lead, or no majority confirms that it does.
    pub async fn linearize(&self) -> Result<(), Trouble> {
        if let Some(place) = self.read_index().await? {
            self.0.state.wait_applied(place.index).await.map_err(unavailable)?;
        }
        Ok(())
    }

    async fn read_index(&self) -> Result<Option<Place>, Trouble> {
        let (reply, confirmed) = oneshot::channel();
        self.0.reads.try_send(reply).map_err(|error| full(&error))?;
        confirmed.await.map_err(|_| unavailable("the group was closed"))?
    }

    /// Answers a member or a client.
    pub(crate) async fn answer(&self, from: Key, ask: Ask) -> Reply {
        let judged = self.0.door.judge(from, &ask, &self.0.raft.metrics().borrow_watched());
        if let Err(trouble) = judged {
            return Reply::Trouble(trouble);
        }
        let answered = match ask {
            Ask::Append { vote, before, entries, committed } => {
                let decoded: Result<Vec<_>, _> = entries.iter().map(|entry| entry.entry::<E::Runtime>()).collect();
                let entries = match decoded {
                    Ok(entries) => entries,
                    Err(error) => return Reply::Trouble(Trouble::Malformed { why: error.to_string() }),
                };
                self.append(vote, before, entries, committed).await
            }
            Ask::Vote(ballot) => self.vote(ballot, false).await,
            Ask::PreVote(ballot) => self.vote(ballot, true).await,
            Ask::Transfer { from, to, last } => {
                let request = TransferLeaderRequest::new(from.vote(), to, last.map(Place::id));
                match self.0.raft.handle_transfer_leader(request).await {
                    Ok(_) => Ok(Reply::Done),
                    Err(error) => Err(unavailable(error)),
                }
            }
            Ask::SnapshotBegin { form, .. } => {
                let mut incoming = self.0.incoming.lock().await;
                Incoming::begin(&mut incoming, &self.0.env, &self.0.settings.files, from, form).await
            }
            Ask::SnapshotRows { form, behind, rows } => {
                let mut incoming = self.0.incoming.lock().await;
                Incoming::rows(&mut incoming, &self.0.env, from, &form, behind, rows).await
            }
            Ask::SnapshotEnd { vote, form, rows, hash } => self.install(from, vote, &form, rows, hash).await,
            Ask::Requests(requests) => {
                let outcomes = requests.into_iter().map(|request| self.request(request));
                let outcomes: Result<Vec<_>, Trouble> = futures::future::join_all(outcomes).await.into_iter().collect();
                outcomes.map(Reply::Answers)
            }
            Ask::ReadIndex => self.read_index().await.map(Reply::ReadIndex),
            Ask::Get { key, stale } => self.get(&key, stale).await,
            Ask::Range { from, to, rows_max, at, stale } => {
                let rows_max = usize::try_from(rows_max).unwrap_or(usize::MAX);
                self.range(&from, &to, rows_max, at, stale).await
            }
            Ask::Events { from, wait_ms, first, end } => {
                self.events(from, Duration::from_millis(wait_ms.min(WATCH_MS_MAX)), &first, &end).await
            }
            Ask::Status => self.standing().map(Reply::Status).map_err(unavailable),
        };
        answered.unwrap_or_else(Reply::Trouble)
    }

    async fn append(
        &self,
        vote: VoteForm,
        before: Option<Place>,
        entries: Vec<crate::types::Logged<E::Runtime>>,
        committed: Option<Place>,
    ) -> Result<Reply, Trouble> {
        let request = AppendEntriesRequest {
            vote: vote.vote(),
            prev_log_id: before.map(Place::id),
            entries,
            leader_commit: committed.map(Place::id),
        };
        let appended = match self.0.raft.append_entries(request).await.map_err(unavailable)? {
            AppendEntriesResponse::Success => Appended::All,
            AppendEntriesResponse::PartialSuccess(upto) => Appended::Upto(upto.as_ref().map(Place::of)),
            AppendEntriesResponse::Conflict => Appended::Conflict,
            AppendEntriesResponse::HigherVote(vote) => {
                return Ok(Reply::Append(Appended::HigherVote(VoteForm::of(&vote))));
            }
        };
        self.0.door.note_leader(vote.leader);
        Ok(Reply::Append(appended))
    }

    async fn vote(&self, ballot: Ballot, pre: bool) -> Result<Reply, Trouble> {
        let mut request = VoteRequest::new(ballot.vote.vote(), ballot.last.map(Place::id));
        request.leadership_transfer = ballot.transfer;
        let response: VoteResponse<Types<E::Runtime>> = if pre {
            self.0.raft.pre_vote(request).await.map_err(unavailable)?
        } else {
            self.0.raft.vote(request).await.map_err(unavailable)?
        };
        let last = response.last_log_id.as_ref().map(Place::of);
        Ok(Reply::Vote { vote: VoteForm::of(&response.vote), granted: response.vote_granted, last })
    }

    async fn install(
        &self,
        from: Key,
        vote: VoteForm,
        form: &SnapshotForm,
        rows: u64,
        hash: Hash,
    ) -> Result<Reply, Trouble> {
        let mut incoming = self.0.incoming.lock().await;
        let snapshot = Incoming::end::<E>(&mut incoming, &self.0.env, from, form, rows, hash).await?;
        let installed = self.0.raft.install_full_snapshot(vote.vote(), snapshot).await.map_err(unavailable)?;
        Ok(Reply::Installed(VoteForm::of(&installed.vote)))
    }

    async fn get(&self, key: &[u8], stale: bool) -> Result<Reply, Trouble> {
        if !stale {
            self.linearize().await?;
        }
        let found = self.0.state.read(|reader| reader.get(key, None)).map_err(unavailable)?;
        Ok(match found {
            Ok((row, revision)) => Reply::Row { row, revision },
            Err(refusal) => Reply::Refused(refusal),
        })
    }

    async fn range(
        &self,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        at: Option<Revision>,
        stale: bool,
    ) -> Result<Reply, Trouble> {
        // What was at a revision does not change: it need only be here.
        if !stale {
            self.linearize().await?;
        }
        let page = self.0.state.read(|reader| reader.range(from, to, rows_max, at)).map_err(unavailable)?;
        Ok(page.map_or_else(Reply::Refused, Reply::Page))
    }

    async fn events(&self, mut from: Revision, wait: Duration, first: &[u8], end: &[u8]) -> Result<Reply, Trouble> {
        let mut revisions = self.0.state.revisions();
        let deadline = <E::Runtime as AsyncRuntime>::Instant::now() + wait;
        let within = |key: &[u8]| key >= first && (end.is_empty() || key < end);
        loop {
            let now = *revisions.borrow_and_update();
            let found = self.0.state.read(|reader| reader.events(from, EVENTS_MAX)).map_err(unavailable)?;
            let (mut events, next) = match found {
                Ok(found) => found,
                Err(refusal) => return Ok(Reply::Refused(refusal)),
            };
            events.retain(|event| within(&event.key));
            if !events.is_empty() {
                return Ok(Reply::Events { events, next });
            }
            from = next;
            if next <= now {
                continue; // there are more, which may be of these keys
            }
            if E::Runtime::timeout_at(deadline, revisions.changed()).await.is_err() {
                return Ok(Reply::Events { events, next });
            }
        }
    }
}

/// Packs what is asked for into entries, and hands them to openraft.
async fn propose<E: Env>(
    raft: RaftOf<E>,
    state: StateStore<E>,
    clock: Clock<E>,
    mut proposals: mpsc::Receiver<Proposal>,
) {
    let under_way = Arc::new(Semaphore::new(ENTRIES_UNDER_WAY));
    loop {
        let Some(first) = proposals.recv().await else { return };
        // While others are under way, more may come.
        let Ok(turn) = Arc::clone(&under_way).acquire_owned().await else { return };
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < ENTRY_REQUESTS
            && bytes < ENTRY_BYTES_MAX
            && let Ok(more) = proposals.try_recv()
        {
            bytes += more.bytes;
            batch.push(more);
        }
        let stamped = clock.lock().stamp(&raft, &state);
        let stamp_ms = match stamped {
            Ok(stamp_ms) => stamp_ms,
            Err(trouble) => {
                for proposal in batch {
                    let _ = proposal.reply.send(Err(trouble.clone())); // who asked may have gone
                }
                continue;
            }
        };
        let (requests, replies): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|proposal| (proposal.request, (proposal.reply, proposal._room))).unzip();
        let packed = Packed::new(Entry { stamp_ms, requests });
        let (responder, outcome) = OneshotResponder::new_pair();
        let sent = raft.client_write_ff(packed, Some(responder)).await;
        drop(E::Runtime::spawn(async move {
            let _turn = turn;
            let outcomes = match sent {
                Err(error) => Err(unavailable(error)),
                Ok(()) => match outcome.await {
                    Ok(Ok(response)) => Ok(response.data.0),
                    Ok(Err(error)) => Err(unknown::<E>(error)),
                    Err(_) => Err(Trouble::Unknown { why: "the node stopped leading".into() }),
                },
            };
            let mut outcomes = outcomes.map(Vec::into_iter);
            for (reply, _room) in replies {
                let outcome = match &mut outcomes {
                    Ok(answers) => answers.next().ok_or_else(|| Trouble::Unknown { why: "no answer".into() }),
                    Err(trouble) => Err(trouble.clone()),
                };
                let _ = reply.send(outcome); // who asked may have gone
            }
        }));
    }
}

fn changing<E: Env>(error: RaftError<Types<E::Runtime>, ClientWriteError<Types<E::Runtime>>>) -> Trouble {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            Trouble::NotLeader { leader: forward.leader_id }
        }
        error => unavailable(error),
    }
}

/// An entry that was given to openraft may be committed by another leader, whatever openraft says.
fn unknown<E: Env>(error: ClientWriteError<Types<E::Runtime>>) -> Trouble {
    Trouble::Unknown { why: error.to_string() }
}

/// Confirms that this node leads, once for all who asked before.
async fn confirm<E: Env>(raft: RaftOf<E>, mut asked: mpsc::Receiver<Confirmation>) {
    while let Some(first) = asked.recv().await {
        let mut waiting = vec![first];
        while let Ok(more) = asked.try_recv() {
            waiting.push(more);
        }
        let confirmed = match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(Some(Place::of(linearizer.read_log_id().log_id()))),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(Trouble::NotLeader { leader: forward.leader_id })
            }
            Err(error) => Err(unavailable(error)),
        };
        for reply in waiting {
            let _ = reply.send(confirmed.clone()); // who asked may have gone
        }
    }
}

/// Writes changes to disk before they fill the memory.
async fn write_down<E: Env>(raft: RaftOf<E>, state: StateStore<E>) {
    loop {
        E::Runtime::sleep(CHECKPOINT_STEP).await;
        if raft.metrics().borrow_watched().running_state.is_err() {
            return;
        }
        // A snapshot is a checkpoint, after which openraft purges the log.
        if state.unwritten_bytes() > CHANGES_BYTES && raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

/// Has leases end when nobody else asks for anything.
async fn end_leases<E: Env>(group: Weak<Inner<E>>) {
    loop {
        E::Runtime::sleep(LEASE_STEP).await;
        let Some(inner) = group.upgrade() else { return };
        if inner.raft.metrics().borrow_watched().running_state.is_err() {
            return;
        }
        let stamped = inner.clock.lock().stamp(&inner.raft, &inner.state);
        let Ok(now_ms) = stamped else { continue };
        let due = inner.state.read(|reader| reader.next_end_ms()).ok().flatten().is_some_and(|end| end <= now_ms);
        if due {
            let packed = Packed::new(Entry { stamp_ms: now_ms, requests: vec![] });
            let _later = inner.raft.client_write(packed).await; // the next round tries again
        }
    }
}
