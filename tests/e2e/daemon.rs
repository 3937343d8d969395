//! The daemon and its machine: ports, permissions, disks.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use meshlab::wait_until;
use tests::vdc_lab::{Node, PATIENCE, binary, expect_refusal, in_lab, site};

#[test]
fn daemon_says_why_it_does_not_start() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let host = lan.host("paris1")?;
        let meshd = binary("meshd")?;
        let fails = |script: &str, code: i32, part: &str| -> Result<()> {
            let output = host.run(&["sh", "-c", script])?;
            let text = output.stderr.clone();
            ensure!(output.status.code() == Some(code) && text.contains(part), "{script}: {:?} {text}", output.status);
            Ok(())
        };
        host.write_file("/etc/meshd/bad.toml", "prot = 1\n")?;
        fails(&format!("{meshd} --check --config /etc/meshd/bad.toml"), 2, "prot")?;
        host.write_file("/etc/meshd/log.toml", "log = 'info,meshd_tun=loud'\n")?;
        fails(&format!("{meshd} --check --config /etc/meshd/log.toml"), 2, "meshd_tun=loud")?;
        fails(&format!("timeout 20 {meshd} --config /etc/meshd/log.toml"), 2, "meshd_tun=loud")?;
        host.write_file("/etc/meshd/good.toml", "log = 'info'\n")?;
        ensure!(host.run(&[&meshd, "--check", "--config", "/etc/meshd/good.toml"])?.is_ok());
        // The data plane's port is taken.
        host.enter(|| -> Result<()> {
            let _taken = UdpSocket::bind("[::]:4710")?;
            fails(&format!("timeout 20 {meshd}"), 1, "4710")
        })??;
        // A read-only and a full state directory.
        host.sh("mkdir -p /var/lib/ro /var/lib/full && mount -t tmpfs -o ro tmpfs /var/lib/ro")?;
        host.write_file("/etc/meshd/ro.toml", "state_dir = '/var/lib/ro/meshd'\n")?;
        fails(&format!("timeout 20 {meshd} --config /etc/meshd/ro.toml"), 1, "read-only")?;
        host.sh("mount -t tmpfs -o size=16k tmpfs /var/lib/full")?;
        let full = Node::start(host.clone(), "state_dir = '/var/lib/full/meshd'\n")?;
        let (code, text) = full.refused(&["vdc", "create", "acme", "--site", "paris"])?;
        ensure!(code != 0 && text.contains("no space left") && text.contains("hint:"), "{text}");
        ensure!(full.ctl(&["vdc", "list"])?["vdcs"].as_array().is_some_and(Vec::is_empty), "nothing half-made is left");
        // A second daemon beside the first.
        fails(&format!("timeout 20 {meshd}"), 1, "another meshd")?;
        Ok(())
    })
}

#[test]
fn daemon_needs_root_and_says_so() -> Result<()> {
    in_lab(|lab| {
        let host = site(lab, "paris")?.host("paris1")?;
        let script = format!("setpriv --reuid=65534 --regid=65534 --clear-groups {}", binary("meshd")?);
        let output = host.run(&["sh", "-c", &script])?;
        ensure!(output.status.code() == Some(1), "{:?} {}", output.status, output.stderr);
        ensure!(output.stderr.contains("permission") && output.stderr.contains("root"), "{}", output.stderr);
        Ok(())
    })
}

#[test]
fn taken_control_port_is_named_and_nothing_is_left_behind() -> Result<()> {
    in_lab(|lab| {
        let node = Node::start(site(lab, "paris")?.host("paris1")?, "")?;
        let taken = node.host.enter(|| UdpSocket::bind("[::]:4712"))??;
        let (code, text) = node.refused(&["vdc", "create", "acme", "--site", "paris"])?;
        ensure!(code == 1 && text.contains("4712") && text.contains("hint:"), "exit {code}: {text}");
        ensure!(!node.host.ok(&["ip", "-br", "link"])?.contains("mesh"), "an interface is left");
        ensure!(node.ctl(&["vdc", "list"])?["vdcs"].as_array().is_some_and(Vec::is_empty), "a VDC is left");
        drop(taken);
        node.create("acme", "paris")?;
        Ok(())
    })
}

#[test]
fn disk_that_fills_up_stops_changes_and_no_packets() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let host = lan.host("paris1")?;
        host.sh("mkdir -p /var/lib/small && mount -t tmpfs -o size=4m tmpfs /var/lib/small")?;
        let mut paris = Node::start(host, "state_dir = '/var/lib/small/meshd'\n")?;
        let other = Node::start(lan.host("paris2")?, "")?;
        paris.create("acme", "paris")?;
        other.join(&paris.invite("paris")?)?;
        other.wait_for(&paris)?;
        paris.host.run(&["sh", "-c", "cat /dev/zero > /var/lib/small/filler"])?;
        // Small changes may find room in what the store has allocated already.
        let refused = wait_until(PATIENCE, "a change is refused", || {
            let output = paris.run(&["invite", "create"]).map_err(|e| e.to_string())?;
            if output.is_ok() { Err(output.stdout) } else { Ok(output) }
        })?;
        let said = refused.stderr.to_lowercase();
        ensure!(said.contains("no space left") && said.contains("hint:"), "{said}");
        ensure!(other.pings(&paris.address("ipv6")?), "packets still flow");
        paris.host.ok(&["rm", "/var/lib/small/filler"])?;
        paris.invite("paris")?;
        paris.ctl(&["expose", "80"])?;
        // What was confirmed is there after a power cut.
        paris.kill_daemon()?;
        paris.start_daemon()?;
        other.wait_for(&paris)?;
        ensure!(paris.ctl(&["expose"])?.to_string().contains("80/tcp"));
        Ok(())
    })
}

/// What `status` says of VDCs that are on disk and not served: reasons, hints.
fn not_served(node: &Node) -> Result<serde_json::Value> {
    let (status, list) = (node.ctl(&["status"])?, node.ctl(&["vdc", "list"])?);
    ensure!(
        status["not_served"].as_array().map(Vec::len) == list["not_served"].as_array().map(Vec::len),
        "{status} {list}"
    );
    ensure!(!node.run(&["status"])?.stdout.contains("this box is in no VDC"), "it is in one");
    Ok(status["not_served"][0].clone())
}

#[test]
fn vdc_that_cannot_be_served_is_listed_with_the_reason() -> Result<()> {
    in_lab(|lab| {
        let mut node = Node::start(site(lab, "paris")?.host("paris1")?, "")?;
        node.create("acme", "paris")?;
        node.kill_daemon()?;
        let taken = node.host.enter(|| UdpSocket::bind("[::]:4712"))??;
        node.start_daemon()?;
        let one = not_served(&node)?;
        let retry_s = one["retry_s"].as_u64().unwrap_or(99);
        ensure!(one["name"] == "acme" && one.to_string().contains("4712") && one["hint"].is_string(), "{one}");
        ensure!(retry_s <= 5, "{one}");
        let shown = node.run(&["status"])?.stdout;
        ensure!(shown.contains("not served") && shown.contains("4712") && shown.contains("hint:"), "{shown}");
        let health = node.host.sh("curl -s --unix-socket /run/meshd/meshd.sock http://localhost/v1/health")?;
        ensure!(health.contains("\"failing\"") && health.contains("vdc-not-served"), "{health}");
        expect_refusal(node.refused(&["expose", "80"])?, 1, &["acme is not served", "4712", "hint:"])?;
        drop(taken);
        wait_until(PATIENCE, "it is served by itself", || node.status().is_ok_and(|s| s["vdc"]["name"] == "acme"))?;
        ensure!(node.ctl(&["status"])?["not_served"].as_array().is_some_and(Vec::is_empty));
        // A damaged file: nothing helps but to forget the VDC.
        node.kill_daemon()?;
        node.host.sh("find /var/lib/meshd/vdcs/acme -name '*node*' -exec sh -c 'echo broken > {}' ';'")?;
        node.start_daemon()?;
        let one = not_served(&node)?;
        ensure!(one["name"] == "acme" && one["reason"].as_str().is_some_and(|r| r.contains("key")), "{one}");
        node.ctl(&["leave", "--force"])?;
        ensure!(node.ctl(&["status"])?["not_served"].as_array().is_some_and(Vec::is_empty));
        node.create("acme", "paris")?;
        Ok(())
    })
}

#[test]
fn daemon_out_of_reach_is_explained_in_time() -> Result<()> {
    in_lab(|lab| {
        let mut node = Node::start(site(lab, "paris")?.host("paris1")?, "")?;
        let meshctl = binary("meshctl")?;
        let nobody = format!("setpriv --reuid=65534 --regid=65534 --clear-groups {meshctl} vdc list");
        let output = node.host.run(&["sh", "-c", &nobody])?;
        let refusal = (output.status.code().unwrap_or(-1), output.stderr);
        expect_refusal(refusal, 4, &["no permission", "caused by:", "hint: use sudo"])?;
        let pid = node.pid()?.to_string();
        // The box has processes of its own; the id is that of the machine.
        let signal = |name: &str| Command::new("kill").args([name, &pid]).status();
        ensure!(signal("-STOP")?.success());
        for words in [&["status"][..], &["expose", "80"], &["join", "vdc1.x"]] {
            let started = Instant::now();
            let refusal = node.refused(words)?;
            ensure!(started.elapsed() < Duration::from_secs(7), "{words:?} took {:?}", started.elapsed());
            expect_refusal(refusal, 3, &["meshd does not answer", "hint:"])?;
        }
        ensure!(signal("-CONT")?.success());
        node.ctl(&["vdc", "list"])?;
        node.kill_daemon()?;
        expect_refusal(node.refused(&["status"])?, 3, &["cannot reach meshd", "caused by:", "hint:"])?;
        Ok(())
    })
}
