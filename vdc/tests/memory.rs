//! What a roster of 1,000 nodes really takes, beside what it accounts for itself.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use vdc::record::{
    Authority, Contact, ContactAddress, Delegation, Exposure, Genesis, Member, PortRange, Protocol, Site,
};
use vdc::roster::{Outcome, Roster, Verifier};
use vdc::{Body, Hash, Key, Name, Office, Signed, SigningKey, SiteNumber, UnixTime, WgKey};

const NOW: UnixTime = UnixTime(1_800_000_000);
const LATER: UnixTime = UnixTime(1_830_000_000);

fn key(n: u32) -> SigningKey {
    SigningKey::from_seed(&blake3::derive_key("meshd test key", &n.to_le_bytes()))
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a literal name")
}

/// The encoded records of a VDC of `nodes` nodes with a member, a contact and an exposure record each, in sending order.
fn records(nodes: u32) -> Vec<Vec<u8>> {
    let (owner, admin) = (key(1_000_001), key(1_000_002));
    let ipv4 = Some("10.64.0.0/12".parse().expect("a block"));
    let genesis = Genesis {
        name: name("acme"),
        owners: vec![owner.public()],
        threshold: 1,
        created: NOW,
        nonce: Hash([1; 32]),
        ipv4,
    };
    let vdc = genesis.vdc_id();
    let (root, owners, site) = (Office::root(&vdc), Office::owners(&vdc), SiteNumber(7));
    let of_admin = Office::of(&admin.public(), &owners);
    let of_registrar = Office::of(&admin.public(), &of_admin);
    let delegation = |authority| {
        let subject = admin.public();
        Body::Delegation(Delegation { subject, authority, serial: 1, not_before: NOW, not_after: LATER })
    };
    let the_site = Site { number: site, name: name("paris"), serial: 1, ipv4, founder: site, created: NOW };
    let mut records = vec![
        Signed::sign(&vdc, &owner, root, 1, Body::Genesis(genesis), &[]),
        Signed::sign(&vdc, &owner, root, 2, delegation(Authority::Admin), &[]),
        Signed::sign(&vdc, &admin, owners, 1, delegation(Authority::Registrar(site)), &[]),
        Signed::sign(&vdc, &admin, owners, 2, Body::Site(the_site), &[]),
    ];
    for n in 0..nodes {
        let node = key(n);
        let member = Member {
            node: node.public(),
            wg: WgKey(blake3::derive_key("meshd test wireguard key", &n.to_le_bytes())),
            site,
            name: name(&format!("machine-{n}")),
            serial: 1,
            bump: 0,
            ipv4: ipv4.and_then(|range| range.sub_block(28, n)),
            not_before: NOW,
            not_after: LATER,
            ephemeral: false,
        };
        let addresses = vec![
            ContactAddress::Ip([198, 51, 100, 7].into(), 7000),
            ContactAddress::Dns(format!("machine-{n}.example.org"), 7000),
        ];
        let contact = Contact { node: node.public(), serial: 1, addresses, door_port: None };
        let ports = vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }];
        let exposure = Exposure { node: node.public(), serial: 1, ports, workloads: vec![] };
        records.push(Signed::sign(&vdc, &admin, of_admin, u64::from(n) + 3, Body::Member(member), &[]));
        records.push(Signed::sign(&vdc, &node, of_registrar, 1, Body::Contact(contact), &[]));
        records.push(Signed::sign(&vdc, &node, of_registrar, 2, Body::Exposure(exposure), &[]));
    }
    records.iter().map(Signed::encode).collect()
}

fn roster(records: &[Vec<u8>], verifier: &mut Verifier) -> Roster {
    let mut decoded = records.iter().map(|bytes| Signed::decode(bytes).expect("canonical"));
    let mut roster = Roster::new(decoded.next().expect("a genesis")).expect("a genesis");
    for record in decoded {
        assert_eq!(roster.insert_with(verifier, Arc::new(record)), Outcome::New);
    }
    roster
}

/// Resident bytes of this process: the second field of `/proc/self/statm`, in pages of 4 KiB.
fn resident_bytes() -> usize {
    let text = fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    let pages: usize = text.split(' ').nth(1).expect("a second field").parse().expect("a number");
    pages * 4096
}

#[test]
fn roster_of_1000_nodes_takes_at_most_2_mb() {
    let records = records(1000);
    // The first fills the verifier and warms the allocator; it is not counted.
    let mut verifier = Verifier::new(8192);
    let first = roster(&records, &mut verifier);
    let before = resident_bytes();
    let rosters: Vec<Roster> = (0..8).map(|_| roster(&records, &mut verifier)).collect();
    let each = (resident_bytes() - before) / rosters.len();
    let accounted = first.heap_bytes();
    let started = Instant::now();
    let view = first.view(NOW);
    let view_ms = started.elapsed().as_millis();
    println!(
        "1,000 nodes, {} records: {accounted} bytes accounted, {each} resident, view in {view_ms} ms",
        first.len()
    );
    assert_eq!(view.reachable().count(), 1000);
    assert!(accounted <= 2_000_000, "{accounted} bytes accounted");
    // Allocator overhead included, and no more than a quarter away from what is accounted.
    assert!(each <= 2_000_000, "{each} bytes resident");
    assert!(each.abs_diff(accounted) <= accounted / 4, "{each} bytes resident, {accounted} accounted");
    drop(view);
    let keys: Vec<Key> = rosters.iter().map(|r| r.genesis().owners[0]).collect();
    assert_eq!(keys.len(), 8);
}
