//! `meshctl`, the command line of meshd: parse, call the daemon's API over its unix socket, show the answer.
//!
//! It decides nothing and keeps nothing. Whatever it can do, the API can do.
#![forbid(unsafe_code)]

mod cli;
mod client;
mod commands;
mod confirm;
mod failure;
mod interrupt;
mod progress;
mod raw;
mod secret;
mod session;
mod show;
mod sse;
mod terminal;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, ColorChoice};
use crate::failure::{Exit, Failure};
use crate::terminal::{Style, Terminal, color_wanted};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let usage = error.use_stderr();
            // Nothing is left to be done about a closed terminal.
            let _printed = error.print();
            return if usage { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let color = |is_terminal| match cli.global.color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => color_wanted(is_terminal, |name| std::env::var_os(name)),
    };
    let mut terminal = Terminal::new(
        Style::new(color(std::io::stdout().is_terminal())),
        Style::new(color(std::io::stderr().is_terminal())),
    );
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return terminal.fail(&Failure::new("cannot start").caused_by(&error)),
    };
    let ended = runtime.block_on(commands::run(cli, &mut terminal));
    // What still reads standard input must not keep the process.
    runtime.shutdown_background();
    match ended {
        Ok(()) => Exit::Done.into(),
        Err(failure) => terminal.fail(&failure),
    }
}
