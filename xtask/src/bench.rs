//! What can be measured.

pub(crate) mod ipam;
pub(crate) mod lab;
