//! Asking a group, from any node: the leader is found, requests are repeated and done once, watches go on where they were.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use openraft::{AsyncRuntime, Instant as _};
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use vdc::{Hash, Key};
use vdc_coord::limits::WINDOW;
use vdc_coord::{Answer, ClientId, Command, Done, Event, LeaseId, Page, Refusal, Request, Revision, Row, Transaction};

use crate::env::{Env, TransportError};
use crate::node::{Node, Unanswered};
use vdc_coord::wire::{Ask, Reply, Standing, Trouble};

/// How long one try may take; a first one less: a leader that is cut off must not hold everybody up, and a repeated request
/// does no harm.
const TRY_LIMIT: Duration = Duration::from_secs(4);
const FIRST_TRY_LIMIT: Duration = Duration::from_secs(1);
/// Shortest and longest pause between tries. A new leader is found within the longest.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(150);
/// For how long a node that cannot be reached is not asked again, at least.
const SILENT_MIN: Duration = Duration::from_millis(50);
/// How long a watch asks at a time.
const WATCH_MS: u64 = 10_000;

/// Why a question failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The group refused it; nothing was done.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This node may not; nothing was done.
    #[error("this node may not do it: {why}")]
    Forbidden { why: String },
    /// Nobody did it in time; nothing was done.
    #[error("the group did not answer in time: {last}")]
    Unavailable { last: String },
    /// It may have been done, or may still be.
    #[error("whether it was done is not known: {last}")]
    Unknown { last: String },
}

struct Session {
    id: ClientId,
    next: u64,
}

struct Inner<E: Env> {
    node: Node<E>,
    group: Hash,
    /// Nodes that may serve the group, the nearest first.
    members: Mutex<Arc<[Key]>>,
    leader: Mutex<Option<Key>>,
    /// A node that did not answer, and until when others are asked before it: members name a leader that is gone until they
    /// have another, and each question to it would wait as long as it may.
    silent: Mutex<Option<(Key, Instant<E>)>>,
    session: AsyncMutex<Option<Session>>,
    /// One place for each request under way, by its number: see [`Client::numbered`].
    window: Vec<Arc<AsyncMutex<()>>>,
}

/// Asks one group. Cheap to clone; clones share a session.
pub struct Client<E: Env>(Arc<Inner<E>>);

impl<E: Env> Clone for Client<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Env> Debug for Client<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.0.group.short())
    }
}

type Instant<E> = <<E as Env>::Runtime as AsyncRuntime>::Instant;

/// Whom to ask next, and how long to wait before.
struct Tries<E: Env> {
    deadline: Instant<E>,
    pause: Duration,
    next: usize,
    last: String,
    /// Whether some try may have reached a leader.
    maybe_done: bool,
    /// Why this node may not ask for it.
    forbidden: Option<String>,
    /// How long the next try may take.
    limit: Duration,
}

impl<E: Env> Client<E> {
    #[must_use]
    pub fn new(node: Node<E>, group: Hash, members: &[Key]) -> Self {
        Self(Arc::new(Inner {
            node,
            group,
            members: Mutex::new(members.into()),
            leader: Mutex::new(None),
            silent: Mutex::new(None),
            session: AsyncMutex::new(None),
            window: (1..WINDOW).map(|_| Arc::default()).collect(),
        }))
    }

    /// Tells which nodes may serve the group now, the nearest first.
    pub fn set_members(&self, members: &[Key]) {
        *self.0.members.lock() = members.into();
    }

    fn tries(&self, limit: Duration) -> Tries<E> {
        let deadline = Instant::<E>::now() + limit;
        Tries {
            deadline,
            pause: PAUSE_MIN,
            next: 0,
            last: "there is no member".into(),
            maybe_done: false,
            forbidden: None,
            limit: FIRST_TRY_LIMIT,
        }
    }

    /// The one to be asked: the leader where it is known, else the members by turns, but for one that is silent.
    fn target(&self, tries: &mut Tries<E>) -> Option<Key> {
        if let Some(leader) = *self.0.leader.lock() {
            return Some(leader);
        }
        let members = Arc::clone(&self.0.members.lock());
        let mut turn = || {
            let target = members.get(tries.next % members.len().max(1)).copied();
            tries.next += 1;
            target
        };
        turn().and_then(|target| if self.is_silent(target) { turn() } else { Some(target) })
    }

    fn is_silent(&self, node: Key) -> bool {
        self.0.silent.lock().is_some_and(|(silent, until)| silent == node && Instant::<E>::now() < until)
    }

    /// A node did not answer since `asked`: for as long again, the others are asked before it.
    fn note_silent(&self, node: Key, asked: Instant<E>) {
        let now = Instant::<E>::now();
        *self.0.silent.lock() = Some((node, now + (now - asked).max(SILENT_MIN)));
        let mut leader = self.0.leader.lock();
        // Another may have been found meanwhile.
        *leader = leader.filter(|leader| *leader != node);
    }

    /// One try. None: try again.
    async fn attempt(&self, tries: &mut Tries<E>, ask: Ask) -> Option<Reply> {
        let Some(target) = self.target(tries) else {
            self.rest(tries).await;
            return None;
        };
        let began = Instant::<E>::now();
        let left = tries.deadline - began;
        let limit = tries.limit.min(left.max(Duration::from_millis(1)));
        tries.limit = (tries.limit * 2).min(TRY_LIMIT);
        let asked = E::Runtime::timeout(limit, self.0.node.ask(target, self.0.group, ask, limit)).await;
        let trouble = match asked {
            Ok(Ok(reply)) => {
                *self.0.leader.lock() = Some(target);
                return Some(reply);
            }
            Ok(Err(Unanswered::Trouble(trouble))) => trouble,
            Ok(Err(Unanswered::Transport(error))) => {
                tries.last = error.to_string();
                tries.maybe_done |= matches!(error, TransportError::Broken { .. });
                self.note_silent(target, began);
                self.rest(tries).await;
                return None;
            }
            Err(_) => {
                tries.last = format!("no answer within {} ms", limit.as_millis());
                tries.maybe_done = true;
                self.note_silent(target, began);
                return None;
            }
        };
        tries.last = trouble.to_string();
        if let Trouble::Forbidden { why } = trouble {
            tries.forbidden = Some(why);
            return None;
        }
        let known = match &trouble {
            Trouble::NotLeader { leader } => leader.filter(|leader| *leader != target && !self.is_silent(*leader)),
            Trouble::Busy => Some(target),
            _ => None,
        };
        tries.maybe_done |= matches!(trouble, Trouble::Unknown { .. });
        {
            let mut leader = self.0.leader.lock();
            if known.is_some() || *leader == Some(target) {
                *leader = known;
            }
        }
        // A leader that was named is asked at once, at first.
        if known.is_none() || matches!(trouble, Trouble::Busy) || tries.pause > PAUSE_MIN * 4 {
            self.rest(tries).await;
        } else {
            tries.pause *= 2;
        }
        None
    }

    async fn rest(&self, tries: &mut Tries<E>) {
        E::Runtime::sleep(tries.pause).await;
        tries.pause = (tries.pause * 2).min(PAUSE_MAX);
    }

    fn over(tries: &Tries<E>) -> Result<(), ClientError> {
        if let Some(why) = &tries.forbidden {
            return Err(ClientError::Forbidden { why: why.clone() });
        }
        if Instant::<E>::now() < tries.deadline {
            return Ok(());
        }
        let last = tries.last.clone();
        Err(if tries.maybe_done { ClientError::Unknown { last } } else { ClientError::Unavailable { last } })
    }

    /// Has a command done once, within `limit`.
    ///
    /// # Errors
    /// [`ClientError`]; only [`ClientError::Unknown`] leaves open whether it was done.
    pub async fn command(&self, command: Command, limit: Duration) -> Result<Answer, ClientError> {
        let mut tries = self.tries(limit);
        loop {
            let (id, number, place) = self.numbered(&mut tries).await?;
            let ask = Ask::Requests(vec![Request { client: id, number, command: command.clone() }]);
            loop {
                match self.attempt(&mut tries, ask.clone()).await {
                    Some(Reply::Answers(mut answers)) => match answers.pop() {
                        Some(Ok(answer)) => return Ok(answer),
                        Some(Err(refusal @ (Refusal::UnknownClient | Refusal::Forgotten { .. }))) => {
                            // The one that waits for this place holds the session.
                            drop(place);
                            self.forget(id).await;
                            if tries.maybe_done {
                                return Err(ClientError::Unknown { last: refusal.to_string() });
                            }
                            break; // it was never done: ask again as a new client
                        }
                        Some(Err(refusal)) => return Err(refusal.into()),
                        None => tries.last = "the answer is empty".into(),
                    },
                    Some(Reply::Refused(refusal)) => return Err(refusal.into()),
                    Some(_) => tries.last = "another question was answered".into(),
                    None => {}
                }
                Self::over(&tries)?;
            }
            Self::over(&tries)?;
        }
    }

    /// The session's id and its next number; opens a session first where there is none. The group keeps the answers to the last
    /// numbers only, so a number is given when the one is done with that it would push out: one that is slow is not forgotten
    /// because others overtake it.
    async fn numbered(&self, tries: &mut Tries<E>) -> Result<(ClientId, u64, OwnedMutexGuard<()>), ClientError> {
        let mut session = self.0.session.lock().await;
        if session.is_none() {
            let id = ClientId(self.0.node.env().random());
            let ask = Ask::Requests(vec![Request { client: id, number: 0, command: Command::Open }]);
            let maybe_before = tries.maybe_done;
            loop {
                if let Some(Reply::Answers(answers)) = self.attempt(tries, ask.clone()).await
                    && matches!(answers.first(), Some(Ok(Answer::Opened)))
                {
                    break;
                }
                tries.maybe_done = maybe_before; // opening is not what was asked for
                Self::over(tries)?;
            }
            tries.maybe_done = maybe_before;
            *session = Some(Session { id, next: 1 });
        }
        let session = session.as_mut().expect("opened above");
        let number = session.next;
        let places = self.0.window.len() as u64;
        let place = usize::try_from(number % places).unwrap_or(0);
        let place = Arc::clone(&self.0.window[place]).lock_owned().await;
        session.next += 1;
        Ok((session.id, number, place))
    }

    async fn forget(&self, id: ClientId) {
        let mut session = self.0.session.lock().await;
        if session.as_ref().is_some_and(|session| session.id == id) {
            *session = None;
        }
    }

    /// Does a transaction once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn transact(&self, transaction: Transaction, limit: Duration) -> Result<Done, ClientError> {
        match self.command(Command::Transact(transaction), limit).await? {
            Answer::Done(done) => Ok(done),
            other => Err(ClientError::Unknown { last: format!("answered {other:?}") }),
        }
    }

    /// How long the holder of a lease may count on it, from before it asked: a tenth and half a second less than the group
    /// does, for clocks that differ and for one that leaps.
    #[must_use]
    pub fn counted(ttl: Duration) -> Duration {
        (ttl * 9 / 10).saturating_sub(Duration::from_millis(500))
    }

    /// Takes a lease. It holds for [`Self::counted`] from when the call began, unless it is kept alive.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn grant(&self, ttl: Duration, limit: Duration) -> Result<LeaseId, ClientError> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        match self.command(Command::GrantLease { ttl_ms }, limit).await? {
            Answer::Lease { lease, .. } => Ok(lease),
            other => Err(ClientError::Unknown { last: format!("answered {other:?}") }),
        }
    }

    async fn read(&self, ask: Ask, limit: Duration) -> Result<Reply, ClientError> {
        let mut tries = self.tries(limit);
        loop {
            match self.attempt(&mut tries, ask.clone()).await {
                Some(Reply::Refused(refusal)) => return Err(refusal.into()),
                Some(reply) => return Ok(reply),
                None => {}
            }
            tries.maybe_done = false; // reading does nothing
            Self::over(&tries)?;
        }
    }

    fn other() -> ClientError {
        ClientError::Unavailable { last: "another question was answered".into() }
    }

    /// The row of a key, with everything in it that was acknowledged before the call.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, key: &[u8], limit: Duration) -> Result<(Option<Row>, Revision), ClientError> {
        match self.read(Ask::Get { key: key.to_vec().into(), stale: false }, limit).await? {
            Reply::Row { row, revision } => Ok((row, revision)),
            _ => Err(Self::other()),
        }
    }

    /// The row of a key as some member has it, which may be behind: for those who can do with what was.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_stale(&self, key: &[u8], limit: Duration) -> Result<(Option<Row>, Revision), ClientError> {
        let members = Arc::clone(&self.0.members.lock());
        let mut tries = self.tries(limit);
        loop {
            let Some(target) = members.get(tries.next % members.len().max(1)).copied() else {
                return Err(ClientError::Unavailable { last: tries.last });
            };
            tries.next += 1;
            let ask = Ask::Get { key: key.to_vec().into(), stale: true };
            let asked = E::Runtime::timeout(TRY_LIMIT, self.0.node.ask(target, self.0.group, ask, TRY_LIMIT)).await;
            match asked {
                Ok(Ok(Reply::Row { row, revision })) => return Ok((row, revision)),
                Ok(Ok(Reply::Refused(refusal))) => return Err(refusal.into()),
                _ => self.rest(&mut tries).await,
            }
            Self::over(&tries)?;
        }
    }

    /// Whether a node answers at all, serving the group or not.
    pub async fn is_up(&self, node: Key, limit: Duration) -> bool {
        let asked = E::Runtime::timeout(limit, self.0.node.ask(node, self.0.group, Ask::Status, limit)).await;
        matches!(asked, Ok(Ok(_) | Err(Unanswered::Trouble(_))))
    }

    /// How one node stands to the group.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] if it does not answer, or does not serve the group.
    pub async fn standing(&self, of: Key, limit: Duration) -> Result<Standing, ClientError> {
        let asked = E::Runtime::timeout(limit, self.0.node.ask(of, self.0.group, Ask::Status, limit)).await;
        match asked {
            Ok(Ok(Reply::Status(standing))) => Ok(standing),
            Ok(Err(Unanswered::Trouble(trouble))) => Err(ClientError::Unavailable { last: trouble.to_string() }),
            Ok(Err(Unanswered::Transport(error))) => Err(ClientError::Unavailable { last: error.to_string() }),
            Ok(Ok(_)) => Err(Self::other()),
            Err(_) => Err(ClientError::Unavailable { last: format!("no answer within {} ms", limit.as_millis()) }),
        }
    }

    /// A page of the rows from `from` up to before `to`, as they are or were after revision `at`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn range(
        &self,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        at: Option<Revision>,
        limit: Duration,
    ) -> Result<Page, ClientError> {
        let (from, to) = (from.to_vec().into(), to.to_vec().into());
        let rows_max = rows_max as u64;
        match self.read(Ask::Range { from, to, rows_max, at, stale: false }, limit).await? {
            Reply::Page(page) => Ok(page),
            _ => Err(Self::other()),
        }
    }

    /// Watches the keys from `first` up to before `end`, from a revision on.
    #[must_use]
    pub fn watch(&self, first: &[u8], end: &[u8], from: Revision) -> Watch<E> {
        Watch { client: self.clone(), first: first.to_vec(), end: end.to_vec(), next: from, turn: 0 }
    }
}

/// Changes as they come, in order, each once; over changes of the leader and restarts.
#[derive(Debug)]
pub struct Watch<E: Env> {
    client: Client<E>,
    first: Vec<u8>,
    end: Vec<u8>,
    next: Revision,
    turn: usize,
}

impl<E: Env> Watch<E> {
    /// The next changes; waits for them as long as it takes. Any member serves: what is not there yet comes later.
    ///
    /// # Errors
    /// [`Refusal::Compacted`] if the changes from here on are no longer kept: read the keys again, and watch from there.
    pub async fn next(&mut self) -> Result<Vec<Event>, Refusal> {
        let mut pause = PAUSE_MIN;
        loop {
            let members = Arc::clone(&self.client.0.members.lock());
            let ask = Ask::Events {
                from: self.next,
                wait_ms: WATCH_MS,
                first: self.first.clone().into(),
                end: self.end.clone().into(),
            };
            let limit = Duration::from_millis(WATCH_MS) + TRY_LIMIT;
            let target = members.get(self.turn % members.len().max(1)).copied();
            let asked = match target {
                Some(target) => {
                    let asking = self.client.0.node.ask(target, self.client.0.group, ask, limit);
                    E::Runtime::timeout(limit, asking).await.ok().and_then(Result::ok)
                }
                None => None,
            };
            match asked {
                Some(Reply::Events { events, next }) => {
                    // A member that is behind has nothing yet, and nothing that came before is told again.
                    self.next = self.next.max(next);
                    pause = PAUSE_MIN;
                    if !events.is_empty() {
                        return Ok(events);
                    }
                    // It may be cut off from the others, or be a member no more: the next is asked whether it knows of any.
                    self.turn += 1;
                }
                Some(Reply::Refused(refusal @ Refusal::Compacted { .. })) => return Err(refusal),
                _ => {
                    self.turn += 1;
                    E::Runtime::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }
}
