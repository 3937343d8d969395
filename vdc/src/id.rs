//! Ids and names: one newtype per kind.

use std::fmt;
use std::str::FromStr;

use minicbor::bytes::ByteArray;

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident, $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The first 8 bytes in hexadecimal: enough to tell two apart in a log line.
            #[must_use]
            pub fn short(&self) -> String {
                data_encoding::HEXLOWER.encode(&self.0[..8])
            }
        }

        impl fmt::Display for $name {
            /// 64 hexadecimal digits.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                let bytes = data_encoding::HEXLOWER_PERMISSIVE
                    .decode(text.as_bytes())
                    .map_err(|_| HexError { what: $label, text: text.to_owned() })?;
                let bytes = bytes.try_into().map_err(|_| HexError { what: $label, text: text.to_owned() })?;
                Ok(Self(bytes))
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                ctx: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                ByteArray::from(self.0).encode(e, ctx)
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, ctx: &mut C) -> Result<Self, minicbor::decode::Error> {
                ByteArray::<32>::decode(d, ctx).map(|bytes| Self(*bytes))
            }
        }
    };
}

/// A key or hash that should be 64 hexadecimal digits and is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 64 hexadecimal digits, got {text:?}")]
pub struct HexError {
    what: &'static str,
    text: String,
}

bytes32!(
    /// An Ed25519 public key (RFC 8032): of a node, an owner or an invite. A node's key is its identity.
    Key,
    "Key"
);
bytes32!(
    /// An X25519 public key (RFC 7748): a node's WireGuard key.
    WgKey,
    "WgKey"
);
bytes32!(
    /// A BLAKE3-256 hash.
    Hash,
    "Hash"
);
bytes32!(
    /// The VDC's id: the hash of its genesis record, so that every key in it is pinned by the id.
    VdcId,
    "VdcId"
);

bytes32!(
    /// The chain of authority that a record stands on, as one hash: which right, given by whom, given by whom, up to the
    /// owners. A record names its own ([`crate::Signed::under`]), so a right given later cannot revive what an earlier,
    /// voided right had justified. See [`crate::roster`].
    Office,
    "Office"
);

impl Office {
    /// What owners' statements stand on: the VDC itself.
    #[must_use]
    pub fn root(vdc: &VdcId) -> Self {
        Self(vdc.0)
    }

    /// The joint office of the owners: what those stand on whom the owners delegated.
    #[must_use]
    pub fn owners(vdc: &VdcId) -> Self {
        Self(blake3::derive_key("meshd 2026 office of the owners", &vdc.0))
    }

    /// The office of `issuer`, which stands on `under`.
    #[must_use]
    pub fn of(issuer: &Key, under: &Self) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("meshd 2026 office");
        hasher.update(&under.0).update(&issuer.0);
        Self(*hasher.finalize().as_bytes())
    }
}

/// 16 random bytes that name one invite.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InviteId(pub [u8; 16]);

impl fmt::Display for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteId({self})")
    }
}

impl FromStr for InviteId {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        let error = || HexError { what: "invite id (32 digits)", text: text.to_owned() };
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| error())?;
        Ok(Self(bytes.try_into().map_err(|_| error())?))
    }
}

impl<C> minicbor::Encode<C> for InviteId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        ByteArray::from(self.0).encode(e, ctx)
    }
}

impl<'b, C> minicbor::Decode<'b, C> for InviteId {
    fn decode(d: &mut minicbor::Decoder<'b>, ctx: &mut C) -> Result<Self, minicbor::decode::Error> {
        ByteArray::<16>::decode(d, ctx).map(|bytes| Self(*bytes))
    }
}

/// A site's number: bits 48..64 of every address in it. Zero is never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode)]
#[cbor(transparent)]
pub struct SiteNumber(pub u16);

/// A VDC's, site's or node's name: one lower-case DNS label (RFC 1035 §2.3.1), 1 to 40 characters, letter first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode)]
#[cbor(transparent)]
pub struct Name(String);

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: use 1 to 40 of a-z, 0-9 and '-', a letter first, no '-' last")]
pub struct NameError(pub String);

impl Name {
    /// Longest name in characters: `WORKLOAD.SITE.VDC.internal` then stays far below DNS's 255.
    pub const LENGTH_MAX: usize = 40;

    /// Parses a name.
    ///
    /// # Errors
    /// [`NameError`] if it is not a lower-case DNS label of at most 40 characters that starts with a letter.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        let legal = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        let edges = bytes.first().is_some_and(u8::is_ascii_lowercase) && bytes.last() != Some(&b'-');
        if legal && edges && bytes.len() <= Self::LENGTH_MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.chars().take(80).collect()))
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Name {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::new(d.str()?).map_err(|_| minicbor::decode::Error::message("not a name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "berlin1", "a-b", "x23456789012345678901234567890123456789x"] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "1a", "-a", "a-", "a.b", "a_b", "ä", "x234567890123456789012345678901234567890x"] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }
}
