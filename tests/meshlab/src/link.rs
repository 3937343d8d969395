//! The knobs and counters of a site's uplink, and the public address space that the WAN hands out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Sub;
use std::time::Duration;

/// Bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitRate(u64);

impl BitRate {
    /// `megabits` × 10⁶ bits per second; zero counts as one, a link without any rate is a cut link.
    #[must_use]
    pub const fn mbit(megabits: u64) -> Self {
        Self::bits(megabits.saturating_mul(1_000_000))
    }

    /// `bits` per second, at least one.
    #[must_use]
    pub const fn bits(bits: u64) -> Self {
        Self(if bits == 0 { 1 } else { bits })
    }

    #[must_use]
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }

    /// How long `bytes` occupy a link of this rate.
    pub(crate) fn transmit_time(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 8 * 1_000_000_000 / u128::from(self.0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Which IP versions there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    Dual,
}

impl Family {
    #[must_use]
    pub const fn has_v4(self) -> bool {
        matches!(self, Self::V4 | Self::Dual)
    }

    #[must_use]
    pub const fn has_v6(self) -> bool {
        matches!(self, Self::V6 | Self::Dual)
    }

    pub(crate) const fn has(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.has_v4() } else { self.has_v6() }
    }
}

/// What a site's uplink does to packets, the same in both directions.
///
/// A packet between two sites passes both uplinks, so delays add up and loss is met twice: with the default of 5 ms, the
/// round trip between two sites takes 2 × (5 ms + 5 ms) = 20 ms.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkOptions {
    /// One-way delay.
    pub delay: Duration,
    /// Probability that a packet is lost, 0 to 1.
    pub loss: f64,
    /// Probability that a packet is held back by `reorder_by`, so that later ones overtake it.
    pub reorder: f64,
    pub reorder_by: Duration,
    /// `None`: as fast as the machine.
    pub bandwidth: Option<BitRate>,
    /// With a bandwidth: how much may wait before the link drops, as time to send it.
    pub queue: Duration,
    /// Largest IP packet in bytes. The router's own interface stays at 1500: it is the WAN that refuses longer packets.
    pub mtu: usize,
    /// Refuse longer packets in silence: a path-MTU black hole.
    pub icmp_filtered: bool,
    /// What passes; packets of the other family vanish.
    pub family: Family,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(5),
            loss: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(5),
            bandwidth: None,
            queue: Duration::from_millis(100),
            mtu: 1500,
            icmp_filtered: false,
            family: Family::Dual,
        }
    }
}

/// The two ways over an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the site into the WAN.
    Up,
    /// From the WAN to the site.
    Down,
}

/// What one direction of an uplink saw. Super-packets count as the packets that a wire would carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionCounters {
    /// Packets at the router's WAN interface: sent by it (up) or delivered to it (down).
    pub packets: u64,
    /// IP bytes of those packets.
    pub bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped because the link was cut.
    pub cut: u64,
    /// Longer than the MTU.
    pub too_big: u64,
    /// The link's queue was full.
    pub queue_full: u64,
    /// Not of the link's family.
    pub wrong_family: u64,
    /// No site has the destination (up).
    pub no_route: u64,
}

/// Both directions of an uplink. Multicast and link-local chatter of the router itself is not counted: no WAN carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub up: DirectionCounters,
    pub down: DirectionCounters,
}

impl LinkCounters {
    /// Packets at the router's WAN interface, both ways.
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.up.packets + self.down.packets
    }

    /// Bytes at the router's WAN interface, both ways.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.up.bytes + self.down.bytes
    }
}

/// What happened since an earlier reading.
impl Sub for LinkCounters {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { up: self.up - earlier.up, down: self.down - earlier.down }
    }
}

impl Sub for DirectionCounters {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            packets: self.packets - earlier.packets,
            bytes: self.bytes - earlier.bytes,
            lost: self.lost - earlier.lost,
            cut: self.cut - earlier.cut,
            too_big: self.too_big - earlier.too_big,
            queue_full: self.queue_full - earlier.queue_full,
            wrong_family: self.wrong_family - earlier.wrong_family,
            no_route: self.no_route - earlier.no_route,
        }
    }
}

/// A site's routed public space: an IPv4 `/24` and an IPv6 `/64`.
///
/// The WAN numbers them 198.18.N.0/24 and 2001:db8:N::/64: benchmark (RFC 2544) and documentation (RFC 3849) space, which
/// nobody mistakes for private addresses and which exists nowhere else. N = 0 is the WAN itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// Network address of the `/24`.
    pub v4: Ipv4Addr,
    /// Network address of the `/64`.
    pub v6: Ipv6Addr,
}

impl Prefixes {
    pub(crate) const WAN: Self = Self::numbered(0);

    pub(crate) const fn numbered(number: u8) -> Self {
        Self { v4: Ipv4Addr::new(198, 18, number, 0), v6: Ipv6Addr::new(0x2001, 0xdb8, number as u16, 0, 0, 0, 0, 0) }
    }

    /// The address `last` of each prefix; the router's is 1.
    #[must_use]
    pub fn v4_host(&self, last: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.v4.octets();
        Ipv4Addr::new(a, b, c, last)
    }

    #[must_use]
    pub fn v6_host(&self, last: u8) -> Ipv6Addr {
        (self.v6.to_bits() | u128::from(last)).into()
    }

    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4.to_bits() >> 8 == self.v4.to_bits() >> 8,
            IpAddr::V6(v6) => v6.to_bits() >> 64 == self.v6.to_bits() >> 64,
        }
    }
}
