//! What a group survives, in plain words.

use std::collections::BTreeSet;

use vdc::SiteNumber;

use super::{Candidate, GroupKind, Membership, majority, seats};

/// What a group survives now, and what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redundancy {
    pub voters: usize,
    /// Voters that answer.
    pub answering: usize,
    /// Voters that must answer.
    pub needed: usize,
    /// Voters that a group of these nodes should have.
    pub seats: usize,
    /// Nodes that may serve the group.
    pub nodes: usize,
    /// Sites of which no voter may be missed: without one of them the group stops. Empty if it stands still already.
    pub vital_sites: Vec<SiteNumber>,
    /// Sites at which voters answer.
    pub voting_sites: usize,
    /// The group survives less than a group of these nodes should.
    pub below_table: bool,
}

/// What a group survives, by who answers its leader.
#[must_use]
pub fn redundancy(kind: GroupKind, candidates: &[Candidate], membership: &Membership) -> Redundancy {
    let voters = membership.voters.len();
    let needed = majority(voters);
    let at_work: Vec<_> = candidates.iter().filter(|c| c.answers() && membership.voters.contains(&c.key)).collect();
    let answering = at_work.len();
    let sites: BTreeSet<_> = at_work.iter().map(|c| c.site).collect();
    let without = |site| at_work.iter().filter(|c| c.site != site).count();
    let is_vital = |site: &SiteNumber| kind == GroupKind::Vdc && answering >= needed && without(*site) < needed;
    let vital_sites: Vec<_> = sites.iter().copied().filter(is_vital).collect();
    let seats = seats(kind, candidates);
    // Any one of three sites may go dark; of two, the one with fewer voters.
    let all_sites: BTreeSet<_> = candidates.iter().map(|c| c.site).collect();
    let vital_max = match (kind, all_sites.len()) {
        (GroupKind::Site, _) | (GroupKind::Vdc, 0 | 1) => usize::MAX,
        (GroupKind::Vdc, 2) => 1,
        (GroupKind::Vdc, _) if seats > 1 => 0,
        (GroupKind::Vdc, _) => 1,
    };
    let below_table = answering < needed + (seats - majority(seats)) || vital_sites.len() > vital_max;
    Redundancy {
        voters,
        answering,
        needed,
        seats,
        nodes: candidates.len(),
        vital_sites,
        voting_sites: sites.len(),
        below_table,
    }
}

impl Redundancy {
    /// Whether the group decides anything now.
    #[must_use]
    pub fn works(&self) -> bool {
        self.answering >= self.needed
    }

    /// How many voters may fail now, whichever they are.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.answering.saturating_sub(self.needed)
    }

    /// Tells it; `site` says what a site is called.
    #[must_use]
    pub fn words(&self, site: impl Fn(SiteNumber) -> String) -> String {
        let Self { voters, answering, needed, .. } = self;
        let mut words = match (self.works(), self.spare()) {
            (false, _) => format!(
                "stands still: {answering} of {voters} voters answer and {needed} are needed; \
                 if the others are lost for good, see `meshctl coord recover`"
            ),
            (true, 0) if *voters == 1 => "no redundancy: without its one voter it stands still".to_owned(),
            (true, 0) => format!("none may fail now: {answering} of {voters} voters answer and {needed} are needed"),
            (true, spare) if answering == voters => format!("any {} of {voters} may fail now", count(spare)),
            (true, spare) => format!(
                "any {} of the {answering} that answer may fail now; silent: {} of {voters}",
                count(spare),
                voters - answering
            ),
        };
        if self.works() && self.voting_sites > 1 {
            let names: Vec<_> = self.vital_sites.iter().map(|number| site(*number)).collect();
            words += &match names.as_slice() {
                [] => format!("; any one of {} sites may go dark", self.voting_sites),
                [one] => format!("; every site but {one} may go dark"),
                many => format!("; neither {} may go dark", many.join(" nor ")),
            };
        }
        if self.below_table {
            let Self { nodes, seats, .. } = self;
            words += &match (nodes, seats) {
                (_, 1) => "; below the table: its one voter should answer".to_owned(),
                (nodes, seats) => {
                    format!("; below the table: of {nodes} nodes, {seats} should vote and answer")
                }
            };
        }
        words
    }
}

fn count(number: usize) -> String {
    match number {
        1 => "one".to_owned(),
        2 => "two".to_owned(),
        more => more.to_string(),
    }
}
