//! The wall clock that the daemon believes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vdc::UnixTime;

/// A difference to a peer's clock beyond which `status` complains.
pub(crate) const SKEW_MAX: Duration = Duration::from_secs(300);

/// What the operating system says.
pub(crate) fn system_time() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

/// System time with a floor: a box whose clock fell back (flat battery, restored snapshot) goes on from the latest time
/// that it has evidence of, so that nothing signed after that moment looks as if it came from the future.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    floor: UnixTime,
}

impl Clock {
    pub(crate) fn now(&self) -> UnixTime {
        system_time().max(self.floor)
    }

    /// Evidence that `time` has passed: a persisted time, or the newest valid record.
    pub(crate) fn raise_floor(&mut self, time: UnixTime) {
        self.floor = self.floor.max(time);
    }

    /// How far the system clock lies behind the floor.
    pub(crate) fn behind(&self) -> Duration {
        self.floor.since(system_time())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_holds_a_clock_that_fell_back() {
        let mut clock = Clock::default();
        let real = system_time();
        clock.raise_floor(UnixTime(1_000));
        assert!(clock.now() >= real && clock.behind() == Duration::ZERO);
        clock.raise_floor(real.plus(Duration::from_secs(86_400)));
        clock.raise_floor(UnixTime(5));
        assert_eq!(clock.now(), real.plus(Duration::from_secs(86_400)));
        assert!(clock.behind() > Duration::from_secs(86_000));
    }
}
