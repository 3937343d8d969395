//! How long to wait before a workload is started again. There is no last attempt.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(60);
/// Who ran for so long starts over with the shortest pause.
const STEADY: Duration = Duration::from_secs(10);

/// The pauses of one workload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackOff {
    next: Duration,
}

impl Default for BackOff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl BackOff {
    /// The pause after a run of `ran`; twice the last one, a minute at most.
    pub(crate) fn on_exit(&mut self, ran: Duration) -> Duration {
        if ran >= STEADY {
            self.next = FIRST;
        }
        let pause = self.next;
        self.next = (pause * 2).min(LAST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_never_end() {
        let mut backoff = BackOff::default();
        let pauses: Vec<Duration> = (0..40).map(|_| backoff.on_exit(Duration::from_secs(1))).collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800].map(Duration::from_millis));
        assert!(pauses.is_sorted() && pauses[39] == LAST);
        assert_eq!(backoff.on_exit(STEADY), FIRST, "a steady run is forgiven");
        assert_eq!(backoff.on_exit(Duration::ZERO), FIRST * 2);
    }
}
