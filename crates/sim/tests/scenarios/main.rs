//! What hurt users of other address managers, as scenarios that must go well here. Each is named after the issue that tells of
//! it; `docs/track-record.md` lists them.
//!
//! The operations are the real ones: direct mode, the agent's step machine, the collector. Only store, clock, pods and the
//! peer that behaves like Calico are ours.

#![expect(clippy::unwrap_used, reason = "what sets a scene may fail the test")]

mod blocks;
mod growth;
mod host;
mod leaks;
mod others;
mod owners;
mod requests;
mod stage;
mod wire;
