//! How fast strangers may knock at the join door: a token bucket per source, and one over all.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Connections that one source may open at once; a rack of new boxes behind one NAT joins without waiting.
const SOURCE_BURST: u32 = 32;
/// Pause after which one source may open one more.
const SOURCE_PAUSE: Duration = Duration::from_secs(1);
/// The same over all sources: bounds the handshakes (about 0.3 ms of CPU each) that strangers can cause.
const TOTAL_BURST: u32 = 128;
const TOTAL_PAUSE: Duration = Duration::from_millis(62);
/// Sources remembered. Full buckets are forgotten; the total rate keeps fewer than 200 from being full.
const SOURCES_MAX: usize = 1024;

/// Decides which connections may begin a handshake.
#[derive(Debug)]
pub(crate) struct Admission {
    total: Bucket,
    sources: BTreeMap<IpAddr, Bucket>,
}

impl Admission {
    pub(crate) fn new(now: Instant) -> Self {
        Self { total: Bucket { left: TOTAL_BURST, at: now }, sources: BTreeMap::new() }
    }

    /// Takes a token of the source and one of all, or refuses and takes none.
    pub(crate) fn admit(&mut self, ip: IpAddr, now: Instant) -> bool {
        self.total.refill(TOTAL_BURST, TOTAL_PAUSE, now);
        let source = source(ip);
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, bucket| {
                bucket.refill(SOURCE_BURST, SOURCE_PAUSE, now);
                bucket.left < SOURCE_BURST
            });
            if self.sources.len() >= SOURCES_MAX {
                return false;
            }
        }
        let bucket = self.sources.entry(source).or_insert(Bucket { left: SOURCE_BURST, at: now });
        bucket.refill(SOURCE_BURST, SOURCE_PAUSE, now);
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
        let mut admission = Admission::new(start);
        assert!((0..SOURCE_BURST).all(|_| admission.admit(ip("192.0.2.1"), start)));
        assert!(!admission.admit(ip("192.0.2.1"), start));
        assert!(admission.admit(ip("192.0.2.2"), start), "another source is not affected");
        assert!(admission.admit(ip("192.0.2.1"), start + SOURCE_PAUSE));
        assert!(!admission.admit(ip("192.0.2.1"), start + SOURCE_PAUSE));
    }

    #[test]
    fn one_network_of_ipv6_is_one_source() {
        let start = Instant::now();
        let mut admission = Admission::new(start);
        let admitted = (0..1000u16).filter(|i| admission.admit(ip(&format!("2001:db8::{i:x}")), start)).count();
        assert_eq!(admitted, SOURCE_BURST as usize);
    }

    #[test]
    fn many_sources_share_the_total_and_little_memory() {
        let mut now = Instant::now();
        let mut admission = Admission::new(now);
        let mut admitted = 0_u32;
        for i in 0..100_000_u32 {
            now += Duration::from_millis(1);
            admitted += u32::from(admission.admit(IpAddr::from(i.to_be_bytes()), now));
            assert!(admission.sources.len() <= SOURCES_MAX);
        }
        let rate = 100_000 / u32::try_from(TOTAL_PAUSE.as_millis()).expect("small");
        assert!((rate..=rate + TOTAL_BURST + 1).contains(&admitted), "{admitted}");
    }
}
