//! What the name server knows.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// The names of one VDC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// Addresses by name relative to the zone, lower case: `berlin1.berlin`.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
}

/// All zones that this box answers for, by lower-case name without a final dot: `acme.internal`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones {
    zones: BTreeMap<String, Zone>,
    /// Reverse names (RFC 1035 §3.5, RFC 3596 §2.5) to full names.
    reverse: BTreeMap<String, String>,
}

/// What the zones say about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The name exists in `zone` and has these addresses; none means that it only has names below it.
    Addresses { zone: &'a str, addresses: &'a [IpAddr] },
    /// A reverse name of ours.
    Pointer { target: &'a str },
    /// The zone is ours and the name is not in it.
    NoSuchName { zone: &'a str },
    /// Not our zone.
    Foreign,
}

impl Zones {
    #[must_use]
    pub fn new(zones: BTreeMap<String, Zone>) -> Self {
        let mut reverse = BTreeMap::new();
        for (name, zone) in &zones {
            for (host, addresses) in &zone.hosts {
                for address in addresses {
                    reverse.entry(reverse_name(*address)).or_insert_with(|| format!("{host}.{name}"));
                }
            }
        }
        Self { zones, reverse }
    }

    /// The names of the zones.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.zones.keys().map(String::as_str)
    }

    /// Looks up a lower-case name without its final dot.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Answer<'_> {
        if let Some(target) = self.reverse.get(name) {
            return Answer::Pointer { target };
        }
        let mut suffix = name;
        loop {
            if let Some((zone_name, zone)) = self.zones.get_key_value(suffix) {
                let host = name.strip_suffix(suffix).unwrap_or_default().trim_end_matches('.');
                return Self::lookup_in(zone_name, zone, host);
            }
            match suffix.split_once('.') {
                Some((_, rest)) => suffix = rest,
                None => return Answer::Foreign,
            }
        }
    }

    fn lookup_in<'a>(zone_name: &'a str, zone: &'a Zone, host: &str) -> Answer<'a> {
        if let Some(addresses) = zone.hosts.get(host) {
            return Answer::Addresses { zone: zone_name, addresses };
        }
        // An empty non-terminal (a site's name, the zone itself) exists without addresses: RFC 8020 §2.
        let below = format!(".{host}");
        if host.is_empty() || zone.hosts.keys().any(|known| known.ends_with(&below)) {
            return Answer::Addresses { zone: zone_name, addresses: &[] };
        }
        Answer::NoSuchName { zone: zone_name }
    }
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

    #[test]
    fn lookup_tells_addresses_empty_names_and_strangers_apart() {
        let v6: IpAddr = "fd12::1".parse().expect("valid");
        let v4: IpAddr = "10.64.0.1".parse().expect("valid");
        let zone = Zone { hosts: BTreeMap::from([("berlin1.berlin".into(), vec![v6, v4])]) };
        let zones = Zones::new(BTreeMap::from([("acme.internal".into(), zone)]));
        let some = Answer::Addresses { zone: "acme.internal", addresses: &[v6, v4] };
        let empty = Answer::Addresses { zone: "acme.internal", addresses: &[] };
        for (name, answer) in [
            ("berlin1.berlin.acme.internal", some),
            ("berlin.acme.internal", empty.clone()),
            ("acme.internal", empty),
            ("erlin.acme.internal", Answer::NoSuchName { zone: "acme.internal" }),
            ("x.berlin1.berlin.acme.internal", Answer::NoSuchName { zone: "acme.internal" }),
            ("xacme.internal", Answer::Foreign),
            ("internal", Answer::Foreign),
            ("", Answer::Foreign),
            ("1.0.64.10.in-addr.arpa", Answer::Pointer { target: "berlin1.berlin.acme.internal" }),
            ("2.0.64.10.in-addr.arpa", Answer::Foreign),
        ] {
            assert_eq!(zones.lookup(name), answer, "{name:?}");
        }
        let reverse = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.1.d.f.ip6.arpa";
        assert!(matches!(zones.lookup(reverse), Answer::Pointer { .. }));
    }
}
