//! The table of groups case by case, and laws under random failures.

use proptest::prelude::*;

use super::*;


fn key(number: u8) -> Key {
    Key([number; 32])
}

/// A node that could vote at once.
fn node(number: u8, site: u16) -> Candidate {
    Candidate { key: key(number), site: SiteNumber(site), seen: Seen::Steady, witness: false, caught_up: true }
}

fn seen(number: u8, site: u16, seen: Seen) -> Candidate {
    Candidate { seen, ..node(number, site) }
}

fn members(voters: &[u8], learners: &[u8]) -> Membership {
    Membership {
        voters: voters.iter().copied().map(key).collect(),
        learners: learners.iter().copied().map(key).collect(),
        ..Membership::default()
    }
}

/// What a step does.
fn perform(step: Step, candidates: &[Candidate], membership: &mut Membership) {
    membership.voters = step.voters_after(&membership.voters);
    let is_candidate = |key: &Key| candidates.iter().any(|c| c.key == *key);
    match step {
        Step::AddLearner(key) => assert!(membership.learners.insert(key), "already a learner"),
        Step::RemoveLearner(key) => assert!(membership.learners.remove(&key), "no learner"),
        Step::Replace { out, into } => {
            assert!(membership.learners.remove(&into), "only learners become voters");
            membership.learners.extend(is_candidate(&out).then_some(out));
        }
        Step::AddVoter(key) => assert!(membership.learners.remove(&key), "only learners become voters"),
        Step::RemoveVoter(key) => membership.learners.extend(is_candidate(&key).then_some(key)),
    }
}

/// Goes on until nothing is left to do; the voters then.
fn settle(kind: GroupKind, candidates: &[Candidate], membership: &mut Membership) -> Vec<u8> {
    for _ in 0..200 {
        let Some(step) = plan(kind, candidates, membership) else {
            return membership.voters.iter().map(|key| key.0[0]).collect();
        };
        perform(step, candidates, membership);
    }
    panic!("no end: {membership:?}");
}

fn words(kind: GroupKind, candidates: &[Candidate], membership: &Membership) -> String {
    redundancy(kind, candidates, membership).words(|site| format!("site {}", site.0))
}

/// From one founder to what the table says: voters, and what is said of them.
fn check_table(kind: GroupKind, candidates: &[Candidate], voters: &[u8], said: &str) {
    let mut membership = members(&[candidates[0].key.0[0]], &[]);
    assert_eq!(settle(kind, candidates, &mut membership), voters);
    assert_eq!(membership.voters.len() + membership.learners.len(), candidates.len(), "the others learn");
    assert_eq!(words(kind, candidates, &membership), said);
}

#[test]
fn site_of_1_node_has_1_voter_and_no_redundancy() {
    let said = "no redundancy: without its one voter it stands still";
    check_table(GroupKind::Site, &[node(1, 1)], &[1], said);
}

#[test]
fn site_of_2_nodes_has_1_voter_and_a_learner() {
    let said = "no redundancy: without its one voter it stands still";
    check_table(GroupKind::Site, &[node(1, 1), node(2, 1)], &[1], said);
}

#[test]
fn site_of_3_nodes_has_3_voters_and_survives_any_one() {
    let nodes = [node(1, 1), node(2, 1), node(3, 1)];
    check_table(GroupKind::Site, &nodes, &[1, 2, 3], "any one of 3 may fail now");
}

#[test]
fn site_of_4_nodes_has_3_voters_and_a_learner() {
    let nodes = [node(1, 1), node(2, 1), node(3, 1), node(4, 1)];
    check_table(GroupKind::Site, &nodes, &[1, 2, 3], "any one of 3 may fail now");
}

#[test]
fn site_of_5_nodes_has_5_voters_and_survives_any_two() {
    let nodes = [node(1, 1), node(2, 1), node(3, 1), node(4, 1), node(5, 1)];
    check_table(GroupKind::Site, &nodes, &[1, 2, 3, 4, 5], "any two of 5 may fail now");
}

#[test]
fn vdc_of_1_site_is_like_a_site() {
    let nodes = [node(1, 1), node(2, 1), node(3, 1)];
    check_table(GroupKind::Vdc, &nodes, &[1, 2, 3], "any one of 3 may fail now");
}

#[test]
fn vdc_of_2_sites_has_2_and_1_voters() {
    let nodes = [node(1, 1), node(2, 1), node(3, 2), node(4, 2)];
    let said = "any one of 3 may fail now; every site but site 1 may go dark";
    check_table(GroupKind::Vdc, &nodes, &[1, 2, 3], said);
}

#[test]
fn vdc_of_2_sites_with_1_and_2_nodes_has_its_majority_where_the_nodes_are() {
    let nodes = [node(1, 1), node(2, 2), node(3, 2)];
    let said = "any one of 3 may fail now; every site but site 2 may go dark";
    check_table(GroupKind::Vdc, &nodes, &[1, 2, 3], said);
}

#[test]
fn vdc_of_2_sites_with_a_node_each_has_1_voter() {
    let nodes = [node(1, 1), node(2, 2)];
    check_table(GroupKind::Vdc, &nodes, &[1], "no redundancy: without its one voter it stands still");
}

#[test]
fn vdc_of_2_sites_and_a_witness_elsewhere_survives_any_site() {
    let witness = Candidate { witness: true, ..node(9, 3) };
    let nodes = [node(1, 1), node(2, 1), node(3, 2), node(4, 2), witness];
    let said = "any one of 3 may fail now; any one of 3 sites may go dark";
    check_table(GroupKind::Vdc, &nodes, &[1, 3, 9], said);
}

#[test]
fn vdc_of_3_sites_has_a_voter_at_each_and_survives_any_site() {
    let nodes = [node(1, 1), node(2, 1), node(3, 2), node(4, 2), node(5, 3)];
    let said = "any one of 3 may fail now; any one of 3 sites may go dark";
    check_table(GroupKind::Vdc, &nodes, &[1, 3, 5], said);
}

#[test]
fn vdc_of_3_sites_needs_no_witness() {
    let witness = Candidate { witness: true, ..node(1, 4) };
    let nodes = [node(2, 1), witness, node(3, 2), node(4, 3)];
    let said = "any one of 3 may fail now; any one of 3 sites may go dark";
    check_table(GroupKind::Vdc, &nodes, &[2, 3, 4], said);
}

#[test]
fn vdc_of_5_sites_has_5_voters() {
    let nodes = [node(1, 1), node(2, 2), node(3, 3), node(4, 4), node(5, 5), node(6, 5)];
    let said = "any two of 5 may fail now; any one of 5 sites may go dark";
    check_table(GroupKind::Vdc, &nodes, &[1, 2, 3, 4, 5], said);
}

#[test]
fn silent_voter_is_replaced_after_10_minutes_and_not_before() {
    let membership = members(&[1, 2, 3], &[4]);
    let nodes = |of_3| [node(1, 1), node(2, 1), seen(3, 1, of_3), node(4, 1)];
    assert_eq!(plan(GroupKind::Site, &nodes(Seen::Silent), &membership), None);
    let replaced = Some(Step::Replace { out: key(3), into: key(4) });
    assert_eq!(plan(GroupKind::Site, &nodes(Seen::Dead), &membership), replaced);
}

#[test]
fn dead_voter_without_a_replacement_stays() {
    let membership = members(&[1, 2, 3], &[]);
    let nodes = [node(1, 1), node(2, 1), seen(3, 1, Seen::Dead)];
    assert_eq!(plan(GroupKind::Site, &nodes, &membership), None);
    let said = "none may fail now: 2 of 3 voters answer and 2 are needed; \
                below the table: of 3 nodes, 3 should vote and answer";
    assert_eq!(words(GroupKind::Site, &nodes, &membership), said);
}

#[test]
fn dead_voter_is_not_replaced_by_one_that_is_behind_or_unsteady_or_silent() {
    let membership = members(&[1, 2, 3], &[4]);
    for fourth in [Candidate { caught_up: false, ..node(4, 1) }, seen(4, 1, Seen::Fresh), seen(4, 1, Seen::Silent)] {
        let nodes = [node(1, 1), node(2, 1), seen(3, 1, Seen::Dead), fourth];
        assert_eq!(plan(GroupKind::Site, &nodes, &membership), None, "{fourth:?}");
    }
}

#[test]
fn nothing_changes_without_a_majority() {
    let membership = members(&[1, 2, 3], &[4]);
    let nodes = [node(1, 1), seen(2, 1, Seen::Dead), seen(3, 1, Seen::Dead), node(4, 1), node(5, 1)];
    assert_eq!(plan(GroupKind::Site, &nodes, &membership), None);
    let said = "stands still: 1 of 3 voters answer and 2 are needed; if the others are lost for good, \
                see `meshctl coord recover`; below the table: of 5 nodes, 5 should vote and answer";
    assert_eq!(words(GroupKind::Site, &nodes, &membership), said);
}

#[test]
fn nothing_changes_beside_another_change() {
    let mut membership = members(&[1, 2, 3], &[4]);
    membership.changing = true;
    let nodes = [node(1, 1), node(2, 1), seen(3, 1, Seen::Dead), node(4, 1)];
    assert_eq!(plan(GroupKind::Site, &nodes, &membership), None);
}

#[test]
fn voter_that_is_no_longer_a_member_goes_at_once() {
    let nodes = [node(1, 1), node(2, 1), node(4, 1)];
    let replaced = Some(Step::Replace { out: key(3), into: key(4) });
    assert_eq!(plan(GroupKind::Site, &nodes, &members(&[1, 2, 3], &[4])), replaced);
    let removed = Some(Step::RemoveVoter(key(3)));
    assert_eq!(plan(GroupKind::Site, &nodes[..2], &members(&[1, 2, 3], &[])), removed);
}

#[test]
fn group_whose_third_node_leaves_goes_back_to_1_voter() {
    let mut membership = members(&[1, 2, 3], &[]);
    membership.leader = Some(key(2));
    let nodes = [node(1, 1), node(2, 1)];
    assert_eq!(settle(GroupKind::Site, &nodes, &mut membership), [2], "the leader stays");
    assert_eq!(membership.learners.len(), 1);
}

#[test]
fn group_does_not_rest_at_an_even_number_of_voters() {
    // The third never came up: one voter is better than two.
    let nodes = |of_3| [node(1, 1), node(2, 1), seen(3, 1, of_3)];
    assert_eq!(plan(GroupKind::Site, &nodes(Seen::Silent), &members(&[1, 2], &[3])), None, "it may come back");
    let back = Some(Step::RemoveVoter(key(2)));
    assert_eq!(plan(GroupKind::Site, &nodes(Seen::Dead), &members(&[1, 2], &[3])), back);
    assert_eq!(plan(GroupKind::Site, &nodes(Seen::Dead), &members(&[1], &[2, 3])), None, "and it does not begin");
}

#[test]
fn dark_site_gives_its_seat_away_and_gets_it_back() {
    let nodes = |of_c| [node(1, 1), node(2, 1), node(3, 2), node(4, 2), seen(5, 3, of_c)];
    let mut membership = members(&[1, 3, 5], &[2, 4]);
    assert_eq!(settle(GroupKind::Vdc, &nodes(Seen::Silent), &mut membership), [1, 3, 5]);
    assert_eq!(settle(GroupKind::Vdc, &nodes(Seen::Dead), &mut membership), [1, 2, 3]);
    let said = "any one of 3 may fail now; every site but site 1 may go dark; \
                below the table: of 5 nodes, 3 should vote and answer";
    assert_eq!(words(GroupKind::Vdc, &nodes(Seen::Dead), &membership), said);
    assert_eq!(settle(GroupKind::Vdc, &nodes(Seen::Fresh), &mut membership), [1, 2, 3], "it must stay up for a while");
    assert_eq!(settle(GroupKind::Vdc, &nodes(Seen::Steady), &mut membership), [1, 3, 5]);
}

#[test]
fn learners_are_bounded_and_every_site_has_one() {
    let mut nodes: Vec<_> = (1..=60).map(|number| node(number, 1)).collect();
    nodes.push(node(100, 2));
    nodes.push(node(101, 3));
    let mut membership = members(&[1], &[]);
    assert_eq!(settle(GroupKind::Vdc, &nodes, &mut membership), [1, 100, 101]);
    assert_eq!(membership.learners.len(), LEARNERS_MAX);
    nodes.push(node(102, 4));
    settle(GroupKind::Vdc, &nodes, &mut membership);
    assert_eq!(membership.learners.len(), LEARNERS_MAX);
    assert!(membership.learners.contains(&key(102)), "a new site displaces one of many");
}

#[test]
fn silent_one_of_5_is_told() {
    let nodes = [node(1, 1), node(2, 1), node(3, 1), node(4, 1), seen(5, 1, Seen::Silent)];
    let said = "any one of the 4 that answer may fail now; silent: 1 of 5; \
                below the table: of 5 nodes, 5 should vote and answer";
    assert_eq!(words(GroupKind::Site, &nodes, &members(&[1, 2, 3, 4, 5], &[])), said);
}

#[derive(Clone, Debug)]
enum Happening {
    Joins { number: u8, site: u16, witness: bool },
    Leaves(u8),
    Turns(u8, Seen),
    Lags(u8, bool),
    Leads(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    let number = 1..12_u8;
    let states = prop_oneof![3 => Just(Seen::Steady), 1 => Just(Seen::Fresh), 1 => Just(Seen::Silent), 2 => Just(Seen::Dead)];
    prop_oneof![
        4 => (number.clone(), 1..5_u16, prop::bool::weighted(0.1))
            .prop_map(|(number, site, witness)| Happening::Joins { number, site, witness }),
        1 => number.clone().prop_map(Happening::Leaves),
        4 => (number.clone(), states).prop_map(|(number, seen)| Happening::Turns(number, seen)),
        1 => (number.clone(), any::<bool>()).prop_map(|(number, caught_up)| Happening::Lags(number, caught_up)),
        1 => number.prop_map(Happening::Leads),
    ]
}

fn answering(candidates: &[Candidate], voters: &BTreeSet<Key>) -> usize {
    voters.iter().filter(|key| candidates.iter().any(|c| c.key == **key && c.answers())).count()
}

proptest! {
    /// Whatever happens between steps: each has a majority before and after, changes one voter, and takes no silent voter away
    /// early. When all is well again, the table is reached and nothing moves any more.
    #[test]
    fn steps_are_safe_and_converge(
        kind in prop_oneof![Just(GroupKind::Site), Just(GroupKind::Vdc)],
        story in prop::collection::vec((happening(), 0..4_usize), 1..60),
    ) {
        let mut candidates = vec![node(1, 1)];
        let mut membership = members(&[1], &[]);
        for (happening, steps) in story {
            match happening {
                Happening::Joins { number, site, witness } if candidates.iter().all(|c| c.key != key(number)) => {
                    candidates.push(Candidate { witness, caught_up: false, ..node(number, site) });
                }
                Happening::Leaves(number) if candidates.len() > 1 => candidates.retain(|c| c.key != key(number)),
                Happening::Joins { .. } | Happening::Leaves(_) => {}
                Happening::Turns(number, seen) => {
                    candidates.iter_mut().filter(|c| c.key == key(number)).for_each(|c| c.seen = seen);
                }
                Happening::Lags(number, caught_up) => {
                    candidates.iter_mut().filter(|c| c.key == key(number)).for_each(|c| c.caught_up = caught_up);
                }
                Happening::Leads(number) => membership.leader = Some(key(number)),
            }
            for _ in 0..steps {
                let Some(step) = plan(kind, &candidates, &membership) else { break };
                let before = membership.voters.clone();
                let after = step.voters_after(&before);
                prop_assert!(answering(&candidates, &before) >= majority(before.len()), "{step:?} without a majority");
                prop_assert!(answering(&candidates, &after) >= majority(after.len()), "{step:?} loses the majority");
                prop_assert!(before.symmetric_difference(&after).count() <= 2, "{step:?} changes more than one");
                prop_assert!(after.len() <= 6 && after.len().abs_diff(before.len()) <= 1);
                for out in before.difference(&after) {
                    let hushed = candidates.iter().any(|c| c.key == *out && !c.answers() && !c.is_dead());
                    let shrinks = seats(kind, &candidates) < before.len() || before.len().is_multiple_of(2);
                    let moves = matches!(step, Step::Replace { .. }) && kind == GroupKind::Vdc;
                    prop_assert!(!hushed || shrinks || moves, "{step:?} takes a voter before its time");
                }
                for into in after.difference(&before) {
                    let fit = |c: &&Candidate| c.key == *into && c.is_steady() && c.caught_up;
                    prop_assert!(candidates.iter().find(fit).is_some() && membership.learners.contains(into));
                }
                perform(step, &candidates, &mut membership);
                prop_assert!(membership.learners.is_disjoint(&membership.voters));
            }
        }
        // Who kept the data comes back, so that a majority of voters does.
        for voter in membership.voters.clone() {
            if candidates.iter().all(|c| c.key != voter) {
                candidates.push(Candidate { key: voter, ..node(1, 1) });
            }
        }
        candidates.iter_mut().for_each(|c| (c.seen, c.caught_up) = (Seen::Steady, true));
        settle(kind, &candidates, &mut membership);
        prop_assert_eq!(membership.voters.len(), seats(kind, &candidates));
        let all = membership.voters.len() + membership.learners.len();
        prop_assert_eq!(all, candidates.len());
        let told = redundancy(kind, &candidates, &membership);
        prop_assert!(told.works() && !told.below_table, "{told:?}");
    }
}
