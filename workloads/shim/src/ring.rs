//! The program's output on disk: segments of bounded size, of which the oldest goes when a new one begins.
//!
//! A record is `u32 length | u8 stream | u8 flags | u64 unix ns | u64 sequence | bytes | u32 crc32c`, all big endian; the
//! length counts what follows it. One write(2) takes all records of one read, without fsync; a tail torn by a power cut is
//! found by the checksum and cut when the ring is opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of one record's text.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Bytes of a record beside its text: length, stream, flags, time, sequence, checksum.
const RECORD_BYTES: usize = 4 + 1 + 1 + 8 + 8 + 4;

/// The text does not end with a line's end.
const PARTIAL: u8 = 1;

/// Smallest segment: one full read and its records.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 128 * 1024;

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), one table entry per byte.
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

/// The segments of one container.
#[derive(Debug)]
pub(crate) struct Ring {
    directory: PathBuf,
    segment_bytes: u64,
    segments: usize,
    /// Numbers of the segments on disk, oldest first; the last is open.
    numbers: Vec<u64>,
    file: File,
    length: u64,
    sequence: u64,
    records: Vec<u8>,
}

impl Ring {
    /// Opens the ring, cuts a torn tail and goes on after it.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub(crate) fn open(directory: &Path, segment_bytes: u64, segments: u32) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut numbers: Vec<u64> = fs::read_dir(directory)?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let mut sequence = 0;
        if numbers.is_empty() {
            numbers.push(1);
        }
        let number = numbers[numbers.len() - 1];
        let file = open_segment(directory, number)?;
        let mut bytes = Vec::new();
        File::open(segment(directory, number))?.take(segment_bytes.max(SEGMENT_BYTES_MIN) * 2).read_to_end(&mut bytes)?;
        let mut length = 0;
        while let Some((size, found)) = whole_record(&bytes[length..]) {
            length += size;
            sequence = found + 1;
        }
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        file.set_len(length)?;
        Ok(Self {
            directory: directory.to_owned(),
            segment_bytes: segment_bytes.max(SEGMENT_BYTES_MIN),
            segments: usize::try_from(segments.max(1)).unwrap_or(1),
            numbers,
            file,
            length,
            sequence,
            records: Vec::new(),
        })
    }

    /// Appends what one stream said: whole lines as one record, the rest of a line as a partial one.
    ///
    /// # Errors
    /// The disk is full or broken. Nothing of these bytes is then in the ring.
    pub(crate) fn append(&mut self, stream: u8, mut bytes: &[u8], unix_ns: u64) -> io::Result<()> {
        self.records.clear();
        while !bytes.is_empty() {
            let most = &bytes[..bytes.len().min(TEXT_BYTES_MAX)];
            let cut = most.iter().rposition(|byte| *byte == b'\n').map_or(most.len(), |end| end + 1);
            let (text, rest) = bytes.split_at(cut);
            let flags = if text.ends_with(b"\n") { 0 } else { PARTIAL };
            self.push_record(stream, flags, unix_ns, text);
            bytes = rest;
        }
        let size = u64::try_from(self.records.len()).unwrap_or(u64::MAX);
        if self.length > 0 && self.length + size > self.segment_bytes {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(&self.records) {
            // Half a record must not stand between whole ones.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += size;
        Ok(())
    }

    fn push_record(&mut self, stream: u8, flags: u8, unix_ns: u64, text: &[u8]) {
        let start = self.records.len();
        let length = u32::try_from(text.len() + RECORD_BYTES - 4).expect("a text has at most 16 KiB");
        self.records.extend_from_slice(&length.to_be_bytes());
        self.records.extend_from_slice(&[stream, flags]);
        self.records.extend_from_slice(&unix_ns.to_be_bytes());
        self.records.extend_from_slice(&self.sequence.to_be_bytes());
        self.records.extend_from_slice(text);
        let crc = crc32c(&self.records[start..]);
        self.records.extend_from_slice(&crc.to_be_bytes());
        self.sequence += 1;
    }

    fn rotate(&mut self) -> io::Result<()> {
        let number = self.numbers[self.numbers.len() - 1] + 1;
        self.file = open_segment(&self.directory, number)?;
        self.length = 0;
        self.numbers.push(number);
        while self.numbers.len() > self.segments {
            let oldest = self.numbers.remove(0);
            fs::remove_file(segment(&self.directory, oldest))?;
        }
        Ok(())
    }
}

fn segment(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number}.log"))
}

fn open_segment(directory: &Path, number: u64) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(segment(directory, number))
}

/// The size and the sequence number of the record at the front, if it is whole and unbroken.
fn whole_record(bytes: &[u8]) -> Option<(usize, u64)> {
    let length = usize::try_from(u32::from_be_bytes(*bytes.first_chunk()?)).ok()?;
    if !(RECORD_BYTES - 4..=RECORD_BYTES - 4 + TEXT_BYTES_MAX).contains(&length) {
        return None;
    }
    let record = bytes.get(..4 + length)?;
    let (body, crc) = record.split_last_chunk()?;
    let sequence = u64::from_be_bytes(body.get(14..22)?.try_into().ok()?);
    (crc32c(body) == u32::from_be_bytes(*crc)).then_some((record.len(), sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(directory: &Path, number: u64) -> Vec<(u8, u8, u64, Vec<u8>)> {
        let bytes = fs::read(segment(directory, number)).expect("read");
        let (mut at, mut found) = (0, Vec::new());
        while let Some((size, sequence)) = whole_record(&bytes[at..]) {
            found.push((bytes[at + 4], bytes[at + 5], sequence, bytes[at + 22..at + size - 4].to_vec()));
            at += size;
        }
        assert_eq!(at, bytes.len(), "nothing but whole records");
        found
    }

    #[test]
    fn the_checksum_is_castagnoli_s() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn lines_are_kept_together_and_the_rest_is_partial() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ring = Ring::open(dir.path(), 0, 2).expect("open");
        ring.append(1, b"one\ntwo\nthr", 7).expect("written");
        ring.append(2, b"ee\n", 8).expect("written");
        let expected = vec![(1, 0, 0, b"one\ntwo\n".to_vec()), (1, 1, 1, b"thr".to_vec()), (2, 0, 2, b"ee\n".to_vec())];
        assert_eq!(texts(dir.path(), 1), expected);
    }

    #[test]
    fn old_segments_go_and_the_bound_holds() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ring = Ring::open(dir.path(), 0, 3).expect("open");
        let line = [b'x'; TEXT_BYTES_MAX];
        for _ in 0..100 {
            ring.append(1, &line, 0).expect("written");
        }
        let sizes: Vec<u64> = fs::read_dir(dir.path()).expect("read").map(|e| e.expect("entry").metadata().expect("size").len()).collect();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= SEGMENT_BYTES_MIN), "{sizes:?}");
        assert_eq!(texts(dir.path(), *ring.numbers.last().expect("one")).last().expect("a record").2, 99);
    }

    #[test]
    fn a_torn_tail_is_cut_and_numbers_go_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ring = Ring::open(dir.path(), 0, 3).expect("open");
        ring.append(1, b"whole\n", 0).expect("written");
        ring.append(1, b"torn\n", 0).expect("written");
        drop(ring);
        let path = segment(dir.path(), 1);
        let bytes = fs::read(&path).expect("read");
        fs::write(&path, &bytes[..bytes.len() - 3]).expect("torn");
        let mut ring = Ring::open(dir.path(), 0, 3).expect("open");
        ring.append(1, b"next\n", 0).expect("written");
        assert_eq!(texts(dir.path(), 1), [(1, 0, 0, b"whole\n".to_vec()), (1, 0, 1, b"next\n".to_vec())]);
    }
}
