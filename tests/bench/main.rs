//! The benches: each measures with the shipped binaries and returns figures with their goals.
//!
//! Run through `cargo xtask bench`, which builds what they need and names its folder in `MESHD_BIN_DIR`. To add one, write
//! a module with a `pub(crate) const BENCH: Bench` and name it in [`BENCHES`].
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program prints its figures")]

mod coord;
mod cpu;
mod idle;
mod join;
mod mesh;
mod restart;
mod revoke;
mod roster;
mod start;
mod stream;

use std::path::PathBuf;
use std::process::ExitCode;

use ::tests::figures::{self, Figure};
use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

/// One bench.
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn() -> Result<Vec<Figure>>,
}

/// Every bench that exists.
const BENCHES: &[Bench] = &[
    join::BENCH,
    revoke::BENCH,
    restart::BENCH,
    idle::BENCH,
    mesh::BENCH,
    roster::BENCH,
    start::BENCH,
    stream::BENCH,
    coord::BENCH,
];

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Measure; without a name, list the benches")]
struct Options {
    name: Option<String>,
    /// How to print the figures
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(goals_met) if goals_met => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every goal was met.
fn run(options: &Options) -> Result<bool> {
    let Some(name) = &options.name else {
        for bench in BENCHES {
            println!("{:<10} {}", bench.name, bench.about);
        }
        return Ok(true);
    };
    let known = || BENCHES.iter().map(|bench| bench.name).collect::<Vec<_>>().join(", ");
    let bench = BENCHES.iter().find(|bench| bench.name == name);
    let bench = bench.with_context(|| format!("no bench is named {name:?}; there are: {}", known()))?;
    let figures = (bench.run)().with_context(|| format!("bench {name}"))?;
    match options.output {
        Output::Table => print!("{}", figures::table(&figures)),
        Output::Json => {
            println!("{:#}", serde_json::json!({ "bench": bench.name, "figures": figures::json(&figures) }))
        }
    }
    Ok(figures.iter().all(|figure| figure.met() != Some(false)))
}

/// The path of a built binary.
///
/// # Errors
/// If this was not started by `cargo xtask bench`.
pub(crate) fn binary(name: &str) -> Result<PathBuf> {
    let dir =
        std::env::var_os("MESHD_BIN_DIR").context("MESHD_BIN_DIR is not set: start this as `cargo xtask bench`")?;
    Ok(PathBuf::from(dir).join(name))
}
