//! The network between sites: delay, loss, cuts.

use crate::random::Random;

/// Bits per second of every path: an office's uplink.
const BITS_PER_SECOND: u64 = 50_000_000;
/// One-way delay inside a site.
const LAN_US: u64 = 300;
/// What a lost packet costs a reliable stream: one retransmission timeout.
const RETRANSMISSION_US: u64 = 200_000;

/// Delay and loss between sites, and which of them are cut off from which.
#[derive(Debug)]
pub(crate) struct Network {
    /// One-way delay from each site to those of lower or the same index.
    delay_us: Vec<Vec<u64>>,
    /// Sites with different numbers here do not reach each other.
    island: Vec<usize>,
    random: Random,
}

impl Network {
    pub(crate) fn new(sites: usize, mut random: Random) -> Self {
        // From each site to those before it; both directions take the same time.
        let delay_us =
            (0..sites).map(|site| (0..site).map(|_| random.between(8_000, 60_000)).chain([LAN_US]).collect()).collect();
        Self { delay_us, island: vec![0; sites], random }
    }

    /// From now on only sites of the same island reach each other.
    pub(crate) fn cut(&mut self, island: impl Fn(usize) -> usize) {
        self.island = (0..self.island.len()).map(island).collect();
    }

    pub(crate) fn heal(&mut self) {
        self.island.fill(0);
    }

    pub(crate) fn reaches(&self, a: usize, b: usize) -> bool {
        self.island[a] == self.island[b]
    }

    /// One-way delay without anything on the path.
    pub(crate) fn base_us(&self, a: usize, b: usize) -> u64 {
        self.delay_us[a.max(b)][a.min(b)]
    }

    /// When a message of `bytes` on a reliable stream that is sent now arrives, in microseconds from now.
    pub(crate) fn transit_us(&mut self, a: usize, b: usize, bytes: usize) -> u64 {
        let (transit_us, lost) = self.draw(a, b, bytes);
        transit_us + if lost { RETRANSMISSION_US } else { 0 }
    }

    /// The same for a datagram; none if it is lost or the path is cut.
    pub(crate) fn datagram_us(&mut self, a: usize, b: usize, bytes: usize) -> Option<u64> {
        let (transit_us, lost) = self.draw(a, b, bytes);
        (!lost && self.reaches(a, b)).then_some(transit_us)
    }

    fn draw(&mut self, a: usize, b: usize, bytes: usize) -> (u64, bool) {
        let base_us = self.base_us(a, b);
        let jitter_us = self.random.below(base_us / 5 + 1);
        let sending_us = bytes as u64 * 8 * 1_000_000 / BITS_PER_SECOND;
        (base_us + jitter_us + sending_us, self.random.chance(if a == b { 1 } else { 10 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_sites_reach_their_own_island_only() {
        let mut network = Network::new(4, Random::new(1));
        assert!(network.reaches(0, 3));
        network.cut(|site| site / 2);
        assert!(network.reaches(0, 1) && network.reaches(2, 3) && !network.reaches(1, 2));
        network.heal();
        assert!(network.reaches(1, 2));
    }

    #[test]
    fn transit_takes_the_path_and_the_bytes() {
        let mut network = Network::new(2, Random::new(1));
        let shortest = (0..100).map(|_| network.transit_us(0, 1, 0)).min().expect("a hundred");
        assert!(shortest >= network.base_us(0, 1) && shortest < RETRANSMISSION_US);
        assert!(network.transit_us(0, 1, 5_000_000) >= 800_000);
    }
}
