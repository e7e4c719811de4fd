//! A bench's result: a table for people, a file for machines.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
    /// Nothing was promised.
    None,
}

impl Target {
    fn value(self) -> Option<f64> {
        match self {
            Self::AtMost(value) | Self::AtLeast(value) => Some(value),
            Self::None => None,
        }
    }
}

/// One figure and what it was hoped to be.
#[derive(Debug)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) name: String,
    /// The median of the runs.
    pub(crate) value: f64,
    /// Unit of value and target.
    pub(crate) unit: String,
    /// What it should be.
    pub(crate) target: Target,
    /// Smallest and largest of the runs.
    pub(crate) spread: (f64, f64),
}

impl Figure {
    /// The median of `runs`, which must not be empty.
    pub(crate) fn median(name: &str, unit: &str, target: Target, mut runs: Vec<f64>) -> Result<Self> {
        runs.sort_by(f64::total_cmp);
        let (first, last) = runs.first().zip(runs.last()).context("a figure without runs")?;
        let value = f64::midpoint(runs[(runs.len() - 1) / 2], runs[runs.len() / 2]);
        Ok(Self { name: name.to_owned(), value, unit: unit.to_owned(), target, spread: (*first, *last) })
    }

    /// A figure that was promised and could not be measured here.
    pub(crate) fn missing(name: &str, target: Target) -> Self {
        let nothing = f64::NAN;
        Self {
            name: format!("{name}: not measured"),
            value: nothing,
            unit: String::new(),
            target,
            spread: (nothing, nothing),
        }
    }

    /// Whether it is what it should be; `None` where nothing was promised or measured.
    fn met(&self) -> Option<bool> {
        if self.value.is_nan() {
            return None;
        }
        match self.target {
            Target::AtMost(most) => Some(self.value <= most),
            Target::AtLeast(least) => Some(self.value >= least),
            Target::None => None,
        }
    }
}

/// Prints the figures and writes them to `target/bench/<name>.json`.
pub(crate) fn publish(root: &Path, name: &str, machine: &str, figures: &[Figure]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{machine}")?;
    writeln!(out, "{:<54} {:>16} {:>24} {:>16}  met", "figure", "median", "min..max", "target")?;
    for figure in figures {
        writeln!(
            out,
            "{:<54} {:>16} {:>24} {:>16}  {}",
            figure.name,
            format!("{:.2} {}", figure.value, figure.unit),
            format!("{:.2}..{:.2}", figure.spread.0, figure.spread.1),
            match figure.target {
                Target::AtMost(most) => format!("{most} {}", figure.unit),
                Target::AtLeast(least) => format!("> {least} {}", figure.unit),
                Target::None => "-".to_owned(),
            },
            match figure.met() {
                Some(true) => "yes",
                Some(false) => "no",
                None => "-",
            },
        )?;
    }
    let rows: Vec<Value> = figures
        .iter()
        .map(|figure| {
            json!({"name": figure.name, "value": figure.value, "unit": figure.unit, "target": figure.target.value(), "met": figure.met()})
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
