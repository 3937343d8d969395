//! Where a machine keeps what it knows: ordered maps of bytes, on disk or in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::{Bound, ControlFlow};

/// The maps of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// One row: the [`crate::Summary`].
    Meta,
    /// [`crate::Row`]s by key.
    Rows,
    /// [`crate::Event`]s by revision and key.
    Events,
    /// [`crate::Lease`]s by id.
    Leases,
    /// By lease and key: nothing.
    LeaseKeys,
    /// By the time at which it ends and lease: nothing.
    LeaseEnds,
    /// Clients by id.
    Clients,
    /// By the time of its last request and client: nothing.
    ClientUses,
    /// Answers by client and number.
    Answers,
}

impl Table {
    /// All of them, in the order in which snapshots carry them.
    pub const ALL: [Self; 9] = [
        Self::Meta,
        Self::Rows,
        Self::Events,
        Self::Leases,
        Self::LeaseKeys,
        Self::LeaseEnds,
        Self::Clients,
        Self::ClientUses,
        Self::Answers,
    ];

    /// Its name on disk.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Rows => "rows",
            Self::Events => "events",
            Self::Leases => "leases",
            Self::LeaseKeys => "lease-keys",
            Self::LeaseEnds => "lease-ends",
            Self::Clients => "clients",
            Self::ClientUses => "client-uses",
            Self::Answers => "answers",
        }
    }

    /// Its number in messages.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What a scan is told about each row; breaking ends it.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Ordered maps that can be read.
pub trait Rows {
    type Error;

    /// # Errors
    /// Those of the disk.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error>;

    /// Visits the rows from `from` up to before `to`, ascending; an empty `to` is the end.
    ///
    /// # Errors
    /// Those of the disk.
    fn scan(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), Self::Error>;
}

/// Ordered maps that can be changed.
pub trait RowsMut: Rows {
    /// # Errors
    /// Those of the disk.
    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) -> Result<(), Self::Error>;

    /// # Errors
    /// Those of the disk.
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), Self::Error>;
}

/// All rows in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryRows {
    tables: BTreeMap<Table, BTreeMap<Vec<u8>, Vec<u8>>>,
}

/// From the first up to the second.
pub type Between<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The bounds of a scan; none where nothing can lie between them.
#[must_use]
pub fn bounds<'a>(from: &'a [u8], to: &'a [u8]) -> Option<Between<'a>> {
    if to.is_empty() {
        Some((Bound::Included(from), Bound::Unbounded))
    } else if from < to {
        Some((Bound::Included(from), Bound::Excluded(to)))
    } else {
        None
    }
}

impl Rows for MemoryRows {
    type Error = Infallible;

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.tables.get(&table).and_then(|rows| rows.get(key)).cloned())
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), Infallible> {
        let (Some(rows), Some(bounds)) = (self.tables.get(&table), bounds(from, to)) else { return Ok(()) };
        for (key, value) in rows.range::<[u8], _>(bounds) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl RowsMut for MemoryRows {
    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) -> Result<(), Infallible> {
        self.tables.entry(table).or_default().insert(key.to_vec(), value);
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), Infallible> {
        if let Some(rows) = self.tables.get_mut(&table) {
            rows.remove(key);
        }
        Ok(())
    }
}
