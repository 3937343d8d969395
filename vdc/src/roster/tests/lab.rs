//! A small VDC to break: keys by name, records by hand.

use std::sync::Arc;

use crate::record::{
    self, Authority, Block, BlockMatch, Body, Contact, ContactAddress, Delegation, Exposure, Grant, Home, Member,
    PortRange, Protocol, Role, Site, Tombstone, WorkloadExposure,
};
use crate::roster::issue::{self, Draft, Founding};
use crate::roster::{Outcome, Roster, View};
use crate::{Hash, Key, Name, Office, Signed, SigningKey, SiteNumber, UnixTime, VdcId, WgKey};

pub(crate) const NOW: UnixTime = UnixTime(1_800_000_000);
pub(crate) const DAY: u64 = 86_400;

pub(crate) fn key(name: &str) -> SigningKey {
    SigningKey::from_seed(&blake3::derive_key("meshd test key", name.as_bytes()))
}

pub(crate) fn wg(name: &str) -> WgKey {
    WgKey(blake3::derive_key("meshd test wireguard key", name.as_bytes()))
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("a literal name")
}

/// A VDC with its founder `paris1` (admin, and registrar of site paris) and a second site berlin whose registrar is
/// `berlin1`.
pub(crate) struct Lab {
    pub(crate) vdc: VdcId,
    pub(crate) roster: Roster,
    pub(crate) paris: SiteNumber,
    pub(crate) berlin: SiteNumber,
    pub(crate) number: u64,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let founded = issue::found(Founding {
            name: name("acme"),
            site: name("paris"),
            node_name: name("paris1"),
            owner: &key("owner"),
            recovery: key("recovery").public(),
            node: &key("paris1"),
            wg: wg("paris1"),
            nonce: Hash([7; 32]),
            ipv4: Some("10.64.0.0/12".parse().expect("a block")),
            now: NOW,
        });
        let roster = founded.roster;
        let vdc = *roster.vdc_id();
        let paris = roster.view(NOW).site_by_name("paris").expect("founded").number;
        let mut lab = Self { vdc, roster, paris, berlin: SiteNumber(0), number: 100 };
        let draft = issue::site(&lab.view(), &key("paris1").public(), &name("berlin"), paris, NOW).expect("admin");
        lab.issue("paris1", draft);
        lab.berlin = lab.view().site_by_name("berlin").expect("added").number;
        lab.admit("paris1", "berlin1", lab.berlin);
        let subject = key("berlin1").public();
        let draft = issue::registrar(&lab.view(), &key("paris1").public(), subject, lab.berlin, NOW).expect("admin");
        lab.issue("paris1", draft);
        lab
    }

    pub(crate) fn view(&self) -> View {
        self.roster.view(NOW)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    pub(crate) fn sign(&mut self, by: &str, draft: Draft) -> Signed {
        let number = self.number();
        draft.sign(&self.vdc, &key(by), number, &[])
    }

    /// Signs, inserts and returns a record; it must be new.
    pub(crate) fn issue(&mut self, by: &str, draft: Draft) -> Signed {
        let record = self.sign(by, draft);
        assert_eq!(self.roster.insert(record.clone()), Outcome::New, "{by}: {:?}", record.body);
        record
    }

    pub(crate) fn admit(&mut self, registrar: &str, node: &str, site: SiteNumber) -> Signed {
        let admission = issue::Admission {
            node: key(node).public(),
            wg: wg(node),
            name: name(node),
            site,
            ephemeral: false,
            now: NOW,
        };
        let draft = issue::member(&self.view(), &key(registrar).public(), &admission).expect("may admit");
        self.issue(registrar, draft)
    }

    pub(crate) fn renew(&mut self, registrar: &str, node: &str, now: UnixTime) -> Signed {
        let view = self.roster.view(now);
        let draft = issue::renewal(&view, &key(registrar).public(), &key(node).public(), None, now).expect("may renew");
        self.issue(registrar, draft)
    }

    /// The owners' joint office, the first admin's and the registrars'.
    pub(crate) fn of_owners(&self) -> Office {
        Office::owners(&self.vdc)
    }

    pub(crate) fn of_paris1(&self) -> Office {
        Office::of(&key("paris1").public(), &self.of_owners())
    }

    pub(crate) fn of_berlin1(&self) -> Office {
        Office::of(&key("berlin1").public(), &self.of_paris1())
    }

    pub(crate) fn member_body(&self, node: &str, site: SiteNumber, serial: u64, not_before: UnixTime) -> Body {
        let _ = self;
        Body::Member(Member {
            node: key(node).public(),
            wg: wg(node),
            site,
            name: name(node),
            serial,
            bump: 0,
            ipv4: None,
            not_before,
            not_after: UnixTime(not_before.0 + DAY),
            ephemeral: false,
        })
    }

    /// A record signed by hand, with whatever it says.
    pub(crate) fn forge(&self, by: &str, under: Office, number: u64, body: Body) -> Signed {
        Signed::sign(&self.vdc, &key(by), under, number, body, &[])
    }

    /// What an owner says when it closes a key and keeps `keep`.
    pub(crate) fn closing(&self, signer: &str, subject: &str, keep: &[Arc<Signed>]) -> Draft {
        let (signer, subject) = (key(signer).public(), key(subject).public());
        issue::revocation(&self.view(), &signer, &subject, "stolen", NOW, keep).expect("a higher rank")
    }

    pub(crate) fn roster_with(&self, records: &[Arc<Signed>]) -> Roster {
        let mut roster = Roster::new((**self.roster.genesis_record()).clone()).expect("genesis");
        for record in records {
            roster.insert((**record).clone());
        }
        roster
    }
}

/// Offers records again and again until no offer changes anything: what record sync does.
pub(crate) fn offer_until_stable(roster: &mut Roster, records: &[Signed]) {
    // Each round settles at least one more rank or record; far fewer are needed.
    for _ in 0..records.len() + 8 {
        let version = roster.version();
        for record in records {
            roster.insert(record.clone());
        }
        if roster.version() == version {
            return;
        }
    }
    panic!("the records displace each other for ever");
}

pub(crate) fn hashes(roster: &Roster) -> Vec<Hash> {
    roster.hashes().copied().collect()
}

pub(crate) fn contact_body(node: &str, serial: u64) -> Body {
    let addresses =
        vec![ContactAddress::Ip([192, 0, 2, 7].into(), 7000), ContactAddress::Dns("a.example".into(), 7000)];
    Body::Contact(Contact { node: key(node).public(), serial, addresses, door_port: None })
}

pub(crate) fn exposure_body(node: &str, serial: u64, port: u16) -> Body {
    let ports = vec![PortRange { protocol: Protocol::Tcp, first: port, last: port }];
    Body::Exposure(Exposure { node: key(node).public(), serial, ports, workloads: vec![] })
}

pub(crate) fn workloads_body(node: &str, serial: u64) -> Body {
    let range = |protocol, first, last| PortRange { protocol, first, last };
    let workload =
        |text, offset, ipv4, ports, labels| WorkloadExposure { name: name(text), offset, ipv4, ports, labels };
    let workloads = vec![
        workload("batch", 0x1_0007, None, vec![], vec![]),
        workload(
            "web",
            0x1_0000,
            Some(std::net::Ipv4Addr::new(10, 64, 16, 18)),
            vec![range(Protocol::Tcp, 80, 80), range(Protocol::Udp, 8000, 8010)],
            vec![name("front"), name("rack1")],
        ),
    ];
    Body::Exposure(Exposure { node: key(node).public(), serial, ports: vec![range(Protocol::Tcp, 22, 22)], workloads })
}

pub(crate) fn grant_body(subject: &str, serial: u64, roles: Vec<Role>) -> Body {
    Body::Grant(Grant { subject: key(subject).public(), serial, roles, labels: vec![name("rack1")] })
}

pub(crate) fn tombstone_body(subject: Key, floor: u64) -> Body {
    Body::Tombstone(Tombstone { subject, floor, at: NOW, reason: "test".to_owned(), estate: None })
}

pub(crate) fn delegation_body(subject: &str, authority: Authority, serial: u64, days: u64) -> Body {
    let not_after = UnixTime(NOW.0 + days * DAY);
    Body::Delegation(Delegation { subject: key(subject).public(), authority, serial, not_before: NOW, not_after })
}

pub(crate) fn site_body(number: u16, text: &str, serial: u64, founder: SiteNumber) -> Body {
    Body::Site(Site { number: SiteNumber(number), name: name(text), serial, ipv4: None, founder, created: NOW })
}

pub(crate) fn founding_body(home: Home, serial: u64, founder: &str, created: UnixTime) -> Body {
    Body::Founding(record::Founding { home, serial, founder: key(founder).public(), created })
}

pub(crate) fn block_body(id: u8, serial: u64, lifted: bool) -> Body {
    let matches = BlockMatch { from: Some(key("berlin2").public()), to: None, ports: None };
    Body::Block(Block { id: Hash([id; 32]), serial, matches, lifted, reason: String::new() })
}
