//! Which members a node keeps control links to.
//!
//! A pure function of the members: whoever sees the same members computes the same graph, so both ends of a link want it.
//! Views differ for moments only, and then a link that one end wants is kept by both; the degree leaves room for that.
//!
//! Up to [`FULL_MESH_MAX`] members everybody is linked with everybody. Beyond that the graph is a union of:
//! - **rings** in pseudo-random order: [`SITE_RINGS`] through the members of each site, one through all members. A ring
//!   alone connects its members, several are an expander, the degree is exact, and a join changes two neighbours of each;
//! - **hubs**: [`HUBS_PER_SITE`] members of each site, registrars first. [`HUB_RINGS`] rings through the hubs of all sites
//!   carry news between sites in few hops; members link to two hubs of their site as far as those have room.
//!
//! Places in rings follow from keys. Who makes keys until one lies next to a victim's gains one of its ~8 links per member
//! record that a registrar signs for it.

use crate::roster::View;
use crate::{Key, SiteNumber};

/// Links that a node has at most.
pub const LINKS_MAX: usize = 30;
/// Members up to which everybody is linked with everybody.
pub const FULL_MESH_MAX: usize = 9;
/// Rings through the members of one site.
pub const SITE_RINGS: usize = 2;
/// Members of each site that link the sites.
pub const HUBS_PER_SITE: usize = 3;
/// Rings through the hubs of all sites.
pub const HUB_RINGS: usize = 4;
/// Members of its site that a hub takes on beside its rings.
pub const SPOKES_MAX: usize = 12;
/// Hubs of its site that a member asks.
const SPOKES_PER_NODE: usize = 2;
/// Ring places of a node: site rings, the ring through all, hub rings, and one number for elections.
const PLACES: usize = SITE_RINGS + 1 + HUB_RINGS + 1;
const PLACE_ALL: usize = SITE_RINGS;
const PLACE_HUBS: usize = SITE_RINGS + 1;
const PLACE_ELECTION: usize = PLACES - 1;

const _: () = assert!(2 * (SITE_RINGS + 1 + HUB_RINGS) + SPOKES_MAX <= LINKS_MAX - 4, "4 links stay free");
const _: () = assert!(FULL_MESH_MAX <= LINKS_MAX);

/// A member as far as links care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkPeer {
    pub node: Key,
    pub site: SiteNumber,
    /// Registrars are preferred as hubs: what they sign is what spreads.
    pub registrar: bool,
}

/// The control links of all members of a VDC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Ascending.
    nodes: Vec<Key>,
    /// Neighbours of each node, as ascending indices into `nodes`.
    links: Vec<Vec<usize>>,
}

/// Whether `own` dials `peer` first; the other end dials too when that brings no link within a few seconds.
#[must_use]
pub fn dials_first(own: &Key, peer: &Key) -> bool {
    own < peer
}

/// The members that `own` keeps links to, ascending. None if `own` is not a reachable member.
#[must_use]
pub fn of_node(view: &View, own: &Key) -> Vec<Key> {
    Topology::of_view(view).links(own).collect()
}

impl Topology {
    /// The links of a view's reachable members.
    #[must_use]
    pub fn of_view(view: &View) -> Self {
        let registrar = |site: &SiteNumber, node: &Key| {
            view.sites.get(site).is_some_and(|s| s.registrars.iter().any(|r| r.key == *node && r.active && !r.closed))
        };
        Self::new(view.reachable().map(|m| LinkPeer {
            node: m.node,
            site: m.site,
            registrar: registrar(&m.site, &m.node),
        }))
    }

    #[must_use]
    pub fn new(members: impl IntoIterator<Item = LinkPeer>) -> Self {
        let mut members: Vec<LinkPeer> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup_by_key(|m| m.node);
        let mut graph = Graph { links: vec![Vec::new(); members.len()] };
        if members.len() <= FULL_MESH_MAX {
            graph.full_mesh();
        } else {
            graph.rings_and_hubs(&members);
        }
        for neighbours in &mut graph.links {
            neighbours.sort_unstable();
        }
        Self { nodes: members.into_iter().map(|m| m.node).collect(), links: graph.links }
    }

    /// The neighbours of `node`, ascending; none if it is not a member.
    pub fn links<'a>(&'a self, node: &Key) -> impl ExactSizeIterator<Item = Key> + use<'a> {
        let neighbours = self.nodes.binary_search(node).map_or(&[][..], |at| self.links[at].as_slice());
        neighbours.iter().map(|at| self.nodes[*at])
    }
}

struct Graph {
    links: Vec<Vec<usize>>,
}

impl Graph {
    fn link(&mut self, a: usize, b: usize) {
        if a != b && !self.links[a].contains(&b) {
            self.links[a].push(b);
            self.links[b].push(a);
        }
    }

    fn full_mesh(&mut self) {
        for a in 0..self.links.len() {
            for b in 0..a {
                self.link(a, b);
            }
        }
    }

    fn rings_and_hubs(&mut self, members: &[LinkPeer]) {
        let places: Vec<[u64; PLACES]> = members.iter().map(|m| places(&m.node)).collect();
        self.ring((0..members.len()).collect(), &places, PLACE_ALL);
        let mut by_site: Vec<usize> = (0..members.len()).collect();
        by_site.sort_by_key(|at| (members[*at].site, *at));
        let mut all_hubs = Vec::new();
        for site in by_site.chunk_by(|a, b| members[*a].site == members[*b].site) {
            for ring in 0..SITE_RINGS {
                self.ring(site.to_vec(), &places, ring);
            }
            let mut ranked = site.to_vec();
            ranked.sort_by_key(|at| (!members[*at].registrar, places[*at][PLACE_ELECTION], *at));
            let (hubs, others) = ranked.split_at(ranked.len().min(HUBS_PER_SITE));
            self.spokes(hubs, others, &places);
            all_hubs.extend_from_slice(hubs);
        }
        for ring in PLACE_HUBS..PLACE_HUBS + HUB_RINGS {
            self.ring(all_hubs.clone(), &places, ring);
        }
    }

    /// Links each of `nodes` with the next in the order of their places, and the last with the first.
    fn ring(&mut self, mut nodes: Vec<usize>, places: &[[u64; PLACES]], ring: usize) {
        nodes.sort_by_key(|at| (places[*at][ring], *at));
        for (at, node) in nodes.iter().enumerate() {
            self.link(*node, nodes[(at + 1) % nodes.len()]);
        }
    }

    /// Each member asks the two hubs nearest to it (by XOR of election places, so the choice is its own and stable); each
    /// hub takes the nearest that asked.
    fn spokes(&mut self, hubs: &[usize], others: &[usize], places: &[[u64; PLACES]]) {
        let distance = |a: usize, b: usize| places[a][PLACE_ELECTION] ^ places[b][PLACE_ELECTION];
        let mut asked: Vec<(usize, u64, usize)> = Vec::new();
        for node in others {
            let mut near = hubs.to_vec();
            near.sort_by_key(|hub| distance(*node, *hub));
            asked.extend(near.iter().take(SPOKES_PER_NODE).map(|hub| (*hub, distance(*node, *hub), *node)));
        }
        asked.sort_unstable();
        for of_hub in asked.chunk_by(|a, b| a.0 == b.0) {
            for (hub, _, node) in of_hub.iter().take(SPOKES_MAX) {
                self.link(*hub, *node);
            }
        }
    }
}

/// Pseudo-random places that follow from a node's key.
fn places(node: &Key) -> [u64; PLACES] {
    let mut bytes = [0; 8 * PLACES];
    let mut hasher = blake3::Hasher::new_derive_key("meshd 2026 control links");
    hasher.update(&node.0).finalize_xof().fill(&mut bytes);
    let (chunks, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|at| u64::from_le_bytes(chunks[at]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn member(seed: u64, index: u64, sites: u16) -> LinkPeer {
        let hash = blake3::keyed_hash(&[7; 32], &[seed.to_le_bytes(), index.to_le_bytes()].concat());
        let site = SiteNumber(1 + u16::from(hash.as_bytes()[0]) % sites);
        LinkPeer { node: Key(*hash.as_bytes()), site, registrar: hash.as_bytes()[1] < 4 }
    }

    fn members(seed: u64, count: u64, sites: u16) -> Vec<LinkPeer> {
        (0..count).map(|index| member(seed, index, sites)).collect()
    }

    /// How many of the nodes for which `alive` holds are reached from the first of them, and how many there are.
    fn reached(topology: &Topology, alive: impl Fn(&Key) -> bool) -> (usize, usize) {
        let nodes: BTreeSet<Key> = topology.nodes.iter().copied().filter(|n| alive(n)).collect();
        let mut seen = BTreeSet::new();
        let mut queue: Vec<Key> = nodes.first().copied().into_iter().collect();
        while let Some(node) = queue.pop() {
            if seen.insert(node) {
                queue.extend(topology.links(&node).filter(|n| nodes.contains(n)));
            }
        }
        (seen.len(), nodes.len())
    }

    fn edges(topology: &Topology) -> BTreeSet<(Key, Key)> {
        let of = |node: Key| topology.links(&node).map(move |other| (node, other));
        topology.nodes.iter().copied().flat_map(of).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn graph_is_connected_symmetric_and_bounded(seed: u64, count in 0_u64..400, sites in 1_u16..40) {
            let topology = Topology::new(members(seed, count, sites));
            let (seen, all) = reached(&topology, |_| true);
            prop_assert_eq!(seen, all);
            for node in &topology.nodes {
                prop_assert!(topology.links(node).len() <= LINKS_MAX - 4);
                for other in topology.links(node) {
                    prop_assert!(other != *node && topology.links(&other).any(|back| back == *node));
                }
            }
        }

        #[test]
        fn order_of_members_is_irrelevant(seed: u64, count in 0_u64..60) {
            let mut reversed = members(seed, count, 4);
            reversed.reverse();
            prop_assert_eq!(Topology::new(members(seed, count, 4)), Topology::new(reversed));
        }

        #[test]
        fn a_join_changes_few_links(seed: u64, count in 10_u64..300, sites in 1_u16..12) {
            let before = edges(&Topology::new(members(seed, count, sites)));
            let after = edges(&Topology::new(members(seed, count + 1, sites)));
            // A plain member: three rings lose one link and get two, and its spokes. A new hub also moves the spokes and the
            // hub rings of the one that it displaces.
            let changed = before.symmetric_difference(&after).count() / 2;
            prop_assert!(changed <= 3 * 3 + HUB_RINGS * 6 + 4 * SPOKES_MAX + 8, "{changed}");
        }
    }

    #[test]
    fn joins_change_fifteen_links_on_average_at_most() {
        let changed: usize = (100..200)
            .map(|count| {
                let before = edges(&Topology::new(members(1, count, 5)));
                before.symmetric_difference(&edges(&Topology::new(members(1, count + 1, 5)))).count() / 2
            })
            .sum();
        assert!(changed <= 1500, "{changed} over 100 joins");
    }

    #[test]
    fn one_in_ten_dead_leaves_the_rest_connected() {
        let mut cut_off = 0;
        let mut alive = 0;
        for seed in 0..40 {
            let topology = Topology::new(members(seed, 1000, 10));
            let dead = |node: &Key| u64::from(node.0[9]) * 10 / 256 == seed % 10;
            let (seen, all) = reached(&topology, |node| !dead(node));
            cut_off += all - seen;
            alive += all;
        }
        // A plain member has 6 to 8 links: all dead with a probability of 10^-6 to 10^-8.
        assert!(cut_off <= 1, "{cut_off} of {alive} are cut off");
    }

    #[test]
    fn sites_stay_connected_in_themselves() {
        let all = members(3, 300, 6);
        let topology = Topology::new(all.clone());
        for site in 1..=6 {
            let inside: BTreeSet<Key> = all.iter().filter(|m| m.site.0 == site).map(|m| m.node).collect();
            let (seen, of) = reached(&topology, |node| inside.contains(node));
            assert_eq!(seen, of, "site {site}");
        }
    }

    #[test]
    fn nine_members_are_fully_linked_and_strangers_have_none() {
        let topology = Topology::new(members(5, 9, 3));
        assert!(topology.nodes.iter().all(|node| topology.links(node).len() == 8));
        assert_eq!(topology.links(&Key([0; 32])).len(), 0);
    }

    #[test]
    fn any_two_of_a_thousand_are_few_hops_apart() {
        let topology = Topology::new(members(9, 1000, 10));
        let mut seen: BTreeSet<Key> = topology.nodes.first().copied().into_iter().collect();
        let mut hops = 0;
        while seen.len() < topology.nodes.len() {
            let next: Vec<Key> = seen.iter().flat_map(|node| topology.links(node)).collect();
            seen.extend(next);
            hops += 1;
        }
        assert!(hops <= 6, "{hops} hops");
    }
}
