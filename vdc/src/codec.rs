//! Strict canonical CBOR (RFC 8949 §4.2): one value has exactly one encoding, and nothing else decodes.
//!
//! Strictness is enforced in one place: [`decode`] re-encodes what it read and compares. Whatever a lenient decoder
//! would forgive (longer integers, indefinite lengths, unknown trailing fields) is therefore refused.

use minicbor::{Decode, Encode};

/// Why bytes are not a canonical value.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("{what} of {length} bytes is longer than the {length_max} allowed")]
    TooLong { what: &'static str, length: usize, length_max: usize },
    #[error("{what} is not valid CBOR")]
    Malformed {
        what: &'static str,
        #[source]
        source: minicbor::decode::Error,
    },
    #[error("{what} is not canonically encoded")]
    NotCanonical { what: &'static str },
    #[error("{what} has format version {version}, this release reads {supported}")]
    Version { what: &'static str, version: u32, supported: u32 },
    #[error("{what} is invalid: {why}")]
    Invalid { what: &'static str, why: &'static str },
}

/// Encodes a value; deterministic for equal values.
#[must_use]
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to a Vec cannot fail, and our encoders raise no error of their own")
}

/// Decodes exactly one canonical value that fills `bytes`.
///
/// # Errors
/// [`DecodeError`] if the input exceeds `length_max`, does not decode, or decodes but is not the canonical encoding.
pub fn decode<'b, T>(what: &'static str, bytes: &'b [u8], length_max: usize) -> Result<T, DecodeError>
where
    T: Decode<'b, ()> + Encode<()>,
{
    if bytes.len() > length_max {
        return Err(DecodeError::TooLong { what, length: bytes.len(), length_max });
    }
    let value = minicbor::decode::<T>(bytes).map_err(|source| DecodeError::Malformed { what, source })?;
    if encode(&value) == bytes { Ok(value) } else { Err(DecodeError::NotCanonical { what }) }
}

/// Decodes a definite list of at most `length_max` elements: a longer one is refused before it takes memory.
///
/// # Errors
/// Those of the elements, or if the list is longer or of indefinite length.
pub(crate) fn decode_list<'b, C, T: Decode<'b, C>>(
    d: &mut minicbor::Decoder<'b>,
    ctx: &mut C,
    length_max: usize,
) -> Result<Vec<T>, minicbor::decode::Error> {
    let length = d.array()?.ok_or_else(|| minicbor::decode::Error::message("indefinite list"))?;
    if length > length_max as u64 {
        return Err(minicbor::decode::Error::message("list too long"));
    }
    (0..length).map(|_| d.decode_with(ctx)).collect()
}

/// IP addresses as 4 or 16 bytes.
pub mod ip {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use minicbor::{Decoder, Encoder};

    /// # Errors
    /// Those of the writer.
    pub fn encode<C, W: minicbor::encode::Write>(
        address: &IpAddr,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match address {
            IpAddr::V4(v4) => e.bytes(&v4.octets())?,
            IpAddr::V6(v6) => e.bytes(&v6.octets())?,
        };
        Ok(())
    }

    /// # Errors
    /// If the input is not 4 or 16 bytes.
    pub fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<IpAddr, minicbor::decode::Error> {
        let bytes = d.bytes()?;
        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            Ok(IpAddr::V4(Ipv4Addr::from(v4)))
        } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
            Ok(IpAddr::V6(Ipv6Addr::from(v6)))
        } else {
            Err(minicbor::decode::Error::message("an IP address has 4 or 16 bytes"))
        }
    }
}

/// An optional IP address: null or bytes.
pub mod option_ip {
    use std::net::IpAddr;

    use minicbor::{Decoder, Encoder, data::Type};

    /// # Errors
    /// Those of the writer.
    pub fn encode<C, W: minicbor::encode::Write>(
        address: &Option<IpAddr>,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match address {
            Some(address) => super::ip::encode(address, e, ctx),
            None => e.null().map(|_| ()),
        }
    }

    /// # Errors
    /// If the input is neither null nor an IP address.
    pub fn decode<'b, C>(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Option<IpAddr>, minicbor::decode::Error> {
        if d.datatype()? == Type::Null {
            d.null()?;
            return Ok(None);
        }
        super::ip::decode(d, ctx).map(Some)
    }

    #[must_use]
    pub fn nil() -> Option<Option<IpAddr>> {
        Some(None)
    }

    #[must_use]
    pub fn is_nil(address: &Option<IpAddr>) -> bool {
        address.is_none()
    }
}

/// Socket addresses as 6 or 18 bytes each: address, then port in network order.
pub mod socket_addresses {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use minicbor::{Decoder, Encoder};

    /// # Errors
    /// Those of the writer.
    pub fn encode<C, W: minicbor::encode::Write>(
        addresses: &Vec<SocketAddr>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(addresses.len() as u64)?;
        for address in addresses {
            let mut bytes = match address.ip() {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            bytes.extend(address.port().to_be_bytes());
            e.bytes(&bytes)?;
        }
        Ok(())
    }

    /// # Errors
    /// If an element is not 6 or 18 bytes, or there are more than [`crate::peer::CANDIDATES_MAX`].
    pub fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<Vec<SocketAddr>, minicbor::decode::Error> {
        let length = d.array()?.ok_or_else(|| minicbor::decode::Error::message("indefinite array"))?;
        if length > crate::peer::CANDIDATES_MAX as u64 {
            return Err(minicbor::decode::Error::message("too many candidates"));
        }
        let mut addresses = Vec::new();
        for _ in 0..length {
            let bytes = d.bytes()?;
            let (ip, port) = bytes
                .split_last_chunk::<2>()
                .ok_or_else(|| minicbor::decode::Error::message("a socket address has 6 or 18 bytes"))?;
            let ip = if let Ok(v4) = <[u8; 4]>::try_from(ip) {
                IpAddr::V4(Ipv4Addr::from(v4))
            } else if let Ok(v6) = <[u8; 16]>::try_from(ip) {
                IpAddr::V6(Ipv6Addr::from(v6))
            } else {
                return Err(minicbor::decode::Error::message("a socket address has 6 or 18 bytes"));
            };
            addresses.push(SocketAddr::new(ip, u16::from_be_bytes(*port)));
        }
        Ok(addresses)
    }
}
