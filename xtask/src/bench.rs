//! `cargo xtask bench`: builds the product as it ships and runs `tests/bench`, which knows the benches.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::stage::Run;
use crate::{debian, demo};

#[derive(Args)]
pub(crate) struct Options {
    /// Which bench; without it, all that exist are listed
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

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut run = Run::new()?;
    if options.name.is_some() {
        debian::require_root("a bench")?;
        debian::ensure_packages(&mut run)?;
        debian::ensure_unpacked(&mut run)?;
    }
    let binaries = [
        ("meshd", "meshd"),
        ("meshctl", "meshctl"),
        ("simulations", "sim"),
        ("coordbox", "coordbox"),
        ("tests", "bench"),
    ];
    demo::build(&mut run, &binaries)?;
    let mut bench = demo::command(&run, "bench");
    bench.args(&options.name).args(["--output", if matches!(options.output, Output::Json) { "json" } else { "table" }]);
    run.finish(bench)?;
    Ok(ExitCode::SUCCESS)
}
