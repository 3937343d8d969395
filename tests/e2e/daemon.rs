//! The daemon and its machine: ports, permissions, disks.

use std::net::UdpSocket;

use anyhow::{Result, ensure};
use meshlab::wait_until;
use tests::vdc_lab::{Node, PATIENCE, binary, in_lab, site};

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
        ensure!(refused.stderr.contains("no space left") && refused.stderr.contains("hint:"), "{}", refused.stderr);
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
