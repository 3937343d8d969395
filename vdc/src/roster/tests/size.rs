//! The roster of 1,000 nodes: bytes and work.

use std::sync::Arc;

use super::lab::*;
use crate::record::Body;
use crate::roster::{Outcome, Roster};
use crate::{Ipv4Block, Office, Signed};

/// A roster of `nodes` members, each with a member, a contact and an exposure record.
fn large(nodes: u16) -> Roster {
    let mut lab = Lab::new();
    let range: Ipv4Block = "10.64.0.0/12".parse().expect("a block");
    let of_registrar = Office::of(&key("paris1").public(), &lab.of_paris1());
    for n in 0..nodes {
        let node = format!("node{n}");
        let mut body = lab.member_body(&node, lab.paris, 1, NOW);
        if let Body::Member(m) = &mut body {
            m.ipv4 = range.sub_block(28, u32::from(n));
        }
        let number = u64::from(n) + 1000;
        let records = [
            lab.forge("paris1", lab.of_paris1(), number, body),
            lab.forge(&node, of_registrar, 1, contact_body(&node, 1)),
            lab.forge(&node, of_registrar, 2, exposure_body(&node, 1, n)),
        ];
        for record in records {
            // Through bytes, as records come: their vectors then have no slack that a builder left.
            let record = Signed::decode(&record.encode()).expect("canonical");
            assert_eq!(lab.roster.insert(record), Outcome::New);
        }
    }
    lab.roster
}

#[test]
fn roster_of_1000_nodes_stays_within_2_mb() {
    let roster = large(1000);
    assert!(roster.len() > 3000);
    let bytes = roster.heap_bytes();
    assert!(bytes <= 2_000_000, "{bytes} bytes, {} per record", bytes / roster.len());
    assert_eq!(roster.view(NOW).reachable().count(), 1002);
}

#[test]
fn known_and_superseded_records_cost_no_signature_check() {
    let roster = large(20);
    let mut verifier = crate::roster::Verifier::new(4096);
    let records = roster.records();
    let mut replicas: Vec<_> =
        (0..10).map(|_| Roster::new((**roster.genesis_record()).clone()).expect("genesis")).collect();
    for replica in &mut replicas {
        for record in &records {
            replica.insert_with(&mut verifier, Arc::clone(record));
            replica.insert_with(&mut verifier, Arc::clone(record));
        }
        assert_eq!(hashes(replica), hashes(&roster));
    }
    // Each once for all replicas; the genesis record was there already.
    assert_eq!(verifier.checks(), records.len() as u64 - 1);
}
