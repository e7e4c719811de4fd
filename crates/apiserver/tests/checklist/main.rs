//! The conformance checklist of the Kubernetes API: one test for each of its lines, in its order, against a server on a
//! free port. Lines about kubectl run every kubectl of the machine.
//!
//! `TORTIE_CHECKLIST_FULL=1` runs the long lines at their full size (100,000 writes watched, 10,000 malformed requests);
//! without it they run at a tenth or less.

#![expect(clippy::unwrap_used, reason = "tests")]

mod accepted;
mod bulk;
#[path = "line_09_definitions.rs"]
mod definitions;
#[path = "line_08_deletion.rs"]
mod deletion;
#[path = "line_12_differences.rs"]
mod differences;
#[path = "line_10_hostile.rs"]
mod hostile;
mod kubectl;
#[path = "line_01_matrix.rs"]
mod matrix;
#[path = "line_02_openapi.rs"]
mod openapi;
#[path = "line_06_pages.rs"]
mod pages;
#[path = "line_03_protobuf.rs"]
mod protobuf;
#[path = "line_07_races.rs"]
mod races;
mod real;
#[path = "line_11_security.rs"]
mod security;
#[path = "line_04_streams.rs"]
mod streams;
#[path = "../api/support.rs"]
#[expect(dead_code, reason = "other tests ask more of it")]
mod support;
#[path = "line_05_watches.rs"]
mod watches;

/// The size of a long line: whole, or small enough to run with every change.
fn size(full: usize, short: usize) -> usize {
    if std::env::var_os("TORTIE_CHECKLIST_FULL").is_some() { full } else { short }
}
