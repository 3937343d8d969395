//! What a node says about its workloads: the part of an [`super::Exposure`] that names them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use minicbor::{Decode, Encode};

use super::{PortRange, are_disjoint};
use crate::Name;
use crate::address::WORKLOAD_MIN;

/// A workload of a node: what it is called, where it is, what may be reached there.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WorkloadExposure {
    /// Unique on the node; DNS label.
    #[n(0)]
    pub name: Name,
    /// Of its address inside the node's prefix, [`WORKLOAD_MIN`] or higher.
    #[n(1)]
    pub offset: u32,
    /// Inside the node's own block; believed only if it is.
    #[cbor(n(2), with = "option_ipv4", has_nil)]
    pub ipv4: Option<Ipv4Addr>,
    /// Ascending and disjoint, at most [`Self::PORTS_MAX`].
    #[n(3)]
    pub ports: Vec<PortRange>,
    /// Ascending, at most [`Self::LABELS_MAX`]. Believed only if the node's own grant carries them too.
    #[n(4)]
    pub labels: Vec<Name>,
}

impl WorkloadExposure {
    /// Workloads that one record names. All of them with a few ports and labels stay far below the longest record.
    pub const ENTRIES_MAX: usize = 256;
    pub const PORTS_MAX: usize = 64;
    /// As many as a grant has.
    pub const LABELS_MAX: usize = 64;

    /// Bytes on the heap, without the entry itself.
    pub(super) fn heap_bytes(&self) -> usize {
        let labels = self.labels.iter().map(|label| size_of::<Name>() + label.as_str().len());
        self.name.as_str().len() + self.ports.len() * size_of::<PortRange>() + labels.sum::<usize>()
    }
}

/// Limits and orderings that decoding alone does not enforce.
pub(super) fn check(workloads: &[WorkloadExposure]) -> Result<(), &'static str> {
    if workloads.len() > WorkloadExposure::ENTRIES_MAX || !workloads.is_sorted_by(|a, b| a.name < b.name) {
        return Err("workloads must be at most 256, ascending by name");
    }
    let offsets: BTreeSet<u32> = workloads.iter().map(|w| w.offset).collect();
    let addresses: Vec<Ipv4Addr> = workloads.iter().filter_map(|w| w.ipv4).collect();
    if offsets.len() < workloads.len() || addresses.iter().collect::<BTreeSet<_>>().len() < addresses.len() {
        return Err("two workloads have one address");
    }
    if offsets.first().is_some_and(|lowest| *lowest < WORKLOAD_MIN) {
        return Err("a workload has an address that is not for workloads");
    }
    for workload in workloads {
        if workload.ports.len() > WorkloadExposure::PORTS_MAX || !are_disjoint(&workload.ports) {
            return Err("a workload's ports must be at most 64 ascending, disjoint ranges");
        }
        if workload.labels.len() > WorkloadExposure::LABELS_MAX || !workload.labels.is_sorted_by(|a, b| a < b) {
            return Err("a workload's labels must be at most 64, ascending");
        }
    }
    Ok(())
}

/// Workloads of a record. None are left out of it, so that records from before there were any mean the same.
pub(super) mod list {
    use minicbor::{Decoder, Encoder};

    use super::WorkloadExposure;
    use crate::codec;

    pub(in crate::record) fn encode<C, W: minicbor::encode::Write>(
        workloads: &Vec<WorkloadExposure>,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.encode_with(workloads, ctx)?.ok()
    }

    /// Refuses a long list before it takes memory.
    pub(in crate::record) fn decode<'b, C>(
        d: &mut Decoder<'b>,
        ctx: &mut C,
    ) -> Result<Vec<WorkloadExposure>, minicbor::decode::Error> {
        codec::decode_list(d, ctx, WorkloadExposure::ENTRIES_MAX)
    }

    pub(in crate::record) fn nil() -> Option<Vec<WorkloadExposure>> {
        Some(Vec::new())
    }

    pub(in crate::record) fn is_nil(workloads: &[WorkloadExposure]) -> bool {
        workloads.is_empty()
    }
}

/// Null, or the address as a number.
mod option_ipv4 {
    use std::net::Ipv4Addr;

    use minicbor::{Decoder, Encoder};

    pub(super) fn encode<C, W: minicbor::encode::Write>(
        address: &Option<Ipv4Addr>,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.encode_with(address.map(Ipv4Addr::to_bits), ctx)?.ok()
    }

    pub(super) fn decode<'b, C>(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Option<Ipv4Addr>, minicbor::decode::Error> {
        Ok(d.decode_with::<C, Option<u32>>(ctx)?.map(Ipv4Addr::from_bits))
    }

    pub(super) fn nil() -> Option<Option<Ipv4Addr>> {
        Some(None)
    }

    pub(super) fn is_nil(address: &Option<Ipv4Addr>) -> bool {
        address.is_none()
    }
}
