//! `cargo xtask mistakes`: each mistake that can be planted in the allocator passes its unit tests, and is found by the simulator.

use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

/// Seeds within which every mistake must be found.
const SEEDS: &str = "10000";

fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(root).args(arguments);
    command
}

fn run(mut command: Command) -> Result<Output> {
    command.output().with_context(|| format!("running {command:?}"))
}

/// Prints a row for each mistake.
///
/// # Errors
/// When a unit test notices a mistake, or the simulator does not.
pub(crate) fn run_all(root: &Path) -> Result<()> {
    let simulator =
        ["run", "--quiet", "--release", "--package", "sim", "--features", "mistakes", "--bin", "sim", "--"];
    let listed = run({
        let mut command = cargo(root, &simulator);
        command.arg("--list-mistakes");
        command
    })?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut wrong = Vec::new();
    let mut table = std::io::stdout();
    writeln!(
        table,
        "| mistake | unit tests | first seed that finds it | what it breaks |\n|---|---|---|---|"
    )?;
    for mistake in listed.lines() {
        let mut tests =
            cargo(root, &["test", "--quiet", "--package", "ipam", "--lib", "--features", "ipam/mistakes"]);
        // One of the library's tests is a seeded search of its own, a small simulator.
        tests.args(["--", "--skip", "no_release_is_lost"]);
        tests.env("TORTIE_MISTAKE", mistake);
        let tests = run(tests)?;
        let unnoticed = tests.status.success();
        let mut search = cargo(root, &simulator);
        search.args(["--mistake", mistake, "--seeds", SEEDS]);
        let search = run(search)?;
        let said = String::from_utf8_lossy(&search.stdout).into_owned();
        let first = said.lines().find_map(|line| line.strip_prefix("seed ")?.split_once(": "));
        let (seed, broken) = first.unwrap_or(("none", ""));
        let passed = if unnoticed { "pass" } else { "FAIL" };
        writeln!(table, "| `{mistake}` | {passed} | {seed} | {broken} |")?;
        if !unnoticed {
            wrong.push(format!("the unit tests notice {mistake}"));
        }
        if first.is_none() || !search.status.success() {
            wrong.push(format!("the simulator does not find {mistake} within {SEEDS} seeds"));
        }
    }
    if listed.trim().is_empty() {
        wrong.push("the simulator names no mistakes".to_owned());
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}
