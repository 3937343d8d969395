//! What the packet threads know: an immutable picture of routes and tunnels, replaced as a whole by the overlay thread.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use vdc::address::INFRA;
use vdc::{Ipv4Block, NodePrefix};
use vdc_overlay::packet::Probe;

use crate::datapath::VdcPort;
use crate::tunnel::Tunnel;

/// Number of a VDC on this node, as long as the process lives.
pub(crate) type VdcSlot = u32;

/// Bits of a receiver index that count a tunnel's sessions (boringtun's choice).
pub(crate) const SESSION_BITS: u32 = 8;

/// Hashes keys that are random already: 24-bit tunnel indices, and the node part of a /96 (derived by BLAKE3).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RandomKeyHasher(u64);

impl Hasher for RandomKeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(value)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

type RandomKeyMap<K, V> = HashMap<K, V, BuildHasherDefault<RandomKeyHasher>>;

/// The other address that the overlay was last told about: once is enough, if it arrives.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Option<SocketAddr>>);

impl Told {
    /// Tells the overlay of `remote` unless it has been told. A notice that `tell` had no room for was not told: the next
    /// packet from there tries again, or the peer's move would go unnoticed for as long as the snapshot lasts.
    pub(crate) fn tell_once(&self, remote: SocketAddr, tell: impl FnOnce() -> bool) {
        let mut told = self.0.lock();
        if *told != Some(remote) && tell() {
            *told = Some(remote);
        }
    }
}

/// A live tunnel, and what may go through it.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) slot: VdcSlot,
    pub(crate) port: Arc<VdcPort>,
    pub(crate) tunnel: Arc<Tunnel>,
    pub(crate) prefix: NodePrefix,
    pub(crate) ipv4: Option<Ipv4Block>,
    /// The tunnel's upper 24 index bits.
    pub(crate) index: u32,
    /// Where sealed packets go; `None` until the overlay knows that the tunnel is up.
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) told: Told,
}

impl Route {
    /// Whether the peer may send from the packet's source: its own prefix or block, nothing else.
    fn owns_source(&self, packet: &[u8]) -> bool {
        match addresses(packet) {
            Some(Addresses::V6 { source, .. }) => self.prefix.contains(source),
            Some(Addresses::V4 { source, .. }) => self.ipv4.is_some_and(|block| block.contains(source)),
            None => false,
        }
    }
}

/// One VDC's part of the picture.
#[derive(Debug)]
pub(crate) struct VdcRoutes {
    pub(crate) own_prefix: NodePrefix,
    pub(crate) own_ipv4: Option<Ipv4Block>,
    by_prefix: RandomKeyMap<NodePrefix, Arc<Route>>,
    /// Sorted by network; blocks of different nodes do not overlap.
    by_ipv4: Vec<(Ipv4Block, Arc<Route>)>,
}

impl VdcRoutes {
    pub(crate) fn new(own_prefix: NodePrefix, own_ipv4: Option<Ipv4Block>, routes: &[Arc<Route>]) -> Self {
        let by_prefix = routes.iter().map(|route| (route.prefix, Arc::clone(route))).collect();
        let mut by_ipv4: Vec<_> = routes.iter().filter_map(|route| Some((route.ipv4?, Arc::clone(route)))).collect();
        by_ipv4.sort_by_key(|(block, _)| block.network());
        Self { own_prefix, own_ipv4, by_prefix, by_ipv4 }
    }

    /// The tunnel that a packet read from the TUN belongs into.
    pub(crate) fn route(&self, packet: &[u8]) -> Option<&Arc<Route>> {
        match addresses(packet)? {
            Addresses::V6 { destination, .. } => self.by_prefix.get(&NodePrefix::of(destination)),
            Addresses::V4 { destination, .. } => {
                let after = self.by_ipv4.partition_point(|(block, _)| block.network() <= destination);
                let (block, route) = self.by_ipv4.get(after.checked_sub(1)?)?;
                block.contains(destination).then_some(route)
            }
        }
    }

    fn owns_destination(&self, packet: &[u8]) -> bool {
        match addresses(packet) {
            Some(Addresses::V6 { destination, .. }) => self.own_prefix.contains(destination),
            Some(Addresses::V4 { destination, .. }) => self.own_ipv4.is_some_and(|own| own.contains(destination)),
            None => false,
        }
    }
}

/// What to do with a packet that a tunnel brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// To the TUN.
    Deliver,
    /// A measuring packet between infra planes: to the overlay.
    Probe,
    SourceNotPeer,
    DestinationNotOurs,
}

/// Everything, for one batch.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) vdcs: HashMap<VdcSlot, Arc<VdcRoutes>>,
    by_index: RandomKeyMap<u32, Arc<Route>>,
}

impl Snapshot {
    pub(crate) fn new(vdcs: HashMap<VdcSlot, Arc<VdcRoutes>>) -> Self {
        let mut by_index = RandomKeyMap::default();
        #[expect(clippy::iter_over_hash_type, reason = "one map is filled from another: order has no effect")]
        for routes in vdcs.values() {
            by_index.extend(routes.by_prefix.values().map(|route| (route.index, Arc::clone(route))));
        }
        Self { vdcs, by_index }
    }

    /// The tunnel of a receiver index.
    pub(crate) fn tunnel(&self, receiver: u32) -> Option<&Arc<Route>> {
        self.by_index.get(&(receiver >> SESSION_BITS))
    }

    /// Judges a packet that was opened by `route`'s tunnel.
    pub(crate) fn admit(&self, route: &Route, packet: &[u8]) -> Admission {
        if !route.owns_source(packet) {
            return Admission::SourceNotPeer;
        }
        let Some(own) = self.vdcs.get(&route.slot) else { return Admission::DestinationNotOurs };
        if !own.owns_destination(packet) {
            return Admission::DestinationNotOurs;
        }
        let to_infra = packet.get(24..40) == Some(&own.own_prefix.address(INFRA).octets());
        if to_infra && Probe::decode(packet).is_some() { Admission::Probe } else { Admission::Deliver }
    }
}

enum Addresses {
    V4 { source: Ipv4Addr, destination: Ipv4Addr },
    V6 { source: Ipv6Addr, destination: Ipv6Addr },
}

fn addresses(packet: &[u8]) -> Option<Addresses> {
    match packet.first()? >> 4 {
        4 => {
            let bytes: &[u8; 8] = packet.get(12..20)?.try_into().ok()?;
            let [a, b, c, d, e, f, g, h] = *bytes;
            Some(Addresses::V4 { source: Ipv4Addr::new(a, b, c, d), destination: Ipv4Addr::new(e, f, g, h) })
        }
        6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            Some(Addresses::V6 { source: source.into(), destination: destination.into() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notice_that_found_no_room_is_given_again() {
        let (told, here) = (Told::default(), SocketAddr::from(([192, 0, 2, 1], 1)));
        let there = SocketAddr::from(([192, 0, 2, 2], 1));
        let mut given = vec![];
        for (remote, room) in [(here, false), (here, true), (here, true), (there, true), (here, true)] {
            told.tell_once(remote, || {
                given.push((remote, room));
                room
            });
        }
        assert_eq!(given, [(here, false), (here, true), (there, true), (here, true)]);
    }
}
