//! Taking over with an owner key, second admins, and how far a closed issuer's records count.

use std::time::Duration;

use super::lab::*;
use crate::record::{Authority, Body};
use crate::roster::issue::{self, IssueError};
use crate::roster::{MemberView, Outcome, RefusedReason, Standing};
use crate::{Office, UnixTime};

/// Makes a node admin by the key from the safe.
fn recover(lab: &mut Lab, node: &str) {
    let draft = issue::admin(&lab.view(), &key("recovery").public(), key(node).public(), NOW).expect("an owner");
    lab.issue("recovery", draft);
}

#[test]
fn owner_key_of_another_vdc_makes_no_admin() {
    let mut lab = Lab::new();
    let berlin1 = key("berlin1").public();
    let foreign = key("owner of another VDC");
    assert_eq!(issue::admin(&lab.view(), &foreign.public(), berlin1, NOW), Err(IssueError::NotAdmin));
    assert_eq!(issue::withdrawal(&lab.view(), &foreign.public(), berlin1, NOW), Err(IssueError::NotAdmin));
    let body = delegation_body("berlin1", Authority::Admin, 1, 365);
    let forged = lab.forge("owner of another VDC", Office::root(&lab.vdc), 1, body);
    assert_eq!(lab.roster.insert(forged), Outcome::Refused(RefusedReason::NotAllowed));
    assert!(lab.view().admin_due(&berlin1, Duration::ZERO));
}

#[test]
fn recovery_on_two_nodes_at_once_makes_two_admins() {
    let mut here = Lab::new();
    here.admit("berlin1", "berlin2", here.berlin);
    let mut there = Lab { roster: here.roster.clone(), ..Lab::new() };
    recover(&mut here, "berlin1");
    recover(&mut there, "berlin2");
    here.roster.merge(&there.roster).expect("one VDC");
    there.roster.merge(&here.roster).expect("one VDC");
    assert_eq!(hashes(&here.roster), hashes(&there.roster));
    for lab in [&here, &there] {
        for node in ["paris1", "berlin1", "berlin2"] {
            assert!(lab.view().is_admin(&key(node).public()), "{node}");
        }
    }
    // Neither can close the other: that takes the owners.
    let refused = issue::revocation(&here.view(), &key("berlin1").public(), &key("berlin2").public(), "", NOW, &[]);
    assert!(matches!(refused, Err(IssueError::RankTooLow { rank: issue::RANK_ADMIN, .. })), "{refused:?}");
}

#[test]
fn recovery_again_renews_and_keeps_the_beginning() {
    let mut lab = Lab::new();
    recover(&mut lab, "berlin1");
    let berlin1 = key("berlin1").public();
    assert!(!lab.view().admin_due(&berlin1, Duration::from_secs(300 * DAY)));
    assert!(lab.view().admin_due(&berlin1, Duration::from_secs(366 * DAY)));
    let late = UnixTime(NOW.0 + 400 * DAY);
    assert!(lab.roster.view(late).admin_due(&berlin1, Duration::ZERO), "it has ended");
    let draft = issue::admin(&lab.roster.view(late), &key("recovery").public(), berlin1, late).expect("an owner");
    lab.issue("recovery", draft);
    let view = lab.roster.view(late);
    let held = view.admin(&berlin1).expect("an admin again");
    assert_eq!((held.delegation.not_before, held.delegation.serial), (NOW, 2));
}

#[test]
fn recovered_admin_closes_the_first_box_and_its_estate_stays() {
    let mut lab = Lab::new();
    let draft = issue::site(&lab.view(), &key("paris1").public(), &name("lisbon"), lab.paris, NOW).expect("admin");
    lab.issue("paris1", draft);
    let lisbon = lab.view().site_by_name("lisbon").expect("added").number;
    lab.admit("paris1", "lisbon1", lisbon);
    lab.admit("paris1", "paris2", lab.paris);
    let (paris1, berlin1, lisbon1) = (key("paris1").public(), key("berlin1").public(), key("lisbon1").public());
    recover(&mut lab, "lisbon1");
    assert_eq!(lab.view().sites_to_serve(lisbon), [lisbon], "paris is served as long as its registrar is not closed");
    assert_eq!(lab.view().sites_to_serve(lab.berlin), [], "berlin has its own");
    // By its own rank the new admin cannot end the old one; the key from the safe can.
    let keep = lab.roster.issued_by(&paris1);
    let refused = issue::revocation(&lab.view(), &lisbon1, &paris1, "lost", NOW, &keep);
    assert!(matches!(refused, Err(IssueError::RankTooLow { .. })), "{refused:?}");
    let before = lab.view();
    let draft = lab.closing("recovery", "paris1", &keep);
    lab.issue("recovery", draft);
    let view = lab.view();
    assert!(!view.is_admin(&paris1) && view.is_closed(&paris1) && !view.members[&paris1].standing.is_reachable());
    for (node, member) in before.members.iter().filter(|(node, _)| **node != paris1) {
        assert_eq!((view.members[node].standing, &view.members[node].name), (Standing::Current, &member.name));
    }
    assert_eq!(view.sites.keys().collect::<Vec<_>>(), before.sites.keys().collect::<Vec<_>>());
    assert_eq!(view.policy.as_ref().map(|p| p.record), before.policy.as_ref().map(|p| p.record));
    // What it signed can still be listed, and a second closing does not take it for nothing.
    assert_eq!(lab.roster.issued_by(&paris1).len(), keep.len());
    // Paris and lisbon, which paris founded, have nobody; the new admin takes both and renews their nodes.
    let mut unserved = vec![lab.paris, lisbon];
    unserved.sort_unstable();
    assert_eq!(view.unserved(), unserved);
    let mut wanted = vec![lab.paris, lisbon];
    wanted.sort_unstable();
    assert_eq!(view.sites_to_serve(lisbon), wanted);
    assert_eq!(view.sites_to_serve(lab.berlin), [lab.paris], "a registrar of paris serves lisbon too");
    for site in wanted {
        let draft = issue::registrar(&lab.view(), &lisbon1, lisbon1, site, NOW).expect("an admin");
        lab.issue("lisbon1", draft);
    }
    assert_eq!(lab.view().unserved(), []);
    let later = UnixTime(NOW.0 + DAY / 2);
    for node in ["lisbon1", "paris2"] {
        lab.renew("lisbon1", node, later);
        assert_eq!(lab.roster.view(later).members[&key(node).public()].serial, 2, "{node}");
    }
    lab.admit("lisbon1", "paris3", lab.paris);
    let draft = issue::grant(&lab.view(), &lisbon1, &berlin1, vec![], vec![name("web")]).expect("an admin");
    lab.issue("lisbon1", draft);
    // The others believe all of it.
    let records = lab.roster.records();
    let other = lab.roster_with(&records);
    assert_eq!(hashes(&other), hashes(&lab.roster));
    assert_eq!(other.view(NOW).members, lab.view().members);
}

#[test]
fn withdrawn_admin_signs_nothing_more_and_can_be_made_again() {
    let mut lab = Lab::new();
    let berlin1 = key("berlin1").public();
    recover(&mut lab, "berlin1");
    let draft = issue::site(&lab.view(), &berlin1, &name("lisbon"), lab.berlin, NOW).expect("an admin");
    lab.issue("berlin1", draft);
    let draft = issue::withdrawal(&lab.view(), &key("owner").public(), berlin1, NOW).expect("another owner");
    assert!(matches!(&draft.body, Body::Delegation(d) if d.is_withdrawn()), "{draft:?}");
    lab.issue("owner", draft);
    let view = lab.view();
    assert!(!view.is_admin(&berlin1), "at once, even in the second in which it was made");
    assert_eq!(issue::grant(&view, &berlin1, &berlin1, vec![], vec![]), Err(IssueError::NotAdmin));
    assert!(view.site_by_name("lisbon").is_some(), "what it founded stays");
    assert_eq!(view.members[&berlin1].standing, Standing::Current, "it stays a member and registrar");
    assert!(!view.is_closed(&berlin1));
    recover(&mut lab, "berlin1");
    assert!(lab.view().is_admin(&berlin1));
}

#[test]
fn keeping_through_a_number_voids_what_came_later_and_the_voided_come_back() {
    let mut lab = Lab::new();
    let kept = lab.admit("berlin1", "berlin2", lab.berlin);
    lab.admit("berlin1", "berlin3", lab.berlin);
    lab.admit("berlin1", "minted", lab.berlin);
    let keep: Vec<_> = lab.roster.issued_by(&key("berlin1").public());
    let keep: Vec<_> = keep.into_iter().filter(|r| r.number <= kept.number).collect();
    // The same by an owner, which is final, and by an admin.
    for signer in ["owner", "paris1"] {
        let mut lab = Lab { roster: lab.roster.clone(), ..Lab::new() };
        lab.number = 1000;
        let draft = lab.closing(signer, "berlin1", &keep);
        lab.issue(signer, draft);
        let view = lab.view();
        let stands = |name: &str| view.members.get(&key(name).public()).map(|m: &MemberView| m.standing);
        assert_eq!(stands("berlin2"), Some(Standing::Current), "{signer}");
        assert_eq!((stands("berlin3"), stands("minted")), (None, None), "{signer}");
        // The site is served by its founder, which lets the honest one in again: with its old key or with a new one.
        for node in ["berlin3", "berlin4"] {
            lab.admit("paris1", node, lab.berlin);
            let view = lab.view();
            let back = &view.members[&key(node).public()];
            assert_eq!((back.standing, back.registrar), (Standing::Current, key("paris1").public()), "{signer}");
        }
        lab.renew("paris1", "berlin2", UnixTime(NOW.0 + DAY / 2));
        assert!(!lab.view().members.contains_key(&key("minted").public()));
    }
}
