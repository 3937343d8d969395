//! Authority beyond the first box: recovery, a second admin, a registrar that was stolen at a known time.

use anyhow::{Context as _, Result, ensure};
use meshlab::{Lab, wait_until};
use serde_json::Value;
use tests::vdc_lab::{Node, PATIENCE, ThreeSites, binary, expect_refusal, in_lab, site, token};

/// Where a test keeps the recovery key on a box, as an admin would on a stick.
const KEY_FILE: &str = "/etc/meshd/recovery.key";

/// Paris founds the VDC and lets the others in; the printed key goes into the safe.
fn founded(lab: &Lab) -> Result<(ThreeSites, String)> {
    let sites = [site(lab, "paris")?, site(lab, "berlin")?, site(lab, "lisbon")?];
    let start = |index: usize, name: &str| Node::start(sites[index].host(name)?, "");
    let (paris, berlin, lisbon) = (start(0, "paris1")?, start(1, "berlin1")?, start(2, "lisbon1")?);
    let key = secret(&paris.create("acme", "paris")?)?;
    for (member, name) in [(&berlin, "berlin"), (&lisbon, "lisbon")] {
        member.join(&paris.invite(name)?)?;
    }
    let vdc = ThreeSites { sites, paris, berlin, lisbon };
    vdc.wait()?;
    Ok((vdc, key))
}

fn secret(created: &Value) -> Result<String> {
    let secret = created["recovery_key"]["secret"].as_str();
    Ok(secret.context("the recovery key is printed")?.to_owned())
}

fn roles(node: &Value) -> Vec<&str> {
    node["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn sees_role(node: &Node, whom: &str, role: &str) -> bool {
    node.ctl(&["node", "show", whom]).is_ok_and(|node| roles(&node).contains(&role))
}

fn sees_standing(node: &Node, whom: &str, standing: &str) -> bool {
    node.ctl(&["node", "show", whom]).is_ok_and(|node| node["standing"] == standing)
}

#[test]
fn lost_first_box_is_replaced_with_the_recovery_key() -> Result<()> {
    in_lab(|lab| {
        let (mut vdc, key) = founded(lab)?;
        ensure!(sees_role(&vdc.paris, "paris1", "owner"), "the box that keeps an owner key says so");
        // A key of another VDC, before anything is lost: refused by name.
        let stranger = Node::start(vdc.sites[0].host("stranger1")?, "")?;
        let foreign = secret(&stranger.create("other", "somewhere")?)?;
        vdc.lisbon.host.write_file(KEY_FILE, &format!("{foreign}\n"))?;
        let recover = ["vdc", "recover", "--key-file", KEY_FILE];
        expect_refusal(vdc.lisbon.refused(&recover)?, 4, &["not an owner key of VDC acme", "hint:"])?;
        vdc.lisbon.host.write_file(KEY_FILE, "recovery1.ABC\n")?;
        expect_refusal(vdc.lisbon.refused(&recover)?, 2, &["no recovery key", "hint:"])?;
        // Without a key and without a terminal to ask on, the command says what it needs.
        expect_refusal(vdc.lisbon.refused(&["vdc", "recover"])?, 4, &["owner key", "--key-file"])?;

        // Paris burns down.
        vdc.paris.kill_daemon()?;
        vdc.sites[0].uplink().cut();
        vdc.lisbon.host.write_file(KEY_FILE, &format!("{}\n", key.to_lowercase()))?;
        let recover = ["vdc", "recover", "--registrar", "--key-file", KEY_FILE];
        let recovered = vdc.lisbon.ctl(&recover)?;
        ensure!(recovered["admin_signed"] == true, "{recovered}");
        ensure!(recovered["sites_taken"] == serde_json::json!(["lisbon"]), "{recovered}");
        let from_stdin = format!("{} vdc recover --registrar --key-file - -o json < {KEY_FILE}", binary("meshctl")?);
        let again: Value = serde_json::from_str(&vdc.lisbon.host.sh(&from_stdin)?)?;
        ensure!(again["admin_signed"] == false && again["sites_taken"] == serde_json::json!([]), "{again}");
        wait_until(PATIENCE, "berlin accepts the new admin", || sees_role(&vdc.berlin, "lisbon1", "admin"))?;

        // An admin is ended by the owners only; then its sites need somebody.
        expect_refusal(vdc.lisbon.refused(&["node", "revoke", "paris1"])?, 4, &["owner key", "--key-file"])?;
        let revoke = ["node", "revoke", "paris1", "--reason", "burnt", "--key-file", KEY_FILE];
        let revoked = vdc.lisbon.ctl(&revoke)?;
        ensure!(revoked["void"] == serde_json::json!([]), "everything that paris signed stays: {revoked}");
        ensure!(revoked["notes"].to_string().contains("vdc recover --registrar"), "{revoked}");
        let taken = vdc.lisbon.ctl(&["vdc", "recover", "--registrar"])?;
        ensure!(taken["sites_taken"] == serde_json::json!(["paris"]), "an admin needs no key for that: {taken}");
        ensure!(taken["sites_served"] == serde_json::json!(["berlin", "lisbon", "paris"]), "{taken}");
        wait_until(PATIENCE, "berlin sees paris revoked", || sees_standing(&vdc.berlin, "paris1", "revoked"))?;

        // Everything goes on: grants, renewals of what paris had admitted, new sites, new boxes.
        vdc.lisbon.ctl(&["grant", "berlin1", "--label", "web"])?;
        wait_until(PATIENCE, "berlin knows its label", || {
            vdc.berlin.ctl(&["node", "show", "berlin1"]).is_ok_and(|n| n["labels"] == serde_json::json!(["web"]))
        })?;
        wait_until(PATIENCE, "berlin is renewed by lisbon", || {
            let renewed = vdc.berlin.ctl(&["renew"]).map_err(|error| error.to_string())?;
            if renewed["registrar"].to_string().contains("lisbon1") { Ok(()) } else { Err(renewed.to_string()) }
        })?;
        ensure!(vdc.lisbon.ctl(&["site", "add", "madrid"])?["existed"] == false);
        let fresh = Node::start(vdc.sites[2].host("lisbon2")?, "")?;
        fresh.join(&vdc.lisbon.invite("lisbon")?)?;
        fresh.wait_for(&vdc.berlin)?;
        vdc.berlin.wait_for(&fresh)?;

        // The key went nowhere: not to the disk, not to the log, not to the events.
        let plain = key.trim_start_matches("recovery1.");
        vdc.lisbon.host.ok(&["rm", KEY_FILE])?;
        for words in [["vdc", "list"], ["events", "-n100"]] {
            ensure!(!vdc.lisbon.run(&words)?.stdout.to_uppercase().contains(plain), "{words:?} shows the key");
        }
        let kept = vdc.lisbon.host.ok(&["find", "/var/lib/meshd", "-name", "owner.key"])?;
        ensure!(kept.trim().is_empty(), "{kept}");
        let found = vdc.lisbon.host.run(&["grep", "-rliE", plain, "/var/lib/meshd", "/etc/meshd", "/run/meshd"])?;
        ensure!(found.stdout.trim().is_empty(), "the key stands in {}", found.stdout);
        let log = std::fs::read_to_string(vdc.lisbon.host.dir().join("meshd.log"))?;
        ensure!(log.contains("vdc_recover"), "the log tells of the change: {log}");
        ensure!(!log.to_uppercase().contains(plain), "the log shows the key");
        Ok(())
    })
}

#[test]
fn second_admin_acts_while_the_first_box_is_off() -> Result<()> {
    in_lab(|lab| {
        let (mut vdc, _) = founded(lab)?;
        expect_refusal(
            vdc.berlin.refused(&["grant", "lisbon1", "--role", "admin"])?,
            4,
            &["owner key", "--key-file", "hint:"],
        )?;
        let node = vdc.paris.ctl(&["grant", "berlin1", "--role", "admin"])?;
        ensure!(roles(&node).contains(&"admin"), "{node}");
        let records = vdc.paris.status()?["roster"]["records"].clone();
        vdc.paris.ctl(&["grant", "berlin1", "--role", "admin"])?;
        ensure!(vdc.paris.status()?["roster"]["records"] == records, "twice is the same as once");
        for observer in [&vdc.berlin, &vdc.lisbon] {
            wait_until(PATIENCE, "the second admin is known", || sees_role(observer, "berlin1", "admin"))?;
        }
        // The only admin left cannot be taken away, one of two can.
        vdc.paris.ctl(&["grant", "lisbon1", "--role", "admin"])?;
        vdc.paris.ctl(&["grant", "lisbon1", "--role", "admin", "--remove"])?;
        for observer in [&vdc.berlin, &vdc.lisbon] {
            wait_until(PATIENCE, "lisbon is no admin any more", || !sees_role(observer, "lisbon1", "admin"))?;
        }
        let third = Node::start(vdc.sites[2].host("lisbon2")?, "")?;
        third.join(&vdc.paris.invite("lisbon")?)?;
        third.wait_for(&vdc.berlin)?;
        third.wait_for(&vdc.lisbon)?;

        vdc.paris.kill_daemon()?;
        vdc.berlin.ctl(&["node", "revoke", "lisbon2", "--reason", "stolen"])?;
        let lisbon = vdc.lisbon.address("ipv6")?;
        wait_until(PATIENCE, "it is cut off", || !third.pings(&lisbon))?;
        ensure!(sees_standing(&vdc.lisbon, "lisbon2", "revoked"));
        vdc.lisbon.wait_for(&vdc.berlin)?;
        // When paris is back it believes what happened meanwhile.
        vdc.paris.start_daemon()?;
        wait_until(PATIENCE, "paris has heard of it", || sees_standing(&vdc.paris, "lisbon2", "revoked"))?;
        Ok(())
    })
}

#[test]
fn stolen_registrar_is_cut_at_the_record_that_is_still_trusted() -> Result<()> {
    in_lab(|lab| {
        let (paris_site, berlin_site) = (site(lab, "paris")?, site(lab, "berlin")?);
        let start = |name: &str| Node::start(berlin_site.host(name)?, "");
        let paris = Node::start(paris_site.host("paris1")?, "")?;
        let (registrar, early, late) = (start("berlin1")?, start("berlin2")?, start("berlin3")?);
        paris.create("acme", "paris")?;
        registrar.join(&token(&paris.ctl(&["site", "add", "berlin"])?)?)?;
        for node in [&early, &late] {
            node.join(&registrar.invite("berlin")?)?;
        }
        for node in [&registrar, &early, &late] {
            paris.wait_for(node)?;
        }
        expect_refusal(paris.refused(&["node", "revoke", "berlin2", "--keep-through", "3"])?, 2, &["signed nothing"])?;

        // The list shows what would go; nothing has happened yet.
        let list = paris.ctl(&["node", "revoke", "berlin1", "--list"])?;
        ensure!(list["void"] == serde_json::json!([]), "{list}");
        let records = list["records"].as_array().context("records")?;
        let of = |name: &str| records.iter().find(|r| r["kind"] == "member" && r["subject"] == name);
        let last = of("berlin2.berlin").context("berlin2 is in the list")?["number"].as_u64().context("a number")?;
        ensure!(of("berlin3.berlin").context("berlin3 is in the list")?["number"].as_u64() > Some(last), "{list}");
        ensure!(records.iter().all(|r| r["void"] == false), "{list}");
        let last = last.to_string();
        let list = paris.ctl(&["node", "revoke", "berlin1", "--list", "--keep-through", &last])?;
        ensure!(list["void"] == serde_json::json!(["berlin3.berlin"]), "{list}");
        ensure!(sees_standing(&paris, "berlin1", "current") && sees_standing(&paris, "berlin3", "current"));

        let revoke = ["node", "revoke", "berlin1", "--keep-through", &last, "--reason", "stolen at noon"];
        let revoked = paris.ctl(&revoke)?;
        ensure!(revoked["void"] == serde_json::json!(["berlin3.berlin"]), "{revoked}");
        ensure!(revoked["notes"].to_string().contains("new invite"), "{revoked}");
        let addresses = [paris.address("ipv6")?, early.address("ipv6")?];
        for cut in [&late, &registrar] {
            wait_until(PATIENCE, "it is cut off", || addresses.iter().all(|address| !cut.pings(address)))?;
        }
        paris.wait_for(&early)?;
        early.wait_for(&paris)?;
        ensure!(paris.ctl(&["node", "show", "berlin3"]).is_err(), "it is no member at all");
        // The estate is renewed by the founder's registrar.
        let renewed = early.ctl(&["renew"])?;
        ensure!(renewed["registrar"].to_string().contains("paris1"), "{renewed}");

        // The voided box was honest: a new invite brings it back.
        late.ctl(&["leave", "--force"])?;
        late.join(&paris.invite("berlin")?)?;
        late.wait_for(&early)?;
        early.wait_for(&late)?;
        Ok(())
    })
}
