//! Tar archives as layers use them, read entry by entry: ustar, GNU long names and sparse files, PAX with extended
//! attributes and its three forms of sparse files.
//!
//! Only reading, only forwards, and with bounds on everything that a header may make the reader keep. Where programs
//! read a tar differently this reader follows Go's, because that is what the field's other tools are built on.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};

/// Blocks that headers and padding come in.
const BLOCK: usize = 512;
/// Longest extended header or long name.
const EXTENDED_BYTES_MAX: u64 = 1 << 20;
/// Most extended headers in front of one entry.
const EXTENDED_HEADERS_MAX: u32 = 8;
/// Most pieces of one sparse file.
const PIECES_MAX: usize = 65_536;
/// Most extended attributes of one entry.
const ATTRIBUTES_MAX: usize = 256;
/// Names in messages are cut after this.
const SHOWN_BYTES_MAX: usize = 160;

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its content follows.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and where it points.
    Symlink(Vec<u8>),
    /// Another name of a file, and the name that the file has.
    HardLink(Vec<u8>),
    /// A character device, major and minor number.
    Character(u32, u32),
    /// A block device, major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as written.
    pub path: Vec<u8>,
    /// What it makes.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Seconds and nanoseconds since 1970 of the last change.
    pub mtime: (i64, u32),
    /// The size of the file in bytes, holes included.
    pub size_bytes: u64,
    /// The pieces of a sparse file that have content, ascending: offset and length.
    pub pieces: Option<Vec<(u64, u64)>>,
    /// Extended attributes.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why a tar cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes themselves cannot be read: the source failed, or cannot be decompressed.
    #[error("the layer cannot be read")]
    Io(#[source] io::Error),
    /// It ends inside an entry.
    #[error("the layer ends inside of {entry}: it was cut off")]
    Truncated {
        /// The entry, or what else was being read.
        entry: Name,
    },
    /// A header that is none.
    #[error("the header after {after} is no header of a tar: {why}")]
    Header {
        /// The entry before.
        after: Name,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An entry that says something that cannot be.
    #[error("{entry}: {why}")]
    Entry {
        /// The entry.
        entry: Name,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The name of an entry, for messages.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// A name made fit for a message: short, and without what a terminal would obey.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let cut = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
        let text: Cow<'_, str> = String::from_utf8_lossy(cut);
        let mut shown = text.escape_debug().to_string();
        if cut.len() < bytes.len() {
            shown.push('…');
        }
        Self(shown)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A tar that is read from some source.
#[derive(Debug)]
pub struct Tar<R> {
    source: R,
    /// The entry that was returned last.
    current: Vec<u8>,
    /// Bytes of its content that were not read yet, and padding behind them.
    content: u64,
    padding: u64,
    ended: bool,
}

/// What extended headers say about the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// The pieces of a sparse file, and how large the file is.
type Pieces = (Option<Vec<(u64, u64)>>, u64);

/// The GNU.sparse records of PAX.
#[derive(Default)]
struct Sparse {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    /// Versions 0.0 and 0.1: offsets and lengths in turn.
    numbers: Vec<u64>,
}

impl<R: Read> Tar<R> {
    /// A tar that begins with the source's next byte.
    pub fn new(source: R) -> Self {
        Self { source, current: Vec::new(), content: 0, padding: 0, ended: false }
    }

    /// The next entry; what is left of the last one's content is passed over.
    ///
    /// # Errors
    ///
    /// [`TarError`]; the tar cannot be read on after one.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = Extended::default();
        let (mut long_path, mut long_link) = (None, None);
        for _ in 0..=EXTENDED_HEADERS_MAX {
            self.pass(self.content)?;
            self.content = 0;
            self.pass(self.padding)?;
            self.padding = 0;
            let Some(header) = self.header()? else { return Ok(None) };
            let flag = header[156];
            match flag {
                b'x' | b'X' | b'g' | b'L' | b'K' => {
                    let bytes = self.extended(&header)?;
                    match flag {
                        b'x' | b'X' => extended = self.pax(&bytes)?,
                        b'L' => long_path = Some(until_zero(&bytes).to_vec()),
                        b'K' => long_link = Some(until_zero(&bytes).to_vec()),
                        // Go hands these to its caller, who lets them fall; git writes a comment into one.
                        _ => {}
                    }
                }
                _ => {
                    extended.path = long_path.or(extended.path);
                    extended.link = long_link.or(extended.link);
                    return self.entry(&header, flag, extended).map(Some);
                }
            }
        }
        Err(self.bad_header("too many extended headers in front of one entry"))
    }

    /// The next bytes of the content of the entry that was returned last: 0 at its end.
    ///
    /// # Errors
    ///
    /// [`TarError::Truncated`] or [`TarError::Io`].
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = read_some(&mut self.source, &mut buffer[..most]).map_err(TarError::Io)?;
        if count == 0 {
            return Err(self.truncated());
        }
        self.content -= u64::try_from(count).unwrap_or(0);
        Ok(count)
    }

    /// The source, which stands at what was not read yet.
    pub fn source(&self) -> &R {
        &self.source
    }

    /// Passes over what is left of the content by a way that the source knows better than reading.
    pub fn leap(&mut self, leap: impl FnOnce(&mut R, u64)) {
        leap(&mut self.source, self.content);
        self.content = 0;
    }

    /// The source, to read what follows the end.
    pub fn into_inner(self) -> R {
        self.source
    }

    fn truncated(&self) -> TarError {
        TarError::Truncated { entry: Name::new(&self.current) }
    }

    fn bad_header(&self, why: &'static str) -> TarError {
        TarError::Header { after: Name::new(&self.current), why }
    }

    fn bad_entry(&self, why: &'static str) -> TarError {
        TarError::Entry { entry: Name::new(&self.current), why }
    }

    /// Reads and forgets.
    fn pass(&mut self, bytes: u64) -> Result<(), TarError> {
        let passed = io::copy(&mut (&mut self.source).take(bytes), &mut io::sink()).map_err(TarError::Io)?;
        if passed < bytes { Err(self.truncated()) } else { Ok(()) }
    }

    /// A block, or `None` at the very end of the source.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match read_some(&mut self.source, &mut block[filled..]).map_err(TarError::Io)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.truncated()),
                count => filled += count,
            }
        }
        Ok(Some(block))
    }

    /// The next header whose checksum holds; `None` at the end of the tar.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let block = match self.block()? {
            Some(block) if block == [0; BLOCK] => match self.block()? {
                Some(second) if second != [0; BLOCK] => return Err(self.bad_header("it follows half an end")),
                _ => None,
            },
            other => other,
        };
        let Some(block) = block else {
            self.ended = true;
            return Ok(None);
        };
        let blanked = |index: usize| (148..156).contains(&index);
        let unsigned: i64 =
            block.iter().enumerate().map(|(index, byte)| if blanked(index) { 32 } else { i64::from(*byte) }).sum();
        let signed: i64 = block
            .iter()
            .enumerate()
            .map(|(index, byte)| if blanked(index) { 32 } else { i64::from(i8::from_ne_bytes([*byte])) })
            .sum();
        match number(&block[148..156]) {
            Some(sum) if sum == unsigned || sum == signed => Ok(Some(block)),
            _ => Err(self.bad_header("its checksum does not hold")),
        }
    }

    fn size(&self, header: &[u8; BLOCK]) -> Result<u64, TarError> {
        let size = number(&header[124..136]).and_then(|size| u64::try_from(size).ok());
        size.ok_or_else(|| self.bad_header("its size is no number"))
    }

    /// The content of an extended header.
    fn extended(&mut self, header: &[u8; BLOCK]) -> Result<Vec<u8>, TarError> {
        let size = self.size(header)?;
        if size > EXTENDED_BYTES_MAX {
            return Err(self.bad_header("an extended header is longer than 1 MiB"));
        }
        let mut bytes = Vec::new();
        (&mut self.source).take(size).read_to_end(&mut bytes).map_err(TarError::Io)?;
        if u64::try_from(bytes.len()).ok() != Some(size) {
            return Err(self.truncated());
        }
        self.padding = padding(size);
        Ok(bytes)
    }

    /// The records of a PAX header: "LENGTH KEY=VALUE\n" each.
    fn pax(&self, mut bytes: &[u8]) -> Result<Extended, TarError> {
        let mut extended = Extended::default();
        while !bytes.is_empty() {
            let (key, value, rest) =
                pax_record(bytes).ok_or_else(|| self.bad_header("a record of its extended header cannot be read"))?;
            bytes = rest;
            extended.take(key, value).map_err(|why| self.bad_header(why))?;
        }
        Ok(extended)
    }

    fn entry(&mut self, header: &[u8; BLOCK], flag: u8, extended: Extended) -> Result<Entry, TarError> {
        let posix = &header[257..263] == b"ustar\0";
        let gnu = &header[257..265] == b"ustar  \0";
        let mut path = until_zero(&header[..100]).to_vec();
        let prefix = until_zero(&header[345..500]);
        if posix && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        let Extended { path: long_path, link, size, uid, gid, mtime, attributes, sparse } = extended;
        // The name of the file itself; the other name is one that old programs unpack to.
        self.current = sparse.name.clone().or(long_path).unwrap_or(path);
        let link = link.unwrap_or_else(|| until_zero(&header[157..257]).to_vec());
        if self.current.is_empty() {
            return Err(self.bad_header("its entry has no name"));
        }
        if self.current.contains(&0) || link.contains(&0) {
            return Err(self.bad_entry("its name or target has a zero byte"));
        }
        let device = |range: std::ops::Range<usize>| number(&header[range]).and_then(|n| u32::try_from(n).ok());
        let devices = (posix || gnu).then(|| device(329..337).zip(device(337..345))).flatten();
        let no_device = || self.bad_entry("its device has no number");
        let directory = self.current.ends_with(b"/");
        let kind = match flag {
            b'5' => Kind::Directory,
            0 if directory => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => devices.map(|(major, minor)| Kind::Character(major, minor)).ok_or_else(no_device)?,
            b'4' => devices.map(|(major, minor)| Kind::Block(major, minor)).ok_or_else(no_device)?,
            b'6' => Kind::Fifo,
            _ => return Err(self.bad_entry("an entry of a kind that no layer has")),
        };
        // Content is a regular file's alone, whatever the size says.
        let stored = size.map_or_else(|| self.size(header), Ok)?;
        let stored = if kind == Kind::File { stored } else { 0 };
        self.content = stored;
        self.padding = padding(stored);
        let (pieces, size_bytes) = match kind {
            Kind::File if flag == b'S' => self.old_sparse(header, gnu)?,
            Kind::File if sparse.is_there() => self.pax_sparse(sparse)?,
            _ if sparse.is_there() => return Err(self.bad_entry("it is sparse and no file")),
            _ => (None, stored),
        };
        if let Some(pieces) = &pieces {
            self.check_pieces(pieces, size_bytes)?;
        }
        let owner = |given: Option<u32>, range: std::ops::Range<usize>| {
            let id = given.or_else(|| number(&header[range]).and_then(|id| u32::try_from(id).ok()));
            // The last number means "nobody in particular" to the kernel.
            id.filter(|id| *id != u32::MAX).ok_or_else(|| self.bad_entry("its owner or group is no number of one"))
        };
        let seconds = number(&header[136..148]);
        let mode = number(&header[100..108]).ok_or_else(|| self.bad_entry("its permissions are no number"))?;
        Ok(Entry {
            path: self.current.clone(),
            kind,
            mode: u32::try_from(mode & 0o7777).unwrap_or(0),
            uid: owner(uid, 108..116)?,
            gid: owner(gid, 116..124)?,
            mtime: match mtime {
                Some(mtime) => mtime,
                None => (seconds.ok_or_else(|| self.bad_entry("its time is no number"))?, 0),
            },
            size_bytes,
            pieces,
            attributes,
        })
    }

    /// GNU's own sparse entries: pieces in the header and in blocks behind it.
    fn old_sparse(&mut self, header: &[u8; BLOCK], gnu: bool) -> Result<Pieces, TarError> {
        if !gnu {
            return Err(self.bad_entry("it is sparse in a tar that is not GNU's"));
        }
        let unsigned = |bytes: &[u8]| number(bytes).and_then(|value| u64::try_from(value).ok());
        let bad = |tar: &Self| tar.bad_entry("its map of holes cannot be read");
        let mut pieces = Vec::new();
        let mut add = |table: &[u8]| {
            for piece in table.chunks_exact(24) {
                if piece[0] == 0 {
                    break;
                }
                pieces.push(unsigned(&piece[..12]).zip(unsigned(&piece[12..]))?);
            }
            (pieces.len() <= PIECES_MAX).then_some(())
        };
        add(&header[386..482]).ok_or_else(|| bad(self))?;
        let real_size = unsigned(&header[483..495]).ok_or_else(|| bad(self))?;
        let mut more = header[482] != 0;
        while more {
            let block = self.block()?.ok_or_else(|| self.truncated())?;
            add(&block[..504]).ok_or_else(|| bad(self))?;
            more = block[504] != 0;
        }
        Ok((Some(pieces), real_size))
    }

    /// Sparse files by PAX: versions 0.0 and 0.1 have the map in the header, 1.0 in front of the content.
    fn pax_sparse(&mut self, sparse: Sparse) -> Result<Pieces, TarError> {
        let bad = |tar: &Self| tar.bad_entry("its map of holes cannot be read");
        let real_size = sparse.real_size.ok_or_else(|| bad(self))?;
        let numbers = match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => self.sparse_map()?,
            (None | Some(0), None | Some(0 | 1)) => sparse.numbers,
            _ => return Err(self.bad_entry("its map of holes is of an unknown version")),
        };
        if numbers.len() % 2 != 0 {
            return Err(bad(self));
        }
        Ok((Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()), real_size))
    }

    /// The map in front of the content: how many pieces, then offset and length of each, one number a line.
    fn sparse_map(&mut self) -> Result<Vec<u64>, TarError> {
        let mut text = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        loop {
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let value = decimal(&line[..end]).ok_or_else(|| self.bad_entry("its map of holes cannot be read"))?;
                numbers.push(value);
                let wanted = numbers[0];
                if wanted > u64::try_from(PIECES_MAX).unwrap_or(0) {
                    return Err(self.bad_entry("it has more pieces than are taken"));
                }
                if u64::try_from(numbers.len()).ok() == Some(1 + 2 * wanted) {
                    // What is left of the block is padding; the content begins with the next.
                    numbers.remove(0);
                    return Ok(numbers);
                }
            }
            // No number of 64 bits is as long as this.
            if text.len() > 32 {
                return Err(self.bad_entry("its map of holes cannot be read"));
            }
            let mut block = [0; BLOCK];
            let mut filled = 0;
            while filled < BLOCK {
                match self.read_content(&mut block[filled..])? {
                    0 => return Err(self.bad_entry("its map of holes is longer than the entry")),
                    count => filled += count,
                }
            }
            text.extend_from_slice(&block);
        }
    }

    /// Pieces must be in order, inside of the file, and together as long as the content.
    fn check_pieces(&self, pieces: &[(u64, u64)], size_bytes: u64) -> Result<(), TarError> {
        let (mut end, mut sum) = (0_u64, 0_u64);
        let mut fits = true;
        for (offset, length) in pieces {
            fits &= *offset >= end;
            end = offset.checked_add(*length).unwrap_or(u64::MAX);
            fits &= end <= size_bytes && end != u64::MAX;
            sum = sum.saturating_add(*length);
        }
        if fits && sum == self.content { Ok(()) } else { Err(self.bad_entry("its map of holes contradicts its size")) }
    }
}

impl Extended {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // An empty value takes back what was said before.
        let text = (!value.is_empty()).then(|| value.to_vec());
        let id = |value: &[u8]| decimal(value).and_then(|id| u32::try_from(id).ok());
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.link = text,
            b"size" => self.size = optional(value, decimal, "its size is no number")?,
            b"uid" => self.uid = optional(value, id, "its owner is no number of one")?,
            b"gid" => self.gid = optional(value, id, "its group is no number of one")?,
            b"mtime" => self.mtime = optional(value, time, "its time is no number")?,
            b"GNU.sparse.major" => self.sparse.major = optional(value, decimal, "its map of holes cannot be read")?,
            b"GNU.sparse.minor" => self.sparse.minor = optional(value, decimal, "its map of holes cannot be read")?,
            b"GNU.sparse.name" => self.sparse.name = text,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = optional(value, decimal, "its size is no number")?;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                // Offset and length in turn, one record each.
                let expected = if key.ends_with(b"offset") { 0 } else { 1 };
                let value = decimal(value).filter(|_| self.sparse.numbers.len() % 2 == expected);
                self.sparse.add([value])?;
            }
            b"GNU.sparse.map" => {
                self.sparse.numbers.clear();
                self.sparse.add(value.split(|byte| *byte == b',').map(decimal))?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attributes.retain(|(known, _)| known != name);
                    if self.attributes.len() >= ATTRIBUTES_MAX {
                        return Err("it has more extended attributes than are taken");
                    }
                    if name.is_empty() || name.len() > 255 || name.contains(&0) {
                        return Err("an extended attribute has no name that can be");
                    }
                    self.attributes.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

impl Sparse {
    fn is_there(&self) -> bool {
        self.major.is_some() || self.real_size.is_some() || !self.numbers.is_empty()
    }

    fn add(&mut self, values: impl IntoIterator<Item = Option<u64>>) -> Result<(), &'static str> {
        for value in values {
            self.numbers.push(value.ok_or("its map of holes cannot be read")?);
            if self.numbers.len() > 2 * PIECES_MAX {
                return Err("it has more pieces than are taken");
            }
        }
        Ok(())
    }
}

fn optional<T>(value: &[u8], read: impl Fn(&[u8]) -> Option<T>, why: &'static str) -> Result<Option<T>, &'static str> {
    if value.is_empty() { Ok(None) } else { read(value).map(Some).ok_or(why) }
}

/// Key, value and what follows of the first record.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(10).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    if length <= space + 2 || length > bytes.len() {
        return None;
    }
    let (record, rest) = bytes.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

/// Digits and nothing else.
fn decimal(bytes: &[u8]) -> Option<u64> {
    if !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Seconds with a fraction, perhaps below zero: whole seconds downwards, and nanoseconds.
fn time(bytes: &[u8]) -> Option<(i64, u32)> {
    let (negative, bytes) = match bytes.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, bytes),
    };
    let point = bytes.iter().position(|byte| *byte == b'.').unwrap_or(bytes.len());
    let (whole, fraction) = (&bytes[..point], bytes.get(point + 1..).unwrap_or_default());
    let seconds = if whole.is_empty() { 0 } else { i64::try_from(decimal(whole)?).ok()? };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    match (negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

/// A number of a header: octal digits among spaces and zero bytes, or GNU's two's complement behind a set first bit.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = if index == 0 && !negative { byte & 0x7f } else { *byte };
            value = value.checked_mul(256)?.checked_add(i128::from(byte))?;
        }
        return i64::try_from(value).ok();
    }
    let text = field.split(|byte| *byte == 0).find(|part| !part.is_empty()).unwrap_or_default();
    let digits = text.trim_ascii();
    if digits.is_empty() {
        return Some(0);
    }
    let octal = digits.iter().all(|byte| (b'0'..=b'7').contains(byte));
    octal.then(|| i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()).flatten()
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % 512
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// One read that is not interrupted.
fn read_some(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_headers() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"12 34567", None),
            (b"0000008\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn times_of_extended_headers() {
        for (text, value) in [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            (".25", Some((0, 250_000_000))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-3", Some((-3, 0))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("9223372036854775808", None),
            ("1.x", None),
            ("1e9", None),
            ("--1", None),
        ] {
            assert_eq!(time(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn records_of_extended_headers() {
        let read = |bytes: &'static [u8]| {
            let record = pax_record(bytes);
            record.map(|(key, value, rest)| (String::from_utf8_lossy(key).into_owned(), value.to_vec(), rest.len()))
        };
        assert_eq!(read(b"8 a=b=c\nrest"), Some(("a".to_owned(), b"b=c".to_vec(), 4)));
        assert_eq!(read(b"9 a=b=c\n\n"), Some(("a".to_owned(), b"b=c\n".to_vec(), 0)));
        assert_eq!(read(b"5 a=\n"), Some(("a".to_owned(), Vec::new(), 0)));
        for bad in [&b"5 a=b"[..], b"99999999999 a=b\n", b"3 \n", b"4 =\n", b"x a=b\n", b"", b" a=b\n", b"5 abc\n"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn names_in_messages_are_short_and_harmless() {
        assert_eq!(Name::new(b"a\x1b[31m\n\xff").to_string(), "\"a\\u{1b}[31m\\n\u{fffd}\"");
        assert!(Name::new(&[b'x'; 4_096]).to_string().len() < 200);
    }
}
