//! The cluster's controllers: each is a pure function from what is seen to what is to be done, with a thin driver.
//!
//! [`operator`] turns the Installation into pools and workloads and reports by TigeraStatus. [`run`] is
//! calico-kube-controllers, which gives back what deleted nodes and vanished pods have left.

mod cluster;
mod kube_controllers;
mod object;
pub mod operator;

pub use kube_controllers::{RunError, run};

#[cfg(test)]
#[path = "../../datastore/tests/etcd/server.rs"]
#[expect(dead_code, reason = "what only the tests of etcd itself need")]
mod etcd;
#[cfg(test)]
#[path = "../../datastore/tests/fake/mod.rs"]
mod fake;
#[cfg(test)]
mod runs;
