//! What sync says on the wire. The version of these messages is the number in [`crate::peer::PROTOCOL`].

use std::sync::Arc;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::codec::{self, DecodeError};
use crate::record::RECORD_BYTES_MAX;
use crate::{Hash, Signed};

/// Most bytes of one message, unless it carries a single longer record.
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Most ranges in one message. A digest takes at most 35 bytes: 35 KiB.
pub const RANGES_MAX: usize = 1024;
/// Most record hashes in one message, over all its ranges: 128 KiB.
pub const IDS_MAX: usize = 4096;
/// Most records in one message: the shortest kinds take about 200 bytes.
pub const RECORDS_MAX: usize = 1024;

/// One step of record sync. Every step stands for itself: lost, repeated and reordered messages are harmless.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Message {
    /// "This is what I hold in these ranges." A digest of the root range starts a comparison.
    #[n(0)]
    Ranges(#[n(0)] Vec<Range>),
    /// "What you said of the root range is true of mine as well."
    #[n(1)]
    Equal(#[n(0)] Fingerprint),
    /// "I hold these; ask if you want them."
    #[n(2)]
    Have(#[n(0)] Ids),
    /// "Send me these."
    #[n(3)]
    Fetch(#[n(0)] Ids),
    /// Records, in an order in which a receiver can apply them.
    #[n(4)]
    Records(#[n(0)] Vec<Packed>),
}

impl Message {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// # Errors
    /// [`DecodeError`] if the bytes are not one canonical message within the limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let message: Self = codec::decode("sync message", bytes, RECORD_BYTES_MAX + 64)?;
        message.check()?;
        Ok(message)
    }

    /// Limits that decoding alone does not enforce; whoever decodes a message as part of another one calls it.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] naming the limit.
    pub fn check(&self) -> Result<(), DecodeError> {
        let invalid = |why| Err(DecodeError::Invalid { what: "sync message", why });
        match self {
            Self::Ranges(ranges) if ranges.is_empty() || ranges.len() > RANGES_MAX => invalid("1 to 1024 ranges"),
            Self::Ranges(ranges) if !ranges.is_sorted_by(|a, b| a.prefix.last() < b.prefix.first()) => {
                invalid("ranges must be ascending and disjoint")
            }
            Self::Ranges(ranges) if ranges.iter().map(Range::ids_len).sum::<usize>() > IDS_MAX => {
                invalid("more than 4096 hashes")
            }
            Self::Ranges(ranges) if !ranges.iter().all(Range::ids_inside) => invalid("a hash outside its range"),
            Self::Have(ids) | Self::Fetch(ids) if ids.0.is_empty() || ids.0.len() > IDS_MAX => {
                invalid("1 to 4096 hashes")
            }
            Self::Records(records) if records.is_empty() || records.len() > RECORDS_MAX => invalid("1 to 1024 records"),
            Self::Ranges(_) | Self::Equal(_) | Self::Have(_) | Self::Fetch(_) | Self::Records(_) => Ok(()),
        }
    }

    /// Bytes that the message takes, near enough for budgets, without encoding records again.
    #[must_use]
    pub(super) fn cost(&self) -> usize {
        16 + match self {
            Self::Ranges(ranges) => ranges.iter().map(|r| 36 + 32 * r.ids_len()).sum(),
            Self::Equal(_) => 0,
            Self::Have(ids) | Self::Fetch(ids) => 32 * ids.0.len(),
            Self::Records(records) => records.iter().map(Packed::cost).sum(),
        }
    }
}

/// What one side holds in a part of the hash space.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Range {
    #[n(0)]
    pub prefix: Prefix,
    #[n(1)]
    pub content: Content,
}

impl Range {
    fn ids_len(&self) -> usize {
        match &self.content {
            Content::Digest(..) => 0,
            Content::Ids(ids) => ids.0.len(),
        }
    }

    fn ids_inside(&self) -> bool {
        match &self.content {
            Content::Digest(..) => true,
            Content::Ids(Ids(ids)) => {
                ids.first().is_none_or(|id| *id >= self.prefix.first())
                    && ids.last().is_none_or(|id| *id <= self.prefix.last())
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Content {
    /// How many records, and the [`Fingerprint`] of their hashes.
    #[n(0)]
    Digest(#[n(0)] u32, #[n(1)] Fingerprint),
    /// All of them.
    #[n(1)]
    Ids(#[n(0)] Ids),
}

/// 128 bits of BLAKE3 over the ascending record hashes of a range: a hash of hashes, because sums and XORs of hashes can
/// be steered by whoever may choose records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// The fingerprint of ascending hashes, and their number.
    pub fn of(hashes: impl Iterator<Item = Hash>) -> (u32, Self) {
        // BLAKE3 hashes up to 16 KiB at once four times as fast as the same bytes in pieces of 32.
        const BUFFER_BYTES: usize = 64 << 10;
        let mut hasher = blake3::Hasher::new_derive_key("meshd 2026 sync range");
        let mut buffer = Vec::new();
        let mut count = 0_u32;
        for hash in hashes {
            if buffer.len() == BUFFER_BYTES {
                hasher.update(&buffer);
                buffer.clear();
            }
            buffer.extend_from_slice(&hash.0);
            count = count.saturating_add(1);
        }
        hasher.update(&buffer);
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        (count, Self(fingerprint))
    }
}

impl<C> Encode<C> for Fingerprint {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Fingerprint {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        d.bytes()?.try_into().map(Self).map_err(|_| minicbor::decode::Error::message("a fingerprint has 16 bytes"))
    }
}

/// All hashes that begin with the same nibbles. Record hashes are uniform, so a level splits a range into 16 even parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    nibbles: u8,
    /// The nibbles as one number, so that shallow prefixes are short on the wire.
    value: u64,
}

impl Prefix {
    /// Every hash.
    pub const ROOT: Self = Self { nibbles: 0, value: 0 };
    /// Deepest level: ranges of that depth are never split. Two hashes that share one take 2^60 tries.
    pub const NIBBLES_MAX: u8 = 15;

    /// The prefix of `nibbles` nibbles, none if that is deeper than [`Self::NIBBLES_MAX`] or `value` has more of them.
    #[must_use]
    pub fn new(nibbles: u8, value: u64) -> Option<Self> {
        (nibbles <= Self::NIBBLES_MAX && value < 1 << (4 * u32::from(nibbles))).then_some(Self { nibbles, value })
    }

    /// The 16 parts of the range, ascending; none at the deepest level.
    pub fn children(self) -> impl Iterator<Item = Self> {
        let parts = if self.nibbles < Self::NIBBLES_MAX { 0..16 } else { 0..0 };
        parts.map(move |part| Self { nibbles: self.nibbles + 1, value: self.value << 4 | part })
    }

    /// Whether the range can be split.
    #[must_use]
    pub fn is_deepest(self) -> bool {
        self.nibbles == Self::NIBBLES_MAX
    }

    /// The lowest hash in the range.
    #[must_use]
    pub fn first(self) -> Hash {
        self.edge(0)
    }

    /// The highest hash in the range.
    #[must_use]
    pub fn last(self) -> Hash {
        self.edge(0xff)
    }

    fn edge(self, fill: u8) -> Hash {
        let free = 64 - 4 * u32::from(self.nibbles);
        let low = if fill == 0 { 0 } else { u64::MAX.checked_shr(64 - free).unwrap_or(0) };
        let high = self.value.checked_shl(free).unwrap_or(0);
        let mut bytes = [fill; 32];
        bytes[..8].copy_from_slice(&(high | low).to_be_bytes());
        Hash(bytes)
    }
}

impl<C> Encode<C> for Prefix {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(2)?.u8(self.nibbles)?.u64(self.value)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Prefix {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        if d.array()? != Some(2) {
            return Err(minicbor::decode::Error::message("a prefix is an array of two"));
        }
        Self::new(d.u8()?, d.u64()?).ok_or_else(|| minicbor::decode::Error::message("not a prefix"))
    }
}

/// Record hashes, ascending and distinct; on the wire one byte string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids(Vec<Hash>);

impl Ids {
    #[must_use]
    pub fn as_slice(&self) -> &[Hash] {
        &self.0
    }
}

impl FromIterator<Hash> for Ids {
    fn from_iter<I: IntoIterator<Item = Hash>>(hashes: I) -> Self {
        let mut hashes: Vec<Hash> = hashes.into_iter().collect();
        hashes.sort_unstable();
        hashes.dedup();
        Self(hashes)
    }
}

impl<C> Encode<C> for Ids {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0.iter().flat_map(|h| h.0).collect::<Vec<u8>>())?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Ids {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let (hashes, rest) = d.bytes()?.as_chunks::<32>();
        if !rest.is_empty() || !hashes.is_sorted_by(|a, b| a < b) {
            return Err(minicbor::decode::Error::message("hashes must be whole, ascending and distinct"));
        }
        Ok(Self(hashes.iter().copied().map(Hash).collect()))
    }
}

/// A record on its way: shared while it stays in this process, bytes as soon as it crossed a wire.
///
/// Bytes are opened one by one, so a record that this release cannot read costs nothing but itself.
#[derive(Clone, Debug)]
pub enum Packed {
    Shared(Arc<Signed>),
    Bytes(ByteVec),
}

impl Packed {
    /// # Errors
    /// [`DecodeError`] if the bytes are not one canonical record.
    pub fn open(self) -> Result<Arc<Signed>, DecodeError> {
        match self {
            Self::Shared(record) => Ok(record),
            Self::Bytes(bytes) => Signed::decode(&bytes).map(Arc::new),
        }
    }

    /// Bytes that the record takes, near enough for budgets.
    pub(super) fn cost(&self) -> usize {
        match self {
            // Whoever shares memory with us is not a foreign peer; the typical length will do.
            Self::Shared(_) => 400,
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Shared(a), Self::Shared(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Shared(record), Self::Bytes(bytes)) | (Self::Bytes(bytes), Self::Shared(record)) => {
                record.encode() == **bytes
            }
        }
    }
}

impl Eq for Packed {}

impl<C> Encode<C> for Packed {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match self {
            Self::Shared(record) => e.bytes(&record.encode())?,
            Self::Bytes(bytes) => e.bytes(bytes)?,
        };
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Packed {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Ok(Self::Bytes(d.bytes()?.to_vec().into()))
    }
}
