//! `cargo xtask demo`: builds the product as it ships and plays its story in a lab (`tests/demo`).

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::debian;
use crate::stage::Run;

#[derive(Args)]
pub(crate) struct Options {
    /// Leave the lab running afterwards and print the next commands to try
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut run = Run::new()?;
    debian::require_root("the demo")?;
    debian::ensure_packages(&mut run)?;
    debian::ensure_unpacked(&mut run)?;
    build(&mut run, &[("meshd", "meshd"), ("meshctl", "meshctl"), ("tests", "demo")])?;
    let mut demo = command(&run, "demo");
    if options.keep {
        demo.arg("--keep");
    }
    run.finish(demo)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds binaries, each given with its package, and the shim, in the profiles that ship.
pub(crate) fn build(run: &mut Run, binaries: &[(&str, &str)]) -> Result<()> {
    let mut arguments = vec!["build", "--release", "--locked"];
    for (package, binary) in binaries {
        arguments.extend(["--package", package, "--bin", binary]);
    }
    run.cargo(&arguments)?;
    build_shim(run)
}

/// Builds the parent of containers, in the profile that it ships in, and lays it beside the daemon, who looks there.
fn build_shim(run: &mut Run) -> Result<()> {
    run.cargo(&["build", "--profile", "shim", "--locked", "--package", "meshd-shim", "--bin", "meshd-shim"])?;
    let target = run.target_dir();
    let (built, beside) = (target.join("shim/meshd-shim"), target.join("release/meshd-shim"));
    // By a rename: one that runs is in nobody's way.
    let new = beside.with_extension("new");
    fs::copy(&built, &new).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::rename(&new, &beside).with_context(|| format!("cannot write {}", beside.display()))
}

/// A command that runs that binary; it finds the others in `MESHD_BIN_DIR`.
pub(crate) fn command(run: &Run, bin: &str) -> std::process::Command {
    let dir = run.target_dir().join("release");
    let mut command = run.command::<&str>(&dir.join(bin).to_string_lossy(), &[]);
    command.env("MESHD_BIN_DIR", &dir).env("MESHD_DEBIAN_DIR", debian::unpacked_dir(run));
    command
}
