//! Jitter and tokens from a seed: SplitMix64 (Steele, Lea, Flood 2014). Not for keys.

#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self(seed.chunks_exact(8).fold(0, |state, chunk| {
            let word: [u8; 8] = chunk.try_into().expect("chunks of 8 bytes");
            Self(state ^ u64::from_le_bytes(word)).next()
        }))
    }

    /// A generator of its own, so that what one peer does moves no number of another's.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// `pause` and up to a quarter more, so that many peers do not act in step.
    pub(crate) fn jitter(&mut self, pause: std::time::Duration) -> std::time::Duration {
        let quarter = u64::try_from(pause.as_micros() / 4).unwrap_or(u64::MAX);
        pause + std::time::Duration::from_micros(self.next() % quarter.saturating_add(1))
    }
}
