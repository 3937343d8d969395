//! The program's output on disk: segments of bounded size, of which the oldest goes when a new one begins.
//!
//! One write(2) takes all records of one read, without fsync; a tail torn by a power cut is found by the records' checksums
//! and cut when the ring is opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use workloads_wire::log::{self, Record, Stream};

/// Smallest segment: one full read and its records.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 128 * 1024;

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
        File::open(segment(directory, number))?
            .take(segment_bytes.max(SEGMENT_BYTES_MIN) * 2)
            .read_to_end(&mut bytes)?;
        let mut length = 0;
        while let Ok(Some((record, size))) = log::decode(&bytes[length..]) {
            length += size;
            sequence = record.sequence + 1;
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
    pub(crate) fn append(&mut self, stream: Stream, bytes: &[u8], unix_ns: u64) -> io::Result<()> {
        self.records.clear();
        for (text, stream_end) in log::split(bytes) {
            let record = Record { stream, partial: !stream_end, unix_ns, sequence: self.sequence, text };
            log::encode(&record, &mut self.records);
            self.sequence += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(directory: &Path, number: u64) -> Vec<(Stream, bool, u64, Vec<u8>)> {
        let bytes = fs::read(segment(directory, number)).expect("read");
        let (mut at, mut found) = (0, Vec::new());
        while let Some((record, size)) = log::decode(&bytes[at..]).expect("a record") {
            found.push((record.stream, record.partial, record.sequence, record.text.to_vec()));
            at += size;
        }
        assert_eq!(at, bytes.len(), "nothing but whole records");
        found
    }

    #[test]
    fn lines_are_kept_together_and_the_rest_is_partial() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ring = Ring::open(dir.path(), 0, 2).expect("open");
        ring.append(Stream::Stdout, b"one\ntwo\nthr", 7).expect("written");
        ring.append(Stream::Stderr, b"ee\n", 8).expect("written");
        let expected = vec![
            (Stream::Stdout, false, 0, b"one\ntwo\n".to_vec()),
            (Stream::Stdout, true, 1, b"thr".to_vec()),
            (Stream::Stderr, false, 2, b"ee\n".to_vec()),
        ];
        assert_eq!(texts(dir.path(), 1), expected);
    }

    #[test]
    fn old_segments_go_and_the_bound_holds() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ring = Ring::open(dir.path(), 0, 3).expect("open");
        let line = [b'x'; log::TEXT_BYTES_MAX];
        for _ in 0..100 {
            ring.append(Stream::Stdout, &line, 0).expect("written");
        }
        let sizes: Vec<u64> = fs::read_dir(dir.path())
            .expect("read")
            .map(|e| e.expect("entry").metadata().expect("size").len())
            .collect();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= SEGMENT_BYTES_MIN), "{sizes:?}");
        assert_eq!(texts(dir.path(), *ring.numbers.last().expect("one")).last().expect("a record").2, 99);
    }

    #[test]
    fn a_torn_tail_is_cut_and_numbers_go_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ring = Ring::open(dir.path(), 0, 3).expect("open");
        ring.append(Stream::Stdout, b"whole\n", 0).expect("written");
        ring.append(Stream::Stdout, b"torn\n", 0).expect("written");
        drop(ring);
        let path = segment(dir.path(), 1);
        let bytes = fs::read(&path).expect("read");
        fs::write(&path, &bytes[..bytes.len() - 3]).expect("torn");
        let mut ring = Ring::open(dir.path(), 0, 3).expect("open");
        ring.append(Stream::Stdout, b"next\n", 0).expect("written");
        assert_eq!(
            texts(dir.path(), 1),
            [(Stream::Stdout, false, 0, b"whole\n".to_vec()), (Stream::Stdout, false, 1, b"next\n".to_vec())]
        );
    }
}
