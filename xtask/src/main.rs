//! `cargo xtask`: every routine of this repository in one place, the same on a laptop and in continuous integration.
//!
//! Nothing of the product is linked here, so this builds in seconds and runs even when the product does not compile.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks on its terminal")]

mod bench;
mod debian;
mod demo;
mod lint;
mod soak;
mod stage;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Routines of this repository", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Play the product's story with real processes in a lab: a VDC over three sites, with traffic, cuts and a revoke
    Demo(demo::Options),
    /// Run every check, cheap ones first; stops at the first stage that fails
    Test(test::Options),
    /// The longer tier: fuzz discovery, new simulation seeds, repeated end-to-end runs, security advisories
    Soak(soak::Options),
    /// Measure; prints a table, or JSON
    Bench(bench::Options),
    /// Formatting, tidy rules and clippy: what to run before a commit
    Lint,
    /// Format every crate
    Fmt,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Lint => lint::run(),
        Command::Fmt => lint::format(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
