//! A bench's result: a table for people, a file for machines.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;

/// One figure and what it was hoped to be.
#[derive(Debug)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) name: String,
    /// The median of the runs.
    pub(crate) value: f64,
    /// Unit of value and target.
    pub(crate) unit: &'static str,
    /// The most it should be.
    pub(crate) target: f64,
    /// Smallest and largest of the runs.
    pub(crate) spread: (f64, f64),
}

impl Figure {
    /// The median of `runs`, which must not be empty.
    pub(crate) fn median(name: &str, unit: &'static str, target: f64, mut runs: Vec<f64>) -> Result<Self> {
        runs.sort_by(f64::total_cmp);
        let (first, last) = runs.first().zip(runs.last()).context("a figure without runs")?;
        let value = f64::midpoint(runs[(runs.len() - 1) / 2], runs[runs.len() / 2]);
        Ok(Self { name: name.to_owned(), value, unit, target, spread: (*first, *last) })
    }

    fn met(&self) -> bool {
        self.value <= self.target
    }
}

/// Prints the figures and writes them to `target/bench/<name>.json`.
pub(crate) fn publish(root: &Path, name: &str, machine: &str, figures: &[Figure]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{machine}")?;
    writeln!(out, "{:<44} {:>10} {:>20} {:>10}  met", "figure", "median", "min..max", "target")?;
    for figure in figures {
        writeln!(
            out,
            "{:<44} {:>10} {:>20} {:>10}  {}",
            figure.name,
            format!("{:.2} {}", figure.value, figure.unit),
            format!("{:.2}..{:.2}", figure.spread.0, figure.spread.1),
            format!("{} {}", figure.target, figure.unit),
            if figure.met() { "yes" } else { "no" },
        )?;
    }
    let rows: Vec<Value> = figures
        .iter()
        .map(|figure| {
            json!({"name": figure.name, "value": figure.value, "unit": figure.unit, "target": figure.target, "met": figure.met()})
        })
        .collect();
    let folder = root.join("target/bench");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_string_pretty(&rows)?)
        .with_context(|| format!("writing {}", path.display()))
}

/// The machine in one line: processors, memory, kernel.
pub(crate) fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        text.lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| line.split(':').nth(1))
            .unwrap_or("?")
            .trim()
            .to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "{cores} cores, {}, memory {}, Linux {}",
        field(&read("/proc/cpuinfo"), "model name"),
        field(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
    )
}
