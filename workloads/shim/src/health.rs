//! When to check a program's health, and what its answers mean. No process and no clock in here.

use std::time::{Duration, Instant};

/// How to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Between the end of one check and the next.
    pub(crate) interval: Duration,
    /// After which a check has failed.
    pub(crate) timeout: Duration,
    /// Failures in a row that make it unhealthy.
    pub(crate) retries: u32,
    /// After the start, during which failures do not count.
    pub(crate) start_period: Duration,
}

/// What is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// No check has decided yet.
    Starting,
    Healthy,
    Unhealthy,
}

/// The state of a program's checks.
#[derive(Debug)]
pub(crate) struct Checks {
    schedule: Schedule,
    started: Instant,
    failures: u32,
    health: Health,
    next: Option<Instant>,
    deadline: Option<Instant>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Start a check.
    Check,
    /// The running check takes too long: end it. It counts as failed.
    Cancel,
}

impl Checks {
    pub(crate) fn new(schedule: Schedule, now: Instant) -> Self {
        let next = Some(now + schedule.interval);
        Self { schedule, started: now, failures: 0, health: Health::Starting, next, deadline: None }
    }

    pub(crate) fn health(&self) -> Health {
        self.health
    }

    /// When [`Self::poll`] will have something to say.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadline.or(self.next)
    }

    pub(crate) fn poll(&mut self, now: Instant) -> Option<Due> {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            return Some(Due::Cancel);
        }
        if self.next.is_some_and(|next| next <= now) {
            self.next = None;
            self.deadline = Some(now + self.schedule.timeout);
            return Some(Due::Check);
        }
        None
    }

    /// A check ended. Returns the health if that changed it.
    pub(crate) fn handle_result(&mut self, passed: bool, now: Instant) -> Option<Health> {
        self.deadline = None;
        self.next = Some(now + self.schedule.interval);
        let before = self.health;
        if passed {
            self.failures = 0;
            self.health = Health::Healthy;
        } else if before == Health::Starting && now < self.started + self.schedule.start_period {
            // It may still be on its way up.
        } else {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.schedule.retries.max(1) {
                self.health = Health::Unhealthy;
            }
        }
        (self.health != before).then_some(self.health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn checks(now: Instant) -> Checks {
        let schedule = Schedule { interval: 10 * SECOND, timeout: 3 * SECOND, retries: 2, start_period: 25 * SECOND };
        Checks::new(schedule, now)
    }

    #[test]
    fn checks_run_by_the_interval_and_are_cancelled_by_the_timeout() {
        let start = Instant::now();
        let mut checks = checks(start);
        assert_eq!(checks.poll(start + 9 * SECOND), None);
        assert_eq!(checks.poll(start + 10 * SECOND), Some(Due::Check));
        assert_eq!(checks.poll(start + 11 * SECOND), None);
        assert_eq!(checks.poll_timeout(), Some(start + 13 * SECOND));
        assert_eq!(checks.poll(start + 13 * SECOND), Some(Due::Cancel));
        assert_eq!(checks.poll(start + 14 * SECOND), None);
        checks.handle_result(false, start + 14 * SECOND);
        assert_eq!(checks.poll_timeout(), Some(start + 24 * SECOND));
    }

    #[test]
    fn failures_count_after_the_start_period_and_in_a_row() {
        let start = Instant::now();
        let mut checks = checks(start);
        assert_eq!(checks.handle_result(false, start + 10 * SECOND), None);
        assert_eq!(checks.handle_result(false, start + 20 * SECOND), None);
        assert_eq!(checks.handle_result(false, start + 30 * SECOND), None);
        assert_eq!(checks.health(), Health::Starting);
        assert_eq!(checks.handle_result(true, start + 40 * SECOND), Some(Health::Healthy));
        assert_eq!(checks.handle_result(false, start + 50 * SECOND), None);
        assert_eq!(checks.handle_result(true, start + 60 * SECOND), None);
        assert_eq!(checks.handle_result(false, start + 70 * SECOND), None);
        assert_eq!(checks.handle_result(false, start + 80 * SECOND), Some(Health::Unhealthy));
        assert_eq!(checks.handle_result(true, start + 90 * SECOND), Some(Health::Healthy));
    }
}
