//! Which stored statements are believed, before time and site are judged.
//!
//! From the owners down: what an office contributes depends only on offices above it, so one pass per rank suffices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Roster;
use super::authority::{Closing, EstateEntry, Powers, Rank};
use crate::record::Body;
use crate::{Hash, Key, Office, Signed};

/// One believed statement and the rank that it was made with.
#[derive(Clone, Copy)]
pub(super) struct Believed<'a> {
    pub(super) record: &'a Arc<Signed>,
    pub(super) closing: Option<&'a Arc<Closing>>,
    pub(super) rank: Rank,
}

/// What an office contributes: its slots, or what closings leave of it.
fn contributions<'a>(
    slots: &BTreeMap<(Office, Key), Vec<Believed<'a>>>,
    closings: &[&'a BTreeMap<Hash, EstateEntry>],
    issuer: &Key,
    under: Office,
    rank: Rank,
) -> Vec<Believed<'a>> {
    let Some((first, rest)) = closings.split_first() else {
        let found = slots.get(&(under, *issuer)).into_iter().flatten();
        return found.map(|b| Believed { rank, ..*b }).collect();
    };
    first
        .iter()
        .filter(|(hash, entry)| {
            entry.record.issuer == *issuer && entry.record.under == under && rest.iter().all(|r| r.contains_key(hash))
        })
        .map(|(_, entry)| Believed { record: &entry.record, closing: entry.closing.as_ref(), rank })
        .collect()
}

/// What is believed.
pub(super) struct Belief<'a> {
    pub(super) statements: Vec<Believed<'a>>,
    /// Registrars that an admin closed.
    pub(super) suspended: BTreeMap<Key, Vec<&'a BTreeMap<Hash, EstateEntry>>>,
}

/// Evaluates belief from the owners down: an office's contribution depends only on offices above it.
pub(super) fn believed(roster: &Roster) -> Belief<'_> {
    let root = Office::root(&roster.vdc);
    let mut slots: BTreeMap<(Office, Key), Vec<Believed<'_>>> = BTreeMap::new();
    let mut statements = Vec::new();
    for (hash, record) in &roster.records {
        let closing = roster.closings.get(hash);
        if record.under != root {
            let slot = slots.entry((record.under, record.issuer)).or_default();
            slot.push(Believed { record, closing, rank: Rank::Node });
        } else if !matches!(record.body, Body::Genesis(_)) {
            statements.push(Believed { record, closing, rank: Rank::Owners });
        }
    }
    let mut suspended: BTreeMap<Key, Vec<&BTreeMap<Hash, EstateEntry>>> = BTreeMap::new();
    // Those to whom the rank above gave a right, by office: first whom the owners chose, then whom the admins chose, then
    // whom the registrars admitted.
    let mut rank_above = statements.clone();
    for rank in [Rank::Admin, Rank::Registrar, Rank::Node] {
        let mut offices: BTreeMap<(Office, Key), Powers> = BTreeMap::new();
        for given in &rank_above {
            let (subject, powers) = match &given.record.body {
                Body::Delegation(d) => (d.subject, Powers::of(&d.authority)),
                Body::Member(m) => (m.node, Powers { node: true, ..Powers::default() }),
                _ => continue,
            };
            let held = offices.entry((given.record.office(&roster.vdc), subject)).or_default();
            *held = held.union(powers);
        }
        // A right that skips ranks waits for its turn, which comes after the closings by the ranks between.
        let (now, later): (Vec<_>, Vec<_>) = offices.into_iter().partition(|(_, p)| p.rank() == Some(rank));
        let later: BTreeSet<_> = later.into_iter().map(|(office, _)| office).collect();
        let waits = |b: &&Believed<'_>| match &b.record.body {
            Body::Delegation(d) => later.contains(&(b.record.office(&roster.vdc), d.subject)),
            Body::Member(m) => later.contains(&(b.record.office(&roster.vdc), m.node)),
            _ => false,
        };
        let mut next: Vec<Believed<'_>> = rank_above.iter().filter(waits).copied().collect();
        for ((under, key), powers) in now {
            let mut closings = Vec::new();
            closings.extend(roster.closed.get(&key).map(|c| &c.remaining));
            if rank > Rank::Admin {
                closings.extend(suspended.get(&key).into_iter().flatten().copied());
            }
            let said = contributions(&slots, &closings, &key, under, rank);
            next.extend(said.into_iter().filter(|b| powers.allow(&key, &b.record.body)));
        }
        for b in next.iter().filter(|b| b.rank == Rank::Admin) {
            if let (Body::Tombstone(t), Some(closing)) = (&b.record.body, b.closing) {
                suspended.entry(t.subject).or_default().push(&closing.records);
            }
        }
        statements.extend(next.iter().filter(|b| b.rank == rank));
        rank_above = next;
    }
    Belief { statements, suspended }
}
