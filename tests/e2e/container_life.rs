//! What containers outlive, and what they leave behind: nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use meshlab::wait_until;
use tests::containers::IMAGE;
use tests::vdc_lab::{PATIENCE, in_lab};

use crate::containers::one_box;

#[test]
fn containers_outlive_the_daemon_and_are_found_again() -> Result<()> {
    in_lab(|lab| {
        let mut berlin = one_box(lab, "")?;
        let counter = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
        berlin.run_detached(&["--name", "counter", IMAGE, "sh", "-c", counter])?;
        berlin.run_detached(&["--name", "web", "-p", "8080:80", IMAGE, "httpd", "-f", "-h", "/www"])?;
        berlin.run_detached(&["--rm", "--name", "passing", IMAGE, "sleep", "1000"])?;
        let before = berlin.inspect("counter")?;
        let page = || berlin_page(&berlin);
        ensure!(page().is_some());
        for _ in 0..3 {
            berlin.kill_daemon()?;
            ensure!(berlin_page(&berlin).is_some(), "published ports need no daemon");
            berlin.start_daemon()?;
        }
        let after = wait_until(PATIENCE, "it is found", || {
            let view = berlin.inspect("counter").map_err(|error| error.to_string())?;
            if view["phase"] == "running" { Ok(view) } else { Err(view.to_string()) }
        })?;
        ensure!(after["pid"] == before["pid"] && after["addresses"] == before["addresses"], "{before} {after}");
        ensure!(berlin.inspect("passing")?["phase"] == "running");
        // The log has no gap over all restarts.
        let text = berlin.run(&["logs", "counter"])?.stdout;
        let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        ensure!(numbers.len() > 10 && numbers.iter().zip(1..).all(|(n, expected)| *n == expected), "{text}");
        ensure!(berlin.run(&["exec", "counter", "true"])?.is_ok(), "it can be entered again");
        // What ended while nobody watched is told, and what was to be removed is.
        let pid = berlin.inspect("counter")?["pid"].as_u64().unwrap_or(0);
        let passing = berlin.inspect("passing")?["pid"].as_u64().unwrap_or(0);
        berlin.kill_daemon()?;
        berlin.host.sh(&format!("kill -9 {pid} {passing}"))?;
        berlin.start_daemon()?;
        let ended = berlin.wait_phase("counter", "exited")?;
        ensure!(ended["exit"]["code"] == 137 && ended["exit"]["signal"] == 9, "{ended}");
        wait_until(PATIENCE, "it is gone", || berlin.inspect("passing").is_err())?;
        // The keeper of a container dies: the container does too, and the restart policy holds.
        berlin.run_detached(&["--name", "kept", "--restart", "always", IMAGE, "sleep", "1000"])?;
        let id = berlin.inspect("kept")?["id"].as_str().unwrap_or_default().to_owned();
        berlin.host.sh(&format!("kill -9 $(cut -d' ' -f1 /run/meshd/w/{id}/shim)"))?;
        let again = wait_until(PATIENCE, "it was started again", || {
            let view = berlin.inspect("kept").map_err(|error| error.to_string())?;
            if view["phase"] == "running" && view["restarts"] == 1 { Ok(view) } else { Err(view.to_string()) }
        })?;
        ensure!(again["id"] == id.as_str(), "{again}");
        Ok(())
    })
}

fn berlin_page(node: &tests::containers::ContainerNode) -> Option<String> {
    node.fetch("http://127.0.0.1:8080/", "-4").ok().flatten()
}

#[test]
fn host_that_restarts_brings_containers_back_without_a_network() -> Result<()> {
    in_lab(|lab| {
        let mut berlin = one_box(lab, "")?;
        berlin.run_detached(&[
            "--name",
            "web",
            "--restart",
            "always",
            "-p",
            "8080:80",
            IMAGE,
            "sh",
            "-c",
            "date +%s%N >> /starts; exec httpd -f -h /www",
        ])?;
        berlin.run_detached(&["--name", "once", IMAGE, "sleep", "1000"])?;
        berlin.run_detached(&["--rm", "--name", "passing", IMAGE, "sleep", "1000"])?;
        let addresses = berlin.inspect("web")?["addresses"].clone();
        // All processes end at once, and memory forgets: /run is empty, the network namespaces are gone.
        berlin.kill_daemon()?;
        berlin.host.unplug()?;
        berlin.host.sh("for p in $(pgrep meshd-shim); do kill -9 $p; done; sleep 0.3; \
             for m in $(grep ' /run/meshd' /proc/self/mounts | cut -d' ' -f2 | sort -r); do umount -l $m; done; \
             for n in $(ls /run/netns); do ip netns del $n; done; rm -rf /run/meshd; \
             for l in $(ip -br link | grep -oE '^(mesh|x)-[a-z]*'); do ip link del $l; done")?;
        berlin.start_daemon()?;
        let back = wait_until(PATIENCE, "it is back", || {
            let view = berlin.inspect("web").map_err(|error| error.to_string())?;
            if view["phase"] == "running" { Ok(view) } else { Err(view.to_string()) }
        })?;
        ensure!(back["addresses"] == addresses, "{back}");
        wait_until(PATIENCE, "it serves", || berlin_page(&berlin).is_some())?;
        let starts = berlin.run(&["exec", "web", "cat", "/starts"])?.stdout;
        ensure!(starts.lines().count() == 2, "what it wrote is there: {starts}");
        let once = berlin.inspect("once")?;
        ensure!(once["phase"] == "exited" && once["exit"]["cause"] == "host-reboot", "{once}");
        ensure!(berlin.inspect("passing").is_err(), "it was to be forgotten");
        Ok(())
    })
}

#[test]
fn nothing_is_left_of_many_rounds() -> Result<()> {
    in_lab(|lab| {
        let rounds: u32 = std::env::var("MESHD_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
        let berlin = one_box(lab, "")?;
        // The first one makes what all of a VDC's workloads share.
        berlin.script(&[], "true")?;
        let before = settled(&berlin)?;
        let open = berlin.host.sh(&format!("ls /proc/{}/fd | wc -l", berlin.pid()?))?;
        for round in 0..rounds {
            match round % 4 {
                0 => drop(berlin.script(&["-p", "8080:80", "--name", "a"], "true")?),
                1 => {
                    berlin.run_detached(&["--name", "b", "--port", "80", IMAGE, "sleep", "1000"])?;
                    berlin.ctl(&["rm", "-f", "b"])?;
                }
                2 => {
                    let output = berlin.run(&["run", "--rm", IMAGE, "/nothing"])?;
                    ensure!(output.status.code() == Some(127), "{output:?}");
                }
                _ => {
                    berlin.run_detached(&["--name", "c", IMAGE, "sh", "-c", "exit 3"])?;
                    berlin.wait_phase("c", "exited")?;
                    berlin.ctl(&["rm", "c"])?;
                }
            }
        }
        let mut after = String::new();
        let same = wait_until(PATIENCE, "everything is as it was", || {
            after = berlin.traces().unwrap_or_default();
            after == before
        });
        ensure!(same.is_ok(), "before:\n{before}\nafter {rounds} rounds:\n{after}");
        let now = berlin.host.sh(&format!("ls /proc/{}/fd | wc -l", berlin.pid()?))?;
        let (open, now): (i64, i64) = (open.trim().parse()?, now.trim().parse()?);
        ensure!(now <= open + 8, "{open} descriptors before, {now} after");
        Ok(())
    })
}

/// The traces once two looks agree.
fn settled(node: &tests::containers::ContainerNode) -> Result<String> {
    let mut last = node.traces()?;
    Ok(wait_until(PATIENCE, "the host rests", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = node.traces().map_err(|error| error.to_string())?;
        if now == last {
            return Ok(now);
        }
        last = now;
        Err("it changes".to_owned())
    })?)
}
