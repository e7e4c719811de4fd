//! What a compiler does not check: which room may use which, that each file says what it is, words that must not appear.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Which room may use which others directly. Doors open downwards only (ARCHITECTURE.md).
const DOORS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("storage", &[]),
    ("datastore", &["api"]),
    ("ipam", &["api", "datastore"]),
    ("dataplane", &["api"]),
    ("cni", &["api"]),
    ("apiserver", &["storage"]),
    ("node", &["api", "dataplane", "datastore", "ipam"]),
    ("controllers", &["api", "datastore", "ipam"]),
    ("calicoctl", &["api", "datastore", "ipam"]),
    ("lab", &["api", "apiserver", "calicoctl", "controllers", "dataplane", "datastore", "ipam", "node"]),
    ("sim", &["api", "datastore", "ipam", "storage"]),
    (
        "tortie",
        &["api", "apiserver", "calicoctl", "controllers", "dataplane", "datastore", "ipam", "lab", "node"],
    ),
    ("xtask", &[]),
];

/// Rooms in which no runtime may appear, not even through something they use.
const WITHOUT_RUNTIME: &[&str] = &["api", "cni"];

/// Words that no source or document may hold, with the reason. Assembled so that this file does not hold them itself.
fn banned() -> Vec<(String, &'static str)> {
    let hosts =
        [["docker", ".io"], ["quay", ".io"], ["ghcr", ".io"], ["registry.k8s", ".io"], ["gcr", ".io"]];
    let mut words: Vec<(String, &str)> =
        hosts.iter().map(|parts| (parts.concat(), "no registry host is named in this repository")).collect();
    words.push((["FIX", "ME"].concat(), "an open end belongs in an issue"));
    words
}

/// Checks the tree at `root` and lists everything that is out of order.
///
/// # Errors
/// When anything is; the message has a line per finding.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut findings = doors(root)?;
    findings.extend(texts(root)?);
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{} findings:\n{}", findings.len(), findings.join("\n"))
}

fn doors(root: &Path) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let empty = Vec::new();
    let packages = metadata["packages"].as_array().unwrap_or(&empty);
    let members: BTreeSet<&str> =
        metadata["workspace_members"].as_array().unwrap_or(&empty).iter().filter_map(Value::as_str).collect();
    let names: BTreeSet<&str> = DOORS.iter().map(|(name, _)| *name).collect();
    let mut findings = Vec::new();
    for package in
        packages.iter().filter(|package| members.contains(package["id"].as_str().unwrap_or_default()))
    {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = DOORS.iter().find(|(room, _)| *room == name) else {
            findings.push(format!("crate {name} has no row in xtask/src/tidy.rs: say there what it may use"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap_or(&empty) {
            let used = dependency["name"].as_str().unwrap_or_default();
            // Tests may look further than the code they test.
            if dependency["kind"] != "dev" && names.contains(used) && !allowed.contains(&used) {
                findings.push(format!(
                    "crate {name} uses {used}: that door opens the other way (ARCHITECTURE.md)"
                ));
            }
        }
    }
    findings.extend(runtimes(root)?);
    findings.extend(mistakes(root)?);
    Ok(findings)
}

/// Programs that could be made to err on purpose: the simulator's switch must not be in any that is shipped.
fn mistakes(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for program in ["tortie", "cni"] {
        let output = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--locked",
                "--edges",
                "normal,features",
                "--prefix",
                "none",
                "--package",
                program,
            ])
            .current_dir(root)
            .output()
            .context("running cargo tree")?;
        if !output.status.success() {
            bail!("cargo tree --package {program}: {}", String::from_utf8_lossy(&output.stderr));
        }
        if String::from_utf8_lossy(&output.stdout).contains("ipam feature \"mistakes\"") {
            findings
                .push(format!("{program} is built with the planted mistakes of ipam: leave the feature out"));
        }
    }
    Ok(findings)
}

/// Rooms that must stay without a runtime and yet reach one. Asked room by room: in the workspace as a whole, what one
/// room switches on in a shared dependency is on for all.
fn runtimes(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for room in WITHOUT_RUNTIME {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--package", room])
            .current_dir(root)
            .output()
            .context("running cargo tree")?;
        if !output.status.success() {
            bail!("cargo tree --package {room}: {}", String::from_utf8_lossy(&output.stderr));
        }
        if String::from_utf8_lossy(&output.stdout).lines().any(|line| line.starts_with("tokio ")) {
            findings.push(format!("crate {room} reaches tokio: it must work without a runtime"));
        }
    }
    Ok(findings)
}

fn texts(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("running git ls-files")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let banned = banned();
    let mut findings = Vec::new();
    for path in listed.split('\0').filter(|path| !path.is_empty() && *path != "Cargo.lock") {
        let Ok(text) = std::fs::read_to_string(root.join(path)) else { continue };
        if path.ends_with(".rs") && !text.starts_with("//!") && !path.contains("/tests/") {
            findings.push(format!("{path}: begins without a //! line that says what it is"));
        }
        for (number, line) in text.lines().enumerate() {
            for (word, reason) in &banned {
                if line.contains(word.as_str()) {
                    findings.push(format!("{path}:{}: {word}: {reason}", number + 1));
                }
            }
        }
    }
    Ok(findings)
}
