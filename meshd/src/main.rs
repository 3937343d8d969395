//! The meshd daemon: one process per box, the composition root of everything that a node does.
//!
//! Exit codes: 0 stopped as asked, 1 failed while running or could not start, 2 wrong usage or configuration.
//!
//! `daemon` holds the VDCs and answers the API; `vdc_core` is one VDC's state machine and its task; `data_plane`
//! composes it with the packet threads. Nothing here is per packet.

mod cache;
mod clock;
mod config;
mod coord;
mod daemon;
mod data_plane;
mod dns_hub;
mod entropy;
mod error;
mod events;
mod infra;
mod joining;
mod logging;
mod ping;
mod signals;
mod tasks;
mod vdc_core;
mod views;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::config::Config;

/// The daemon of a virtual datacenter's node. It is controlled with `meshctl`.
#[derive(Debug, Parser)]
#[command(version, about, after_help = "Examples:\n  meshd\n  meshd --config /etc/meshd/meshd.toml\n  meshd --check")]
struct Arguments {
    /// The configuration file [default: /etc/meshd/meshd.toml, which may be missing]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            complain(&anyhow::Error::new(error), Some("see docs/configuration.md for all keys"));
            return ExitCode::from(2);
        }
    };
    if arguments.check {
        say("the configuration is valid");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = logging::init(&config) {
        complain(&error, Some("see docs/configuration.md for all keys"));
        return ExitCode::from(2);
    }
    // Two workers: the control plane is small, and packets have their own threads.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(daemon::run(config)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error, None);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the answer of --check")]
fn say(text: &str) {
    println!("{text}");
}

/// Errors as every tool of the project prints them.
#[expect(clippy::print_stderr, reason = "the daemon's last words, also when logging did not start")]
fn complain(error: &anyhow::Error, hint: Option<&str>) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("caused by: {cause}");
    }
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
}
