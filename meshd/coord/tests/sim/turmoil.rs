//! What goes wrong: one thing after the other, and many of them while the members change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coordlab::Seeded;
use openraft::AsyncRuntime as _;

use super::lab::{GROUP, Lab};
use super::runtime::{self, NodeNumber, SimRuntime, now_ns, spawn_for};

/// How long faults happen.
const TURMOIL: Duration = Duration::from_secs(14);
/// One leap of a clock in the life of a lease: each may end it half a second too early.
const BETWEEN_LEAPS_NS: u64 = 3_000_000_000;

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// One node loses its power.
    Crash,
    /// Several at once do.
    PowerCut,
    /// One loses it in the middle of its next writes.
    Tear,
    /// One is off for a while.
    Stop,
    /// One does not hear another.
    CutOneWay,
    /// Two do not hear each other.
    CutBothWays,
    /// One hears nobody and nobody hears it.
    Isolate,
    /// One is heard and hears nobody: its beats arrive, the answers do not.
    Deafen,
    /// Frames are lost, or arrive twice.
    Noise,
    /// A disk stands still.
    Stall,
    /// A disk has no room, or soon.
    Fill,
    /// A disk answers with errors.
    Break,
    /// A clock leaps forward.
    Leap,
}

impl Fault {
    pub(crate) const ALL: [Self; 13] = [
        Self::Crash,
        Self::PowerCut,
        Self::Tear,
        Self::Stop,
        Self::CutOneWay,
        Self::CutBothWays,
        Self::Isolate,
        Self::Deafen,
        Self::Noise,
        Self::Stall,
        Self::Fill,
        Self::Break,
        Self::Leap,
    ];
}

/// Has things go wrong in a lab.
pub(crate) struct Turmoil<'a> {
    lab: &'a Lab,
    seeded: Seeded,
    leapt_ns: u64,
    /// Power cuts are common and hit most nodes at once, so that nobody else has what one has lost.
    is_hard: bool,
    /// Whether one node may be the only voter.
    may_vote_alone: bool,
}

impl<'a> Turmoil<'a> {
    pub(crate) fn new(lab: &'a Lab, seeded: Seeded, is_hard: bool, may_vote_alone: bool) -> Self {
        Self { lab, seeded, leapt_ns: 0, is_hard, may_vote_alone }
    }

    fn node(&mut self) -> NodeNumber {
        usize::try_from(self.seeded.below(self.lab.count() as u64)).expect("small")
    }

    fn other(&mut self, than: NodeNumber) -> NodeNumber {
        let further = 1 + usize::try_from(self.seeded.below(self.lab.count() as u64 - 1)).expect("small");
        (than + further) % self.lab.count()
    }

    /// Lets things happen for a while. In the end everybody is well.
    pub(crate) async fn run(&mut self) {
        let end = now_ns() + u64::try_from(TURMOIL.as_nanos()).expect("short");
        let mut leader = None;
        while now_ns() < end {
            let changing = if self.seeded.chance(500) { self.change_members().await } else { None };
            let fault = if self.is_hard && self.seeded.chance(400) {
                Fault::PowerCut
            } else {
                Fault::ALL[usize::try_from(self.seeded.below(Fault::ALL.len() as u64)).expect("few")]
            };
            if self.strike(fault) {
                self.lab.coverage.count(&format!("fault: {fault:?}"));
                if changing.is_some_and(|done| !done.load(Ordering::Relaxed)) {
                    self.lab.coverage.count(&format!("fault during a change of members: {fault:?}"));
                }
            }
            SimRuntime::sleep(Duration::from_millis(100 + self.seeded.below(1_200))).await;
            let leads = self.lab.leader();
            if leads.is_some() && leads != leader {
                self.lab.coverage.count("another leads");
                leader = leads;
            }
            if self.seeded.chance(500) {
                self.heal();
            }
        }
        self.heal();
    }

    fn heal(&self) {
        self.lab.net.heal();
        self.lab.net.set_noise(0, 0);
        for (number, disk) in self.lab.disks.iter().enumerate() {
            disk.set_room(u64::MAX);
            disk.set_broken(false);
            self.lab.want(number, true);
        }
    }

    /// Whether it can strike now.
    fn strike(&mut self, fault: Fault) -> bool {
        let lab = self.lab;
        let node = self.node();
        match fault {
            Fault::Crash => lab.crash(node),
            Fault::PowerCut => {
                for number in 0..lab.count() {
                    if self.seeded.chance(if self.is_hard { 900 } else { 400 }) {
                        lab.crash(number);
                    }
                }
            }
            Fault::Tear => lab.disks[node].die_after(self.seeded.below(40)),
            Fault::Stop => lab.want(node, false),
            Fault::CutOneWay => lab.net.cut(node, self.other(node)),
            Fault::CutBothWays => {
                let other = self.other(node);
                lab.net.cut(node, other);
                lab.net.cut(other, node);
            }
            Fault::Isolate | Fault::Deafen => {
                for number in 0..lab.count() {
                    lab.net.cut(number, node);
                    if fault == Fault::Isolate {
                        lab.net.cut(node, number);
                    }
                }
            }
            Fault::Noise => lab.net.set_noise(self.seeded.below(100), self.seeded.below(200)),
            Fault::Stall => lab.disks[node].stall(Duration::from_millis(self.seeded.below(3_000))),
            Fault::Fill => lab.disks[node].set_room(lab.disks[node].used() + self.seeded.below(40_000)),
            Fault::Break => lab.disks[node].set_broken(true),
            Fault::Leap if now_ns() > self.leapt_ns + BETWEEN_LEAPS_NS => {
                self.leapt_ns = now_ns();
                runtime::jump_clock(node, Duration::from_millis(self.seeded.below(20_000)));
            }
            Fault::Leap => return false,
        }
        true
    }

    /// Asks whoever leads for other voters, or to have a node no more, or again; what strikes next finds it under way. Says
    /// whether it is over.
    async fn change_members(&mut self) -> Option<Arc<AtomicBool>> {
        let lab = self.lab;
        let leader = lab.leader()?;
        let group = lab.net.node(leader)?.group(&GROUP)?;
        let keys = lab.keys();
        let standing = group.standing().ok()?;
        let missing =
            keys.iter().find(|key| !standing.voters.contains(key) && !standing.learners.contains(key)).copied();
        let learner = standing.learners.first().copied();
        let (kind, coverage) = (self.seeded.below(4), lab.coverage.clone());
        let mut voters: Vec<_> = keys.iter().copied().filter(|_| self.seeded.chance(800)).collect();
        if voters.len() < 2 && !self.may_vote_alone {
            voters.clone_from(&keys);
        }
        let done = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&done);
        drop(spawn_for(leader, async move {
            let (name, changed) = match (kind, learner, missing) {
                (0, Some(learner), _) => ("members: removed", group.remove_learner(learner).await),
                (0 | 1, _, Some(missing)) => ("members: added", group.add_learner(missing).await),
                _ if !voters.is_empty() => ("members: other voters", group.set_voters(&voters).await),
                _ => return,
            };
            told.store(true, Ordering::Relaxed);
            if changed.is_ok() {
                coverage.count(name);
            }
        }));
        SimRuntime::sleep(Duration::from_millis(self.seeded.below(12))).await;
        Some(done)
    }
}
