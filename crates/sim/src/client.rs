//! Who uses the store: runtimes with their plugins and agents, the pool controller, the collector.

pub mod agent;
pub(crate) mod ask;
pub mod collector;
mod machines;
pub mod pools;
pub(crate) mod queue;
pub mod runtime;
mod told;
