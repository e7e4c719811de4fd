//! The embedded API server: what `crates/apiserver/benches/apiserver` measures, judged.

use super::built;
use crate::report::{self, Target};
use anyhow::Result;
use std::path::Path;

/// What was promised, by the beginning of a figure's name.
const TARGETS: &[(&str, Target)] = &[
    ("ratio to kube-apiserver", Target::AtLeast(3.0)),
    ("1000 watchers: write to the last of them, p99", Target::AtMost(100.0)),
    ("start to ready", Target::AtMost(50.0)),
    ("resident memory with 100,000 objects", Target::AtMost(400.0)),
];

/// Measures and publishes.
///
/// # Errors
/// When the bench does not build or fails.
pub(crate) fn run(root: &Path) -> Result<()> {
    let bench = built::build(root, "apiserver", "apiserver")?;
    let figures = built::figures(&bench, &[], TARGETS)?;
    report::publish(root, "apiserver", &report::machine(), &figures)
}
