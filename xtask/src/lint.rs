//! Formatting, tidy rules, clippy: what a commit must pass before it is worth testing.

use std::process::ExitCode;

use anyhow::Result;

use crate::stage::{self, Run, Stage};

pub(crate) const FORMAT: Stage<'static> = Stage {
    name: "fmt",
    about: "rustfmt changes nothing",
    minutes_max: 5,
    run: &|run: &mut Run| run.cargo(&["fmt", "--all", "--check"]),
};

pub(crate) const TIDY: Stage<'static> = Stage {
    name: "tidy",
    about: "who may import whom, licences, unsafe code, sizes, links (tests/tidy)",
    minutes_max: 15,
    run: &|run: &mut Run| {
        crate::test::ensure_nextest(run)?;
        run.nextest("ci", &["--package", "tests", "--test", "tidy", "--ignore-default-filter"])
    },
};

pub(crate) const CLIPPY: Stage<'static> = Stage {
    name: "clippy",
    about: "no warning in any target of any crate",
    minutes_max: 25,
    run: &|run: &mut Run| {
        run.cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--keep-going", "--", "-D", "warnings"])
    },
};

pub(crate) fn run() -> Result<ExitCode> {
    stage::run(&[FORMAT, TIDY, CLIPPY], &[])
}

pub(crate) fn format() -> Result<ExitCode> {
    Run::new()?.cargo(&["fmt", "--all"])?;
    Ok(ExitCode::SUCCESS)
}
