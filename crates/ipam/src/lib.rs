//! Block maths and the IPAM protocols over a [`datastore::Datastore`].
//!
//! Pure functions decide ([`block`], [`candidate`], [`pools`], [`plan`]); async functions over the trait carry the decisions
//! out. No runtime and no clock: time is handed in as a [`Clock`].

pub mod account;
pub mod administration;
pub mod affinity;
pub mod agent;
pub mod assign;
pub mod assign_address;
pub mod attachments;
pub mod block;
pub mod candidate;
pub mod cap;
pub mod claim;
pub mod clock;
pub mod cold;
pub mod collect;
pub mod config;
pub mod crossing;
pub mod dual_stack;
pub mod explain;
pub mod failure;
mod guarded;
pub mod host;
pub mod host_reserved;
pub mod mistake;
pub mod owner_attributes;
pub mod plan;
mod plan_release;
pub mod pools;
pub mod query;
pub mod release;
pub mod release_queue;
pub mod renewal;
pub mod reservations;
pub mod seen;
pub mod servable;
mod setting;
pub mod shortage;
mod surplus;
mod take;
pub mod takeover;
pub mod utilization;
pub mod vacancy;
pub mod vm;

pub use clock::Clock;
pub use explain::Explain;
pub use failure::StoreError;
pub use reservations::ReservationSet;
pub use seen::Seen;
