//! Who may let a coordination group be made, and which one counts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::lab::*;
use crate::record::{Authority, Body, Home};
use crate::roster::issue::{self, GroupFounding, IssueError};
use crate::roster::{Clash, FoundingView, Outcome, RefusedReason, Standing, View};
use crate::{Hash, Key, Office, Signed, SiteNumber, UnixTime};

/// A VDC with a second node in Berlin and a registrar of Paris that is no admin.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    lab.admit("paris1", "paris2", lab.paris);
    let draft = issue::registrar(&lab.view(), &public("paris1"), public("paris2"), lab.paris, NOW).expect("an admin");
    lab.issue("paris1", draft);
    lab
}

fn public(node: &str) -> Key {
    key(node).public()
}

fn draft(view: &View, by: &str, home: Home, founder: &str, succeeds: Option<u64>) -> Result<issue::Draft, IssueError> {
    issue::founding(view, &public(by), &GroupFounding { home, founder: public(founder), succeeds, now: view.now })
}

/// Founds the first group of a home.
fn found(lab: &mut Lab, by: &str, home: Home, founder: &str) -> Signed {
    let draft = draft(&lab.view(), by, home, founder, None).expect("may found");
    lab.issue(by, draft)
}

/// Who makes the group that counts.
fn founder(view: &View, home: Home) -> Option<Key> {
    view.foundings.get(&home).map(|f| f.founder)
}

fn group(view: &View, home: Home) -> Option<Hash> {
    view.foundings.get(&home).map(|f| f.group)
}

#[test]
fn group_is_named_by_the_hash_of_its_founding() {
    let mut lab = lab();
    let berlin = Home::Site(lab.berlin);
    let of_site = found(&mut lab, "berlin1", berlin, "berlin2");
    let of_vdc = found(&mut lab, "paris1", Home::Vdc, "berlin1");
    let view = lab.view();
    let founding = |record: &Signed, home, founder: &str| FoundingView {
        group: record.hash(),
        home,
        serial: 1,
        founder: public(founder),
        created: NOW,
        issuer: record.issuer,
    };
    let expected = [founding(&of_vdc, Home::Vdc, "berlin1"), founding(&of_site, berlin, "berlin2")];
    assert_eq!(view.foundings.values().cloned().collect::<Vec<_>>(), expected);
    assert_eq!(view.founding_head(berlin), Some(&expected[1]));
    assert_eq!(view.clashes, []);
}

#[test]
fn only_admins_and_registrars_of_the_site_found_and_only_members_are_founders() {
    let mut lab = lab();
    let (paris, berlin) = (Home::Site(lab.paris), Home::Site(lab.berlin));
    lab.admit("berlin1", "gone", lab.berlin);
    let revoked = issue::revocation(&lab.view(), &public("berlin1"), &public("gone"), "", NOW, &[]);
    lab.issue("berlin1", revoked.expect("its registrar"));
    let view = lab.view();
    let no_registrar = |site: &str| IssueError::NotRegistrar { site: site.to_owned() };
    let elsewhere =
        |node: &str, home: &str| IssueError::FounderElsewhere { node: node.to_owned(), home: home.to_owned() };
    for (by, home, founder, expected) in [
        ("owner", Home::Vdc, "berlin2", None),
        ("paris1", Home::Vdc, "berlin2", None),
        ("paris1", berlin, "berlin2", None),
        ("berlin1", berlin, "berlin2", None),
        ("paris2", paris, "paris1", None),
        ("berlin1", Home::Vdc, "berlin2", Some(IssueError::NotAdmin)),
        ("berlin1", paris, "paris1", Some(no_registrar("paris"))),
        ("paris2", berlin, "berlin2", Some(no_registrar("berlin"))),
        ("berlin2", berlin, "berlin2", Some(no_registrar("berlin"))),
        ("stranger", berlin, "berlin2", Some(no_registrar("berlin"))),
        ("paris1", Home::Site(SiteNumber(9)), "paris1", Some(IssueError::UnknownSite("9".to_owned()))),
        ("berlin1", berlin, "stranger", Some(IssueError::UnknownNode(public("stranger")))),
        ("paris1", Home::Vdc, "stranger", Some(IssueError::UnknownNode(public("stranger")))),
        ("berlin1", berlin, "gone", Some(IssueError::Revoked(name("gone")))),
        ("berlin1", berlin, "paris1", Some(elsewhere("paris1.paris", "site berlin"))),
    ] {
        assert_eq!(draft(&view, by, home, founder, None).err(), expected, "{by} for {founder} in {home:?}");
    }
    let late = lab.roster.view(UnixTime(NOW.0 + 400 * DAY));
    let ended = draft(&late, "berlin1", berlin, "berlin2", None);
    assert!(matches!(ended, Err(IssueError::DelegationEnded { .. })), "{ended:?}");
}

#[test]
fn second_founding_is_refused_unless_it_names_what_it_succeeds() {
    let mut lab = lab();
    let berlin = Home::Site(lab.berlin);
    let none = draft(&lab.view(), "berlin1", berlin, "berlin2", Some(1));
    assert_eq!(none, Err(IssueError::NotFounded { home: "site berlin".to_owned() }));
    found(&mut lab, "berlin1", berlin, "berlin2");
    let view = lab.view();
    let taken = |serial: u64, founder: &str| {
        let (home, founder) = ("site berlin".to_owned(), founder.to_owned());
        Err(IssueError::Founded { home, founder, created: NOW, serial })
    };
    // Not by an admin, nor by the same node, nor one that knows of another.
    for (by, founder, succeeds) in
        [("berlin1", "berlin1", None), ("paris1", "berlin2", None), ("berlin1", "berlin2", Some(2))]
    {
        assert_eq!(draft(&view, by, berlin, founder, succeeds), taken(1, "berlin2.berlin"), "{by} {succeeds:?}");
    }
    let text = draft(&view, "paris1", berlin, "berlin1", None).expect_err("there is one").to_string();
    assert_eq!(
        text,
        format!(
            "the group of site berlin was founded by berlin2.berlin on {NOW}; if its nodes are lost for good, \
             `meshctl coord recover` founds it anew"
        )
    );
    let recovery = draft(&view, "paris1", berlin, "berlin1", Some(1)).expect("it names the first");
    let recovery = lab.issue("paris1", recovery);
    let view = lab.view();
    assert_eq!((view.foundings[&berlin].serial, group(&view, berlin)), (2, Some(recovery.hash())));
    assert_eq!(view.clashes, [], "a lower serial is no rival");
    assert_eq!(draft(&view, "berlin1", berlin, "berlin2", Some(1)), taken(2, "berlin1.berlin"));
    // The others' homes are their own.
    assert!(draft(&view, "paris1", Home::Vdc, "berlin1", None).is_ok());
    assert!(draft(&view, "paris1", Home::Site(lab.paris), "paris1", None).is_ok());
}

#[test]
fn forged_foundings_are_refused_or_not_believed() {
    let mut lab = lab();
    let (paris, berlin) = (Home::Site(lab.paris), Home::Site(lab.berlin));
    let (of_berlin1, of_paris1) = (lab.of_berlin1(), lab.of_paris1());
    for (by, under, home, outcome) in [
        ("berlin1", of_paris1, Home::Vdc, Outcome::Refused(RefusedReason::NotAllowed)),
        ("berlin2", of_berlin1, berlin, Outcome::Refused(RefusedReason::NotAllowed)),
        ("stranger", lab.of_owners(), berlin, Outcome::Refused(RefusedReason::UnknownIssuer)),
        // Which site a registrar speaks for is judged, not stored.
        ("berlin1", of_paris1, paris, Outcome::New),
    ] {
        let record = lab.forge(by, under, 50, founding_body(home, 9, "paris1", NOW));
        assert_eq!(lab.roster.insert(record), outcome, "{by} {home:?}");
    }
    assert_eq!(lab.view().foundings, BTreeMap::new());
    assert_eq!(lab.view().founding_head(paris), None, "nobody can use up another site's serials");
    // Dated after the right to say it.
    let late = lab.forge("berlin1", of_paris1, 51, founding_body(berlin, 1, "berlin2", UnixTime(NOW.0 + 366 * DAY)));
    assert_eq!(lab.roster.insert(late), Outcome::New);
    assert_eq!(lab.view().foundings, BTreeMap::new());
}

#[test]
fn founding_sites_registrar_founds_while_the_site_has_none() {
    let mut lab = lab();
    let draft_site = issue::site(&lab.view(), &public("paris1"), &name("lisbon"), lab.paris, NOW).expect("an admin");
    lab.issue("paris1", draft_site);
    let number = lab.view().site_by_name("lisbon").expect("added").number;
    let lisbon = Home::Site(number);
    lab.admit("paris2", "lisbon1", number);
    found(&mut lab, "paris2", lisbon, "lisbon1");
    assert_eq!(founder(&lab.view(), lisbon), Some(public("lisbon1")));
    // From one grace period after it has its own, the founding site's says nothing more there.
    let own = issue::registrar(&lab.view(), &public("paris1"), public("lisbon1"), number, NOW).expect("an admin");
    lab.issue("paris1", own);
    let refused = draft(&lab.view(), "paris2", lisbon, "lisbon1", Some(1));
    assert_eq!(refused, Err(IssueError::NotRegistrar { site: "lisbon".to_owned() }));
    lab.admit("lisbon1", "lisbon2", number);
    let before = lab.view().foundings;
    let late = UnixTime(NOW.0 + 15 * DAY);
    let of_owners = lab.of_owners();
    let of_paris2 = Office::of(&public("paris1"), &of_owners);
    let ignored = lab.forge("paris2", of_paris2, 60, founding_body(lisbon, 2, "lisbon2", late));
    assert_eq!(lab.roster.insert(ignored), Outcome::New);
    assert_eq!(lab.view().foundings, before, "what it said in time stands");
    let in_time = lab.forge("paris2", of_paris2, 60, founding_body(lisbon, 2, "lisbon2", UnixTime(NOW.0 + 10 * DAY)));
    lab.roster.insert(in_time);
    assert_eq!(founder(&lab.view(), lisbon), Some(public("lisbon2")));
    assert_eq!(before[&lisbon].serial + 1, lab.view().foundings[&lisbon].serial);
}

#[test]
fn founder_that_is_unknown_yet_is_waited_for() {
    let mut lab = lab();
    let berlin = Home::Site(lab.berlin);
    let first = found(&mut lab, "berlin1", berlin, "berlin2");
    let second = lab.forge("paris1", lab.of_owners(), 70, founding_body(berlin, 2, "berlin3", NOW));
    assert_eq!(lab.roster.insert(second.clone()), Outcome::New);
    let view = lab.view();
    assert_eq!(group(&view, berlin), Some(first.hash()), "the other is kept and does not count");
    assert_eq!(view.founding_head(berlin).map(|f| f.group), Some(second.hash()));
    // Nobody founds past it without knowing of it.
    let refused = draft(&view, "berlin1", berlin, "berlin1", Some(1));
    let named = public("berlin3").to_string();
    assert!(
        matches!(&refused, Err(IssueError::Founded { founder, serial: 2, .. }) if *founder == named),
        "{refused:?}"
    );
    let third = draft(&view, "berlin1", berlin, "berlin1", Some(2)).expect("it names the second");
    assert!(matches!(&third.body, Body::Founding(f) if f.serial == 3));
    // A member elsewhere is none here.
    lab.admit("paris1", "berlin3", lab.paris);
    assert_eq!(group(&lab.view(), berlin), Some(first.hash()));
    let here = lab.forge("berlin1", lab.of_paris1(), 71, lab.member_body("berlin3", lab.berlin, 9, NOW));
    assert_eq!(lab.roster.insert(here), Outcome::New);
    assert_eq!(group(&lab.view(), berlin), Some(second.hash()));
}

#[test]
fn equal_serials_are_a_clash_and_the_higher_hash_counts() {
    let mut lab = lab();
    let berlin = Home::Site(lab.berlin);
    let mut there = Lab { roster: lab.roster.clone(), number: 500, ..Lab::new() };
    let one = found(&mut lab, "berlin1", berlin, "berlin2");
    let two = found(&mut there, "paris1", berlin, "berlin1");
    lab.roster.merge(&there.roster).expect("one VDC");
    there.roster.merge(&lab.roster).expect("one VDC");
    let (wins, loses) = if one.hash() > two.hash() { (&one, &two) } else { (&two, &one) };
    let made_by = |record: &Signed| match &record.body {
        Body::Founding(f) => f.founder,
        _ => panic!("a founding"),
    };
    let clash = Clash::Founding {
        home: berlin,
        serial: 1,
        group: wins.hash(),
        founder: made_by(wins),
        other: loses.hash(),
        other_founder: made_by(loses),
    };
    for roster in [&lab.roster, &there.roster] {
        let view = roster.view(NOW);
        assert_eq!((group(&view, berlin), view.clashes), (Some(wins.hash()), vec![clash.clone()]));
    }
    // A recovery settles it.
    let draft = draft(&lab.view(), "berlin1", berlin, "berlin1", Some(1)).expect("a registrar");
    lab.issue("berlin1", draft);
    assert_eq!(lab.view().clashes, []);
    assert_eq!(lab.view().foundings[&berlin].serial, 2);
}

#[test]
fn issuer_that_lost_count_is_reported() {
    let lab = lab();
    let berlin = Home::Site(lab.berlin);
    let say = |founder, created| lab.forge("berlin1", lab.of_paris1(), 80, founding_body(berlin, 1, founder, created));
    // It told two nodes, or one twice.
    for (one, two) in
        [(say("berlin1", NOW), say("berlin2", NOW)), (say("berlin2", NOW), say("berlin2", UnixTime(NOW.0 + 60)))]
    {
        let (kept, dropped) = if one.hash() > two.hash() { (one.hash(), two.hash()) } else { (two.hash(), one.hash()) };
        for order in [[&one, &two], [&two, &one]] {
            let mut roster = lab.roster.clone();
            for record in order {
                roster.insert(record.clone());
            }
            let view = roster.view(NOW);
            assert_eq!(group(&view, berlin), Some(kept));
            let expected =
                |c: &Clash| matches!(c, Clash::Founding { group, other, .. } if (*group, *other) == (kept, dropped));
            assert!(matches!(&view.clashes[..], [clash] if expected(clash)), "{:?}", view.clashes);
        }
    }
}

#[test]
fn group_outlives_its_founder() {
    let mut lab = lab();
    let berlin = Home::Site(lab.berlin);
    let record = found(&mut lab, "berlin1", berlin, "berlin2");
    let expired = lab.roster.view(UnixTime(NOW.0 + 60 * DAY));
    assert_eq!(expired.members[&public("berlin2")].standing, Standing::Expired);
    assert_eq!(group(&expired, berlin), Some(record.hash()));
    let draft = issue::leave(&lab.view(), &public("berlin2"), NOW).expect("a member");
    lab.issue("berlin2", draft);
    lab.admit("paris1", "berlin2", lab.paris);
    assert_eq!(lab.view().members[&public("berlin2")].site, lab.paris, "it has moved");
    assert_eq!(group(&lab.view(), berlin), Some(record.hash()));
    let draft = issue::revocation(&lab.view(), &public("paris1"), &public("berlin2"), "stolen", NOW, &[]);
    lab.issue("paris1", draft.expect("an admin"));
    assert_eq!(group(&lab.view(), berlin), Some(record.hash()));
}

#[test]
fn closed_issuers_foundings_are_those_of_its_estate() {
    let mut lab = lab();
    let berlin = Home::Site(lab.berlin);
    let honest = found(&mut lab, "berlin1", berlin, "berlin2");
    let keep = lab.roster.issued_by(&public("berlin1"));
    // A thief locks the home.
    let stolen = lab.forge("berlin1", lab.of_paris1(), 900, founding_body(berlin, u64::MAX, "berlin1", NOW));
    lab.roster.insert(stolen.clone());
    assert_eq!(group(&lab.view(), berlin), Some(stolen.hash()));
    let locked = draft(&lab.view(), "paris1", berlin, "berlin2", Some(u64::MAX));
    assert_eq!(locked, Err(IssueError::SerialsUsedUp));
    for signer in ["owner", "paris1"] {
        for (keep, counts) in [(&keep, &honest), (&lab.roster.issued_by(&public("berlin1")), &stolen)] {
            let mut lab = Lab { roster: lab.roster.clone(), number: 1000, ..Lab::new() };
            let draft = lab.closing(signer, "berlin1", keep);
            lab.issue(signer, draft);
            assert_eq!(group(&lab.view(), berlin), Some(counts.hash()), "{signer}");
            // It may say nothing more.
            let more = lab.forge("berlin1", lab.of_paris1(), 901, founding_body(berlin, u64::MAX, "berlin2", NOW));
            lab.roster.insert(more);
            assert_eq!(group(&lab.view(), berlin), Some(counts.hash()), "{signer}");
        }
    }
}

#[test]
fn foundings_are_small_and_say_what_is_possible() {
    let mut lab = lab();
    let largest = founding_body(Home::Site(SiteNumber(u16::MAX)), u64::MAX, "berlin1", UnixTime(u64::MAX));
    let record = lab.forge("paris1", lab.of_owners(), u64::MAX, largest);
    assert!(record.encode().len() <= 256, "{} bytes", record.encode().len());
    assert_eq!(Signed::decode(&record.encode()).expect("canonical"), record);
    assert!(record.heap_bytes() < 1024, "{} bytes", record.heap_bytes());
    for (home, serial) in [(Home::Site(SiteNumber(0)), 1), (Home::Vdc, 0)] {
        let record = lab.forge("paris1", lab.of_owners(), 90, founding_body(home, serial, "berlin1", NOW));
        assert!(Signed::decode(&record.encode()).is_err(), "{home:?} {serial}");
        let outcome = lab.roster.insert(record);
        assert!(matches!(outcome, Outcome::Refused(RefusedReason::Form(_))), "{outcome:?}");
    }
    // A thief signs many: all are bounded as everything of one office is, and not all are told.
    let before = lab.roster.len();
    for minute in 0..40 {
        let created = UnixTime(NOW.0 + minute * 60);
        lab.roster.insert(lab.forge("paris1", lab.of_owners(), 100, founding_body(Home::Vdc, 1, "paris1", created)));
    }
    assert_eq!(lab.roster.len(), before + 40);
    assert_eq!(lab.view().clashes.len(), 16);
}

/// Offices of [`Said::by`]: the owners, an admin, registrars of Berlin and of Paris, and a node.
const ISSUERS: [&str; 5] = ["owner", "paris1", "berlin1", "paris2", "berlin2"];
const FOUNDERS: [&str; 5] = ["paris1", "paris2", "berlin1", "berlin2", "stranger"];

#[derive(Clone, Debug)]
struct Said {
    by: usize,
    home: usize,
    serial: u64,
    founder: usize,
    /// More than one grace period after Berlin has a registrar.
    late: bool,
}

fn said() -> impl Strategy<Value = Said> {
    (0..5usize, 0..3usize, 1..4u64, 0..5usize, any::<bool>()).prop_map(|(by, home, serial, founder, late)| Said {
        by,
        home,
        serial,
        founder,
        late,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is said in whatever order: what counts is what a plain reading of the rules gives.
    #[test]
    fn every_replica_believes_what_the_rules_say(
        all in proptest::collection::vec(said(), 1..16),
        swapped in any::<u64>(),
    ) {
        let lab = lab();
        let homes = [Home::Vdc, Home::Site(lab.paris), Home::Site(lab.berlin)];
        let offices = [Office::root(&lab.vdc), lab.of_owners(), lab.of_paris1(), lab.of_paris1(), lab.of_berlin1()];
        let made: Vec<(Said, Signed)> = all.iter().zip(200..).map(|(s, number)| {
            let created = UnixTime(if s.late { NOW.0 + 20 * DAY } else { NOW.0 });
            let body = founding_body(homes[s.home], s.serial, FOUNDERS[s.founder], created);
            (s.clone(), lab.forge(ISSUERS[s.by], offices[s.by], number, body))
        }).collect();

        let may = |s: &Said| match s.by {
            0 | 1 => true,
            2 => s.home == 2,
            3 => s.home == 1 || (s.home == 2 && !s.late),
            _ => false,
        };
        let belongs = |s: &Said| match s.home {
            0 => s.founder < 4,
            1 => s.founder < 2,
            _ => s.founder == 2 || s.founder == 3,
        };
        // A registrar that speaks of the VDC, and a node, are not even stored.
        let held: Vec<_> = made.iter().filter(|(s, _)| s.by < 2 || (s.by < 4 && s.home > 0)).collect();
        let count = |home: usize| {
            let valid = held.iter().filter(|(s, _)| s.home == home && may(s) && belongs(s));
            let mut valid: Vec<(u64, Hash)> = valid.map(|(s, r)| (s.serial, r.hash())).collect();
            valid.sort_unstable();
            let best = valid.last().copied();
            (best.map(|b| b.1), valid.iter().filter(|v| best.is_some_and(|b| b.0 == v.0 && b.1 != v.1)).count())
        };
        let expected: Vec<_> = (0..3).map(count).collect();

        let records: Vec<Signed> = made.into_iter().map(|(_, r)| r).collect();
        let mut order = records.clone();
        order.sort_by_key(|r| blake3::keyed_hash(&[swapped.to_le_bytes()[0]; 32], &r.hash().0).to_hex());
        let (mut here, mut there) = (lab.roster.clone(), lab.roster.clone());
        offer_until_stable(&mut here, &records);
        offer_until_stable(&mut there, &order);
        let (here, there) = (here.view(NOW).with_version(0), there.view(NOW).with_version(0));
        prop_assert_eq!(&here, &there);
        for (home, (group_expected, rivals)) in homes.into_iter().zip(expected) {
            prop_assert_eq!(group(&here, home), group_expected, "{:?}", home);
            let told = here.clashes.iter().filter(|c| matches!(c, Clash::Founding { home: of, .. } if *of == home));
            prop_assert_eq!(told.count(), rivals, "{:?}", home);
        }
    }
}

#[test]
fn registrar_made_admin_keeps_one_group() {
    let mut lab = lab();
    let berlin = Home::Site(lab.berlin);
    let first = found(&mut lab, "berlin1", berlin, "berlin2");
    let of_admin =
        lab.forge("owner", Office::root(&lab.vdc), 300, delegation_body("berlin1", Authority::Admin, 1, 365));
    assert_eq!(lab.roster.insert(of_admin), Outcome::New);
    assert_eq!(group(&lab.view(), berlin), Some(first.hash()));
    let draft = draft(&lab.view(), "berlin1", berlin, "berlin1", Some(1)).expect("an admin now");
    assert_eq!(draft.under, lab.of_owners());
    let second = lab.issue("berlin1", draft);
    assert_eq!(group(&lab.view(), berlin), Some(second.hash()), "the first stands in another office, and is lower");
}
