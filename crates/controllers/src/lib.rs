//! The cluster's controllers: each is a pure function from what is seen to what is to be done, with a thin driver.
//!
//! [`operator`] turns the Installation into pools and workloads and reports by TigeraStatus.

mod cluster;
mod object;
pub mod operator;
