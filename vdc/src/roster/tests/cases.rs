//! One story per rule.

use std::sync::Arc;

use super::lab::*;
use crate::record::{Authority, Body, Estate, Role, Tombstone};
use crate::roster::issue::{self, IssueError};
use crate::roster::{Clash, Outcome, RefusedReason, Roster, RosterError, Standing};
use crate::{Office, Signed, SiteNumber, UnixTime};

#[test]
fn founded_vdc_has_one_current_member_with_addresses() {
    let lab = Lab::new();
    let view = lab.view();
    let paris1 = view.find("paris1").expect("the founder");
    assert_eq!(paris1.standing, Standing::Current);
    assert_eq!(paris1.roles, [Role::Host, Role::Admin]);
    assert_eq!(paris1.full_name(), "paris1.paris");
    assert_eq!(paris1.ipv4.expect("allotted").to_string(), "10.64.0.0/28");
    assert_eq!(view.find("berlin1.berlin").expect("admitted").ipv4.expect("allotted").to_string(), "10.64.16.0/28");
    assert_eq!(view.policy.as_ref().expect("version 1").version, 1);
    assert_eq!(view.model().expect("a policy").subjects.len(), 2);
    assert_eq!(view.clashes, []);
    assert!(lab.roster.equivocations().is_empty());
}

#[test]
fn roster_needs_a_genesis_by_an_owner() {
    let lab = Lab::new();
    let genesis = (**lab.roster.genesis_record()).clone();
    let not_genesis = lab.forge("owner", Office::root(&lab.vdc), 1, contact_body("paris1", 1));
    assert_eq!(Roster::new(not_genesis).expect_err("refused"), RosterError::NotGenesis);
    let by_stranger = lab.forge("stranger", Office::root(&lab.vdc), 1, genesis.body.clone());
    assert_eq!(Roster::new(by_stranger).expect_err("refused"), RosterError::NotByOwner);
    let mut flipped = genesis.clone();
    flipped.signature[3] ^= 1;
    assert_eq!(Roster::new(flipped).expect_err("refused"), RosterError::Signature);
    let by_other_owner = lab.forge("recovery", Office::root(&lab.vdc), 1, genesis.body.clone());
    assert_eq!(Roster::new(by_other_owner).expect("both owners may").vdc_id(), &lab.vdc);
}

#[test]
fn records_arrive_in_sending_order_without_refusals() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let draft = issue::contact(&lab.view(), &key("berlin2").public(), Vec::new(), Some(1)).expect("a member");
    lab.issue("berlin2", draft);
    let records = lab.roster.records();
    let mut copy = Roster::new((*records[0]).clone()).expect("genesis comes first");
    for record in &records[1..] {
        assert_eq!(copy.insert((**record).clone()), Outcome::New);
    }
    assert_eq!(hashes(&copy), hashes(&lab.roster));
    assert_eq!(copy.view(NOW).members, lab.view().members);
}

#[test]
fn records_by_those_without_the_right_are_refused() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let (root, owners, paris1, berlin1) = (Office::root(&lab.vdc), lab.of_owners(), lab.of_paris1(), lab.of_berlin1());
    let admin = delegation_body("eve", Authority::Admin, 1, 365);
    let registrar = delegation_body("eve", Authority::Registrar(lab.berlin), 1, 365);
    let member = lab.member_body("eve", lab.berlin, 1, NOW);
    let berlin2 = key("berlin2").public();
    let estate = Some(Estate { last: 0, records: Vec::new() });
    let closing = Body::Tombstone(Tombstone { subject: berlin2, floor: 1, at: NOW, reason: String::new(), estate });
    for (by, under, body, expected) in [
        ("eve", root, admin.clone(), RefusedReason::NotAllowed),
        ("eve", owners, registrar.clone(), RefusedReason::UnknownIssuer),
        ("eve", paris1, member.clone(), RefusedReason::UnknownIssuer),
        ("eve", berlin1, contact_body("eve", 1), RefusedReason::UnknownIssuer),
        ("paris1", owners, admin, RefusedReason::NotAllowed),
        ("berlin1", paris1, registrar, RefusedReason::NotAllowed),
        ("berlin1", owners, member.clone(), RefusedReason::UnknownIssuer),
        ("berlin1", paris1, grant_body("berlin2", 1, vec![Role::Operator]), RefusedReason::NotAllowed),
        ("berlin1", paris1, closing, RefusedReason::NotAllowed),
        ("owner", root, member, RefusedReason::NotAllowed),
        ("berlin2", berlin1, contact_body("paris1", 1), RefusedReason::NotAllowed),
        ("berlin2", berlin1, tombstone_body(key("berlin1").public(), 1), RefusedReason::NotAllowed),
    ] {
        let outcome = lab.roster.insert(lab.forge(by, under, 1, body.clone()));
        assert_eq!(outcome, Outcome::Refused(expected), "{by}: {body:?}");
    }
}

#[test]
fn bad_signatures_and_records_of_another_vdc_are_refused() {
    let mut lab = Lab::new();
    let body = lab.member_body("berlin2", lab.berlin, 1, NOW);
    let mut flipped = lab.forge("berlin1", lab.of_paris1(), 1, body.clone());
    flipped.signature[0] ^= 1;
    let flipped = Signed::decode(&flipped.encode()).expect("the form is fine");
    assert_eq!(lab.roster.insert(flipped), Outcome::Refused(RefusedReason::Signature));
    let elsewhere = Signed::sign(&crate::VdcId([1; 32]), &key("berlin1"), lab.of_paris1(), 1, body, &[]);
    assert_eq!(lab.roster.insert(elsewhere), Outcome::Refused(RefusedReason::Signature));
}

#[test]
fn two_of_three_owners_must_sign() {
    use crate::record::Genesis;
    let mut owners = ["o1", "o2", "o3"].map(|o| key(o).public()).to_vec();
    owners.sort_unstable();
    let genesis =
        Genesis { name: name("acme"), owners, threshold: 2, created: NOW, nonce: crate::Hash([1; 32]), ipv4: None };
    let vdc = genesis.vdc_id();
    let root = Office::root(&vdc);
    let genesis = Signed::sign(&vdc, &key("o1"), root, 1, Body::Genesis(genesis), &[]);
    let mut roster = Roster::new(genesis).expect("by an owner");
    let body = delegation_body("a", Authority::Admin, 1, 365);
    let sign = |by: &str, others: &[&crate::SigningKey]| Signed::sign(&vdc, &key(by), root, 2, body.clone(), others);
    assert_eq!(roster.insert(sign("o1", &[])), Outcome::Refused(RefusedReason::Threshold));
    assert_eq!(roster.insert(sign("o1", &[&key("o1")])), Outcome::Refused(RefusedReason::Threshold));
    assert_eq!(roster.insert(sign("o1", &[&key("eve")])), Outcome::Refused(RefusedReason::NotAllowed));
    let mut half_good = sign("o1", &[&key("o2")]);
    half_good.cosignatures[0].1[0] ^= 1;
    let half_good = Signed::decode(&half_good.encode()).expect("the form is fine");
    assert_eq!(roster.insert(half_good), Outcome::Refused(RefusedReason::Signature));
    assert_eq!(roster.insert(sign("o1", &[&key("o3")])), Outcome::New);
    assert!(roster.view(NOW).is_admin(&key("a").public()));
}

#[test]
fn equal_serials_higher_hash_wins_and_is_reported() {
    let mut lab = Lab::new();
    let body = |port| exposure_body("berlin1", 1, port);
    let under = lab.view().members[&key("berlin1").public()].under;
    let (a, b) = (lab.forge("berlin1", under, 5, body(80)), lab.forge("berlin1", under, 6, body(81)));
    let (low, high) = if a.hash() < b.hash() { (a, b) } else { (b, a) };
    let mut other = lab.roster.clone();
    assert_eq!(lab.roster.insert(low.clone()), Outcome::New);
    assert_eq!(lab.roster.insert(high.clone()), Outcome::New);
    assert_eq!(other.insert(high.clone()), Outcome::New);
    assert_eq!(other.insert(low.clone()), Outcome::Superseded);
    for roster in [&lab.roster, &other] {
        let conflicts: Vec<_> = roster.conflicts().collect();
        assert_eq!((conflicts.len(), conflicts[0].kept, conflicts[0].dropped), (1, high.hash(), low.hash()));
        assert!(roster.contains(&high.hash()) && !roster.contains(&low.hash()));
    }
}

#[test]
fn reused_number_is_evidence() {
    let mut lab = Lab::new();
    let under = lab.view().members[&key("berlin1").public()].under;
    let (a, b) = (
        lab.forge("berlin1", under, 9, exposure_body("berlin1", 1, 80)),
        lab.forge("berlin1", under, 9, contact_body("berlin1", 1)),
    );
    lab.roster.insert(a.clone());
    lab.roster.insert(b.clone());
    let found = lab.roster.equivocations();
    assert_eq!((found.len(), found[0].issuer, found[0].number), (1, key("berlin1").public(), 9));
    assert_eq!(lab.roster.next_number(&key("berlin1").public()), 10);
}

#[test]
fn member_past_its_deadline_has_grace_then_expires() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let mut ephemeral = lab.member_body("berlin3", lab.berlin, 1, NOW);
    if let Body::Member(m) = &mut ephemeral {
        m.ephemeral = true;
    }
    lab.roster.insert(lab.forge("berlin1", lab.of_paris1(), 50, ephemeral));
    let standing = |now, node| lab.roster.view(now).members[&key(node).public()].standing;
    let end = NOW.0 + DAY;
    let until = UnixTime(end + 14 * DAY);
    for (now, lasting, ephemeral) in [
        (NOW.0 - 3 * DAY, Standing::Current, Standing::Current),
        (end, Standing::Current, Standing::Current),
        (end + 1, Standing::Grace { until }, Standing::Expired),
        (until.0, Standing::Grace { until }, Standing::Expired),
        (until.0 + 1, Standing::Expired, Standing::Expired),
    ] {
        assert_eq!(standing(UnixTime(now), "berlin2"), lasting, "{now}");
        assert_eq!(standing(UnixTime(now), "berlin3"), ephemeral, "{now}");
    }
}

#[test]
fn renewal_keeps_name_prefix_and_ipv4_but_never_rights() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let (paris1, berlin2) = (key("paris1").public(), key("berlin2").public());
    let draft = issue::grant(&lab.view(), &paris1, &berlin2, vec![Role::Operator], vec![name("gpu")]).expect("admin");
    lab.issue("paris1", draft);
    let before = lab.view().members[&berlin2].clone();
    assert_eq!(
        (before.roles.as_slice(), before.labels.as_slice()),
        (&[Role::Host, Role::Operator][..], &[name("gpu")][..])
    );
    let draft = issue::grant(&lab.view(), &paris1, &berlin2, vec![], vec![]).expect("admin");
    lab.issue("paris1", draft);
    lab.renew("berlin1", "berlin2", UnixTime(NOW.0 + DAY / 2));
    let after = lab.view().members[&berlin2].clone();
    assert_eq!(after.serial, before.serial + 1);
    assert_eq!((after.roles.as_slice(), after.labels.len()), (&[Role::Host][..], 0));
    assert_eq!((&after.name, after.prefix, after.ipv4), (&before.name, before.prefix, before.ipv4));
}

#[test]
fn revoked_node_loses_membership_and_grant_for_good() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let berlin2 = key("berlin2").public();
    let draft =
        issue::grant(&lab.view(), &key("paris1").public(), &berlin2, vec![Role::Operator], vec![]).expect("admin");
    lab.issue("paris1", draft);
    let draft =
        issue::revocation(&lab.view(), &key("berlin1").public(), &berlin2, "stolen", NOW, &[]).expect("own site");
    let tombstone = lab.issue("berlin1", draft);
    let view = lab.view();
    let member = &view.members[&berlin2];
    assert_eq!((member.standing, member.roles.as_slice()), (Standing::Revoked, &[Role::Host][..]));
    assert_eq!(member.records.tombstone, Some(tombstone.hash()));
    assert!(view.reachable().all(|m| m.node != berlin2));
    assert!(!view.is_operator(&berlin2));
    // Whatever a registrar signs for it afterwards.
    lab.roster.insert(lab.forge("berlin1", lab.of_paris1(), 99, lab.member_body("berlin2", lab.berlin, 1 << 40, NOW)));
    assert_eq!(lab.view().members[&berlin2].standing, Standing::Revoked);
    let refused = issue::renewal(&lab.view(), &key("berlin1").public(), &berlin2, None, NOW);
    assert_eq!(refused, Err(IssueError::Revoked(name("berlin2"))));
}

#[test]
fn registrar_cannot_end_nodes_of_other_sites() {
    let mut lab = Lab::new();
    lab.admit("paris1", "paris2", lab.paris);
    let paris2 = key("paris2").public();
    let refused = issue::revocation(&lab.view(), &key("berlin1").public(), &paris2, "x", NOW, &[]);
    assert_eq!(refused, Err(IssueError::NotRegistrar { site: "paris".to_owned() }));
    let outcome = lab.roster.insert(lab.forge("berlin1", lab.of_paris1(), 70, tombstone_body(paris2, u64::MAX)));
    assert_eq!(outcome, Outcome::New);
    assert_eq!(lab.view().members[&paris2].standing, Standing::Current);
}

#[test]
fn node_that_left_may_come_back_with_a_higher_serial() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let berlin2 = key("berlin2").public();
    lab.roster.insert(lab.forge("paris1", lab.of_owners(), 60, grant_body("berlin2", 1, vec![Role::Operator])));
    let draft = issue::leave(&lab.view(), &berlin2, NOW).expect("a member");
    lab.issue("berlin2", draft);
    assert_eq!(lab.view().members[&berlin2].standing, Standing::Revoked);
    assert_eq!(issue::leave(&lab.view(), &berlin2, NOW), Err(IssueError::NotMember));
    lab.admit("berlin1", "berlin2", lab.berlin);
    let back = lab.view().members[&berlin2].clone();
    assert_eq!((back.standing, back.serial), (Standing::Current, 2));
    assert_eq!(lab.view().members[&berlin2].roles, [Role::Host]);
}

#[test]
fn site_without_a_registrar_is_renewed_by_its_founder() {
    let mut lab = Lab::new();
    let draft = issue::site(&lab.view(), &key("paris1").public(), &name("lisbon"), lab.paris, NOW).expect("admin");
    lab.issue("paris1", draft);
    let lisbon = lab.view().site_by_name("lisbon").expect("added").number;
    lab.admit("paris1", "lisbon1", lisbon);
    lab.renew("paris1", "lisbon1", UnixTime(NOW.0 + DAY / 2));
    // A stranger to the site may not, even if it is a registrar somewhere.
    let refused = issue::renewal(&lab.view(), &key("berlin1").public(), &key("lisbon1").public(), None, NOW);
    assert_eq!(refused, Err(IssueError::NotRegistrar { site: "lisbon".to_owned() }));
    let outcome =
        lab.roster.insert(lab.forge("berlin1", lab.of_paris1(), 71, lab.member_body("lisbon1", lisbon, 9, NOW)));
    assert_eq!(outcome, Outcome::New);
    assert_eq!(lab.view().members[&key("lisbon1").public()].serial, 2, "not covered, so not believed");
    // Its own registrar takes over, and what the founder dates later than one grace period is not believed any more.
    let lisbon1 = key("lisbon1").public();
    let draft = issue::registrar(&lab.view(), &key("paris1").public(), lisbon1, lisbon, NOW).expect("admin");
    lab.issue("paris1", draft);
    let refused = issue::renewal(&lab.view(), &key("paris1").public(), &lisbon1, None, NOW);
    assert_eq!(refused, Err(IssueError::NotRegistrar { site: "lisbon".to_owned() }));
    lab.renew("lisbon1", "lisbon1", UnixTime(NOW.0 + DAY));
    let late = UnixTime(NOW.0 + 15 * DAY);
    lab.roster.insert(lab.forge("paris1", lab.of_paris1(), 72, lab.member_body("lisbon1", lisbon, 50, late)));
    assert_eq!(lab.view().members[&lisbon1].serial, 3);
}

#[test]
fn registrar_past_its_delegation_cannot_renew() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let (berlin1, berlin2) = (key("berlin1").public(), key("berlin2").public());
    let late = UnixTime(NOW.0 + 366 * DAY);
    let view = lab.roster.view(late);
    assert!(!view.sites[&lab.berlin].registrars[0].active);
    assert!(matches!(issue::renewal(&view, &berlin1, &berlin2, None, late), Err(IssueError::DelegationEnded { .. })));
    // Signed all the same, it is not believed.
    lab.roster.insert(lab.forge("berlin1", lab.of_paris1(), 90, lab.member_body("berlin2", lab.berlin, 8, late)));
    assert!(!lab.roster.view(late).members.contains_key(&berlin2));
    // The founder's registrar takes over once its own delegation is renewed, and keeps its beginning.
    let draft = issue::admin(&view, &key("owner").public(), key("paris1").public(), late).expect("owner");
    lab.issue("owner", draft);
    let view = lab.roster.view(late);
    let draft =
        issue::registrar(&view, &key("paris1").public(), key("paris1").public(), lab.paris, late).expect("admin");
    assert!(matches!(&draft.body, Body::Delegation(d) if d.not_before == NOW && d.serial == 2));
    lab.issue("paris1", draft);
    let admission = issue::Admission {
        node: berlin2,
        wg: wg("berlin2"),
        name: name("berlin2"),
        site: lab.berlin,
        ephemeral: false,
        now: late,
    };
    let draft = issue::member(&lab.roster.view(late), &key("paris1").public(), &admission).expect("founder");
    lab.issue("paris1", draft);
    assert_eq!(lab.roster.view(late).members[&berlin2].standing, Standing::Current);
}

#[test]
fn mutual_tombstones_are_decided_by_rank() {
    let mut lab = Lab::new();
    let subject = key("admin2").public();
    let draft = issue::admin(&lab.view(), &key("owner").public(), subject, NOW).expect("owner");
    lab.issue("owner", draft);
    // Two admins close each other: neither is of a higher rank, so both stay admins; as registrars and nodes both end.
    for (by, other) in [("paris1", "admin2"), ("admin2", "paris1")] {
        let estate = Some(Estate { last: 0, records: Vec::new() });
        let subject = key(other).public();
        let body = Body::Tombstone(Tombstone { subject, floor: u64::MAX, at: NOW, reason: String::new(), estate });
        assert_eq!(lab.roster.insert(lab.forge(by, lab.of_owners(), 200, body)), Outcome::New);
    }
    let view = lab.view();
    assert!(view.is_admin(&key("paris1").public()) && view.is_admin(&key("admin2").public()));
    assert_eq!(view.members.get(&key("paris1").public()), None, "its own registrar, and that was closed");
    assert!(view.sites.contains_key(&lab.berlin), "sites are an admin's records, which stay");
    // The owners settle it: admin2 was the thief.
    let draft = lab.closing("owner", "admin2", &[]);
    lab.issue("owner", draft);
    let view = lab.view();
    assert!(!view.is_admin(&key("admin2").public()));
    assert_eq!(view.members[&key("paris1").public()].standing, Standing::Current);
    assert_eq!(view.find("berlin1").expect("back").standing, Standing::Current);
}

#[test]
fn closing_needs_a_higher_rank() {
    let lab = Lab::new();
    let close = |by: &str, subject: &str| {
        issue::revocation(&lab.view(), &key(by).public(), &key(subject).public(), "x", NOW, &[]).map(|d| d.under)
    };
    assert!(matches!(close("paris1", "paris1"), Err(IssueError::RankTooLow { .. })));
    assert!(matches!(close("berlin1", "berlin1"), Err(IssueError::RankTooLow { .. })));
    assert!(matches!(close("berlin1", "paris1"), Err(IssueError::RankTooLow { .. })));
    assert_eq!(close("paris1", "berlin1"), Ok(lab.of_owners()));
    assert_eq!(close("owner", "paris1"), Ok(Office::root(&lab.vdc)));
}

#[test]
fn stolen_admin_that_closes_everybody_is_undone_by_the_owners() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let before = lab.view();
    let draft = issue::admin(&before, &key("owner").public(), key("thief").public(), NOW).expect("owner");
    lab.issue("owner", draft);
    for registrar in ["paris1", "berlin1"] {
        let estate = Some(Estate { last: 0, records: Vec::new() });
        let subject = key(registrar).public();
        let body = Body::Tombstone(Tombstone { subject, floor: u64::MAX, at: NOW, reason: String::new(), estate });
        lab.roster.insert(lab.forge("thief", lab.of_owners(), 1, body));
    }
    assert_eq!(lab.view().members.len(), 0, "the thief's closings hold while it is an admin");
    let draft = lab.closing("recovery", "thief", &[]);
    lab.issue("recovery", draft);
    assert_eq!(lab.view().members, before.members);
}

#[test]
fn grant_by_a_closed_admin_goes_with_it() {
    let mut lab = Lab::new();
    let draft = issue::admin(&lab.view(), &key("owner").public(), key("admin2").public(), NOW).expect("owner");
    lab.issue("owner", draft);
    let body = grant_body("berlin1", 7, vec![Role::Operator]);
    lab.roster.insert(lab.forge("admin2", lab.of_owners(), 1, body));
    assert!(lab.view().find("berlin1").expect("member").roles.contains(&Role::Operator));
    let draft = lab.closing("owner", "admin2", &[]);
    lab.issue("owner", draft);
    assert!(!lab.view().find("berlin1").expect("member").roles.contains(&Role::Operator));
}

#[test]
fn right_given_anew_does_not_revive_what_a_voided_right_had_justified() {
    let mut lab = Lab::new();
    let draft = issue::admin(&lab.view(), &key("owner").public(), key("admin2").public(), NOW).expect("owner");
    lab.issue("owner", draft);
    let of_admin2 = Office::of(&key("admin2").public(), &lab.of_owners());
    let body = delegation_body("mallory", Authority::Registrar(lab.berlin), 1, 365);
    lab.roster.insert(lab.forge("admin2", lab.of_owners(), 1, body.clone()));
    let forged = lab.forge("mallory", of_admin2, 1, lab.member_body("ghost", lab.berlin, 1, NOW));
    assert_eq!(lab.roster.insert(forged.clone()), Outcome::New);
    let draft = lab.closing("owner", "admin2", &[]);
    lab.issue("owner", draft);
    assert!(!lab.roster.contains(&forged.hash()));
    // An honest admin delegates the same key: that is another office.
    assert_eq!(lab.roster.insert(lab.forge("paris1", lab.of_owners(), 300, body)), Outcome::New);
    assert_eq!(lab.roster.insert(forged), Outcome::Refused(RefusedReason::UnknownIssuer));
    let anew = lab.forge("mallory", lab.of_paris1(), 2, lab.member_body("ghost", lab.berlin, 1, NOW));
    assert_eq!(lab.roster.insert(anew), Outcome::New);
}

#[test]
fn same_name_in_a_site_lower_key_keeps_it() {
    let mut lab = Lab::new();
    let mut body = |node: &str, number| {
        let Body::Member(mut m) = lab.member_body(node, lab.berlin, 1, NOW) else { unreachable!("a member body") };
        m.name = name("web");
        lab.roster.insert(lab.forge("berlin1", lab.of_paris1(), number, Body::Member(m)));
        key(node).public()
    };
    let (a, b) = (body("web-a", 60), body("web-b", 61));
    let (low, high) = (a.min(b), a.max(b));
    let view = lab.view();
    assert_eq!(view.find("web").expect("one keeps the bare name").node, low);
    let shown = view.members[&high].name.clone();
    assert!(shown.as_str().starts_with("web-") && shown.as_str().len() == 8, "{shown}");
    assert!(view.clashes.contains(&Clash::NodeName {
        site: lab.berlin,
        name: name("web"),
        keeps: low,
        other: high,
        shown: shown.clone()
    }));
    // Once renewed, what was shown is written down and nothing clashes any more.
    let draft = issue::renewal(&view, &key("berlin1").public(), &high, None, NOW).expect("registrar");
    lab.issue("berlin1", draft);
    assert_eq!((lab.view().clashes.len(), &lab.view().members[&high].recorded_name), (0, &shown));
    // A third node that asks for the name gets the next one.
    let admission = issue::Admission {
        node: key("web-c").public(),
        wg: wg("web-c"),
        name: name("web"),
        site: lab.berlin,
        ephemeral: false,
        now: NOW,
    };
    let draft = issue::member(&lab.view(), &key("berlin1").public(), &admission).expect("registrar");
    assert!(matches!(&draft.body, Body::Member(m) if m.name == name("web-2")));
}

#[test]
fn overlapping_ipv4_is_settled_by_key_and_by_site_number() {
    let mut lab = Lab::new();
    let site_block = lab.view().sites[&lab.berlin].ipv4.expect("allotted");
    let mut admit = |node: &str, number, ipv4: &str| {
        let Body::Member(mut m) = lab.member_body(node, lab.berlin, 1, NOW) else { unreachable!("a member body") };
        m.ipv4 = Some(ipv4.parse().expect("a block"));
        lab.roster.insert(lab.forge("berlin1", lab.of_paris1(), number, Body::Member(m)));
        key(node).public()
    };
    let (a, b) = (admit("x1", 60, "10.64.17.0/28"), admit("x2", 61, "10.64.17.0/27"));
    let outside = admit("x3", 62, "10.99.0.0/28");
    let view = lab.view();
    assert_eq!(site_block.to_string(), "10.64.16.0/20");
    assert!(view.members[&a.min(b)].ipv4.is_some());
    assert_eq!((view.members[&a.max(b)].ipv4, view.members[&outside].ipv4), (None, None));
    assert_eq!(view.clashes.len(), 2);
    // A renewal repairs it.
    let draft = issue::renewal(&view, &key("berlin1").public(), &outside, None, NOW).expect("registrar");
    assert!(matches!(&draft.body, Body::Member(m) if m.ipv4.is_some_and(|block| site_block.overlaps(block))));
    // A second site of one name and block.
    let mut body = site_body(0xfff0, "berlin", 1, lab.paris);
    if let Body::Site(s) = &mut body {
        s.ipv4 = Some(site_block);
    }
    lab.roster.insert(lab.forge("paris1", lab.of_owners(), 400, body));
    let view = lab.view();
    let (keeps, other) = (lab.berlin.min(SiteNumber(0xfff0)), lab.berlin.max(SiteNumber(0xfff0)));
    assert_eq!((view.sites[&keeps].ipv4, view.sites[&other].ipv4), (Some(site_block), None));
    assert_eq!(view.sites[&other].name.as_str(), format!("berlin-{}", other.0));
}

#[test]
fn registrar_of_another_site_cannot_capture_a_node() {
    let mut lab = Lab::new();
    lab.admit("paris1", "paris2", lab.paris);
    let paris2 = key("paris2").public();
    let draft = issue::contact(&lab.view(), &paris2, Vec::new(), None).expect("a member");
    lab.issue("paris2", draft);
    let mut body = lab.member_body("paris2", lab.berlin, 1000, NOW);
    if let Body::Member(m) = &mut body {
        m.wg = wg("thief");
    }
    assert_eq!(lab.roster.insert(lab.forge("berlin1", lab.of_paris1(), 80, body)), Outcome::New);
    let view = lab.view();
    assert_eq!((view.members[&paris2].site, view.members[&paris2].wg), (lab.paris, wg("paris2")));
    assert_eq!(view.clashes, [Clash::NodeSite { node: paris2, chosen: lab.paris, other: lab.berlin }]);
}

#[test]
fn block_holds_until_its_author_or_an_admin_lifts_it() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let (berlin1, berlin2, paris1) = (key("berlin1").public(), key("berlin2").public(), key("paris1").public());
    let blocks = |lab: &Lab| lab.view().blocks.len();
    // A node that is no operator may not.
    let under = lab.view().members[&berlin2].under;
    assert_eq!(lab.roster.insert(lab.forge("berlin2", under, 1, block_body(1, 1, false))), Outcome::New);
    assert_eq!(blocks(&lab), 0);
    let refused = issue::block(&lab.view(), &berlin2, crate::Hash([2; 32]), Default::default(), "x");
    assert_eq!(refused, Err(IssueError::NotOperator));
    // As an operator it may, and what it had signed counts.
    let draft = issue::grant(&lab.view(), &paris1, &berlin2, vec![Role::Operator], vec![]).expect("admin");
    lab.issue("paris1", draft);
    assert_eq!(blocks(&lab), 1);
    let draft = issue::block(&lab.view(), &berlin1, crate::Hash([2; 32]), Default::default(), "x").expect("registrar");
    lab.issue("berlin1", draft);
    assert_eq!(blocks(&lab), 2);
    // An operator cannot lift a registrar's block, an admin can.
    lab.roster.insert(lab.forge("berlin2", under, 2, block_body(2, 9, true)));
    assert_eq!(blocks(&lab), 2);
    let draft = issue::lift(&lab.view(), &paris1, &crate::Hash([2; 32])).expect("admin");
    lab.issue("paris1", draft);
    assert_eq!(blocks(&lab), 1);
    let draft = issue::lift(&lab.view(), &berlin2, &crate::Hash([1; 32])).expect("its author");
    lab.issue("berlin2", draft);
    assert_eq!(blocks(&lab), 0);
}

#[test]
fn policy_forks_are_flagged_and_settled_by_the_next_version() {
    let mut lab = Lab::new();
    let paris1 = key("paris1").public();
    let draft = issue::admin(&lab.view(), &key("owner").public(), key("admin2").public(), NOW).expect("owner");
    lab.issue("owner", draft);
    let view = lab.view();
    let other = crate::policy::Document { grace_days: 3, ..Default::default() };
    let a = issue::policy(&view, &paris1, Default::default()).expect("admin");
    let b = issue::policy(&view, &key("admin2").public(), other.clone()).expect("admin");
    lab.issue("paris1", a);
    lab.issue("admin2", b);
    let head = lab.view().policy.expect("a policy");
    assert_eq!((head.version, head.forked), (2, true));
    let draft = issue::policy(&lab.view(), &paris1, other).expect("admin");
    lab.issue("paris1", draft);
    let view = lab.view();
    let head = view.policy.as_ref().expect("a policy");
    assert_eq!((head.version, head.forked, view.grace().as_secs()), (3, false, 3 * DAY));
}

#[test]
fn one_registrar_alone_cannot_push_the_clocks() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    lab.roster.insert(lab.forge(
        "berlin1",
        lab.of_paris1(),
        80,
        lab.member_body("berlin3", lab.berlin, 1, UnixTime(NOW.0 + 100 * DAY)),
    ));
    assert_eq!(lab.view().newest_record_time(), Some(NOW));
}

#[test]
fn find_takes_names_full_names_and_key_parts() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "db", lab.berlin);
    lab.admit("paris1", "web", lab.paris);
    lab.roster.insert(lab.forge("berlin1", lab.of_paris1(), 60, {
        let Body::Member(mut m) = lab.member_body("db-2", lab.berlin, 1, NOW) else { unreachable!("a member body") };
        m.name = name("web");
        Body::Member(m)
    }));
    let view = lab.view();
    assert_eq!(view.find("db").expect("one").node, key("db").public());
    assert_eq!(view.find(&key("db").public().to_string()[..12]).expect("a key").node, key("db").public());
    assert!(matches!(view.find("web"), Err(crate::roster::FindError::Ambiguous { .. })));
    assert_eq!(view.find("web.berlin").expect("one").node, key("db-2").public());
    assert!(matches!(view.find("nobody"), Err(crate::roster::FindError::Unknown { .. })));
}

/// A stolen registrar mints a hundred members with old dates, reused and new numbers, and overwrites a true one.
fn backdating(by_owner: bool) {
    let mut lab = Lab::new();
    for n in 2..12 {
        lab.admit("berlin1", &format!("berlin{n}"), lab.berlin);
    }
    let contact = issue::contact(&lab.view(), &key("berlin2").public(), Vec::new(), None).expect("a member");
    lab.issue("berlin2", contact);
    let (honest, true_view) = (lab.roster.clone(), lab.view());
    let keep = honest.issued_by(&key("berlin1").public());
    let last = keep.iter().map(|r| r.number).max().expect("it signed something");
    let mut forged: Vec<Signed> = (0..100u64)
        .map(|n| {
            let (age, number) = (n % 7 * 30 * DAY, if n % 2 == 0 { last.saturating_sub(n % 5) } else { last + n });
            let body = lab.member_body(&format!("ghost{n}"), lab.berlin, 1, UnixTime(NOW.0 - age));
            lab.forge("berlin1", lab.of_paris1(), number, body)
        })
        .collect();
    for n in 2..12 {
        let mut body = lab.member_body(&format!("berlin{n}"), lab.berlin, 77, UnixTime(NOW.0 - DAY));
        if let Body::Member(m) = &mut body {
            m.wg = wg("thief");
        }
        forged.push(lab.forge("berlin1", lab.of_paris1(), n, body));
    }
    let ghost = Office::of(&key("berlin1").public(), &lab.of_paris1());
    forged.push(lab.forge("ghost1", ghost, 1, contact_body("ghost1", 1)));
    let closing = lab.closing(if by_owner { "owner" } else { "paris1" }, "berlin1", &keep);
    let closing = lab.sign(if by_owner { "owner" } else { "paris1" }, closing);

    let mut replicas = Vec::new();
    for split in [0, 1, 50, forged.len()] {
        for reversed in [false, true] {
            let mut order: Vec<Signed> = forged[..split].to_vec();
            order.push(closing.clone());
            order.extend_from_slice(&forged[split..]);
            if reversed {
                order.reverse();
            }
            let mut replica = honest.clone();
            offer_until_stable(&mut replica, &order);
            replicas.push(replica);
        }
    }
    // One that first hears of the site through the thief.
    let mut late = lab.roster_with(&[]);
    let mut everything = forged.clone();
    everything.extend(honest.records().iter().map(|r| (**r).clone()));
    offer_until_stable(&mut late, &everything);
    assert!(late.view(NOW).members.len() > 100, "positive control: the forgeries are believed until the closing");
    offer_until_stable(&mut late, &[closing]);
    replicas.push(late);

    for replica in &replicas {
        let view = replica.view(NOW);
        assert_eq!(hashes(replica), hashes(&replicas[0]));
        for (node, member) in &true_view.members {
            let Some(now) = view.members.get(node) else { panic!("{} vanished", member.name) };
            let expected = if *node == key("berlin1").public() { Standing::Revoked } else { Standing::Current };
            assert_eq!((now.standing, now.wg, now.serial), (expected, member.wg, member.serial), "{}", member.name);
        }
        assert_eq!(view.members.len(), true_view.members.len(), "no ghost is believed");
        assert!(view.members[&key("berlin2").public()].contact().is_some(), "a true member's own record survives");
        if by_owner {
            assert!(forged.iter().all(|f| !replica.contains(&f.hash())), "forgeries are not even stored");
        }
    }
    // Later forgeries change nothing, and the founder takes the site over.
    let mut lab = Lab { roster: replicas.remove(0), ..lab };
    let before = lab.view();
    let late = lab.forge("berlin1", lab.of_paris1(), last + 999, lab.member_body("ghost999", lab.berlin, 1, NOW));
    let outcome = lab.roster.insert(late);
    assert_eq!(outcome == Outcome::Refused(RefusedReason::Closed), by_owner);
    assert_eq!(lab.view().members, before.members);
    lab.renew("paris1", "berlin2", UnixTime(NOW.0 + DAY / 2));
    assert_eq!(lab.view().find("berlin2").expect("renewed").registrar, key("paris1").public());
}

#[test]
fn backdated_members_of_a_registrar_closed_by_an_owner_vanish() {
    backdating(true);
}

#[test]
fn backdated_members_of_a_registrar_closed_by_an_admin_are_not_believed() {
    backdating(false);
}

#[test]
fn several_closings_leave_the_intersection_of_their_estates() {
    let mut lab = Lab::new();
    for n in 2..5 {
        lab.admit("berlin1", &format!("berlin{n}"), lab.berlin);
    }
    let all = lab.roster.issued_by(&key("berlin1").public());
    let of = |node: &str| {
        let node = key(node).public();
        let keeps = move |r: &&Arc<Signed>| !matches!(&r.body, Body::Member(m) if m.node == node);
        all.iter().filter(keeps).cloned().collect::<Vec<_>>()
    };
    let first = lab.closing("owner", "berlin1", &of("berlin2"));
    let first = lab.sign("owner", first);
    let second = lab.closing("recovery", "berlin1", &of("berlin3"));
    let second = lab.sign("recovery", second);
    let mut other = lab.roster.clone();
    for record in [&first, &second] {
        assert_eq!(lab.roster.insert(record.clone()), Outcome::New);
    }
    for record in [&second, &first] {
        assert_eq!(other.insert(record.clone()), Outcome::New);
    }
    assert_eq!(hashes(&lab.roster), hashes(&other));
    let names: Vec<_> = lab.view().reachable().map(|m| m.name.to_string()).collect();
    assert!(names.contains(&"berlin4".to_owned()) && !names.contains(&"berlin2".to_owned()), "{names:?}");
    assert!(!names.contains(&"berlin3".to_owned()));
    assert_eq!(lab.view(), other.view(NOW).with_version(lab.roster.version()));
}

#[test]
fn malformed_estates_are_refused() {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let all = lab.roster.issued_by(&key("berlin1").public());
    let good = lab.closing("owner", "berlin1", &all);
    let Body::Tombstone(t) = good.body else { unreachable!("a closing") };
    let estate = t.estate.clone().expect("of an issuer");
    let foreign = lab.roster.issued_by(&key("paris1").public())[0].encode();
    let mut bad_signature = Signed::decode(&estate.records[0]).expect("good");
    bad_signature.signature[0] ^= 1;
    let mut doubled = estate.records.clone();
    doubled.push(doubled[0].clone());
    for records in [vec![foreign.into()], vec![bad_signature.encode().into()], doubled, vec![vec![0xff].into()]] {
        let tombstone = Tombstone { estate: Some(Estate { last: u64::MAX, records }), ..t.clone() };
        let record = lab.forge("owner", Office::root(&lab.vdc), 500, Body::Tombstone(tombstone));
        assert!(matches!(lab.roster.insert(record), Outcome::Refused(RefusedReason::Estate(_))));
    }
    let tombstone = Tombstone { estate: Some(Estate { last: 0, ..estate }), ..t };
    let record = lab.forge("owner", Office::root(&lab.vdc), 501, Body::Tombstone(tombstone));
    assert!(matches!(lab.roster.insert(record), Outcome::Refused(RefusedReason::Estate(_))));
}

#[test]
fn offices_are_bounded() {
    let mut lab = Lab::new();
    let under = lab.view().members[&key("berlin1").public()].under;
    for n in 0..crate::roster::NODE_BLOCKS_MAX {
        let mut body = block_body(1, 1, false);
        if let Body::Block(b) = &mut body {
            b.id.0[..4].copy_from_slice(&n.to_be_bytes());
        }
        lab.roster.insert(lab.forge("berlin1", under, u64::from(n) + 1, body));
    }
    let outcome = lab.roster.insert(lab.forge("berlin1", under, 5000, block_body(9, 1, false)));
    assert_eq!(outcome, Outcome::Refused(RefusedReason::Full));
    assert_eq!(lab.roster.insert(lab.forge("berlin1", under, 5001, contact_body("berlin1", 1))), Outcome::New);
}
