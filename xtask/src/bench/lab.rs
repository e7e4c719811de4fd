//! The lesson's lab as a user meets it: `deploy.sh`, `destroy.sh`, a hundred pods at once, memory with twenty pods.

use crate::report::{self, Figure, Target};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Pods of the burst.
const BURST: usize = 100;

/// Pods running when memory is read.
const RESIDENT: usize = 20;

/// Measures everything `runs` times and publishes the medians.
///
/// # Errors
/// When a command of the lab fails: a figure of something broken is no figure.
pub(crate) fn run(root: &Path, runs: u32) -> Result<()> {
    let lab = Lab { folder: root.join("lab/01-calico-ipam") };
    if runs == 0 {
        bail!("--runs 0 measures nothing: give at least 1");
    }
    lab.script("destroy.sh")?;
    let (mut deploys, mut destroys, mut bursts, mut memory) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs {
        let started = Instant::now();
        lab.script("deploy.sh")?;
        deploys.push(started.elapsed().as_secs_f64());

        bursts.push(lab.burst(BURST)?);
        lab.kubectl(&["scale", "deployment", "burst", &format!("--replicas={RESIDENT}")])?;
        lab.wait_for_pods()?;
        memory.push(lab.memory()?);
        lab.kubectl(&["delete", "deployment", "burst", "--wait=false"])?;

        let started = Instant::now();
        lab.script("destroy.sh")?;
        destroys.push(started.elapsed().as_secs_f64());
        eprintln!("run {run} of {runs} done");
    }
    let figures = [
        Figure::median("deploy.sh until Available and Running", "s", Target::AtMost(3.0), deploys)?,
        Figure::median("100 pods at once until Running", "s", Target::AtMost(3.0), bursts)?,
        Figure::median("memory (PSS) of the lab with 20 pods", "MB", Target::AtMost(200.0), memory)?,
        Figure::median("destroy.sh", "s", Target::AtMost(1.0), destroys)?,
    ];
    report::publish(root, "lab", &report::machine(), &figures)
}

struct Lab {
    folder: PathBuf,
}

impl Lab {
    fn script(&self, name: &str) -> Result<()> {
        let output = Command::new("bash")
            .arg(name)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {name}"))?;
        if !output.status.success() {
            bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("kubectl")
            .args(arguments)
            .env("KUBECONFIG", self.folder.join("calico-ipam.kubeconfig"))
            .stdin(Stdio::null())
            .output()
            .context("running kubectl")?;
        if !output.status.success() {
            bail!("kubectl {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Seconds from asking for `pods` pods until all run.
    fn burst(&self, pods: usize) -> Result<f64> {
        let started = Instant::now();
        self.kubectl(&["create", "deployment", "burst", "--image=pause", &format!("--replicas={pods}")])?;
        self.wait_for_pods()?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Waits, by kubectl's own watch, until the deployment's pods run and no other is left.
    fn wait_for_pods(&self) -> Result<()> {
        self.kubectl(&["rollout", "status", "deployment/burst", "--timeout=60s"]).map(drop)
    }

    /// Megabytes (10^6 bytes) of proportional memory of all processes below the lab's holder.
    fn memory(&self) -> Result<f64> {
        let path = self.folder.join("clab-calico-ipam/holder.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let holder: Value = serde_json::from_str(&text)?;
        let holder = holder["running"]["pid"].as_u64().context("holder.json names no pid")?;
        let mut family = vec![holder];
        let mut kilobytes = 0;
        while let Some(pid) = family.pop() {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            // A process may end while it is looked at: then it has no memory.
            let rollup = std::fs::read_to_string(folder.join("smaps_rollup")).unwrap_or_default();
            kilobytes += rollup
                .lines()
                .find_map(|line| line.strip_prefix("Pss:"))
                .and_then(|rest| rest.trim().strip_suffix(" kB"))
                .and_then(|number| number.trim().parse::<u32>().ok())
                .unwrap_or(0);
            for task in std::fs::read_dir(folder.join("task")).into_iter().flatten().flatten() {
                let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u64>().ok()));
            }
        }
        Ok(f64::from(kilobytes) * 1024.0 / 1e6)
    }
}
