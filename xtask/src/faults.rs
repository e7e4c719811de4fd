//! `cargo xtask faults`: eight agents over a real etcd whose members are killed, paused and cut off, for as long as told.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The runs, and which part of the time each gets.
const RUNS: [(&str, u32); 2] = [
    ("members_are_killed_paused_and_cut_off_and_every_answer_holds", 1),
    ("the_only_server_is_restarted_from_its_disk_and_every_answer_holds", 5),
];

/// Reads `90s`, `10m` or `2h`.
pub(crate) fn length(text: &str) -> Result<Duration, String> {
    let malformed = || format!("{text:?} is no length of time: write it as 90s, 10m or 2h");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(malformed)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(malformed()),
    };
    let length = number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds));
    length.map(Duration::from_secs).ok_or_else(malformed)
}

/// Runs the tests for `length`, prints what they measured, and leaves it in `target/bench/faults.json`.
pub(crate) fn run(root: &Path, length: Duration) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let report = root.join("target/bench/faults.json");
    std::fs::create_dir_all(root.join("target/bench"))?;
    // The tests add to what they find.
    if report.exists() {
        std::fs::remove_file(&report)?;
    }
    for (name, part) in RUNS {
        let status = Command::new(&cargo)
            .current_dir(root)
            .args(["test", "--quiet", "--package", "tortie", "--test", "faults", "--"])
            .args([name, "--exact", "--nocapture"])
            .env("TORTIE_FAULTS_SECONDS", (length / part).as_secs().to_string())
            .env("TORTIE_FAULTS_REPORT", &report)
            .env("TORTIE_REQUIRE_ETCD", "1")
            .status()?;
        if !status.success() {
            bail!("the run did not end well; its last lines say why");
        }
    }
    let text = std::fs::read_to_string(&report)
        .context("the runs left no figures: this machine permits no network namespaces")?;
    let table = table(&serde_json::from_str(&text)?)?;
    std::io::stdout().write_all(table.as_bytes())?;
    Ok(())
}

/// The figures as tables for people.
fn table(runs: &Value) -> Result<String> {
    let mut text = String::new();
    for run in runs.as_array().context("the figures are no list of runs")? {
        let number = |of: &Value, field: &str| of.get(field).and_then(Value::as_u64).unwrap_or_default();
        text.push_str(&format!(
            "{} member(s), {} s: {} ADDs and {} DELs answered, {} told to try again, {} addresses held at the end\n\n",
            number(run, "members"),
            number(run, "seconds"),
            number(run, "adds"),
            number(run, "dels"),
            number(run, "told to try again"),
            number(run, "held at the end"),
        ));
        text.push_str("| fault | times | every agent serves again, median | longest | the first agent, longest | within 5 s |\n");
        text.push_str("|---|---|---|---|---|---|\n");
        for fault in run["faults"].as_array().into_iter().flatten() {
            text.push_str(&format!(
                "| {} | {} | {} ms | {} ms | {} ms | {} |\n",
                fault["fault"].as_str().unwrap_or_default(),
                number(fault, "times"),
                number(fault, "all agents, median, ms"),
                number(fault, "all agents, longest, ms"),
                number(fault, "first agent, longest, ms"),
                number(fault, "within 5 s"),
            ));
        }
        let met = if run["met"] == true { "met" } else { "not met" };
        text.push_str(&format!(
            "\nEvery agent within 5 s after every fault: {met}. The agents are a debug build.\n\n"
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_numbers_with_a_unit() {
        assert_eq!(length("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(length("90s"), Ok(Duration::from_secs(90)));
        for text in ["", "10", "m", "1.5h", "é", "99999999999999999h"] {
            assert!(length(text).is_err(), "{text}");
        }
    }
}
