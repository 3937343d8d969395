//! `coordbox`: see the README.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program prints what it found")]

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use coordbox::{Bench, Check, Load, Peer, Serve};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(
    name = "coordbox",
    about = "A coordination node as a process over plain TCP, and load for it: tests and benches only",
    after_help = "Examples:
  coordbox serve --seed 1 --listen 127.0.0.1:7001 --data c1 --found --peer 2=127.0.0.1:7002
  coordbox serve --seed 2 --listen 127.0.0.1:7002 --data c2 --peer 1=127.0.0.1:7001
  coordbox found --peer 1=127.0.0.1:7001 --peer 2=127.0.0.1:7002
  coordbox ask --at 127.0.0.1:7001 status
  coordbox load --peer 1=127.0.0.1:7001 --peer 2=127.0.0.1:7002 --clients 64 --seconds 5
  coordbox load --peer 1=127.0.0.1:7001 --peer 2=127.0.0.1:7002 --rate 1000 --record noted
  coordbox check --peer 1=127.0.0.1:7001 --peer 2=127.0.0.1:7002 --record noted"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve one node
    Serve(Serve),
    /// Make voters of nodes that are up; the first was started with --found
    Found {
        /// The nodes; again for each
        #[arg(long = "peer", value_name = "SEED=ADDRESS:PORT", required = true)]
        peers: Vec<Peer>,
        /// How many groups
        #[arg(long, default_value_t = 1)]
        groups: u32,
    },
    /// Put one question to one node
    Ask {
        #[arg(long, value_name = "ADDRESS:PORT")]
        at: SocketAddr,
        /// Number of the group
        #[arg(long, default_value_t = 0)]
        group: u32,
        #[command(subcommand)]
        question: Question,
    },
    /// Write or read as many clients and print figures
    Load(Load),
    /// Hold a record against what the group has; fails if something was lost or done twice
    Check(Check),
    /// Measure three nodes, and three of etcd beside them; a figure a line
    Bench(Bench),
}

#[derive(Subcommand)]
enum Question {
    /// How it stands to the group
    Status,
    /// Have a node follow (the leader does it)
    Learner { node: u32 },
    /// Have a learner follow no more (the leader does it)
    Remove { node: u32 },
    /// Have these nodes vote (the leader does it)
    Voters { nodes: Vec<u32> },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<bool> {
    let said = match command {
        Command::Serve(options) => {
            coordbox::serve(&options).await?;
            return Ok(true);
        }
        Command::Bench(options) => {
            coordbox::bench(&options, |figure| println!("{figure}")).await?;
            return Ok(true);
        }
        Command::Found { peers, groups } => {
            coordbox::found(&peers, groups).await?;
            json!({ "founded": groups })
        }
        Command::Ask { at, group, question } => coordbox::ask(at, &asked(group, &question)).await?,
        Command::Load(options) => coordbox::load(&options).await?,
        Command::Check(options) => coordbox::check(&options).await?,
    };
    println!("{said}");
    let bad = |name: &str| said[name].as_u64().is_some_and(|count| count > 0);
    Ok(!(bad("lost") || bad("duplicated") || bad("refused_but_there")))
}

fn asked(group: u32, question: &Question) -> Value {
    match question {
        Question::Status => json!({ "do": "status", "group": group }),
        Question::Learner { node } => json!({ "do": "learner", "group": group, "node": node }),
        Question::Remove { node } => json!({ "do": "remove", "group": group, "node": node }),
        Question::Voters { nodes } => json!({ "do": "voters", "group": group, "nodes": nodes }),
    }
}
