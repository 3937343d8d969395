//! `cargo xtask test`: every check, cheap ones first.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::stage::{self, Run, Stage};
use crate::{debian, lint};

#[derive(Args)]
pub(crate) struct Options {
    /// Run only this stage (may be given several times)
    #[arg(long, value_name = "NAME")]
    stage: Vec<String>,
    /// Print the stages and stop
    #[arg(long)]
    list: bool,
}

const STAGES: &[Stage<'static>] = &[
    Stage {
        name: "packages",
        about: "Debian packages of xtask/debian-packages.txt are installed or unpacked",
        minutes_max: 10,
        run: &|run: &mut Run| {
            debian::ensure_packages(run)?;
            debian::ensure_unpacked(run)
        },
    },
    lint::FORMAT,
    lint::TIDY,
    lint::CLIPPY,
    Stage {
        name: "unit",
        about: "unit and property tests, and the fuzz corpora through every decoder",
        minutes_max: 30,
        run: &|run: &mut Run| {
            ensure_nextest(run)?;
            run.nextest("ci", &["--workspace"])
        },
    },
    Stage {
        name: "doc-tests",
        about: "the examples in the documentation run",
        minutes_max: 15,
        run: &|run: &mut Run| run.cargo(&["test", "--doc", "--workspace", "--locked", "--quiet"]),
    },
    Stage {
        name: "simulations",
        about: "fixed seeds of a whole VDC under virtual time, a thousand nodes among them",
        minutes_max: 15,
        run: &|run: &mut Run| {
            simulate(run, &["--seed", "1"])?;
            simulate(run, &["--seed", "2", "--nodes", "200", "--sites", "5"])?;
            simulate(run, &["--seed", "3", "--nodes", "60", "--sites", "20"])
        },
    },
    Stage {
        name: "e2e",
        about: "real processes in network-namespace labs, one test at a time",
        minutes_max: 30,
        run: &end_to_end,
    },
    Stage {
        name: "docs",
        about: "rustdoc without a warning",
        minutes_max: 15,
        run: &|run: &mut Run| {
            let mut command =
                run.command("cargo", &["doc", "--workspace", "--no-deps", "--locked", "--quiet", "--keep-going"]);
            command.env("RUSTDOCFLAGS", "-D warnings");
            run.finish(command)
        },
    },
];

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        stage::list(STAGES);
        return Ok(ExitCode::SUCCESS);
    }
    stage::run(STAGES, &options.stage)
}

pub(crate) fn simulate(run: &mut Run, arguments: &[&str]) -> Result<()> {
    let sim = ["run", "--quiet", "--locked", "--package", "simulations", "--bin", "sim", "--"];
    run.cargo(&[&sim, arguments].concat())
}

/// The runner of all tests. Pinned: the profiles in `.config/nextest.toml` were written for it.
pub(crate) fn ensure_nextest(run: &mut Run) -> Result<()> {
    if stage::available("cargo-nextest", &["nextest", "--version"]) {
        return Ok(());
    }
    run.cargo(&["install", "cargo-nextest", "--version", "0.9.143", "--locked"])
}

pub(crate) fn end_to_end(run: &mut Run) -> Result<()> {
    build_for_end_to_end(run)?;
    run.nextest("e2e", &["--package", "tests", "--test", "e2e"])
}

/// One test, a hundred times in one lab.
pub(crate) fn race(run: &mut Run) -> Result<()> {
    build_for_end_to_end(run)?;
    let arguments = ["--package", "tests", "--test", "e2e", "one_of_two_boxes_wins_a_race_for_one_token"];
    run.nextest_with("race", &arguments, &[("E2E_ROUNDS", "100")])
}

/// One test with many containers, then nothing may be left of them.
pub(crate) fn containers(run: &mut Run) -> Result<()> {
    build_for_end_to_end(run)?;
    let arguments = ["--package", "tests", "--test", "e2e", "nothing_is_left_of_many_rounds"];
    run.nextest_with("race", &arguments, &[("MESHD_ROUNDS", "1000")])
}

/// Images beside umoci and podman. What was made of them is kept for the next time.
pub(crate) fn images(run: &mut Run) -> Result<()> {
    debian::ensure_packages(run)?;
    debian::ensure_packages_of_soak(run)?;
    build_for_end_to_end(run)?;
    let kept = run.target_dir().join("images").display().to_string();
    run.nextest_with("images", &["--package", "tests", "--test", "conformance"], &[("MESHD_IMAGES_DIR", &kept)])
}

fn build_for_end_to_end(run: &mut Run) -> Result<()> {
    debian::require_root("the end-to-end stage")?;
    debian::ensure_unpacked(run)?;
    ensure_nextest(run)?;
    run.cargo(&[
        "build",
        "--locked",
        "--package",
        "meshd",
        "--package",
        "meshctl",
        "--package",
        "meshd-shim",
        "--package",
        "coordbox",
    ])
}
