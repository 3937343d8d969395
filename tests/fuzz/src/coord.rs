//! What clients and nodes of a coordination group send each other, and what a log entry does to a store.

use vdc::codec::{self, DecodeError};
use vdc_coord::backup;
use vdc_coord::limits::{ENTRY_BYTES_MAX, REQUEST_BYTES_MAX, check};
use vdc_coord::{Command, Entry, Machine, MemoryRows, Reader, Request, Revision, Row};

use super::canonical;

pub(crate) fn request(bytes: &[u8]) -> bool {
    let decode = |bytes: &[u8]| codec::decode::<Request>("request", bytes, REQUEST_BYTES_MAX);
    if let Ok(request) = decode(bytes) {
        std::hint::black_box(check(&request.command).is_ok());
    }
    canonical(bytes, decode, codec::encode)
}

pub(crate) fn row(bytes: &[u8]) -> bool {
    canonical(bytes, |bytes| codec::decode::<Row>("row", bytes, REQUEST_BYTES_MAX), codec::encode)
}

fn decode_entry(bytes: &[u8]) -> Result<Entry, DecodeError> {
    codec::decode("entry", bytes, ENTRY_BYTES_MAX + REQUEST_BYTES_MAX)
}

/// Every entry that decodes can be applied, to a store whose clients are known; twice it does what was asked only once.
pub(crate) fn entry(bytes: &[u8]) -> bool {
    if let Ok(entry) = decode_entry(bytes) {
        let mut rows = MemoryRows::default();
        let mut machine = Machine::new(&mut rows).expect("memory");
        let open = |request: &Request| Request { number: 0, command: Command::Open, ..request.clone() };
        machine.apply(&Entry { stamp_ms: 0, requests: entry.requests.iter().map(open).collect() }).expect("memory");
        let answers = machine.apply(&entry).expect("memory");
        assert!(answers.len() == entry.requests.len(), "each request is answered");
        let revision = machine.summary().revision;
        machine.apply(&entry).expect("memory");
        let summary = machine.summary().clone();
        let again = Reader(&rows).summary().expect("memory");
        assert!(summary == again, "what is stored is what was counted");
        assert!(summary.revision == revision, "done a second time");
        for at in 0..=summary.revision.0 {
            std::hint::black_box(Reader(&rows).range(b"", b"", 10, Some(Revision(at))).expect("memory").is_ok());
        }
        std::hint::black_box(Reader(&rows).events(summary.oldest, 10).expect("memory").is_ok());
    }
    canonical(bytes, decode_entry, codec::encode)
}

/// A backup is refused or gives rows that are written as they were read.
pub(crate) fn backup(bytes: &[u8]) -> bool {
    let (mut reader, mut writer, mut again) = (backup::Reader::new(bytes), backup::Writer::default(), vec![]);
    loop {
        match reader.row() {
            Ok(Some((key, value))) => writer.row(&key, &value, &mut again),
            Ok(None) => break,
            Err(_) => return false,
        }
    }
    again.extend(writer.end());
    assert_eq!(again, bytes);
    true
}
