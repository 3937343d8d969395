//! The path agent of one peer: which of its candidates to try, and which one carries the tunnel.
//!
//! The handshake is fanned out over all candidates, and the one that answers is used at once. From then on probes inside
//! the tunnel measure the others. Probes only *promote*: a path in use is given up only when WireGuard itself is in
//! distress or the network has changed, never because a probe was lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::packet::Probe;

/// A way to a peer: which of our sockets, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathAddress {
    /// 0 is the main socket; spare ones are for punching.
    pub socket: u8,
    pub remote: SocketAddr,
}

impl PathAddress {
    /// Over the main socket.
    #[must_use]
    pub fn main(remote: SocketAddr) -> Self {
        Self { socket: 0, remote }
    }
}

/// How good a kind of path is before anything is measured; lower is better, and a better tier beats any RTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// An address of a network that we are in too.
    Lan,
    /// An address of the peer's own interfaces, over routers.
    Host,
    /// As others see the peer: through its router's mapping.
    Reflexive,
    /// Through another member.
    Relayed,
}

/// Where a candidate was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The peer said so over a control link.
    Asked,
    /// An authentic packet came from there.
    Observed,
    /// It was in use before a restart.
    LastSeen,
}

/// One place where a peer may be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub address: PathAddress,
    pub tier: Tier,
    pub source: Source,
    /// From the newest probe or handshake over it.
    pub rtt: Option<Duration>,
}

/// Candidates kept per peer; the oldest unmeasured one makes room.
pub const CANDIDATES_MAX: usize = 16;
/// Handshakes sent at once; more candidates wait for the next attempt.
pub const FAN_OUT_MAX: usize = 8;
/// A path of the same tier must be better by this much.
const HYSTERESIS: Duration = Duration::from_millis(5);
/// What IPv6 is worth: no NAT in between.
const IPV6_BONUS: Duration = Duration::from_millis(3);
/// Pauses between rounds of probing while the tunnel is in use: first soon, to find a better path, then rarely.
const PROBE_PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(60)];
/// Probes waiting for their answers.
const PROBES_MAX: usize = 32;
/// An answer later than this measures nothing.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// The agent of one peer. Drive it through [`crate::Overlay`].
#[derive(Debug)]
pub(crate) struct PathAgent {
    candidates: Vec<Candidate>,
    current: Option<PathAddress>,
    /// Smoothed over the path in use (RFC 6298 §2, α = 1/8).
    rtt: Option<Duration>,
    probes: BTreeMap<u64, (PathAddress, Instant)>,
    next_token: u64,
    rounds: usize,
    probe_at: Option<Instant>,
    /// When the handshake under way was sent, for its round-trip time.
    handshake_sent: Option<Instant>,
    /// Rotates the fan-out, so that many candidates all get their turn.
    turn: usize,
}

impl PathAgent {
    pub(crate) fn new(token_seed: u64) -> Self {
        Self {
            candidates: vec![],
            current: None,
            rtt: None,
            probes: BTreeMap::new(),
            next_token: token_seed,
            rounds: 0,
            probe_at: None,
            handshake_sent: None,
            turn: 0,
        }
    }

    pub(crate) fn current(&self) -> Option<PathAddress> {
        self.current
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub(crate) fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    pub(crate) fn tier(&self) -> Option<Tier> {
        let current = self.current?;
        self.candidates.iter().find(|c| c.address == current).map(|c| c.tier)
    }

    /// Adds what is not known yet. Returns whether there was something new.
    pub(crate) fn add(&mut self, candidate: Candidate) -> bool {
        if let Some(known) = self.candidates.iter_mut().find(|c| c.address == candidate.address) {
            known.tier = known.tier.min(candidate.tier);
            return false;
        }
        if self.candidates.len() >= CANDIDATES_MAX {
            let current = self.current;
            let spare = |c: &Candidate| c.rtt.is_none() && Some(c.address) != current;
            match self.candidates.iter().position(spare) {
                Some(index) => drop(self.candidates.remove(index)),
                None => return false,
            }
        }
        self.candidates.push(candidate);
        true
    }

    /// Where the next handshake goes: the path in use alone while it is trusted, otherwise every candidate in turn.
    pub(crate) fn handshake_paths(&mut self, now: Instant) -> Vec<PathAddress> {
        self.handshake_sent = Some(now);
        if let Some(current) = self.current {
            return vec![current];
        }
        let mut ordered: Vec<&Candidate> = self.candidates.iter().collect();
        ordered.sort_by_key(|c| (c.tier, c.address.remote.is_ipv4()));
        let count = ordered.len();
        let start = if count > FAN_OUT_MAX { self.turn % count } else { 0 };
        self.turn = self.turn.wrapping_add(FAN_OUT_MAX);
        ordered.iter().cycle().skip(start).take(count.min(FAN_OUT_MAX)).map(|c| c.address).collect()
    }

    /// A handshake was completed over `path`. Returns whether the path in use changed.
    pub(crate) fn on_session(&mut self, path: PathAddress, tier: Tier, now: Instant) -> bool {
        let rtt = self.handshake_sent.take().map(|sent| now.saturating_duration_since(sent));
        self.add(Candidate { address: path, tier, source: Source::Observed, rtt: None });
        // The first answer wins the race; a later handshake over the path in use only refreshes it.
        let changed = match self.current {
            Some(current) if current == path => false,
            Some(_) | None => {
                self.switch(path);
                true
            }
        };
        if let Some(rtt) = rtt {
            self.measured(path, rtt);
        }
        self.rounds = 0;
        self.probe_at = Some(now + PROBE_PAUSES[0]);
        changed
    }

    /// Authentic data came over `path`, which is not the one in use: the peer moved, or chose another path. Returns
    /// whether we follow.
    pub(crate) fn on_roamed(&mut self, path: PathAddress, tier: Tier, now: Instant) -> bool {
        self.add(Candidate { address: path, tier, source: Source::Observed, rtt: None });
        let known_tier = self.candidates.iter().find(|c| c.address == path).map_or(tier, |c| c.tier);
        // Both ends may prefer different paths of different tiers; only a worse tier is not followed while ours works.
        let follow = self.tier().is_none_or(|current| known_tier <= current);
        if follow && self.current != Some(path) {
            // The peer may have left the old path for good: what was measured over it must not win it back.
            if let Some(left) = self.candidates.iter_mut().find(|c| Some(c.address) == self.current) {
                left.rtt = None;
            }
            self.switch(path);
            self.probe_at = Some(now + PROBE_PAUSES[0]);
            return true;
        }
        false
    }

    fn switch(&mut self, path: PathAddress) {
        self.current = Some(path);
        self.rtt = self.candidates.iter().find(|c| c.address == path).and_then(|c| c.rtt);
    }

    fn measured(&mut self, path: PathAddress, rtt: Duration) {
        if let Some(candidate) = self.candidates.iter_mut().find(|c| c.address == path) {
            candidate.rtt = Some(rtt);
        }
        if self.current == Some(path) {
            self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
        }
    }

    /// WireGuard is in distress over the path in use: forget that it worked, and try everything again.
    pub(crate) fn on_distress(&mut self) {
        self.current = None;
        self.rtt = None;
        self.probes.clear();
        self.probe_at = None;
    }

    /// Our own addresses changed: what was measured says nothing any more. The path in use is kept until the next
    /// handshake fails, since most changes do not concern it.
    pub(crate) fn on_network_change(&mut self, now: Instant) {
        for candidate in &mut self.candidates {
            candidate.rtt = None;
        }
        self.rounds = 0;
        self.probe_at = self.current.map(|_| now);
    }

    /// When probes are due, if the tunnel is in use.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        self.probe_at
    }

    /// One round of probes over all candidates, if it is due.
    pub(crate) fn probe(&mut self, now: Instant) -> Vec<(PathAddress, Probe)> {
        if self.probe_at.is_none_or(|at| at > now) {
            return vec![];
        }
        let current = self.current;
        let late = |sent: &Instant| now.saturating_duration_since(*sent) >= PROBE_TIMEOUT;
        for (path, _) in self.probes.values().filter(|(path, sent)| late(sent) && Some(*path) != current) {
            // Probes only promote: what is not confirmed any more promotes nothing, but the path in use is left alone.
            if let Some(candidate) = self.candidates.iter_mut().find(|c| c.address == *path) {
                candidate.rtt = None;
            }
        }
        self.probes.retain(|_, (_, sent)| !late(sent));
        let pause = PROBE_PAUSES[self.rounds.min(PROBE_PAUSES.len() - 1)];
        self.rounds = self.rounds.saturating_add(1);
        self.probe_at = Some(now + pause);
        let mut sent = vec![];
        for candidate in &self.candidates {
            if self.probes.len() >= PROBES_MAX {
                break;
            }
            let token = self.next_token;
            self.next_token = self.next_token.wrapping_add(0x9e37_79b9_7f4a_7c15); // distinct for 2^64 steps
            self.probes.insert(token, (candidate.address, now));
            sent.push((candidate.address, Probe { reply: false, token }));
        }
        sent
    }

    /// Nothing uses the tunnel: no probes until it is used again.
    pub(crate) fn rest(&mut self) {
        self.probe_at = None;
    }

    /// The tunnel is used again after a rest.
    pub(crate) fn wake(&mut self, now: Instant) {
        if self.probe_at.is_none() && self.current.is_some() {
            self.probe_at = Some(now + PROBE_PAUSES[1]);
        }
    }

    /// An answer to a probe. Returns whether the path in use changed.
    pub(crate) fn on_probe_reply(&mut self, token: u64, now: Instant) -> bool {
        let Some((path, sent)) = self.probes.remove(&token) else { return false };
        self.measured(path, now.saturating_duration_since(sent));
        let Some(best) = self.best() else { return false };
        if Some(best) == self.current {
            return false;
        }
        self.switch(best);
        true
    }

    /// The measured candidate to use: the better tier, then the shorter time, unless it is hardly shorter.
    fn best(&self) -> Option<PathAddress> {
        let score = |c: &Candidate| {
            let bonus = if c.address.remote.is_ipv6() { IPV6_BONUS } else { Duration::ZERO };
            c.rtt.map(|rtt| (c.tier, rtt.saturating_sub(bonus)))
        };
        let best = self.candidates.iter().filter_map(|c| Some((score(c)?, c.address))).min()?;
        let current = self.candidates.iter().find(|c| Some(c.address) == self.current);
        match current.and_then(score) {
            Some((tier, rtt)) if best.0.0 == tier && best.0.1 + HYSTERESIS >= rtt => self.current,
            Some((tier, _)) if best.0.0 > tier => self.current,
            Some(_) | None => Some(best.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(remote: &str, tier: Tier) -> Candidate {
        let address = PathAddress::main(remote.parse().expect("valid"));
        Candidate { address, tier, source: Source::Asked, rtt: None }
    }

    fn agent_on(first: &str, others: &[(&str, Tier)]) -> (PathAgent, Instant) {
        let now = Instant::now();
        let mut agent = PathAgent::new(1);
        for (remote, tier) in others {
            agent.add(candidate(remote, *tier));
        }
        agent.handshake_paths(now);
        let path = PathAddress::main(first.parse().expect("valid"));
        let tier = agent.candidates.iter().find(|c| c.address == path).map_or(Tier::Host, |c| c.tier);
        agent.on_session(path, tier, now + Duration::from_millis(40));
        (agent, now + Duration::from_millis(40))
    }

    /// Answers every probe after the time that `rtt` gives for its path.
    fn probe_round(agent: &mut PathAgent, now: Instant, rtt: impl Fn(&str) -> Option<u64>) -> Instant {
        let at = agent.probe_at().expect("probing");
        let sent = agent.probe(at.max(now));
        for (path, probe) in sent {
            if let Some(ms) = rtt(&path.remote.to_string()) {
                agent.on_probe_reply(probe.token, at.max(now) + Duration::from_millis(ms));
            }
        }
        at.max(now)
    }

    #[test]
    fn first_answer_is_used_and_probes_promote_to_a_better_tier() {
        let (mut agent, now) = agent_on("192.0.2.1:1", &[("192.0.2.1:1", Tier::Reflexive), ("10.0.0.1:1", Tier::Lan)]);
        assert_eq!(agent.current().map(|p| p.remote.to_string()), Some("192.0.2.1:1".into()));
        assert_eq!(agent.rtt(), Some(Duration::from_millis(40)));
        probe_round(&mut agent, now, |_| Some(40));
        assert_eq!(
            agent.current().map(|p| p.remote.to_string()),
            Some("10.0.0.1:1".into()),
            "a better tier at equal RTT"
        );
    }

    #[test]
    fn lost_probes_never_demote_and_small_gains_do_not_flap() {
        let (mut agent, now) = agent_on("192.0.2.1:1", &[("192.0.2.1:1", Tier::Host), ("192.0.2.2:1", Tier::Host)]);
        let now = probe_round(&mut agent, now, |remote| if remote.ends_with("1:1") { None } else { Some(38) });
        assert_eq!(
            agent.current().map(|p| p.remote.to_string()),
            Some("192.0.2.1:1".into()),
            "2 ms are within hysteresis"
        );
        probe_round(&mut agent, now, |remote| if remote.ends_with("1:1") { Some(40) } else { Some(20) });
        assert_eq!(agent.current().map(|p| p.remote.to_string()), Some("192.0.2.2:1".into()), "20 ms are worth it");
    }

    #[test]
    fn many_candidates_all_get_their_turn() {
        let now = Instant::now();
        let mut agent = PathAgent::new(1);
        for i in 0..CANDIDATES_MAX + 4 {
            agent.add(candidate(&format!("192.0.2.{i}:1"), Tier::Host));
        }
        assert_eq!(agent.candidates().len(), CANDIDATES_MAX);
        let mut tried = std::collections::BTreeSet::new();
        for _ in 0..2 {
            let paths = agent.handshake_paths(now);
            assert_eq!(paths.len(), FAN_OUT_MAX);
            tried.extend(paths);
        }
        assert_eq!(tried.len(), CANDIDATES_MAX);
    }

    #[test]
    fn path_that_the_peer_left_does_not_come_back_by_an_old_measurement() {
        let (mut agent, now) = agent_on("10.0.0.1:1", &[("10.0.0.1:1", Tier::Host)]);
        let now = probe_round(&mut agent, now, |_| Some(20));
        let moved = PathAddress::main("10.0.0.2:1".parse().expect("valid"));
        assert!(agent.on_roamed(moved, Tier::Host, now));
        probe_round(&mut agent, now, |remote| remote.starts_with("10.0.0.2").then_some(90));
        assert_eq!(agent.current(), Some(moved), "the old path was faster, and is gone");
    }

    #[test]
    fn measurement_that_is_not_confirmed_promotes_nothing() {
        let (mut agent, now) = agent_on("10.0.0.1:1", &[("10.0.0.1:1", Tier::Host), ("10.0.0.3:1", Tier::Host)]);
        let now = probe_round(&mut agent, now, |remote| Some(if remote.starts_with("10.0.0.1") { 20 } else { 19 }));
        let only_current = |remote: &str| remote.starts_with("10.0.0.1").then_some(60);
        let now = probe_round(&mut agent, now, only_current);
        assert_eq!(agent.current().map(|p| p.remote.to_string()), Some("10.0.0.3:1".into()), "19 ms still beat 60 ms");
        let back = PathAddress::main("10.0.0.1:1".parse().expect("valid"));
        assert!(agent.on_roamed(back, Tier::Host, now));
        let now = probe_round(&mut agent, now + PROBE_TIMEOUT, only_current);
        probe_round(&mut agent, now + PROBE_TIMEOUT, only_current);
        assert_eq!(agent.current(), Some(back));
    }

    #[test]
    fn roaming_follows_unless_the_tier_is_worse() {
        let (mut agent, now) = agent_on("10.0.0.1:1", &[("10.0.0.1:1", Tier::Lan)]);
        let other = PathAddress::main("192.0.2.9:9".parse().expect("valid"));
        assert!(!agent.on_roamed(other, Tier::Host, now), "a worse tier is not followed");
        let moved = PathAddress::main("10.0.0.2:1".parse().expect("valid"));
        assert!(agent.on_roamed(moved, Tier::Lan, now));
        agent.on_distress();
        assert!(agent.on_roamed(other, Tier::Host, now), "anything is better than nothing");
    }
}
