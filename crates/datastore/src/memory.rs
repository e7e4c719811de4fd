//! Driver that keeps everything in memory: for tests and the simulator.
