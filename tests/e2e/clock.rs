//! Clocks that are wrong, and clocks that jump. CLOCK_REALTIME has no namespace, so the daemon is started with a small
//! preloaded library (`clock.c`) that moves its wall clock alone; the monotonic clock stays.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use meshlab::{Host, Lab, wait_until};
use tests::vdc_lab::{Node, PATIENCE, ThreeSites, in_lab, site};

const DAY_S: i64 = 86_400;

/// A node's wall clock.
struct WallClock {
    file: std::fs::File,
}

impl WallClock {
    /// Seconds that the clock is ahead of the real one.
    fn set(&self, offset_s: i64) -> Result<()> {
        Ok(self.file.write_all_at(&offset_s.to_ne_bytes(), 0)?)
    }

    /// Starts a node whose clock can be moved.
    fn start(library: &Path, host: Host) -> Result<(Self, Node)> {
        let path = host.dir().join("clock");
        std::fs::write(&path, 0_i64.to_ne_bytes())?;
        let file = std::fs::OpenOptions::new().write(true).open(&path)?;
        let environment = [("LD_PRELOAD", library), ("CLOCK_OFFSET", &path)];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.display().to_string()));
        Ok((Self { file }, Node::start_with(host, "", environment.into())?))
    }
}

fn compile(lab: &Lab) -> Result<PathBuf> {
    meshlab::require_tools(&["gcc:gcc"])?;
    let library = lab.dir().join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/clock.c");
    let output = Command::new("gcc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}

#[test]
fn node_with_a_clock_a_day_off_is_reached_and_told() -> Result<()> {
    in_lab(|lab| {
        let library = compile(lab)?;
        let (paris_site, berlin_site) = (site(lab, "paris")?, site(lab, "berlin")?);
        let paris = Node::start(paris_site.host("paris1")?, "")?;
        let (clock, mut berlin) = WallClock::start(&library, berlin_site.host("berlin1")?)?;
        paris.create("acme", "paris")?;
        berlin.join(&paris.invite("berlin")?)?;
        berlin.wait_for(&paris)?;
        for (offset_s, own) in [(-DAY_S, "clock-behind-records"), (DAY_S, "clock-skew"), (0, "")] {
            // A reboot with that clock. WireGuard's handshakes carry the time, and an older one is a replay.
            berlin.kill_daemon()?;
            clock.set(offset_s)?;
            berlin.start_daemon()?;
            let started = Instant::now();
            berlin.wait_for(&paris)?;
            paris.wait_for(&berlin)?;
            println!("clock off by {offset_s} s: reached after {:?}", started.elapsed());
            if own.is_empty() {
                wait_until(PATIENCE, "nobody complains any more", || {
                    let all = [paris.problems(), berlin.problems()];
                    all.into_iter().all(|p| p.is_ok_and(|p| !p.iter().any(|code| code.starts_with("clock"))))
                })?;
                continue;
            }
            wait_until(PATIENCE, "the node's own complaint", || {
                let problems = berlin.problems().map_err(|e| e.to_string())?;
                if problems.iter().any(|code| code == own) { Ok(()) } else { Err(format!("{problems:?}")) }
            })?;
            wait_until(PATIENCE, "the other's complaint", || {
                let problems = paris.problems().map_err(|e| e.to_string())?;
                if problems.iter().any(|code| code == "clock-skew") { Ok(()) } else { Err(format!("{problems:?}")) }
            })?;
        }
        Ok(())
    })
}

#[test]
fn clock_that_jumps_under_traffic_interrupts_nothing() -> Result<()> {
    in_lab(|lab| {
        let library = compile(lab)?;
        let (paris_site, berlin_site) = (site(lab, "paris")?, site(lab, "berlin")?);
        let paris = Node::start(paris_site.host("paris1")?, "")?;
        let (clock, berlin) = WallClock::start(&library, berlin_site.host("berlin1")?)?;
        paris.create("acme", "paris")?;
        berlin.join(&paris.invite("berlin")?)?;
        berlin.wait_for(&paris)?;
        let address = berlin.address("ipv6")?;
        for offset_s in [-DAY_S, DAY_S, 0] {
            let before = Instant::now();
            clock.set(offset_s)?;
            let log = paris.host.ok(&["ping", "-n", "-q", "-i", "0.05", "-c", "40", &address])?;
            ensure!(log.contains(" 0% packet loss"), "jump to {offset_s} s after {:?}: {log}", before.elapsed());
        }
        Ok(())
    })
}

/// Nothing is restarted and no link is made anew: the complaint comes and goes with the clock.
#[test]
fn clock_that_is_put_right_is_believed_within_a_minute() -> Result<()> {
    in_lab(|lab| {
        let library = compile(lab)?;
        let (paris_site, berlin_site) = (site(lab, "paris")?, site(lab, "berlin")?);
        let paris = Node::start(paris_site.host("paris1")?, "")?;
        let (clock, berlin) = WallClock::start(&library, berlin_site.host("berlin1")?)?;
        paris.create("acme", "paris")?;
        berlin.join(&paris.invite("berlin")?)?;
        berlin.wait_for(&paris)?;
        let link_age = |node: &Node| -> Result<u64> {
            let peers = node.ctl(&["peers"])?;
            peers["peers"][0]["link"]["control"]["age_s"].as_u64().with_context(|| format!("no link: {peers}"))
        };
        let started = Instant::now();
        for (offset_s, wrong) in [(3_600, true), (0, false)] {
            clock.set(offset_s)?;
            let set = Instant::now();
            wait_until(Duration::from_secs(60), "both see it", || {
                let all = [paris.problems(), berlin.problems()].map(|p| p.map_err(|e| e.to_string()));
                let seen =
                    |p: &Result<Vec<String>, String>| p.as_ref().is_ok_and(|p| p.iter().any(|c| c == "clock-skew"));
                if all.iter().all(|p| p.is_ok() && seen(p) == wrong) { Ok(()) } else { Err(format!("{all:?}")) }
            })?;
            println!("clock off by {offset_s} s: seen by both after {:?}", set.elapsed());
        }
        let age = link_age(&paris)?;
        ensure!(age + 5 >= started.elapsed().as_secs(), "the link is {age} s old: it was made anew");
        Ok(())
    })
}

#[test]
fn clock_off_at_join_is_named() -> Result<()> {
    in_lab(|lab| {
        let library = compile(lab)?;
        let (paris_site, berlin_site) = (site(lab, "paris")?, site(lab, "berlin")?);
        let paris = Node::start(paris_site.host("paris1")?, "")?;
        let (clock, berlin) = WallClock::start(&library, berlin_site.host("berlin1")?)?;
        paris.create("acme", "paris")?;
        let token = paris.invite("berlin")?;
        clock.set(DAY_S)?;
        let (code, text) = berlin.refused(&["join", &token])?;
        ensure!(code == 4 && text.contains("expired") && text.contains("clock"), "exit {code}: {text}");
        clock.set(-DAY_S)?;
        let joined = berlin.run(&["join", &token, "--node-name", "berlin1"])?;
        ensure!(joined.is_ok() && joined.stdout.contains("clock"), "{}{}", joined.stdout, joined.stderr);
        berlin.wait_for(&paris)?;
        clock.set(0)?;
        wait_until(PATIENCE, "nobody complains any more", || {
            berlin.problems().is_ok_and(|p| !p.iter().any(|code| code.starts_with("clock")))
        })?;
        Ok(())
    })
}

/// Longer than a membership lasts (24 h), far shorter than its grace (14 days).
#[test]
fn members_outlive_the_absence_of_their_registrar() -> Result<()> {
    in_lab(|lab| {
        let library = compile(lab)?;
        let sites = [site(lab, "paris")?, site(lab, "berlin")?, site(lab, "lisbon")?];
        let (paris_clock, paris) = WallClock::start(&library, sites[0].host("paris1")?)?;
        let (berlin_clock, berlin) = WallClock::start(&library, sites[1].host("berlin1")?)?;
        let (lisbon_clock, lisbon) = WallClock::start(&library, sites[2].host("lisbon1")?)?;
        paris.create("acme", "paris")?;
        berlin.join(&paris.invite("berlin")?)?;
        lisbon.join(&paris.invite("lisbon")?)?;
        let vdc = ThreeSites { sites, paris, berlin, lisbon };
        vdc.wait()?;
        vdc.sites[0].uplink().cut();
        for clock in [&paris_clock, &berlin_clock, &lisbon_clock] {
            clock.set(DAY_S + 3_600)?;
        }
        wait_until(Duration::from_secs(60), "the memberships run out", || {
            let problems = vdc.berlin.problems().map_err(|e| e.to_string())?;
            if problems.iter().any(|code| code == "membership-in-grace") {
                Ok(())
            } else {
                Err(format!("{problems:?}"))
            }
        })?;
        vdc.berlin.wait_for(&vdc.lisbon)?;
        vdc.lisbon.ctl(&["renew"]).err().context("no registrar can be reached")?;
        vdc.sites[0].uplink().heal();
        wait_until(Duration::from_secs(90), "everybody is renewed", || {
            let status = vdc.lisbon.status().map_err(|e| e.to_string())?;
            let standings: Vec<_> = status["nodes"].as_array().into_iter().flatten().map(|n| &n["standing"]).collect();
            let all = standings.len() == 3 && standings.iter().all(|s| *s == "current");
            if all { Ok(()) } else { Err(format!("{standings:?}")) }
        })?;
        vdc.wait()
    })
}
