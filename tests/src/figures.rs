//! Measured figures, with the goal each one is held to.

/// One measured number.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    pub value: f64,
    /// For example `ms`, `MB`, `ratio`.
    pub unit: &'static str,
    pub goal: Option<Goal>,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, goal: None }
    }

    #[must_use]
    pub fn at_most(self, limit: f64) -> Self {
        Self { goal: Some(Goal::AtMost(limit)), ..self }
    }

    #[must_use]
    pub fn at_least(self, limit: f64) -> Self {
        Self { goal: Some(Goal::AtLeast(limit)), ..self }
    }

    /// Whether the goal is met; `None` without one.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        self.goal.map(|goal| match goal {
            Goal::AtMost(limit) => self.value <= limit,
            Goal::AtLeast(limit) => self.value >= limit,
        })
    }
}

/// The value at rank `percent` of 100 of the sorted `samples` (nearest rank); `None` without samples.
#[must_use]
pub fn percentile(samples: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// A table for people.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let width = figures.iter().map(|f| f.name.chars().count()).max().unwrap_or(0).max("figure".len());
    let mut text = format!("{:<width$}  {:>12} {:<6}  {:>12}  met\n", "figure", "value", "unit", "goal");
    for figure in figures {
        let goal = match figure.goal {
            None => String::new(),
            Some(Goal::AtMost(limit)) => format!("≤ {limit}"),
            Some(Goal::AtLeast(limit)) => format!("≥ {limit}"),
        };
        let met = match figure.met() {
            None => "",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        text += &format!("{:<width$}  {:>12.3} {:<6}  {goal:>12}  {met}\n", figure.name, figure.value, figure.unit);
    }
    text
}

/// The same for programs: a list of objects with `name`, `value`, `unit`, and `goal`, `met` where there is a goal.
#[must_use]
pub fn json(figures: &[Figure]) -> serde_json::Value {
    let objects = figures.iter().map(|figure| {
        let mut object = serde_json::json!({ "name": figure.name, "value": figure.value, "unit": figure.unit });
        if let Some(goal) = figure.goal {
            object["goal"] = match goal {
                Goal::AtMost(limit) => serde_json::json!({ "at_most": limit }),
                Goal::AtLeast(limit) => serde_json::json!({ "at_least": limit }),
            };
            object["met"] = serde_json::json!(figure.met());
        }
        object
    });
    objects.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_judged() {
        assert_eq!(Figure::new("x", 1.0, "s").met(), None);
        assert_eq!(Figure::new("x", 2.0, "s").at_most(2.0).met(), Some(true));
        assert_eq!(Figure::new("x", 1.1, "ratio").at_least(1.2).met(), Some(false));
        assert_eq!(Figure::new("x", f64::NAN, "s").at_most(2.0).met(), Some(false));
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let samples: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 95), Some(19.0));
        assert_eq!(percentile(&samples, 100), Some(20.0));
        assert_eq!(percentile(&samples, 0), Some(1.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn both_outputs_say_the_same() {
        let figures = [Figure::new("join p95", 1.5, "s").at_most(2.0), Figure::new("note", 3.0, "MB")];
        let table = table(&figures);
        assert!(table.contains("1.500") && table.contains("≤ 2") && table.contains("yes"), "{table}");
        let json = json(&figures);
        assert_eq!(json[0]["met"], true);
        assert_eq!(json[0]["goal"]["at_most"], 2.0);
        assert!(json[1].get("goal").is_none());
    }
}
