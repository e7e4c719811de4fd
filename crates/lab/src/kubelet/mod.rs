//! Stand-in for the kubelet of one node: runs the pods bound to it as processes in namespaces of the holder, lets the
//! CNI plugins connect them, and tells the API what became of them.
//!
//! ```text
//!  watch of pods ──┐                       ┌─► holder: namespaces, processes
//!  watch of ends ──┼─► a worker per pod ───┼─► CNI plugins: ADD, DEL
//!  agent answers ──┘   (plan::next says    └─► API: status, events, deletion
//!                       what comes next)
//! ```
//!
//! What decides is a function of values: [`plan`] the steps of a pod, [`status`] what is told about it, [`program`]
//! what a container runs, [`node`] what the node reports. Containers are children of the holder, so a kubelet that is
//! killed finds them again, by the holder's list and by its own records in the lab directory.

mod agent;
mod api;
mod cni;
mod console;
mod environment;
mod events;
mod exec;
mod logs;
mod node;
mod pipes;
mod plan;
mod pod;
mod port_forward;
mod process;
mod program;
mod registration;
mod run;
mod sandbox;
mod server;
mod shared;
mod spdy;
mod static_pods;
mod status;
mod streams;
mod websocket;
mod worker;

pub use run::{Options, run};
