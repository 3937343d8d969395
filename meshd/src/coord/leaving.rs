//! What a node does about its votes before it leaves: a group of which it is the only voter would stand still without it.

use std::time::Duration;

use vdc::Key;
use vdc::roster::MemberView;

use super::{Coord, Group, Here, access, home_view};

/// How long one group may take.
const LIMIT: Duration = Duration::from_secs(5);
/// A follower that was heard so recently can take a vote over.
const HEARD: Duration = Duration::from_secs(3);
/// Pause between two tries.
const AGAIN: Duration = Duration::from_millis(100);

impl Coord {
    /// Hands the votes over that nobody else could take away. Says, one phrase each, which groups stand still without this node.
    pub(crate) async fn hand_over(&self) -> Vec<String> {
        let view = self.view();
        let mut left = vec![];
        for (home, kept) in self.groups().iter() {
            let Here::Open(group) = &kept.here else { continue };
            if heir(group, &self.0.own).is_none() {
                continue;
            }
            let is_done = tokio::time::timeout(LIMIT, give_away(group, &self.0.own)).await.is_ok();
            let may_serve = |member: &MemberView| access::may_serve(&view, *home, &member.node);
            let is_missed = view.reachable().any(|member| member.node != self.0.own && may_serve(member));
            if !is_done && is_missed {
                let home = home_view(&view, *home);
                left.push(format!(
                    "the group {home} stands still: `meshctl coord recover --home {home}` on one of its nodes"
                ));
            }
        }
        left
    }
}

/// Tries until another node votes in this one's place.
async fn give_away(group: &Group, own: &Key) {
    loop {
        match heir(group, own) {
            Some(Some(heir)) if group.set_voters(&[heir]).await.is_ok() => return,
            // Others vote by now.
            None => return,
            _ => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Who can vote instead of this node, where it is the only voter: the follower that has most, if there is one. None where others
/// vote, who take its vote away by themselves.
fn heir(group: &Group, own: &Key) -> Option<Option<Key>> {
    let standing = group.standing().ok()?;
    if standing.voters != [*own] {
        return None;
    }
    let followers = group.followers()?;
    let able = followers.iter().filter(|(key, follower)| *key != own && follower.heard.is_some_and(|at| at < HEARD));
    Some(able.max_by_key(|(_, follower)| follower.matched_index).map(|(key, _)| *key))
}
