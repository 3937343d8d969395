//! Frames of a stream socket, both directions: `u8 kind, u32 length (big endian), bytes`.

/// Bytes of one frame's body.
pub(crate) const BODY_BYTES_MAX: usize = 65_536;

/// Bytes before the body.
const HEAD_BYTES: usize = 5;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Resize = 3,
    Signal = 4,
    StdinEof = 5,
    Exit = 6,
    Error = 7,
    Ping = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Resize,
            4 => Self::Signal,
            5 => Self::StdinEof,
            6 => Self::Exit,
            7 => Self::Error,
            8 => Self::Ping,
            _ => return None,
        })
    }
}

/// Appends one frame; a body beyond [`BODY_BYTES_MAX`] becomes several.
pub(crate) fn encode(kind: Kind, body: &[u8], out: &mut Vec<u8>) {
    let empty: &[u8] = &[];
    let parts = body.chunks(BODY_BYTES_MAX).chain(body.is_empty().then_some(empty));
    for part in parts {
        out.push(kind as u8);
        out.extend_from_slice(&u32::try_from(part.len()).expect("at most 65,536 bytes").to_be_bytes());
        out.extend_from_slice(part);
    }
}

/// Takes the first whole frame from the front of some bytes: its kind, its body and its length in all.
///
/// # Errors
/// An unknown kind, or a body that is too long: the peer does not speak this protocol.
pub(crate) fn decode(bytes: &[u8]) -> Result<Option<(Kind, &[u8], usize)>, BadFrame> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let [kind, length @ ..] = *head;
    let kind = Kind::from_byte(kind).ok_or(BadFrame)?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| BadFrame)?;
    if length > BODY_BYTES_MAX {
        return Err(BadFrame);
    }
    Ok(rest.get(..length).map(|body| (kind, body, HEAD_BYTES + length)))
}

/// The peer sent what is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadFrame;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way_and_arrive_in_pieces() {
        let mut bytes = Vec::new();
        encode(Kind::Stdout, b"hello", &mut bytes);
        encode(Kind::StdinEof, b"", &mut bytes);
        for cut in 0..10 {
            assert_eq!(decode(&bytes[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(decode(&bytes), Ok(Some((Kind::Stdout, b"hello".as_slice(), 10))));
        assert_eq!(decode(&bytes[10..]), Ok(Some((Kind::StdinEof, b"".as_slice(), 5))));
    }

    #[test]
    fn long_bodies_become_several_frames() {
        let mut bytes = Vec::new();
        encode(Kind::Stderr, &vec![7; BODY_BYTES_MAX + 1], &mut bytes);
        let (_, body, length) = decode(&bytes).expect("a frame").expect("whole");
        assert_eq!(body.len(), BODY_BYTES_MAX);
        assert_eq!(decode(&bytes[length..]), Ok(Some((Kind::Stderr, [7].as_slice(), 6))));
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(decode(&[9, 0, 0, 0, 0]), Err(BadFrame));
        assert_eq!(decode(&[0, 0xff, 0, 0, 0]), Err(BadFrame));
    }
}
