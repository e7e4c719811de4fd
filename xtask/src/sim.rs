//! `cargo xtask sim`: builds the simulator for speed and hands it its arguments.

use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// Runs the simulator; its own outcome is this command's.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build =
        ["run", "--quiet", "--release", "--package", "sim", "--features", "mistakes", "--bin", "sim", "--"];
    let status = Command::new(cargo).current_dir(root).args(build).args(arguments).status()?;
    if !status.success() {
        bail!("the simulation did not end well; its last lines say why");
    }
    Ok(())
}
