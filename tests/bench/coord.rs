//! Coordination groups of three voters on this machine, and Debian's etcd by turns with them: what `coordbox bench` measures.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ::tests::figures::Figure;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{Bench, binary};

pub(crate) const BENCH: Bench = Bench {
    name: "coord",
    about: "coordination: rates beside etcd, the leader killed or dark, a million keys, idle groups; ten minutes",
    run,
};

fn run() -> Result<Vec<Figure>> {
    let coordbox = binary("coordbox")?;
    // On the disk that was built on: a directory for temporary files may be memory.
    let data = coordbox.parent().context("binaries are in a folder")?.join("bench-coord");
    std::fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
    // Both sides inherit it: what else runs here is less in their way.
    let mut command = Command::new("nice");
    command.args(["-n", "-15"]).arg(&coordbox).arg("bench").arg("--data").arg(&data).arg("--etcd").arg(etcd()?);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start nice and coordbox")?;
    let lines = BufReader::new(child.stdout.take().context("its output is piped")?).lines();
    let mut figures = vec![];
    for line in lines {
        let line = line.context("cannot read what coordbox says")?;
        eprintln!("{line}");
        figures.push(figure(&serde_json::from_str(&line).with_context(|| format!("no figure: {line}"))?)?);
    }
    let status = child.wait().context("coordbox is gone")?;
    if !status.success() {
        bail!("coordbox bench: {status}");
    }
    Ok(figures)
}

/// The program of etcd, unpacked or installed.
fn etcd() -> Result<PathBuf> {
    let unpacked = std::env::var_os("MESHD_DEBIAN_DIR").map(|dir| PathBuf::from(dir).join("usr/bin/etcd"));
    let installed = Some(PathBuf::from("/usr/bin/etcd"));
    let found = [unpacked, installed].into_iter().flatten().find(|program| program.is_file());
    found.context(
        "there is no etcd to measure beside: it is in Debian's package etcd-server (xtask/debian-packages.txt)",
    )
}

fn figure(said: &Value) -> Result<Figure> {
    let name = said["figure"].as_str().context("a figure has a name")?;
    let value = said["value"].as_f64().with_context(|| format!("{name} has no value"))?;
    let unit = match said["unit"].as_str() {
        Some("1/s") => "1/s",
        Some("s") => "s",
        Some("MB") => "MB",
        Some("% CPU") => "% CPU",
        Some("ratio") => "ratio",
        _ => "",
    };
    let figure = Figure::new(name, value, unit);
    Ok(match name {
        "writes/s, 64 clients" => figure.at_least(5_000.0),
        "linearizable reads/s, 64 clients" => figure.at_least(20_000.0),
        "beside etcd: writes/s, 64 clients" | "beside etcd: linearizable reads/s, 64 clients" => figure.at_least(1.0),
        "1 client beside raw fdatasync" => figure.at_least(0.4),
        "leader killed, writes again, p95" | "leader dark at 1,000/s: longest pause" => figure.at_most(2.0),
        "leader dark at 1,000/s: lost" | "leader dark at 1,000/s: duplicated" => figure.at_most(0.0),
        "idle, 1 groups, busiest of 3 nodes" => figure.at_most(0.2),
        "idle, 100 groups, busiest of 3 nodes" => figure.at_most(5.0),
        "1000000 keys: RSS, largest of 3" | "its RSS then" => figure.at_most(300.0),
        "an empty node has all of it" | "killed and started again, until it has all" => figure.at_most(10.0),
        _ => figure,
    })
}
