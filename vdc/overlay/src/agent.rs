//! The path agent of one peer: which of its candidates to try, and which one carries the tunnel.
//!
//! The handshake is fanned out over all candidates, and the one that answers first is used at once. From then on probes
//! inside the tunnel measure the others. Probes only *promote*: a path in use is given up only when WireGuard itself is
//! in distress or the network has changed, never because a probe was lost.
//!
//! Both ends must not chase each other: the end that *leads* chooses by tier and round-trip time, the other *follows*
//! the data that it gets. Probes over the path in use say so and count as data: they repeat what one lost packet told.
//!
//! ```text
//!            handshake answered                     two re-keys unanswered
//!  trying ───────────────────────▶ using ───────────────────────────────▶ trying
//!    ▲                              │  ▲
//!    └── network change: data goes  │  └── probe answered by a better path (leader),
//!        on over the path in use,   │      data from elsewhere (follower),
//!        handshakes go everywhere ◀─┘      a new handshake or a new address (both)
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::packet::Probe;
use crate::path::{Candidate, PathAddress, Source, Tier};
use crate::random::Random;

/// Candidates kept per peer; the least promising makes room.
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
const PROBES_MAX: usize = 48;
/// The peer's data keeps coming over another path than the leader chose for this long: it cannot be reached over ours, or
/// cannot answer over it.
const CONTEST_MIN: Duration = Duration::from_secs(1);
/// After this long without more of it, that was something else.
const CONTEST_MAX: Duration = Duration::from_secs(10);
/// An answer later than this measures nothing.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Unanswered probes after which a candidate is left alone until the network changes or the peer names it again.
const MISSES_MAX: u8 = 6;

/// A candidate, and how its probes went.
#[derive(Clone, Debug)]
struct Entry {
    candidate: Candidate,
    /// Probes without an answer since the last answer.
    misses: u8,
}

/// The peer's data comes over another path than the one in use.
#[derive(Clone, Copy, Debug)]
struct Contest {
    path: PathAddress,
    since: Instant,
    asked_again: bool,
}

/// What the answer to a probe tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    /// The path in use works.
    pub(crate) is_current: bool,
    /// There is a better one, which is in use now.
    pub(crate) changed: bool,
}

/// The agent of one peer. Driven by [`crate::Overlay`].
#[derive(Debug)]
pub(crate) struct PathAgent {
    entries: Vec<Entry>,
    current: Option<PathAddress>,
    /// False from a network change until the next handshake.
    trusted: bool,
    /// Whether this end chooses among paths that work.
    leads: bool,
    /// Smoothed over the path in use (RFC 6298 §2, α = 1/8).
    rtt: Option<Duration>,
    /// Where the peer's data comes from instead, and since when.
    contest: Option<Contest>,
    probes: BTreeMap<u64, (PathAddress, Instant)>,
    tokens: Random,
    rounds: usize,
    probe_at: Option<Instant>,
    /// Rotates the fan-out, so that many candidates all get their turn.
    turn: usize,
}

impl PathAgent {
    pub(crate) fn new(leads: bool, tokens: Random) -> Self {
        Self {
            entries: vec![],
            current: None,
            trusted: false,
            leads,
            rtt: None,
            contest: None,
            probes: BTreeMap::new(),
            tokens,
            rounds: 0,
            probe_at: None,
            turn: 0,
        }
    }

    pub(crate) fn current(&self) -> Option<PathAddress> {
        self.current
    }

    /// Whether the path in use may be the only one that is tried.
    pub(crate) fn is_trusted(&self) -> bool {
        self.trusted && self.current.is_some()
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub(crate) fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.entries.iter().map(|entry| &entry.candidate)
    }

    pub(crate) fn knows(&self, path: PathAddress) -> bool {
        self.candidates().any(|candidate| candidate.address == path)
    }

    pub(crate) fn tier(&self) -> Option<Tier> {
        let current = self.current?;
        self.candidates().find(|candidate| candidate.address == current).map(|candidate| candidate.tier)
    }

    /// What the peer names as its addresses. What it named before and does not any more is forgotten, unless it works.
    /// Returns whether there was something new.
    pub(crate) fn set_asked(&mut self, named: &[Candidate], now: Instant) -> bool {
        let current = self.current;
        self.entries.retain(|entry| {
            let Candidate { address, source, rtt, .. } = entry.candidate;
            let works = Some(address) == current || rtt.is_some() && entry.misses == 0;
            source == Source::Observed || works || named.iter().any(|candidate| candidate.address == address)
        });
        let mut new = false;
        for candidate in named.iter().take(CANDIDATES_MAX) {
            new |= self.add(*candidate);
            if let Some(entry) = self.entry(candidate.address) {
                entry.misses = 0;
            }
        }
        if new && self.probe_at.is_some() {
            self.probe_soon(now);
        }
        new
    }

    /// Adds a candidate. Returns whether it was not known yet.
    pub(crate) fn add(&mut self, candidate: Candidate) -> bool {
        if let Some(known) = self.entry(candidate.address) {
            known.candidate.tier = known.candidate.tier.min(candidate.tier);
            if candidate.source == Source::Asked {
                known.candidate.source = Source::Asked;
            }
            return false;
        }
        if self.entries.len() >= CANDIDATES_MAX {
            self.forget_one();
        }
        self.entries.push(Entry { candidate, misses: 0 });
        true
    }

    /// Makes room: the candidate that answers least and was learnt first goes, never the path in use.
    fn forget_one(&mut self) {
        let current = self.current;
        let spare = self.entries.iter().enumerate().filter(|(_, entry)| Some(entry.candidate.address) != current);
        let worst =
            spare.max_by_key(|(index, entry)| (entry.candidate.rtt.is_none(), entry.misses, std::cmp::Reverse(*index)));
        if let Some((index, _)) = worst {
            self.entries.remove(index);
        }
    }

    fn entry(&mut self, path: PathAddress) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.candidate.address == path)
    }

    /// Sorts the candidates into tiers anew, after the host's networks changed.
    pub(crate) fn retier(&mut self, tier: impl Fn(&Candidate) -> Tier) {
        for entry in &mut self.entries {
            entry.candidate.tier = tier(&entry.candidate);
        }
    }

    /// Where the next handshake goes: over the path in use alone, or over everything, the path in use first.
    pub(crate) fn handshake_paths(&mut self, only_current: bool) -> Vec<PathAddress> {
        if let Some(current) = self.current.filter(|_| only_current) {
            return vec![current];
        }
        let mut others: Vec<&Candidate> = self.candidates().filter(|c| Some(c.address) != self.current).collect();
        others.sort_by_key(|candidate| (candidate.tier, candidate.address.remote.is_ipv4()));
        let room = FAN_OUT_MAX - usize::from(self.current.is_some());
        let (count, turn) = (others.len(), self.turn);
        let start = if count > room { turn % count } else { 0 };
        let others = others.iter().cycle().skip(start).take(count.min(room)).map(|candidate| candidate.address);
        let paths = self.current.into_iter().chain(others).collect();
        self.turn = turn.wrapping_add(room);
        paths
    }

    /// Our handshake was answered over the path of `candidate`, after `rtt` if that is known. Returns whether the path in
    /// use changed: the first answer to a fan-out wins.
    pub(crate) fn on_session(&mut self, candidate: Candidate, rtt: Option<Duration>, now: Instant) -> bool {
        self.add(candidate);
        let path = candidate.address;
        let changed = self.current != Some(path);
        if changed {
            self.switch(path);
        }
        self.trusted = true;
        if let Some(rtt) = rtt {
            self.measured(path, rtt);
        }
        if changed || self.probe_at.is_none() {
            self.probe_soon(now);
        }
        changed
    }

    /// Authentic data came over another path than the one in use. `moved` if the peer has just shaken hands, so that this
    /// is the path of its choice. Returns whether we use it from now on.
    pub(crate) fn on_data(&mut self, candidate: Candidate, moved: bool, now: Instant) -> bool {
        let path = candidate.address;
        if self.current == Some(path) {
            self.contest = None;
            return false;
        }
        // A leader leaves the path of its choice for an address that it could not have chosen: the peer was given another.
        let elsewhere = self.add(candidate) && candidate.tier < Tier::Relayed;
        let age = |contest: Contest| now.saturating_duration_since(contest.since);
        let contest = self.contest.filter(|contest| contest.path == path && age(*contest) < CONTEST_MAX);
        let contest = contest.unwrap_or(Contest { path, since: now, asked_again: false });
        let stays_there = age(contest) >= CONTEST_MIN;
        let follow = !self.leads || moved || self.current.is_none() || elsewhere || stays_there;
        let begins = self.contest.is_none_or(|known| known.since != contest.since);
        if follow || begins {
            self.probe_soon(now);
        }
        if follow {
            self.switch(path);
            self.trusted = true;
        } else {
            self.contest = Some(contest);
        }
        follow
    }

    /// Whether it must be seen once more where the peer's data comes from; packet threads tell only once by themselves.
    pub(crate) fn wants_data_path(&mut self, now: Instant) -> bool {
        let due = |contest: &&mut Contest| !contest.asked_again && now >= contest.since + CONTEST_MIN;
        self.contest.as_mut().filter(due).is_some_and(|contest| !std::mem::replace(&mut contest.asked_again, true))
    }

    /// Something authentic came over `path`: no need to try others if it is the one in use.
    pub(crate) fn trust(&mut self, path: PathAddress) {
        self.trusted |= self.current == Some(path);
    }

    fn switch(&mut self, path: PathAddress) {
        (self.current, self.contest) = (Some(path), None);
        self.rtt = self.entry(path).and_then(|entry| entry.candidate.rtt);
    }

    fn measured(&mut self, path: PathAddress, rtt: Duration) {
        if let Some(entry) = self.entry(path) {
            (entry.candidate.rtt, entry.misses) = (Some(rtt), 0);
        }
        if self.current == Some(path) {
            self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
        }
    }

    /// WireGuard is in distress over the path in use: forget that it worked, and try everything again.
    pub(crate) fn on_distress(&mut self) {
        if let Some(entry) = self.current.and_then(|current| self.entry(current)) {
            entry.candidate.rtt = None;
        }
        (self.current, self.trusted, self.rtt, self.contest) = (None, false, None, None);
        self.rest();
    }

    /// Our own addresses changed: what was measured says nothing any more. Data goes on over the path in use, since most
    /// changes do not concern it; the next handshake goes everywhere.
    pub(crate) fn on_network_change(&mut self, now: Instant) {
        for entry in &mut self.entries {
            (entry.candidate.rtt, entry.misses) = (None, 0);
        }
        self.trusted = false;
        self.probes.clear();
        if self.probe_at.is_some() {
            self.probe_soon(now);
        }
    }

    /// When probes are due, if the tunnel is in use.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        self.probe_at
    }

    fn probe_soon(&mut self, now: Instant) {
        self.rounds = 0;
        self.probe_at = Some(now + PROBE_PAUSES[0]);
    }

    /// One round of probes over all candidates that answer or are new, if it is due: the path in use first, then the
    /// better tiers.
    pub(crate) fn probe(&mut self, allowance: usize, now: Instant) -> Vec<(PathAddress, Probe)> {
        if self.probe_at.is_none_or(|at| at > now) {
            return vec![];
        }
        self.expire_probes(now);
        self.rounds = self.rounds.saturating_add(1);
        self.probe_at = Some(now + PROBE_PAUSES[self.rounds.min(PROBE_PAUSES.len() - 1)]);
        let current = self.current;
        let mut due: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| Some(entry.candidate.address) == current || entry.misses < MISSES_MAX)
            .collect();
        due.sort_by_key(|entry| (Some(entry.candidate.address) != current, entry.candidate.tier));
        let paths: Vec<PathAddress> = due.iter().take(allowance).map(|entry| entry.candidate.address).collect();
        paths.into_iter().filter_map(|path| Some((path, self.question(path, now)?))).collect()
    }

    /// A probe of the path in use alone, out of turn.
    pub(crate) fn probe_current(&mut self, now: Instant) -> Option<(PathAddress, Probe)> {
        self.expire_probes(now);
        let current = self.current?;
        Some((current, self.question(current, now)?))
    }

    fn question(&mut self, path: PathAddress, now: Instant) -> Option<Probe> {
        if self.probes.len() >= PROBES_MAX {
            return None;
        }
        let token = self.tokens.next();
        self.probes.insert(token, (path, now));
        Some(Probe { reply: false, in_use: self.current == Some(path), token })
    }

    fn expire_probes(&mut self, now: Instant) {
        let is_old = |sent: Instant| now.saturating_duration_since(sent) >= PROBE_TIMEOUT;
        for (_, (path, _)) in self.probes.extract_if(.., |_, (_, sent)| is_old(*sent)) {
            if let Some(entry) = self.entries.iter_mut().find(|entry| entry.candidate.address == path) {
                entry.misses = entry.misses.saturating_add(1);
            }
        }
    }

    /// Nothing uses the tunnel: no probes until it is used again.
    pub(crate) fn rest(&mut self) {
        self.probe_at = None;
        self.probes.clear();
    }

    /// The tunnel is used again after a rest.
    pub(crate) fn wake(&mut self, now: Instant) {
        if self.probe_at.is_none() && self.current.is_some() {
            self.probe_at = Some(now + PROBE_PAUSES[1]);
        }
    }

    /// An answer to a probe; none if there was no such question, or if it came back another way: a peer that answers from
    /// elsewhere cannot be led over this path.
    pub(crate) fn on_probe_reply(&mut self, token: u64, from: PathAddress, now: Instant) -> Option<Measured> {
        let (path, sent) = self.probes.remove(&token)?;
        let rtt = now.saturating_duration_since(sent);
        if rtt >= PROBE_TIMEOUT || from != path {
            return None;
        }
        self.measured(path, rtt);
        let is_current = self.current == Some(path);
        let changed = self.leads && self.is_better(path);
        if changed {
            self.switch(path);
        }
        Some(Measured { is_current, changed })
    }

    /// Whether a path that has just answered beats the one in use: by its tier, or by its time unless that is hardly
    /// shorter. Only what answers now is asked about, so no old measurement ever wins.
    fn is_better(&self, path: PathAddress) -> bool {
        let find = |path| self.candidates().find(|candidate| candidate.address == path);
        let Some(new) = find(path) else { return false };
        let Some(current) = self.current.and_then(find) else { return true };
        let score = |candidate: &Candidate| {
            let bonus = if candidate.address.remote.is_ipv6() { IPV6_BONUS } else { Duration::ZERO };
            candidate.rtt.map(|rtt| rtt.saturating_sub(bonus))
        };
        new.tier < current.tier
            || new.tier == current.tier
                && score(new).zip(score(current)).is_some_and(|(new, current)| new + HYSTERESIS < current)
    }
}

#[cfg(test)]
mod tests;
