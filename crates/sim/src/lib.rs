//! The seeded simulator: the very protocols of `ipam`, polled one datastore call at a time by a scheduler that decides
//! who goes next and whether the call succeeds, is lost, or is the caller's last (architecture D2).
//!
//! A seed draws a small world ([`setting`]): a store, nodes with agents or plugins alone, pools, faults. The same seed
//! gives the same run to the last bit. In most worlds attachments ask for one address of one family; one of four is broad,
//! and asks for more ([`wish`]). What must hold is judged after every step ([`invariants`], [`promises`]); at the
//! end faults stop and nothing may be left ([`rest`]).
//!
//! ```
//! let end = sim::world::run(7, false);
//! assert_eq!(end.broken, Vec::<String>::new());
//! ```

mod begin;
pub mod client;
pub mod clock;
mod cluster;
pub mod costs;
pub mod coverage;
pub mod db;
pub mod exhaustive;
pub mod faults;
pub mod invariants;
pub mod peer;
pub mod port;
pub mod promises;
mod rest;
pub mod rng;
pub mod room;
pub mod setting;
pub mod task;
pub mod trace;
pub mod wish;
pub mod world;
