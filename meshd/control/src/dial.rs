//! Where a member may be found, and how often it is tried. Pure: time and jitter are arguments.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;
use vdc::Key;
use vdc::record::ContactAddress;

/// Addresses kept per node and source.
const PER_NODE_MAX: usize = 4;
/// Addresses tried in one dial, each by QUIC and TCP.
const CANDIDATES_MAX: usize = 24;
/// Names resolved for one dial.
pub(crate) const NAMES_MAX: usize = 4;

/// Addresses of members that did not come from their contact records.
#[derive(Debug, Default)]
pub(crate) struct AddressBook {
    /// Where a link was last up, newest first.
    seen: BTreeMap<Key, VecDeque<SocketAddr>>,
    /// Said by an administrator or an invite.
    manual: BTreeMap<Key, VecDeque<SocketAddr>>,
    /// Announced on the LAN.
    local: BTreeMap<Key, VecDeque<SocketAddr>>,
}

impl AddressBook {
    /// Notes where a link is up. True if that is news worth keeping.
    pub(crate) fn saw(&mut self, node: Key, address: SocketAddr) -> bool {
        push_front(self.seen.entry(node).or_default(), address)
    }

    pub(crate) fn add_manual(&mut self, node: Key, address: SocketAddr) -> bool {
        is_dialable(address) && push_front(self.manual.entry(node).or_default(), address)
    }

    pub(crate) fn add_local(&mut self, node: Key, address: SocketAddr) -> bool {
        is_dialable(address) && push_front(self.local.entry(node).or_default(), address)
    }

    pub(crate) fn remove_local(&mut self, node: &Key, address: SocketAddr) {
        if let Some(addresses) = self.local.get_mut(node) {
            addresses.retain(|a| *a != address);
        }
    }

    /// Forgets whoever is no member: what bounds the book.
    pub(crate) fn retain(&mut self, members: &BTreeSet<Key>) {
        for map in [&mut self.seen, &mut self.manual, &mut self.local] {
            map.retain(|node, addresses| members.contains(node) && !addresses.is_empty());
        }
    }

    /// Addresses to try, likeliest first, and names to resolve.
    pub(crate) fn candidates(&self, node: &Key, contact: &[ContactAddress]) -> (Vec<SocketAddr>, Vec<(String, u16)>) {
        let mut addresses = Vec::new();
        let mut names = Vec::new();
        let told = contact.iter().filter_map(|address| match address {
            ContactAddress::Ip(ip, port) => Some(SocketAddr::new(*ip, *port)),
            ContactAddress::Dns(name, port) => {
                if names.len() < NAMES_MAX {
                    names.push((name.clone(), *port));
                }
                None
            }
        });
        let noted = [&self.seen, &self.local, &self.manual].map(|map| map.get(node));
        for address in noted.into_iter().flatten().flatten().copied().chain(told) {
            if addresses.len() < CANDIDATES_MAX && is_dialable(address) && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        (addresses, names)
    }
}

/// Puts `address` first; true unless it was first already.
fn push_front(addresses: &mut VecDeque<SocketAddr>, address: SocketAddr) -> bool {
    if addresses.front() == Some(&address) {
        return false;
    }
    addresses.retain(|a| *a != address);
    addresses.push_front(address);
    addresses.truncate(PER_NODE_MAX);
    true
}

/// Whether a packet to this address can mean one host: link-local IPv6 cannot without its interface.
pub(crate) fn is_dialable(address: SocketAddr) -> bool {
    let host = match address.ip() {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && !v6.is_unicast_link_local(),
    };
    host && address.port() != 0
}

/// When to try a node again.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    pub(crate) retry_at: Instant,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LAST: Duration = Duration::from_secs(60);

    pub(crate) fn new(now: Instant) -> Self {
        Self { failures: 0, retry_at: now }
    }

    /// Doubles the pause up to [`Self::LAST`]. `jitter` is uniform over its type and moves the pause by up to a
    /// quarter either way, so that nodes that lost each other together do not return together.
    pub(crate) fn fail(&mut self, now: Instant, jitter: u16) {
        let pause = (Self::FIRST * 2_u32.saturating_pow(self.failures.min(16))).min(Self::LAST);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + pause * 3 / 4 + pause / 2 * u32::from(jitter) / (1 << 16);
    }

    pub(crate) fn reset(&mut self, now: Instant) {
        *self = Self::new(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Key = Key([1; 32]);

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("a literal")
    }

    #[test]
    fn candidates_are_ordered_by_likelihood_without_repeats() {
        let mut book = AddressBook::default();
        assert!(book.add_manual(NODE, address("192.0.2.3:1")));
        assert!(book.add_local(NODE, address("192.0.2.2:1")));
        assert!(book.saw(NODE, address("192.0.2.9:1")));
        assert!(book.saw(NODE, address("192.0.2.1:1")));
        assert!(!book.saw(NODE, address("192.0.2.1:1")), "no news");
        let contact = [
            ContactAddress::Ip("192.0.2.2".parse().expect("a literal"), 1),
            ContactAddress::Dns("node.example.org".to_owned(), 7),
            ContactAddress::Ip("192.0.2.4".parse().expect("a literal"), 1),
        ];
        let (addresses, names) = book.candidates(&NODE, &contact);
        let expect = ["192.0.2.1:1", "192.0.2.9:1", "192.0.2.2:1", "192.0.2.3:1", "192.0.2.4:1"].map(address);
        assert_eq!(addresses, expect);
        assert_eq!(names, [("node.example.org".to_owned(), 7)]);
    }

    #[test]
    fn book_is_bounded_and_forgets_who_left() {
        let mut book = AddressBook::default();
        for port in 1..=100 {
            book.saw(NODE, SocketAddr::new(address("192.0.2.1:1").ip(), port));
        }
        assert_eq!(book.candidates(&NODE, &[]).0.len(), PER_NODE_MAX);
        book.retain(&BTreeSet::new());
        assert!(book.candidates(&NODE, &[]).0.is_empty());
    }

    #[test]
    fn addresses_of_no_single_host_are_left_out() {
        for bad in
            ["0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "[::]:1", "[ff02::1]:1", "[fe80::1]:1", "192.0.2.1:0"]
        {
            assert!(!is_dialable(address(bad)), "{bad}");
        }
        for good in ["192.0.2.1:1", "127.0.0.1:1", "[2001:db8::1]:1", "[fd00::1]:1"] {
            assert!(is_dialable(address(good)), "{good}");
        }
    }

    #[test]
    fn backoff_doubles_to_its_limit_and_starts_over() {
        let now = Instant::now();
        let mut backoff = Backoff::new(now);
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            backoff.fail(now, u16::MAX / 2);
            let pause = backoff.retry_at - now;
            assert!(pause >= last && pause <= Backoff::LAST);
            last = pause;
        }
        assert!(last > Backoff::LAST * 9 / 10);
        for (jitter, least, most) in [(0, 45, 45), (u16::MAX, 74, 75)] {
            backoff.fail(now, jitter);
            let pause = backoff.retry_at - now;
            assert!(pause >= Duration::from_secs(least) && pause <= Duration::from_secs(most), "{pause:?}");
        }
        backoff.reset(now);
        backoff.fail(now, 0);
        assert!(backoff.retry_at - now < Backoff::FIRST);
    }
}
