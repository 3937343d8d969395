//! `cargo xtask demo`: builds the product as it ships and plays its story in a lab (`tests/demo`).

use std::process::ExitCode;

use anyhow::Result;
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
    build(&mut run, &[("meshd", "meshd"), ("meshctl", "meshctl"), ("tests", "demo")])?;
    let mut demo = command(&run, "demo");
    if options.keep {
        demo.arg("--keep");
    }
    run.finish(demo)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds binaries, each given with its package, in the profile that ships.
pub(crate) fn build(run: &mut Run, binaries: &[(&str, &str)]) -> Result<()> {
    let mut arguments = vec!["build", "--release", "--locked"];
    for (package, binary) in binaries {
        arguments.extend(["--package", package, "--bin", binary]);
    }
    run.cargo(&arguments)
}

/// A command that runs that binary; it finds the others in `MESHD_BIN_DIR`.
pub(crate) fn command(run: &Run, bin: &str) -> std::process::Command {
    let dir = run.target_dir().join("release");
    let mut command = run.command::<&str>(&dir.join(bin).to_string_lossy(), &[]);
    command.env("MESHD_BIN_DIR", &dir);
    command
}
