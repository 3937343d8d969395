//! `sim`: a VDC of thousands of nodes under virtual time, made of the shipped pure crates.
//!
//! What it is: the shipped roster, record sync, choice of links, invites, issuing and overlay, with everything around them
//! simulated: clocks, delay, loss, partitions, power cuts, thieves. What it is not: a test of sockets or kernels; those
//! are in the network-namespace labs.
//!
//! Main type: [`world::World`], an event heap ordered by (virtual time, order of scheduling) and the nodes. One thread;
//! every draw comes from the seed, so a run is repeated exactly by its seed, scenario and knobs, and the hash of its event
//! log says whether it was.
#![forbid(unsafe_code)]

mod founding;
mod network;
mod node;
mod random;
mod report;
mod scenario;
#[cfg(test)]
mod tests;
mod trace;
mod traffic;
mod world;

// Writing to a String cannot fail.
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use report::{Phase, Report};
use scenario::{SCENARIOS, Scenario};
use world::{Knobs, SECOND_US, World};

/// Run scenarios of a whole VDC under virtual time
#[derive(Debug, Parser)]
#[command(
    name = "sim",
    after_help = "Examples:
  sim                                        all scenarios in one world, 1,000 nodes, 10 virtual minutes
  sim --scenario revoke --seed 7             one scenario, another seed
  sim --nodes 100 --sites 4 --output json    smaller, for a program to read
  sim --list                                 what there is

A failing assertion prints the seed, the scenario and the last events; the same arguments repeat it exactly."
)]
struct Options {
    /// Everything random in the run follows from this number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Boxes at the beginning; scenarios let more join
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(20..=20_000))]
    nodes: u64,
    /// Sites over which they are spread
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(3..=500))]
    sites: u64,
    /// Least virtual minutes; what the scenarios leave over passes idle
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// A scenario's name, or `all` of them one after the other
    #[arg(long, default_value = "all")]
    scenario: String,
    /// How to print figures
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Print the scenarios and stop
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run_command(&options) {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut text = format!("error: {error}");
            for cause in error.chain().skip(1) {
                let _ = write!(text, "\ncaused by: {cause}");
            }
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "a program's errors")]
fn complain(text: &str) {
    eprintln!("{text}");
}

fn run_command(options: &Options) -> Result<String> {
    if options.list {
        let lines: Vec<String> = SCENARIOS.iter().map(|s| format!("{:<20} {}", s.name, s.about)).collect();
        return Ok(lines.join("\n"));
    }
    let scenarios = chosen(&options.scenario)?;
    let knobs = Knobs {
        seed: options.seed,
        nodes: usize::try_from(options.nodes).context("too many nodes")?,
        sites: usize::try_from(options.sites.min(options.nodes)).context("too many sites")?,
        minutes: options.minutes,
    };
    let report = run(knobs, &options.scenario, &scenarios)?;
    Ok(match options.output {
        Output::Text => report.to_string(),
        Output::Json => serde_json::to_string_pretty(&report)?,
    })
}

fn chosen(name: &str) -> Result<Vec<Scenario>> {
    if name == "all" {
        return Ok(SCENARIOS.to_vec());
    }
    let found = SCENARIOS.iter().find(|s| s.name == name);
    let scenario = *found.with_context(|| format!("there is no scenario {name:?}; `sim --list` shows all"))?;
    // Everything begins with boxes that are switched on.
    Ok(if scenario.name == SCENARIOS[0].name { vec![scenario] } else { vec![SCENARIOS[0], scenario] })
}

/// Plays the scenarios in one world.
fn run(knobs: Knobs, name: &str, scenarios: &[Scenario]) -> Result<Report> {
    let started = Instant::now();
    let mut world = World::new(knobs);
    let (mut figures, mut phases) = (Vec::new(), Vec::new());
    play(&mut world, scenarios, &mut figures, &mut phases).with_context(|| failure(&world, name))?;
    Ok(Report {
        knobs,
        scenario: name.to_owned(),
        virtual_s: seconds(world.now_us),
        real_s: started.elapsed().as_secs_f64(),
        phases,
        events: world.trace.events(),
        figures,
        trace: world.trace.hash(),
    })
}

fn play(
    world: &mut World,
    scenarios: &[Scenario],
    figures: &mut Vec<report::Figure>,
    phases: &mut Vec<Phase>,
) -> Result<()> {
    for scenario in scenarios {
        let started = Instant::now();
        world.note(scenario.name);
        (scenario.run)(world, figures).with_context(|| format!("in scenario {}", scenario.name))?;
        phases.push(Phase {
            scenario: scenario.name,
            until_s: seconds(world.now_us),
            real_s: started.elapsed().as_secs_f64(),
        });
    }
    let end_us = world.knobs.minutes * 60 * SECOND_US;
    world.run_until(end_us.max(world.now_us));
    scenario::check_end(world, figures)
}

/// What is needed to repeat a failure and to begin to understand it.
fn failure(world: &World, scenario: &str) -> String {
    let Knobs { seed, nodes, sites, minutes } = world.knobs;
    let mut text = format!(
        "an assertion failed at {:.3} s; repeat it with\n  sim --seed {seed} --nodes {nodes} --sites {sites} --minutes \
         {minutes} --scenario {scenario}\nlast events:\n",
        seconds(world.now_us)
    );
    for line in world.trace.tail() {
        let _ = writeln!(text, "{line}");
    }
    text.truncate(text.trim_end().len());
    text
}

fn seconds(us: u64) -> f64 {
    std::time::Duration::from_micros(us).as_secs_f64()
}
