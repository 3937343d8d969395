//! One committed record of each kind: its bytes may never change meaning, only a new format version may.

use super::lab::*;
use crate::record::{Authority, Body, Home, Policy, Role};
use crate::roster::issue;
use crate::{Office, Signed};

const COMMITTED: &str = include_str!("../../../tests/golden/records.txt");

/// The golden records as they are signed today.
fn records() -> Vec<(&'static str, Signed)> {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    let (root, owners, paris1, berlin1) = (Office::root(&lab.vdc), lab.of_owners(), lab.of_paris1(), lab.of_berlin1());
    let policy = Policy { version: 1, previous: None, document: Default::default() };
    let keep = lab.roster.issued_by(&key("berlin1").public());
    let closing = lab.closing("owner", "berlin1", &keep[..1]).body;
    vec![
        ("genesis", (**lab.roster.genesis_record()).clone()),
        ("delegation-admin", lab.forge("owner", root, 2, delegation_body("paris1", Authority::Admin, 1, 365))),
        (
            "delegation-registrar",
            lab.forge("paris1", owners, 1, delegation_body("r", Authority::Registrar(lab.berlin), 1, 9)),
        ),
        ("site", lab.forge("paris1", owners, 2, site_body(258, "berlin", 1, lab.paris))),
        ("member", lab.forge("paris1", paris1, 4, lab.member_body("berlin1", lab.berlin, 1, NOW))),
        ("grant", lab.forge("paris1", owners, 5, grant_body("berlin1", 1, vec![Role::Host, Role::Operator]))),
        ("contact", lab.forge("berlin2", berlin1, 1, contact_body("berlin2", 1))),
        ("exposure", lab.forge("berlin2", berlin1, 2, exposure_body("berlin2", 1, 80))),
        ("exposure-workloads", lab.forge("berlin2", berlin1, 4, workloads_body("berlin2", 2))),
        ("tombstone", lab.forge("berlin2", berlin1, 3, tombstone_body(key("berlin2").public(), 1))),
        ("tombstone-estate", lab.forge("owner", root, 3, closing)),
        ("block", lab.forge("paris1", owners, 6, block_body(7, 1, false))),
        ("policy", lab.forge("paris1", owners, 3, Body::Policy(policy))),
        ("founding-vdc", lab.forge("paris1", owners, 7, founding_body(Home::Vdc, 1, "paris1", NOW))),
        ("founding-site", lab.forge("berlin1", paris1, 8, founding_body(Home::Site(lab.berlin), 2, "berlin2", NOW))),
    ]
}

#[test]
fn golden_records_decode_and_encode_identically() {
    let lines: Vec<(&str, Vec<u8>)> = COMMITTED
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(kind, hex)| (kind, data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("hexadecimal")))
        .collect();
    let today = records();
    let text: String =
        today.iter().map(|(k, r)| format!("{k} {}\n", data_encoding::HEXLOWER.encode(&r.encode()))).collect();
    assert_eq!(lines.len(), today.len(), "vdc/tests/golden/records.txt should hold:\n{text}");
    let vdc = *Lab::new().roster.vdc_id();
    for ((kind, bytes), (expected, record)) in lines.iter().zip(&today) {
        assert_eq!(kind, expected);
        let decoded = Signed::decode(bytes).expect("committed records decode in every release");
        assert_eq!(decoded.encode(), *bytes, "{kind}");
        assert!(decoded.verify(&vdc), "{kind}: the signed message changed");
        assert_eq!(decoded, *record, "{kind}: vdc/tests/golden/records.txt would be:\n{text}");
    }
}

#[test]
fn every_prefix_and_every_flipped_byte_is_refused_or_fails_verification() {
    for (kind, record) in records() {
        let bytes = record.encode();
        let vdc = *Lab::new().roster.vdc_id();
        for end in 0..bytes.len() {
            assert!(Signed::decode(&bytes[..end]).is_err(), "{kind} cut at {end}");
        }
        for index in 0..bytes.len().min(400) {
            let mut flipped = bytes.clone();
            flipped[index] ^= 1 << (index % 8);
            if let Ok(decoded) = Signed::decode(&flipped) {
                assert!(!decoded.verify(&vdc), "{kind} flipped at {index}");
            }
        }
        assert!(Signed::decode(&[bytes.clone(), vec![0]].concat()).is_err(), "{kind} with a byte more");
    }
}

#[test]
fn no_options_are_issued_beyond_their_limits() {
    let lab = Lab::new();
    let ports = (0..2000u16).map(|n| crate::record::PortRange {
        protocol: crate::record::Protocol::Udp,
        first: n * 2,
        last: n * 2,
    });
    let paris1 = key("paris1").public();
    let many = issue::exposure(&lab.view(), &paris1, ports.collect(), vec![]);
    assert!(matches!(many, Err(issue::IssueError::TooLong(_))));
    let labels = (0..65).map(|n| name(&format!("l{n}"))).collect();
    assert!(matches!(issue::grant(&lab.view(), &paris1, &paris1, vec![], labels), Err(issue::IssueError::TooLong(_))));
    let bad = vec![crate::record::ContactAddress::Dns("not a name".into(), 1)];
    assert!(matches!(issue::contact(&lab.view(), &paris1, bad, None), Err(issue::IssueError::TooLong(_))));
}
