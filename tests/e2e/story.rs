//! What a user does, in the order of the README.

use anyhow::{Context as _, Result, ensure};
use meshlab::wait_until;
use serde_json::Value;
use tests::vdc_lab::{Node, PATIENCE, ThreeSites, expect_refusal, in_lab, token};

#[test]
fn three_sites_reach_each_other_by_name_over_both_families() -> Result<()> {
    in_lab(|lab| {
        let vdc = ThreeSites::build(lab)?;
        vdc.wait()?;
        let page = "hello from berlin";
        let _server = vdc.berlin.serve_page(80, page)?;
        vdc.lisbon.use_dns_stub()?;
        let url = "http://berlin1.berlin.acme.internal/";
        for family in ["-6", "-4"] {
            ensure!(vdc.lisbon.fetch(url, family)?.is_none(), "port 80 is closed until it is exposed");
        }
        let explained = vdc.lisbon.ctl(&["explain", "lisbon1", "berlin1", "80"])?;
        ensure!(explained["allowed"] == false && explained["decided_by"]["kind"] == "policy", "{explained}");
        vdc.berlin.ctl(&["expose", "80"])?;
        for family in ["-6", "-4"] {
            wait_until(PATIENCE, "the page over the overlay", || {
                vdc.lisbon.fetch(url, family).is_ok_and(|text| text.as_deref() == Some(page))
            })?;
        }
        wait_until(PATIENCE, "lisbon knows why", || {
            let explained = vdc.lisbon.ctl(&["explain", "lisbon1", "berlin1", "80"]);
            explained.is_ok_and(|e| e["allowed"] == true && e["decided_by"]["kind"] == "exposure")
        })?;
        // Straight from Berlin: the bytes crossed the uplinks of lisbon and berlin, not that of paris.
        let before = vdc.sites[0].uplink().counters();
        let _large = vdc.berlin.serve_page(81, &"x".repeat(400_000))?;
        vdc.berlin.ctl(&["expose", "81"])?;
        wait_until(PATIENCE, "the large page", || {
            let fetched = vdc.lisbon.fetch("http://berlin1.berlin.acme.internal:81/", "-6");
            fetched.is_ok_and(|text| text.is_some_and(|text| text.len() == 400_000))
        })?;
        let crossed = (vdc.sites[0].uplink().counters() - before).bytes();
        ensure!(crossed < 200_000, "{crossed} bytes went by way of paris");
        let status = vdc.paris.status()?;
        ensure!(status["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3), "{status}");
        ensure!(status["roster"]["age_s"].is_number(), "the age of the view is shown: {status}");
        let metrics = vdc.paris.host.sh("curl -s --unix-socket /run/meshd/meshd.sock http://localhost/metrics")?;
        ensure!(metrics.contains("meshd_members") && metrics.ends_with("# EOF\n"), "{metrics}");
        Ok(())
    })
}

#[test]
fn commands_answer_in_json_and_name_what_they_did() -> Result<()> {
    in_lab(|lab| {
        let vdc = ThreeSites::build(lab)?;
        vdc.wait()?;
        let pinged = vdc.paris.run(&["ping", "-c", "2", "berlin1"])?;
        ensure!(pinged.is_ok() && pinged.stdout.contains("2 received"), "{}", pinged.stdout);
        let infra = vdc.paris.run(&["ping", "--infra", "-c", "2", "lisbon1.lisbon"])?;
        ensure!(infra.is_ok() && infra.stdout.contains("2 received"), "{}{}", infra.stdout, infra.stderr);
        let peers = vdc.paris.ctl(&["peers"])?;
        ensure!(peers["peers"].as_array().is_some_and(|p| p.len() == 2), "{peers}");
        let peer = vdc.paris.ctl(&["peers", "berlin1"])?;
        ensure!(peer.to_string().contains("4710"), "its candidate addresses: {peer}");
        let listed = vdc.paris.ctl(&["node", "list"])?;
        ensure!(listed["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3), "{listed}");
        let sites = vdc.paris.ctl(&["site", "list"])?;
        ensure!(sites["sites"].as_array().is_some_and(|sites| sites.len() == 3), "{sites}");
        ensure!(vdc.paris.ctl(&["version"])?.to_string().contains(env!("CARGO_PKG_VERSION")));
        for shell in ["bash", "zsh", "fish"] {
            ensure!(vdc.paris.run(&["completion", shell])?.stdout.contains("meshctl"));
        }
        let events = vdc.paris.ctl(&["events", "-n", "50"])?.to_string();
        ensure!(events.contains("invite-redeemed") && events.contains("vdc-created"), "{events}");
        let serial = |node: &Value| node["membership"]["serial"].as_u64();
        let before = serial(&vdc.berlin.ctl(&["node", "show", "berlin1"])?);
        let renewed = vdc.berlin.ctl(&["renew"])?;
        ensure!(renewed["serial"].as_u64() > before, "{renewed}");
        ensure!(vdc.paris.run(&["status"])?.stdout.contains("lisbon1"));
        ensure!(vdc.paris.run(&["no-such-verb"])?.status.code() == Some(2), "usage has an exit code of its own");
        let elsewhere = vdc.paris.run(&["--socket", "/run/nothing.sock", "status"])?;
        ensure!(elsewhere.status.code() == Some(3) && elsewhere.stderr.contains("hint:"), "{}", elsewhere.stderr);

        let granted = vdc.paris.ctl(&["grant", "berlin1", "--role", "operator", "--label", "web"])?;
        ensure!(granted["roles"].to_string().contains("operator"), "{granted}");
        let removed = vdc.paris.ctl(&["grant", "berlin1", "--remove", "--role", "operator"])?;
        ensure!(!removed["roles"].to_string().contains("operator"), "{removed}");
        expect_refusal(vdc.berlin.refused(&["grant", "paris1", "--role", "operator"])?, 4, &["not an admin", "hint:"])?;

        let invite = vdc.paris.ctl(&["invite", "create", "--site", "paris"])?;
        ensure!(invite["reachability"]["verdict"].is_string(), "{invite}");
        let id = invite["invite"]["id"].as_str().context("an id")?.to_owned();
        let invites = vdc.paris.ctl(&["invite", "list"])?;
        let of =
            |state: &str| invites["invites"].as_array().map(|all| all.iter().filter(|i| i["state"] == state).count());
        ensure!((of("open"), of("used")) == (Some(1), Some(2)), "{invites}");
        ensure!(vdc.paris.ctl(&["invite", "revoke", &id])?["state"] == "revoked");
        let fourth = Node::start(vdc.sites[0].host("paris2")?, "")?;
        let said = fourth.refused(&["join", &token(&invite)?])?;
        ensure!(said.1.contains("revoked"), "{}", said.1);
        fourth.join(&vdc.paris.invite("paris")?)?;
        vdc.paris.wait_for(&fourth)?;
        // Two boxes of one site talk over their LAN.
        let before = vdc.sites[0].uplink().counters();
        let address = fourth.address("ipv6")?;
        vdc.paris.host.ok(&["ping", "-n", "-q", "-i", "0.01", "-s", "1000", "-c", "200", &address])?;
        let crossed = (vdc.sites[0].uplink().counters() - before).bytes();
        ensure!(crossed < 100_000, "{crossed} bytes of LAN traffic crossed the WAN");
        Ok(())
    })
}

#[test]
fn blocks_deny_at_once_and_are_lifted() -> Result<()> {
    in_lab(|lab| {
        let vdc = ThreeSites::build(lab)?;
        vdc.wait()?;
        let _server = vdc.berlin.serve_page(80, "open")?;
        vdc.berlin.ctl(&["expose", "80", "8000-8010/udp"])?;
        let url = format!("http://[{}]/", vdc.berlin.address("ipv6")?);
        let is_open = |node: &Node| node.fetch(&url, "-6").is_ok_and(|page| page.is_some());
        wait_until(PATIENCE, "both reach it", || is_open(&vdc.lisbon) && is_open(&vdc.paris))?;
        let blocked =
            vdc.paris.ctl(&["block", "--from", "lisbon1", "--to", "berlin1", "--reason", "worm, ticket 812"])?;
        let id = blocked["id"].as_str().context("an id")?.to_owned();
        wait_until(PATIENCE, "the block works", || !is_open(&vdc.lisbon))?;
        ensure!(is_open(&vdc.paris), "only lisbon is blocked");
        let explained = vdc.berlin.ctl(&["explain", "lisbon1", "berlin1", "80"])?;
        ensure!(explained["allowed"] == false && explained["decided_by"]["kind"] == "block", "{explained}");
        ensure!(explained["reason"].to_string().contains("ticket 812"), "{explained}");
        let blocks = vdc.berlin.ctl(&["blocks"])?;
        ensure!(blocks["blocks"].as_array().is_some_and(|all| all.len() == 1), "{blocks}");
        vdc.paris.ctl(&["unblock", &id[..8]])?;
        wait_until(PATIENCE, "the block is lifted", || is_open(&vdc.lisbon))?;
        // What was declared is withdrawn again, part of a range too.
        let left = vdc.berlin.ctl(&["unexpose", "80", "8003/udp"])?;
        ensure!(left["ports"] == serde_json::json!(["8000-8002/udp", "8004-8010/udp"]), "{left}");
        wait_until(PATIENCE, "the port is closed", || !is_open(&vdc.paris))?;
        let exposed = vdc.lisbon.ctl(&["expose"])?;
        ensure!(exposed["exposures"].is_array(), "{exposed}");
        Ok(())
    })
}

#[test]
fn leaving_leaves_nothing_behind_and_is_refused_to_the_last_registrar() -> Result<()> {
    in_lab(|lab| {
        let vdc = ThreeSites::build(lab)?;
        vdc.wait()?;
        expect_refusal(vdc.paris.refused(&["leave"])?, 4, &["only registrar", "hint:"])?;
        let links_before = vdc.lisbon.host.ok(&["ip", "-br", "link"])?;
        ensure!(links_before.contains("mesh-acme"), "{links_before}");
        vdc.lisbon.ctl(&["leave"])?;
        let links = vdc.lisbon.host.ok(&["ip", "-br", "link"])?;
        ensure!(!links.contains("mesh"), "an interface is left: {links}");
        ensure!(!vdc.lisbon.host.ok(&["ip", "netns", "list"])?.contains("meshd"), "a namespace is left");
        ensure!(!vdc.lisbon.host.ok(&["ip", "-6", "route"])?.contains("mesh"), "a route is left");
        ensure!(vdc.lisbon.host.ok(&["nft", "list", "tables"])?.trim().is_empty(), "a firewall table is left");
        ensure!(vdc.lisbon.host.ok(&["ls", "/var/lib/meshd/vdcs"])?.trim().is_empty(), "keys are left");
        expect_refusal(vdc.lisbon.refused(&["node", "list"])?, 2, &["no VDC", "hint:"])?;
        wait_until(PATIENCE, "the others see that it left", || {
            vdc.paris.ctl(&["node", "show", "lisbon1"]).is_ok_and(|node| node["standing"] == "revoked")
        })?;
        vdc.lisbon.join(&vdc.paris.invite("lisbon")?)?;
        vdc.lisbon.wait_for(&vdc.berlin)?;
        Ok(())
    })
}
