//! What two members say to each other over a control link: one request, one response, each on its own stream.
//!
//! The link is mutually authenticated by node keys before a byte of this is read, so nothing here names its sender.

use std::net::{IpAddr, SocketAddr};

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::codec::{self, DecodeError};
use crate::{UnixTime, sync};

/// Name of the member protocol; the number changes when an older node could not follow.
pub const PROTOCOL: &str = "/meshd/peer/1";
/// Longest request or response in bytes: one batch of records (see [`sync`]) with room for one large tombstone.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Most candidates that one node offers for its data-plane socket.
pub const CANDIDATES_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Request {
    /// First on every new link, from both ends.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// One step of record sync; answered with [`Response::Done`], replies come as requests of their own.
    #[n(1)]
    Sync(#[n(0)] sync::Message),
    /// "Here is where my data-plane socket can be tried; where is yours?"
    #[n(2)]
    Endpoints(#[n(0)] Endpoints),
    /// "You were revoked": the encoded tombstone of the receiver, who believes it by its own records or not at all. The
    /// last thing that a revoked node hears, and the only one.
    #[n(3)]
    Revoked(#[n(0)] ByteVec),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Response {
    #[n(0)]
    Hello(#[n(0)] Hello),
    #[n(1)]
    Done,
    #[n(2)]
    Endpoints(#[n(0)] Endpoints),
    /// The request was understood and not granted.
    #[n(3)]
    Refused(#[n(0)] String),
}

/// Who is speaking, since when, and what time it is there.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Release, for example `0.1.0`.
    #[n(0)]
    pub version: String,
    /// Drawn at every start of the daemon: a new one tells peers to rebuild the tunnel, which also forgives a clock
    /// that went back (WireGuard refuses handshakes older than the last one).
    #[n(1)]
    pub boot_nonce: [u8; 16],
    /// The sender's system clock.
    #[n(2)]
    pub time: UnixTime,
    /// The address from which the sender sees the receiver.
    #[cbor(n(3), with = "crate::codec::option_ip", has_nil)]
    pub observed: Option<IpAddr>,
}

/// Where a data-plane socket can be tried.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Endpoints {
    #[n(0)]
    pub boot_nonce: [u8; 16],
    /// In the sender's order of preference.
    #[cbor(n(1), with = "crate::codec::socket_addresses")]
    pub candidates: Vec<SocketAddr>,
}

impl Request {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// # Errors
    /// [`DecodeError`] if the bytes are not one canonical request.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode("peer request", bytes, MESSAGE_BYTES_MAX)
    }
}

impl Response {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// # Errors
    /// [`DecodeError`] if the bytes are not one canonical response.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode("peer response", bytes, MESSAGE_BYTES_MAX)
    }
}
