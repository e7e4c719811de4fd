//! Calico's IPAM records as plain values: what they hold, how they are named, how they look on the wire.
//!
//! Pure by rule: no I/O, no clock, no async. Everything else in the house speaks in these types.

pub mod affinity;
pub mod attachment;
pub mod block;
pub mod cidr;
pub mod cluster_information;
pub mod config;
pub mod direct;
pub mod handle;
pub mod node;
pub mod pool;
pub mod reservation;
pub mod selector;
pub mod wire;

pub use affinity::{Affinity, AffinityNaming, AffinityState, Owner, OwnerKind};
pub use block::{Attribute, Block};
pub use cidr::{Cidr, IpVersion, Ordinal};
pub use cluster_information::ClusterInformation;
pub use config::IpamConfig;
pub use handle::Handle;
pub use node::Node;
pub use pool::{AssignmentMode, Encapsulation, Pool, Use};
pub use reservation::Reservation;
