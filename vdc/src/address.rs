//! Overlay addresses: everything is derived, nothing is allocated twice.
//!
//! ```text
//!  fd | 40 bits of vdc_id | site (16) | node (32) | inside the node (32)
//!  └────────── VDC /48 ───┴─ site /64 ┴ node /96 ─┘   ::0 infra, ::1 host, the rest workloads
//! ```
//! IPv4 is optional and small: the site record holds a block, the member record a sub-block of it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::{Key, SiteNumber, VdcId};

/// Offset of the infra plane's address inside a node's prefix.
pub const INFRA: u32 = 0;
/// Offset of the host-as-a-tenant address inside a node's prefix and inside its IPv4 block.
pub const HOST: u32 = 1;
/// Lowest offset of a workload's address inside a node's prefix. What lies between is kept for the node's own services.
pub const WORKLOAD_MIN: u32 = 0x1_0000;

/// The VDC's /48 (RFC 4193: `fd` and 40 bits).
#[must_use]
pub fn vdc_prefix(vdc: &VdcId) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&vdc.0[..5]);
    Ipv6Addr::from(octets)
}

/// The site's /64 inside the VDC.
#[must_use]
pub fn site_prefix(vdc: &VdcId, site: SiteNumber) -> Ipv6Addr {
    let mut octets = vdc_prefix(vdc).octets();
    octets[6..8].copy_from_slice(&site.0.to_be_bytes());
    Ipv6Addr::from(octets)
}

/// A node's /96. The fourth quarter of every address in it is the node's own to give out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePrefix([u8; 12]);

impl NodePrefix {
    /// Derives a node's /96 from its key. `bump` is 0 unless the registrar found the result taken.
    #[must_use]
    pub fn derive(vdc: &VdcId, site: SiteNumber, node: &Key, bump: u8) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("meshd 2026 node address");
        hasher.update(&node.0);
        hasher.update(&[bump]);
        let mut octets = [0; 12];
        octets[..8].copy_from_slice(&site_prefix(vdc, site).octets()[..8]);
        octets[8..].copy_from_slice(&hasher.finalize().as_bytes()[..4]);
        Self(octets)
    }

    /// The /96 that `address` lies in.
    #[must_use]
    pub fn of(address: Ipv6Addr) -> Self {
        let mut octets = [0; 12];
        octets.copy_from_slice(&address.octets()[..12]);
        Self(octets)
    }

    /// The address at `offset` inside the prefix: [`INFRA`], [`HOST`] or a workload's.
    #[must_use]
    pub fn address(self, offset: u32) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets[..12].copy_from_slice(&self.0);
        octets[12..].copy_from_slice(&offset.to_be_bytes());
        Ipv6Addr::from(octets)
    }

    #[must_use]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        Self::of(address) == self
    }
}

impl fmt::Display for NodePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/96", self.address(0))
    }
}

impl fmt::Debug for NodePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IPv4 CIDR block whose host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4Block {
    network: Ipv4Addr,
    length: u8,
}

/// Why a text is not an IPv4 block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 block such as 10.64.0.0/16 with all host bits zero")]
pub struct Ipv4BlockError(pub String);

impl Ipv4Block {
    /// # Errors
    /// [`Ipv4BlockError`] if `length` exceeds 32 or a host bit is set.
    pub fn new(network: Ipv4Addr, length: u8) -> Result<Self, Ipv4BlockError> {
        let block = Self { network, length };
        if length <= 32 && network.to_bits() & !block.mask() == 0 {
            Ok(block)
        } else {
            Err(Ipv4BlockError(format!("{network}/{length}")))
        }
    }

    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// Prefix length in bits.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }

    fn mask(self) -> u32 {
        if self.length == 0 { 0 } else { u32::MAX << (32 - u32::from(self.length.min(32))) }
    }

    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.network.to_bits()
    }

    /// Whether the two blocks share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// The address at `offset` from the network address, if the block has it.
    #[must_use]
    pub fn address(self, offset: u32) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from_bits(self.network.to_bits().checked_add(offset)?);
        self.contains(address).then_some(address)
    }

    /// Whether a node may give an address of its block to a workload: none but the network's, the host's and the last.
    #[must_use]
    pub fn is_for_workloads(self, address: Ipv4Addr) -> bool {
        let last = self.network.to_bits() | !self.mask();
        self.contains(address) && address.to_bits() - self.network.to_bits() > HOST && address.to_bits() < last
    }

    /// The `index`th sub-block of prefix length `length`, if the block has it.
    #[must_use]
    pub fn sub_block(self, length: u8, index: u32) -> Option<Self> {
        if length < self.length || length > 32 {
            return None;
        }
        let start = u64::from(index) << (32 - u32::from(length));
        let network = self.address(u32::try_from(start).ok()?)?;
        Self::new(network, length).ok()
    }
}

impl fmt::Display for Ipv4Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

impl fmt::Debug for Ipv4Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Ipv4Block {
    type Err = Ipv4BlockError;

    fn from_str(text: &str) -> Result<Self, Ipv4BlockError> {
        let error = || Ipv4BlockError(text.to_owned());
        let (network, length) = text.split_once('/').ok_or_else(error)?;
        let network = network.parse().map_err(|_| error())?;
        Self::new(network, length.parse().map_err(|_| error())?).map_err(|_| error())
    }
}

impl<C> minicbor::Encode<C> for Ipv4Block {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(2)?.u32(self.network.to_bits())?.u8(self.length)?;
        Ok(())
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Ipv4Block {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        if d.array()? != Some(2) {
            return Err(minicbor::decode::Error::message("an IPv4 block is an array of two"));
        }
        let (network, length) = (Ipv4Addr::from_bits(d.u32()?), d.u8()?);
        Self::new(network, length).map_err(|_| minicbor::decode::Error::message("an IPv4 block has zero host bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_address_nests_in_site_and_vdc() {
        let (vdc, node) = (VdcId([0xab; 32]), Key([7; 32]));
        let prefix = NodePrefix::derive(&vdc, SiteNumber(0x1234), &node, 0);
        let host = prefix.address(HOST);
        assert!(host.to_string().starts_with("fdab:abab:abab:1234:"), "{host}");
        assert_eq!(host.octets()[12..], [0, 0, 0, 1]);
        assert!(prefix.contains(host));
        assert_ne!(prefix, NodePrefix::derive(&vdc, SiteNumber(0x1234), &node, 1));
    }

    #[test]
    fn ipv4_block_has_13_addresses_for_workloads() {
        let block: Ipv4Block = "10.64.16.16/28".parse().expect("valid");
        let free = |last: u8| block.is_for_workloads(Ipv4Addr::new(10, 64, 16, last));
        assert_eq!((0..=255).filter(|last| free(*last)).collect::<Vec<u8>>(), (18..31).collect::<Vec<u8>>());
        let whole: Ipv4Block = "0.0.0.0/0".parse().expect("valid");
        assert!(!whole.is_for_workloads(Ipv4Addr::BROADCAST) && whole.is_for_workloads(Ipv4Addr::LOCALHOST));
        assert!(!"10.0.0.0/32".parse::<Ipv4Block>().expect("valid").is_for_workloads(Ipv4Addr::new(10, 0, 0, 0)));
    }

    #[test]
    fn ipv4_block_splits_and_refuses_host_bits() {
        let block: Ipv4Block = "10.64.16.0/20".parse().expect("valid");
        assert_eq!(block.sub_block(28, 1).expect("inside").to_string(), "10.64.16.16/28");
        assert_eq!(block.sub_block(28, 255).expect("inside").to_string(), "10.64.31.240/28");
        assert_eq!(block.sub_block(28, 256), None);
        assert_eq!(block.sub_block(19, 0), None);
        assert!("10.64.16.1/20".parse::<Ipv4Block>().is_err());
        assert!("10.64.16.0/33".parse::<Ipv4Block>().is_err());
        assert!("0.0.0.0/0".parse::<Ipv4Block>().expect("valid").overlaps(block));
    }
}
