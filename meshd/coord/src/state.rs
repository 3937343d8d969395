//! The store's rows on one node: what was applied last in memory, over what a checkpoint put on disk.
//!
//! Applying an entry changes memory alone. A checkpoint freezes what is in memory, writes it in one durable transaction together
//! with the place in the log that it stands for, and lets go of it; the log may then be purged up to there. After a crash
//! openraft applies again what is in the log behind the last checkpoint. Reading sees the changes in memory first, those
//! that are being written second, and the disk last.
//!
//! A snapshot is the read transaction that a checkpoint ends with: nothing is copied to take it.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fmt::Debug;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use openraft::alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::RwLock;
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase as _, TableDefinition};
use tokio::sync::watch;
use vdc::codec;
use vdc_coord::rows::{Visit, bounds};
use vdc_coord::wire::{MembershipForm, Place, SnapshotForm, StoredMembershipForm};
use vdc_coord::{Machine, Reader, Revision, Rows, RowsMut, Summary, Table};

use crate::env::{Disk as _, Env, guarded};
use crate::log::{Boxed, other};
use crate::types::{Answers, Id, MembershipExt as _, PlaceExt as _, SnapshotExt as _, StoredExt as _, Types};

/// The driver's own table: what the rows stand for.
const RAFT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("raft");
const STANDS_FOR: &str = "stands-for";
/// Longest such statement: a membership of the largest size.
const STANDS_FOR_BYTES_MAX: usize = 64 << 10;
/// Pages that redb keeps in memory.
const PAGES_BYTES: usize = 32 << 20;
/// Bytes of changes in memory after which they are written.
pub(crate) const CHANGES_BYTES: usize = 24 << 20;
/// What a changed row costs beside its bytes.
const ROW_OVERHEAD: usize = 96;
/// Entries that are applied before others get to read.
const ENTRIES_AT_ONCE: usize = 256;

fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

/// Changed rows; none where a row was deleted.
#[derive(Debug, Default)]
struct Changes {
    tables: BTreeMap<Table, BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
    bytes: usize,
}

impl Changes {
    fn set(&mut self, table: Table, key: &[u8], value: Option<Vec<u8>>) {
        let added = value.as_ref().map_or(0, Vec::len);
        let rows = self.tables.entry(table).or_default();
        match rows.get_mut(key) {
            Some(old) => {
                self.bytes = (self.bytes + added).saturating_sub(old.as_ref().map_or(0, Vec::len));
                *old = value;
            }
            None => {
                self.bytes += key.len() + added + ROW_OVERHEAD;
                rows.insert(key.to_vec(), value);
            }
        }
    }

    fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.tables.get(&table)?.get(key)
    }

    fn range<'a>(&'a self, table: Table, from: &'a [u8], to: &'a [u8]) -> Changed<'a> {
        let range = self.tables.get(&table).zip(bounds(from, to));
        Changed(range.map(|(rows, bounds)| rows.range::<[u8], _>(bounds).peekable()))
    }
}

/// Changed rows of a range, in order.
struct Changed<'a>(Option<ChangedRows<'a>>);

type ChangedRows<'a> = std::iter::Peekable<btree_map::Range<'a, Vec<u8>, Option<Vec<u8>>>>;

impl<'a> Changed<'a> {
    fn key(&mut self) -> Option<&'a [u8]> {
        self.0.as_mut()?.peek().map(|(key, _)| key.as_slice())
    }

    /// The row if it is that of `key`.
    fn take(&mut self, key: &[u8]) -> Option<&'a Option<Vec<u8>>> {
        self.0.as_mut()?.next_if(|(found, _)| found.as_slice() == key).map(|(_, value)| value)
    }
}

/// What a checkpoint left on disk.
pub(crate) struct Checkpoint {
    tables: BTreeMap<Table, ReadOnlyTable<&'static [u8], &'static [u8]>>,
    pub(crate) stands_for: SnapshotForm,
}

impl Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({:?})", self.stands_for.place)
    }
}

impl Checkpoint {
    pub(crate) fn read(database: &Database) -> io::Result<Self> {
        let transaction = database.begin_read().map_err(other)?;
        let mut tables = BTreeMap::new();
        for table in Table::ALL {
            tables.insert(table, transaction.open_table(definition(table)).map_err(other)?);
        }
        let raft = transaction.open_table(RAFT).map_err(other)?;
        let bytes = raft.get(STANDS_FOR).map_err(other)?.map(|bytes| bytes.value().to_vec());
        let stands_for = match bytes {
            Some(bytes) => codec::decode("checkpoint", &bytes, STANDS_FOR_BYTES_MAX)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("the store is damaged: {e}")))?,
            None => SnapshotForm::default(),
        };
        Ok(Self { tables, stands_for })
    }

    fn table(&self, table: Table) -> &ReadOnlyTable<&'static [u8], &'static [u8]> {
        self.tables.get(&table).expect("all tables are opened")
    }
}

impl Rows for Checkpoint {
    type Error = io::Error;

    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.table(table).get(key).map_err(other)?.map(|value| value.value().to_vec()))
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> io::Result<()> {
        let Some(bounds) = bounds(from, to) else { return Ok(()) };
        for row in self.table(table).range::<&[u8]>(bounds).map_err(other)? {
            let (key, value) = row.map_err(other)?;
            if visit(key.value(), value.value()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// What a checkpoint writes: changes, and what the rows with them stand for.
#[derive(Debug)]
struct Frozen {
    changes: Changes,
    stands_for: SnapshotForm,
}

/// All that is known, consistent at one moment.
#[derive(Debug)]
pub(crate) struct Tables {
    recent: Changes,
    /// What a checkpoint is writing just now.
    frozen: Option<Arc<Frozen>>,
    disk: Arc<Checkpoint>,
    stands_for: SnapshotForm,
}

impl Rows for Tables {
    type Error = io::Error;

    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let frozen = || self.frozen.as_ref().and_then(|frozen| frozen.changes.get(table, key));
        match self.recent.get(table, key).or_else(frozen) {
            Some(value) => Ok(value.clone()),
            None => self.disk.get(table, key),
        }
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> io::Result<()> {
        let mut recent = self.recent.range(table, from, to);
        let none = Changes::default();
        let frozen = self.frozen.as_ref().map_or(&none, |frozen| &frozen.changes);
        let mut frozen = frozen.range(table, from, to);
        let mut ended = ControlFlow::Continue(());
        // Changes up to a key of the disk, or all that are left; whether that key itself was changed.
        let mut changed_upto = |limit: Option<&[u8]>, visit: Visit<'_>| -> (ControlFlow<()>, bool) {
            loop {
                let next = match (recent.key(), frozen.key()) {
                    (Some(a), Some(b)) => a.min(b),
                    (Some(key), None) | (None, Some(key)) => key,
                    (None, None) => return (ControlFlow::Continue(()), false),
                };
                if limit.is_some_and(|limit| next > limit) {
                    return (ControlFlow::Continue(()), false);
                }
                let under = frozen.take(next);
                let value = recent.take(next).or(under).expect("one of them has the key");
                if let Some(value) = value
                    && visit(next, value).is_break()
                {
                    return (ControlFlow::Break(()), true);
                }
                if limit == Some(next) {
                    return (ControlFlow::Continue(()), true);
                }
            }
        };
        self.disk.scan(table, from, to, &mut |key, value| {
            let (flow, replaced) = changed_upto(Some(key), visit);
            ended = if flow.is_break() || replaced { flow } else { visit(key, value) };
            ended
        })?;
        if ended.is_continue() {
            let _ended = changed_upto(None, visit);
        }
        Ok(())
    }
}

impl RowsMut for Tables {
    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) -> io::Result<()> {
        self.recent.set(table, key, Some(value));
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> io::Result<()> {
        self.recent.set(table, key, None);
        Ok(())
    }
}

struct Shared<E: Env> {
    env: E,
    file: String,
    database: RwLock<Arc<Database>>,
    tables: RwLock<Tables>,
    /// One checkpoint at a time.
    writing: tokio::sync::Mutex<()>,
    /// How far the store is, for those who wait for changes.
    revision: watch::Sender<Revision>,
    /// The last entry that was applied, for those who wait for their own.
    applied: watch::Sender<u64>,
}

/// The rows of one group on this node.
pub(crate) struct StateStore<E: Env>(Arc<Shared<E>>);

impl<E: Env> Clone for StateStore<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Env> Debug for StateStore<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StateStore({})", self.0.file)
    }
}

/// A snapshot on its way: here to be read, or a file that was received and checked.
#[derive(Debug)]
pub(crate) enum SnapshotData {
    Here(HereHandle),
    Received(String),
}

/// A checkpoint that is kept for as long as it is being sent.
#[derive(Clone, Debug)]
pub(crate) struct HereHandle(pub(crate) Arc<Checkpoint>);

pub(crate) fn open_database(env: &impl Env, file: &str) -> io::Result<Database> {
    let backend = Boxed(env.disk().open(file)?);
    let database = Database::builder().set_cache_size(PAGES_BYTES).create_with_backend(backend).map_err(other)?;
    let transaction = database.begin_write().map_err(other)?;
    for table in Table::ALL {
        transaction.open_table(definition(table)).map_err(other)?;
    }
    transaction.open_table(RAFT).map_err(other)?;
    transaction.commit().map_err(other)?;
    Ok(database)
}

/// Writes rows and what they stand for.
pub(crate) fn write_rows<'a>(
    database: &Database,
    rows: impl Iterator<Item = (Table, &'a [u8], Option<&'a [u8]>)>,
    stands_for: Option<&SnapshotForm>,
    durability: Durability,
) -> io::Result<()> {
    let mut transaction = database.begin_write().map_err(other)?;
    transaction.set_durability(durability).map_err(|error| io::Error::other(error.to_string()))?;
    // After a crash the file is open again at once, however large it is.
    transaction.set_quick_repair(matches!(durability, Durability::Immediate));
    {
        let mut open = BTreeMap::new();
        for (table, key, value) in rows {
            let rows = match open.entry(table) {
                btree_map::Entry::Occupied(occupied) => occupied.into_mut(),
                btree_map::Entry::Vacant(vacant) => {
                    vacant.insert(transaction.open_table(definition(table)).map_err(other)?)
                }
            };
            match value {
                Some(value) => drop(rows.insert(key, value).map_err(other)?),
                None => drop(rows.remove(key).map_err(other)?),
            }
        }
        if let Some(stands_for) = stands_for {
            let mut raft = transaction.open_table(RAFT).map_err(other)?;
            raft.insert(STANDS_FOR, codec::encode(stands_for).as_slice()).map_err(other)?;
        }
    }
    transaction.commit().map_err(other)
}

impl<E: Env> StateStore<E> {
    /// Opens or makes the store in `file`.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) async fn open(env: E, file: String) -> io::Result<Self> {
        let (opener, name) = (env.clone(), file.clone());
        let opened = guarded(env.disk(), move || {
            let database = open_database(&opener, &name)?;
            let checkpoint = Checkpoint::read(&database)?;
            Ok((database, checkpoint))
        });
        let (database, checkpoint) = opened.await?;
        let tables = Tables {
            recent: Changes::default(),
            frozen: None,
            stands_for: checkpoint.stands_for.clone(),
            disk: Arc::new(checkpoint),
        };
        let revision = Reader(&tables).summary()?.revision;
        let applied = tables.stands_for.place.map_or(0, |place| place.index);
        Ok(Self(Arc::new(Shared {
            env,
            file,
            database: RwLock::new(Arc::new(database)),
            tables: RwLock::new(tables),
            writing: tokio::sync::Mutex::new(()),
            revision: watch::Sender::new(revision),
            applied: watch::Sender::new(applied),
        })))
    }

    /// Reads one consistent state.
    pub(crate) fn read<T>(&self, read: impl FnOnce(Reader<'_, Tables>) -> T) -> T {
        read(Reader(&self.0.tables.read()))
    }

    pub(crate) fn summary(&self) -> io::Result<Summary> {
        self.read(|reader| reader.summary())
    }

    /// Tells of new revisions.
    pub(crate) fn revisions(&self) -> watch::Receiver<Revision> {
        self.0.revision.subscribe()
    }

    /// Waits until an entry was applied.
    pub(crate) async fn wait_applied(&self, index: u64) -> io::Result<()> {
        let mut applied = self.0.applied.subscribe();
        let waited = applied.wait_for(|applied| *applied >= index).await;
        waited.map(drop).map_err(io::Error::other)
    }

    /// Bytes of changes that no checkpoint has written.
    pub(crate) fn unwritten_bytes(&self) -> usize {
        self.0.tables.read().recent.bytes
    }

    /// Writes what is in memory, and keeps on disk what it stands for.
    ///
    /// # Errors
    /// Those of the disk; what was in memory stays there.
    pub(crate) async fn checkpoint(&self) -> io::Result<Arc<Checkpoint>> {
        let _one = self.0.writing.lock().await;
        let frozen = {
            let mut tables = self.0.tables.write();
            let Tables { recent, frozen, stands_for, .. } = &mut *tables;
            // One that could not be written the last time is written first.
            let freeze = || Arc::new(Frozen { changes: std::mem::take(recent), stands_for: stands_for.clone() });
            Arc::clone(frozen.get_or_insert_with(freeze))
        };
        let database = Arc::clone(&self.0.database.read());
        let written = guarded(self.0.env.disk(), move || {
            let rows =
                frozen.changes.tables.iter().flat_map(|(table, rows)| {
                    rows.iter().map(|(key, value)| (*table, key.as_slice(), value.as_deref()))
                });
            write_rows(&database, rows, Some(&frozen.stands_for), Durability::Immediate)?;
            Checkpoint::read(&database).map(Arc::new)
        });
        let checkpoint = written.await?;
        let mut tables = self.0.tables.write();
        tables.frozen = None;
        tables.disk = Arc::clone(&checkpoint);
        Ok(checkpoint)
    }

    /// Changes the rows of a store that no log drives.
    ///
    /// # Errors
    /// Those of `change`, or of the disk.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Tables) -> io::Result<()>) -> io::Result<()> {
        change(&mut self.0.tables.write())
    }

    /// Says what the rows of such a store stand for.
    pub(crate) fn stand_for(&self, place: Place, membership: StoredMembershipForm) {
        self.0.tables.write().stands_for = SnapshotForm { place: Some(place), membership };
    }

    /// Writes what is in memory if it is much.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) async fn write_if_large(&self) -> io::Result<()> {
        if self.unwritten_bytes() > CHANGES_BYTES {
            self.checkpoint().await?;
        }
        Ok(())
    }

    pub(crate) fn apply_some(&self, batch: Vec<EntryResponder<Types<E::Runtime>>>) -> io::Result<()> {
        let mut tables = self.0.tables.write();
        let mut answered = vec![];
        let mut revision = None;
        for (entry, responder) in batch {
            tables.stands_for.place = Some(Place::of(&entry.log_id()));
            let answers = match &entry.payload {
                EntryPayload::Blank => Answers::default(),
                EntryPayload::Normal(packed) => {
                    let mut machine = Machine::new(&mut *tables)?;
                    let answers = machine.apply(&packed.entry)?;
                    revision = Some(machine.summary().revision);
                    Answers(answers)
                }
                EntryPayload::Membership(membership) => {
                    tables.stands_for.membership = StoredMembershipForm {
                        place: Some(Place::of(&entry.log_id())),
                        membership: MembershipForm::of(membership),
                    };
                    Answers::default()
                }
            };
            answered.push((responder, answers));
        }
        let applied = tables.stands_for.place.map_or(0, |place| place.index);
        drop(tables);
        self.tell(revision, applied);
        for (responder, answers) in answered {
            if let Some(responder) = responder {
                responder.send(answers);
            }
        }
        Ok(())
    }

    fn tell(&self, revision: Option<Revision>, applied: u64) {
        if let Some(revision) = revision {
            self.0.revision.send_if_modified(|last| std::mem::replace(last, revision) != revision);
        }
        self.0.applied.send_if_modified(|last| std::mem::replace(last, applied) != applied);
    }

    fn snapshot(checkpoint: Arc<Checkpoint>) -> io::Result<SnapshotOf<Types<E::Runtime>, SnapshotData>> {
        let meta = checkpoint.stands_for.meta::<E::Runtime>().map_err(io::Error::other)?;
        Ok(Snapshot { meta, snapshot: SnapshotData::Here(HereHandle(checkpoint)) })
    }
}

impl<E: Env> RaftSnapshotBuilder<Types<E::Runtime>> for StateStore<E> {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types<E::Runtime>, SnapshotData>, io::Error> {
        Self::snapshot(self.checkpoint().await?)
    }
}

impl<E: Env> RaftStateMachine<Types<E::Runtime>> for StateStore<E> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<Id<E::Runtime>>, StoredMembershipOf<Types<E::Runtime>>), io::Error> {
        let stands_for = self.0.tables.read().stands_for.clone();
        let membership = stands_for.membership.stored::<E::Runtime>().map_err(io::Error::other)?;
        Ok((stands_for.place.map(Place::id), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types<E::Runtime>>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = vec![];
        while let Some(entry) = entries.next().await {
            batch.push(entry?);
            if batch.len() == ENTRIES_AT_ONCE {
                self.apply_some(std::mem::take(&mut batch))?;
            }
        }
        self.apply_some(batch)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types<E::Runtime>>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let SnapshotData::Received(received) = snapshot else {
            return Ok(()); // openraft restores what is here already
        };
        let _one = self.0.writing.lock().await;
        let (env, file) = (self.0.env.clone(), self.0.file.clone());
        let installed = guarded(self.0.env.disk(), move || {
            env.disk().rename(&received, &file)?;
            let database = open_database(&env, &file)?;
            let checkpoint = Checkpoint::read(&database)?;
            Ok((database, checkpoint))
        });
        let (database, checkpoint) = installed.await?;
        if checkpoint.stands_for.place != meta.last_log_id.as_ref().map(Place::of) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot stands for another place in the log"));
        }
        let mut tables = self.0.tables.write();
        *tables = Tables {
            recent: Changes::default(),
            frozen: None,
            stands_for: checkpoint.stands_for.clone(),
            disk: Arc::new(checkpoint),
        };
        *self.0.database.write() = Arc::new(database);
        let revision = Reader(&*tables).summary()?.revision;
        let applied = tables.stands_for.place.map_or(0, |place| place.index);
        drop(tables);
        self.tell(Some(revision), applied);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types<E::Runtime>, SnapshotData>>, io::Error> {
        let checkpoint = Arc::clone(&self.0.tables.read().disk);
        if checkpoint.stands_for.place.is_none() {
            return Ok(None);
        }
        Self::snapshot(checkpoint).map(Some)
    }
}
