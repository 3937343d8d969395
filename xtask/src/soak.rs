//! `cargo xtask soak`: what takes too long for every change, and what needs more of the outside world.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::stage::{self, Run, Stage};
use crate::{debian, test};

#[derive(Args)]
pub(crate) struct Options {
    /// Run only this stage (may be given several times)
    #[arg(long, value_name = "NAME")]
    stage: Vec<String>,
    /// Print the stages and stop
    #[arg(long)]
    list: bool,
}

/// End-to-end runs in a row.
const REPEATS: u32 = 10;

const STAGES: &[Stage] = &[
    Stage {
        name: "packages",
        about: "Debian packages of xtask/debian-packages.txt are installed",
        minutes_max: 10,
        run: debian::ensure_packages,
    },
    Stage {
        name: "e2e",
        about: "the end-to-end tests, ten times over",
        minutes_max: 240,
        run: |run| (0..REPEATS).try_for_each(|_| test::end_to_end(run)),
    },
    Stage {
        name: "advisories",
        about: "no dependency has a known vulnerability (needs to reach the public advisory database)",
        minutes_max: 30,
        run: advisories,
    },
];

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        stage::list(STAGES);
        return Ok(ExitCode::SUCCESS);
    }
    stage::run(STAGES, &options.stage)
}

fn advisories(run: &mut Run) -> Result<()> {
    if !stage::available("cargo-deny", &["--version"]) {
        run.cargo(&["install", "cargo-deny", "--version", "0.20.2", "--locked"])?;
    }
    run.cargo(&["deny", "--locked", "check", "advisories"])
        .context("either an advisory applies, or the database could not be fetched: the lines above tell")
}
