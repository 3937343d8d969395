//! Invites of a site's registrars, in the site's group: any of them redeems one, and none is redeemed more often than it may.
//!
//! At `invite/ID` stands the [`InviteState`]. A registrar that made invites before its site had a group moves them here, once; from
//! then on only what stands here counts. Each registrar keeps a copy of all in its VDC's task, to show them.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use meshd_coord::ClientError;
use vdc::InviteId;
use vdc::invite::InviteState;
use vdc::record::Home;
use vdc_coord::{Compare, Condition, Op, Revision, Transaction};

use super::Coord;

pub(super) const PREFIX: &[u8] = b"invite/";
/// What follows all invites.
const END: &[u8] = b"invite0";
/// How long a joiner's redemption may wait for the group; the joiner itself waits longer.
const LIMIT: Duration = Duration::from_secs(8);
/// Registrars that decide about one invite at the same moment: how often one of them looks again.
const TRIES: usize = 16;
/// Rows of a page.
const PAGE_ROWS: usize = 500;
/// How often invites are looked at again without a reason.
const AGAIN: Duration = Duration::from_secs(30);

/// Why an invite was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedeemError<E> {
    #[error("there is no such invite")]
    Unknown,
    #[error("it was refused")]
    Refused(E),
    #[error("the site's coordination group cannot decide: {0}")]
    Group(#[from] ClientError),
    #[error("the invite in the group is damaged: {0}")]
    Damaged(#[from] vdc::codec::DecodeError),
}

fn key_of(id: &InviteId) -> Vec<u8> {
    [PREFIX, id.to_string().as_bytes()].concat()
}

fn put(id: &InviteId, condition: Condition, state: &InviteState) -> Transaction {
    let key: minicbor::bytes::ByteVec = key_of(id).into();
    Transaction {
        compares: vec![Compare { key: key.clone(), condition }],
        success: vec![Op::Put { key, value: state.encode().into(), lease: None }],
        failure: vec![],
    }
}

impl Coord {
    /// Puts an invite into a home's group, unless it is there. Says whether it was not.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn put_invite(&self, home: Home, state: &InviteState) -> Result<bool, ClientError> {
        let done = self.client_soon(home).await?.transact(put(&state.id, Condition::Absent, state), LIMIT).await?;
        Ok(done.succeeded)
    }

    /// Has `decide` look at an invite as it is, and keeps what it makes of it if nobody was faster; none leaves it as it is. Returns
    /// the invite as it is then.
    ///
    /// # Errors
    /// [`RedeemError`].
    pub(crate) async fn change_invite<E, F>(
        &self,
        home: Home,
        id: &InviteId,
        decide: impl Fn(InviteState) -> F,
    ) -> Result<InviteState, RedeemError<E>>
    where
        F: Future<Output = Result<Option<InviteState>, E>>,
    {
        let client = self.client_soon(home).await?;
        for _ in 0..TRIES {
            let (row, _) = client.get(&key_of(id), LIMIT).await?;
            let row = row.ok_or(RedeemError::Unknown)?;
            let state = InviteState::decode(&row.value)?;
            let Some(changed) = decide(state.clone()).await.map_err(RedeemError::Refused)? else { return Ok(state) };
            let done = client.transact(put(id, Condition::Modified(row.modified), &changed), LIMIT).await?;
            if done.succeeded {
                return Ok(changed);
            }
        }
        Err(ClientError::Unavailable { last: "too many decide about the invite at once".into() }.into())
    }

    /// Has the VDC's task know all invites as they are in a home's group.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) fn learn_invites(&self, home: Home) -> BoxFuture<'_, Result<(), ClientError>> {
        // In a box, or the compiler gives up on the depth of its type.
        Box::pin(async move {
            drop(self.client_soon(home).await?);
            follow(self, home).await.map(drop)
        })
    }

    /// All invites in a home's group, and as of when.
    ///
    /// # Errors
    /// [`ClientError`].
    async fn invites(&self, home: Home) -> Result<(BTreeMap<InviteId, InviteState>, Revision), ClientError> {
        let client = self.client(home)?;
        let mut invites = BTreeMap::new();
        let (mut from, mut at) = (PREFIX.to_vec(), None);
        loop {
            let page = client.range(&from, END, PAGE_ROWS, at, LIMIT).await?;
            let states = page.rows.iter().filter_map(|(_, row)| InviteState::decode(&row.value).ok());
            invites.extend(states.map(|state| (state.id, state)));
            match page.rows.last() {
                Some((last, _)) if page.more => {
                    from = [last.as_slice(), b"\0"].concat();
                    at = Some(page.revision);
                }
                _ => return Ok((invites, page.revision)),
            }
        }
    }
}

/// Moves a registrar's invites into its site's group, and tells the VDC's task of all that stand there.
pub(super) async fn run(coord: Coord) {
    let mut views = coord.views();
    loop {
        let view = std::sync::Arc::clone(&views.borrow_and_update());
        let own = coord.own_key();
        let home = coord.own_site(&view).map(Home::Site).filter(|home| coord.is_founded(*home));
        let is_registrar = |home: &Home| match home {
            Home::Vdc => false,
            Home::Site(number) => view.registrars_for(*number).iter().any(|registrar| registrar.key == own),
        };
        let mut seen = None;
        if let Some(home) = home.filter(is_registrar) {
            match follow(&coord, home).await {
                Ok(revision) => seen = Some((home, revision)),
                Err(error) => tracing::debug!(?home, %error, "invites cannot be read"),
            }
        }
        let changed = async {
            match seen.and_then(|(home, revision)| Some((coord.client(home).ok()?, revision))) {
                Some((client, revision)) => drop(client.watch(PREFIX, END, Revision(revision.0 + 1)).next().await),
                None => std::future::pending().await,
            }
        };
        // cancel-safe: what changed is read again.
        tokio::select! {
            moved = views.changed() => {
                if moved.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            () = changed => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Moves what is kept here, reads what is in the group, and tells the VDC's task.
async fn follow(coord: &Coord, home: Home) -> Result<Revision, ClientError> {
    let gone = |error: vdc_api::ApiError| ClientError::Unavailable { last: error.message };
    let kept = coord.0.core.with(|core| core.kept_invites()).await.map_err(gone)?;
    let mut moved: Vec<InviteId> = vec![];
    for state in &kept {
        // One that is there already was moved before a crash, and may have been redeemed since.
        coord.put_invite(home, state).await?;
        moved.push(state.id);
    }
    let (invites, revision) = coord.invites(home).await?;
    coord.0.core.with(move |core| core.invites_of_group(invites, &moved)).await.map_err(gone)?;
    Ok(revision)
}
