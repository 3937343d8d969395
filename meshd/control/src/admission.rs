//! How fast connections may come in before anybody knows whose they are: a token bucket per source, and one over all.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How many connections may begin: at once, and then one per pause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    /// Of one source.
    source_burst: u32,
    source_pause: Duration,
    /// Of all together: bounds the handshakes (about 0.3 ms of CPU each) that strangers can cause.
    total_burst: u32,
    total_pause: Duration,
}

impl Rates {
    /// For the join door: a rack of new boxes behind one NAT joins without waiting.
    pub(crate) const DOOR: Self = Self {
        source_burst: 32,
        source_pause: Duration::from_secs(1),
        total_burst: 128,
        total_pause: Duration::from_millis(62),
    };
    /// For the member swarm: a whole site behind one NAT comes back after an outage, and whoever is refused comes again.
    pub(crate) const MEMBERS: Self = Self {
        source_burst: 128,
        source_pause: Duration::from_millis(62),
        total_burst: 256,
        total_pause: Duration::from_millis(15),
    };
}

/// Sources remembered. Full buckets are forgotten; the total rate keeps fewer than 300 from being full.
const SOURCES_MAX: usize = 1024;

/// Decides which connections may begin a handshake.
#[derive(Debug)]
pub(crate) struct Admission {
    rates: Rates,
    total: Bucket,
    sources: BTreeMap<IpAddr, Bucket>,
}

impl Admission {
    pub(crate) fn new(rates: Rates, now: Instant) -> Self {
        Self { rates, total: Bucket { left: rates.total_burst, at: now }, sources: BTreeMap::new() }
    }

    /// Takes a token of the source and one of all, or refuses and takes none.
    pub(crate) fn admit(&mut self, ip: IpAddr, now: Instant) -> bool {
        let Rates { source_burst, source_pause, total_burst, total_pause } = self.rates;
        self.total.refill(total_burst, total_pause, now);
        let source = source(ip);
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, bucket| {
                bucket.refill(source_burst, source_pause, now);
                bucket.left < source_burst
            });
            if self.sources.len() >= SOURCES_MAX {
                return false;
            }
        }
        let bucket = self.sources.entry(source).or_insert(Bucket { left: source_burst, at: now });
        bucket.refill(source_burst, source_pause, now);
        if bucket.left == 0 || self.total.left == 0 {
            return false;
        }
        bucket.left -= 1;
        self.total.left -= 1;
        true
    }
}

/// Whoever has one IPv6 address has its /64.
fn source(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    /// When the last token was added.
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, burst: u32, pause: Duration, now: Instant) {
        let pauses = now.saturating_duration_since(self.at).as_nanos() / pause.as_nanos();
        let pauses = u32::try_from(pauses).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(pauses).min(burst);
        // A full bucket saves nothing up; otherwise the part of a pause that has passed counts.
        self.at = if self.left == burst { now } else { self.at + pause * pauses };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a literal")
    }

    #[test]
    fn source_is_refused_after_its_burst_and_admitted_again_later() {
        let start = Instant::now();
        let mut admission = Admission::new(Rates::DOOR, start);
        assert!((0..Rates::DOOR.source_burst).all(|_| admission.admit(ip("192.0.2.1"), start)));
        assert!(!admission.admit(ip("192.0.2.1"), start));
        assert!(admission.admit(ip("192.0.2.2"), start), "another source is not affected");
        assert!(admission.admit(ip("192.0.2.1"), start + Rates::DOOR.source_pause));
        assert!(!admission.admit(ip("192.0.2.1"), start + Rates::DOOR.source_pause));
    }

    #[test]
    fn one_network_of_ipv6_is_one_source() {
        let start = Instant::now();
        let mut admission = Admission::new(Rates::DOOR, start);
        let admitted = (0..1000u16).filter(|i| admission.admit(ip(&format!("2001:db8::{i:x}")), start)).count();
        assert_eq!(admitted, Rates::DOOR.source_burst as usize);
    }

    #[test]
    fn many_sources_share_the_total_and_little_memory() {
        let mut now = Instant::now();
        let mut admission = Admission::new(Rates::DOOR, now);
        let mut admitted = 0_u32;
        for i in 0..100_000_u32 {
            now += Duration::from_millis(1);
            admitted += u32::from(admission.admit(IpAddr::from(i.to_be_bytes()), now));
            assert!(admission.sources.len() <= SOURCES_MAX);
        }
        let rate = 100_000 / u32::try_from(Rates::DOOR.total_pause.as_millis()).expect("small");
        assert!((rate..=rate + Rates::DOOR.total_burst + 1).contains(&admitted), "{admitted}");
    }
}
