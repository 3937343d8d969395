//! Groups that do not begin empty: they go on from what one node holds of an earlier group, or from what a backup holds.
//!
//! The new group's files are made aside and renamed when they are whole, those of the rows last: a group whose rows are there
//! can be opened, one whose rows are not there is made again. The old group's files stay.

use std::io;

use openraft::RaftLogReader as _;
use openraft::storage::{RaftLogStorage, RaftStateMachine as _};
use vdc::Key;
use vdc_coord::wire::{MembershipForm, Place, StoredMembershipForm, VoteForm};
use vdc_coord::{Machine, Refusal, Revision, RowsMut as _, Table};

use crate::env::{Disk as _, Env, guarded};
use crate::group::GroupError;
use crate::journal::beside;
use crate::log::LogStore;
use crate::network::piece;
use crate::state::StateStore;
use crate::types::{PlaceExt as _, VoteExt as _};

/// How far a group leaps beyond the last revision that is known: what was lost, or is done by members that have not heard yet,
/// stays below.
pub const LEAP: u64 = 1 << 32;
/// Entries that are applied at a time.
const ENTRIES_AT_ONCE: u64 = 256;

/// What a node holds of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Of the last entry in its log.
    pub term: u64,
    pub index: u64,
    pub revision: Revision,
}

/// Whether the files of a group are here.
///
/// # Errors
/// Those of the disk.
pub async fn exists<E: Env>(env: &E, files: &str) -> io::Result<bool> {
    let (disk, names) = (env.disk().clone(), [state_file(files), log_file(files)]);
    env.disk()
        .run(move || {
            for name in names {
                if !disk.exists(&name)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
}

/// Removes the files of a group, if there are any.
///
/// # Errors
/// Those of the disk.
pub async fn remove<E: Env>(env: &E, files: &str) -> io::Result<()> {
    let names = [state_file(files), log_file(files), format!("{files}.incoming"), aside(files)].map(|name| {
        let log = log_file(&name);
        [beside(&log), name, log]
    });
    let disk = env.disk().clone();
    env.disk().run(move || names.iter().flatten().try_for_each(|name| disk.remove(name))).await
}

pub(crate) fn state_file(files: &str) -> String {
    format!("{files}.state")
}

pub(crate) fn log_file(files: &str) -> String {
    format!("{files}.log")
}

fn aside(files: &str) -> String {
    format!("{files}.making")
}

/// Makes the files of a group that goes on from what is here of an older one, which must be closed: its rows, and all that its
/// log holds behind them, committed or not. `node` is its one voter. Says how far the older one was.
///
/// # Errors
/// [`GroupError`] if the older group's files are not here or damaged, or the disk fails.
pub async fn succeed<E: Env>(env: &E, older: &str, files: &str, node: Key) -> Result<Holding, GroupError> {
    if !exists(env, older).await.map_err(GroupError::Files)? {
        let error = io::Error::new(io::ErrorKind::NotFound, format!("{} is not here", state_file(older)));
        return Err(GroupError::Files(error));
    }
    make(env, files, node, async |new| {
        let (rows, last, vote) = whole(env, older).await?;
        let revision = rows.summary()?.revision;
        let checkpoint = rows.checkpoint().await?;
        let mut behind = None;
        loop {
            let (source, cursor) = (std::sync::Arc::clone(&checkpoint), behind.clone());
            let rows = guarded(env.disk(), move || piece(&source, cursor.as_ref())).await?;
            let Some(last) = rows.last() else { break };
            behind = Some(last.at.clone());
            new.change(|tables| {
                rows.into_iter().try_for_each(|row| match Table::from_number(row.at.table) {
                    Some(table) => tables.put(table, &row.at.key, row.value.into()),
                    None => Ok(()),
                })
            })?;
            new.write_if_large().await?;
        }
        new.change(|tables| Machine::new(tables)?.leap(Revision(revision.0.saturating_add(LEAP))).map(drop))?;
        let term = last.map_or(0, |last| last.term);
        let holding = Holding { term, index: last.map_or(0, |last| last.index), revision };
        Ok((
            Place { term: vote.map_or(0, |vote| vote.term).max(term) + 1, leader: node, index: holding.index + 1 },
            holding,
        ))
    })
    .await
}

/// Makes the files of a group that begins with the rows of a backup, at a revision that lies beyond `last`. `rows` gives them
/// one by one. `node` is its one voter. Says at which revision it begins.
///
/// # Errors
/// [`GroupError`] if a row cannot be kept, or `rows` or the disk fails.
pub async fn fill<E: Env>(
    env: &E,
    files: &str,
    node: Key,
    last: Revision,
    mut rows: impl FnMut() -> io::Result<Option<(Vec<u8>, Vec<u8>)>> + Send,
) -> Result<Revision, GroupError> {
    make(env, files, node, async |new| {
        let revision = Revision(last.0.saturating_add(LEAP));
        new.change(|tables| Machine::new(tables)?.leap(revision).map(drop))?;
        loop {
            let mut refused: Option<Refusal> = None;
            let mut more = true;
            new.change(|tables| {
                let mut machine = Machine::new(tables)?;
                for _ in 0..1_000 {
                    let Some((key, value)) = rows()? else {
                        more = false;
                        break;
                    };
                    refused = machine.fill(&key, &value)?.err();
                    if refused.is_some() {
                        break;
                    }
                }
                machine.settle()
            })?;
            if let Some(refusal) = refused {
                return Err(io::Error::new(io::ErrorKind::InvalidData, refusal.to_string()));
            }
            if !more {
                break;
            }
            new.write_if_large().await?;
        }
        Ok((Place { term: 1, leader: node, index: 1 }, revision))
    })
    .await
}

/// Makes rows and log aside; `rows` fills the one and says where the other begins.
async fn make<E: Env, T>(
    env: &E,
    files: &str,
    node: Key,
    rows: impl AsyncFnOnce(&StateStore<E>) -> io::Result<(Place, T)>,
) -> Result<T, GroupError> {
    let aside = aside(files);
    let made = async {
        remove(env, &aside).await?;
        let state = StateStore::open(env.clone(), state_file(&aside)).await?;
        let (place, value) = rows(&state).await?;
        let membership = MembershipForm { voters: vec![vec![node]], members: vec![node] };
        state.stand_for(place, StoredMembershipForm { place: Some(place), membership });
        state.checkpoint().await?;
        drop(state);
        let mut log = LogStore::open(env.clone(), log_file(&aside)).await?;
        log.purge(place.id()).await?;
        log.save_vote(&VoteForm { term: place.term, leader: node, committed: true }.vote()).await?;
        log.close().await;
        let (disk, from, to) = (env.disk().clone(), aside, files.to_owned());
        let renamed = env.disk().run(move || {
            disk.rename(&log_file(&from), &log_file(&to))?;
            disk.rename(&state_file(&from), &state_file(&to))
        });
        renamed.await?;
        Ok(value)
    };
    made.await.map_err(GroupError::Files)
}

/// The rows of a group with all that its log holds, where that ends, and the vote of the node.
async fn whole<E: Env>(env: &E, files: &str) -> io::Result<(StateStore<E>, Option<Place>, Option<VoteForm>)> {
    let mut state = StateStore::open(env.clone(), state_file(files)).await?;
    let mut log = LogStore::open(env.clone(), log_file(files)).await?;
    let (applied, _) = state.applied_state().await?;
    let last = log.get_log_state().await?.last_log_id.as_ref().map(Place::of);
    let mut next = applied.map_or(0, |id| id.index + 1);
    let end = last.map_or(0, |last| last.index + 1);
    while next < end {
        let entries = log.try_get_log_entries(next..end.min(next + ENTRIES_AT_ONCE)).await?;
        let Some(last) = entries.last() else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the log ends before entry {next}")));
        };
        next = Place::of(&openraft::entry::RaftEntry::log_id(last)).index + 1;
        state.apply_some(entries.into_iter().map(|entry| (entry, None)).collect())?;
    }
    let vote = log.read_vote().await?.as_ref().map(VoteForm::of);
    log.close().await;
    let applied = applied.as_ref().map(Place::of);
    Ok((state, last.max(applied), vote))
}
