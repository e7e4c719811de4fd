//! The holder keeps what must outlive every other part of the lab: namespaces, listening sockets, and the processes
//! as their parent. It decides nothing; others ask it over a unix socket in the lab directory.
//!
//! It is the first process of the lab's PID namespace: when it ends, the kernel ends everything else.

mod client;
mod enter;
mod links;
mod mounts;
mod namespaces;
mod passing;
mod process;
mod protocol;
mod serve;
mod start;
mod startup;

pub use client::{Attached, Client, ClientError, Watch};
pub use enter::run;
pub use protocol::{
    Endpoint, Exit, ListenSpec, NamespaceSpec, Network, ProcessSpec, ProcessState, RefusalKind, Streams,
};
pub use start::{Running, start};
pub use startup::Options;

/// Name of the control socket in the lab directory.
pub const SOCKET: &str = "holder.sock";

/// Where programs are looked for when nothing else is said.
pub const STANDARD_PATH: &str = process::PATH;

/// Where network namespaces appear by the last part of their set's name, inside the lab's mounts.
pub const NETNS_DIRECTORY: &str = "/run/tortie/netns";
