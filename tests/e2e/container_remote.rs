//! Containers of another node: what it takes, what is carried, and when it ends.

use std::time::Duration;

use anyhow::{Result, ensure};
use meshlab::wait_until;
use tests::containers::{ContainerNode, IMAGE};
use tests::vdc_lab::{PATIENCE, binary, expect_refusal, in_lab, site};

#[test]
fn operator_uses_a_node_that_consents_and_nobody_else_does() -> Result<()> {
    in_lab(|lab| {
        let mut berlin = ContainerNode::start(site(lab, "berlin")?.host("berlin1")?, "")?;
        let lisbon = ContainerNode::start(site(lab, "lisbon")?.host("lisbon1")?, "")?;
        berlin.create("acme", "berlin")?;
        lisbon.join(&berlin.invite("lisbon")?)?;
        lisbon.wait_for(&berlin)?;
        berlin.import_busybox()?;
        let remote = ["--on", "berlin1"];
        let ps = || lisbon.refused(&["ps", "--on", "berlin1"]);
        // Neither the right nor the consent, then only one of them.
        expect_refusal(ps()?, 4, &["operator", "meshctl grant", "hint:"])?;
        berlin.ctl(&["grant", "lisbon1", "--role", "operator"])?;
        wait_until(PATIENCE, "the right is known", || ps().is_ok_and(|(_, text)| text.contains("accept_operators")))?;
        berlin.kill_daemon()?;
        let config = berlin.host.read_file("/etc/meshd/meshd.toml")?;
        berlin.host.write_file("/etc/meshd/meshd.toml", &format!("{config}\n[remote]\naccept_operators = true\n"))?;
        berlin.start_daemon()?;
        wait_until(PATIENCE, "berlin answers", || lisbon.run(&["ps", "--on", "berlin1"]).is_ok_and(|out| out.is_ok()))?;

        // Everything that is done here is done there: input, outputs, status, streams, copies.
        let meshctl = binary("meshctl")?;
        let script = format!(
            "seq 50000 | {meshctl} run --rm -i --on berlin1 {IMAGE} sh -c 'cat | md5sum; hostname >&2; exit 7'; echo status $?; seq 50000 | md5sum"
        );
        let output = lisbon.host.run(&["sh", "-c", &script])?;
        let lines: Vec<&str> = output.stdout.lines().collect();
        ensure!(lines[0] == lines[2] && lines[1] == "status 7" && !output.stderr.is_empty(), "{output:?}");
        lisbon.ctl(&[
            "run",
            "-d",
            "--name",
            "web",
            "--port",
            "80",
            "--on",
            "site=berlin",
            IMAGE,
            "sh",
            "-c",
            "echo up; exec httpd -f -h /www",
        ])?;
        ensure!(berlin.inspect("web")?["phase"] == "running");
        ensure!(lisbon.ctl(&["ps", "--on", "berlin1.berlin"])?["workloads"][0]["node"] == "berlin1");
        ensure!(lisbon.run(&["logs", "web", "--on", "berlin1"])?.stdout == "up\n");
        let said = lisbon.run(&["exec", "--on", "berlin1", "web", "sh", "-c", "echo here; exit 3"])?;
        ensure!(said.stdout == "here\n" && said.status.code() == Some(3), "{said:?}");
        ensure!(lisbon.run(&["stats", "--no-stream", "web", "--on", "berlin1"])?.stdout.contains("web"));
        lisbon.host.sh("echo text > /run/file")?;
        ensure!(lisbon.run(&["cp", "/run/file", "web:/tmp", "--on", "berlin1"])?.is_ok());
        ensure!(lisbon.run(&["cp", "web:/tmp/file", "/run/back", "--on", "berlin1"])?.is_ok());
        ensure!(lisbon.host.sh("cat /run/back")? == "text\n");
        lisbon.ctl(&["stop", "-t", "1", "web", "--on", "berlin1"])?;
        lisbon.ctl(&["start", "web", "--on", "berlin1"])?;
        ensure!(lisbon.run(&["image", "ls", "--on", "berlin1"])?.stdout.contains("busybox"));

        // What stays the host's own, even for an operator.
        let refused = |words: &[&str], parts: &[&str]| -> Result<()> {
            let mut all = vec!["run", "--rm"];
            all.extend(remote);
            all.extend(words);
            expect_refusal(lisbon.refused(&all)?, 125, parts)
        };
        refused(&["-v", "/etc:/x", IMAGE, "true"], &["/etc", "[remote]"])?;
        refused(&["--userns", "host", IMAGE, "true"], &["root"])?;
        let socket = "--unix-socket /run/meshd/meshd.sock";
        let twice = lisbon.host.sh(&format!("curl -s {socket} 'http://x/v1/vdcs/-/workloads?on=nowhere'"))?;
        ensure!(twice.contains("nowhere"), "{twice}");
        let status = lisbon.host.sh(&format!("curl -s {socket} 'http://x/v1/vdcs?on=berlin1'"))?;
        ensure!(!status.contains("remote"), "`on` means nothing there: {status}");

        // A right that ends ends what stands on it: a followed log stops at once.
        let follow = lisbon.host.spawn(&[&meshctl, "logs", "-f", "web", "--on", "berlin1"])?;
        follow.wait_for_log(PATIENCE, "up")?;
        let attached =
            lisbon.host.spawn(&[&meshctl, "exec", "--on", "berlin1", "web", "sh", "-c", "echo in; sleep 1000"])?;
        attached.wait_for_log(PATIENCE, "in")?;
        berlin.ctl(&["grant", "lisbon1", "--role", "operator", "--remove"])?;
        attached.wait(Duration::from_secs(10))?;
        expect_refusal(ps()?, 4, &["operator"])?;
        follow.kill()?;
        // A node that is away is told as such.
        berlin.ctl(&["grant", "lisbon1", "--role", "operator"])?;
        berlin.kill_daemon()?;
        let (code, text) = lisbon.refused(&["ps", "--on", "berlin1"])?;
        ensure!(code != 0 && text.contains("berlin1") && text.contains("infra plane"), "{code} {text}");
        Ok(())
    })
}
