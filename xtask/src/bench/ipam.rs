//! The allocator in memory: what `crates/sim/benches/ipam` measures, judged, and instructions as a profiler counts them.

use super::built;
use crate::report::{self, Figure, Target};
use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::{Command, Stdio};

/// What was promised, by the beginning of a figure's name.
const TARGETS: &[(&str, Target)] = &[
    ("agent: ADD at 99 % full", Target::AtMost(2.0)),
    ("agent: second pool", Target::AtMost(2.0)),
    ("agent: claims in a pool /8", Target::AtMost(1.2)),
    ("direct: ADD at 99 % full", Target::AtMost(2.0)),
    ("direct: ADD in a pool /8", Target::AtMost(1.2)),
    ("simulator", Target::AtLeast(200_000.0)),
];

/// Operations whose instructions are counted: argument of the bench, function that is counted, and budget of each.
const BUDGETS: &[(&str, &str, f64)] =
    &[("take", "measured_take", 9_000.0), ("release", "measured_release", 16_000.0)];

/// Operations of one counted run.
const TIMES: f64 = 1000.0;

/// Measures and publishes.
///
/// # Errors
/// When the bench does not build or fails.
pub(crate) fn run(root: &Path) -> Result<()> {
    let bench = built::build(root, "sim", "ipam")?;
    let mut figures = built::figures(&bench, &[], TARGETS)?;
    figures.extend(instructions(&bench)?);
    report::publish(root, "ipam", &report::machine(), &figures)
}

/// Counts instructions under valgrind, which is the same on a busy machine; without valgrind it says so.
fn instructions(bench: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (argument, function, budget) in BUDGETS {
        let run = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(format!("--toggle-collect=*{function}*"))
            .arg(bench)
            .arg(argument)
            .stdin(Stdio::null())
            .output();
        let output = match run {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("instructions were not counted: install valgrind");
                return Ok(Vec::new());
            }
            run => run.context("running valgrind")?,
        };
        let said = String::from_utf8_lossy(&output.stderr);
        let counted = said
            .lines()
            .find_map(|line| line.split("Collected :").nth(1))
            .and_then(|count| count.trim().parse::<f64>().ok())
            .filter(|count| *count > 0.0)
            .with_context(|| format!("valgrind counted nothing: {said}"))?;
        let name = format!("instructions of a {argument} in a /26, its copy included");
        figures.push(Figure::median(&name, "Ir", Target::AtMost(*budget), vec![counted / TIMES])?);
    }
    Ok(figures)
}
