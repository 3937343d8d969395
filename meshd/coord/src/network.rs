//! openraft's way to the other members: its messages as frames, snapshots in pieces.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, OptionalSend};
use vdc::{Hash, Key};
use vdc_coord::{Rows as _, Table};

use crate::env::{Class, Env, Transport as _, TransportError, guarded};
use crate::state::{Checkpoint, SnapshotData};
use crate::types::{EntryExt as _, PlaceExt as _, Types, VoteExt as _, encode};
use vdc_coord::wire::{
    Appended, Ask, Ballot, Cursor, EntryForm, Frame, Place, Reply, SnapshotRow, VoteForm, decode_reply,
};

/// Bytes of one piece of a snapshot; its last row may be longer.
const PIECE_BYTES: usize = 1 << 20;
/// How long one piece may take.
const PIECE_LIMIT: Duration = Duration::from_secs(20);
/// How often a cut line is tried again before openraft begins the transfer anew, which then goes on where it stopped.
const PIECE_TRIES: u32 = 5;

/// Makes ways to members.
#[derive(Clone, Debug)]
pub(crate) struct Network<E: Env> {
    pub(crate) env: E,
    pub(crate) group: Hash,
}

impl<E: Env> RaftNetworkFactory<Types<E::Runtime>> for Network<E> {
    type Network = Peer<E>;

    async fn new_client(&mut self, target: Key, _: &EmptyNode) -> Peer<E> {
        Peer { env: self.env.clone(), group: self.group, node: target }
    }
}

/// The way to one member.
#[derive(Debug)]
pub(crate) struct Peer<E: Env> {
    env: E,
    group: Hash,
    node: Key,
}

type Rpc<E> = RPCError<Types<<E as Env>::Runtime>>;

impl<E: Env> Peer<E> {
    async fn ask(&self, class: Class, ask: Ask, limit: Duration) -> Result<Reply, Rpc<E>> {
        let frame = encode(&Frame { group: self.group, ask });
        match self.env.transport().ask(self.node, class, frame, limit).await {
            Ok(bytes) => match decode_reply(&bytes) {
                // It is not a member yet, or its disk is broken: no use in asking again at once.
                Ok(Reply::Trouble(trouble)) => Err(Unreachable::new(&trouble).into()),
                Ok(reply) => Ok(reply),
                Err(error) => Err(Unreachable::new(&error).into()),
            },
            Err(error @ TransportError::Unreachable { .. }) => Err(Unreachable::new(&error).into()),
            Err(error @ TransportError::Broken { .. }) => Err(NetworkError::new(&error).into()),
        }
    }

    fn unexpected(&self) -> io::Error {
        io::Error::other(format!("{} answered another question", self.node.short()))
    }
}

impl<E: Env> RaftNetworkV2<Types<E::Runtime>> for Peer<E> {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types<E::Runtime>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<E::Runtime>>, Rpc<E>> {
        let class = if rpc.entries.is_empty() { Class::Control } else { Class::Bulk };
        let ask = Ask::Append {
            vote: VoteForm::of(&rpc.vote),
            before: rpc.prev_log_id.as_ref().map(Place::of),
            entries: rpc.entries.iter().map(EntryForm::of::<E::Runtime>).collect(),
            committed: rpc.leader_commit.as_ref().map(Place::of),
        };
        match self.ask(class, ask, option.hard_ttl()).await? {
            Reply::Append(Appended::All) => Ok(AppendEntriesResponse::Success),
            Reply::Append(Appended::Upto(place)) => Ok(AppendEntriesResponse::PartialSuccess(place.map(Place::id))),
            Reply::Append(Appended::Conflict) => Ok(AppendEntriesResponse::Conflict),
            Reply::Append(Appended::HigherVote(vote)) => Ok(AppendEntriesResponse::HigherVote(vote.vote())),
            _ => Err(NetworkError::new(&self.unexpected()).into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types<E::Runtime>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<E::Runtime>>, Rpc<E>> {
        self.ballot(Ask::Vote(ballot::<E>(&rpc)), option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types<E::Runtime>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<E::Runtime>>, Rpc<E>> {
        self.ballot(Ask::PreVote(ballot::<E>(&rpc)), option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types<E::Runtime>>,
        snapshot: SnapshotOf<Types<E::Runtime>, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types<E::Runtime>>, StreamingError<Types<E::Runtime>>> {
        let SnapshotData::Here(here) = snapshot.snapshot else {
            return Err(NetworkError::new(&io::Error::other("a received snapshot cannot be sent on")).into());
        };
        let checkpoint = here.0;
        let send = self.send_snapshot(VoteForm::of(&vote), &checkpoint);
        match futures::future::select(std::pin::pin!(send), std::pin::pin!(cancel)).await {
            futures::future::Either::Left((sent, _)) => sent,
            futures::future::Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types<E::Runtime>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<E::Runtime>>, Rpc<E>> {
        let ask = Ask::Transfer {
            from: VoteForm::of(req.from_leader()),
            to: *req.to_node_id(),
            last: req.last_log_id().map(Place::of),
        };
        match self.ask(Class::Control, ask, option.hard_ttl()).await? {
            Reply::Done => Ok(Ok(())),
            _ => Err(NetworkError::new(&self.unexpected()).into()),
        }
    }
}

fn ballot<E: Env>(rpc: &VoteRequest<Types<E::Runtime>>) -> Ballot {
    Ballot {
        vote: VoteForm::of(&rpc.vote),
        last: rpc.last_log_id.as_ref().map(Place::of),
        transfer: rpc.leadership_transfer,
    }
}

impl<E: Env> Peer<E> {
    async fn ballot(&self, ask: Ask, option: RPCOption) -> Result<VoteResponse<Types<E::Runtime>>, Rpc<E>> {
        match self.ask(Class::Control, ask, option.hard_ttl()).await? {
            Reply::Vote { vote, granted, last } => Ok(VoteResponse::new(vote.vote(), last.map(Place::id), granted)),
            _ => Err(NetworkError::new(&self.unexpected()).into()),
        }
    }

    /// Sends all rows, from where the receiver stopped last, and has them installed.
    async fn send_snapshot(
        &self,
        vote: VoteForm,
        checkpoint: &std::sync::Arc<Checkpoint>,
    ) -> Result<SnapshotResponse<Types<E::Runtime>>, StreamingError<Types<E::Runtime>>> {
        let form = checkpoint.stands_for.clone();
        let begin = Ask::SnapshotBegin { vote, form: form.clone() };
        let mut have = match self.piece(begin).await? {
            Reply::Snapshot { have } => have,
            Reply::Installed(vote) => return Ok(SnapshotResponse::new(vote.vote())),
            _ => return Err(NetworkError::new(&self.unexpected()).into()),
        };
        loop {
            let (source, behind) = (std::sync::Arc::clone(checkpoint), have.clone());
            let read = guarded(self.env.disk(), move || piece(&source, behind.as_ref()));
            let rows = read.await.map_err(|error| NetworkError::new(&error))?;
            if rows.is_empty() {
                break;
            }
            match self.piece(Ask::SnapshotRows { form: form.clone(), behind: have, rows }).await? {
                Reply::Snapshot { have: now } => have = now,
                _ => return Err(NetworkError::new(&self.unexpected()).into()),
            }
        }
        let source = std::sync::Arc::clone(checkpoint);
        let summed = guarded(self.env.disk(), move || sum(&source));
        let (rows, hash) = summed.await.map_err(|error| NetworkError::new(&error))?;
        match self.piece(Ask::SnapshotEnd { vote, form, rows, hash }).await? {
            Reply::Installed(vote) => Ok(SnapshotResponse::new(vote.vote())),
            _ => Err(NetworkError::new(&self.unexpected()).into()),
        }
    }

    /// Asks until there is an answer; a piece that arrives twice does no harm.
    async fn piece(&self, ask: Ask) -> Result<Reply, StreamingError<Types<E::Runtime>>> {
        let mut tries = 0;
        loop {
            match self.ask(Class::Snapshot, ask.clone(), PIECE_LIMIT).await {
                Ok(reply) => return Ok(reply),
                Err(RPCError::Unreachable(error)) => return Err(error.into()),
                Err(RPCError::Network(error)) if tries == PIECE_TRIES => return Err(error.into()),
                Err(RPCError::Timeout(error)) if tries == PIECE_TRIES => return Err(error.into()),
                Err(_) => {
                    tries += 1;
                    E::Runtime::sleep(Duration::from_millis(200) * tries).await;
                }
            }
        }
    }
}

/// The rows behind a cursor, one piece of them.
pub(crate) fn piece(checkpoint: &Checkpoint, behind: Option<&Cursor>) -> io::Result<Vec<SnapshotRow>> {
    let mut rows = vec![];
    let mut bytes = 0;
    for table in Table::ALL {
        if behind.is_some_and(|behind| table.number() < behind.table) {
            continue;
        }
        let from = match behind {
            Some(behind) if behind.table == table.number() => [&behind.key[..], b"\0"].concat(),
            _ => vec![],
        };
        checkpoint.scan(table, &from, &[], &mut |key, value| {
            bytes += key.len() + value.len();
            rows.push(SnapshotRow {
                at: Cursor { table: table.number(), key: key.to_vec().into() },
                value: value.to_vec().into(),
            });
            if bytes < PIECE_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if bytes >= PIECE_BYTES {
            break;
        }
    }
    Ok(rows)
}

/// How many rows there are, and the hash of them all.
pub(crate) fn sum(checkpoint: &Checkpoint) -> io::Result<(u64, Hash)> {
    let mut hasher = blake3::Hasher::new();
    let mut count = 0;
    for table in Table::ALL {
        checkpoint.scan(table, &[], &[], &mut |key, value| {
            hasher.update(&[table.number()]);
            hasher.update(&(key.len() as u64).to_be_bytes());
            hasher.update(key);
            hasher.update(&(value.len() as u64).to_be_bytes());
            hasher.update(value);
            count += 1;
            ControlFlow::Continue(())
        })?;
    }
    Ok((count, Hash(*hasher.finalize().as_bytes())))
}
