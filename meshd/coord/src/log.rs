//! The log of one group on disk: entries, the vote, how far it was purged and committed.
//!
//! One task writes. Whatever was asked for while the disk was busy goes into one frame of the file, so that many writers share
//! a flush. Entries can be read as soon as they were appended; openraft is told that they are durable when the frame is.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{AsyncRuntime, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use vdc::codec;
use vdc_coord::wire::{EntryForm, Place, VoteForm};

use crate::env::{Disk as _, Env, guarded, sound};
use crate::journal::{Change, Frame, Journal, Meta, Opened, Pen, Spot, Spots};
use crate::types::{EntryExt as _, Id, LOGGED_BYTES_MAX, Logged, PlaceExt as _, Types, VoteExt as _, VoteType};

/// Bytes of durable entries that are kept in memory as well: what followers that keep up are sent.
const CACHE_BYTES: usize = 4 << 20;
/// Bytes of one message to a follower.
const MESSAGE_BYTES: usize = 1 << 20;
/// Writes that wait; openraft waits when there are more.
const WRITES_MAX: usize = 64;
/// Bytes that are gathered at a time.
const GATHERED_BYTES: usize = 8 << 20;
/// What waits to be written.
enum Write<R: AsyncRuntime> {
    Append { entries: Vec<(u64, Vec<u8>)>, done: IOFlushed<Types<R>> },
    Vote { vote: VoteForm, done: oneshot::Sender<io::Result<()>> },
    Truncate { from: u64, done: oneshot::Sender<io::Result<()>> },
    Purge { upto: Place },
}

impl<R: AsyncRuntime> Write<R> {
    fn bytes(&self) -> usize {
        match self {
            Self::Append { entries, .. } => entries.iter().map(|(_, bytes)| bytes.len()).sum(),
            Self::Vote { .. } | Self::Truncate { .. } | Self::Purge { .. } => 64,
        }
    }
}

struct Cached<R: AsyncRuntime> {
    entry: Logged<R>,
    bytes: usize,
    durable: bool,
}

/// What is known without asking the disk.
struct Inner<R: AsyncRuntime> {
    /// The file, and where in it the durable entries are.
    journal: Arc<Journal>,
    spots: Spots,
    tail: BTreeMap<u64, Cached<R>>,
    tail_bytes: usize,
    last: Option<Place>,
    purged: Option<Place>,
    vote: Option<VoteForm>,
    committed: Option<Place>,
}

impl<R: AsyncRuntime> Inner<R> {
    fn add(&mut self, entry: Logged<R>, bytes: usize) {
        let place = Place::of(&entry.log_id());
        self.last = Some(place);
        self.tail_bytes += bytes;
        self.tail.insert(place.index, Cached { entry, bytes, durable: false });
    }

    fn drop_from(&mut self, from: u64) {
        for (_, cached) in self.tail.split_off(&from) {
            self.tail_bytes -= cached.bytes;
        }
    }

    /// Notes what became durable and lets go of what no longer fits.
    fn flushed(&mut self, upto: u64) {
        for (_, cached) in self.tail.range_mut(..=upto) {
            cached.durable = true;
        }
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.tail_bytes > CACHE_BYTES && self.tail.first_key_value().is_some_and(|(_, cached)| cached.durable) {
            if let Some((_, cached)) = self.tail.pop_first() {
                self.tail_bytes -= cached.bytes;
            }
        }
    }
}

/// The log of one group.
pub(crate) struct LogStore<E: Env> {
    env: E,
    inner: Arc<Mutex<Inner<E::Runtime>>>,
    writes: mpsc::Sender<Write<E::Runtime>>,
}

impl<E: Env> Clone for LogStore<E> {
    fn clone(&self) -> Self {
        Self { env: self.env.clone(), inner: Arc::clone(&self.inner), writes: self.writes.clone() }
    }
}

impl<E: Env> Debug for LogStore<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogStore")
    }
}

pub(crate) fn other(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

fn closed() -> io::Error {
    io::Error::other("the log is closed after a failed write")
}

impl<E: Env> LogStore<E> {
    /// Opens or makes the log in `file`.
    ///
    /// # Errors
    /// Those of the disk; a log that is damaged is told as such.
    pub(crate) async fn open(env: E, file: String) -> io::Result<Self> {
        let (disk, name, salt) = (env.disk().clone(), file.clone(), env.random());
        let opened = guarded(env.disk(), move || {
            let opened = Pen::open(&disk, &name, salt)?;
            let inner = load::<E::Runtime>(&opened)?;
            Ok((opened, inner))
        });
        let (Opened { pen, meta, .. }, inner) = opened.await?;
        let (writes, queue) = mpsc::channel(WRITES_MAX);
        let store = Self { env, inner: Arc::new(Mutex::new(inner)), writes };
        let writer = Writer { env: store.env.clone(), file, meta, inner: Arc::clone(&store.inner) };
        drop(E::Runtime::spawn(writer.run(pen, queue)));
        Ok(store)
    }

    /// Tells where the log ends, without holding on to its file.
    pub(crate) fn last(&self) -> Box<dyn Fn() -> Option<Place> + Send + Sync> {
        let inner = Arc::downgrade(&self.inner);
        Box::new(move || inner.upgrade().and_then(|inner| inner.lock().last))
    }

    /// Waits until nothing is being written any more.
    pub(crate) async fn close(self) {
        let inner = Arc::downgrade(&self.inner);
        drop(self);
        // The writer ends when nobody can ask it any more.
        while inner.strong_count() > 0 {
            E::Runtime::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn wait(&self, write: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Write<E::Runtime>) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        self.writes.send(write(done)).await.map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }

    /// The entries of a range that are there, ascending and without a gap; at least one, and then as many as fit.
    async fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Logged<E::Runtime>>> {
        let mut found: Vec<Logged<E::Runtime>> = vec![];
        let mut bytes = 0;
        let mut next = from;
        // Where the disk had nothing: purged before, or not there yet.
        let mut missing = None;
        loop {
            let (journal, spots) = {
                let inner = self.inner.lock();
                let first = inner.tail.range(next..to).next().map(|(first, _)| *first);
                if first == Some(next) || (first.is_some() && missing == Some(next) && found.is_empty()) {
                    for (index, cached) in inner.tail.range(next..to) {
                        if !found.is_empty() && (*index != next || bytes + cached.bytes > bytes_max) {
                            break;
                        }
                        bytes += cached.bytes;
                        found.push(cached.entry.clone());
                        next = index + 1;
                    }
                    return Ok(found);
                }
                let left = bytes_max.saturating_sub(bytes);
                (Arc::clone(&inner.journal), inner.spots.range(next, first.unwrap_or(to), left))
            };
            if missing == Some(next) {
                return Ok(found);
            }
            let read = guarded(self.env.disk(), move || read_entries::<E::Runtime>(&journal, &spots));
            let (more, size) = read.await?;
            bytes += size;
            match more.last() {
                Some(last) => next = last.log_id().index + 1,
                None => missing = Some(next),
            }
            found.extend(more);
            if bytes >= bytes_max || next >= to {
                return Ok(found);
            }
        }
    }
}

/// redb takes a backend by value.
#[derive(Debug)]
pub(crate) struct Boxed(pub(crate) Box<dyn redb::StorageBackend>);

impl redb::StorageBackend for Boxed {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write(offset, data)
    }
    fn close(&self) -> Result<(), io::Error> {
        self.0.close()
    }
}

fn damaged(error: &codec::DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log is damaged: {error}"))
}

fn load<R: AsyncRuntime>(opened: &Opened) -> io::Result<Inner<R>> {
    let (journal, Meta { vote, committed, purged }) = (opened.pen.journal(), opened.meta);
    let last = match opened.spots.last() {
        Some(spot) => Some(decode_entry(&journal.read(&spot)?)?.place),
        None => purged,
    };
    let spots = opened.spots.clone();
    Ok(Inner { journal, spots, tail: BTreeMap::new(), tail_bytes: 0, last, purged, vote, committed })
}

fn decode_entry(bytes: &[u8]) -> io::Result<EntryForm> {
    codec::decode("log entry", bytes, LOGGED_BYTES_MAX + 1_024).map_err(|e| damaged(&e))
}

fn read_entries<R: AsyncRuntime>(journal: &Journal, spots: &[Spot]) -> io::Result<(Vec<Logged<R>>, usize)> {
    let (mut found, mut bytes) = (vec![], 0);
    for spot in spots {
        let entry = journal.read(spot)?;
        bytes += entry.len();
        found.push(decode_entry(&entry)?.entry::<R>().map_err(|e| damaged(&e))?);
    }
    Ok((found, bytes))
}

struct Writer<E: Env> {
    env: E,
    file: String,
    /// As it is in the file.
    meta: Meta,
    inner: Arc<Mutex<Inner<E::Runtime>>>,
}

impl<E: Env> Writer<E> {
    async fn run(mut self, mut pen: Pen, mut queue: mpsc::Receiver<Write<E::Runtime>>) {
        while let Some(first) = queue.recv().await {
            let mut bytes = first.bytes();
            let mut batch = vec![first];
            while bytes < GATHERED_BYTES
                && let Ok(more) = queue.try_recv()
            {
                bytes += more.bytes();
                batch.push(more);
            }
            let committed = self.inner.lock().committed.filter(|place| Some(*place) != self.meta.committed);
            let written = self.env.disk().run(move || {
                let result = sound(|| write(&mut pen, &batch, committed));
                (pen, batch, result)
            });
            let (same, batch, result) = written.await;
            pen = same;
            let result = result.and_then(|changes| self.inner.lock().spots.apply(&changes));
            let failed = result.is_err();
            self.tell(batch, &result);
            if failed {
                // What the file holds now is known again when it is opened again.
                return;
            }
            self.meta.committed = committed.or(self.meta.committed);
            let spots = {
                let inner = self.inner.lock();
                pen.is_wasteful(&inner.spots).then(|| inner.spots.clone())
            };
            if let Some(spots) = spots {
                let Some(rewritten) = self.rewrite(pen, spots).await else { return };
                pen = rewritten;
            }
        }
    }

    /// Leaves behind in another file what nobody needs any more. None: it failed, and nothing can be written any more.
    async fn rewrite(&self, pen: Pen, spots: Spots) -> Option<Pen> {
        let (disk, name, salt, meta) = (self.env.disk().clone(), self.file.clone(), self.env.random(), self.meta);
        let rewritten = guarded(self.env.disk(), move || pen.rewrite(&disk, &name, salt, &meta, &spots));
        match rewritten.await {
            Ok(Opened { pen, spots, .. }) => {
                let mut inner = self.inner.lock();
                inner.journal = pen.journal();
                inner.spots = spots;
                Some(pen)
            }
            Err(error) => {
                tracing::warn!(file = self.file, %error, "the log cannot be written anew");
                None
            }
        }
    }

    fn tell(&mut self, batch: Vec<Write<E::Runtime>>, result: &io::Result<()>) {
        let copy = || match result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        for write in batch {
            match write {
                Write::Append { entries, done } => {
                    if let (Ok(()), Some((last, _))) = (result, entries.last()) {
                        self.inner.lock().flushed(*last);
                    }
                    done.io_completed(copy());
                }
                Write::Vote { vote, done } => {
                    self.meta.vote = Some(vote);
                    let _ = done.send(copy()); // who asked may have gone
                }
                Write::Truncate { done, .. } => {
                    let _ = done.send(copy()); // who asked may have gone
                }
                Write::Purge { upto } => self.meta.purged = Some(upto),
            }
        }
    }
}

fn write<R: AsyncRuntime>(pen: &mut Pen, batch: &[Write<R>], committed: Option<Place>) -> io::Result<Vec<Change>> {
    let mut changes = vec![];
    let mut frame = Frame::default();
    committed.iter().for_each(|place| frame.committed(place));
    for write in batch {
        match write {
            Write::Append { entries, .. } => {
                for (index, bytes) in entries {
                    if frame.is_full() {
                        changes.extend(pen.write(std::mem::take(&mut frame))?);
                    }
                    frame.entry(*index, bytes);
                }
            }
            Write::Vote { vote, .. } => frame.vote(vote),
            Write::Truncate { from, .. } => frame.truncate(*from),
            Write::Purge { upto } => frame.purge(upto),
        }
    }
    changes.extend(pen.write(frame)?);
    Ok(changes)
}

fn range(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(from) => from.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(to) => to.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl<E: Env> RaftLogReader<Types<E::Runtime>> for LogStore<E> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        bounds: RB,
    ) -> Result<Vec<Logged<E::Runtime>>, io::Error> {
        let (from, to) = range(&bounds);
        self.read(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Logged<E::Runtime>>, io::Error> {
        self.read(start, end, MESSAGE_BYTES).await
    }

    async fn read_vote(&mut self) -> Result<Option<VoteType<E::Runtime>>, io::Error> {
        Ok(self.inner.lock().vote.map(VoteForm::vote))
    }
}

impl<E: Env> RaftLogStorage<Types<E::Runtime>> for LogStore<E> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types<E::Runtime>>, io::Error> {
        let inner = self.inner.lock();
        Ok(LogState { last_purged_log_id: inner.purged.map(Place::id), last_log_id: inner.last.map(Place::id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteType<E::Runtime>) -> Result<(), io::Error> {
        let vote = VoteForm::of(vote);
        self.wait(|done| Write::Vote { vote, done }).await?;
        self.inner.lock().vote = Some(vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<Id<E::Runtime>>) -> Result<(), io::Error> {
        // It goes to disk with the next write: it saves work after a restart, and nothing rests on it.
        self.inner.lock().committed = committed.as_ref().map(Place::of);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<Id<E::Runtime>>, io::Error> {
        Ok(self.inner.lock().committed.map(Place::id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<E::Runtime>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Logged<E::Runtime>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = vec![];
        {
            let mut inner = self.inner.lock();
            for entry in entries {
                let bytes = codec::encode(&EntryForm::of::<E::Runtime>(&entry));
                let size = bytes.len();
                encoded.push((entry.log_id().index, bytes));
                inner.add(entry, size);
            }
        }
        // openraft has one task that writes, so what comes here first is written first.
        self.writes.send(Write::Append { entries: encoded, done: callback }).await.map_err(|_| closed())
    }

    async fn truncate_after(&mut self, last: Option<Id<E::Runtime>>) -> Result<(), io::Error> {
        let last = last.as_ref().map(Place::of);
        let from = last.map_or(0, |place| place.index + 1);
        {
            let mut inner = self.inner.lock();
            inner.drop_from(from);
            inner.last = last;
        }
        self.wait(|done| Write::Truncate { from, done }).await
    }

    async fn purge(&mut self, upto: Id<E::Runtime>) -> Result<(), io::Error> {
        let upto = Place::of(&upto);
        {
            let mut inner = self.inner.lock();
            inner.purged = Some(upto);
            if inner.last.is_none_or(|last| last.index < upto.index) {
                inner.last = Some(upto);
            }
            let kept = inner.tail.split_off(&(upto.index + 1));
            let gone = std::mem::replace(&mut inner.tail, kept);
            inner.tail_bytes -= gone.values().map(|cached| cached.bytes).sum::<usize>();
        }
        self.writes.send(Write::Purge { upto }).await.map_err(|_| closed())
    }
}
