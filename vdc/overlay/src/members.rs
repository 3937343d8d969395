//! Who may talk, and whose an address is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use vdc::{Ipv4Block, Key, NodePrefix, WgKey};

/// A node that may be talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: Key,
    pub wg: WgKey,
    pub prefix: NodePrefix,
    pub ipv4: Option<Ipv4Block>,
}

impl Member {
    /// Whether this node may send from `source`: from its own prefix or block, and from nothing else.
    #[must_use]
    pub fn owns(&self, source: IpAddr) -> bool {
        match source {
            IpAddr::V6(v6) => self.prefix.contains(v6),
            IpAddr::V4(v4) => self.ipv4.is_some_and(|block| block.contains(v4)),
        }
    }
}

/// The members by node, each with what nobody else claims too. What two claim belongs to the one whose node key sorts
/// first, on every node alike: without it a crafted record could take a victim's addresses. The roster is what keeps such
/// claims from arising.
pub(crate) fn uncontested(members: &[Member], own: NodePrefix) -> BTreeMap<Key, Member> {
    let mut kept: BTreeMap<Key, Member> = members.iter().map(|member| (member.node, member.clone())).collect();
    let (mut prefixes, mut keys) = (BTreeSet::from([own]), BTreeSet::new());
    kept.retain(|_, member| prefixes.insert(member.prefix) && keys.insert(member.wg));
    let mut blocks: Vec<(Ipv4Block, Key)> = kept.values().filter_map(|m| Some((m.ipv4?, m.node))).collect();
    // CIDR blocks nest or are apart: sorted so, an outer block comes right before what it contains.
    blocks.sort_unstable_by_key(|(block, node)| (block.network(), block.length(), *node));
    let mut winners: Vec<(Ipv4Block, Key)> = vec![];
    for (block, node) in blocks {
        let loser = match winners.last() {
            Some((last, owner)) if last.overlaps(block) && *owner < node => node,
            Some((last, owner)) if last.overlaps(block) => {
                let owner = *owner;
                winners.pop();
                winners.push((block, node));
                owner
            }
            Some(_) | None => {
                winners.push((block, node));
                continue;
            }
        };
        if let Some(member) = kept.get_mut(&loser) {
            member.ipv4 = None;
        }
    }
    kept
}

/// Exact routes and keys of all members.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    by_prefix: HashMap<NodePrefix, Key>,
    /// Ascending by network, without overlaps.
    by_ipv4: Vec<(Ipv4Block, Key)>,
    by_wg: HashMap<WgKey, Key>,
}

impl Directory {
    /// `members` must be [`uncontested`].
    pub(crate) fn new<'a>(members: impl Iterator<Item = &'a Member>) -> Self {
        let mut directory = Self::default();
        for member in members {
            directory.by_prefix.insert(member.prefix, member.node);
            directory.by_wg.insert(member.wg, member.node);
            directory.by_ipv4.extend(member.ipv4.map(|block| (block, member.node)));
        }
        directory.by_ipv4.sort_unstable_by_key(|(block, _)| block.network());
        directory
    }

    pub(crate) fn route(&self, destination: IpAddr) -> Option<Key> {
        match destination {
            IpAddr::V6(v6) => self.by_prefix.get(&NodePrefix::of(v6)).copied(),
            IpAddr::V4(v4) => {
                let after = self.by_ipv4.partition_point(|(block, _)| block.network() <= v4);
                let (block, node) = self.by_ipv4.get(after.checked_sub(1)?)?;
                block.contains(v4).then_some(*node)
            }
        }
    }

    pub(crate) fn holder(&self, wg: &WgKey) -> Option<Key> {
        self.by_wg.get(wg).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vdc::{SiteNumber, VdcId};

    use super::*;

    fn member(seed: u8, block: &str) -> Member {
        let node = Key([seed; 32]);
        Member {
            node,
            wg: WgKey([seed; 32]),
            prefix: NodePrefix::derive(&VdcId([1; 32]), SiteNumber(1), &node, 0),
            ipv4: Some(block.parse().expect("a block")),
        }
    }

    fn own() -> NodePrefix {
        member(200, "10.0.0.0/30").prefix
    }

    #[test]
    fn contested_claims_go_to_the_first_key_whatever_the_order() {
        let victim = member(1, "10.64.0.16/28");
        let mut thief = member(2, "10.64.0.0/20");
        let mut impostor = member(3, "10.65.0.0/28");
        (thief.prefix, impostor.wg) = (victim.prefix, victim.wg);
        let landlord = member(4, "10.64.0.0/20");
        let neighbour = member(5, "10.66.0.0/28");
        let all = [victim.clone(), thief, impostor, landlord.clone(), neighbour.clone()];
        for members in [all.to_vec(), all.iter().rev().cloned().collect()] {
            let kept = uncontested(&members, own());
            assert_eq!(kept.keys().collect::<Vec<_>>(), [&victim.node, &landlord.node, &neighbour.node]);
            let directory = Directory::new(kept.values());
            assert_eq!(directory.holder(&victim.wg), Some(victim.node));
            assert_eq!(directory.route(victim.prefix.address(1).into()), Some(victim.node));
            assert_eq!(directory.route("10.64.0.17".parse().expect("valid")), Some(victim.node));
            assert_eq!(directory.route("10.64.0.15".parse().expect("valid")), None, "the landlord's claim fell");
            assert_eq!(directory.route("10.66.0.1".parse().expect("valid")), Some(neighbour.node));
        }
    }

    #[test]
    fn ourselves_are_no_peer() {
        let ours = member(1, "10.64.0.16/28");
        assert!(uncontested(std::slice::from_ref(&ours), ours.prefix).is_empty());
    }

    proptest! {
        /// Whatever blocks members claim: an address leads to a member that owns it, and to one only.
        #[test]
        fn addresses_lead_to_their_only_owner(
            blocks in proptest::collection::vec((0u32..64, 24u8..=30), 1..12),
            at in any::<u8>(),
        ) {
            let outer: Ipv4Block = "10.0.0.0/24".parse().expect("valid");
            let members: Vec<Member> = blocks
                .iter()
                .zip(1u8..)
                .filter_map(|((index, length), seed)| {
                    let block = outer.sub_block(*length, index % (1 << (length - 24)))?;
                    Some(member(seed, &block.to_string()))
                })
                .collect();
            let kept = uncontested(&members, own());
            prop_assert!(kept.values().next().is_some_and(|first| first.ipv4.is_some()), "the first keeps its own");
            let address = IpAddr::from(outer.address(u32::from(at)).expect("inside"));
            let owners: Vec<Key> = kept.values().filter(|m| m.owns(address)).map(|m| m.node).collect();
            prop_assert!(owners.len() <= 1);
            prop_assert_eq!(Directory::new(kept.values()).route(address), owners.first().copied());
        }
    }
}
