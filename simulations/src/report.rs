//! Figures of a run, for people and for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// The distribution of something over nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
}

impl Percentiles {
    /// Nearest rank; zeros for nothing.
    pub(crate) fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let rank = |per_cent: usize| {
            let at = (values.len() * per_cent).div_ceil(100).saturating_sub(1);
            values.get(at).copied().unwrap_or(0)
        };
        Self { p50: rank(50), p99: rank(99), max: rank(100) }
    }
}

/// One measured thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    #[serde(flatten)]
    pub(crate) value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Value {
    DurationUs(u64),
    DurationsUs(Percentiles),
    Bytes(u64),
    BytesEach(Percentiles),
    Count(u64),
    Counts(Percentiles),
}

impl Figure {
    fn new(what: &str, value: Value) -> Self {
        Self { what: what.to_owned(), value }
    }

    pub(crate) fn duration(what: &str, us: u64) -> Self {
        Self::new(what, Value::DurationUs(us))
    }

    pub(crate) fn percentiles(what: &str, us: Percentiles) -> Self {
        Self::new(what, Value::DurationsUs(us))
    }

    pub(crate) fn bytes(what: &str, bytes: u64) -> Self {
        Self::new(what, Value::Bytes(bytes))
    }

    pub(crate) fn bytes_each(what: &str, bytes: Percentiles) -> Self {
        Self::new(what, Value::BytesEach(bytes))
    }

    pub(crate) fn count(what: &str, count: u64) -> Self {
        Self::new(what, Value::Count(count))
    }

    pub(crate) fn counts(what: &str, counts: Percentiles) -> Self {
        Self::new(what, Value::Counts(counts))
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<56} ", self.what)?;
        match self.value {
            Value::DurationUs(us) => write!(f, "{}", seconds(us)),
            Value::DurationsUs(p) => {
                write!(f, "p50 {}  p99 {}  max {}", seconds(p.p50), seconds(p.p99), seconds(p.max))
            }
            Value::Bytes(bytes) => write!(f, "{}", kilobytes(bytes)),
            Value::BytesEach(p) => {
                write!(f, "p50 {}  p99 {}  max {}", kilobytes(p.p50), kilobytes(p.p99), kilobytes(p.max))
            }
            Value::Count(count) => write!(f, "{count}"),
            Value::Counts(p) => write!(f, "p50 {}  p99 {}  max {}", p.p50, p.p99, p.max),
        }
    }
}

fn seconds(us: u64) -> String {
    format!("{:.3} s", Duration::from_micros(us).as_secs_f64())
}

fn kilobytes(bytes: u64) -> String {
    format!("{}.{} kB", bytes / 1000, bytes % 1000 / 100)
}

/// When a scenario ended, and what it took to compute.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Phase {
    pub(crate) scenario: &'static str,
    pub(crate) until_s: f64,
    pub(crate) real_s: f64,
}

/// What a run that kept all its assertions leaves behind.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) knobs: crate::world::Knobs,
    pub(crate) scenario: String,
    pub(crate) virtual_s: f64,
    pub(crate) real_s: f64,
    pub(crate) phases: Vec<Phase>,
    pub(crate) events: u64,
    pub(crate) figures: Vec<Figure>,
    /// Equal for equal seeds and scenarios.
    pub(crate) trace: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crate::world::Knobs { seed, nodes, sites, .. } = self.knobs;
        writeln!(f, "seed {seed}, {nodes} nodes at {sites} sites, scenario {}", self.scenario)?;
        for figure in &self.figures {
            writeln!(f, "  {figure}")?;
        }
        for Phase { scenario, until_s, real_s } in &self.phases {
            let what = format!("{scenario}: until");
            writeln!(f, "  {what:<56} {until_s:.1} s, took {real_s:.1} s of real time")?;
        }
        writeln!(f, "  {:<56} {:.1} s in {:.1} s of real time", "virtual time", self.virtual_s, self.real_s)?;
        write!(f, "  {:<56} {} events, {}", "trace", self.events, self.trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        assert_eq!(Percentiles::of((1..=100).rev().collect()), Percentiles { p50: 50, p99: 99, max: 100 });
        assert_eq!(Percentiles::of(vec![7]), Percentiles { p50: 7, p99: 7, max: 7 });
        assert_eq!(Percentiles::of(Vec::new()), Percentiles { p50: 0, p99: 0, max: 0 });
    }
}
