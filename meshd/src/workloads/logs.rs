//! Reading what workloads wrote: the segments that their shims write, while they are written.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use vdc_api::{self as api, LogEvent, LogStream};
use workloads_wire::log::{self, Stream};

/// Bytes that one look takes from a segment.
const BATCH_BYTES: usize = 256 * 1024;
/// The most lines that `tail` keeps; the rings are bounded in bytes as well.
pub(crate) const TAIL_MAX: u32 = 1_000_000;

/// Reads one workload's log from its beginning on.
#[derive(Debug)]
pub(crate) struct LogReader {
    directory: PathBuf,
    since_ns: u64,
    only: Option<LogStream>,
    segment: Option<(u64, File)>,
    /// Read, and not yet decoded.
    rest: Vec<u8>,
    /// The number of the next record.
    expected: Option<u64>,
}

impl LogReader {
    /// `since_ns`: nothing older.
    pub(crate) fn new(directory: PathBuf, since_ns: u64, only: Option<LogStream>) -> Self {
        Self { directory, since_ns, only, segment: None, rest: vec![], expected: None }
    }

    /// What is there now, in order; nothing if all was read.
    ///
    /// # Errors
    /// Those of the filesystem. A log that does not exist (yet) is empty.
    pub(crate) fn read(&mut self) -> io::Result<Vec<LogEvent>> {
        loop {
            if self.segment.is_none() && !self.next_segment(None)? {
                return Ok(vec![]);
            }
            let Some((number, file)) = &mut self.segment else { return Ok(vec![]) };
            let number = *number;
            // Looked for before the end is: what comes into this segment after the look is read by the next call.
            let has_next = segments(&self.directory)?.iter().any(|other| *other > number);
            let before = self.rest.len();
            file.by_ref().take(BATCH_BYTES as u64).read_to_end(&mut self.rest)?;
            let at_end = self.rest.len() == before;
            let (events, sound) = self.decode();
            if !events.is_empty() {
                return Ok(events);
            }
            // A torn tail in a segment that is not written to any more is lost.
            if (at_end || !sound) && !(has_next && self.next_segment(Some(number))?) {
                return Ok(vec![]);
            }
        }
    }

    /// Opens the first segment after `after`.
    fn next_segment(&mut self, after: Option<u64>) -> io::Result<bool> {
        for number in segments(&self.directory)? {
            if after.is_some_and(|after| number <= after) {
                continue;
            }
            match File::open(self.directory.join(format!("{number}.log"))) {
                Ok(mut file) => {
                    file.seek(SeekFrom::Start(0))?;
                    self.segment = Some((number, file));
                    self.rest.clear();
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // rotated away just now
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Takes whole records off the front of what was read; says too whether what follows can be one.
    fn decode(&mut self) -> (Vec<LogEvent>, bool) {
        let (mut events, mut at, mut sound) = (vec![], 0, true);
        loop {
            match log::decode(&self.rest[at..]) {
                Ok(Some((record, size))) => {
                    if let Some(gap) = self.expected.and_then(|next| record.sequence.checked_sub(next))
                        && gap > 0
                    {
                        events.push(LogEvent::Gap { records: gap });
                    }
                    self.expected = Some(record.sequence + 1);
                    let stream = match record.stream {
                        Stream::Stdout => LogStream::Stdout,
                        Stream::Stderr => LogStream::Stderr,
                    };
                    if record.unix_ns >= self.since_ns && self.only.is_none_or(|only| only == stream) {
                        let at = api::rfc3339_ns(record.unix_ns);
                        events.extend(record.text.split_inclusive(|b| *b == b'\n').map(|text| line(&at, stream, text)));
                    }
                    at += size;
                }
                Ok(None) => break,
                Err(log::BadRecord) => {
                    sound = false;
                    break;
                }
            }
        }
        self.rest.drain(..at);
        (events, sound)
    }
}

fn line(at: &str, stream: LogStream, text: &[u8]) -> LogEvent {
    let (text, base64) = match std::str::from_utf8(text) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (String::new(), Some(BASE64.encode(text))),
    };
    LogEvent::Line { at: at.to_owned(), stream, text, base64 }
}

/// Numbers of the segments, oldest first.
fn segments(directory: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".log")?.parse().ok());
    let mut numbers: Vec<u64> = names.collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The last `lines` of what is there.
///
/// # Errors
/// Those of the filesystem.
pub(crate) fn tail(reader: &mut LogReader, lines: u32) -> io::Result<VecDeque<LogEvent>> {
    let most = usize::try_from(lines.min(TAIL_MAX)).unwrap_or(usize::MAX);
    let mut kept = VecDeque::new();
    loop {
        let events = reader.read()?;
        if events.is_empty() {
            return Ok(kept);
        }
        kept.extend(events);
        kept.drain(..kept.len().saturating_sub(most));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use workloads_wire::log::Record;

    use super::*;

    fn append(directory: &Path, segment: u64, records: &[(u64, Stream, &[u8])]) {
        let mut bytes = vec![];
        for (sequence, stream, text) in records {
            let unix_ns = 1_000_000_000 * sequence;
            log::encode(&Record { stream: *stream, partial: false, unix_ns, sequence: *sequence, text }, &mut bytes);
        }
        let path = directory.join(format!("{segment}.log"));
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).expect("opens");
        file.write_all(&bytes).expect("writes");
    }

    fn texts(events: impl IntoIterator<Item = LogEvent>) -> Vec<String> {
        let text = |event| match event {
            LogEvent::Line { text, base64, .. } => base64.unwrap_or(text),
            LogEvent::Gap { records } => format!("gap of {records}"),
        };
        events.into_iter().map(text).collect()
    }

    #[test]
    fn lines_come_in_order_over_segments_and_as_they_are_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        let mut reader = LogReader::new(path.join("nothing"), 0, None);
        assert!(reader.read().expect("no log is an empty one").is_empty());
        append(path, 9, &[(1, Stream::Stdout, b"one\ntwo\n"), (2, Stream::Stderr, b"\xff")]);
        append(path, 10, &[(3, Stream::Stdout, b"three\n")]);
        let mut reader = LogReader::new(path.to_owned(), 0, None);
        assert_eq!(texts(reader.read().expect("reads")), ["one\n", "two\n", "/w=="]);
        assert_eq!(texts(reader.read().expect("reads")), ["three\n"]);
        assert!(reader.read().expect("reads").is_empty());
        append(path, 10, &[(4, Stream::Stdout, b"four")]);
        append(path, 12, &[(8, Stream::Stdout, b"eight")]);
        assert_eq!(texts(reader.read().expect("reads")), ["four"]);
        assert_eq!(texts(reader.read().expect("reads")), ["gap of 3", "eight"]);
    }

    #[test]
    fn torn_tail_is_waited_for_and_passed_over_when_another_segment_began() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        append(path, 1, &[(1, Stream::Stdout, b"one\n"), (2, Stream::Stdout, b"two\n")]);
        let whole = fs::read(path.join("1.log")).expect("reads");
        fs::write(path.join("1.log"), &whole[..whole.len() - 3]).expect("cut");
        let mut reader = LogReader::new(path.to_owned(), 0, None);
        assert_eq!(texts(reader.read().expect("reads")), ["one\n"]);
        assert!(reader.read().expect("reads").is_empty());
        fs::OpenOptions::new()
            .append(true)
            .open(path.join("1.log"))
            .and_then(|mut file| file.write_all(&whole[whole.len() - 3..]))
            .expect("the rest comes");
        assert_eq!(texts(reader.read().expect("reads")), ["two\n"]);
        fs::OpenOptions::new()
            .append(true)
            .open(path.join("1.log"))
            .and_then(|mut file| file.write_all(&[0xff; 9]))
            .expect("garbage");
        append(path, 2, &[(3, Stream::Stdout, b"three\n")]);
        assert_eq!(texts(reader.read().expect("reads")), ["three\n"]);
    }

    #[test]
    fn what_is_wanted_can_be_narrowed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        append(path, 1, &[(1, Stream::Stdout, b"a\nb\n"), (2, Stream::Stderr, b"c\n"), (3, Stream::Stdout, b"d\n")]);
        let mut reader = LogReader::new(path.to_owned(), 2_000_000_000, None);
        assert_eq!(texts(reader.read().expect("reads")), ["c\n", "d\n"]);
        let mut reader = LogReader::new(path.to_owned(), 0, Some(LogStream::Stdout));
        assert_eq!(texts(tail(&mut reader, 2).expect("reads")), ["b\n", "d\n"]);
    }
}
