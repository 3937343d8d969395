//! Records of a log segment: `u32 length | u8 stream | u8 flags | u64 unix ns | u64 sequence | bytes | u32 crc32c`, all big
//! endian. The length counts what follows it; the checksum covers what precedes it.

/// Bytes of one record's text.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Bytes of a record beside its text: length, stream, flags, time, sequence, checksum.
pub const RECORD_BYTES: usize = 4 + 1 + 1 + 8 + 8 + 4;

/// The flag of [`Record::partial`].
const PARTIAL: u8 = 1;

/// Where a text came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where the text came from.
    pub stream: Stream,
    /// The text does not end with a line's end.
    pub partial: bool,
    /// When it was read, in Unix nanoseconds.
    pub unix_ns: u64,
    /// Counts up by one over all segments of a container; a gap is text that has gone.
    pub sequence: u64,
    /// Whole lines, or one line's part. At most [`TEXT_BYTES_MAX`].
    pub text: &'a [u8],
}

/// These bytes are no record: torn by a power cut, or never one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a log record")]
pub struct BadRecord;

/// CRC-32C (Castagnoli, RFC 3720 section 12.1), one table entry per byte.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256; a const cannot call try_from")]
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ CRC32C[usize::from(low ^ byte)]
    })
}

/// Cuts what a stream said into texts for records: as many whole lines as fit, or a part of a line. With each text goes
/// whether it ends with a line's end.
pub fn split(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], bool)> {
    std::iter::from_fn(move || {
        let most = &bytes[..bytes.len().min(TEXT_BYTES_MAX)];
        let cut = most.iter().rposition(|byte| *byte == b'\n').map_or(most.len(), |end| end + 1);
        let (text, rest) = bytes.split_at(cut);
        bytes = rest;
        (!text.is_empty()).then(|| (text, text.ends_with(b"\n")))
    })
}

/// Appends one record.
///
/// # Panics
/// When the text is longer than [`TEXT_BYTES_MAX`]: [`split`] makes none such.
pub fn encode(record: &Record<'_>, out: &mut Vec<u8>) {
    assert!(record.text.len() <= TEXT_BYTES_MAX, "a text was not split");
    let start = out.len();
    let length = u32::try_from(record.text.len() + RECORD_BYTES - 4).expect("a text has at most 16 KiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&[record.stream as u8, if record.partial { PARTIAL } else { 0 }]);
    out.extend_from_slice(&record.unix_ns.to_be_bytes());
    out.extend_from_slice(&record.sequence.to_be_bytes());
    out.extend_from_slice(record.text);
    let crc = crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_be_bytes());
}

/// The record at the front of some bytes and its size, or nothing while it is not whole.
///
/// # Errors
/// [`BadRecord`]: nothing that follows can be trusted either.
pub fn decode(bytes: &[u8]) -> Result<Option<(Record<'_>, usize)>, BadRecord> {
    let Some(length) = bytes.first_chunk() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| BadRecord)?;
    if !(RECORD_BYTES - 4..=RECORD_BYTES - 4 + TEXT_BYTES_MAX).contains(&length) {
        return Err(BadRecord);
    }
    let Some(whole) = bytes.get(..4 + length) else { return Ok(None) };
    let (body, crc) = whole.split_last_chunk().ok_or(BadRecord)?;
    if crc32c(body) != u32::from_be_bytes(*crc) {
        return Err(BadRecord);
    }
    let (&[stream, flags], rest) = body[4..].split_first_chunk().ok_or(BadRecord)?;
    let (unix_ns, rest) = rest.split_first_chunk().ok_or(BadRecord)?;
    let (sequence, text) = rest.split_first_chunk().ok_or(BadRecord)?;
    let stream = match stream {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        _ => return Err(BadRecord),
    };
    if flags & !PARTIAL != 0 {
        return Err(BadRecord);
    }
    let (unix_ns, sequence) = (u64::from_be_bytes(*unix_ns), u64::from_be_bytes(*sequence));
    Ok(Some((Record { stream, partial: flags & PARTIAL != 0, unix_ns, sequence, text }, whole.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli_s() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn lines_are_kept_together_and_nothing_is_lost() {
        assert_eq!(split(b"one\ntwo\nthr").collect::<Vec<_>>(), [(&b"one\ntwo\n"[..], true), (b"thr", false)]);
        assert_eq!(split(b"").count(), 0);
        let long = [b'x'; TEXT_BYTES_MAX + 3];
        assert_eq!(split(&long).map(|(text, _)| text.len()).collect::<Vec<_>>(), [TEXT_BYTES_MAX, 3]);
    }

    #[test]
    fn records_have_these_bytes_and_survive_the_way() {
        let record = Record { stream: Stream::Stderr, partial: true, unix_ns: 1, sequence: 2, text: b"ab" };
        let mut bytes = Vec::new();
        encode(&record, &mut bytes);
        let golden = [0, 0, 0, 24, 2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, b'a', b'b'];
        assert_eq!(bytes[..24], golden);
        assert_eq!(decode(&bytes), Ok(Some((record, 28))));
        for cut in 0..28 {
            assert_eq!(decode(&bytes[..cut]), Ok(None), "{cut}");
        }
        for at in 4..28 {
            let mut broken = bytes.clone();
            broken[at] ^= 0x40;
            assert_eq!(decode(&broken), Err(BadRecord), "{at}");
        }
        assert_eq!(decode(&[0, 0, 0, 1, 0]), Err(BadRecord));
        assert_eq!(decode(&[0xff; 64]), Err(BadRecord));
    }
}
