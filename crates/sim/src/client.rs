//! Who uses the store: runtimes with their plugins and agents, and the pool controller.

pub mod agent;
pub mod pools;
pub mod runtime;
