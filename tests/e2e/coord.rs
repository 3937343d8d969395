//! Coordination groups: they form by themselves, survive what they say, and what is lost for good is founded anew.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use meshlab::wait_until;
use serde_json::Value;
use tests::containers::{ContainerNode, IMAGE};
use tests::vdc_lab::{Node, expect_refusal, in_lab, site, token};

/// Voters come and go within seconds.
const QUICK: &str = "[coordination]\nsteady_after_s = 1\nreplace_after_s = 5\n";
/// Elections, changes of members and their settling, on a loaded machine.
const LONG: Duration = Duration::from_secs(90);

fn group(node: &Node, home: &str) -> Result<Value> {
    let status = node.ctl(&["coord", "status"])?;
    let of_home = |group: &&Value| match home.strip_prefix("site:") {
        Some(site) => group["home"]["site"] == site,
        None => group["home"] == home,
    };
    let groups = status["groups"].as_array().context("groups")?;
    groups.iter().find(of_home).cloned().with_context(|| format!("no group {home}: {status}"))
}

fn words(node: &Node, home: &str) -> String {
    let group = group(node, home);
    group.map_or_else(|error| error.to_string(), |group| group["redundancy"]["words"].to_string())
}

/// Waits until a node says of a group that it serves, and these words of what it survives.
fn wait_words(node: &Node, home: &str, expected: &str) -> Result<()> {
    let serves = || group(node, home).is_ok_and(|group| group["state"] == "serving");
    let waited = wait_until(LONG, expected, || serves() && words(node, home).contains(expected));
    waited.with_context(|| format!("{home} on {}: {:?}", node.host.name(), group(node, home)))
}

fn voters(node: &Node, home: &str) -> Result<Vec<String>> {
    let members = group(node, home)?["members"].as_array().cloned().context("members")?;
    let voters = members.iter().filter(|member| member["role"] == "voter");
    let name = |member: &Value| Some(format!("{}.{}", member["node"].as_str()?, member["site"].as_str()?));
    Ok(voters.filter_map(name).collect())
}

#[test]
fn site_with_three_nodes_survives_one_and_is_recovered_after_two() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let node = |name: &str| Node::start(lan.host(name)?, QUICK);
        let (first, mut second, mut third) = (node("paris1")?, node("paris2")?, node("paris3")?);
        first.create("acme", "paris")?;
        wait_words(&first, "site:paris", "no redundancy")?;
        ensure!(group(&first, "site:paris")?["role_here"] == "voter");
        second.join(&first.invite("paris")?)?;
        third.join(&first.invite("paris")?)?;
        for home in ["site:paris", "vdc"] {
            wait_words(&first, home, "any one of 3 may fail now")?;
        }
        ensure!(voters(&third, "site:paris")? == ["paris1.paris", "paris2.paris", "paris3.paris"]);
        let said = first.run(&["coord", "status"])?.stdout;
        ensure!(said.contains("any one of 3 may fail now") && said.contains("site:paris"), "{said}");
        let said = second.run(&["coord", "members"])?.stdout;
        ensure!(said.contains("paris3") && said.contains("voter"), "{said}");
        // It works, so there is nothing to recover.
        let (_, text) = first.refused(&["coord", "recover", "--home", "site:paris", "--yes"])?;
        ensure!(text.contains("works: any one of 3") && text.contains("hint:"), "{text}");

        // One may fail, as it said.
        let early = first.invite("paris")?;
        third.kill_daemon()?;
        first.invite("paris")?;
        wait_words(&first, "site:paris", "2 of 3 voters answer")?;
        // With two gone nothing is decided, and it is said so.
        second.kill_daemon()?;
        wait_until(LONG, "it stands still", || words(&first, "site:paris").contains("stands still"))?;
        let (_, text) = first.refused(&["invite", "create", "--site", "paris"])?;
        ensure!(text.contains("meshctl coord status"), "{text}");
        wait_until(LONG, "status says so", || {
            first.problems().is_ok_and(|codes| codes.iter().any(|code| code == "coordination-stopped"))
        })?;
        // What a recovery would cost is told, and nothing is done without a yes.
        let before = group(&first, "site:paris")?["group"].clone();
        let plan = first.run(&["coord", "recover", "--home", "site:paris"])?;
        let text = format!("{}{}", plan.stdout, plan.stderr);
        ensure!(text.contains("paris2.paris") && text.contains("lost"), "{text}");
        ensure!(group(&first, "site:paris")?["group"] == before, "nothing was done");
        for home in ["site:paris", "vdc"] {
            let done = first.ctl(&["coord", "recover", "--home", home, "--yes"])?;
            ensure!(done["done"] == true && done["from"] == "paris1.paris", "{done}");
            ensure!(group(&first, home)?["state"] == "serving");
        }
        ensure!(group(&first, "site:paris")?["group"] != before);
        // What was confirmed before is there: an invite from before lets somebody in, once.
        let fourth = node("paris4")?;
        fourth.join(&early)?;
        let fifth = node("paris5")?;
        let (_, text) = fifth.refused(&["join", &early])?;
        ensure!(text.contains("used already"), "{text}");
        // Who was given up follows the new group.
        second.start_daemon()?;
        third.start_daemon()?;
        for node in [&first, &second, &third, &fourth] {
            wait_words(node, "site:paris", "any one of 3 may fail now")?;
        }
        Ok(())
    })
}

#[test]
fn dead_and_revoked_voters_are_replaced() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let node = |name: &str| Node::start(lan.host(name)?, QUICK);
        let (first, mut second) = (node("paris1")?, node("paris2")?);
        let others = [node("paris3")?, node("paris4")?];
        first.create("acme", "paris")?;
        for other in [&second, &others[0]] {
            other.join(&first.invite("paris")?)?;
        }
        wait_words(&first, "site:paris", "any one of 3 may fail now")?;
        others[1].join(&first.invite("paris")?)?;
        wait_until(LONG, "the fourth follows", || {
            group(&first, "site:paris").is_ok_and(|g| g.to_string().contains("paris4"))
        })?;
        second.kill_daemon()?;
        wait_until(LONG, "the fourth votes in its place", || {
            voters(&first, "site:paris").is_ok_and(|voters| voters == ["paris1.paris", "paris3.paris", "paris4.paris"])
        })?;
        wait_words(&first, "site:paris", "any one of 3 may fail now")?;
        // Back again it follows, without a vote.
        second.start_daemon()?;
        wait_until(LONG, "it is a learner", || {
            group(&second, "site:paris")
                .is_ok_and(|group| group["role_here"] == "learner" && group["state"] == "serving")
        })?;
        // A revoked node loses its vote at once.
        first.ctl(&["node", "revoke", "paris3", "--reason", "stolen"])?;
        wait_until(LONG, "the second votes again", || {
            voters(&first, "site:paris").is_ok_and(|voters| voters == ["paris1.paris", "paris2.paris", "paris4.paris"])
        })?;
        wait_words(&first, "site:paris", "any one of 3 may fail now")
    })
}

#[test]
fn only_voter_hands_its_vote_over_when_it_leaves() -> Result<()> {
    in_lab(|lab| {
        let (near, far) = (site(lab, "paris")?, site(lab, "berlin")?);
        let (first, second) = (Node::start(near.host("paris1")?, QUICK)?, Node::start(far.host("berlin1")?, QUICK)?);
        first.create("acme", "paris")?;
        let founder = first.ctl(&["site", "add", "berlin"])?;
        second.join(&token(&founder["invite"])?)?;
        wait_until(LONG, "the second follows", || {
            group(&second, "vdc").is_ok_and(|group| group["role_here"] == "learner" && group["state"] == "serving")
        })?;
        ensure!(voters(&second, "vdc")? == ["paris1.paris"]);
        let left = first.ctl(&["leave", "--force"])?;
        ensure!(!left["notes"].to_string().contains("stands still"), "{left}");
        wait_until(LONG, "the second votes", || {
            voters(&second, "vdc").is_ok_and(|voters| voters == ["berlin1.berlin"])
        })?;
        wait_words(&second, "vdc", "no redundancy")
    })
}

#[test]
fn any_one_of_three_sites_may_go_dark() -> Result<()> {
    in_lab(|lab| {
        let sites = [site(lab, "paris")?, site(lab, "berlin")?, site(lab, "lisbon")?];
        let node = |index: usize, name: &str| Node::start(sites[index].host(name)?, QUICK);
        let (mut paris, berlin, lisbon) = (node(0, "paris1")?, node(1, "berlin1")?, node(2, "lisbon1")?);
        paris.create("acme", "paris")?;
        let founder = paris.ctl(&["site", "add", "berlin"])?;
        berlin.join(&token(&founder["invite"])?)?;
        // Made before berlin has a group, and moved into it when it has.
        let early = berlin.invite("berlin")?;
        lisbon.join(&paris.invite("lisbon")?)?;
        for node in [&paris, &berlin, &lisbon] {
            wait_words(node, "vdc", "any one of 3 sites may go dark")?;
            for home in ["site:paris", "site:berlin", "site:lisbon"] {
                wait_words(node, home, "no redundancy")?;
            }
        }
        let second = node(1, "berlin2")?;
        second.join(&early)?;
        let (_, text) = node(1, "berlin3")?.refused(&["join", &early])?;
        ensure!(text.contains("used already"), "{text}");

        sites[1].uplink().cut();
        wait_words(&paris, "vdc", "2 of 3 voters answer")?;
        // The dark site goes on with what is its own, and says what it cannot.
        let inside = berlin.invite("berlin")?;
        let late = node(1, "berlin4")?;
        late.join(&inside)?;
        wait_until(LONG, "the VDC's group is out of reach", || {
            group(&berlin, "vdc").is_ok_and(|group| group["state"] == "read-only")
        })?;
        sites[1].uplink().heal();
        for node in [&paris, &berlin, &lisbon] {
            wait_words(node, "vdc", "any one of 3 sites may go dark")?;
        }
        // Power cuts all over, the leader's among them: nothing is lost and all is served again.
        for _ in 0..3 {
            paris.kill_daemon()?;
            paris.start_daemon()?;
            wait_words(&paris, "vdc", "any one of 3 sites may go dark")?;
            wait_words(&paris, "site:paris", "no redundancy")?;
        }
        Ok(())
    })
}

#[test]
fn backups_are_restored_where_they_belong() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let node = |name: &str| Node::start(lan.host(name)?, QUICK);
        let (first, second, other) = (node("paris1")?, node("paris2")?, node("other1")?);
        first.create("acme", "paris")?;
        second.join(&first.invite("paris")?)?;
        other.create("acme", "paris")?;
        let kept = first.invite("paris")?;
        let home = ["--home", "site:paris"];
        let backup = |node: &Node, file: &str| node.run(&["coord", "backup", "--home", "site:paris", file]);
        let made = backup(&first, "/run/one.backup")?;
        ensure!(made.is_ok(), "{made:?}");
        let late = first.invite("paris")?;
        // A newer change would be lost.
        let (_, text) = first.refused(&["coord", "restore", "/run/one.backup", "--yes"])?;
        ensure!(text.contains("revision") && text.contains("--force"), "{text}");
        let revision = |node: &Node| -> Result<u64> { group(node, "site:paris")?["revision"].as_u64().context("one") };
        let before = revision(&first)?;
        let done = first.ctl(&["coord", "restore", "/run/one.backup", "--yes", "--force"])?;
        ensure!(done["refused"].is_null() && done["revision"].as_u64() > Some(before), "{done}");
        ensure!(revision(&first)? > before, "revisions never go back");
        // What was in it is there, what came later is not.
        node("paris3")?.join(&kept)?;
        let (_, text) = node("paris4")?.refused(&["join", &late])?;
        ensure!(text.contains("knows no such invite"), "{text}");
        wait_until(LONG, "the others follow", || {
            group(&second, "site:paris")
                .is_ok_and(|group| group["state"] == "serving" && group["role_here"] != "client")
        })?;

        // What does not belong here, or is not whole, changes nothing.
        let now = revision(&first)?;
        ensure!(backup(&other, "/run/other.backup")?.is_ok());
        let foreign = other.host.sh("base64 -w0 /run/other.backup")?;
        first.host.sh(&format!("echo {foreign} | base64 -d > /run/foreign.backup"))?;
        let (_, text) = first.refused(&["coord", "restore", "/run/foreign.backup", "--yes", "--force"])?;
        ensure!(text.contains("another VDC"), "{text}");
        first.host.sh(
            "head -c -3 /run/one.backup > /run/short; (cat /run/one.backup; echo x) > /run/long; echo hello > /run/no",
        )?;
        for (file, part) in [("/run/short", "damaged"), ("/run/long", "damaged"), ("/run/no", "no backup")] {
            let (_, text) = first.refused(&["coord", "restore", file, home[0], home[1], "--yes", "--force"])?;
            ensure!(text.contains(part), "{file}: {text}");
        }
        let (_, text) = first.refused(&["coord", "restore", "/run/one.backup", "--home", "vdc", "--yes", "--force"])?;
        ensure!(text.contains("of site paris"), "{text}");
        let (_, text) = second.refused(&["coord", "restore", "/run/none", "--yes"])?;
        ensure!(text.contains("/run/none"), "{text}");
        let (_, text) = first.refused(&["coord", "backup", "--home", "site:nowhere", "/run/x"])?;
        ensure!(text.contains("nowhere"), "{text}");
        ensure!(revision(&first)? == now, "nothing was changed");
        // Who is neither admin nor registrar may not.
        let (code, text) = second.refused(&["coord", "recover", "--home", "vdc", "--yes"])?;
        ensure!(code == 4 && text.contains("may not"), "{code}: {text}");
        Ok(())
    })
}

#[test]
fn names_belong_to_whoever_took_them_first() -> Result<()> {
    in_lab(|lab| {
        let (near, far) = (site(lab, "paris")?, site(lab, "berlin")?);
        let (mut first, second) =
            (ContainerNode::start(near.host("paris1")?, QUICK)?, ContainerNode::start(near.host("paris2")?, QUICK)?);
        let third = ContainerNode::start(far.host("berlin1")?, QUICK)?;
        first.create("acme", "paris")?;
        second.join(&first.invite("paris")?)?;
        third.join(&first.invite("berlin")?)?;
        let nodes = [&first, &second, &third];
        for node in nodes {
            node.use_dns_stub()?;
            node.import_busybox()?;
        }
        let web = |node: &ContainerNode| {
            node.run_detached(&["--name", "web", "--label", "web", "--port", "80", IMAGE, "sleep", "1000"])
        };
        web(&third)?;
        let resolves = |node: &ContainerNode, name: &str| {
            node.host
                .sh(&format!("getent ahostsv6 {name} | cut -d' ' -f1 | head -1"))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let address = |node: &ContainerNode| node.workload_address("web");
        let berlins = address(&third)?;
        for node in nodes {
            wait_until(LONG, "the VDC's name is known", || resolves(node, "web.acme.internal") == berlins)?;
        }
        // Another one of that name has the name of its site, and not the VDC's.
        web(&first)?;
        let parises = address(&first)?;
        for node in nodes {
            wait_until(LONG, "the site's name is known", || resolves(node, "web.paris.acme.internal") == parises)?;
            ensure!(resolves(node, "web.acme.internal") == berlins, "it was taken first");
        }
        // Given up, it is free for the other.
        third.ctl(&["rm", "-f", "web"])?;
        for node in nodes {
            wait_until(LONG, "the name went on", || resolves(node, "web.acme.internal") == parises)?;
        }
        first.kill_daemon()?;
        first.start_daemon()?;
        wait_until(LONG, "it is known after a power cut", || resolves(&second, "web.acme.internal") == parises)?;
        expect_refusal(second.refused(&["run", "-d", "--name", "web", IMAGE, "sleep", "1"])?, 125, &["paris1.paris"])
    })
}
