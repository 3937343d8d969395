//! The file under a group's log: frames that are appended one after the other, each durable before the next is written.
//!
//! A frame holds records and begins at a sector. Its place, its number and what it holds are hashed with a key of the file,
//! so that neither what was left of an earlier write nor what a client sends is ever taken for one. Space is written with
//! zeros before it is used: a flush then has no change of the file's length to keep.
//!
//! The first frame that is not whole ends the log: a crash tore it, and nobody was told of it. That it was torn and not damaged
//! later shows in that nothing follows: behind each frame that is durable an empty one is written, the seal, in whose place
//! the next comes. A frame that is not whole with a seal or a frame behind it was acknowledged once, and is an error.
//!
//! What was purged stays in the file until it is more than what is left; then the rest is written to another file, which
//! takes its place by a rename.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use redb::StorageBackend as _;
use vdc::codec;
use vdc_coord::wire::{Place, VoteForm};

use crate::env::Disk;
use crate::log::Boxed;
use crate::types::LOGGED_BYTES_MAX;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// Where the frames begin.
const START: u64 = SECTOR as u64;
const MAGIC: &[u8; 8] = b"meshdlog";
const VERSION: u32 = 1;
/// Magic, version, number of frames that a file begins with, salt; then their hash.
const FILE_HEAD: usize = 8 + 4 + 8 + 16;
/// Number, length, and how long the file is at least; then the hash of the head and that of all.
const HEAD: usize = 8 + 4 + 8;
const HASH: usize = 16;
const FRAME_HEAD: usize = HEAD + 2 * HASH;
/// Kind and length of a record.
const RECORD_HEAD: usize = 1 + 4;
/// A frame of so many bytes is written before more is put into another.
const FRAME_BYTES: usize = 4 << 20;
/// Longest frame: one more entry than fits.
const FRAME_BYTES_MAX: usize = FRAME_BYTES + LOGGED_BYTES_MAX + (64 << 10);
/// Space that is made at a time: a half of what there is, within these.
const GROWTH_MIN: u64 = 64 << 10;
const GROWTH_MAX: u64 = 4 << 20;
/// Bytes that nobody needs any more, from which on a file is written anew.
const WASTE_MIN: u64 = 4 << 20;
/// Longest vote or place, encoded.
const META_BYTES_MAX: usize = 128;

type Sum = [u8; HASH];

/// Where an entry is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    at: u64,
    len: u32,
    sum: Sum,
}

impl Spot {
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }
}

/// Where all entries of a log are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spots {
    first: u64,
    spots: VecDeque<Spot>,
    bytes: u64,
}

impl Spots {
    fn end(&self) -> u64 {
        self.first + self.spots.len() as u64
    }

    fn add(&mut self, index: u64, spot: Spot) -> io::Result<()> {
        if self.spots.is_empty() {
            self.first = index;
        }
        if index != self.end() {
            return Err(damaged(&format!("entry {index} stands where {} should", self.end())));
        }
        self.bytes += u64::from(spot.len);
        self.spots.push_back(spot);
        Ok(())
    }

    fn truncate(&mut self, from: u64) {
        while self.end() > from
            && let Some(gone) = self.spots.pop_back()
        {
            self.bytes -= u64::from(gone.len);
        }
    }

    fn purge(&mut self, upto: u64) {
        while self.first <= upto
            && let Some(gone) = self.spots.pop_front()
        {
            self.bytes -= u64::from(gone.len);
            self.first += 1;
        }
    }

    /// Those of the entries of a range that are there, up to some bytes of them, and at least one.
    pub(crate) fn range(&self, from: u64, to: u64, bytes_max: usize) -> Vec<Spot> {
        let skipped = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let wanted = usize::try_from(to.saturating_sub(from.max(self.first))).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |spot: &&Spot| {
            let first = bytes == 0;
            bytes += spot.len();
            first || bytes <= bytes_max
        };
        self.spots.iter().skip(skipped).take(wanted).take_while(fits).copied().collect()
    }

    pub(crate) fn last(&self) -> Option<Spot> {
        self.spots.back().copied()
    }

    /// Takes over what a frame changed.
    pub(crate) fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        changes.iter().try_for_each(|change| match change {
            Change::Entry(index, spot) => self.add(*index, *spot),
            Change::Truncated(from) => {
                self.truncate(*from);
                Ok(())
            }
            Change::Purged(upto) => {
                self.purge(*upto);
                Ok(())
            }
        })
    }
}

/// What is kept beside the entries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) vote: Option<VoteForm>,
    pub(crate) committed: Option<Place>,
    pub(crate) purged: Option<Place>,
}

/// What a frame does to the entries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Entry(u64, Spot),
    Truncated(u64),
    Purged(u64),
}

#[derive(Clone, Copy)]
enum Kind {
    Vote = 1,
    Committed = 2,
    Purged = 3,
    Truncated = 4,
    Entry = 5,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        [Self::Vote, Self::Committed, Self::Purged, Self::Truncated, Self::Entry]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log is damaged: {why}"))
}

fn align(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR as u64)
}

/// An open file, to be read.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Boxed,
    key: [u8; 32],
}

impl Journal {
    fn sum(&self, at: u64, parts: &[&[u8]]) -> Sum {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&at.to_be_bytes());
        for part in parts {
            hasher.update(part);
        }
        let mut sum = Sum::default();
        sum.copy_from_slice(&hasher.finalize().as_bytes()[..HASH]);
        sum
    }

    /// The bytes of an entry.
    ///
    /// # Errors
    /// Those of the disk; what is not what was written is told as damaged.
    pub(crate) fn read(&self, spot: &Spot) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; spot.len()];
        self.file.read(spot.at, &mut bytes)?;
        if self.sum(spot.at, &[&bytes]) == spot.sum { Ok(bytes) } else { Err(damaged("an entry is another one now")) }
    }

    /// The head of a frame at a place: its number and length, and that of the file.
    fn head(&self, at: u64, head: &[u8; FRAME_HEAD]) -> Option<(u64, usize, u64)> {
        if self.sum(at, &[&head[..HEAD]]) != head[HEAD..HEAD + HASH] {
            return None;
        }
        let number = u64::from_be_bytes(head[..8].try_into().ok()?);
        let length = u32::from_be_bytes(head[8..12].try_into().ok()?);
        let file = u64::from_be_bytes(head[12..HEAD].try_into().ok()?);
        Some((number, usize::try_from(length).ok()?, file))
    }

    /// What the frame of this number holds at a place, if it is there and whole; and how long the file is with it, at least.
    fn frame(&self, at: u64, number: u64, len: u64) -> io::Result<Option<(Vec<u8>, u64)>> {
        let mut head = [0; FRAME_HEAD];
        if at + head.len() as u64 > len {
            return Ok(None);
        }
        self.file.read(at, &mut head)?;
        let Some((found, length, file)) = self.head(at, &head) else { return Ok(None) };
        let begin = at + FRAME_HEAD as u64;
        if found != number || length > FRAME_BYTES_MAX || begin + length as u64 > len {
            return Ok(None);
        }
        let mut body = vec![0; length];
        self.file.read(begin, &mut body)?;
        Ok((self.sum(at, &[&head[..HEAD], &body]) == head[HEAD + HASH..]).then_some((body, file)))
    }

    /// Whether a frame behind that of `number` was ever written, from a place on.
    fn is_followed(&self, from: u64, number: u64, len: u64) -> io::Result<bool> {
        let mut chunk = vec![0; 1 << 20];
        let mut at = from;
        while at < len {
            let here = usize::try_from((len - at).min(chunk.len() as u64)).map_err(io::Error::other)?;
            self.file.read(at, &mut chunk[..here])?;
            for (sector, bytes) in chunk[..here].chunks(SECTOR).enumerate() {
                let head = bytes.first_chunk::<FRAME_HEAD>();
                let head = head.and_then(|head| self.head(at + (sector * SECTOR) as u64, head));
                if head.is_some_and(|(found, ..)| found > number) {
                    return Ok(true);
                }
            }
            at += here as u64;
        }
        Ok(false)
    }
}

/// Records that are written at once.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Room for the head comes first.
    bytes: Vec<u8>,
    /// The places are counted from the frame's own.
    changes: Vec<Change>,
}

impl Default for Frame {
    fn default() -> Self {
        Self { bytes: vec![0; FRAME_HEAD], changes: vec![] }
    }
}

impl Frame {
    fn record(&mut self, kind: Kind, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.bytes.push(kind as u8);
        self.bytes.extend(u32::try_from(length).expect("frames are shorter").to_be_bytes());
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    pub(crate) fn vote(&mut self, vote: &VoteForm) {
        self.record(Kind::Vote, &[&codec::encode(vote)]);
    }

    pub(crate) fn committed(&mut self, place: &Place) {
        self.record(Kind::Committed, &[&codec::encode(place)]);
    }

    pub(crate) fn purge(&mut self, upto: &Place) {
        self.record(Kind::Purged, &[&codec::encode(upto)]);
        self.changes.push(Change::Purged(upto.index));
    }

    pub(crate) fn truncate(&mut self, from: u64) {
        self.record(Kind::Truncated, &[&from.to_be_bytes()]);
        self.changes.push(Change::Truncated(from));
    }

    pub(crate) fn entry(&mut self, index: u64, bytes: &[u8]) {
        self.record(Kind::Entry, &[&index.to_be_bytes(), bytes]);
        let len = u32::try_from(bytes.len()).expect("frames are shorter");
        let at = (self.bytes.len() - bytes.len()) as u64;
        self.changes.push(Change::Entry(index, Spot { at, len, sum: Sum::default() }));
    }

    fn is_empty(&self) -> bool {
        self.bytes.len() == FRAME_HEAD
    }

    /// Whether it should be written before more is put into it.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= FRAME_BYTES
    }
}

/// The end of a file, to be written.
#[derive(Debug)]
pub(crate) struct Pen {
    journal: Arc<Journal>,
    /// Where the next frame comes, and its number.
    next: u64,
    number: u64,
    /// How long the file is: zeros from `next` on, but for the seal.
    len: u64,
}

/// What a file held when it was opened.
pub(crate) struct Opened {
    pub(crate) pen: Pen,
    pub(crate) meta: Meta,
    pub(crate) spots: Spots,
}

impl Pen {
    pub(crate) fn journal(&self) -> Arc<Journal> {
        Arc::clone(&self.journal)
    }

    /// Begins a file. Frames up to `frames` are there for certain once it is used.
    fn begin(file: Boxed, salt: [u8; 16], frames: u64) -> io::Result<Self> {
        let mut head = vec![];
        head.extend_from_slice(MAGIC);
        head.extend(VERSION.to_be_bytes());
        head.extend(frames.to_be_bytes());
        head.extend(salt);
        let sum = blake3::hash(&head);
        head.extend_from_slice(&sum.as_bytes()[..HASH]);
        head.resize(SECTOR, 0);
        file.set_len(0)?;
        file.set_len(START)?;
        file.write(0, &head)?;
        file.sync_data()?;
        Ok(Self { journal: Arc::new(Journal { file, key: key(&salt) }), next: START, number: 1, len: START })
    }

    /// Opens a log or, where there is none, begins one. `salt` must be drawn anew each time.
    ///
    /// # Errors
    /// Those of the disk; what can only come of damage is told as such.
    pub(crate) fn open(disk: &impl Disk, file: &str, salt: [u8; 16]) -> io::Result<Opened> {
        let stale = beside(file);
        if disk.exists(&stale)? {
            disk.remove(&stale)?;
        }
        let backend = Boxed(disk.open(file)?);
        let len = backend.len()?;
        let mut head = [0; FILE_HEAD + HASH];
        if len >= head.len() as u64 {
            backend.read(0, &mut head)?;
        }
        if head.iter().all(|byte| *byte == 0) {
            // The head is durable before the file grows behind it.
            if len > START || !is_blank(&backend, len)? {
                return Err(damaged("its head is gone"));
            }
            let pen = Self::begin(backend, salt, 0)?;
            return Ok(Opened { pen, meta: Meta::default(), spots: Spots::default() });
        }
        if &head[..8] != MAGIC || blake3::hash(&head[..FILE_HEAD]).as_bytes()[..HASH] != head[FILE_HEAD..] {
            return Err(damaged("its head is not that of a log"));
        }
        let number = |from: usize, to: usize| head[from..to].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        if number(8, 12) != u64::from(VERSION) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the log is of a later version"));
        }
        let (frames, mut salt) = (number(12, 20), [0; 16]);
        salt.copy_from_slice(&head[20..FILE_HEAD]);
        let journal = Journal { file: backend, key: key(&salt) };
        Self::load(journal, len, frames)
    }

    fn load(journal: Journal, len: u64, frames: u64) -> io::Result<Opened> {
        let (mut meta, mut spots) = (Meta::default(), Spots::default());
        let (mut at, mut number) = (START, 1);
        let mut last = None;
        // One that was written behind a growth of the file which is not there was never flushed; or the file was cut short,
        // and others follow.
        let there = |(body, file): &(Vec<u8>, u64)| !body.is_empty() && *file <= len;
        while let Some((body, _)) = journal.frame(at, number, len)?.filter(there) {
            spots.apply(&records(&journal, at, &body, &mut meta)?)?;
            last = Some((at, FRAME_HEAD + body.len()));
            at = align(at + (FRAME_HEAD + body.len()) as u64);
            number += 1;
        }
        if number <= frames || journal.is_followed(at, number, len)? {
            return Err(damaged(&format!("frame {number}, at byte {at}, is not what was written")));
        }
        let mut pen = Self { journal: Arc::new(journal), next: at, number, len };
        // The last frame may have been read from memory, behind a flush that failed.
        if let Some((at, length)) = last {
            let mut bytes = vec![0; length];
            pen.journal.file.read(at, &mut bytes)?;
            pen.journal.file.write(at, &bytes)?;
        }
        pen.make_room(pen.next)?;
        pen.seal()?;
        pen.journal.file.sync_data()?;
        Ok(Opened { pen, meta, spots })
    }

    /// Has room up to some byte, and for a seal behind it.
    fn make_room(&mut self, upto: u64) -> io::Result<()> {
        let upto = upto + SECTOR as u64;
        if upto <= self.len {
            return Ok(());
        }
        let len = align(upto + (self.next / 2).clamp(GROWTH_MIN, GROWTH_MAX));
        self.journal.file.set_len(len)?;
        let zeros = vec![0; usize::try_from((len - self.len).min(1 << 20)).map_err(io::Error::other)?];
        while self.len < len {
            let here = usize::try_from((len - self.len).min(zeros.len() as u64)).map_err(io::Error::other)?;
            self.journal.file.write(self.len, &zeros[..here])?;
            self.len += here as u64;
        }
        Ok(())
    }

    fn head(&self, body: &[u8]) -> [u8; FRAME_HEAD] {
        let mut head = [0; FRAME_HEAD];
        head[..8].copy_from_slice(&self.number.to_be_bytes());
        head[8..12].copy_from_slice(&u32::try_from(body.len()).expect("frames are shorter").to_be_bytes());
        head[12..HEAD].copy_from_slice(&self.len.to_be_bytes());
        let (of_head, of_all) =
            (self.journal.sum(self.next, &[&head[..HEAD]]), self.journal.sum(self.next, &[&head[..HEAD], body]));
        head[HEAD..HEAD + HASH].copy_from_slice(&of_head);
        head[HEAD + HASH..].copy_from_slice(&of_all);
        head
    }

    /// Says that all before is durable. It is not flushed itself: without it the same is read.
    fn seal(&self) -> io::Result<()> {
        let mut seal = self.head(&[]).to_vec();
        seal.resize(SECTOR, 0);
        self.journal.file.write(self.next, &seal)
    }

    /// Writes a frame and has it durable.
    ///
    /// # Errors
    /// Those of the disk; what the file holds then is known when it is opened again.
    pub(crate) fn write(&mut self, frame: Frame) -> io::Result<Vec<Change>> {
        let Frame { mut bytes, mut changes } = frame;
        if bytes.len() == FRAME_HEAD {
            return Ok(changes);
        }
        let length = bytes.len() as u64;
        self.make_room(align(self.next + length))?;
        let head = self.head(&bytes[FRAME_HEAD..]);
        bytes[..FRAME_HEAD].copy_from_slice(&head);
        for change in &mut changes {
            if let Change::Entry(_, spot) = change {
                let begin = usize::try_from(spot.at).map_err(io::Error::other)?;
                spot.at += self.next;
                spot.sum = self.journal.sum(spot.at, &[&bytes[begin..begin + spot.len()]]);
            }
        }
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        self.journal.file.write(self.next, &bytes)?;
        self.journal.file.sync_data()?;
        self.next += bytes.len() as u64;
        self.number += 1;
        self.seal()?;
        Ok(changes)
    }

    /// Whether more of the file is of no use any more than what is.
    pub(crate) fn is_wasteful(&self, spots: &Spots) -> bool {
        let waste = (self.next - START).saturating_sub(spots.bytes);
        waste > WASTE_MIN && waste > spots.bytes
    }

    /// Writes what is left to another file, which takes the place of this one.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn rewrite(
        &self,
        disk: &impl Disk,
        name: &str,
        salt: [u8; 16],
        meta: &Meta,
        spots: &Spots,
    ) -> io::Result<Opened> {
        let aside = beside(name);
        disk.remove(&aside)?;
        // How many frames there are is known before the first is written: they are filled by the same rule.
        let mut frames = 1;
        let mut filled = FRAME_HEAD;
        for spot in &spots.spots {
            if filled >= FRAME_BYTES {
                (frames, filled) = (frames + 1, FRAME_HEAD);
            }
            filled += spot.len() + RECORD_HEAD + 8;
        }
        let mut pen = Self::begin(Boxed(disk.open(&aside)?), salt, frames)?;
        let mut kept = Spots::default();
        let mut frame = Frame::default();
        let mut filled = FRAME_HEAD;
        for (index, spot) in (spots.first..).zip(&spots.spots) {
            if filled >= FRAME_BYTES {
                kept.apply(&pen.write(std::mem::take(&mut frame))?)?;
                filled = FRAME_HEAD;
            }
            frame.entry(index, &self.journal.read(spot)?);
            filled += spot.len() + RECORD_HEAD + 8;
        }
        // The last frame says the rest, and is there in any case.
        let Meta { vote, committed, purged } = meta;
        vote.iter().for_each(|vote| frame.vote(vote));
        committed.iter().for_each(|place| frame.committed(place));
        purged.iter().for_each(|place| frame.purge(place));
        if frame.is_empty() {
            frame.truncate(u64::MAX);
        }
        kept.apply(&pen.write(frame)?)?;
        disk.rename(&aside, name)?;
        Ok(Opened { pen, meta: *meta, spots: kept })
    }
}

/// Where a log is written anew.
pub(crate) fn beside(file: &str) -> String {
    format!("{file}.new")
}

fn key(salt: &[u8; 16]) -> [u8; 32] {
    blake3::derive_key("meshd coordination log 2026-11", salt)
}

fn is_blank(file: &Boxed, len: u64) -> io::Result<bool> {
    let mut chunk = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let here = usize::try_from((len - at).min(chunk.len() as u64)).map_err(io::Error::other)?;
        file.read(at, &mut chunk[..here])?;
        if chunk[..here].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += here as u64;
    }
    Ok(true)
}

/// What the records of a frame say.
fn records(journal: &Journal, at: u64, body: &[u8], meta: &mut Meta) -> io::Result<Vec<Change>> {
    let mut changes = vec![];
    let mut rest = body;
    let short = || damaged("a record is cut off");
    while !rest.is_empty() {
        let ([kind, length @ ..], behind) = rest.split_first_chunk::<RECORD_HEAD>().ok_or_else(short)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (record, behind) = behind.split_at_checked(length).ok_or_else(short)?;
        let place = || codec::decode("place", record, META_BYTES_MAX).map_err(|error| damaged(&error.to_string()));
        let index = || record.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)).ok_or_else(short);
        match Kind::from_number(*kind).ok_or_else(|| damaged("a record is of no known kind"))? {
            Kind::Vote => {
                let vote = codec::decode("vote", record, META_BYTES_MAX);
                meta.vote = Some(vote.map_err(|error| damaged(&error.to_string()))?);
            }
            Kind::Committed => meta.committed = Some(place()?),
            Kind::Purged => {
                let upto: Place = place()?;
                changes.push(Change::Purged(upto.index));
                meta.purged = Some(upto);
            }
            Kind::Truncated => changes.push(Change::Truncated(index()?)),
            Kind::Entry => {
                let index = index()?;
                let entry = &record[8..];
                let begin = at + (FRAME_HEAD + body.len() - behind.len() - entry.len()) as u64;
                let len = u32::try_from(entry.len()).map_err(io::Error::other)?;
                changes.push(Change::Entry(index, Spot { at: begin, len, sum: journal.sum(begin, &[entry]) }));
            }
        }
        rest = behind;
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use vdc::Key;

    use super::*;
    use crate::env::Directory;

    const NAME: &str = "group.log";

    fn place(index: u64) -> Place {
        Place { term: 3, leader: Key([1; 32]), index }
    }

    fn open(dir: &Path) -> io::Result<Opened> {
        Pen::open(&Directory::open(dir)?, NAME, [9; 16])
    }

    fn entry(index: u64) -> Vec<u8> {
        vec![u8::try_from(index % 251).expect("it is below"); 100 + usize::try_from(index % 7).expect("small") * 300]
    }

    /// Writes the entries of a range, each in a frame of its own.
    fn fill(opened: &mut Opened, range: std::ops::Range<u64>) {
        for index in range {
            let mut frame = Frame::default();
            frame.entry(index, &entry(index));
            let changes = opened.pen.write(frame).expect("there is room");
            opened.spots.apply(&changes).expect("they follow each other");
        }
    }

    fn held(opened: &Opened) -> Vec<Vec<u8>> {
        let spots = opened.spots.range(0, u64::MAX, usize::MAX);
        spots.iter().map(|spot| opened.pen.journal.read(spot).expect("it is whole")).collect()
    }

    #[test]
    fn what_was_written_is_there_when_it_is_opened_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut opened = open(dir.path()).expect("it is made");
        fill(&mut opened, 1..50);
        let mut frame = Frame::default();
        frame.vote(&VoteForm { term: 4, leader: Key([1; 32]), committed: false });
        frame.truncate(40);
        frame.purge(&place(10));
        opened.spots.apply(&opened.pen.write(frame).expect("there is room")).expect("they fit");
        fill(&mut opened, 40..45);
        let expected: Vec<_> = (11..45).map(entry).collect();
        assert_eq!(held(&opened), expected);
        let again = open(dir.path()).expect("it is whole");
        assert_eq!(held(&again), expected);
        assert_eq!((again.meta.vote.map(|vote| vote.term), again.meta.purged), (Some(4), Some(place(10))));
        let disk = Directory::open(dir.path()).expect("it is there");
        let rewritten = again.pen.rewrite(&disk, NAME, [8; 16], &again.meta, &again.spots).expect("there is room");
        assert_eq!(held(&rewritten), expected);
        let mut again = open(dir.path()).expect("it is whole");
        assert_eq!(again.meta.vote.map(|vote| vote.term), Some(4));
        fill(&mut again, 45..46);
        assert_eq!(held(&open(dir.path()).expect("it is whole")).len(), expected.len() + 1);
    }

    #[test]
    fn frame_that_a_crash_tore_is_as_if_it_was_never_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut opened = open(dir.path()).expect("it is made");
        fill(&mut opened, 1..20);
        let end = usize::try_from(opened.pen.next).expect("small");
        let before = fs::read(dir.path().join(NAME)).expect("it is there");
        fill(&mut opened, 20..21);
        let whole = fs::read(dir.path().join(NAME)).expect("it is there");
        let sectors = usize::try_from(opened.pen.next).expect("small").div_ceil(SECTOR) - end / SECTOR;
        assert!(sectors > 2);
        for kept in 0..1_usize << sectors {
            let mut torn = before.clone();
            for sector in (0..sectors).filter(|sector| kept >> sector & 1 == 1) {
                let range = end + sector * SECTOR..end + (sector + 1) * SECTOR;
                torn[range.clone()].copy_from_slice(&whole[range]);
            }
            fs::write(dir.path().join(NAME), &torn).expect("there is room");
            let mut again = open(dir.path()).expect("nothing that was durable is damaged");
            assert_eq!(held(&again).len(), if kept + 1 == 1 << sectors { 20 } else { 19 });
            let next = again.spots.end();
            fill(&mut again, next..next + 3);
            assert_eq!(held(&open(dir.path()).expect("it is whole")).len() as u64, next + 2);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn damage_is_told_or_harmless(
            at in 0.0..1.0_f64, bytes in proptest::collection::vec(any::<u8>(), 1..2_000), blank: bool, cut: bool, rewritten: bool,
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            let mut opened = open(dir.path()).expect("it is made");
            let mut ends = vec![];
            for index in 1..30 {
                fill(&mut opened, index..index + 1);
                ends.push(usize::try_from(opened.pen.next).expect("small"));
            }
            if rewritten {
                let disk = Directory::open(dir.path()).expect("it is there");
                opened = opened.pen.rewrite(&disk, NAME, [8; 16], &opened.meta, &opened.spots).expect("there is room");
                ends.clear();
            }
            let used = usize::try_from(opened.pen.next).expect("small");
            let expected = held(&opened);
            let mut file = fs::read(dir.path().join(NAME)).expect("it is there");
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in a small file")]
            let at = (at * used as f64) as usize;
            let end = used.min(at + bytes.len());
            file[at..end].copy_from_slice(&if blank { vec![0; end - at] } else { bytes[..end - at].to_vec() });
            if cut {
                file.truncate(end);
            }
            fs::write(dir.path().join(NAME), &file).expect("there is room");
            match open(dir.path()) {
                // Where nothing whole follows a frame, it is taken for the one that a crash tore, and so is the one before
                // it if the file has lost the length that it had then.
                Ok(again) if cut => {
                    let held = held(&again);
                    prop_assert!(held.len() + 1 >= ends.iter().filter(|end| **end <= at).count());
                    prop_assert_eq!(&held[..], &expected[..held.len()]);
                }
                Err(error) => prop_assert_eq!(error.kind(), io::ErrorKind::InvalidData),
                Ok(again) => prop_assert_eq!(held(&again), expected),
            }
        }

        #[test]
        fn foreign_files_are_refused(bytes in proptest::collection::vec(any::<u8>(), 1..3_000)) {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join(NAME), &bytes).expect("there is room");
            prop_assert!(bytes.iter().all(|byte| *byte == 0) || open(dir.path()).is_err());
        }
    }
}
