//! Frames of a stream socket, both directions: `u8 kind, u32 length (big endian), bytes`.

/// Bytes of one frame's body.
pub const BODY_BYTES_MAX: usize = 65_536;

/// Bytes before the body.
const HEAD_BYTES: usize = 5;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the program's input.
    Stdin = 0,
    /// From its output, or its terminal.
    Stdout = 1,
    /// From its error output.
    Stderr = 2,
    /// The terminal's size: rows and columns, `u16` each, big endian.
    Resize = 3,
    /// One byte: the signal for the program.
    Signal = 4,
    /// The input ends. No body.
    StdinEof = 5,
    /// The program ended: its code, `i32`, big endian. The last frame.
    Exit = 6,
    /// What went wrong instead.
    Error = 7,
    /// Says that the peer lives. No body.
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

/// A whole frame at the front of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the body is.
    pub kind: Kind,
    /// At most [`BODY_BYTES_MAX`].
    pub body: &'a [u8],
    /// Bytes of the frame in all: the next one begins there.
    pub length: usize,
}

/// Appends one frame; a body beyond [`BODY_BYTES_MAX`] becomes several.
///
/// # Panics
/// Never: the parts' lengths fit.
pub fn encode(kind: Kind, body: &[u8], out: &mut Vec<u8>) {
    let empty: &[u8] = &[];
    let parts = body.chunks(BODY_BYTES_MAX).chain(body.is_empty().then_some(empty));
    for part in parts {
        out.push(kind as u8);
        out.extend_from_slice(&u32::try_from(part.len()).expect("at most 65,536 bytes").to_be_bytes());
        out.extend_from_slice(part);
    }
}

/// The first whole frame of some bytes, or nothing while it is not whole.
///
/// # Errors
/// An unknown kind, or a body that is too long: the peer does not speak this protocol.
pub fn decode(bytes: &[u8]) -> Result<Option<Frame<'_>>, BadFrame> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let [kind, length @ ..] = *head;
    let kind = Kind::from_byte(kind).ok_or(BadFrame)?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| BadFrame)?;
    if length > BODY_BYTES_MAX {
        return Err(BadFrame);
    }
    Ok(rest.get(..length).map(|body| Frame { kind, body, length: HEAD_BYTES + length }))
}

/// The peer sent what is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a frame")]
pub struct BadFrame;

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
        assert_eq!(decode(&bytes), Ok(Some(Frame { kind: Kind::Stdout, body: b"hello", length: 10 })));
        assert_eq!(decode(&bytes[10..]), Ok(Some(Frame { kind: Kind::StdinEof, body: b"", length: 5 })));
    }

    #[test]
    fn long_bodies_become_several_frames() {
        let mut bytes = Vec::new();
        encode(Kind::Stderr, &vec![7; BODY_BYTES_MAX + 1], &mut bytes);
        let Frame { body, length, .. } = decode(&bytes).expect("a frame").expect("whole");
        assert_eq!(body.len(), BODY_BYTES_MAX);
        assert_eq!(decode(&bytes[length..]), Ok(Some(Frame { kind: Kind::Stderr, body: &[7], length: 6 })));
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(decode(&[9, 0, 0, 0, 0]), Err(BadFrame));
        assert_eq!(decode(&[0, 0xff, 0, 0, 0]), Err(BadFrame));
    }
}
