//! The record that lets one node make a coordination group.

use minicbor::{Decode, Encode};

use crate::{Key, SiteNumber, UnixTime};

/// What a coordination group serves, and what is homed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(flat)]
pub enum Home {
    /// The VDC as a whole.
    #[n(0)]
    Vdc,
    /// One site.
    #[n(1)]
    Site(#[n(0)] SiteNumber),
}

/// Tells one node to make the group of a home; nobody else may. The group's id is the hash of the signed record.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Founding {
    #[n(0)]
    pub home: Home,
    /// Orders the foundings of one home, whoever signed them. The first is 1; a recovery takes the next.
    #[n(1)]
    pub serial: u64,
    /// The node that may make the group; the issuer may be another.
    #[n(2)]
    pub founder: Key,
    #[n(3)]
    pub created: UnixTime,
}
