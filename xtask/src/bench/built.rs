//! Benches of the crates: built, run, and what they print read as figures.

use crate::report::{Figure, Target};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Builds a bench and says where it is.
pub(crate) fn build(root: &Path, package: &str, name: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments =
        ["bench", "--package", package, "--bench", name, "--no-run", "--locked", "--message-format", "json"];
    let output = Command::new(cargo)
        .args(arguments)
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo bench")?;
    if !output.status.success() {
        bail!("the bench does not build: see what cargo printed");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name && message["target"]["kind"][0] == "bench")
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .context("cargo built no bench")
}

/// Runs a bench and reads its figures, which are judged by the beginnings of their names; the longest that fits counts.
pub(crate) fn figures(bench: &Path, arguments: &[String], targets: &[(&str, Target)]) -> Result<Vec<Figure>> {
    let output = Command::new(bench)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", bench.display()))?;
    if !output.status.success() {
        bail!("the bench failed: see what it printed");
    }
    String::from_utf8_lossy(&output.stdout).lines().map(|line| figure(line, targets)).collect()
}

/// Reads a line of the bench.
fn figure(line: &str, targets: &[(&str, Target)]) -> Result<Figure> {
    let read: Value = serde_json::from_str(line).with_context(|| format!("reading {line:?}"))?;
    let name = read["name"].as_str().context("a figure without a name")?;
    let unit = read["unit"].as_str().context("a figure without a unit")?;
    let runs = read["runs"].as_array().context("a figure without runs")?;
    let fitting = targets.iter().filter(|(start, _)| name.starts_with(start));
    let target = fitting.max_by_key(|(start, _)| start.len()).map_or(Target::None, |(_, target)| *target);
    Figure::median(name, unit, target, runs.iter().filter_map(Value::as_f64).collect())
}
