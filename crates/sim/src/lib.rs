//! The seeded simulator: the very protocols of `ipam`, polled one datastore call at a time by a scheduler that decides
//! who goes next and whether the call succeeds, is lost, or is the caller's last (architecture D2).
//!
//! Thin for now: one store with atomic commits, clients in direct mode. Same seed, same trace.

pub mod invariants;
pub mod peer;
pub mod rng;
pub mod store;
pub mod world;
