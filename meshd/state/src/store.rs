//! The embedded table file of one VDC.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use vdc::{Hash, InviteId};

use crate::StateError;
use crate::file::sync_directory;

/// Encoded records by hash.
const RECORDS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("records");
/// Encoded invite states by invite id.
const INVITES: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("invites");
/// Small values by name.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Page cache in bytes; a 1,000-node roster is read once, at start.
const CACHE_BYTES: usize = 2 << 20;

/// One durable change: all of it or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub put_records: Vec<(Hash, Vec<u8>)>,
    pub remove_records: Vec<Hash>,
    pub put_invites: Vec<(InviteId, Vec<u8>)>,
    pub remove_invites: Vec<InviteId>,
    pub put_meta: Vec<(&'static str, Vec<u8>)>,
}

impl Changes {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The tables of one VDC.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// `None` after a failed write: the engine refuses further work on that handle, so the next use opens a new one.
    database: Option<Database>,
}

impl Store {
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let mut store = Self { path: path.to_owned(), database: None };
        store.database()?;
        Ok(store)
    }

    fn database(&mut self) -> Result<&Database, StateError> {
        if self.database.is_none() {
            let database =
                Database::builder().set_cache_size(CACHE_BYTES).create(&self.path).map_err(|e| self.error(e.into()))?;
            std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o600))
                .map_err(|e| StateError::io("chmod", &self.path, e))?;
            sync_directory(self.path.parent().unwrap_or(Path::new("/")))?;
            self.database = Some(database);
        }
        Ok(self.database.as_ref().expect("opened above"))
    }

    fn error(&self, error: redb::Error) -> StateError {
        match error {
            redb::Error::Io(source) => StateError::io("write", &self.path, source),
            source => StateError::Store { path: self.path.clone(), source: Box::new(source) },
        }
    }

    /// Makes `changes` durable; on return they survive power loss.
    ///
    /// # Errors
    /// [`StateError`]; then nothing of `changes` was kept.
    pub fn commit(&mut self, changes: &Changes) -> Result<(), StateError> {
        if changes.is_empty() {
            return Ok(());
        }
        let database = self.database()?;
        let result = write(database, changes);
        result.map_err(|e| {
            self.database = None;
            self.error(e)
        })
    }

    /// All records, in the order of their hashes.
    ///
    /// # Errors
    /// [`StateError::Store`] if the file is damaged.
    pub fn records(&mut self) -> Result<Vec<Vec<u8>>, StateError> {
        let result = read_all(self.database()?, RECORDS, |_| ());
        Ok(result.map_err(|e| self.error(e))?.into_iter().map(|(_, bytes)| bytes).collect())
    }

    /// All invite states with their ids.
    ///
    /// # Errors
    /// [`StateError::Store`] if the file is damaged.
    pub fn invites(&mut self) -> Result<Vec<(InviteId, Vec<u8>)>, StateError> {
        let result = read_all(self.database()?, INVITES, InviteId);
        result.map_err(|e| self.error(e))
    }

    /// One small value.
    ///
    /// # Errors
    /// [`StateError::Store`] if the file is damaged.
    pub fn meta(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let result = read_meta(self.database()?, name);
        result.map_err(|e| self.error(e))
    }
}

fn write(database: &Database, changes: &Changes) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut records = transaction.open_table(RECORDS)?;
        for hash in &changes.remove_records {
            records.remove(hash.0)?;
        }
        for (hash, bytes) in &changes.put_records {
            records.insert(hash.0, bytes.as_slice())?;
        }
        let mut invites = transaction.open_table(INVITES)?;
        for id in &changes.remove_invites {
            invites.remove(id.0)?;
        }
        for (id, bytes) in &changes.put_invites {
            invites.insert(id.0, bytes.as_slice())?;
        }
        let mut meta = transaction.open_table(META)?;
        for (name, bytes) in &changes.put_meta {
            meta.insert(*name, bytes.as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn read_all<const N: usize, K>(
    database: &Database,
    table: TableDefinition<'static, [u8; N], &'static [u8]>,
    key: impl Fn([u8; N]) -> K,
) -> Result<Vec<(K, Vec<u8>)>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(table) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut rows = Vec::new();
    for row in table.iter()? {
        let (k, v) = row?;
        rows.push((key(k.value()), v.value().to_vec()));
    }
    Ok(rows)
}

fn read_meta(database: &Database, name: &str) -> Result<Option<Vec<u8>>, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(META) {
        Ok(table) => Ok(table.get(name)?.map(|v| v.value().to_vec())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
