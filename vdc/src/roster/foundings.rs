//! What is believed of the coordination groups that nodes were told to make.

use std::collections::BTreeMap;

use super::authority::Rank;
use super::belief::Believed;
use super::judge::Admitting;
use super::view::{Clash, View};
use crate::record::{Body, Founding, Home};
use crate::{Hash, Key, UnixTime};

/// The founding of a coordination group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundingView {
    /// The group's id: the hash of the record.
    pub group: Hash,
    pub home: Home,
    pub serial: u64,
    /// The one node that may make the group.
    pub founder: Key,
    pub created: UnixTime,
    pub issuer: Key,
}

/// Clashes reported of one home. A stolen issuer may sign any number of foundings.
const CLASHES_MAX: usize = 16;

impl FoundingView {
    /// What orders the foundings of one home.
    fn order(&self) -> (u64, Hash) {
        (self.serial, self.group)
    }
}

impl View {
    /// The founding of a home with the highest serial that somebody signed who may, though its founder may not be known
    /// as a member here: what the next one has to succeed.
    #[must_use]
    pub fn founding_head(&self, home: Home) -> Option<&FoundingView> {
        self.founding_heads.get(&home)
    }
}

/// What follows from all foundings.
pub(super) struct Settled {
    /// By home, the one that counts.
    pub(super) effective: BTreeMap<Home, FoundingView>,
    /// By home, the highest, whether or not its founder is a member.
    pub(super) heads: BTreeMap<Home, FoundingView>,
    pub(super) clashes: Vec<Clash>,
}

/// Says which group counts in each home: of those whose issuer had the right and whose founder is a member there, or was
/// one, the group with the highest serial and hash.
///
/// A founder that was revoked or has moved since takes nothing from its group: others carry it on.
pub(super) fn settle(
    statements: &[Believed<'_>],
    admitting: &Admitting<'_>,
    is_member: impl Fn(&Key, Home) -> bool,
) -> Settled {
    let mut foundings: Vec<FoundingView> = statements
        .iter()
        .filter_map(|b| {
            let Body::Founding(Founding { home, serial, founder, created }) = b.record.body else { return None };
            let may =
                b.rank <= Rank::Admin || matches!(home, Home::Site(site) if admitting.covers(b.record, site, created));
            let (group, issuer) = (b.record.hash(), b.record.issuer);
            may.then_some(FoundingView { group, home, serial, founder, created, issuer })
        })
        .collect();
    // Highest first: the first of each home is its head.
    foundings.sort_by_key(|f| std::cmp::Reverse(f.order()));
    let mut settled = Settled { effective: BTreeMap::new(), heads: BTreeMap::new(), clashes: vec![] };
    let mut rivals: BTreeMap<Home, usize> = BTreeMap::new();
    for founding in foundings {
        let home = founding.home;
        settled.heads.entry(home).or_insert_with(|| founding.clone());
        if !is_member(&founding.founder, home) {
            continue;
        }
        let Some(chosen) = settled.effective.get(&home) else {
            settled.effective.insert(home, founding);
            continue;
        };
        let told = rivals.entry(home).or_insert(0);
        if chosen.serial == founding.serial && *told < CLASHES_MAX {
            *told += 1;
            settled.clashes.push(Clash::Founding {
                home,
                serial: chosen.serial,
                group: chosen.group,
                founder: chosen.founder,
                other: founding.group,
                other_founder: founding.founder,
            });
        }
    }
    settled
}
