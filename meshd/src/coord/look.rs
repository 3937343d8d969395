//! How a group stands, by what its members say when they are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vdc::record::Home;
use vdc::roster::View;
use vdc::{Key, SiteNumber};
use vdc_api::{Problem, ProblemCode, ProblemSeverity};
use vdc_coord::voting::{Candidate, GroupKind, Membership, Redundancy, Seen, redundancy};
use vdc_coord::wire::Standing;

use super::{Client, Coord, Here, Kept, access, home_view};

/// How long a member has to say how it stands.
const LIMIT: Duration = Duration::from_millis(1_500);
/// Nodes that are asked.
const ASKED_MAX: usize = 48;
/// Label of a small box that votes where there are too few others.
const WITNESS: &str = "witness";
/// A group that is less than it should be is told as such after this long: it grows while it is new.
const REDUCED_AFTER: Duration = Duration::from_secs(120);
/// A group without a leader is told as such after this long: an election takes a second or two.
const STOPPED_AFTER: Duration = Duration::from_secs(10);

/// What members said, and what follows.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) standings: BTreeMap<Key, Standing>,
    pub(super) membership: Membership,
    pub(super) redundancy: Redundancy,
    /// Since when it has no leader that a majority follows.
    pub(super) stopped: Option<Instant>,
    /// Since when it survives less than its boxes allow.
    pub(super) below: Option<Instant>,
}

pub(super) fn kind(home: Home) -> GroupKind {
    match home {
        Home::Vdc => GroupKind::Vdc,
        Home::Site(_) => GroupKind::Site,
    }
}

/// Nodes that may serve a group; `seen` says how each is heard.
pub(super) fn candidates(view: &View, home: Home, seen: impl Fn(&Key) -> Seen) -> Vec<Candidate> {
    let may_serve = view.members.values().filter(|member| access::may_serve(view, home, &member.node));
    let candidates = may_serve.map(|member| Candidate {
        key: member.node,
        site: member.site,
        seen: seen(&member.node),
        witness: member.labels.iter().any(|label| label.as_str() == WITNESS),
        caught_up: false,
    });
    candidates.collect()
}

/// The standing that knows most: of the newest leader, by who is furthest.
fn newest(standings: &BTreeMap<Key, Standing>) -> Option<(&Key, &Standing)> {
    standings.iter().max_by_key(|(key, standing)| {
        (standing.term, standing.leader == Some(**key), standing.leader.is_some(), standing.applied_index)
    })
}

/// Who is asked: those who serve the group by what is known, else all who may.
fn asked(view: &View, kept: &Kept) -> BTreeSet<Key> {
    let own = match &kept.here {
        Here::Open(group) => group.standing().ok(),
        _ => None,
    };
    let last = kept.look.as_ref().map(|look| &look.membership);
    let mut known: BTreeSet<Key> = own.iter().flat_map(|s| s.voters.iter().chain(&s.learners)).copied().collect();
    if known.is_empty() {
        known.extend(last.into_iter().flat_map(|m| m.voters.iter().chain(&m.learners)));
    }
    known.insert(kept.founding.founder);
    if last.is_none_or(|last| last.voters.is_empty()) || known.len() == 1 {
        let may_serve = view.members.keys().filter(|key| access::may_serve(view, kept.founding.home, key));
        known.extend(may_serve.take(ASKED_MAX));
    }
    known.into_iter().take(ASKED_MAX).collect()
}

/// Asks all members of a group how they stand.
pub(super) async fn look(coord: Coord, kept: Kept) -> Look {
    let view = coord.view();
    let Kept { founding, client, look: last, .. } = &kept;
    let asked = asked(&view, &kept);
    let standings = ask(client, asked).await;
    coord.note_heard(founding.group, standings.keys().copied());
    let now = Instant::now();
    let mut membership = Membership::default();
    if let Some((_, standing)) = newest(&standings) {
        membership.voters = standing.voters.iter().copied().collect();
        membership.learners = standing.learners.iter().copied().collect();
        membership.leader = standing.leader.filter(|leader| standings.contains_key(leader));
    } else if let Some(last) = last {
        membership = Membership { leader: None, ..last.membership.clone() };
    }
    let seen = |key: &Key| {
        let serves = membership.voters.contains(key) || membership.learners.contains(key);
        if standings.contains_key(key) || !serves { Seen::Steady } else { Seen::Silent }
    };
    let redundancy = redundancy(kind(founding.home), &candidates(&view, founding.home, seen), &membership);
    let since = |is: bool, before: Option<Instant>| is.then(|| before.unwrap_or(now));
    Look {
        stopped: since(membership.leader.is_none() || !redundancy.works(), last.as_ref().and_then(|last| last.stopped)),
        below: since(redundancy.below_table, last.as_ref().and_then(|last| last.below)),
        standings,
        membership,
        redundancy,
    }
}

async fn ask(client: &Client, nodes: BTreeSet<Key>) -> BTreeMap<Key, Standing> {
    let asked = nodes.into_iter().map(|node| {
        let client = client.clone();
        async move { (node, client.standing(node, LIMIT).await) }
    });
    let answers = futures::future::join_all(asked).await;
    answers.into_iter().filter_map(|(node, standing)| Some((node, standing.ok()?))).collect()
}

/// The nodes that a client should ask, the best first.
pub(super) fn members(coord: &Coord, view: &View, kept: &Kept) -> Vec<Key> {
    let own = match &kept.here {
        Here::Open(group) => group.standing().ok(),
        _ => None,
    };
    let mut members: Vec<Key> = vec![];
    if let Some(standing) = &own {
        // What is here can be watched here.
        members.extend(standing.voters.iter().chain(&standing.learners).filter(|key| **key == coord.own_key()));
        members.extend(standing.leader.iter().chain(&standing.voters));
    }
    if let Some(look) = &kept.look {
        members.extend(look.membership.leader);
        members.extend(look.membership.voters.iter().filter(|key| look.standings.contains_key(key)));
        members.extend(&look.membership.voters);
    }
    if members.iter().all(|key| *key == coord.own_key()) {
        members.push(kept.founding.founder);
        members.extend(view.members.keys().filter(|key| access::may_serve(view, kept.founding.home, key)));
    }
    let mut known = BTreeSet::new();
    members.retain(|key| known.insert(*key));
    members.truncate(ASKED_MAX);
    members
}

/// Names of sites, for [`Redundancy::words`].
pub(super) fn site_name(view: &View, number: SiteNumber) -> String {
    view.sites.get(&number).map_or_else(|| number.0.to_string(), |site| site.name.to_string())
}

/// What somebody should look at, among the groups that concern this node.
pub(super) fn problems(coord: &Coord) -> Vec<Problem> {
    let view = coord.view();
    let vdc = coord.0.core.alias().to_string();
    let concerns = |home: &Home| *home == Home::Vdc || Some(*home) == coord.own_site(&view).map(Home::Site);
    let mut problems = vec![];
    for (home, kept) in coord.groups().iter().filter(|(home, _)| concerns(home)) {
        let mut tell = |code, severity, message: String, hint: &str, since: Option<Instant>| {
            let since = since.map(|since| {
                let now = crate::clock::system_time();
                vdc::UnixTime(now.0.saturating_sub(since.elapsed().as_secs())).to_string()
            });
            let (hint, vdc) = (Some(hint.to_owned()), Some(vdc.clone()));
            problems.push(Problem { code, severity, message, hint, vdc, since });
        };
        let home = home_view(&view, *home);
        let refused = if let Here::Refused(why) = &kept.here { Some(why) } else { kept.failure.as_ref() };
        if let Some(why) = refused {
            let hint = "`meshctl coord status` shows the group";
            let message = format!("this node does not serve the coordination group {home}: {why}");
            tell(ProblemCode::CoordinationReduced, ProblemSeverity::Degraded, message, hint, None);
        }
        let Some(look) = &kept.look else { continue };
        let words = look.redundancy.words(|number| site_name(&view, number));
        if let Some(since) = look.stopped.filter(|since| since.elapsed() > STOPPED_AFTER) {
            let hint = "bring its voters back; if they are lost for good: `meshctl coord recover`";
            let message = format!("the coordination group {home} takes no changes: {words}");
            tell(ProblemCode::CoordinationStopped, ProblemSeverity::Degraded, message, hint, Some(since));
        } else if let Some(since) = look.below.filter(|since| since.elapsed() > REDUCED_AFTER) {
            let hint = "`meshctl coord members` shows which nodes do not answer";
            let message = format!("the coordination group {home} survives less than it should: {words}");
            tell(ProblemCode::CoordinationReduced, ProblemSeverity::Warning, message, hint, Some(since));
        }
    }
    problems
}

/// A fresh look at a group, kept for later.
pub(super) async fn fresh(coord: &Coord, home: Home) -> Option<(Kept, Arc<Look>)> {
    let kept = coord.groups().get(&home)?.clone();
    let look = Arc::new(look(coord.clone(), kept.clone()).await);
    Some((kept, look))
}
