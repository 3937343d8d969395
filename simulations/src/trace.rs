//! What happened, as a hash to compare and as a tail to read.

use std::collections::VecDeque;

/// Lines kept for the report of a failure.
const TAIL_MAX: usize = 60;

/// The log of a run. Every event goes into the hash, the telling ones also into the tail.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: blake3::Hasher,
    tail: VecDeque<String>,
    events: u64,
}

impl Trace {
    pub(crate) fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("meshd 2026 simulation trace");
        hasher.update(&seed.to_le_bytes());
        Self { hasher, tail: VecDeque::new(), events: 0 }
    }

    /// An event in figures: time, kind, who, whom, how much.
    pub(crate) fn event(&mut self, at_us: u64, kind: u8, from: usize, to: usize, size: usize) {
        let mut bytes = [0; 33];
        bytes[0] = kind;
        for (slot, value) in
            bytes[1..].as_chunks_mut::<8>().0.iter_mut().zip([at_us, from as u64, to as u64, size as u64])
        {
            *slot = value.to_le_bytes();
        }
        self.hasher.update(&bytes);
        self.events += 1;
    }

    /// An event in words.
    pub(crate) fn note(&mut self, at_us: u64, line: &str) {
        self.hasher.update(line.as_bytes());
        if self.tail.len() == TAIL_MAX {
            self.tail.pop_front();
        }
        self.tail.push_back(format!("{:>11.6} {line}", std::time::Duration::from_micros(at_us).as_secs_f64()));
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// The hash of everything so far, in hexadecimal.
    pub(crate) fn hash(&self) -> String {
        self.hasher.finalize().to_hex()[..32].to_owned()
    }

    pub(crate) fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
    }
}
