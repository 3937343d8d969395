//! Control links that went stale: addresses that change under running daemons, links by hand, and the last word to a
//! node that was revoked.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use meshlab::wait_until;
use serde_json::Value;
use tests::vdc_lab::{Node, PATIENCE, ThreeSites, expect_refusal, in_lab};

/// How soon an idle peer answers after its addresses, or this node's, have changed.
const FOUND: Duration = Duration::from_secs(10);

/// Waits until everybody has a control link to everybody, without a packet through the tunnels.
fn wait_linked(vdc: &ThreeSites) -> Result<()> {
    for node in [&vdc.paris, &vdc.berlin, &vdc.lisbon] {
        wait_until(PATIENCE, "two control links", || {
            node.metric("meshd_control_links{vdc=\"acme\"}").is_ok_and(|links| links > 1.5)
        })?;
        node.use_dns_stub()?;
    }
    Ok(())
}

/// Pings by name until there is an answer, and returns how long that took.
fn time_to_answer(from: &Node, name: &str, limit: Duration) -> Result<Duration> {
    let started = Instant::now();
    let tunnels = from.ctl(&["peers"])?;
    wait_until(limit, &format!("{} reaches {name}", from.host.name()), || {
        if from.pings(name) {
            Ok(())
        } else {
            Err(from.ctl(&["peers"]).map_or_else(|e| e.to_string(), |p| p.to_string()))
        }
    })
    .with_context(|| format!("before: {tunnels}"))?;
    Ok(started.elapsed())
}

#[test]
fn idle_peer_answers_soon_after_the_addresses_of_running_nodes_changed() -> Result<()> {
    in_lab(|lab| {
        let vdc = ThreeSites::build(lab)?;
        wait_linked(&vdc)?;
        let [paris_site, berlin_site, _] = &vdc.sites;
        berlin_site.renumber(lab.free_prefixes()?)?;
        // Who did not move asks whom did, and the other way round.
        let took = time_to_answer(&vdc.lisbon, "berlin1.berlin.acme.internal", FOUND)?;
        println!("the node that moved was reached after {took:?}");
        // Both ends of a pair that never talked, at once: they find each other through the one that stayed.
        paris_site.renumber(lab.free_prefixes()?)?;
        berlin_site.renumber(lab.free_prefixes()?)?;
        let took = time_to_answer(&vdc.paris, "berlin1.berlin.acme.internal", FOUND)?;
        println!("two nodes that moved together met after {took:?}");
        let took = time_to_answer(&vdc.paris, "lisbon1.lisbon.acme.internal", FOUND)?;
        println!("the node that moved reached the one that stayed after {took:?}");
        // What is shown is where the links are now.
        let v6 = vdc.berlin.host.v6().context("IPv6")?.to_string();
        let v4 = vdc.berlin.host.v4().context("IPv4")?.to_string();
        wait_until(PATIENCE, "no link is shown at an old address", || {
            let peers = vdc.lisbon.ctl(&["peers"]).map_err(|e| e.to_string())?.to_string();
            if peers.contains(&v6) || peers.contains(&v4) { Ok(()) } else { Err(peers) }
        })?;
        Ok(())
    })
}

#[test]
fn connect_tells_dead_links_from_live_ones() -> Result<()> {
    in_lab(|lab| {
        let vdc = ThreeSites::build(lab)?;
        wait_linked(&vdc)?;
        let berlin_site = &vdc.sites[1];
        let place = format!("{}:4712", vdc.berlin.host.v4().context("IPv4")?);
        let connect = ["connect", place.as_str(), "--node", "berlin1"];
        // Alive: said at once.
        let started = Instant::now();
        ensure!(vdc.paris.ctl(&connect)?["node"] == "berlin1");
        ensure!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        // Somebody who is no member, and the wrong member.
        let lisbon = format!("{}:4712", vdc.lisbon.host.v4().context("IPv4")?);
        let found = vdc.paris.ctl(&["connect", &lisbon])?;
        ensure!(found["node"] == "lisbon1" && found["address"] == lisbon.as_str(), "{found}");
        // Dead, and nobody has noticed: no success is reported.
        berlin_site.uplink().cut();
        let started = Instant::now();
        let (code, text) = vdc.paris.refused(&connect)?;
        ensure!(code != 0 && text.contains("no member answers at") && text.contains("caused by:"), "{text}");
        ensure!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        berlin_site.uplink().heal();
        let started = Instant::now();
        ensure!(vdc.paris.ctl(&connect)?["node"] == "berlin1");
        println!("a link by hand after {:?}", started.elapsed());
        ensure!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        Ok(())
    })
}

/// What a node says once it knows that it was revoked.
fn expect_told(node: &Node, reason: &str) -> Result<()> {
    wait_until(PATIENCE, "the revoked node is told", || {
        let status = node.status().map_err(|e| e.to_string())?;
        let problem = problem(&status, "membership-revoked").unwrap_or_default();
        if status["node"]["standing"] == "revoked" && problem.contains("revoked by") && problem.contains(reason) {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })?;
    let events = node.ctl(&["events"])?.to_string();
    ensure!(events.contains("membership-revoked") && events.contains(reason), "{events}");
    expect_refusal(node.refused(&["renew"])?, 4, &["revoked by", reason, "meshctl leave"])
}

fn problem(status: &Value, code: &str) -> Option<String> {
    let problems = status["problems"].as_array()?;
    problems.iter().find(|p| p["code"] == code)?["message"].as_str().map(str::to_owned)
}

#[test]
fn revoked_node_is_told_now_or_when_it_returns() -> Result<()> {
    in_lab(|lab| {
        let mut vdc = ThreeSites::build(lab)?;
        wait_linked(&vdc)?;
        vdc.paris.ctl(&["node", "revoke", "berlin1", "--reason", "stolen van"])?;
        expect_told(&vdc.berlin, "stolen van")?;
        // It stays told after a restart.
        vdc.berlin.kill_daemon()?;
        vdc.berlin.start_daemon()?;
        expect_told(&vdc.berlin, "stolen van")?;
        // The other one was away, and comes back.
        vdc.lisbon.kill_daemon()?;
        vdc.paris.ctl(&["node", "revoke", "lisbon1", "--reason", "lost luggage"])?;
        vdc.lisbon.start_daemon()?;
        expect_told(&vdc.lisbon, "lost luggage")?;
        ensure!(!vdc.lisbon.pings(&vdc.paris.address("ipv6")?), "told is not let in");
        // What it does next works.
        vdc.lisbon.ctl(&["leave", "--force"])?;
        vdc.lisbon.join(&vdc.paris.invite("lisbon")?)?;
        vdc.lisbon.wait_for(&vdc.paris)
    })
}

#[test]
fn revoked_node_that_finds_nothing_but_the_door_is_told_there() -> Result<()> {
    in_lab(|lab| {
        let mut vdc = ThreeSites::build(lab)?;
        wait_linked(&vdc)?;
        vdc.berlin.kill_daemon()?;
        vdc.paris.ctl(&["node", "revoke", "berlin1", "--reason", "stolen van"])?;
        vdc.berlin.host.sh(
            "nft add table inet shut; nft add chain inet shut out '{ type filter hook output priority 0; }'; \
             nft add rule inet shut out udp dport 4712 drop; nft add rule inet shut out tcp dport 4712 drop; \
             nft add chain inet shut in '{ type filter hook input priority 0; }'; \
             nft add rule inet shut in udp dport 4712 drop; nft add rule inet shut in tcp dport 4712 drop",
        )?;
        vdc.berlin.start_daemon()?;
        ensure!(vdc.berlin.status()?["node"]["standing"] == "current", "nobody could tell it yet");
        let (_, text) = vdc.berlin.refused(&["renew"])?;
        ensure!(text.contains("revoked by") && text.contains("stolen van"), "{text}");
        expect_told(&vdc.berlin, "stolen van")
    })
}
