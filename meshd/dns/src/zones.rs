//! What the name server knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The names of one VDC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// Addresses by name relative to the zone, lower case: `berlin1.berlin`.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// What the VDC's addresses are taken from, with prefix lengths: their reverse zones are the VDC's too.
    pub networks: Vec<(IpAddr, u8)>,
}

/// All zones that a name server answers for, by lower-case name without a final dot: `acme.internal`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones {
    zones: BTreeMap<String, Zone>,
    /// Names under `in-addr.arpa` and `ip6.arpa` (RFC 1035 §3.5, RFC 3596 §2.5) to full names.
    pointers: BTreeMap<String, String>,
    reverse_zones: BTreeSet<String>,
}

/// What the zones say about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The zone itself.
    Apex { zone: &'a str },
    /// The name exists in `zone` and has these addresses; none means that it only has names below it.
    Addresses { zone: &'a str, addresses: &'a [IpAddr] },
    /// A reverse name of ours, in `zone` unless no network was said to hold it.
    Pointer { zone: Option<&'a str>, target: &'a str },
    /// The zone is ours and the name is not in it.
    NoSuchName { zone: &'a str },
    /// Not our zone.
    Foreign,
}

impl Zones {
    #[must_use]
    pub fn new(zones: BTreeMap<String, Zone>) -> Self {
        let mut pointers: BTreeMap<String, String> = BTreeMap::new();
        for (name, zone) in &zones {
            // Of several names of one address the one with the fewest labels is pointed at.
            let mut hosts: Vec<_> = zone.hosts.iter().collect();
            hosts.sort_by_key(|(host, _)| host.matches('.').count());
            for (host, addresses) in hosts {
                for address in addresses {
                    pointers.entry(reverse_name(*address)).or_insert_with(|| format!("{host}.{name}"));
                }
            }
        }
        let networks = zones.values().flat_map(|zone| &zone.networks);
        let reverse_zones = networks.flat_map(|(address, length)| reverse_zones(*address, *length)).collect();
        Self { zones, pointers, reverse_zones }
    }

    /// The names of all zones, the reverse ones last.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.zones.keys().chain(&self.reverse_zones).map(String::as_str)
    }

    /// Looks up a lower-case name without its final dot.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Answer<'_> {
        let mut suffix = name;
        let zone_name = loop {
            let forward = self.zones.get_key_value(suffix).map(|(zone_name, _)| zone_name);
            if let Some(zone_name) = forward.or_else(|| self.reverse_zones.get(suffix)) {
                break Some(zone_name.as_str());
            }
            match suffix.split_once('.') {
                Some((_, rest)) => suffix = rest,
                None => break None,
            }
        };
        if let Some(target) = self.pointers.get(name) {
            return Answer::Pointer { zone: zone_name, target };
        }
        let Some(zone) = zone_name else { return Answer::Foreign };
        let host = name.strip_suffix(suffix).unwrap_or_default().trim_end_matches('.');
        if host.is_empty() {
            return Answer::Apex { zone };
        }
        let hosts = self.zones.get(zone).map(|zone| &zone.hosts);
        if let Some(addresses) = hosts.and_then(|hosts| hosts.get(host)) {
            return Answer::Addresses { zone, addresses };
        }
        // An empty non-terminal (a site's name, a part of an address) exists without addresses: RFC 8020 §2.
        let has_below = match hosts {
            Some(hosts) => any_below(hosts.keys(), host),
            None => any_below(self.pointers.keys(), name),
        };
        if has_below { Answer::Addresses { zone, addresses: &[] } } else { Answer::NoSuchName { zone } }
    }
}

fn any_below<'a>(mut names: impl Iterator<Item = &'a String>, parent: &str) -> bool {
    names.any(|name| name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.')))
}

/// The zones whose names are exactly the addresses of a network, as few as there are: a length between the borders at
/// which names are cut (every 8 bits, or every 4 of IPv6) takes several zones of the next border, at most 128.
fn reverse_zones(network: IpAddr, length: u8) -> Vec<String> {
    let (bits_of_label, bits) = if network.is_ipv4() { (8, 32) } else { (4, 128) };
    let length = u32::from(length).min(bits);
    let border = length.next_multiple_of(bits_of_label);
    let labels_below = (bits - border) / bits_of_label;
    let zone_of = |address: IpAddr| {
        let name = reverse_name(address);
        let cut = (0..labels_below).fold(name.as_str(), |rest, _| rest.split_once('.').map_or("", |(_, rest)| rest));
        cut.to_owned()
    };
    let zones = (0..1_u32 << (border - length)).filter_map(|index| {
        let address = match network {
            IpAddr::V4(v4) => v4
                .to_bits()
                .checked_add(index.checked_shl(bits - border).unwrap_or(0))
                .map(|bits| Ipv4Addr::from_bits(bits).into())?,
            IpAddr::V6(v6) => v6
                .to_bits()
                .checked_add(u128::from(index).checked_shl(bits - border).unwrap_or(0))
                .map(|bits| Ipv6Addr::from_bits(bits).into())?,
        };
        Some(zone_of(address))
    });
    zones.collect()
}

/// The name under `in-addr.arpa` or `ip6.arpa` of an address, lower case, no final dot.
fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let nibbles: Vec<String> =
                v6.octets().iter().rev().flat_map(|o| [o & 15, o >> 4]).map(|nibble| format!("{nibble:x}")).collect();
            format!("{}.ip6.arpa", nibbles.join("."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("valid")
    }

    #[test]
    fn address_of_several_names_points_at_the_shortest() {
        let hosts = [("web.berlin", "fd12::2"), ("web.alpha.berlin", "fd12::2"), ("alpha.berlin", "fd12::1")];
        let hosts = hosts.into_iter().map(|(host, address)| (host.to_owned(), vec![ip(address)])).collect();
        let zone = Zone { hosts, networks: vec![(ip("fd12::"), 48)] };
        let zones = Zones::new(BTreeMap::from([("acme.internal".into(), zone)]));
        for (address, target) in [("fd12::2", "web.berlin.acme.internal"), ("fd12::1", "alpha.berlin.acme.internal")] {
            let name = reverse_name(ip(address));
            assert_eq!(zones.lookup(&name), Answer::Pointer { zone: Some("0.0.0.0.0.0.0.0.2.1.d.f.ip6.arpa"), target });
        }
    }

    #[test]
    fn lookup_tells_addresses_empty_names_and_strangers_apart() {
        let (v6, v4) = (ip("fd12::1"), ip("10.64.0.1"));
        let zone = Zone {
            hosts: BTreeMap::from([("berlin1.berlin".into(), vec![v6, v4])]),
            networks: vec![(ip("fd12::"), 48), (ip("10.64.0.0"), 15)],
        };
        let zones = Zones::new(BTreeMap::from([("acme.internal".into(), zone)]));
        let empty = |zone| Answer::Addresses { zone, addresses: &[] };
        let berlin1 = "berlin1.berlin.acme.internal";
        for (name, answer) in [
            (berlin1, Answer::Addresses { zone: "acme.internal", addresses: &[v6, v4] }),
            ("berlin.acme.internal", empty("acme.internal")),
            ("acme.internal", Answer::Apex { zone: "acme.internal" }),
            ("erlin.acme.internal", Answer::NoSuchName { zone: "acme.internal" }),
            ("x.berlin1.berlin.acme.internal", Answer::NoSuchName { zone: "acme.internal" }),
            ("xacme.internal", Answer::Foreign),
            ("internal", Answer::Foreign),
            ("", Answer::Foreign),
            ("1.0.64.10.in-addr.arpa", Answer::Pointer { zone: Some("64.10.in-addr.arpa"), target: berlin1 }),
            ("2.0.64.10.in-addr.arpa", Answer::NoSuchName { zone: "64.10.in-addr.arpa" }),
            ("0.64.10.in-addr.arpa", empty("64.10.in-addr.arpa")),
            ("64.10.in-addr.arpa", Answer::Apex { zone: "64.10.in-addr.arpa" }),
            ("1.0.65.10.in-addr.arpa", Answer::NoSuchName { zone: "65.10.in-addr.arpa" }),
            ("1.0.66.10.in-addr.arpa", Answer::Foreign),
            ("10.in-addr.arpa", Answer::Foreign),
        ] {
            assert_eq!(zones.lookup(name), answer, "{name:?}");
        }
        let below = "0.0.0.0.0.0.0.0.2.1.d.f.ip6.arpa";
        let reverse = format!("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.{below}");
        assert_eq!(zones.lookup(&reverse), Answer::Pointer { zone: Some(below), target: berlin1 });
        let names: Vec<&str> = zones.names().collect();
        assert_eq!(names, ["acme.internal", below, "64.10.in-addr.arpa", "65.10.in-addr.arpa"]);
    }

    #[test]
    fn reverse_zones_cover_networks_of_any_length() {
        let check = |network: &str, length, expected: &[&str]| {
            assert_eq!(reverse_zones(ip(network), length), expected, "{network}/{length}");
        };
        check("10.0.0.0", 8, &["10.in-addr.arpa"]);
        check("10.64.16.0", 23, &["16.64.10.in-addr.arpa", "17.64.10.in-addr.arpa"]);
        check("10.64.16.4", 31, &["4.16.64.10.in-addr.arpa", "5.16.64.10.in-addr.arpa"]);
        check("10.64.16.4", 32, &["4.16.64.10.in-addr.arpa"]);
        check("fda3:b86a:887f::", 48, &["f.7.8.8.a.6.8.b.3.a.d.f.ip6.arpa"]);
        check("fc00::", 7, &["c.f.ip6.arpa", "d.f.ip6.arpa"]);
        check("0.0.0.0", 0, &["in-addr.arpa"]);
        assert_eq!(reverse_zones(ip("10.128.0.0"), 9).len(), 128);
    }
}
