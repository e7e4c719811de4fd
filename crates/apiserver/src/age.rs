//! Human durations.
