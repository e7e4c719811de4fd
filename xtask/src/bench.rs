//! What can be measured.

pub(crate) mod apiserver;
mod built;
pub(crate) mod datastore;
pub(crate) mod ipam;
pub(crate) mod lab;
