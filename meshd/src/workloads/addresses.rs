//! Which addresses workloads of one VDC have on this node.
//!
//! An IPv6 offset counts up and comes back only after all others; an IPv4 address rests for a minute after its workload
//! went. Flows that are still known somewhere, and names that are still remembered, so lead to nobody instead of a
//! stranger.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use vdc::Ipv4Block;

/// Offsets below are the infra plane's, the host's and other parts' of the node.
pub(crate) const OFFSET_MIN: u32 = 0x1_0000;
/// Addresses of the block below are the infra plane's and the host's.
const IPV4_INDEX_MIN: u32 = 2;
/// How long an IPv4 address rests.
const REST: Duration = Duration::from_secs(60);
/// Link-local addresses for asking names only: 169.254.2.0 to 169.254.251.255, where the node's own are not (169.254.1.0/24).
const LINK_LOCAL_MIN: u32 = 0xa9fe_0200;
const LINK_LOCAL_MAX: u32 = 0xa9fe_fbff;

/// The addresses of one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// In the node's prefix.
    pub(crate) offset: u32,
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// Instead of IPv4, so that names can be asked.
    pub(crate) link_local: Option<Ipv4Addr>,
}

/// Hands addresses out.
#[derive(Debug)]
pub(crate) struct Addresses {
    block: Option<Ipv4Block>,
    next: u32,
    offsets: BTreeSet<u32>,
    ipv4: BTreeSet<Ipv4Addr>,
    resting: BTreeMap<Ipv4Addr, Instant>,
}

impl Addresses {
    /// `next` is an offset that was never handed out, as far as it is known.
    pub(crate) fn new(block: Option<Ipv4Block>, next: u32) -> Self {
        Self {
            block,
            next: next.max(OFFSET_MIN),
            offsets: BTreeSet::new(),
            ipv4: BTreeSet::new(),
            resting: BTreeMap::new(),
        }
    }

    /// The next offset that will be handed out.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// Free addresses for one more workload.
    pub(crate) fn take(&mut self, now: Instant) -> Held {
        self.resting.retain(|_, since| now.saturating_duration_since(*since) < REST);
        while !self.offsets.insert(self.next) {
            self.next = self.next.checked_add(1).unwrap_or(OFFSET_MIN);
        }
        let offset = self.next;
        self.next = self.next.checked_add(1).unwrap_or(OFFSET_MIN);
        let block = self.block;
        let of_block = (IPV4_INDEX_MIN..)
            .map_while(|index| block?.address(index))
            .filter(|address| block.is_some_and(|block| block.is_for_workloads(*address)));
        let ipv4 = self.free(of_block);
        let link_local =
            if ipv4.is_some() { None } else { self.free((LINK_LOCAL_MIN..=LINK_LOCAL_MAX).map(Ipv4Addr::from_bits)) };
        self.ipv4.extend(ipv4.or(link_local));
        Held { offset, ipv4, link_local }
    }

    fn free(&self, mut candidates: impl Iterator<Item = Ipv4Addr>) -> Option<Ipv4Addr> {
        candidates.find(|address| !self.ipv4.contains(address) && !self.resting.contains_key(address))
    }

    /// Notes what a workload of before holds.
    pub(crate) fn hold(&mut self, held: &Held) {
        self.offsets.insert(held.offset);
        self.ipv4.extend(held.ipv4.or(held.link_local));
    }

    /// Takes addresses back.
    pub(crate) fn release(&mut self, held: &Held, now: Instant) {
        self.offsets.remove(&held.offset);
        if let Some(address) = held.ipv4.or(held.link_local)
            && self.ipv4.remove(&address)
        {
            self.resting.insert(address, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Option<Ipv4Block> {
        Some(text.parse().expect("a block"))
    }

    #[test]
    fn no_address_is_anybody_elses() {
        let mut addresses = Addresses::new(block("10.64.0.0/28"), 0);
        let now = Instant::now();
        let all: Vec<Held> = (0..40).map(|_| addresses.take(now)).collect();
        let offsets: BTreeSet<u32> = all.iter().map(|held| held.offset).collect();
        assert_eq!((offsets.len(), offsets.first()), (40, Some(&OFFSET_MIN)));
        let v4: BTreeSet<Ipv4Addr> = all.iter().filter_map(|held| held.ipv4).collect();
        assert_eq!(v4.len(), 13, "the block without the infra plane, the host and the last");
        assert!(v4.iter().all(|address| *address >= Ipv4Addr::new(10, 64, 0, 2)));
        let local: BTreeSet<Ipv4Addr> = all.iter().filter_map(|held| held.link_local).collect();
        assert_eq!(local.len(), 27, "who has no IPv4 can ask names all the same");
        assert!(local.iter().all(|address| address.is_link_local() && address.octets()[2] != 1));
    }

    #[test]
    fn addresses_rest_before_they_come_back() {
        let mut addresses = Addresses::new(block("10.64.0.0/29"), 7);
        let now = Instant::now();
        let first = addresses.take(now);
        let second = addresses.take(now);
        assert_eq!(second.ipv4, Some(Ipv4Addr::new(10, 64, 0, 3)));
        let rest: Vec<Held> = (0..3).map(|_| addresses.take(now)).collect();
        assert!(rest.iter().all(|held| held.ipv4.is_some()));
        addresses.release(&first, now);
        let third = addresses.take(now + REST / 2);
        assert_eq!(third.ipv4, None, "the first one's rests");
        assert!(third.offset > second.offset);
        assert_eq!(addresses.take(now + REST).ipv4, first.ipv4);
    }

    #[test]
    fn what_is_held_from_before_is_passed_over() {
        let mut addresses = Addresses::new(block("10.64.0.0/24"), 0);
        let before = Held { offset: OFFSET_MIN, ipv4: Some(Ipv4Addr::new(10, 64, 0, 2)), link_local: None };
        addresses.hold(&before);
        let fresh = addresses.take(Instant::now());
        assert_eq!((fresh.offset, fresh.ipv4), (OFFSET_MIN + 1, Some(Ipv4Addr::new(10, 64, 0, 3))));
        let mut last = Addresses::new(None, u32::MAX);
        last.hold(&before);
        assert_eq!(last.take(Instant::now()).offset, u32::MAX);
        assert_eq!(last.take(Instant::now()).offset, OFFSET_MIN + 1, "from the start again");
    }
}
