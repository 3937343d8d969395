//! `cargo xtask soak`: what takes too long for every change, and what needs more of the outside world.

use std::fs;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
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
    /// Search only this fuzz target
    #[arg(long, value_name = "NAME")]
    fuzz_target: Option<String>,
    /// How long each fuzz target is searched
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    fuzz_seconds: u32,
    /// How many new seeds are simulated
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    seeds: u32,
    /// How many new seeds a coordination group is simulated with
    #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
    coord_seeds: u32,
    /// How many times the end-to-end tests run
    #[arg(long, value_name = "TIMES", default_value_t = 10)]
    repeat: u32,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let fuzz_minutes = u64::from(options.fuzz_seconds) / 60 + 1;
    let stages = [
        Stage {
            name: "packages",
            about: "Debian packages of xtask/debian-packages.txt are installed",
            minutes_max: 10,
            run: &|run: &mut Run| {
                debian::ensure_packages(run)?;
                debian::ensure_packages_of_soak(run)
            },
        },
        Stage {
            name: "fuzz",
            about: "libFuzzer searches each decoder for inputs that break it",
            minutes_max: 30 + fuzz_minutes * 100,
            run: &|run: &mut Run| fuzz(run, options.fuzz_target.as_deref(), options.fuzz_seconds),
        },
        Stage {
            name: "simulations",
            about: "new seeds of a whole VDC under virtual time; a failure prints how to repeat it",
            minutes_max: 10 + 2 * u64::from(options.seeds),
            run: &|run: &mut Run| simulations(run, options.seeds),
        },
        Stage {
            name: "coord",
            about: "new seeds of a coordination group under faults in virtual time; a failure prints how to repeat it",
            minutes_max: 20 + u64::from(options.coord_seeds) / 10,
            run: &|run: &mut Run| coordination(run, options.coord_seeds),
        },
        Stage {
            name: "e2e",
            about: "the end-to-end tests, many times over",
            minutes_max: 30 * u64::from(options.repeat),
            run: &|run: &mut Run| (0..options.repeat).try_for_each(|_| test::end_to_end(run)),
        },
        Stage {
            name: "race",
            about: "two boxes with one token, 100 times; in two of three the registrar dies in between",
            minutes_max: 60,
            run: &test::race,
        },
        Stage {
            name: "containers",
            about: "1,000 containers start, end and leave nothing: namespaces, mounts, control groups, descriptors",
            minutes_max: 60,
            run: &test::containers,
        },
        Stage {
            name: "images",
            about: "twenty images of Debian packages and by hand: unpacked as by umoci, run as by podman",
            minutes_max: 60,
            run: &test::images,
        },
        Stage {
            name: "deny",
            about: "cargo-deny: licences, bans, sources, and advisories (reaches for the public advisory database)",
            minutes_max: 30,
            run: &deny,
        },
    ];
    if options.list {
        stage::list(&stages);
        return Ok(ExitCode::SUCCESS);
    }
    stage::run(&stages, &options.stage)
}

/// Builds the fuzz binary with the compiler's coverage instrumentation, which the stable toolchain has, and lets
/// libFuzzer search each target. What it keeps goes to the target directory, what breaks a decoder is named and fails.
fn fuzz(run: &mut Run, only: Option<&str>, seconds: u32) -> Result<()> {
    const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

    // Naming the platform keeps build scripts and macros out of the instrumentation.
    let host = run.host_platform()?;
    let dir = run.target_dir().join("fuzz");
    let mut build = run.command(
        "cargo",
        &["build", "--release", "--locked", "--package", "fuzz-targets", "--bin", "fuzz", "--features", "libfuzzer"],
    );
    build.args(["--target", &host]).arg("--target-dir").arg(&dir).env("RUSTFLAGS", INSTRUMENTATION);
    build.env("CARGO_PROFILE_RELEASE_LTO", "off");
    run.finish(build)?;

    let corpora = run.root().join("tests/fuzz/corpus");
    let mut targets: Vec<_> = fs::read_dir(&corpora)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect())
        .with_context(|| format!("cannot list {}", corpora.display()))?;
    targets.sort();
    targets.retain(|target| only.is_none_or(|only| target == only));
    if targets.is_empty() {
        bail!("no fuzz target has that name; {} has a folder for each", corpora.display());
    }
    let binary = dir.join(host).join("release/fuzz");
    let mut broken = Vec::new();
    for target in targets {
        let found = dir.join("found").join(&target);
        fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
        let mut search = run.command::<&str>(&binary.to_string_lossy(), &[]);
        search.env("FUZZ_TARGET", &target);
        search.arg(format!("-max_total_time={seconds}")).args(["-timeout=10", "-rss_limit_mb=2048", "-verbosity=0"]);
        search.args(["-print_final_stats=1", "-max_len=65536"]);
        search.arg(format!("-artifact_prefix={}/", dir.display())).args([found, corpora.join(&target)]);
        if let Err(error) = run.finish(search) {
            eprintln!("error: {error:#}");
            broken.push(target.to_string_lossy().into_owned());
        }
    }
    if !broken.is_empty() {
        bail!("inputs that break: {}; they lie in {} as crash-*", broken.join(", "), dir.display());
    }
    Ok(())
}

/// Seeds from the clock on: each soak tries others, and each one's command line is printed.
fn simulations(run: &mut Run, seeds: u32) -> Result<()> {
    let first = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?.as_secs();
    for seed in first..first + u64::from(seeds) {
        test::simulate(run, &["--seed", &seed.to_string(), "--nodes", "200", "--sites", "8"])?;
    }
    Ok(())
}

/// Seeds from the clock on, as above. The crates that count are optimised in the ordinary profile; two seeds run at a time.
fn coordination(run: &mut Run, seeds: u32) -> Result<()> {
    let first = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?.as_secs();
    let chosen = format!("{first}..{}", first + u64::from(seeds));
    let mut test = run.command("cargo", &["test", "--locked", "--package", "meshd-coord", "--test", "histories"]);
    test.args(["--", "--nocapture", "--test-threads", "2", "clients_see_one_history"]);
    eprintln!("MESHD_SEEDS={chosen}");
    test.env("MESHD_SEEDS", chosen);
    run.finish(test)
}

fn deny(run: &mut Run) -> Result<()> {
    if !stage::available("cargo-deny", &["--version"]) {
        run.cargo(&["install", "cargo-deny", "--version", "0.20.2", "--locked"])?;
    }
    run.cargo(&["deny", "--locked", "check", "licenses", "bans", "sources"])?;
    run.cargo(&["deny", "--locked", "check", "advisories"])
        .context("either an advisory applies, or the database could not be fetched: the lines above tell")
}
