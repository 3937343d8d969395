//! Named steps in a fixed order, each one timed. The first that fails ends the play; what then did not run counts as
//! failed too, so a table without a failure means that everything was done.

use std::time::{Duration, Instant};

/// One step of a play over a world `W`.
#[derive(Debug)]
pub struct Step<W> {
    /// What is done, as the table shows it.
    pub name: &'static str,
    /// Does it, and says in a few words what was seen (a figure, a verdict).
    pub run: fn(&mut W) -> anyhow::Result<String>,
}

/// How one step ended.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub took: Duration,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub enum Outcome {
    /// Done, with what was seen.
    Done(String),
    Failed(anyhow::Error),
    /// An earlier step failed.
    NotRun,
}

/// Plays `steps` over `world`, printing each as it starts and ends.
pub fn play<W>(world: &mut W, steps: &[Step<W>]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let failed = rows.last().is_some_and(|row| !matches!(row.outcome, Outcome::Done(_)));
        let started = Instant::now();
        let outcome = if failed {
            Outcome::NotRun
        } else {
            println!("[{:>2}/{}] {} …", number + 1, steps.len(), step.name);
            match (step.run)(world) {
                Ok(seen) => Outcome::Done(seen),
                Err(error) => Outcome::Failed(error),
            }
        };
        rows.push(Row { name: step.name, took: started.elapsed(), outcome });
    }
    rows
}

/// Whether every step was done.
#[must_use]
pub fn all_done(rows: &[Row]) -> bool {
    rows.iter().all(|row| matches!(row.outcome, Outcome::Done(_)))
}

/// The closing table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max("step".len());
    let mut text = format!("{:<width$}  {:>9}  result\n", "step", "time");
    for row in rows {
        let result = match &row.outcome {
            Outcome::Done(seen) if seen.is_empty() => "ok".to_owned(),
            Outcome::Done(seen) => format!("ok: {seen}"),
            Outcome::Failed(error) => format!("FAILED: {error:#}"),
            Outcome::NotRun => "not run".to_owned(),
        };
        text += &format!("{:<width$}  {:>7.2} s  {result}\n", row.name, row.took.as_secs_f64());
    }
    let total: Duration = rows.iter().map(|row| row.took).sum();
    text + &format!("{:<width$}  {:>7.2} s\n", "in all", total.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(world: &mut u32) -> anyhow::Result<String> {
        *world += 1;
        Ok(format!("{world}"))
    }

    #[test]
    fn play_runs_every_step_in_order() {
        let mut world = 0;
        let rows = play(&mut world, &[Step { name: "one", run: count }, Step { name: "two", run: count }]);
        assert!(all_done(&rows));
        assert_eq!(world, 2);
        assert!(table(&rows).contains("ok: 2"), "{}", table(&rows));
    }

    #[test]
    fn failed_step_ends_the_play() {
        let mut world = 0;
        let failing = Step { name: "bad", run: |_: &mut u32| anyhow::bail!("broken link") };
        let rows = play(&mut world, &[failing, Step { name: "next", run: count }]);
        assert!(!all_done(&rows));
        assert_eq!(world, 0);
        let table = table(&rows);
        assert!(table.contains("FAILED: broken link") && table.contains("not run"), "{table}");
    }
}
