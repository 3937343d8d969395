//! A VDC as it stands before a scenario begins: founded, with sites, registrars and members.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use vdc::invite::NodeSecrets;
use vdc::record::{Contact, ContactAddress, Exposure, Member, PortRange, Protocol};
use vdc::roster::issue::{self, Founding};
use vdc::roster::{Outcome, Roster, Verifier};
use vdc::{Body, Hash, Key, Name, Office, Signed, SigningKey, SiteNumber, UnixTime};

use crate::random::Random;

/// When every scenario begins: 2026-06-01T00:00:00Z.
pub(crate) const START: UnixTime = UnixTime(1_780_272_000);

/// A box: its secrets and what it keeps count of.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) secrets: NodeSecrets,
    pub(crate) key: Key,
    pub(crate) site: usize,
    /// Its next own record's number.
    pub(crate) number: u64,
}

impl Identity {
    pub(crate) fn new(site: usize, random: &mut Random) -> Self {
        let secrets = NodeSecrets::from_seeds(&random.bytes32(), &random.bytes32());
        Self { key: secrets.node.public(), secrets, site, number: 1 }
    }

    /// Takes the next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.number += 1;
        self.number - 1
    }
}

/// One site as the simulation knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SiteInfo {
    pub(crate) number: SiteNumber,
    /// Who admits and renews its nodes: an index into the identities.
    pub(crate) registrar: usize,
    /// On which the registrar's member records stand.
    pub(crate) office: Office,
}

/// A founded VDC.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) roster: Roster,
    /// The roster before the last twentieth of the records: what a box that was off for a while has on disk.
    pub(crate) stale: Roster,
    pub(crate) owner: SigningKey,
    pub(crate) owner_number: u64,
    /// The first one is the founder: admin, and registrar of the first site.
    pub(crate) identities: Vec<Identity>,
    pub(crate) sites: Vec<SiteInfo>,
}

/// Founds a VDC of `nodes` boxes, evenly over `sites`. With three sites or more the last has no registrar of its own: it
/// is renewed by the site that founded it, the second to last.
pub(crate) fn found(nodes: usize, sites: usize, verifier: &mut Verifier, random: &mut Random) -> World {
    let owner = SigningKey::from_seed(&random.bytes32());
    let recovery = SigningKey::from_seed(&random.bytes32());
    let mut identities: Vec<Identity> = (0..nodes).map(|index| Identity::new(index % sites, random)).collect();
    // An hour ago, so that every record lies in the past of every honest clock.
    let founded_at = UnixTime(START.0 - 20 * 3600);
    let founded = issue::found(Founding {
        name: name("acme"),
        site: name("s0"),
        node_name: name("n0"),
        owner: &owner,
        recovery: recovery.public(),
        node: &identities[0].secrets.node,
        wg: identities[0].secrets.wg_public(),
        nonce: Hash(random.bytes32()),
        ipv4: Some("10.64.0.0/10".parse().expect("a literal block")),
        now: founded_at,
    });
    identities[0].number = founded.node_number_next;
    let mut roster = founded.roster;
    let vdc = *roster.vdc_id();
    let of_admin = Office::of(&identities[0].key, &Office::owners(&vdc));
    let mut infos = vec![SiteInfo {
        number: *roster.view(START).sites.keys().next().expect("one site was founded"),
        registrar: 0,
        office: of_admin,
    }];
    for site in 1..sites {
        let without = sites >= 3 && site == sites - 1;
        let founder = if without { infos[site - 1].number } else { infos[0].number };
        let admin = identities[0].key;
        let draft = issue::site(&roster.view(founded_at), &admin, &name(&format!("s{site}")), founder, founded_at)
            .expect("the founder is an admin");
        let Body::Site(body) = &draft.body else { unreachable!("a site's draft") };
        let number = body.number;
        sign_into(&mut roster, verifier, &mut identities[0], draft);
        let registrar = if without { infos[site - 1].registrar } else { site };
        if !without {
            let subject = identities[registrar].key;
            let draft = issue::registrar(&roster.view(founded_at), &admin, subject, number, founded_at)
                .expect("the founder is an admin");
            sign_into(&mut roster, verifier, &mut identities[0], draft);
        }
        infos.push(SiteInfo { number, registrar, office: of_admin });
    }
    let mut stale = roster.clone();
    let stale_count = nodes - nodes / 20;
    for index in 0..nodes {
        let records = member_records(&vdc, &roster, &mut identities, &infos, index, random);
        for record in records {
            let outcome = roster.insert_with(verifier, Arc::clone(&record));
            assert_ne!(std::mem::discriminant(&outcome), REFUSED, "{outcome:?}: {:?}", record.body);
            if index < stale_count {
                stale.insert_with(verifier, record);
            }
        }
    }
    World { roster, stale, owner, owner_number: founded.owner_number_next, identities, sites: infos }
}

const REFUSED: std::mem::Discriminant<Outcome> =
    std::mem::discriminant(&Outcome::Refused(vdc::roster::RefusedReason::Signature));

/// A name that the caller knows to be one.
pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("made of letters and digits")
}

fn sign_into(roster: &mut Roster, verifier: &mut Verifier, issuer: &mut Identity, draft: issue::Draft) {
    let number = issuer.next();
    let record = draft.sign(roster.vdc_id(), &issuer.secrets.node, number, &[]);
    assert_eq!(roster.insert_with(verifier, Arc::new(record)), Outcome::New);
}

/// Member, contact and exposure of one box, written directly: a thousand drafts from a thousand views would take longer
/// than the run itself.
fn member_records(
    vdc: &vdc::VdcId,
    roster: &Roster,
    identities: &mut [Identity],
    sites: &[SiteInfo],
    index: usize,
    random: &mut Random,
) -> Vec<Arc<Signed>> {
    let (key, wg, site) = (identities[index].key, identities[index].secrets.wg_public(), identities[index].site);
    let info = sites[site];
    let own = Office::of(&identities[info.registrar].key, &info.office);
    let mut records = Vec::new();
    if index > 0 {
        // Signed within the last ten hours, so that none is due for renewal at once.
        let not_before = UnixTime(START.0 - random.below(10 * 3600));
        let block = roster.records().into_iter().find_map(|record| match &record.body {
            Body::Site(body) if body.number == info.number => body.ipv4,
            _ => None,
        });
        let member = Member {
            node: key,
            wg,
            site: info.number,
            name: name(&format!("n{index}")),
            serial: 1,
            bump: 0,
            ipv4: block.and_then(|b| b.sub_block(28, u32::try_from(index / sites.len()).unwrap_or(u32::MAX))),
            not_before,
            not_after: not_before.plus(issue::MEMBER_LIFETIME),
            ephemeral: false,
        };
        let registrar = &mut identities[info.registrar];
        let number = registrar.next();
        records.push(Signed::sign(vdc, &registrar.secrets.node, info.office, number, Body::Member(member), &[]));
    }
    let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | u32::try_from(index).unwrap_or(0)));
    let contact = Contact {
        node: key,
        serial: 1,
        addresses: vec![ContactAddress::Ip(address, 4433)],
        door_port: (info.registrar == index).then_some(4434),
    };
    let web = PortRange { protocol: Protocol::Tcp, first: 80, last: 80 };
    let exposure = Exposure { node: key, serial: 1, ports: vec![web], workloads: vec![] };
    for body in [Body::Contact(contact), Body::Exposure(exposure)] {
        let number = identities[index].next();
        records.push(Signed::sign(vdc, &identities[index].secrets.node, own, number, body, &[]));
    }
    records.into_iter().map(Arc::new).collect()
}
