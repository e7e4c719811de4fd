//! The embedded Kubernetes API: discovery, objects, watches, tables and custom resources over `storage`.
//!
//! A request goes from [`handler`] by its path and verb to `read`, `watch`, `write`, `delete` or `subresource`. Which
//! kinds there are says [`registry`]; what single kinds decide for themselves stands in `admission`. Objects are JSON
//! values from end to end, never typed structs, so that no field is lost. Two tasks of the server's own finish what
//! deletions begin: `garbage` (owners) and `lifecycle` (namespaces and definitions).

pub mod addresses;
mod admission;
pub mod age;
mod answer;
pub mod apply;
pub mod authorize;
mod bootstrap;
pub mod cel;
pub mod commits;
pub mod custom;
mod default_roles;
pub mod defaults;
mod delete;
pub mod discovery;
pub mod error;
mod escalation;
mod events;
pub mod fields;
pub mod form;
mod garbage;
pub mod guard;
mod handler;
pub mod identity;
pub mod jsonpath;
pub mod kubelet_tunnel;
mod lifecycle;
mod metrics;
pub mod names;
pub mod negotiation;
pub mod node_restriction;
pub mod objects;
pub mod openapi;
pub mod patch;
pub mod path;
pub mod policy;
pub mod protobuf;
mod read;
mod readiness;
pub mod registry;
mod request;
pub mod resource;
mod review;
pub mod schema;
mod selection;
pub mod selector;
mod server;
mod stalled;
pub mod strategic;
mod subresource;
pub mod table;
mod token;
mod turns;
pub mod validate;
mod watch;
mod write;

pub use server::{Options, ServeError, Server, run};
pub use storage::{Backup, BackupError, RestoreError};
