//! Assignments over real datastores beside the stores by themselves: what `crates/sim/benches/datastore` measures, judged.

use super::built;
use crate::report::{self, Figure, Target};
use anyhow::Result;
use std::path::Path;

/// What was promised, by the beginning of a figure's name.
const TARGETS: &[(&str, Target)] = &[
    ("etcd: ADD by raw", Target::AtLeast(0.7)),
    ("etcd: batches of 32 by raw", Target::AtLeast(10.0)),
    ("etcd: calls of a warm ADD", Target::AtMost(1.0)),
    ("etcd: calls of a warm DEL", Target::AtMost(1.0)),
    ("etcd: calls of a warm ADD, Calico's", Target::None),
    ("etcd: calls of a warm DEL, Calico's", Target::None),
    ("kube-apiserver: ADD by raw", Target::AtLeast(0.4)),
    ("kube-apiserver: calls of a warm ADD", Target::AtMost(2.0)),
    ("kube-apiserver: calls of a warm DEL", Target::AtMost(3.0)),
    ("kube-apiserver: calls of a warm ADD, Calico's", Target::None),
    ("kube-apiserver: calls of a warm DEL, Calico's", Target::None),
    ("embedded: ADD by raw", Target::AtLeast(0.4)),
    ("embedded: calls of a warm ADD", Target::AtMost(2.0)),
    ("embedded: calls of a warm DEL", Target::AtMost(3.0)),
    ("embedded: calls of a warm ADD, Calico's", Target::None),
    ("embedded: calls of a warm DEL, Calico's", Target::None),
];

/// Measures and publishes. `stores` names those that are measured; none: all whose binaries are there.
///
/// # Errors
/// When the bench does not build or fails.
pub(crate) fn run(root: &Path, stores: &[String]) -> Result<()> {
    let bench = built::build(root, "sim", "datastore")?;
    let mut figures = built::figures(&bench, stores, TARGETS)?;
    let missing: Vec<Figure> = TARGETS
        .iter()
        .filter(|(_, target)| !matches!(target, Target::None))
        .filter(|(start, _)| !figures.iter().any(|figure| figure.name.starts_with(start)))
        .map(|(start, target)| Figure::missing(start, *target))
        .collect();
    figures.extend(missing);
    report::publish(root, "datastore", &report::machine(), &figures)
}
