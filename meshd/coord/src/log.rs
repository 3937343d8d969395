//! The log of one group on disk: entries, the vote, how far it was purged and committed.
//!
//! One task writes. Whatever was asked for while the disk was busy goes into one commit, so that many writers share a flush.
//! Entries can be read as soon as they were appended; openraft is told that they are durable when the commit is.

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
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::{mpsc, oneshot};
use vdc::codec;
use vdc_coord::wire::{EntryForm, Place, VoteForm};

use crate::env::{Disk as _, Env, guarded, sound};
use crate::types::{EntryExt as _, Id, LOGGED_BYTES_MAX, Logged, PlaceExt as _, Types, VoteExt as _, VoteType};

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const COMMITTED: &str = "committed";

/// Bytes of durable entries that are kept in memory as well: what followers that keep up are sent.
const CACHE_BYTES: usize = 4 << 20;
/// Bytes of one message to a follower.
const MESSAGE_BYTES: usize = 1 << 20;
/// Writes that wait; openraft waits when there are more.
const WRITES_MAX: usize = 64;
/// Bytes that one commit may gather.
const COMMIT_BYTES: usize = 8 << 20;
/// Pages that redb keeps in memory. The tail of the log is in the cache above.
const PAGES_BYTES: usize = 1 << 20;
/// Longest vote or place, encoded.
const META_BYTES_MAX: usize = 128;

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
    database: Arc<Database>,
    inner: Arc<Mutex<Inner<E::Runtime>>>,
    writes: mpsc::Sender<Write<E::Runtime>>,
}

impl<E: Env> Clone for LogStore<E> {
    fn clone(&self) -> Self {
        Self {
            env: self.env.clone(),
            database: Arc::clone(&self.database),
            inner: Arc::clone(&self.inner),
            writes: self.writes.clone(),
        }
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
        let disk = env.disk().clone();
        let opened = guarded(env.disk(), move || {
            let backend = Boxed(disk.open(&file)?);
            let database =
                Database::builder().set_cache_size(PAGES_BYTES).create_with_backend(backend).map_err(other)?;
            let inner = load::<E::Runtime>(&database)?;
            Ok((database, inner))
        });
        let (database, inner) = opened.await?;
        let (writes, queue) = mpsc::channel(WRITES_MAX);
        let store = Self { env, database: Arc::new(database), inner: Arc::new(Mutex::new(inner)), writes };
        let writer =
            Writer { env: store.env.clone(), database: Arc::clone(&store.database), inner: Arc::clone(&store.inner) };
        drop(E::Runtime::spawn(writer.run(queue)));
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
            let cached_from = {
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
                first.unwrap_or(to)
            };
            if missing == Some(next) {
                return Ok(found);
            }
            let database = Arc::clone(&self.database);
            let (start, left) = (next, bytes_max.saturating_sub(bytes));
            let read =
                guarded(self.env.disk(), move || read_entries::<E::Runtime>(&database, start, cached_from, left));
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

fn load<R: AsyncRuntime>(database: &Database) -> io::Result<Inner<R>> {
    // The tables are made at once, so that reading need not care.
    let transaction = database.begin_write().map_err(other)?;
    transaction.open_table(ENTRIES).map_err(other)?;
    transaction.open_table(META).map_err(other)?;
    transaction.commit().map_err(other)?;
    let transaction = database.begin_read().map_err(other)?;
    let meta = transaction.open_table(META).map_err(other)?;
    let get = |name: &str| -> io::Result<Option<Vec<u8>>> {
        Ok(meta.get(name).map_err(other)?.map(|bytes| bytes.value().to_vec()))
    };
    let place = |name: &'static str| -> io::Result<Option<Place>> {
        get(name)?.map(|bytes| codec::decode(name, &bytes, META_BYTES_MAX).map_err(|e| damaged(&e))).transpose()
    };
    let vote =
        get(VOTE)?.map(|bytes| codec::decode(VOTE, &bytes, META_BYTES_MAX).map_err(|e| damaged(&e))).transpose()?;
    let (purged, committed) = (place(PURGED)?, place(COMMITTED)?);
    let entries = transaction.open_table(ENTRIES).map_err(other)?;
    let last = match entries.last().map_err(other)? {
        Some((_, bytes)) => Some(decode_entry(bytes.value())?.place),
        None => purged,
    };
    Ok(Inner { tail: BTreeMap::new(), tail_bytes: 0, last, purged, vote, committed })
}

fn decode_entry(bytes: &[u8]) -> io::Result<EntryForm> {
    codec::decode("log entry", bytes, LOGGED_BYTES_MAX + 1_024).map_err(|e| damaged(&e))
}

fn read_entries<R: AsyncRuntime>(
    database: &Database,
    from: u64,
    to: u64,
    bytes_max: usize,
) -> io::Result<(Vec<Logged<R>>, usize)> {
    let transaction = database.begin_read().map_err(other)?;
    let entries = transaction.open_table(ENTRIES).map_err(other)?;
    let (mut found, mut bytes) = (vec![], 0);
    for row in entries.range(from..to).map_err(other)? {
        let (_, value) = row.map_err(other)?;
        if !found.is_empty() && bytes + value.value().len() > bytes_max {
            break;
        }
        bytes += value.value().len();
        found.push(decode_entry(value.value())?.entry::<R>().map_err(|e| damaged(&e))?);
    }
    Ok((found, bytes))
}

struct Writer<E: Env> {
    env: E,
    database: Arc<Database>,
    inner: Arc<Mutex<Inner<E::Runtime>>>,
}

impl<E: Env> Writer<E> {
    async fn run(self, mut queue: mpsc::Receiver<Write<E::Runtime>>) {
        while let Some(first) = queue.recv().await {
            let mut bytes = first.bytes();
            let mut batch = vec![first];
            while bytes < COMMIT_BYTES
                && let Ok(more) = queue.try_recv()
            {
                bytes += more.bytes();
                batch.push(more);
            }
            let committed = self.inner.lock().committed;
            let database = Arc::clone(&self.database);
            let (batch, result) = self
                .env
                .disk()
                .run(move || {
                    let result = sound(|| commit(&database, &batch, committed));
                    (batch, result)
                })
                .await;
            let failed = result.is_err();
            self.tell(batch, &result);
            if failed {
                // What the file holds now is known again when it is opened again.
                return;
            }
        }
    }

    fn tell(&self, batch: Vec<Write<E::Runtime>>, result: &io::Result<()>) {
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
                Write::Vote { done, .. } | Write::Truncate { done, .. } => {
                    let _ = done.send(copy()); // who asked may have gone
                }
                Write::Purge { .. } => {}
            }
        }
    }
}

fn commit<R: AsyncRuntime>(database: &Database, batch: &[Write<R>], committed: Option<Place>) -> io::Result<()> {
    let mut transaction = database.begin_write().map_err(other)?;
    transaction.set_durability(Durability::Immediate).map_err(|error| io::Error::other(error.to_string()))?;
    {
        let mut entries = transaction.open_table(ENTRIES).map_err(other)?;
        let mut meta = transaction.open_table(META).map_err(other)?;
        for write in batch {
            match write {
                Write::Append { entries: new, .. } => {
                    for (index, bytes) in new {
                        entries.insert(index, bytes.as_slice()).map_err(other)?;
                    }
                }
                Write::Vote { vote, .. } => {
                    meta.insert(VOTE, codec::encode(vote).as_slice()).map_err(other)?;
                }
                Write::Truncate { from, .. } => {
                    entries.retain_in(*from.., |_, _| false).map_err(other)?;
                }
                Write::Purge { upto } => {
                    meta.insert(PURGED, codec::encode(upto).as_slice()).map_err(other)?;
                    entries.retain_in(..=upto.index, |_, _| false).map_err(other)?;
                }
            }
        }
        if let Some(committed) = committed {
            meta.insert(COMMITTED, codec::encode(&committed).as_slice()).map_err(other)?;
        }
    }
    transaction.commit().map_err(other)
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
