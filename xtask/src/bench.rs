//! What can be measured.

mod built;
pub(crate) mod datastore;
pub(crate) mod ipam;
pub(crate) mod lab;
