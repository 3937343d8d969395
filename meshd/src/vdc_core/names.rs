//! Which names a VDC's members and their workloads have.

use std::collections::BTreeMap;
use std::net::IpAddr;

use vdc::address::HOST;
use vdc::roster::View;

use crate::views;

/// Addresses by name in the VDC: `NODE.SITE`; `WORKLOAD.NODE.SITE`; `WORKLOAD.SITE` and `WORKLOAD` of the workloads that have them.
pub(super) fn hosts(view: &View) -> BTreeMap<String, Vec<IpAddr>> {
    let mut hosts = BTreeMap::new();
    for member in view.reachable() {
        let addresses = |v6, v4: Option<_>| std::iter::once(IpAddr::V6(v6)).chain(v4.map(IpAddr::V4)).collect();
        hosts.insert(member.full_name(), addresses(member.prefix.address(HOST), views::host_ipv4(member)));
        for workload in &member.workloads {
            // No node and no other workload of the site has a short name that this one has.
            let short = workload.has_short_name.then(|| member.site_name.to_string());
            for place in short.into_iter().chain([member.full_name()]) {
                hosts.insert(format!("{}.{place}", workload.name), addresses(workload.v6, workload.ipv4));
            }
        }
    }
    for (name, node) in &view.names {
        let member = view.members.get(node).filter(|member| member.standing.is_reachable());
        let workload = member.and_then(|member| member.workloads.iter().find(|workload| workload.name == *name));
        let addresses = workload.map(|w| std::iter::once(w.v6.into()).chain(w.ipv4.map(IpAddr::V4)).collect());
        hosts.extend(addresses.map(|addresses| (name.to_string(), addresses)));
    }
    hosts
}

#[cfg(test)]
mod tests {
    use vdc::record::{Home, WorkloadExposure};
    use vdc::roster::{Outcome, issue};
    use vdc::{Hash, Key, Name, SigningKey, UnixTime, WgKey};

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn name(text: &str) -> Name {
        Name::new(text).expect("a literal name")
    }

    fn workload(text: &str, offset: u32) -> WorkloadExposure {
        WorkloadExposure { name: name(text), offset, ipv4: None, ports: vec![], labels: vec![] }
    }

    #[test]
    fn workloads_are_found_by_their_long_names_and_one_by_the_short_one() {
        let (owner, first) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let second = SigningKey::from_seed(&[3; 32]);
        let founding = issue::Founding {
            name: name("acme"),
            site: name("paris"),
            node_name: name("paris1"),
            owner: &owner,
            recovery: Key([9; 32]),
            node: &first,
            wg: WgKey([4; 32]),
            nonce: Hash([5; 32]),
            ipv4: Some("10.64.0.0/12".parse().expect("a block")),
            now: NOW,
        };
        let mut roster = issue::found(founding).roster;
        let vdc = *roster.vdc_id();
        let mut number = 100;
        let mut say = |roster: &mut vdc::roster::Roster, key: &SigningKey, draft: issue::Draft| {
            number += 1;
            assert_eq!(roster.insert(draft.sign(&vdc, key, number, &[])), Outcome::New);
        };
        let site = roster.view(NOW).site_by_name("paris").expect("founded").number;
        let admission = issue::Admission {
            node: second.public(),
            wg: WgKey([6; 32]),
            name: name("paris2"),
            site,
            ephemeral: false,
            now: NOW,
        };
        let draft = issue::member(&roster.view(NOW), &first.public(), &admission).expect("may admit");
        say(&mut roster, &first, draft);
        for (key, entries) in [
            (&first, vec![workload("web", 0x1_0001), workload("paris2", 0x1_0002)]),
            (&second, vec![workload("web", 0x1_0003), workload("db", 0x1_0004)]),
        ] {
            let draft = issue::exposure(&roster.view(NOW), &key.public(), vec![], entries).expect("a member");
            say(&mut roster, key, draft);
        }
        let view = roster.view(NOW);
        let hosts = super::hosts(&view);
        let names: Vec<&str> = hosts.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "db.paris",
                "db.paris2.paris",
                "paris1.paris",
                "paris2.paris",
                "paris2.paris1.paris",
                "web.paris",
                "web.paris1.paris",
                "web.paris2.paris",
            ]
        );
        let lowest = if first.public() < second.public() { "web.paris1.paris" } else { "web.paris2.paris" };
        assert_eq!(hosts["web.paris"], hosts[lowest]);
        assert_ne!(hosts["web.paris1.paris"], hosts["web.paris2.paris"]);
        // What the groups say counts, where it fits the records.
        let (high, low) = if first.public() < second.public() { (&second, &first) } else { (&first, &second) };
        let mut view = roster.view(NOW);
        let site_names = [(name("web"), high.public()), (name("paris2"), first.public()), (name("db"), first.public())];
        let vdc_names = [(name("web"), low.public()), (name("db"), first.public()), (name("gone"), first.public())];
        view.set_names(&[(Home::Site(site), site_names.into()), (Home::Vdc, vdc_names.into())].into());
        let hosts = super::hosts(&view);
        let long = |key: &SigningKey| format!("web.{}", view.members[&key.public()].full_name());
        assert_eq!(hosts["web.paris"], hosts[&long(high)], "it was taken by the other");
        assert_eq!(hosts["web"], hosts[&long(low)], "a name of the VDC is another matter");
        assert!(!hosts.contains_key("db") && !hosts.contains_key("gone"), "what its node does not have is nobody's");
        let node = &view.members[&second.public()];
        assert_eq!(hosts["paris2.paris"][0], IpAddr::V6(node.prefix.address(HOST)), "a node's name is the node's");
    }
}
