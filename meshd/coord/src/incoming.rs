//! A snapshot that is being received: rows in a file of its own, until all are there and proven.

use std::io;
use std::sync::Arc;

use openraft::alias::SnapshotOf;
use openraft::storage::Snapshot;
use redb::{Database, Durability};
use vdc::{Hash, Key};
use vdc_coord::Table;

use crate::env::{Disk as _, Env, guarded};
use crate::network::sum;
use crate::state::{Checkpoint, SnapshotData, open_database, write_rows};
use crate::types::{SnapshotExt as _, Types};
use vdc_coord::wire::{Cursor, Reply, SnapshotForm, SnapshotRow, Trouble};

/// A snapshot on its way here.
#[derive(Debug)]
pub(crate) struct Incoming {
    from: Key,
    form: SnapshotForm,
    file: String,
    database: Arc<Database>,
    have: Option<Cursor>,
}

fn failed(error: &io::Error) -> Trouble {
    Trouble::Unavailable { why: format!("the snapshot cannot be kept: {error}") }
}

impl Incoming {
    /// Begins, or goes on with what was cut off. Says what is here already.
    pub(crate) async fn begin<E: Env>(
        slot: &mut Option<Self>,
        env: &E,
        files: &str,
        from: Key,
        form: SnapshotForm,
    ) -> Result<Reply, Trouble> {
        if let Some(incoming) = slot.as_ref().filter(|incoming| incoming.from == from && incoming.form == form) {
            return Ok(Reply::Snapshot { have: incoming.have.clone() });
        }
        *slot = None;
        let file = format!("{files}.incoming");
        let (opener, name) = (env.clone(), file.clone());
        let opened = guarded(env.disk(), move || {
            opener.disk().remove(&name)?;
            open_database(&opener, &name)
        });
        let database = Arc::new(opened.await.map_err(|error| failed(&error))?);
        *slot = Some(Self { from, form, file, database, have: None });
        Ok(Reply::Snapshot { have: None })
    }

    fn of<'a>(slot: &'a mut Option<Self>, from: Key, form: &SnapshotForm) -> Result<&'a mut Self, Trouble> {
        let found = slot.as_mut().filter(|incoming| incoming.from == from && incoming.form == *form);
        found.ok_or_else(|| Trouble::Unavailable { why: "the snapshot must begin again".into() })
    }

    /// Takes rows that come behind those that are here.
    pub(crate) async fn rows<E: Env>(
        slot: &mut Option<Self>,
        env: &E,
        from: Key,
        form: &SnapshotForm,
        behind: Option<Cursor>,
        rows: Vec<SnapshotRow>,
    ) -> Result<Reply, Trouble> {
        let incoming = Self::of(slot, from, form)?;
        let ordered = rows.windows(2).all(|pair| matches!(pair, [a, b] if a.at < b.at));
        let behind_all = rows.first().is_none_or(|first| Some(&first.at) > behind.as_ref());
        if behind != incoming.have || !ordered || !behind_all {
            // A piece that came twice, or another one was lost: the sender goes on from here.
            return Ok(Reply::Snapshot { have: incoming.have.clone() });
        }
        if rows.iter().any(|row| Table::from_number(row.at.table).is_none()) {
            return Err(Trouble::Malformed { why: "a row of no table".into() });
        }
        let last = rows.last().map(|row| row.at.clone());
        let database = Arc::clone(&incoming.database);
        let written = guarded(env.disk(), move || {
            let rows = rows.iter().filter_map(|row| {
                let table = Table::from_number(row.at.table)?;
                Some((table, &row.at.key[..], Some(&row.value[..])))
            });
            write_rows(&database, rows, None, Durability::None)
        });
        if let Err(error) = written.await {
            *slot = None;
            return Err(failed(&error));
        }
        incoming.have = last.or(behind);
        Ok(Reply::Snapshot { have: incoming.have.clone() })
    }

    /// Checks that all rows are here, and gives the snapshot to be installed.
    pub(crate) async fn end<E: Env>(
        slot: &mut Option<Self>,
        env: &E,
        from: Key,
        form: &SnapshotForm,
        rows: u64,
        hash: Hash,
    ) -> Result<SnapshotOf<Types<E::Runtime>, SnapshotData>, Trouble> {
        Self::of(slot, from, form)?;
        let Some(incoming) = slot.take() else { return Err(failed(&io::Error::other("it is not there"))) };
        let meta = form.meta::<E::Runtime>().map_err(|error| Trouble::Malformed { why: error.to_string() })?;
        let (database, stands_for) = (incoming.database, form.clone());
        let checked = guarded(env.disk(), move || {
            let found = sum(&Checkpoint::read(&database)?)?;
            if found != (rows, hash) {
                return Ok(false);
            }
            write_rows(&database, std::iter::empty(), Some(&stands_for), Durability::Immediate)?;
            Ok(true)
        });
        if !checked.await.map_err(|error| failed(&error))? {
            return Err(Trouble::Unavailable { why: "the snapshot arrived damaged and must begin again".into() });
        }
        Ok(Snapshot { meta, snapshot: SnapshotData::Received(incoming.file) })
    }
}
