//! What goes wrong, when: a plan from a seed, as plain text that a failure prints and a test reads again.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::str::FromStr;
use std::time::Duration;

use crate::seeded::Seeded;

/// A node, by its place in the simulation.
pub type Number = usize;

/// Steps of one plan.
const STEPS_MAX: usize = 10_000;

/// One thing that goes wrong, or well again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing arrives from one node at another; the way back is another link.
    Cut { from: Number, to: Number },
    /// A node neither hears nor is heard.
    Isolate { node: Number },
    /// These nodes and the others do not hear each other.
    Split { nodes: Vec<Number> },
    /// All links lose frames and deliver them twice.
    Noise { loss_per_mille: u64, twice_per_mille: u64 },
    /// All links are whole.
    HealNet,
    /// Power is cut: what was not synced is kept, lost or torn. Somebody starts the node again at once.
    Crash { node: Number },
    CrashAll { nodes: Vec<Number> },
    /// Power is cut in the middle of writing, after so many writes and syncs: torn and lost tails.
    Tear { node: Number, writes: u64 },
    /// Power is cut, and stays so.
    Stop { node: Number },
    Start { node: Number },
    /// The disk does nothing for so long.
    Stall { node: Number, ms: u64 },
    /// So many bytes more fit on the disk.
    Fill { node: Number, bytes: u64 },
    /// All input and output fails.
    Break { node: Number },
    /// The disk has room and works.
    HealDisk { node: Number },
    /// The clock leaps ahead.
    Leap { node: Number, ms: u64 },
    /// Whoever leads is asked to make these the voters.
    Voters { nodes: Vec<Number> },
    /// Links are whole, disks work and have room, all nodes run.
    HealAll,
}

/// A fault and when it happens, counted from the plan's beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub at_ms: u64,
    pub fault: Fault,
}

/// Kinds of faults that a plan may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    Partitions,
    Noise,
    Crashes,
    /// Crashes in the middle of writing.
    Tears,
    /// Nodes that stay down for a while.
    Stops,
    Stalls,
    FullDisks,
    BrokenDisks,
    Clocks,
    Members,
}

impl Faults {
    pub const ALL: [Self; 10] = [
        Self::Partitions,
        Self::Noise,
        Self::Crashes,
        Self::Tears,
        Self::Stops,
        Self::Stalls,
        Self::FullDisks,
        Self::BrokenDisks,
        Self::Clocks,
        Self::Members,
    ];
}

/// What a plan is drawn from.
#[derive(Clone, Debug)]
pub struct FaultOptions {
    pub nodes: usize,
    pub length: Duration,
    /// Shortest and longest time between two steps.
    pub gap_min: Duration,
    pub gap_max: Duration,
    /// After how many steps everything is healed for one gap.
    pub heal_per_mille: u64,
    pub kinds: Vec<Faults>,
    /// Shortest time between two leaps of clocks: holders of leases allow for one leap in the life of a lease.
    pub leap_gap: Duration,
    pub leap_ms_max: u64,
    pub stall_ms_max: u64,
}

impl Default for FaultOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            length: Duration::from_secs(25),
            gap_min: Duration::from_millis(100),
            gap_max: Duration::from_millis(1_300),
            heal_per_mille: 300,
            kinds: Faults::ALL.to_vec(),
            leap_gap: Duration::from_secs(3),
            leap_ms_max: 20_000,
            stall_ms_max: 3_000,
        }
    }
}

/// Faults in the order of time. The last heals all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
}

impl Plan {
    /// Draws a plan. The same seed and options give the same plan.
    #[must_use]
    pub fn draw(seed: u64, options: &FaultOptions) -> Self {
        let mut draw = Draw { seeded: Seeded::new(seed), options, leapt_ms: None };
        let (gap_min, gap_max) = (millis(options.gap_min).max(1), millis(options.gap_max));
        let mut at_ms = 0;
        let mut steps = vec![];
        while at_ms < millis(options.length) && steps.len() + 2 < STEPS_MAX {
            if let Some(fault) = draw.fault(at_ms) {
                steps.push(Step { at_ms, fault });
            }
            at_ms += gap_min + draw.seeded.below(gap_max.saturating_sub(gap_min) + 1);
            if draw.seeded.chance(options.heal_per_mille) {
                steps.push(Step { at_ms, fault: Fault::HealAll });
                at_ms += gap_min + draw.seeded.below(gap_max.saturating_sub(gap_min) + 1);
            }
        }
        steps.push(Step { at_ms, fault: Fault::HealAll });
        Self { steps }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

struct Draw<'a> {
    seeded: Seeded,
    options: &'a FaultOptions,
    leapt_ms: Option<u64>,
}

impl Draw<'_> {
    fn number(&mut self) -> Number {
        usize::try_from(self.seeded.below(self.options.nodes as u64)).expect("below the number of nodes")
    }

    /// Each node with this chance, and one at least.
    fn some(&mut self, per_mille: u64) -> Vec<Number> {
        let mut nodes: Vec<Number> = (0..self.options.nodes).filter(|_| self.seeded.chance(per_mille)).collect();
        if nodes.is_empty() {
            nodes.push(self.number());
        }
        nodes
    }

    /// None if there is nothing to be drawn, or if it may not happen yet.
    fn fault(&mut self, now_ms: u64) -> Option<Fault> {
        if self.options.nodes == 0 {
            return None;
        }
        let kind = usize::try_from(self.seeded.below(self.options.kinds.len() as u64)).expect("below a length");
        let node = self.number();
        Some(match self.options.kinds.get(kind)? {
            Faults::Partitions => match self.seeded.below(4) {
                0 => Fault::Isolate { node },
                1 => Fault::Split { nodes: self.some(500) },
                // One way only.
                _ => Fault::Cut { from: node, to: self.other(node)? },
            },
            Faults::Noise => {
                Fault::Noise { loss_per_mille: self.seeded.below(100), twice_per_mille: self.seeded.below(200) }
            }
            Faults::Crashes if self.seeded.chance(300) => Fault::CrashAll { nodes: self.some(500) },
            Faults::Crashes => Fault::Crash { node },
            Faults::Tears => Fault::Tear { node, writes: self.seeded.below(40) },
            Faults::Stops if self.seeded.chance(300) => Fault::Start { node },
            Faults::Stops => Fault::Stop { node },
            Faults::Stalls => Fault::Stall { node, ms: self.seeded.below(self.options.stall_ms_max + 1) },
            Faults::FullDisks => Fault::Fill { node, bytes: self.seeded.below(100_000) },
            Faults::BrokenDisks => Fault::Break { node },
            Faults::Clocks => {
                if self.leapt_ms.is_some_and(|leapt| now_ms < leapt + millis(self.options.leap_gap)) {
                    return None;
                }
                self.leapt_ms = Some(now_ms);
                Fault::Leap { node, ms: self.seeded.below(self.options.leap_ms_max + 1) }
            }
            Faults::Members => Fault::Voters { nodes: self.some(800) },
        })
    }

    fn other(&mut self, node: Number) -> Option<Number> {
        let others = (self.options.nodes as u64).checked_sub(1).filter(|others| *others > 0)?;
        let drawn = usize::try_from(self.seeded.below(others)).expect("below the number of nodes");
        Some(if drawn < node { drawn } else { drawn + 1 })
    }
}

/// Leaves steps out for as long as the rest still fails: what is left is needed. The plan itself must fail. `fails` is asked
/// at most `tries_max` times.
pub fn shorten(plan: &Plan, tries_max: usize, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut plan = plan.clone();
    let mut tries = 0;
    let mut length = plan.steps.len().div_ceil(2);
    while length > 0 {
        let mut first = 0;
        while first < plan.steps.len() {
            if tries == tries_max {
                return plan;
            }
            tries += 1;
            let mut fewer = plan.clone();
            fewer.steps.drain(first..(first + length).min(plan.steps.len()));
            if fails(&fewer) {
                plan = fewer;
            } else {
                first += length;
            }
        }
        length /= 2;
    }
    plan
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self {
            Self::Cut { from, to } => write!(f, "cut {from} {to}"),
            Self::Isolate { node } => write!(f, "isolate {node}"),
            Self::Split { nodes } => list(f, "split", nodes),
            Self::Noise { loss_per_mille, twice_per_mille } => write!(f, "noise {loss_per_mille} {twice_per_mille}"),
            Self::HealNet => write!(f, "heal-net"),
            Self::Crash { node } => write!(f, "crash {node}"),
            Self::CrashAll { nodes } => list(f, "crash-all", nodes),
            Self::Tear { node, writes } => write!(f, "tear {node} {writes}"),
            Self::Stop { node } => write!(f, "stop {node}"),
            Self::Start { node } => write!(f, "start {node}"),
            Self::Stall { node, ms } => write!(f, "stall {node} {ms}"),
            Self::Fill { node, bytes } => write!(f, "fill {node} {bytes}"),
            Self::Break { node } => write!(f, "break {node}"),
            Self::HealDisk { node } => write!(f, "heal-disk {node}"),
            Self::Leap { node, ms } => write!(f, "leap {node} {ms}"),
            Self::Voters { nodes } => list(f, "voters", nodes),
            Self::HealAll => write!(f, "heal-all"),
        }
    }
}

fn list(f: &mut Formatter<'_>, word: &str, nodes: &[Number]) -> FmtResult {
    f.write_str(word)?;
    nodes.iter().try_for_each(|node| write!(f, " {node}"))
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        self.steps.iter().try_for_each(|Step { at_ms, fault }| writeln!(f, "{at_ms} {fault}"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("line {line} is no step of a plan: {text:?}")]
    BadStep { line: usize, text: String },
    #[error("line {line} is earlier than the one before it: {text:?}")]
    Backwards { line: usize, text: String },
    #[error("a plan has at most {steps_max} steps")]
    TooLong { steps_max: usize },
}

/// One step a line; empty lines and those that begin with `#` do not count.
impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let mut plan = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (number, text) = (number + 1, || line.to_owned());
            let step = step(line).ok_or_else(|| PlanError::BadStep { line: number, text: text() })?;
            if plan.steps.last().is_some_and(|last| last.at_ms > step.at_ms) {
                return Err(PlanError::Backwards { line: number, text: text() });
            }
            if plan.steps.len() == STEPS_MAX {
                return Err(PlanError::TooLong { steps_max: STEPS_MAX });
            }
            plan.steps.push(step);
        }
        Ok(plan)
    }
}

fn step(line: &str) -> Option<Step> {
    let mut words = line.split_whitespace();
    let at_ms = words.next()?.parse().ok()?;
    let word = words.next()?;
    let numbers: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let number = |value: u64| Number::try_from(value).ok();
    let nodes = || numbers.iter().map(|value| number(*value)).collect::<Option<Vec<_>>>();
    let fault = match (word, numbers.as_slice()) {
        ("cut", [from, to]) => Fault::Cut { from: number(*from)?, to: number(*to)? },
        ("isolate", [node]) => Fault::Isolate { node: number(*node)? },
        ("split", [_, ..]) => Fault::Split { nodes: nodes()? },
        ("noise", [loss, twice]) => Fault::Noise { loss_per_mille: *loss, twice_per_mille: *twice },
        ("heal-net", []) => Fault::HealNet,
        ("crash", [node]) => Fault::Crash { node: number(*node)? },
        ("crash-all", [_, ..]) => Fault::CrashAll { nodes: nodes()? },
        ("tear", [node, writes]) => Fault::Tear { node: number(*node)?, writes: *writes },
        ("stop", [node]) => Fault::Stop { node: number(*node)? },
        ("start", [node]) => Fault::Start { node: number(*node)? },
        ("stall", [node, ms]) => Fault::Stall { node: number(*node)?, ms: *ms },
        ("fill", [node, bytes]) => Fault::Fill { node: number(*node)?, bytes: *bytes },
        ("break", [node]) => Fault::Break { node: number(*node)? },
        ("heal-disk", [node]) => Fault::HealDisk { node: number(*node)? },
        ("leap", [node, ms]) => Fault::Leap { node: number(*node)?, ms: *ms },
        ("voters", [_, ..]) => Fault::Voters { nodes: nodes()? },
        ("heal-all", []) => Fault::HealAll,
        _ => return None,
    };
    Some(Step { at_ms, fault })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_plan_and_another_another() {
        let options = FaultOptions::default();
        assert_eq!(Plan::draw(7, &options), Plan::draw(7, &options));
        assert_ne!(Plan::draw(7, &options), Plan::draw(8, &options));
    }

    #[test]
    fn plans_are_the_same_in_all_versions() {
        // A seed that once failed must go on meaning the same.
        let options = FaultOptions { length: Duration::from_secs(3), ..FaultOptions::default() };
        assert_eq!(Plan::draw(1, &options).to_string(), include_str!("faults/seed1.plan"));
    }

    #[test]
    fn plan_survives_being_written_and_read() {
        for seed in 0..200 {
            let nodes = [1, 2, 3, 5][usize::try_from(seed % 4).expect("small")];
            let plan = Plan::draw(seed, &FaultOptions { nodes, ..FaultOptions::default() });
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
    }

    #[test]
    fn plans_keep_to_their_options() {
        let mut words = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let plan = Plan::draw(seed, &FaultOptions::default());
            assert_eq!(plan.steps.last().map(|step| &step.fault), Some(&Fault::HealAll), "the end heals all");
            assert!(plan.steps.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms));
            let leaps = plan.steps.iter().filter(|step| matches!(step.fault, Fault::Leap { .. }));
            let leaps: Vec<u64> = leaps.map(|step| step.at_ms).collect();
            assert!(leaps.windows(2).all(|pair| pair[1] - pair[0] >= 3_000), "{leaps:?}");
            for step in &plan.steps {
                if let Fault::Cut { from, to } = step.fault {
                    assert!(from != to && from < 3 && to < 3);
                }
                words.insert(step.fault.to_string().split(' ').next().expect("a word").to_owned());
            }
        }
        // All but those that only people write.
        assert_eq!(words.len(), 15, "{words:?}");
        let clocks = FaultOptions { kinds: vec![Faults::Clocks], ..FaultOptions::default() };
        let only = |step: &Step| matches!(step.fault, Fault::Leap { .. } | Fault::HealAll);
        assert!(Plan::draw(3, &clocks).steps.iter().all(only));
        let nothing = FaultOptions { kinds: vec![], ..FaultOptions::default() };
        assert!(Plan::draw(3, &nothing).steps.iter().all(|step| step.fault == Fault::HealAll));
    }

    #[test]
    fn bad_text_is_refused_with_its_line() {
        for (text, line) in [("5 crash", 1), ("# fine\n\n5 crash 1 2", 3), ("x crash 1", 1), ("5 hug 1", 1), ("5", 1)] {
            let refused = text.parse::<Plan>();
            assert!(matches!(refused, Err(PlanError::BadStep { line: at, .. }) if at == line), "{refused:?}");
        }
        let refused = "5 crash 1\n4 crash 1".parse::<Plan>();
        assert!(matches!(refused, Err(PlanError::Backwards { line: 2, .. })), "{refused:?}");
        let long = "5 heal-all\n".repeat(STEPS_MAX + 1);
        assert_eq!(long.parse::<Plan>(), Err(PlanError::TooLong { steps_max: STEPS_MAX }));
    }

    #[test]
    fn shortened_plan_keeps_what_is_needed() {
        let plan = Plan::draw(11, &FaultOptions::default());
        let crash = |plan: &Plan| plan.steps.iter().any(|step| matches!(step.fault, Fault::Crash { .. }));
        let heal = |plan: &Plan| plan.steps.iter().any(|step| step.fault == Fault::HealAll);
        assert!(crash(&plan), "this seed has one: {plan}");
        let short = shorten(&plan, 1_000, |plan| crash(plan) && heal(plan));
        assert_eq!(short.steps.len(), 2, "{short}");
        let mut asked = 0;
        let _cut_short = shorten(&plan, 5, |_| {
            asked += 1;
            false
        });
        assert_eq!(asked, 5);
    }
}
