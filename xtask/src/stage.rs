//! Stages: named, timed, bounded steps, run in order. The first that fails ends the run; a table closes it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// One step of a run.
pub(crate) struct Stage<'a> {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Longer than this and the stage's processes are ended. Sized for a cold build on two cores.
    pub(crate) minutes_max: u64,
    pub(crate) run: &'a dyn Fn(&mut Run) -> Result<()>,
}

/// What nextest counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

/// The context of one run: where the workspace is, until when the stage may run, what was counted so far.
pub(crate) struct Run {
    root: PathBuf,
    deadline: Instant,
    counts: Counts,
}

/// Runs `stages` in order, or only those in `only`. Prints each one's name, time and result, a closing table and, last,
/// the plain line `N passed, N failed` over all tests that ran. A failed stage ends the run with a failure.
///
/// # Errors
/// If `only` names an unknown stage.
pub(crate) fn run(stages: &[Stage<'_>], only: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = only.iter().find(|name| !stages.iter().any(|s| s.name == **name)) {
        let known: Vec<_> = stages.iter().map(|s| s.name).collect();
        bail!("no stage is named {unknown:?}; there are: {}", known.join(", "));
    }
    let mut run = Run::new()?;
    let mut rows = Vec::new();
    let mut failure = None;
    let started = Instant::now();
    for stage in stages.iter().filter(|s| only.is_empty() || only.iter().any(|name| name == s.name)) {
        if failure.is_some() {
            rows.push((stage.name, String::new(), "not run"));
            continue;
        }
        println!("\n=== {}: {}", stage.name, stage.about);
        let stage_started = Instant::now();
        run.deadline = stage_started + Duration::from_secs(stage.minutes_max * 60);
        let outcome = (stage.run)(&mut run);
        let took = format_duration(stage_started.elapsed());
        let result = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("=== {}: {result} in {took}", stage.name);
        rows.push((stage.name, took, result));
        failure = outcome.err().map(|error| error.context(format!("stage {}", stage.name)));
    }
    println!("\n{:<14} {:>9}  result", "stage", "time");
    for (name, took, result) in rows {
        println!("{name:<14} {took:>9}  {result}");
    }
    println!("{:<14} {:>9}", "in all", format_duration(started.elapsed()));
    if let Some(error) = &failure {
        eprintln!("error: {error:#}");
    }
    println!("{} passed, {} failed", run.counts.passed, run.counts.failed);
    Ok(if failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints the stages' names and what they do.
pub(crate) fn list(stages: &[Stage<'_>]) {
    for stage in stages {
        println!("{:<14} {} (at most {} min)", stage.name, stage.about, stage.minutes_max);
    }
}

impl Run {
    /// # Errors
    /// If this was not started by `cargo xtask`, which tells where the workspace is.
    pub(crate) fn new() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").context("start this as `cargo xtask …`")?;
        let root = Path::new(&manifest).parent().context("xtask is a folder of the workspace")?.to_owned();
        // A day: commands outside any stage (demo, bench) are bounded by what they start.
        Ok(Self { root, deadline: Instant::now() + Duration::from_secs(86_400), counts: Counts::default() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The compiler's name for this platform.
    pub(crate) fn host_platform(&self) -> Result<String> {
        let output = self.command("rustc", &["--print", "host-tuple"]).output().context("cannot start rustc")?;
        let text = String::from_utf8(output.stdout).context("rustc prints UTF-8")?;
        Ok(text.trim().to_owned())
    }

    /// Where cargo puts what it builds.
    pub(crate) fn target_dir(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// A command in the workspace's root, without the variables that `cargo run` sets for this very process: the build
    /// scripts of some crates watch them, and would run again at each change between `cargo` and `cargo xtask`.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            let of_this_crate = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
            if of_this_crate.iter().any(|prefix| name_text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Runs `cargo` with these arguments to its end.
    pub(crate) fn cargo<S: AsRef<OsStr>>(&mut self, arguments: &[S]) -> Result<()> {
        let command = self.command("cargo", arguments);
        self.finish(command)
    }

    /// Runs a command to its end; a failure or the end of the stage's time is an error that names it.
    pub(crate) fn finish(&mut self, mut command: Command) -> Result<()> {
        let shown = show(&command);
        // Not on standard output: `bench --output json` has that for its figures.
        eprintln!("$ {shown}");
        let child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        let status = wait_until(child, self.deadline).with_context(|| shown.clone())?;
        if !status.success() {
            bail!("{shown}: {status}");
        }
        Ok(())
    }

    /// Runs nextest with a profile that writes a JUnit report, and adds up what it counted, also when tests failed.
    pub(crate) fn nextest(&mut self, profile: &str, arguments: &[&str]) -> Result<()> {
        self.nextest_with(profile, arguments, &[])
    }

    /// The same with some of the environment set.
    pub(crate) fn nextest_with(&mut self, profile: &str, arguments: &[&str], set: &[(&str, &str)]) -> Result<()> {
        // Under the workspace, wherever the target directory is: `store.dir` in .config/nextest.toml.
        let report = self.root().join("target/nextest").join(profile).join("junit.xml");
        if report.exists() {
            fs::remove_file(&report).with_context(|| format!("cannot remove the old {}", report.display()))?;
        }
        let mut all = vec!["nextest", "run", "--locked", "--profile", profile];
        all.extend(arguments);
        let mut command = self.command("cargo", &all);
        // Where end-to-end tests find the binaries that were built before them, and programs that are not installed.
        command.env("MESHD_BIN_DIR", self.target_dir().join("debug"));
        command.env("MESHD_DEBIAN_DIR", crate::debian::unpacked_dir(self));
        command.envs(set.iter().copied());
        let outcome = self.finish(command);
        if let Ok(text) = fs::read_to_string(&report) {
            let counts = junit_counts(&text).with_context(|| format!("cannot read {}", report.display()))?;
            self.counts.passed += counts.passed;
            self.counts.failed += counts.failed;
        } else if outcome.is_ok() {
            bail!("nextest passed and left no {}", report.display());
        }
        outcome
    }
}

/// Whether `program --version` (or the like) runs.
pub(crate) fn available(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

fn show(command: &Command) -> String {
    let mut text = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            text += &format!("{}={:?} ", name.to_string_lossy(), value.to_string_lossy());
        }
    }
    text += &command.get_program().to_string_lossy();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        if argument.contains(' ') {
            text += &format!(" '{argument}'");
        } else {
            text += &format!(" {argument}");
        }
    }
    text
}

/// Waits for a child; past the deadline it and everything below it is asked, then forced, to end.
fn wait_until(mut child: Child, deadline: Instant) -> Result<std::process::ExitStatus> {
    /// How often the child is looked at: far below what any stage takes.
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    /// From asking to forcing.
    const GRACE: Duration = Duration::from_secs(10);

    let mut asked = None;
    loop {
        if let Some(status) = child.try_wait()? {
            match asked {
                None => return Ok(status),
                Some(_) => bail!("took longer than its stage may; ended"),
            }
        }
        let now = Instant::now();
        match asked {
            None if now >= deadline => {
                signal_tree(child.id(), "-TERM");
                asked = Some(now);
            }
            Some(when) if now >= when + GRACE => signal_tree(child.id(), "-KILL"),
            _ => {}
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Sends a signal to a process and all its descendants. The tree stays in our own process group, so that Ctrl-C on the
/// terminal reaches it as well.
fn signal_tree(root: u32, signal: &str) {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let parent = fs::read_to_string(entry.path().join("stat")).ok().and_then(|stat| parent_of(&stat));
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(pid) = tree.get(next) {
        tree.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    let pids = tree.iter().map(u32::to_string);
    // A process that is already gone makes kill fail, which is what was wanted.
    let _ = Command::new("kill").arg(signal).args(pids).output();
}

/// The parent's id in a `/proc/PID/stat` line; the program's name before it may hold blanks and parentheses.
fn parent_of(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The totals in a JUnit report: attributes of its root element.
fn junit_counts(report: &str) -> Option<Counts> {
    let root = report.split_once("<testsuites ")?.1.split_once('>')?.0;
    let attribute =
        |name: &str| -> Option<u64> { root.split_once(&format!("{name}=\""))?.1.split_once('"')?.0.parse().ok() };
    let failed = attribute("failures")? + attribute("errors")?;
    Some(Counts { passed: attribute("tests")?.checked_sub(failed)?, failed })
}

fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 {
        format!("{} m {:02} s", seconds / 60, seconds % 60)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn junit_root_is_counted() {
        let report = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="13" failures="2" errors="1" uuid="x" time="0.5">
    <testsuite name="vdc" tests="13" disabled="0" errors="0" failures="2">"#;
        assert_eq!(junit_counts(report), Some(Counts { passed: 10, failed: 3 }));
        assert_eq!(junit_counts("<testsuites tests=\"1\" failures=\"2\" errors=\"0\">"), None);
        assert_eq!(junit_counts(""), None);
    }

    #[test]
    fn parent_is_found_behind_odd_names() {
        assert_eq!(parent_of("12 (a) b (c)) S 7 12 12 0"), Some(7));
        assert_eq!(parent_of("12 ("), None);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(format_duration(Duration::from_millis(1_240)), "1.2 s");
        assert_eq!(format_duration(Duration::from_secs(61)), "1 m 01 s");
    }

    #[test]
    fn child_past_its_deadline_is_ended_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo both; wait"]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("sh starts");
        let mut line = [0; 5];
        child.stdout.as_mut().expect("piped").read_exact(&mut line).expect("both are running");
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).expect("it lives");
        let error = wait_until(child, Instant::now()).expect_err("it sleeps far longer");
        assert!(error.to_string().contains("longer than its stage may"), "{error}");
        assert!(!children.trim().is_empty());
        for pid in children.split_ascii_whitespace() {
            let command_line = format!("/proc/{pid}/cmdline");
            let patience = Instant::now() + Duration::from_secs(20);
            // A zombie that nobody collected yet has no command line any more.
            while fs::read(&command_line).is_ok_and(|text| !text.is_empty()) {
                assert!(Instant::now() < patience, "{pid} was left behind");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn unknown_stage_is_refused() {
        let error = run(&[], &["nope".to_owned()]).expect_err("there is none");
        assert!(error.to_string().contains("nope"), "{error}");
    }
}
