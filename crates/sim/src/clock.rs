//! Simulated time: one clock of the cluster, and per node how far its own is off.

use ipam::Clock;
use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// When every simulation begins, in milliseconds since the epoch.
pub const BEGIN_MS: i64 = 1_800_000_000_000;

/// The cluster's time, which only the scheduler moves.
#[derive(Clone, Debug)]
pub struct Time {
    now_ms: Arc<AtomicI64>,
    /// How long the simulation runs, in milliseconds: does not jump.
    ran_ms: Arc<AtomicI64>,
    /// Readings so far: no two are equal, as on a machine whose clock counts nanoseconds.
    readings: Arc<AtomicI64>,
    /// The latest instant that any clock has shown, in milliseconds.
    latest_ms: Arc<AtomicI64>,
}

impl Default for Time {
    fn default() -> Self {
        Self {
            now_ms: Arc::new(AtomicI64::new(BEGIN_MS)),
            ran_ms: Arc::default(),
            readings: Arc::default(),
            latest_ms: Arc::new(AtomicI64::new(BEGIN_MS)),
        }
    }
}

impl Time {
    /// The cluster's own time, in milliseconds since the epoch.
    pub fn now_ms(&self) -> i64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    /// How long the simulation runs. Never goes back.
    pub fn ran(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.ran_ms.load(Ordering::Relaxed)).unwrap_or(0))
    }

    /// Lets time pass.
    pub fn advance(&self, milliseconds: u32) {
        self.now_ms.fetch_add(i64::from(milliseconds), Ordering::Relaxed);
        self.ran_ms.fetch_add(i64::from(milliseconds), Ordering::Relaxed);
    }

    /// Makes the clocks of the whole cluster jump, forward or back.
    pub fn jump(&self, milliseconds: i64) {
        self.now_ms.fetch_add(milliseconds, Ordering::Relaxed);
    }

    /// The latest instant that any clock has shown.
    pub fn latest(&self) -> Timestamp {
        timestamp(self.latest_ms.load(Ordering::Relaxed), 999_999)
    }

    /// A clock of somebody, right to begin with.
    pub fn clock(&self) -> SimClock {
        SimClock { time: self.clone(), off_ms: Arc::default() }
    }

    fn read(&self, off_ms: i64) -> Timestamp {
        let shown = self.now_ms() + off_ms;
        if shown > self.latest_ms.load(Ordering::Relaxed) {
            self.latest_ms.store(shown, Ordering::Relaxed);
        }
        timestamp(shown, self.readings.fetch_add(1, Ordering::Relaxed) % 1_000_000)
    }
}

fn timestamp(milliseconds: i64, nanoseconds: i64) -> Timestamp {
    let total = i128::from(milliseconds) * 1_000_000 + i128::from(nanoseconds);
    Timestamp::from_nanosecond(total).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// One machine's clock. Clones show the same.
#[derive(Clone, Debug)]
pub struct SimClock {
    time: Time,
    off_ms: Arc<AtomicI64>,
}

impl SimClock {
    /// Makes this clock jump, forward or back.
    pub fn jump(&self, milliseconds: i64) {
        self.off_ms.fetch_add(milliseconds, Ordering::Relaxed);
    }

    /// Sets it right again.
    pub fn correct(&self) {
        self.off_ms.store(0, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        self.time.read(self.off_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_back_shows_no_instant_twice() {
        let time = Time::default();
        let clock = time.clock();
        let first = clock.now();
        clock.jump(5_000);
        let ahead = clock.now();
        clock.correct();
        let back = clock.now();
        assert!(first < back && back < ahead);
        assert!(time.latest() >= ahead);
    }
}
