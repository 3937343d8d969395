//! Tokens: bad ones, used ones, and two boxes with the same one.

use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use meshlab::wait_until;
use tests::vdc_lab::{Node, PATIENCE, expect_refusal, in_lab, site, token};

#[test]
fn bad_tokens_are_told_apart() -> Result<()> {
    in_lab(|lab| {
        let (paris_site, berlin_site) = (site(lab, "paris")?, site(lab, "berlin")?);
        let paris = Node::start(paris_site.host("paris1")?, "")?;
        let berlin = Node::start(berlin_site.host("berlin1")?, "")?;
        let other = Node::start(berlin_site.host("berlin2")?, "")?;
        paris.create("acme", "paris")?;
        let good = paris.invite("berlin")?;
        for (bad, part) in [
            (good[..good.len() - 7].to_owned(), "cut off"),
            (flip(&good), "damaged"),
            (good.replace("vdc1.", "vdc9."), "upgrade"),
            ("hello".to_owned(), "not an invite"),
        ] {
            expect_refusal(berlin.refused(&["join", &bad])?, 4, &[part])?;
        }
        let short = paris.ctl(&["invite", "create", "--site", "berlin", "--expires", "1s"])?;
        let short = token(&short)?;
        wait_until(PATIENCE, "the invite expires", || {
            let list = paris.ctl(&["invite", "list"]);
            list.is_ok_and(|list| list["invites"].to_string().contains("\"expired\""))
        })?;
        expect_refusal(berlin.refused(&["join", &short])?, 4, &["expired"])?;
        berlin.join(&good)?;
        let (_, text) = other.refused(&["join", &good])?;
        ensure!(text.contains("used already"), "{text}");
        // The same box again: the same membership.
        let again = berlin.run(&["join", &good])?;
        ensure!(again.is_ok(), "{}", again.stderr);
        // Another VDC's token under a local name that is taken.
        other.create("acme", "lisbon")?;
        let foreign = other.invite("lisbon")?;
        let (_, text) = berlin.refused(&["join", &foreign])?;
        ensure!(text.contains("--as"), "{text}");
        let renamed = berlin.run(&["join", &foreign, "--as", "second"])?;
        ensure!(renamed.is_ok(), "two VDCs on one box: {}", renamed.stderr);
        ensure!(berlin.ctl(&["vdc", "list"])?["vdcs"].as_array().is_some_and(|vdcs| vdcs.len() == 2));
        expect_refusal(berlin.refused(&["--vdc", "nope", "node", "list"])?, 1, &["nope"])?;
        berlin.ctl(&["vdc", "use", "second"])?;
        Ok(())
    })
}

#[test]
fn member_with_another_token_is_told_that_it_is_one_already() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let paris = Node::start(lan.host("paris1")?, "")?;
        let (one, two) = (Node::start(lan.host("one")?, "")?, Node::start(lan.host("two")?, "")?);
        paris.create("acme", "paris")?;
        let (first, second) = (paris.invite("paris")?, paris.invite("paris")?);
        one.join(&first)?;
        two.join(&second)?;
        // Spent by somebody else, or not at all.
        let already = ["is a member of the VDC already", "hint:"];
        let fresh = paris.invite("paris")?;
        for token in [&second, &fresh] {
            let (code, text) = one.refused(&["join", token])?;
            ensure!(code != 0 && already.iter().all(|part| text.contains(part)), "{text}");
            let (_, text) = one.refused(&["join", token, "--as", "another"])?;
            ensure!(text.contains(already[0]), "{text}");
        }
        let (_, text) = paris.refused(&["join", &fresh])?;
        ensure!(text.contains("founded"), "{text}");
        // By its own token it is what it was, whatever name it gives.
        for words in [vec!["join", first.as_str()], vec!["join", first.as_str(), "--as", "another"]] {
            let again = one.run(&words)?;
            ensure!(again.is_ok(), "{}", again.stderr);
        }
        ensure!(one.ctl(&["vdc", "list"])?["vdcs"].as_array().is_some_and(|vdcs| vdcs.len() == 1));
        // The unused token was left unused.
        let late = Node::start(lan.host("late")?, "")?;
        late.join(&fresh)?;
        late.wait_for(&paris)
    })
}

fn flip(token: &str) -> String {
    let middle = token.len() / 2;
    let other = if token.as_bytes()[middle] == b'A' { 'B' } else { 'A' };
    format!("{}{other}{}", &token[..middle], &token[middle + 1..])
}

#[test]
fn token_of_a_vdc_that_is_gone_finds_nobody() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let paris = Node::start(lan.host("paris1")?, "")?;
        let other = Node::start(lan.host("paris2")?, "")?;
        paris.create("acme", "paris")?;
        let old = paris.invite("paris")?;
        paris.ctl(&["leave", "--force"])?;
        paris.create("acme", "paris")?;
        // Somebody answers at the token's address, but not with its VDC's keys.
        let (code, text) = other.refused(&["join", &old])?;
        ensure!(code != 0 && text.contains("error:") && text.contains("hint:"), "exit {code}: {text}");
        ensure!(
            other.ctl(&["vdc", "list"])?["vdcs"].as_array().is_some_and(Vec::is_empty),
            "nothing half-made is left"
        );
        other.join(&paris.invite("paris")?)?;
        other.wait_for(&paris)
    })
}

#[test]
fn two_boxes_of_one_name_are_told_apart() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let paris = Node::start(lan.host("paris1")?, "")?;
        let (one, two) = (Node::start(lan.host("one")?, "")?, Node::start(lan.host("two")?, "")?);
        paris.create("acme", "paris")?;
        for node in [&one, &two] {
            let joined = node.run(&["join", &paris.invite("paris")?, "--node-name", "web"])?;
            ensure!(joined.is_ok(), "{}", joined.stderr);
            node.wait_for(&paris)?;
        }
        let name = |node: &Node| -> Result<String> {
            Ok(node.status()?["node"]["fqdn"].as_str().context("a name")?.to_owned())
        };
        let (first, second) = (name(&one)?, name(&two)?);
        ensure!(first == "web.paris.acme.internal" && second != first, "{first} {second}");
        paris.use_dns_stub()?;
        for (node, name) in [(&one, &first), (&two, &second)] {
            let found = paris.host.ok(&["getent", "ahostsv6", name])?;
            ensure!(found.contains(&node.address("ipv6")?), "{name}: {found}");
        }
        // A token for several boxes admits that many.
        let many = token(&paris.ctl(&["invite", "create", "--uses", "2"])?)?;
        for number in 3..=4 {
            Node::start(lan.host(&format!("web{number}"))?, "")?.join(&many)?;
        }
        let late = Node::start(lan.host("late")?, "")?;
        expect_refusal(late.refused(&["join", &many])?, 4, &["used already", "hint:"])
    })
}

/// Rounds of the race; `cargo xtask soak` sets `E2E_ROUNDS`.
fn rounds() -> usize {
    std::env::var("E2E_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// Whether a box is told for good that another has used the token.
fn is_beaten(output: &meshlab::Output) -> bool {
    output.stderr.contains("used already")
}

#[test]
fn one_of_two_boxes_wins_a_race_for_one_token() -> Result<()> {
    in_lab(|lab| {
        let lan = site(lab, "paris")?;
        let mut paris = Node::start(lan.host("paris1")?, "")?;
        let one = Node::start(lan.host("one")?, "")?;
        let two = Node::start(lan.host("two")?, "")?;
        paris.create("acme", "paris")?;
        for round in 0..rounds() {
            let token = paris.invite("paris")?;
            let barrier = Barrier::new(3);
            let race = |node: &Node| {
                barrier.wait();
                node.run(&["join", &token])
            };
            // In two of three rounds the registrar dies in between, a little later each time.
            let killed = round % 3 != 0;
            let pause = Duration::from_millis(10 * u64::try_from(round % 12)?);
            let (a, b) = std::thread::scope(|scope| -> Result<_> {
                let (a, b) = (scope.spawn(|| race(&one)), scope.spawn(|| race(&two)));
                barrier.wait();
                if killed {
                    std::thread::sleep(pause); // the fault's moment, not a wait for anything
                    paris.kill_daemon()?;
                    paris.start_daemon()?;
                }
                Ok((a.join().expect("no panic")?, b.join().expect("no panic")?))
            })?;
            // Whoever was told neither yes nor no asks again, by the same token.
            let settle = |node: &Node, first: &meshlab::Output| -> Result<bool> {
                if first.is_ok() || is_beaten(first) {
                    return Ok(first.is_ok());
                }
                ensure!(killed, "round {round}: {}", first.stderr);
                Ok(wait_until(PATIENCE, "a clear answer", || {
                    let again = node.run(&["join", &token]).map_err(|e| e.to_string())?;
                    if again.is_ok() || is_beaten(&again) { Ok(again.is_ok()) } else { Err(again.stderr) }
                })?)
            };
            // Both orders occur: the winner may be the one that was interrupted.
            let (won_a, won_b) = if round % 2 == 0 {
                let won_a = settle(&one, &a)?;
                (won_a, settle(&two, &b)?)
            } else {
                let won_b = settle(&two, &b)?;
                (settle(&one, &a)?, won_b)
            };
            ensure!(won_a != won_b, "round {round}: exactly one wins, got {won_a} and {won_b}");
            let winner = if won_a { &one } else { &two };
            // The winner is a member in everybody's eyes, and the token's only one.
            winner.wait_for(&paris)?;
            let invites = paris.ctl(&["invite", "list"])?;
            let redeemed = invites["invites"][0]["redeemed"].as_array().map(Vec::len);
            ensure!(redeemed == Some(1), "round {round}: {invites}");
            // Asking once more changes nothing.
            ensure!(winner.run(&["join", &token])?.is_ok(), "round {round}: the same token, the same membership");
            winner.ctl(&["leave", "--force"])?;
        }
        Ok(())
    })
}
