//! A history of statements, honest and forged: the roster's join must come to one result in every order.

use minicbor::{Decode, Encode};
use vdc::record::{Authority, Delegation};
use vdc::roster::{Roster, View, issue};
use vdc::{Body, Hash, Key, Name, Office, Signed, SigningKey, UnixTime, WgKey, codec};

const NOW: UnixTime = UnixTime(1_790_000_000);
/// Signatures make a history expensive; the orders of a few statements hold all that can go wrong between two.
const STATEMENTS_MAX: usize = 16;

/// What somebody says, before it is signed.
#[derive(Debug, Encode, Decode)]
pub struct Statement {
    /// Which of the known keys signs: the owner's, the first node's (admin and registrar), four others.
    #[n(0)]
    pub by: u8,
    /// On which of the known offices it stands: the root, the owners', then those of two admins and two registrars.
    #[n(1)]
    pub under: u8,
    #[n(2)]
    pub number: u64,
    #[n(3)]
    pub body: Body,
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n + 1; 32])
}

fn founded() -> Roster {
    let name = |text| Name::new(text).expect("a literal name");
    let founding = issue::Founding {
        name: name("acme"),
        site: name("paris"),
        node_name: name("paris1"),
        owner: &key(0),
        recovery: Key([9; 32]),
        node: &key(1),
        wg: WgKey([3; 32]),
        nonce: Hash([4; 32]),
        ipv4: Some("10.64.0.0/12".parse().expect("a literal block")),
        now: NOW,
    };
    let mut roster = issue::found(founding).roster;
    // A second admin, so that two can disagree.
    let delegation = Delegation {
        subject: key(2).public(),
        authority: Authority::Admin,
        serial: 1,
        not_before: NOW,
        not_after: UnixTime(NOW.0 + 31_536_000),
    };
    let vdc = *roster.vdc_id();
    roster.insert(Signed::sign(&vdc, &key(0), Office::root(&vdc), 9, Body::Delegation(delegation), &[]));
    roster
}

/// Signs the statements, offers them in two orders and to two replicas that then meet.
pub(crate) fn run(bytes: &[u8]) -> bool {
    let Ok(statements) = codec::decode::<Vec<Statement>>("history", bytes, 1 << 16) else { return false };
    if statements.is_empty() || statements.len() > STATEMENTS_MAX {
        return false;
    }
    let base = founded();
    let vdc = *base.vdc_id();
    let owners = Office::owners(&vdc);
    let (first, second) = (Office::of(&key(1).public(), &owners), Office::of(&key(2).public(), &owners));
    let offices = [
        Office::root(&vdc),
        owners,
        first,
        second,
        Office::of(&key(1).public(), &first),
        Office::of(&key(3).public(), &second),
    ];
    let mut records = Vec::new();
    for s in statements {
        let under = offices[usize::from(s.under) % offices.len()];
        let signed = Signed::sign(&vdc, &key(s.by % 6), under, s.number, s.body, &[]);
        // Only what decodes can arrive.
        let Ok(record) = Signed::decode(&signed.encode()) else { return false };
        records.push(record);
    }
    let forward = offer(base.clone(), records.iter());
    let backward = offer(base.clone(), records.iter().rev());
    same(&forward, &backward);
    let (left, right) = records.split_at(records.len() / 2);
    let mut met = offer(base.clone(), left.iter());
    let report = met.merge(&offer(base, right.iter())).expect("one VDC");
    std::hint::black_box(report);
    same(&forward, &offer(met, records.iter()));
    true
}

fn offer<'a>(mut roster: Roster, records: impl Iterator<Item = &'a Signed> + Clone) -> Roster {
    for _ in 0..2 * STATEMENTS_MAX {
        let version = roster.version();
        for record in records.clone() {
            roster.insert(record.clone());
        }
        if roster.version() == version {
            return roster;
        }
    }
    panic!("the records displace each other for ever");
}

fn same(a: &Roster, b: &Roster) {
    assert!(a.hashes().eq(b.hashes()), "two orders of arrival, two results");
    for now in [NOW, UnixTime(NOW.0 + 40 * 86_400)] {
        let (a, b) = (a.view(now), b.view(now));
        let parts =
            |v: &View| (v.members.clone(), v.sites.clone(), v.blocks.clone(), v.policy.clone(), v.clashes.clone());
        assert!(parts(&a) == parts(&b), "one set of records, two views");
        assert!(a.foundings == b.foundings, "one set of records, two groups of a home");
        std::hint::black_box(a.model());
    }
}
