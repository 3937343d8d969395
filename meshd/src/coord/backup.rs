//! What stands behind the first line of a backup of a group: all its keys and values at one revision.
//!
//! A row is the length of its key (2 bytes) and of its value (4 bytes), both big-endian, and the bytes of both; keys ascend. A key
//! of length 0 ends them; the number of rows (8 bytes) and the BLAKE3 hash of all bytes before it follow, and nothing more.

use std::io;

use vdc_coord::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// Bytes before a row's key.
const HEAD_BYTES: usize = 6;
/// Bytes behind the mark of the end.
const TAIL_BYTES: usize = 8 + 32;

/// Writes rows, in the order of their keys.
#[derive(Default)]
pub(super) struct Writer {
    hasher: blake3::Hasher,
    rows: u64,
}

impl Writer {
    /// The bytes of a row.
    pub(super) fn row(&mut self, key: &[u8], value: &[u8], to: &mut Vec<u8>) {
        let start = to.len();
        to.extend(u16::try_from(key.len()).expect("keys are bounded").to_be_bytes());
        to.extend(u32::try_from(value.len()).expect("values are bounded").to_be_bytes());
        to.extend_from_slice(key);
        to.extend_from_slice(value);
        self.hasher.update(&to[start..]);
        self.rows += 1;
    }

    /// The bytes that end a backup.
    pub(super) fn end(mut self) -> Vec<u8> {
        let mut end = vec![0; HEAD_BYTES];
        end.extend(self.rows.to_be_bytes());
        self.hasher.update(&end);
        end.extend(self.hasher.finalize().as_bytes());
        end
    }
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Reads rows and checks them.
pub(super) struct Reader<R> {
    from: R,
    hasher: blake3::Hasher,
    rows: u64,
    last: Vec<u8>,
    is_over: bool,
}

impl<R: io::Read> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, hasher: blake3::Hasher::new(), rows: 0, last: vec![], is_over: false }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => invalid("it is cut off"),
            _ => error,
        })
    }

    /// The next row; none when all were read and the whole was proven.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if it is damaged or cut off.
    pub(super) fn next(&mut self) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        if self.is_over {
            return Ok(None);
        }
        let mut head = [0; HEAD_BYTES];
        self.fill(&mut head)?;
        self.hasher.update(&head);
        let [a, b, c, d, e, f] = head;
        let (key, value) = (usize::from(u16::from_be_bytes([a, b])), u32::from_be_bytes([c, d, e, f]) as usize);
        if key == 0 {
            return self.end().map(|()| None);
        }
        if key > KEY_BYTES_MAX || value > VALUE_BYTES_MAX {
            return Err(invalid(format!("row {} has a key of {key} bytes and a value of {value}", self.rows + 1)));
        }
        let (mut key, mut value) = (vec![0; key], vec![0; value]);
        self.fill(&mut key)?;
        self.fill(&mut value)?;
        self.hasher.update(&key);
        self.hasher.update(&value);
        self.rows += 1;
        if key <= self.last {
            return Err(invalid(format!("row {} is out of order", self.rows)));
        }
        self.last.clone_from(&key);
        Ok(Some((key, value)))
    }

    fn end(&mut self) -> io::Result<()> {
        let mut tail = [0; TAIL_BYTES];
        self.fill(&mut tail)?;
        let (rows, hash) = tail.split_at(8);
        self.hasher.update(rows);
        if rows != self.rows.to_be_bytes() || hash != self.hasher.finalize().as_bytes() {
            return Err(invalid("its bytes do not fit its hash"));
        }
        if self.from.read(&mut [0])? != 0 {
            return Err(invalid("there is something behind its end"));
        }
        self.is_over = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(rows: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let (mut writer, mut bytes) = (Writer::default(), vec![]);
        for (key, value) in rows {
            writer.row(key, value, &mut bytes);
        }
        bytes.extend(writer.end());
        bytes
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut reader = Reader::new(bytes);
        let mut rows = vec![];
        while let Some(row) = reader.next()? {
            rows.push(row);
        }
        Ok(rows)
    }

    proptest! {
        #[test]
        fn rows_come_back_and_damage_is_noticed(
            rows in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..40), prop::collection::vec(any::<u8>(), 0..60), 0..12),
            damage in any::<prop::sample::Index>(),
            bit in 0..8_u32,
            cut in any::<prop::sample::Index>(),
        ) {
            let rows: Vec<_> = rows.into_iter().collect();
            let bytes = written(&rows);
            prop_assert_eq!(read(&bytes).expect("whole"), rows);
            let mut damaged = bytes.clone();
            damaged[damage.index(bytes.len())] ^= 1 << bit;
            prop_assert!(read(&damaged).is_err());
            prop_assert!(read(&bytes[..cut.index(bytes.len())]).is_err());
            prop_assert!(read(&[&bytes[..], b"x"].concat()).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _refused = read(&bytes);
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_takes_memory() {
        let error = read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).expect_err("too long").to_string();
        assert!(error.contains("65535"), "{error}");
    }
}
