//! How much a node may send on its own account, whatever its peers and strangers make it want to send.

use std::time::{Duration, Instant};

/// A token bucket.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    per_second: u32,
    burst: u32,
    left: u32,
    refilled: Instant,
}

impl Budget {
    pub(crate) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { per_second, burst, left: burst, refilled: now }
    }

    /// Takes up to `wanted` and returns how many there were.
    pub(crate) fn take(&mut self, wanted: usize, now: Instant) -> usize {
        self.refill(now);
        let taken = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.left);
        self.left -= taken;
        usize::try_from(taken).expect("no more than was wanted")
    }

    fn refill(&mut self, now: Instant) {
        let each = Duration::from_secs(1) / self.per_second;
        let gained = now.saturating_duration_since(self.refilled).as_nanos() / each.as_nanos();
        let Ok(gained) = u32::try_from(gained) else {
            (self.left, self.refilled) = (self.burst, now);
            return;
        };
        self.left = self.left.saturating_add(gained).min(self.burst);
        // What is left of a step counts towards the next.
        self.refilled += each.saturating_mul(gained);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(10, 4, start);
        assert_eq!((budget.take(3, start), budget.take(3, start), budget.take(3, start)), (3, 1, 0));
        assert_eq!(budget.take(9, start + Duration::from_millis(150)), 1, "one and a half steps");
        assert_eq!(budget.take(9, start + Duration::from_millis(200)), 1, "the other half");
        assert_eq!(budget.take(9, start + Duration::from_secs(3600)), 4, "never more than the burst");
    }
}
