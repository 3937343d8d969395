//! Who votes in a group, and how that is changed: one step at a time, never against a majority.
//!
//! [`plan`] compares the nodes that may serve a group with those that do, and names the next [`Step`], or none if all is as it
//! should be, or cannot be bettered now. The leader asks it again after each step. [`redundancy`] tells in plain words what
//! the group survives.
//!
//! - One voter for 1 or 2 nodes, three from 3 nodes on, five from 5 nodes on; where there are several sites, three voters, or
//!   five from 5 sites on, spread over the sites. Two sites give 2 + 1, or one each and a witness at a third.
//! - A voter that is [`Seen::Dead`] is replaced by a learner that answers and has caught up; without one it stays, as its
//!   return is what the group waits for. Whoever is no longer a candidate goes at once.
//! - Nothing is changed while a majority does not answer, nor if a majority would not answer afterwards.
//! - An even number of voters survives no more than one fewer, so groups pass through it and do not rest there.

use std::collections::{BTreeMap, BTreeSet};

use vdc::{Key, SiteNumber};

mod redundancy;
#[cfg(test)]
mod tests;

pub use redundancy::{Redundancy, redundancy};

/// Learners of one group; the leader sends everything to each of them.
pub const LEARNERS_MAX: usize = 32;

/// What a group decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// One site; its nodes are the candidates.
    Site,
    /// The whole VDC; voters stand at different sites.
    Vdc,
}

/// How the leader hears from a node. How long is long is for the caller to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It has answered for long enough to become a voter.
    Steady,
    /// It answers, not for long yet.
    Fresh,
    /// It does not answer, and may come back.
    Silent,
    /// It has been silent for so long that it is replaced.
    Dead,
}

/// A node that may serve a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub key: Key,
    pub site: SiteNumber,
    pub seen: Seen,
    /// A small box that votes only where there are too few others, or too few sites.
    pub witness: bool,
    /// As a learner, it has what the leader has, but for what is on the way.
    pub caught_up: bool,
}

/// Who serves a group now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    pub voters: BTreeSet<Key>,
    pub learners: BTreeSet<Key>,
    /// Stays a voter where others would do as well.
    pub leader: Option<Key>,
    /// A change is under way: there is no other beside it.
    pub changing: bool,
}

/// One change of who serves a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    AddLearner(Key),
    RemoveLearner(Key),
    /// A learner votes in a voter's place; the voter becomes a learner if it is still a candidate.
    Replace {
        out: Key,
        into: Key,
    },
    /// A learner votes from now on.
    AddVoter(Key),
    /// A voter votes no more; it becomes a learner if it is still a candidate.
    RemoveVoter(Key),
}

impl Candidate {
    fn answers(&self) -> bool {
        matches!(self.seen, Seen::Steady | Seen::Fresh)
    }

    fn is_dead(&self) -> bool {
        self.seen == Seen::Dead
    }

    fn is_steady(&self) -> bool {
        self.seen == Seen::Steady
    }
}

/// How many of `voters` are a majority.
#[must_use]
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Voters that a group of these nodes should have: 1, 3 or 5.
#[must_use]
pub fn seats(kind: GroupKind, candidates: &[Candidate]) -> usize {
    let sites: BTreeSet<_> = candidates.iter().map(|c| c.site).collect();
    let without_witnesses: BTreeSet<_> = candidates.iter().filter(|c| !c.witness).map(|c| c.site).collect();
    let is_spread = kind == GroupKind::Vdc && sites.len() > 1;
    match candidates.len() {
        0..=2 => 1,
        _ if is_spread && without_witnesses.len() < 5 => 3,
        3 | 4 => 3,
        _ => 5,
    }
}

/// The next change, if there should be one. Pure: the same view gives the same step on every node.
#[must_use]
pub fn plan(kind: GroupKind, candidates: &[Candidate], membership: &Membership) -> Option<Step> {
    let view = View { kind, candidates: candidates.iter().map(|c| (c.key, c)).collect(), membership };
    if membership.changing || view.answering(&membership.voters) < majority(membership.voters.len()) {
        return None;
    }
    view.voter_step().or_else(|| view.learner_step())
}

struct View<'a> {
    kind: GroupKind,
    candidates: BTreeMap<Key, &'a Candidate>,
    membership: &'a Membership,
}

impl View<'_> {
    fn answering(&self, voters: &BTreeSet<Key>) -> usize {
        voters.iter().filter(|key| self.candidates.get(key).is_some_and(|c| c.answers())).count()
    }

    fn is_voter(&self, candidate: &Candidate) -> bool {
        self.membership.voters.contains(&candidate.key)
    }

    /// Whether a node may vote now.
    fn is_eligible(&self, candidate: &Candidate) -> bool {
        if self.is_voter(candidate) {
            return !candidate.is_dead();
        }
        self.membership.learners.contains(&candidate.key) && candidate.caught_up && candidate.is_steady()
    }

    /// Whether a node that may not vote now may do so soon.
    fn is_pending(&self, candidate: &Candidate) -> bool {
        !self.is_voter(candidate) && !self.is_eligible(candidate) && !candidate.is_dead()
    }

    /// Who should vote, the best first.
    fn chosen(&self) -> Vec<Key> {
        let all: Vec<Candidate> = self.candidates.values().map(|c| **c).collect();
        let seats = seats(self.kind, &all);
        let at_site = |site| all.iter().filter(|c| c.site == site).count();
        let mut chosen: Vec<&Candidate> = vec![];
        while chosen.len() < seats {
            let free = all.iter().filter(|c| self.is_eligible(c) && !chosen.iter().any(|other| other.key == c.key));
            let Some(best) = free.min_by_key(|c| {
                let crowd = match self.kind {
                    GroupKind::Site => 0,
                    GroupKind::Vdc => chosen.iter().filter(|other| other.site == c.site).count(),
                };
                let leads = self.membership.leader == Some(c.key);
                (crowd, c.witness, !self.is_voter(c), !leads, usize::MAX - at_site(c.site), c.site, c.key)
            }) else {
                break;
            };
            chosen.push(best);
        }
        let mut chosen: Vec<Key> = chosen.iter().map(|c| c.key).collect();
        let dead = all.iter().filter(|c| self.is_voter(c) && c.is_dead()).map(|c| c.key);
        chosen.extend(dead.take(seats - chosen.len()));
        let waits = chosen.len() <= self.membership.voters.len() && all.iter().any(|c| self.is_pending(c));
        if chosen.len().is_multiple_of(2) && !waits {
            chosen.pop();
        }
        chosen
    }

    fn voter_step(&self) -> Option<Step> {
        let chosen = self.chosen();
        if chosen.is_empty() {
            return None;
        }
        let voters = &self.membership.voters;
        let into = chosen.iter().find(|key| !voters.contains(key)).copied();
        // Who is gone goes first, then who is silent, and the leader last.
        let out = voters.iter().filter(|key| !chosen.contains(key)).min_by_key(|key| {
            let candidate = self.candidates.get(key);
            (candidate.is_some(), candidate.is_some_and(|c| c.answers()), self.membership.leader == Some(**key), **key)
        });
        let step = match (out.copied(), into) {
            (None, None) => return None,
            (Some(out), Some(into)) => Step::Replace { out, into },
            (None, Some(into)) => Step::AddVoter(into),
            (Some(out), None) => Step::RemoveVoter(out),
        };
        let after = step.voters_after(voters);
        (self.answering(&after) >= majority(after.len())).then_some(step)
    }

    fn learner_step(&self) -> Option<Step> {
        let Membership { voters, learners, .. } = self.membership;
        if let Some(gone) = learners.iter().find(|key| !self.candidates.contains_key(key)) {
            return Some(Step::RemoveLearner(*gone));
        }
        let serves = |c: &Candidate| voters.contains(&c.key) || learners.contains(&c.key);
        let at_site = |site| self.candidates.values().filter(|c| c.site == site && serves(c)).count();
        let strangers = self.candidates.values().filter(|c| !serves(c) && c.answers());
        let next = strangers.min_by_key(|c| (at_site(c.site), c.witness, c.site, c.key))?;
        if learners.len() < LEARNERS_MAX {
            return Some(Step::AddLearner(next.key));
        }
        // A site that has nothing of the group gets a place from the one that has most.
        let crowded = learners.iter().filter_map(|key| self.candidates.get(key));
        let last = crowded.max_by_key(|c| (at_site(c.site), !c.answers(), c.site, c.key))?;
        (at_site(next.site) == 0 && at_site(last.site) > 1).then_some(Step::RemoveLearner(last.key))
    }
}

impl Step {
    /// The voters once it is done.
    #[must_use]
    pub fn voters_after(self, voters: &BTreeSet<Key>) -> BTreeSet<Key> {
        let mut after = voters.clone();
        match self {
            Self::AddLearner(_) | Self::RemoveLearner(_) => {}
            Self::Replace { out, into } => {
                after.remove(&out);
                after.insert(into);
            }
            Self::AddVoter(key) => {
                after.insert(key);
            }
            Self::RemoveVoter(key) => {
                after.remove(&key);
            }
        }
        after
    }
}
