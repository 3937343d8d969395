//! A thousand nodes' records: how large the roster of one node is, and how long ten virtual minutes of them take.

use std::process::Command;

use ::tests::figures::Figure;
use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Bench;

pub(crate) const BENCH: Bench =
    Bench { name: "roster", about: "1,000 nodes at 10 sites: roster size, traffic, time of their simulation", run };

fn run() -> Result<Vec<Figure>> {
    let mut simulation = Command::new(crate::binary("sim")?);
    simulation.args(["--seed", "1", "--nodes", "1000", "--sites", "10", "--minutes", "10", "--output", "json"]);
    let output = simulation.output().context("cannot start the simulation")?;
    if !output.status.success() {
        bail!("the simulation failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let report = serde_json::from_slice(&output.stdout).context("the simulation prints JSON")?;
    let own = std::fs::read_to_string("/proc/self/stat")?;
    figures(&report, crate::cpu::children_s(&own).context("cannot read /proc/self/stat")?)
}

fn figures(report: &Value, cpu_s: f64) -> Result<Vec<Figure>> {
    const MB: f64 = 1e6;
    let value = |what: &str, path: &str| {
        let figure = report["figures"].as_array().and_then(|all| all.iter().find(|f| f["what"] == what));
        let number = figure.and_then(|f| f.pointer(path)).and_then(Value::as_f64);
        number.with_context(|| format!("the simulation's report has no {what:?}{path}"))
    };
    let real_s = report["real_s"].as_f64().context("the simulation's report has no real_s")?;
    Ok(vec![
        Figure::new("largest roster of a node", value("largest roster", "/bytes")? / MB, "MB").at_most(2.0),
        Figure::new("10 virtual minutes, CPU time", cpu_s, "s").at_most(30.0),
        Figure::new("10 virtual minutes, on the clock", real_s, "s"),
        Figure::new("sent by a node, p50", value("sent by each node", "/bytes_each/p50")? / MB, "MB"),
        Figure::new("sent by a node, p99", value("sent by each node", "/bytes_each/p99")? / MB, "MB"),
        Figure::new("revoke to a node knows, p99", value("revoke to node knows", "/durations_us/p99")? / MB, "s"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_read() {
        let report = serde_json::json!({
            "real_s": 12.5,
            "figures": [
                { "what": "largest roster", "bytes": 1_500_000 },
                { "what": "sent by each node", "bytes_each": { "p50": 100_000, "p99": 200_000, "max": 300_000 } },
                { "what": "revoke to node knows", "durations_us": { "p50": 20_000, "p99": 58_000, "max": 59_000 } },
            ],
        });
        let figures = figures(&report, 12.5).expect("complete");
        assert_eq!(figures[0].value, 1.5);
        assert!(figures.iter().all(|figure| figure.met() != Some(false)));
        assert!(super::figures(&serde_json::json!({ "real_s": 1.0 }), 1.0).is_err());
    }
}
