use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn path(remote: &str) -> PathAddress {
    PathAddress::main(remote.parse().expect("valid"))
}

fn candidate(remote: &str, tier: Tier) -> Candidate {
    Candidate { address: path(remote), tier, source: Source::Asked, rtt: None }
}

fn observed(remote: &str, tier: Tier) -> Candidate {
    Candidate { source: Source::Observed, ..candidate(remote, tier) }
}

fn new(leads: bool) -> PathAgent {
    PathAgent::new(leads, Random::new([1; 32]))
}

const MS: Duration = Duration::from_millis(1);

/// An agent that uses the first of `candidates`, 40 ms away.
fn agent_on(leads: bool, candidates: &[(&str, Tier)]) -> (PathAgent, Instant) {
    let now = Instant::now();
    let mut agent = new(leads);
    for (remote, tier) in candidates {
        agent.add(candidate(remote, *tier));
    }
    agent.handshake_paths(false);
    let now = now + 40 * MS;
    agent.on_session(candidate(candidates[0].0, candidates[0].1), Some(40 * MS), now);
    (agent, now)
}

fn current(agent: &PathAgent) -> String {
    agent.current().map_or_else(|| "none".into(), |path| path.remote.to_string())
}

/// Answers every probe of the next round after the milliseconds that `rtt` gives for its path.
fn probe_round(agent: &mut PathAgent, rtt: impl Fn(&str) -> Option<u32>) -> Instant {
    let at = agent.probe_at().expect("probing");
    let mut replies: Vec<(Instant, u64, PathAddress)> = agent
        .probe(CANDIDATES_MAX, at)
        .into_iter()
        .filter_map(|(path, probe)| Some((at + MS * rtt(&path.remote.to_string())?, probe.token, path)))
        .collect();
    replies.sort_unstable();
    for (at, token, path) in replies {
        agent.on_probe_reply(token, path, at);
    }
    at
}

#[test]
fn first_answer_is_used_and_probes_promote_to_a_better_tier() {
    let (mut agent, _) = agent_on(true, &[("192.0.2.1:1", Tier::Reflexive), ("10.0.0.1:1", Tier::Lan)]);
    assert_eq!((current(&agent).as_str(), agent.rtt()), ("192.0.2.1:1", Some(40 * MS)));
    probe_round(&mut agent, |_| Some(40));
    assert_eq!(current(&agent), "10.0.0.1:1", "a better tier at equal RTT");
    probe_round(&mut agent, |remote| Some(if remote.starts_with("10") { 90 } else { 1 }));
    assert_eq!(current(&agent), "10.0.0.1:1", "no RTT beats a tier");
}

#[test]
fn lost_probes_never_demote_and_small_gains_do_not_flap() {
    let (mut agent, _) = agent_on(true, &[("192.0.2.1:1", Tier::Host), ("192.0.2.2:1", Tier::Host)]);
    for _ in 0..20 {
        probe_round(&mut agent, |remote| if remote.ends_with("1:1") { None } else { Some(38) });
        assert_eq!(current(&agent), "192.0.2.1:1", "2 ms are within hysteresis, and lost probes say nothing");
    }
    probe_round(&mut agent, |remote| if remote.ends_with("1:1") { Some(40) } else { Some(20) });
    assert_eq!(current(&agent), "192.0.2.2:1", "20 ms are worth it");
}

#[test]
fn ipv6_wins_a_near_tie() {
    let (mut agent, _) = agent_on(true, &[("192.0.2.1:1", Tier::Host), ("[2001:db8::1]:1", Tier::Host)]);
    probe_round(&mut agent, |remote| Some(if remote.starts_with('[') { 37 } else { 40 }));
    assert_eq!(current(&agent), "[2001:db8::1]:1", "3 ms better, 3 ms bonus, 5 ms hysteresis");
}

#[test]
fn follower_measures_and_leaves_the_choice_to_the_leader() {
    let (mut agent, now) = agent_on(false, &[("192.0.2.1:1", Tier::Host), ("10.0.0.1:1", Tier::Lan)]);
    probe_round(&mut agent, |_| Some(1));
    assert_eq!(current(&agent), "192.0.2.1:1");
    assert!(agent.candidates().all(|candidate| candidate.rtt.is_some()), "measured all the same");
    assert!(agent.on_data(observed("10.0.0.1:1", Tier::Lan), false, now));
    assert!(agent.on_data(observed("192.0.2.1:1", Tier::Host), false, now), "wherever the leader's data comes from");
}

#[test]
fn leader_follows_new_addresses_and_new_handshakes_only() {
    let (mut agent, now) = agent_on(true, &[("10.0.0.1:1", Tier::Lan), ("192.0.2.1:1", Tier::Host)]);
    assert!(!agent.on_data(observed("192.0.2.1:1", Tier::Host), false, now), "one that it could have chosen");
    assert!(!agent.on_data(observed("192.0.2.9:9", Tier::Relayed), false, now), "a relay while ours works");
    assert!(agent.on_data(observed("192.0.2.8:8", Tier::Reflexive), false, now), "a new address");
    assert!(agent.on_data(observed("192.0.2.1:1", Tier::Host), true, now), "the path of its handshake");
    agent.on_distress();
    assert!(agent.on_data(observed("192.0.2.9:9", Tier::Reflexive), false, now), "anything is better than nothing");
}

#[test]
fn leader_gives_way_to_data_that_keeps_coming_from_elsewhere() {
    let (mut agent, now) = agent_on(true, &[("10.0.0.1:1", Tier::Lan), ("192.0.2.1:1", Tier::Host)]);
    let other = observed("192.0.2.1:1", Tier::Host);
    assert!(!agent.on_data(other, false, now));
    assert!(!agent.wants_data_path(now + 999 * MS));
    assert!(agent.wants_data_path(now + 1000 * MS));
    assert!(!agent.wants_data_path(now + 1001 * MS), "asked once");
    assert!(!agent.on_data(observed("10.0.0.1:1", Tier::Lan), false, now + 1002 * MS), "no: there it is");
    assert!(!agent.on_data(other, false, now + 1003 * MS), "overtaken");
    assert!(!agent.on_data(other, false, now + 30_000 * MS), "long ago");
    assert!(agent.on_data(other, false, now + 31_000 * MS));
    assert_eq!(current(&agent), "192.0.2.1:1");
}

#[test]
fn answer_from_elsewhere_measures_nothing() {
    let (mut agent, _) = agent_on(true, &[("192.0.2.1:1", Tier::Host), ("10.0.0.1:1", Tier::Lan)]);
    let at = agent.probe_at().expect("probing");
    for (_, probe) in agent.probe(CANDIDATES_MAX, at) {
        agent.on_probe_reply(probe.token, path("192.0.2.1:1"), at + MS);
    }
    assert_eq!(current(&agent), "192.0.2.1:1");
}

#[test]
fn path_that_the_peer_left_does_not_come_back_by_an_old_measurement() {
    let (mut agent, now) = agent_on(true, &[("10.0.0.1:1", Tier::Host), ("10.0.0.3:1", Tier::Host)]);
    probe_round(&mut agent, |_| Some(20));
    assert!(agent.on_data(observed("10.0.0.2:1", Tier::Host), false, now), "a new address");
    for _ in 0..9 {
        probe_round(&mut agent, |remote| remote.starts_with("10.0.0.2").then_some(90));
        assert_eq!(current(&agent), "10.0.0.2:1", "the others were faster, and are gone");
    }
}

#[test]
fn network_change_sends_handshakes_everywhere_but_keeps_the_path() {
    let (mut agent, now) = agent_on(true, &[("10.0.0.1:1", Tier::Lan), ("192.0.2.1:1", Tier::Host)]);
    assert!(agent.is_trusted());
    agent.on_network_change(now);
    assert!(!agent.is_trusted());
    assert_eq!(current(&agent), "10.0.0.1:1");
    assert_eq!(agent.handshake_paths(false), [path("10.0.0.1:1"), path("192.0.2.1:1")], "the path in use first");
    assert!(agent.on_session(candidate("192.0.2.1:1", Tier::Host), None, now), "the first answer wins");
    assert!(agent.is_trusted());
}

#[test]
fn many_candidates_all_get_their_turn() {
    let mut agent = new(true);
    for i in 0..CANDIDATES_MAX + 4 {
        agent.add(candidate(&format!("192.0.2.{i}:1"), Tier::Host));
    }
    assert_eq!(agent.candidates().count(), CANDIDATES_MAX);
    let tried: BTreeSet<_> = (0..2).flat_map(|_| agent.handshake_paths(false)).collect();
    assert_eq!(tried.len(), CANDIDATES_MAX);
}

#[test]
fn dead_candidates_are_left_alone_until_the_network_changes_or_the_peer_names_them() {
    let (mut agent, _) = agent_on(true, &[("192.0.2.1:1", Tier::Host), ("192.0.2.2:1", Tier::Host)]);
    let probed = |agent: &mut PathAgent| {
        let at = agent.probe_at().expect("probing");
        agent.probe(CANDIDATES_MAX, at).len()
    };
    for _ in 0..9 {
        probe_round(&mut agent, |remote| remote.ends_with("1:1").then_some(10));
    }
    assert_eq!(probed(&mut agent), 1, "the path in use alone");
    let now = agent.probe_at().expect("probing");
    agent.on_network_change(now);
    assert_eq!(probed(&mut agent), 2);
    for _ in 0..9 {
        probe_round(&mut agent, |remote| remote.ends_with("1:1").then_some(10));
    }
    let now = agent.probe_at().expect("probing");
    agent.set_asked(&[candidate("192.0.2.2:1", Tier::Host)], now);
    assert_eq!(probed(&mut agent), 2);
}

#[test]
fn names_that_the_peer_withdrew_are_forgotten_unless_they_work() {
    let (mut agent, now) = agent_on(true, &[("192.0.2.1:1", Tier::Host), ("192.0.2.2:1", Tier::Host)]);
    agent.add(observed("198.51.100.1:1", Tier::Reflexive));
    assert!(agent.set_asked(&[candidate("192.0.2.3:1", Tier::Host)], now));
    let known: Vec<String> = agent.candidates().map(|candidate| candidate.address.remote.to_string()).collect();
    assert_eq!(known, ["192.0.2.1:1", "198.51.100.1:1", "192.0.2.3:1"]);
}

#[test]
fn allowance_goes_to_the_path_in_use_first() {
    let (mut agent, _) = agent_on(true, &[("192.0.2.9:1", Tier::Host), ("10.0.0.1:1", Tier::Lan)]);
    let at = agent.probe_at().expect("probing");
    let sent: Vec<_> = agent.probe(1, at).into_iter().map(|(path, _)| path).collect();
    assert_eq!(sent, [path("192.0.2.9:1")]);
    assert!(agent.probe_at().expect("still") > at, "a round without allowance is not repeated at once");
}

proptest! {
    /// Whatever happens: bounded, the path in use is a known candidate, and a round of probes always ends.
    #[test]
    fn state_stays_within_bounds(steps in proptest::collection::vec((0u8..9, 0u8..24), 1..200), leads in any::<bool>()) {
        let mut agent = new(leads);
        let mut now = Instant::now();
        let mut tokens = vec![];
        for (step, n) in steps {
            let tier = [Tier::Lan, Tier::Host, Tier::Reflexive, Tier::Relayed][usize::from(n % 4)];
            let remote = format!("192.0.2.{n}:1");
            match step {
                0 => { agent.add(candidate(&remote, tier)); }
                1 => { agent.on_session(candidate(&remote, tier), Some(MS * u32::from(n)), now); }
                2 => { agent.on_data(observed(&remote, tier), n % 2 == 0, now); }
                3 => agent.on_distress(),
                4 => agent.on_network_change(now),
                5 => agent.wake(now),
                6 => now += MS * 100 * u32::from(n),
                7 => { tokens.pop().map(|token| agent.on_probe_reply(token, path(&remote), now)); }
                _ => { agent.set_asked(&[candidate(&remote, tier)], now); }
            }
            tokens.extend(agent.probe(CANDIDATES_MAX, now).iter().map(|(_, probe)| probe.token));
            prop_assert!(agent.candidates().count() <= CANDIDATES_MAX);
            prop_assert!(agent.probes.len() <= PROBES_MAX);
            prop_assert!(agent.probe_at().is_none_or(|at| at > now));
            prop_assert!(agent.current().is_none_or(|path| agent.knows(path)));
            prop_assert!(agent.handshake_paths(false).len() <= FAN_OUT_MAX);
        }
    }
}
