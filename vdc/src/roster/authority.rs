//! Who may say what: ranks, offices, and what remains of a closed issuer.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::record::{Authority, Body, Home};
use crate::{Hash, Key, Office, Signed, VdcId};

/// Ranks from the highest to the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    Owners,
    Admin,
    Registrar,
    Node,
}

/// Which rights an office holds. One office may hold several: the owners may make one key admin and registrar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Powers {
    pub owners: bool,
    pub admin: bool,
    pub registrar: bool,
    pub node: bool,
}

impl Powers {
    pub(super) const OWNERS: Self = Self { owners: true, admin: false, registrar: false, node: false };

    pub(super) fn of(authority: &Authority) -> Self {
        match authority {
            Authority::Admin => Self { admin: true, ..Self::default() },
            Authority::Registrar(_) => Self { registrar: true, ..Self::default() },
        }
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self {
            owners: self.owners || other.owners,
            admin: self.admin || other.admin,
            registrar: self.registrar || other.registrar,
            node: self.node || other.node,
        }
    }

    /// The highest rank held, if any.
    #[must_use]
    pub fn rank(self) -> Option<Rank> {
        let ranks = [
            (self.owners, Rank::Owners),
            (self.admin, Rank::Admin),
            (self.registrar, Rank::Registrar),
            (self.node, Rank::Node),
        ];
        ranks.into_iter().find(|(held, _)| *held).map(|(_, rank)| rank)
    }

    /// Whether a record of this kind may be signed by an office with these powers. Which sites and which times it covers,
    /// and whether a node that signs a block is an operator, is judged by the view.
    #[must_use]
    pub fn allow(self, issuer: &Key, body: &Body) -> bool {
        let high = self.owners || self.admin;
        match body {
            Body::Genesis(_) => false,
            Body::Delegation(d) => match d.authority {
                Authority::Admin => self.owners,
                Authority::Registrar(_) => high,
            },
            Body::Site(_) | Body::Grant(_) | Body::Policy(_) => high,
            Body::Member(_) => self.registrar,
            Body::Contact(c) => self.node && c.node == *issuer,
            Body::Exposure(e) => self.node && e.node == *issuer,
            Body::Tombstone(t) if t.estate.is_some() => high,
            Body::Tombstone(t) => high || self.registrar || (self.node && t.subject == *issuer),
            Body::Block(_) => true,
            Body::Founding(f) => high || (self.registrar && matches!(f.home, Home::Site(_))),
        }
    }
}

/// An office of owners, admins or registrars.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfficeState {
    /// Who holds it; meaningless for the owners' joint office.
    pub(super) key: Key,
    /// What it stands on.
    pub(super) under: Office,
    pub(super) powers: Powers,
    /// Links from the owners' statements (0) to statements of this office.
    pub(super) depth: u8,
    /// Slots in use.
    pub(super) records: u32,
}

impl OfficeState {
    pub(super) fn owners(vdc: &VdcId) -> Self {
        Self { key: Key([0; 32]), under: Office::root(vdc), powers: Powers::OWNERS, depth: 0, records: 0 }
    }
}

/// The parsed and verified estate of one closing.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) records: BTreeMap<Hash, EstateEntry>,
}

/// One record of an estate; `closing` if it is itself a closing.
#[derive(Clone, Debug)]
pub(super) struct EstateEntry {
    pub(super) record: Arc<Signed>,
    pub(super) closing: Option<Arc<Closing>>,
}

impl Closing {
    pub(super) fn heap_bytes(&self) -> usize {
        self.records
            .values()
            .map(|e| {
                e.record.heap_bytes() + size_of::<EstateEntry>() + e.closing.as_ref().map_or(0, |c| c.heap_bytes())
            })
            .sum()
    }
}

/// An issuer that the owners closed, and what all closings leave of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Closed {
    pub(super) remaining: BTreeMap<Hash, EstateEntry>,
}

impl Closed {
    /// The effect of one more closing: only what every estate names remains.
    pub(super) fn intersect(&mut self, closing: &Closing) -> bool {
        let before = self.remaining.len();
        self.remaining.retain(|hash, _| closing.records.contains_key(hash));
        self.remaining.len() != before
    }
}
