//! A token bucket in bytes: what one peer may cost us.

use std::time::{Duration, Instant};

/// Refills at a steady rate up to a burst; debts are not possible.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    bytes: u64,
    bytes_max: u64,
    bytes_per_second: u64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(bytes_max: u64, bytes_per_second: u64, now: Instant) -> Self {
        Self { bytes: bytes_max, bytes_max, bytes_per_second, at: now }
    }

    /// Takes `bytes` if they are there.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let enough = self.has(bytes, now);
        if enough {
            self.drain(bytes);
        }
        enough
    }

    /// Whether `bytes` are there.
    pub(super) fn has(&mut self, bytes: usize, now: Instant) -> bool {
        self.refill(now);
        bytes as u64 <= self.bytes
    }

    /// Takes what is there, at most `bytes`: for costs that are known only after they arose.
    pub(super) fn drain(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }

    /// When `bytes` will be there, if that many ever are.
    pub(super) fn ready_at(&self, bytes: usize) -> Instant {
        let missing = (bytes as u64).min(self.bytes_max).saturating_sub(self.bytes);
        self.at + Duration::from_millis((missing * 1000).div_ceil(self.bytes_per_second))
    }

    fn refill(&mut self, now: Instant) {
        let elapsed_ms = u64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        let earned = elapsed_ms.saturating_mul(self.bytes_per_second) / 1000;
        if earned > 0 {
            self.bytes = self.bytes.saturating_add(earned).min(self.bytes_max);
            // Not `now`: what is left of a millisecond goes on counting.
            self.at += Duration::from_millis(elapsed_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_refills_at_its_rate_up_to_its_burst() {
        let start = Instant::now();
        let mut budget = Budget::new(1000, 100, start);
        assert!(budget.take(1000, start));
        assert!(!budget.take(1, start));
        assert_eq!(budget.ready_at(50), start + Duration::from_millis(500));
        assert!(!budget.take(51, start + Duration::from_millis(500)));
        assert!(budget.take(50, start + Duration::from_millis(500)));
        assert!(budget.take(1000, start + Duration::from_secs(3600)));
        assert!(!budget.take(1, start + Duration::from_secs(3600)));
        assert_eq!(budget.ready_at(5000), budget.ready_at(1000), "more than the burst never comes");
    }
}
