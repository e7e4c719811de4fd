//! A limit of calls per second, with bursts, as clients of Kubernetes have it. Off unless set.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many calls may go out: so many each second in the long run, and so many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Calls per second, more than 0.
    pub per_second: f64,
    /// Calls at once, at least 1.
    pub burst: u32,
}

/// The limit at work: when the next call would be due if calls came evenly.
#[derive(Debug)]
pub(super) struct Limiter {
    interval: Duration,
    slack: Duration,
    due: Mutex<Option<Instant>>,
}

impl Limiter {
    /// `None` for a rate that is none: not a positive number.
    pub(super) fn new(rate: Rate) -> Option<Self> {
        let interval =
            Duration::try_from_secs_f64(1.0 / rate.per_second).ok().filter(|one| !one.is_zero())?;
        let slack = interval.saturating_mul(rate.burst.max(1) - 1);
        Some(Self { interval, slack, due: Mutex::new(None) })
    }

    /// Takes a place in the line and answers how long to wait for it.
    pub(super) fn take(&self, now: Instant) -> Duration {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = due.map_or(now, |due| due.max(now));
        *due = mine.checked_add(self.interval);
        mine.saturating_duration_since(now).saturating_sub(self.slack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_the_rest_evenly() {
        let limiter = Limiter::new(Rate { per_second: 5.0, burst: 3 }).unwrap();
        let start = Instant::now();
        let waits: Vec<u128> = (0..6).map(|_| limiter.take(start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 200, 400, 600]);
        // After a pause the burst is there again, and no more than that.
        let later = start + Duration::from_secs(60);
        let waits: Vec<u128> = (0..4).map(|_| limiter.take(later).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 200]);
    }

    #[test]
    fn a_rate_that_is_none_limits_nothing() {
        for per_second in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Limiter::new(Rate { per_second, burst: 1 }).is_none(), "{per_second}");
        }
    }
}
