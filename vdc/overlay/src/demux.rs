//! Telling apart what arrives on the one socket, by its first bytes.

/// First bytes of our own frames outside WireGuard (relay frames of later releases).
pub const FRAME_MAGIC: [u8; 4] = [0x0a, b'm', b's', b'h'];

/// What a datagram is, before anything in it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// WireGuard message 1: somebody wants a tunnel.
    HandshakeInitiation,
    /// WireGuard message 2, for this receiver index.
    HandshakeResponse {
        receiver: u32,
    },
    /// WireGuard message 3, for this receiver index.
    CookieReply {
        receiver: u32,
    },
    /// WireGuard message 4, for this receiver index.
    Data {
        receiver: u32,
    },
    /// QUIC: the fixed bit is set (RFC 9000 §17; senders here do not grease it, RFC 9287).
    Quic,
    /// STUN: the magic cookie stands at 4..8 (RFC 8489 §5).
    Stun,
    /// A frame of our own.
    Frame,
    Garbage,
}

/// Lengths of WireGuard messages: initiation, response, cookie reply, and the shortest data message.
const INITIATION_BYTES: usize = 148;
const RESPONSE_BYTES: usize = 92;
const COOKIE_BYTES: usize = 64;
const DATA_BYTES_MIN: usize = 32;
const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Classifies a datagram. Constant time, no allocation.
#[must_use]
pub fn classify(datagram: &[u8]) -> Kind {
    let Some(head) = datagram.first_chunk::<8>() else { return Kind::Garbage };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    match (word(0), datagram.len()) {
        (1, INITIATION_BYTES) => Kind::HandshakeInitiation,
        (2, RESPONSE_BYTES) => datagram
            .get(8..12)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(Kind::Garbage, |bytes| Kind::HandshakeResponse { receiver: u32::from_le_bytes(bytes) }),
        (3, COOKIE_BYTES) => Kind::CookieReply { receiver: word(4) },
        (4, length) if length >= DATA_BYTES_MIN => Kind::Data { receiver: word(4) },
        _ if head[..4] == FRAME_MAGIC => Kind::Frame,
        _ if head[0] & 0xc0 == 0 && head[4..8] == STUN_COOKIE => Kind::Stun,
        _ if head[0] & 0x40 != 0 => Kind::Quic,
        _ => Kind::Garbage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_decide() {
        let datagram = |head: &[u8], length: usize| {
            let mut bytes = head.to_vec();
            bytes.resize(length, 0);
            bytes
        };
        for (bytes, kind) in [
            (datagram(&[1, 0, 0, 0], 148), Kind::HandshakeInitiation),
            (datagram(&[1, 0, 0, 0], 147), Kind::Garbage),
            (datagram(&[1, 0, 0, 1], 148), Kind::Garbage),
            (datagram(&[2, 0, 0, 0, 9, 9, 9, 9, 7, 1, 0, 0], 92), Kind::HandshakeResponse { receiver: 0x107 }),
            (datagram(&[3, 0, 0, 0, 7, 0, 0, 0], 64), Kind::CookieReply { receiver: 7 }),
            (datagram(&[4, 0, 0, 0, 7, 0, 0, 0], 32), Kind::Data { receiver: 7 }),
            (datagram(&[4, 0, 0, 0, 7, 0, 0, 0], 31), Kind::Garbage),
            (datagram(&[0xc0, 0, 0, 0, 1], 1200), Kind::Quic),
            (datagram(&[0x40], 30), Kind::Quic),
            (datagram(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42], 20), Kind::Stun),
            (datagram(&FRAME_MAGIC, 12), Kind::Frame),
            (datagram(&[], 8), Kind::Garbage),
            (vec![4, 0, 0], Kind::Garbage),
            (vec![], Kind::Garbage),
        ] {
            assert_eq!(classify(&bytes), kind, "{:?}…", &bytes[..bytes.len().min(12)]);
        }
    }
}
