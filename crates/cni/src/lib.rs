//! The Container Network Interface as Tortie speaks it, and the two plugins `calico` and `calico-ipam`.
//!
//! A runtime executes `calico` for every pod. It asks `calico-ipam` for addresses, which asks the node's agent over a
//! unix socket, and then wires the pod: a veth pair, an address, a default route.
//! Everything here is synchronous and single-threaded: a plugin is a new process for every pod, and must be over in
//! about a millisecond.

pub mod agent;
pub mod compare;
pub mod config;
pub mod datastore_keys;
pub mod delegate;
pub mod direct;
pub mod environment;
pub mod error;
pub mod invocation;
pub mod ipam;
pub mod netlink;
pub mod plugin;
pub mod result;
pub mod sandbox;
pub mod server;
pub mod wire;

pub use config::NetworkConfig;
pub use environment::{Command, Environment};
pub use error::CniError;
pub use invocation::{Invocation, Verbs};
pub use result::AddResult;
