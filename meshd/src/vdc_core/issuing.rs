//! Signing records in this node's name, and the founding of a VDC.

use meshd_state::{Changes, KeyKind, StateDir};
use vdc::roster::issue::{self, Draft, IssueError};
use vdc::roster::{Outcome, View};
use vdc::{Hash, Ipv4Block, Key, Name, SigningKey, UnixTime, VdcId};
use vdc_api::{ApiError, ErrorCode};

use super::Core;
use crate::entropy::random;
use crate::error::storage;

/// In whose name a record is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signer {
    /// The node's own key, with whatever rights were delegated to it.
    Node,
    /// The node's key if its rights suffice, otherwise the owner key if it is kept here.
    NodeOrOwner,
    /// The owner key if it is kept here, otherwise the node's.
    OwnerOrNode,
}

impl Core {
    /// Signs what `draft` makes of the current view, inserts it, and shows it in the view. Not yet durable: call inside
    /// [`Core::transact`].
    pub(super) fn issue(
        &mut self,
        signer: Signer,
        draft: impl Fn(&View, &Key) -> Result<Draft, IssueError>,
    ) -> Result<Hash, ApiError> {
        let owner = self.secrets.owner.as_ref();
        let keys: Vec<&SigningKey> = match signer {
            Signer::Node => vec![&self.secrets.node],
            Signer::NodeOrOwner => std::iter::once(&self.secrets.node).chain(owner).collect(),
            Signer::OwnerOrNode => owner.into_iter().chain(std::iter::once(&self.secrets.node)).collect(),
        };
        let mut refusal = None;
        for key in keys {
            match draft(&self.view, &key.public()) {
                Ok(draft) => {
                    let number = self.roster.next_number(&key.public());
                    let record = draft.sign(&self.view.vdc, key, number, &[]);
                    let hash = record.hash();
                    return match self.roster.insert(record) {
                        Outcome::New => {
                            self.review();
                            Ok(hash)
                        }
                        Outcome::Known => Ok(hash),
                        Outcome::Superseded => Err(ApiError::new(ErrorCode::Conflict, "a newer record exists already")
                            .hint("look at the current state and try again")),
                        Outcome::Refused(reason) => {
                            Err(ApiError::refused("this node's records do not allow it").cause(reason.to_string()))
                        }
                    };
                }
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(refused(&refusal.expect("at least one key was tried")))
    }

    /// Signs one record and makes it durable and known.
    pub(super) fn publish(
        &mut self,
        signer: Signer,
        draft: impl Fn(&View, &Key) -> Result<Draft, IssueError>,
    ) -> Result<Hash, ApiError> {
        self.transact(|core| {
            let hash = core.issue(signer, draft)?;
            Ok((hash, vec![hash], Changes::default()))
        })
    }
}

/// Only the owners may do it, and no owner key is here.
pub(super) fn owner_key_needed(what: &str) -> ApiError {
    ApiError::new(ErrorCode::OwnerKeyNeeded, format!("{what} takes an owner key, and none is kept on this node"))
        .hint("give the recovery key from the safe with `--key-file FILE`, or `--key-file -` to read it from stdin")
}

/// Why this node may not sign something. The text of an [`IssueError`] is `what; what to do`.
pub(super) fn refused(error: &IssueError) -> ApiError {
    if let IssueError::RankTooLow { rank: issue::RANK_ADMIN, .. } = error {
        return owner_key_needed("revoking an admin");
    }
    let text = error.to_string();
    let code = match error {
        IssueError::UnknownSite(_)
        | IssueError::UnknownNode(_)
        | IssueError::UnknownBlock(_)
        | IssueError::NotFounded { .. } => ErrorCode::NotFound,
        IssueError::SiteExists(_) | IssueError::Founded { .. } => ErrorCode::Conflict,
        _ => ErrorCode::Refused,
    };
    match text.split_once("; ") {
        Some((what, hint)) => ApiError::new(code, what).hint(hint),
        None => ApiError::new(code, text),
    }
}

/// A VDC that was just founded on disk.
#[derive(Debug)]
pub(crate) struct NewVdc {
    pub(crate) dir: meshd_state::VdcDir,
    pub(crate) id: VdcId,
    /// Seed of the owner key for the safe; shown once.
    pub(crate) recovery: SigningKey,
    pub(crate) owners: u8,
    pub(crate) threshold: u8,
}

/// What a new VDC is called and made of.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) name: Name,
    pub(crate) site: Name,
    pub(crate) node: Name,
    pub(crate) ipv4: Option<Ipv4Block>,
    pub(crate) now: UnixTime,
}

/// Founds a VDC: draws the keys, signs the first records, and writes all of it to the state directory, or nothing.
///
/// # Errors
/// [`ApiError`] if the local name is taken or the state directory cannot be written.
pub(crate) fn found(state: &StateDir, wish: Wish) -> Result<NewVdc, ApiError> {
    let (owner, recovery, node) =
        (SigningKey::from_seed(&random()), SigningKey::from_seed(&random()), SigningKey::from_seed(&random()));
    let wg_secret = random();
    let secrets = vdc::invite::NodeSecrets::from_seeds(&node.seed(), &wg_secret);
    let founded = issue::found(issue::Founding {
        name: wish.name.clone(),
        site: wish.site,
        node_name: wish.node,
        owner: &owner,
        recovery: recovery.public(),
        node: &node,
        wg: secrets.wg_public(),
        nonce: Hash(random()),
        ipv4: wish.ipv4,
        now: wish.now,
    });
    let write = || {
        let dir = state.begin(&wish.name)?;
        dir.write_key(KeyKind::Node, &node.seed())?;
        dir.write_key(KeyKind::WireGuard, &wg_secret)?;
        dir.write_key(KeyKind::Owner, &owner.seed())?;
        let put_records = founded.records.iter().map(|record| (record.hash(), record.encode())).collect();
        dir.open_store()?.commit(&Changes { put_records, ..Changes::default() })?;
        dir.publish()
    };
    let dir = write().map_err(|error| storage(&error))?;
    Ok(NewVdc { dir, id: *founded.roster.vdc_id(), recovery, owners: 2, threshold: 1 })
}
