//! What happens in a run, and what must hold.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use vdc::invite::{
    Challenge, DoorResponse, InviteOptions, InviteState, Joined, Link, NodeSecrets, Redeem, RefusalCode, grant,
};
use vdc::record::{Contact, ContactAddress, Member};
use vdc::roster::issue::{self, Draft};
use vdc::roster::{Roster, Standing};
use vdc::{Body, InviteId, Office, Signed, UnixTime, WgKey};

use crate::founding::{Identity, name};
use crate::report::{Figure, Percentiles};
use crate::traffic::Flow;
use crate::world::{SECOND_US, World};

/// A story with assertions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(&mut World, &mut Vec<Figure>) -> Result<()>,
}

/// In the order in which `all` plays them, one after the other in one world.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "cold-start",
        about: "all boxes come back from a power cut within 30 s, a tenth of them with old state",
        run: cold_start,
    },
    Scenario {
        name: "traffic",
        about: "flows through lazy tunnels while hosts roam and a sender is revoked; idle tunnels fall silent",
        run: traffic,
    },
    Scenario {
        name: "partition",
        about: "two halves admit nodes for 90 s without each other, and one revokes; then they meet again",
        run: partition,
    },
    Scenario { name: "revoke", about: "nodes are revoked one after the other, each at another site", run: revoke },
    Scenario {
        name: "stolen-registrar",
        about: "a stolen registrar key mints 100 members with old dates; the owners close it",
        run: stolen_registrar,
    },
    Scenario {
        name: "registrar-cut-off",
        about: "a registrar's site is cut off for longer than its members' records last",
        run: registrar_cut_off,
    },
    Scenario {
        name: "clocks-off",
        about: "one clock in fifty is a day off, a registrar's among them",
        run: clocks_off,
    },
];

/// Bytes that the roster of a thousand nodes may take.
const ROSTER_BYTES_MAX: usize = 2_000_000;
/// From a revocation to the last node that knows.
const REVOKE_US_MAX: u64 = 2 * SECOND_US;

/// Nodes that join in each scenario that admits some: a tenth, at least two.
fn joiners(world: &World) -> usize {
    (world.knobs.nodes / 10).max(2)
}

/// Switches everything on; other scenarios begin with it.
pub(crate) fn cold_start(world: &mut World, figures: &mut Vec<Figure>) -> Result<()> {
    world.note("power comes back");
    for node in 0..world.nodes.len() {
        let after_us = world.random.below(30 * SECOND_US);
        world.boot(node, after_us);
    }
    world.run_for(30 * SECOND_US);
    let took_us = converge(world, 60)?;
    figures.push(Figure::duration("cold start: last boot to all views equal", took_us));
    check_everybody_reachable(world)
}

fn traffic(world: &mut World, figures: &mut Vec<Figure>) -> Result<()> {
    const FLOWS: usize = 100;
    const FLOW_S: u64 = 24;
    /// Which of the hosts roam: one in so many.
    const ROAMS_EVERY: usize = 5;
    /// Longest silence of a flow one of whose ends moves to another address, and of one both of whose ends do: they have
    /// to ask each other over the control links.
    const ROAM_US_MAX: u64 = 2 * SECOND_US;
    const ROAM_BOTH_US_MAX: u64 = 3 * SECOND_US;
    let registrars: Vec<usize> = world.sites.iter().map(|s| s.registrar).collect();
    let plain: Vec<usize> = world.members().filter(|n| !registrars.contains(n)).collect();
    let hosts: Vec<usize> = plain.iter().copied().step_by((plain.len() / (FLOWS / 2)).max(1)).collect();
    ensure!(hosts.len() >= 4, "this scenario needs four plain nodes: use more `--nodes`");
    for host in &hosts {
        world.add_host(*host);
    }
    world.run_for(5 * SECOND_US);
    ensure!(world.hosts.values().all(|h| h.datagrams_sent == 0), "a data plane without traffic must be silent");
    let start_us = world.now_us;
    for turn in 0..FLOWS {
        let from = hosts[turn % hosts.len()];
        // To the next one, then to one that roams when the sender does; never to itself.
        let step = if turn < hosts.len() || hosts.len() <= ROAMS_EVERY { 1 } else { ROAMS_EVERY };
        let to = hosts[(turn + step) % hosts.len()];
        let after_us = world.random.below(SECOND_US);
        world.add_flow(Flow::new(from, to, start_us + FLOW_S * SECOND_US), after_us);
    }
    world.run_for(8 * SECOND_US);
    let first_us: Vec<u64> = world
        .flows
        .iter()
        .map(|f| f.first_received_us.zip(f.first_sent_us).map_or(u64::MAX, |(received, sent)| received - sent))
        .collect();
    ensure!(!first_us.contains(&u64::MAX), "a flow did not come through within 8 s");
    figures.push(Figure::percentiles("first packet of a flow, tunnel included", Percentiles::of(first_us)));

    for (turn, host) in hosts.iter().enumerate().filter(|(turn, _)| turn % ROAMS_EVERY == 0) {
        world.note(&format!("host {host} roams"));
        world.roam(*host, 1);
        world.run_for(turn as u64 % 3 * SECOND_US / 10);
    }
    world.run_for(6 * SECOND_US);
    let roamed = |host: &usize| hosts.iter().position(|h| h == host).is_some_and(|turn| turn % ROAMS_EVERY == 0);
    let (both, one): (Vec<&Flow>, Vec<&Flow>) = world.flows.iter().partition(|f| roamed(&f.from) && roamed(&f.to));
    for (what, flows, limit_us) in
        [("one end roams", one, ROAM_US_MAX), ("both ends roam", both, ROAM_BOTH_US_MAX)].into_iter()
    {
        let gaps = Percentiles::of(flows.iter().map(|flow| flow.gap_us(world.now_us)).collect());
        ensure!(gaps.max <= limit_us, "a flow was silent for {} us while {what}", gaps.max);
        figures.push(Figure::percentiles(&format!("longest gap of a flow while {what}"), gaps));
    }

    // A thief goes on sending from a node that was revoked.
    let victim = hosts[1];
    let mut last_us = 0;
    let revoked_us = world.now_us;
    let tombstone = revoke_node(world, victim)?;
    world.run_for(REVOKE_US_MAX);
    let accepted = |world: &World| -> u64 { world.flows.iter().filter(|f| f.from == victim).map(|f| f.received).sum() };
    let until_then = accepted(world);
    for flow in world.flows.iter().filter(|f| f.from == victim) {
        last_us = last_us.max(flow.last_received_us.unwrap_or(0));
    }
    world.watches.remove(&tombstone);
    world.run_until(start_us + FLOW_S * SECOND_US + 2 * SECOND_US);
    ensure!(accepted(world) == until_then, "packets of a revoked node were accepted 2 s after its revocation");
    figures.push(Figure::duration("revoke to last packet accepted of that node", last_us.saturating_sub(revoked_us)));

    let (sent, received) = world
        .flows
        .iter()
        .filter(|f| f.from != victim && f.to != victim)
        .fold((0, 0), |(sent, received), f| (sent + f.sent, received + f.received));
    ensure!(received <= sent, "more packets came out than went in");
    ensure!(received * 100 >= sent * 95, "only {received} of {sent} packets came through at 1 % loss");
    figures.push(Figure::count("packets sent through the overlay", sent));
    figures.push(Figure::count("packets received", received));
    let strays: u64 = world.hosts.values().map(|h| h.strays).sum();
    ensure!(strays == 0, "{strays} packets came out of overlays that no flow put in");
    Ok(())
}

/// Data planes that had nothing to carry for long enough are silent and keep no tunnel.
fn check_idle_hosts(world: &World, figures: &mut Vec<Figure>) -> Result<()> {
    /// Tunnels close after five idle minutes; both ends notice on their own.
    const IDLE_US: u64 = 330 * SECOND_US;
    let Some(last_flow_us) = world.flows.iter().map(|f| f.until_us).max() else { return Ok(()) };
    if world.now_us < last_flow_us + IDLE_US {
        return Ok(());
    }
    for (node, host) in world.hosts.iter().filter(|(node, _)| !world.revoked.contains(node)) {
        let open = host.overlay.views(world.instant()).len();
        ensure!(open == 0, "host {node} keeps {open} tunnels open after five idle minutes");
    }
    let members = world.hosts.iter().filter(|(node, _)| !world.revoked.contains(node));
    let silent_us = members.map(|(_, h)| h.last_sent_us).max().unwrap_or(0).saturating_sub(last_flow_us);
    ensure!(silent_us <= IDLE_US, "an idle host still sends");
    figures.push(Figure::duration("last packet of a flow to last datagram of any host", silent_us));
    Ok(())
}

fn partition(world: &mut World, figures: &mut Vec<Figure>) -> Result<()> {
    let half = world.knobs.sites / 2;
    world.cut(|site| usize::from(site >= half.max(1)));
    let victim = plain_node(world, 0)?;
    let joining = joiners(world);
    for turn in 0..joining {
        join(world, turn % world.knobs.sites, turn)?;
        world.run_for(75 * SECOND_US / joining as u64);
        if turn == joining / 2 {
            revoke_node(world, victim)?;
        }
    }
    world.run_for(15 * SECOND_US);
    ensure!(!world.is_converged(), "the halves cannot know of each other's joins during the partition");
    world.heal();
    let took_us = converge(world, 120)?;
    figures.push(Figure::duration("partition healed to all views equal", took_us));
    check_cut_off(world, victim)?;
    check_everybody_reachable(world)
}

fn revoke(world: &mut World, figures: &mut Vec<Figure>) -> Result<()> {
    let mut all_us = Vec::new();
    for turn in 0..5.min(world.knobs.sites) {
        let victim = plain_node(world, turn)?;
        let tombstone = revoke_node(world, victim)?;
        world.run_for(REVOKE_US_MAX);
        let watch = world.watches.remove(&tombstone).context("the tombstone is watched")?;
        let times_us: Vec<u64> = world
            .members()
            .map(|node| watch.learned_us.get(&node).map_or(u64::MAX, |at| at - watch.issued_us))
            .collect();
        let late = times_us.iter().filter(|t| **t == u64::MAX).count();
        ensure!(late == 0, "{late} nodes do not know of the revocation after 2 s");
        check_cut_off(world, victim)?;
        all_us.extend(times_us);
        world.run_for(4 * SECOND_US);
    }
    figures.push(Figure::percentiles("revoke to node knows", Percentiles::of(all_us)));
    converge(world, 30)?;
    Ok(())
}

fn stolen_registrar(world: &mut World, figures: &mut Vec<Figure>) -> Result<()> {
    const FORGED: u64 = 100;
    let site = 1 % world.knobs.sites;
    let registrar = world.sites[site].registrar;
    let thief = world.nodes[registrar].identity.secrets.node.clone();
    let believed = world.view(0).members.len();
    world.note("the thief mints members with old dates");
    let info = world.sites[site];
    let vdc = *world.nodes[0].records.roster.vdc_id();
    let now = world.nodes[0].unix_time(world.now_us);
    let forged: Vec<Arc<Signed>> = (0..FORGED)
        .map(|turn| {
            let identity = Identity::new(site, &mut world.random);
            let not_before = UnixTime(now.0 - world.random.between(3600, 15 * 3600));
            let member = Member {
                node: identity.key,
                wg: WgKey(world.random.bytes32()),
                site: info.number,
                name: name(&format!("forged{turn}")),
                serial: 1,
                bump: 0,
                ipv4: None,
                not_before,
                not_after: UnixTime(now.0 + 24 * 3600),
                ephemeral: false,
            };
            // Half with numbers that the true registrar used, half with new ones.
            let number = if turn % 2 == 0 { 1 + turn } else { 100_000 + turn };
            Arc::new(Signed::sign(&vdc, &thief, info.office, number, Body::Member(member), &[]))
        })
        .collect();
    let true_records = world.nodes[0].records.roster.issued_by(&thief.public());
    // Half of them before the closing, at a node far away; half after it.
    let (before, after) = forged.split_at(forged.len() / 2);
    let mole = plain_node(world, world.knobs.sites - 1)?;
    world.store(mole, before);
    world.run_for(10 * SECOND_US);
    ensure!(
        world.view(0).members.len() == believed + before.len(),
        "before the closing nothing tells them from true ones"
    );

    let owner = world.owner.clone();
    let view = world.view(0);
    let draft = issue::revocation(&view, &owner.public(), &thief.public(), "stolen", now, &true_records)?;
    let closing = Arc::new(draft.sign(&vdc, &owner, world.owner_number, &[]));
    world.owner_number += 1;
    world.note(&format!("the owners close the registrar: {} bytes", closing.encode().len()));
    world.revoked.insert(registrar);
    world.watch(closing.hash());
    world.store(0, &[Arc::clone(&closing)]);
    world.run_for(REVOKE_US_MAX);
    let watch = world.watches.remove(&closing.hash()).context("the closing is watched")?;
    let times_us: Vec<u64> = watch.learned_us.values().map(|at| at - watch.issued_us).collect();
    ensure!(times_us.len() >= world.members().count(), "some nodes do not know of the closing after 2 s");
    figures.push(Figure::bytes("closing with its estate", closing.encode().len() as u64));
    figures.push(Figure::percentiles("closing to node knows", Percentiles::of(times_us)));
    check_cut_off(world, registrar)?;

    world.note("the thief mints again");
    world.store(mole, after);
    world.store(mole, before);
    world.run_for(20 * SECOND_US);
    converge(world, 30)?;
    for node in world.members() {
        let roster = &world.nodes[node].records.roster;
        ensure!(forged.iter().all(|f| roster.get(&f.hash()).is_none()), "node {node} holds a forged member");
    }
    let view = world.view(mole);
    let survivors = view.reachable().count();
    ensure!(
        !view.members.values().any(|m| m.recorded_name.as_str().starts_with("forged")),
        "a forged member is believed"
    );
    figures.push(Figure::count("forged members accepted after the closing", 0));
    figures.push(Figure::count("true members that survived", survivors as u64));
    // The site gets a new registrar: another of its nodes.
    let successor = plain_node(world, site)?;
    let (admin, subject) = (world.nodes[0].identity.key, world.nodes[successor].identity.key);
    let draft = issue::registrar(&world.view(0), &admin, subject, info.number, now)?;
    issue_by(world, 0, draft);
    for info in &mut world.sites {
        if info.registrar == registrar {
            info.registrar = successor;
        }
    }
    converge(world, 30)?;
    Ok(())
}

fn registrar_cut_off(world: &mut World, figures: &mut Vec<Figure>) -> Result<()> {
    /// In place of 24 hours.
    const LIFETIME_S: u64 = 60;
    const CUT_S: u64 = 120;
    /// More would show no more, and every renewal is news for every node.
    const MEMBERS_MAX: usize = 40;
    ensure!(world.knobs.sites >= 3, "this scenario needs 3 sites: `--sites 3`");
    // The last site has no registrar of its own: the one before renews it.
    let last = world.knobs.sites - 1;
    let registrar = world.sites[last].registrar;
    let home = world.nodes[registrar].identity.site;
    let members: Vec<usize> =
        world.members().filter(|n| world.nodes[*n].identity.site == last).take(MEMBERS_MAX).collect();
    renew(world, &members, registrar, LIFETIME_S)?;
    converge(world, 30)?;
    world.cut(|site| usize::from(site == home));
    let mut in_grace_max = 0;
    for _ in 0..CUT_S / 10 {
        world.run_for(10 * SECOND_US);
        for node in [0, members[0]] {
            let [_, in_grace, expired, _] = world.standings(node);
            ensure!(expired == 0, "a member whose registrar is cut off was cut off as well");
            in_grace_max = in_grace_max.max(in_grace);
        }
    }
    ensure!(in_grace_max >= members.len(), "members past their deadline must be shown as degraded");
    figures.push(Figure::count("members shown in grace while their registrar was cut off", in_grace_max as u64));
    check_everybody_reachable(world)?;
    // Inside its site the registrar went on all the time.
    let inside: Vec<usize> = world.members().filter(|n| world.nodes[*n].identity.site == home).take(5).collect();
    renew(world, &inside, registrar, 24 * 3600)?;
    world.heal();
    let took_us = converge(world, 120)?;
    renew(world, &members, registrar, 24 * 3600)?;
    converge(world, 30)?;
    figures.push(Figure::duration("registrar back to all views equal", took_us));
    let [_, in_grace, ..] = world.standings(0);
    ensure!(in_grace == 0, "{in_grace} members are still in grace after their renewal");
    check_everybody_reachable(world)
}

fn clocks_off(world: &mut World, figures: &mut Vec<Figure>) -> Result<()> {
    const DAY_S: i64 = 86_400;
    let site = 2 % world.knobs.sites;
    let registrar = world.sites[site].registrar;
    let mut wrong: Vec<usize> = world.members().filter(|node| node % 50 == 7).collect();
    wrong.push(registrar);
    for (turn, node) in wrong.iter().enumerate() {
        world.nodes[*node].clock_ahead = if turn % 2 == 0 { DAY_S } else { -DAY_S };
    }
    world.nodes[registrar].clock_ahead = DAY_S;
    world.note(&format!("{} clocks jump by a day", wrong.len()));
    join(world, site, 1_000_000)?;
    // A registrar whose clock is behind everything it knows refuses to sign what would be born old.
    if let Some(slow) = world.sites.iter().map(|s| s.registrar).find(|r| *r != registrar && *r != 0) {
        world.nodes[slow].clock_ahead = -DAY_S;
        let refused = redeem(world, world.nodes[slow].identity.site, 1_000_001);
        let refusal = refused.err().and_then(|e| e.downcast::<vdc::invite::Refusal>().ok());
        ensure!(refusal.is_some_and(|r| r.is(RefusalCode::Clock)), "a registrar a day behind must not sign");
        world.nodes[slow].clock_ahead = 0;
    }
    world.run_for(20 * SECOND_US);
    converge(world, 30)?;
    check_everybody_reachable(world)?;
    for node in &wrong {
        let unreachable = world.view(*node).members.values().filter(|m| m.standing == Standing::Expired).count();
        ensure!(unreachable == 0, "node {node}, a day off, cuts off {unreachable} members");
    }
    figures.push(Figure::count("clocks a day off, nobody cut off", wrong.len() as u64));
    for node in wrong {
        world.nodes[node].clock_ahead = 0;
    }
    Ok(())
}

/// What holds at the end of every run.
pub(crate) fn check_end(world: &mut World, figures: &mut Vec<Figure>) -> Result<()> {
    converge(world, 120)?;
    check_idle_hosts(world, figures)?;
    let links_max = world.nodes.iter().map(|node| node.links_max).max().unwrap_or(0);
    ensure!(links_max <= vdc::links::LINKS_MAX, "a node had {links_max} links");
    figures.push(Figure::count("most links of one node at any time", links_max as u64));
    let roster_bytes = world.nodes.iter().map(|node| node.records.roster.heap_bytes()).max().unwrap_or(0);
    ensure!(
        world.nodes.len() > 1200 || roster_bytes <= ROSTER_BYTES_MAX,
        "a roster takes {roster_bytes} bytes, more than {ROSTER_BYTES_MAX}"
    );
    figures.push(Figure::bytes("largest roster", roster_bytes as u64));
    let unconfirmed = world.members().filter(|node| world.nodes[*node].syncer.last_confirmed().is_none()).count();
    ensure!(unconfirmed == 0, "{unconfirmed} nodes never confirmed their view with anybody");
    let sent = world.members().map(|node| world.nodes[node].bytes_sent).collect();
    figures.push(Figure::bytes_each("sent by each node", Percentiles::of(sent)));
    let messages = world.members().map(|node| world.nodes[node].messages_sent).collect();
    figures.push(Figure::counts("messages sent by each node", Percentiles::of(messages)));
    figures.push(Figure::count("signature checks", world.checks()));
    Ok(())
}

fn converge(world: &mut World, limit_s: u64) -> Result<u64> {
    let took_us = world.run_until_converged(limit_s * SECOND_US);
    took_us.with_context(|| {
        let mut sizes: Vec<usize> = world.members().map(|n| world.nodes[n].records.roster.len()).collect();
        sizes.sort_unstable();
        sizes.dedup();
        format!("views still differ after {limit_s} s; roster sizes: {sizes:?}")
    })
}

/// Every member that was not revoked is reachable in the views of a node of each site and of all skewed nodes.
fn check_everybody_reachable(world: &World) -> Result<()> {
    let sites = 0..world.knobs.sites;
    let one_per_site = sites.filter_map(|site| world.members().find(|n| world.nodes[*n].identity.site == site));
    let skewed = world.members().filter(|n| world.nodes[*n].clock_ahead != 0);
    for node in one_per_site.chain(skewed) {
        let view = world.view(node);
        for other in world.members() {
            let key = world.nodes[other].identity.key;
            let standing = view.members.get(&key).map(|m| m.standing);
            // What the other side of a partition admitted is not known yet.
            ensure!(standing.is_none_or(Standing::is_reachable), "node {node} sees node {other} as {standing:?}");
        }
    }
    Ok(())
}

/// A revoked node is linked to nobody and reachable in no view.
fn check_cut_off(world: &World, victim: usize) -> Result<()> {
    let key = world.nodes[victim].identity.key;
    ensure!(world.links_to_revoked() == 0, "{} links to revoked nodes are up", world.links_to_revoked());
    for node in world.members().step_by((world.knobs.nodes / 20).max(1)) {
        let standing = world.view(node).members.get(&key).map(|m| m.standing);
        ensure!(standing.is_none_or(|s| s == Standing::Revoked), "node {node} sees the revoked node as {standing:?}");
    }
    Ok(())
}

/// A member of the site that is neither registrar nor revoked.
fn plain_node(world: &World, site: usize) -> Result<usize> {
    let is_registrar = |node: usize| world.sites.iter().any(|s| s.registrar == node);
    let mut nodes = world.members().filter(|n| world.nodes[*n].identity.site == site && !is_registrar(*n));
    nodes.next().with_context(|| format!("site {site} has no plain node: use more `--nodes`"))
}

/// Signs a draft with a node's key and stores it there.
fn issue_by(world: &mut World, node: usize, draft: Draft) -> Arc<Signed> {
    let number = world.nodes[node].identity.next();
    let vdc = *world.nodes[node].records.roster.vdc_id();
    let record = Arc::new(draft.sign(&vdc, &world.nodes[node].identity.secrets.node, number, &[]));
    world.store(node, &[Arc::clone(&record)]);
    record
}

/// The registrar of the victim's site revokes it; the hash of the tombstone, which is watched.
fn revoke_node(world: &mut World, victim: usize) -> Result<vdc::Hash> {
    let registrar = world.sites[world.nodes[victim].identity.site].registrar;
    let (key, own) = (world.nodes[victim].identity.key, world.nodes[registrar].identity.key);
    let now = world.nodes[registrar].unix_time(world.now_us);
    let draft = issue::revocation(&world.view(registrar), &own, &key, "lost", now, &[])?;
    world.note(&format!("node {registrar} revokes node {victim}"));
    world.revoked.insert(victim);
    // Watched from before it is stored: the first node knows at once.
    let number = world.nodes[registrar].identity.next();
    let vdc = *world.nodes[registrar].records.roster.vdc_id();
    let record = Arc::new(draft.sign(&vdc, &world.nodes[registrar].identity.secrets.node, number, &[]));
    world.watch(record.hash());
    world.store(registrar, &[Arc::clone(&record)]);
    Ok(record.hash())
}

/// The registrar renews nodes over ten seconds, as they would come by.
fn renew(world: &mut World, nodes: &[usize], registrar: usize, lifetime_s: u64) -> Result<()> {
    let own = world.nodes[registrar].identity.key;
    let view = world.view(registrar);
    for node in nodes {
        let now = world.nodes[registrar].unix_time(world.now_us);
        let mut draft = issue::renewal(&view, &own, &world.nodes[*node].identity.key, None, now)?;
        if let Body::Member(member) = &mut draft.body {
            member.not_after = UnixTime(now.0 + lifetime_s);
        }
        issue_by(world, registrar, draft);
        world.run_for(10 * SECOND_US / nodes.len() as u64);
    }
    Ok(())
}

/// A box joins a site by an invite, as the door would do it; it then switches itself on.
fn join(world: &mut World, site: usize, turn: usize) -> Result<()> {
    let (identity, granted) = redeem(world, site, turn)?;
    let registrar = world.sites[site].registrar;
    let roster = match granted {
        Some(joined) => joined.roster,
        None => world.nodes[registrar].records.roster.clone(),
    };
    let node = world.add(identity, roster);
    world.note(&format!("node {node} joins site {site}"));
    let addresses = vec![ContactAddress::Ip([10, 200, 0, 1].into(), 4433)];
    let contact = Contact { node: world.nodes[node].identity.key, serial: 1, addresses, door_port: None };
    let under = Office::of(&world.nodes[registrar].identity.key, &world.sites[site].office);
    // Two round trips for the talk at the door.
    let after_us = 4 * world.network.base_us(site, world.nodes[registrar].identity.site);
    world.boot(node, after_us);
    world.run_for(after_us);
    issue_by(world, node, Draft { under, body: Body::Contact(contact) });
    Ok(())
}

/// Invite, redemption and grant, as the registrar and the joiner decide them. The grant is verified by the joiner in full
/// for the first few; a thousand signatures for each of the others would measure only the verifier.
fn redeem(world: &mut World, site: usize, turn: usize) -> Result<(Identity, Option<Joined>)> {
    let registrar = world.sites[site].registrar;
    let signer = world.nodes[registrar].identity.secrets.node.clone();
    let now = world.nodes[registrar].unix_time(world.now_us);
    let view = world.view(registrar);
    let mut id = [0; 16];
    id.copy_from_slice(&world.random.bytes32()[..16]);
    let number = world.sites[site].number;
    let expires = UnixTime(now.0 + 3600);
    let options = InviteOptions { site: number, uses: 1, expires, founder: false, ephemeral: false };
    let seed = world.random.bytes32();
    let (invite, state) = InviteState::create(&view, &signer, Vec::new(), &options, InviteId(id), seed, now)?;
    let secrets = NodeSecrets::from_seeds(&world.random.bytes32(), &world.random.bytes32());
    let link = Link { registrar: signer.public(), joiner: secrets.node.public() };
    let challenge = Challenge::new(&world.random.bytes32(), link.joiner, world.instant());
    let DoorResponse::Challenge(question) = challenge.question() else { anyhow::bail!("a question") };
    let wish = name(&format!("j{turn}"));
    let request = Redeem::answer(&invite, &secrets, &link, &question, wish).context("an honest challenge")?;
    let first = world.nodes[registrar].identity.number;
    let redemption = state.redeem(&view, &signer, first, &request, challenge, now)?;
    world.nodes[registrar].identity.number = redemption.number_next;
    let records: Vec<Arc<Signed>> = redemption.records.into_iter().map(Arc::new).collect();
    world.store(registrar, &records);
    let joined = if turn < 2 { Some(verify_grant(world, registrar, &secrets, now)?) } else { None };
    Ok((Identity { key: secrets.node.public(), secrets, site, number: 1 }, joined))
}

fn verify_grant(world: &World, registrar: usize, secrets: &NodeSecrets, now: UnixTime) -> Result<Joined> {
    let roster: &Roster = &world.nodes[registrar].records.roster;
    let DoorResponse::Granted(records) = grant(roster, &secrets.node.public()) else { anyhow::bail!("a grant") };
    let joined = Joined::verify(roster.vdc_id(), secrets, &records, now)?;
    ensure!(joined.refused == 0, "an honest registrar's grant holds {} refused records", joined.refused);
    Ok(joined)
}
