//! The join's laws over generated histories: honest and forged statements by every rank, closings by owners and admins,
//! in any order and any split between replicas.

use proptest::prelude::*;

use super::lab::*;
use crate::record::{Authority, Body, Estate, Home, Role, Tombstone};
use crate::roster::{Roster, Standing, issue};
use crate::{Key, Office, Signed, UnixTime};

const ADMINS: [&str; 3] = ["paris1", "admin2", "admin3"];
const REGISTRARS: [&str; 3] = ["berlin1", "reg2", "reg3"];
const NODES: [&str; 4] = ["node1", "node2", "node3", "berlin1"];

/// One generated statement. Small ranges make displacement, equal serials and revival frequent.
#[derive(Clone, Debug)]
enum Step {
    Admin {
        subject: usize,
        serial: u64,
    },
    Registrar {
        by: usize,
        subject: usize,
        site: bool,
        serial: u64,
    },
    Site {
        by: usize,
        serial: u64,
        salt: u8,
    },
    Member {
        by: usize,
        under: usize,
        node: usize,
        serial: u64,
        salt: u8,
        age: u64,
    },
    Contact {
        node: usize,
        by: usize,
        under: usize,
        serial: u64,
    },
    Grant {
        by: usize,
        node: usize,
        serial: u64,
    },
    End {
        by: usize,
        node: usize,
        floor: u64,
    },
    Leave {
        node: usize,
        by: usize,
        under: usize,
        floor: u64,
    },
    Block {
        by: usize,
        id: u8,
        serial: u64,
        lifted: bool,
    },
    /// By an admin, or by a registrar under one.
    Found {
        by: usize,
        under: Option<usize>,
        vdc: bool,
        node: usize,
        serial: u64,
    },
    /// Closes with those of the subject's records so far that the mask selects.
    Close {
        by: Option<usize>,
        subject: usize,
        admin: bool,
        mask: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (i, s) = (0..3usize, 1..4u64);
    prop_oneof![
        2 => (i.clone(), s.clone()).prop_map(|(subject, serial)| Step::Admin { subject, serial }),
        3 => (i.clone(), i.clone(), any::<bool>(), s.clone())
            .prop_map(|(by, subject, site, serial)| Step::Registrar { by, subject, site, serial }),
        1 => (i.clone(), s.clone(), any::<u8>()).prop_map(|(by, serial, salt)| Step::Site { by, serial, salt }),
        6 => (i.clone(), i.clone(), 0..4usize, s.clone(), any::<u8>(), 0..3u64)
            .prop_map(|(by, under, node, serial, salt, age)| Step::Member { by, under, node, serial, salt, age }),
        2 => (0..4usize, i.clone(), i.clone(), s.clone())
            .prop_map(|(node, by, under, serial)| Step::Contact { node, by, under, serial }),
        1 => (i.clone(), 0..4usize, s.clone()).prop_map(|(by, node, serial)| Step::Grant { by, node, serial }),
        1 => (i.clone(), 0..4usize, 0..4u64).prop_map(|(by, node, floor)| Step::End { by, node, floor }),
        1 => (0..4usize, i.clone(), i.clone(), 0..4u64)
            .prop_map(|(node, by, under, floor)| Step::Leave { node, by, under, floor }),
        1 => (i.clone(), 0..3u8, s.clone(), any::<bool>()).prop_map(|(by, id, serial, lifted)| Step::Block { by, id, serial, lifted }),
        3 => (i.clone(), proptest::option::of(i.clone()), any::<bool>(), 0..4usize, s.clone())
            .prop_map(|(by, under, vdc, node, serial)| Step::Found { by, under, vdc, node, serial }),
        2 => (proptest::option::of(i.clone()), i, any::<bool>(), any::<u64>())
            .prop_map(|(by, subject, admin, mask)| Step::Close { by, subject, admin, mask }),
    ]
}

/// Signs the steps' statements; none of them is checked for the right to say it.
fn history(lab: &Lab, steps: &[Step]) -> Vec<Signed> {
    let root = Office::root(&lab.vdc);
    let owners = lab.of_owners();
    let admin = |i: usize| Office::of(&key(ADMINS[i]).public(), &owners);
    let registrar = |i: usize, under: usize| Office::of(&key(REGISTRARS[i]).public(), &admin(under));
    let mut records: Vec<Signed> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        // Numbers repeat: issuers here are careless or stolen.
        let number = 1 + number as u64 / 2;
        let (by, under, body) = match *step {
            Step::Admin { subject, serial } => {
                ("owner", root, delegation_body(ADMINS[subject], Authority::Admin, serial, 365))
            }
            Step::Registrar { by, subject, site, serial } => {
                let site = if site { lab.berlin } else { lab.paris };
                let body = delegation_body(REGISTRARS[subject], Authority::Registrar(site), serial, 365);
                (ADMINS[by], owners, body)
            }
            Step::Site { by, serial, salt } => {
                let body = site_body(lab.berlin.0, if salt % 2 == 0 { "berlin" } else { "bonn" }, serial, lab.paris);
                (ADMINS[by], owners, body)
            }
            Step::Member { by, under, node, serial, salt, age } => {
                let mut body = lab.member_body(NODES[node], lab.berlin, serial, UnixTime(NOW.0 - age * DAY));
                if let Body::Member(m) = &mut body {
                    m.wg.0[0] = salt;
                }
                (REGISTRARS[by], admin(under), body)
            }
            Step::Contact { node, by, under, serial } => {
                (NODES[node], registrar(by, under), contact_body(NODES[node], serial))
            }
            Step::Grant { by, node, serial } => {
                (ADMINS[by], owners, grant_body(NODES[node], serial, vec![Role::Operator]))
            }
            Step::End { by, node, floor } => (ADMINS[by], owners, tombstone_body(key(NODES[node]).public(), floor)),
            Step::Leave { node, by, under, floor } => {
                (NODES[node], registrar(by, under), tombstone_body(key(NODES[node]).public(), floor))
            }
            Step::Block { by, id, serial, lifted } => (ADMINS[by], owners, block_body(id, serial, lifted)),
            Step::Found { by, under, vdc, node, serial } => {
                let home = if vdc { Home::Vdc } else { Home::Site(lab.berlin) };
                let body = founding_body(home, serial, NODES[node], NOW);
                match under {
                    Some(under) => (REGISTRARS[by], admin(under), body),
                    None => (ADMINS[by], owners, body),
                }
            }
            Step::Close { by, subject, admin, mask } => {
                let subject = key(if admin { ADMINS[subject] } else { REGISTRARS[subject] }).public();
                let estate = Some(estate(&records, &subject, mask, root, by.is_none()));
                let body = Body::Tombstone(Tombstone { subject, floor: 0, at: NOW, reason: String::new(), estate });
                match by {
                    Some(by) => (ADMINS[by], owners, body),
                    None => ("owner", root, body),
                }
            }
        };
        records.push(lab.forge(by, under, number, body));
    }
    records
}

fn estate(records: &[Signed], subject: &Key, mask: u64, root: Office, nested: bool) -> Estate {
    let chosen = |(i, r): &(usize, &Signed)| r.issuer == *subject && r.under != root && mask >> (i % 64) & 1 == 1;
    let mut kept: Vec<_> = records.iter().enumerate().filter(chosen).map(|(_, r)| r).collect();
    // Only an owners' closing holds closings, and those hold none.
    let closes = |bytes: &minicbor::bytes::ByteVec| {
        matches!(Signed::decode(bytes).expect("encoded here").body, Body::Tombstone(Tombstone { estate: Some(_), .. }))
    };
    kept.retain(|r| match &r.body {
        Body::Tombstone(Tombstone { estate: Some(inner), .. }) => nested && !inner.records.iter().any(closes),
        _ => true,
    });
    kept.sort_by_key(|r| r.hash());
    Estate { last: u64::MAX, records: kept.iter().map(|r| r.encode().into()).collect() }
}

fn join(a: &Roster, b: &Roster) -> Roster {
    let mut joined = a.clone();
    joined.merge(b).expect("one VDC");
    joined
}

fn replica(lab: &Lab, records: &[Signed], mask: u64) -> Roster {
    let chosen: Vec<_> =
        records.iter().enumerate().filter(|(i, _)| mask >> (i % 64) & 1 == 1).map(|(_, r)| r.clone()).collect();
    let mut roster = lab.roster.clone();
    offer_until_stable(&mut roster, &chosen);
    roster
}

proptest! {
    /// Commutative, associative, idempotent; and the view follows from the set.
    #[test]
    fn join_is_a_semilattice(
        steps in proptest::collection::vec(step(), 4..48),
        masks in (any::<u64>(), any::<u64>(), any::<u64>()),
    ) {
        let lab = Lab::new();
        let records = history(&lab, &steps);
        let (a, b, c) = (replica(&lab, &records, masks.0), replica(&lab, &records, masks.1), replica(&lab, &records, masks.2));
        prop_assert_eq!(hashes(&join(&a, &a)), hashes(&a));
        prop_assert_eq!(hashes(&join(&a, &b)), hashes(&join(&b, &a)));
        let (left, right) = (join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
        prop_assert_eq!(hashes(&left), hashes(&right));
        let (left, right) = (left.view(NOW).with_version(0), right.view(NOW).with_version(0));
        prop_assert_eq!(left, right);
    }

    /// Offering all records in any order until nothing changes gives one result, whatever was exchanged before.
    #[test]
    fn order_of_arrival_does_not_matter(
        steps in proptest::collection::vec(step(), 4..32),
        shuffled in any::<u64>(),
        mask in any::<u64>(),
    ) {
        let lab = Lab::new();
        let records = history(&lab, &steps);
        let forward = replica(&lab, &records, u64::MAX);
        let mut order = records.clone();
        order.sort_by_key(|r| blake3::keyed_hash(&[shuffled.to_le_bytes()[0]; 32], &r.hash().0).to_hex());
        let mut other = lab.roster.clone();
        offer_until_stable(&mut other, &order);
        prop_assert_eq!(hashes(&forward), hashes(&other));
        let mut exchanged = join(&replica(&lab, &records, mask), &replica(&lab, &records, !mask));
        offer_until_stable(&mut exchanged, &records);
        prop_assert_eq!(hashes(&forward), hashes(&exchanged));
    }

    /// What a roster sends in its order is accepted by an empty one without refusals, and rebuilds it.
    #[test]
    fn sending_order_rebuilds(steps in proptest::collection::vec(step(), 4..48)) {
        let lab = Lab::new();
        let full = replica(&lab, &history(&lab, &steps), u64::MAX);
        let copy = lab.roster_with(&full.records());
        prop_assert_eq!(hashes(&copy), hashes(&full));
    }

    /// Whatever is renewed how often: a role that was taken is not held, and one that was not given neither.
    #[test]
    fn renewal_never_restores_a_removed_right(ops in proptest::collection::vec(0..4u8, 1..24)) {
        let mut lab = Lab::new();
        lab.admit("berlin1", "node1", lab.berlin);
        let (paris1, node) = (key("paris1").public(), key("node1").public());
        let (mut granted, mut ended, mut now) = (false, false, NOW);
        for op in ops {
            match op {
                0 if !ended => {
                    let draft = issue::grant(&lab.view(), &paris1, &node, vec![Role::Operator], vec![]).expect("admin");
                    lab.issue("paris1", draft);
                    granted = true;
                }
                1 if !ended => {
                    let draft = issue::grant(&lab.view(), &paris1, &node, vec![], vec![]).expect("admin");
                    lab.issue("paris1", draft);
                    granted = false;
                }
                2 => {
                    let draft = issue::leave(&lab.view(), &node, now);
                    if let Ok(draft) = draft {
                        lab.issue("node1", draft);
                        (granted, ended) = (false, true);
                    }
                }
                0 | 1 => {}
                _ => {
                    now = UnixTime(now.0 + 60);
                    lab.admit("berlin1", "node1", lab.berlin);
                    ended = false;
                }
            }
            let view = lab.view();
            let member = &view.members[&node];
            prop_assert_eq!(member.standing == Standing::Revoked, ended);
            prop_assert_eq!(member.roles.contains(&Role::Operator), granted);
        }
    }
}

/// The case that a lattice without offices fails: a right is voided, and given anew by somebody else.
#[test]
fn revived_right_is_associative() {
    let lab = Lab::new();
    let steps = [
        Step::Admin { subject: 1, serial: 1 },
        Step::Registrar { by: 1, subject: 1, site: true, serial: 1 },
        Step::Member { by: 1, under: 1, node: 0, serial: 1, salt: 0, age: 0 },
        Step::Close { by: None, subject: 1, admin: true, mask: 0 },
        Step::Registrar { by: 0, subject: 1, site: true, serial: 1 },
    ];
    let records = history(&lab, &steps);
    let (x, y, z) =
        (replica(&lab, &records, 0b00111), replica(&lab, &records, 0b01001), replica(&lab, &records, 0b10000));
    assert_eq!(hashes(&join(&join(&x, &y), &z)), hashes(&join(&x, &join(&y, &z))));
}

#[test]
fn merge_refuses_another_vdc() {
    let lab = Lab::new();
    let other = issue::found(issue::Founding {
        name: name("other"),
        site: name("paris"),
        node_name: name("paris1"),
        owner: &key("owner"),
        recovery: key("recovery").public(),
        node: &key("paris1"),
        wg: wg("paris1"),
        nonce: crate::Hash([9; 32]),
        ipv4: None,
        now: NOW,
    });
    assert!(lab.roster.clone().merge(&other.roster).is_err());
}
