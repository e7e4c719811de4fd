//! What can be measured.

pub(crate) mod lab;
