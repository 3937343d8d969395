//! The time of a group, as its leader counts it.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{AsyncRuntime, Instant as _};
use vdc_coord::wire::Trouble;

use crate::env::Env;
use crate::group::{LEASE_STEP, RaftOf, leader, unavailable};
use crate::state::StateStore;

/// How much of the time between two looks counts.
const CLOCK_STEP_MAX: Duration = Duration::from_millis(500);
const _: () = assert!(LEASE_STEP.as_millis() < CLOCK_STEP_MAX.as_millis(), "looking in time loses nothing");

/// The group's time as a leader counts it: on from where it stood, by the monotonic clock.
///
/// It is looked at every [`LEASE_STEP`], and a step counts [`CLOCK_STEP_MAX`] at most: a clock that leaps ends no lease by
/// more than that too early, and a leader that was stopped for a while lets leases live longer.
pub(crate) struct GroupClock<E: Env> {
    counting: Option<Counting<E>>,
}

struct Counting<E: Env> {
    term: u64,
    time: Duration,
    looked: <E::Runtime as AsyncRuntime>::Instant,
}

impl<E: Env> Default for GroupClock<E> {
    fn default() -> Self {
        Self { counting: None }
    }
}

impl<E: Env> GroupClock<E> {
    pub(crate) fn stamp(&mut self, raft: &RaftOf<E>, state: &StateStore<E>) -> Result<u64, Trouble> {
        let (term, leads, leader) = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.current_term, metrics.state.is_leader(), leader(&metrics))
        };
        if !leads {
            self.counting = None;
            return Err(Trouble::NotLeader { leader });
        }
        let now = <E::Runtime as AsyncRuntime>::Instant::now();
        let counting = match self.counting.take().filter(|counting| counting.term == term) {
            Some(Counting { time, looked, .. }) => {
                Counting { term, time: time + (now - looked).min(CLOCK_STEP_MAX), looked: now }
            }
            None => {
                let time = Duration::from_millis(state.summary().map_err(unavailable)?.time_ms);
                Counting { term, time, looked: now }
            }
        };
        let stamp = u64::try_from(counting.time.as_millis()).unwrap_or(u64::MAX);
        self.counting = Some(counting);
        Ok(stamp)
    }
}
