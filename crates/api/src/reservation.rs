//! Addresses that are never handed out automatically (data model §9).

use crate::Cidr;

/// One IPReservation. Entries that do not parse are skipped on reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Object name.
    pub name: String,
    /// What it reserves; a bare address counts as a full-length prefix.
    pub cidrs: Vec<Cidr>,
}
