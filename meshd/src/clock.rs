//! The wall clock that the daemon believes.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

/// Another node's clock: what it said, and when that was heard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerClock {
    said: UnixTime,
    heard: Instant,
}

impl PeerClock {
    pub(crate) fn new(said: UnixTime) -> Self {
        Self { said, heard: Instant::now() }
    }

    /// Seconds by which the peer's clock is ahead of this host's.
    pub(crate) fn offset_s(&self) -> i64 {
        let seconds = |time: UnixTime| i64::try_from(time.0).unwrap_or(i64::MAX);
        seconds(self.said.plus(self.heard.elapsed())).saturating_sub(seconds(system_time()))
    }
}

/// Notices that somebody set this host's clock, or that the host slept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepWatch {
    time: UnixTime,
    at: Instant,
}

impl StepWatch {
    /// Smaller steps are what NTP does all day.
    const STEP_MIN: Duration = Duration::from_secs(10);

    pub(crate) fn new() -> Self {
        Self { time: system_time(), at: Instant::now() }
    }

    /// Whether the clock went another way than time did since the last call.
    pub(crate) fn stepped(&mut self) -> bool {
        let expected = self.time.plus(self.at.elapsed());
        *self = Self::new();
        expected.0.abs_diff(self.time.0) > Self::STEP_MIN.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_clock_goes_on() {
        let ahead = PeerClock { said: system_time().plus(Duration::from_secs(60)), heard: Instant::now() };
        assert!((59..=61).contains(&ahead.offset_s()), "{}", ahead.offset_s());
        let heard = Instant::now().checked_sub(Duration::from_secs(30)).expect("the host is up for longer");
        let same = PeerClock { said: UnixTime(system_time().0 - 30), heard };
        assert!((-1..=1).contains(&same.offset_s()), "{}", same.offset_s());
    }

    #[test]
    fn steps_are_noticed_once() {
        let mut watch = StepWatch::new();
        assert!(!watch.stepped());
        watch.time = UnixTime(watch.time.0 - 86_400);
        assert!(watch.stepped());
        assert!(!watch.stepped());
        watch.time = watch.time.plus(Duration::from_secs(86_400));
        assert!(watch.stepped());
    }

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
