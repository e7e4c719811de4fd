//! Tasks of the project that are more than a cargo command: `cargo xtask tidy`, `cargo xtask bench ipam`, `cargo xtask transcripts`.

mod bench;
mod faults;
mod mistakes;
mod report;
mod sim;
mod tidy;
mod transcripts;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Tasks of the Tortie project.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check what the compiler does not: which room may use which, module headers, words that must not appear.
    Tidy,
    /// Run the lesson and put what its commands print into its text.
    Transcripts,
    /// Simulate seeds in release mode; `cargo xtask sim --help` says how many, from where, and how a seed is traced.
    #[command(disable_help_flag = true)]
    Sim {
        /// What the simulator takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Plant each mistake of the allocator: its unit tests must not notice, the simulator must.
    Mistakes,
    /// Run eight agents over an etcd whose members are killed, paused and cut off, and write `target/bench/faults.json`.
    Faults {
        /// How long faults are made, as 90s, 10m or 2h; a fifth of it again for one server that is restarted.
        #[arg(long = "for", value_parser = faults::length, default_value = "1m")]
        length: Duration,
    },
    /// Measure, print a table, and write `target/bench/NAME.json`.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        what: Bench,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// The allocator in memory, on one core: rates, ratios within one run, memory, instructions.
    Ipam,
    /// The lesson's lab: deploy, destroy, a burst of pods, memory.
    Lab {
        /// Runs of each figure; the median is reported.
        #[arg(long, default_value_t = 10)]
        runs: u32,
    },
    /// The embedded API server: rates, watchers, lists, start, memory; beside a kube-apiserver where KUBEBUILDER_ASSETS has one.
    Apiserver,
    /// Assignments over etcd, kube-apiserver and the embedded server, each beside the store by itself and beside Calico's
    /// sequence of calls. Binaries are looked for in KUBEBUILDER_ASSETS and PATH; stderr says which store is left out.
    Datastore {
        /// Only these: etcd, kube-apiserver, embedded.
        stores: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Tidy => tidy::run(&root()),
        Task::Transcripts => transcripts::run(&root()),
        Task::Sim { arguments } => sim::run(&root(), &arguments),
        Task::Faults { length } => faults::run(&root(), length),
        Task::Bench { what: Bench::Ipam } => bench::ipam::run(&root()),
        Task::Bench { what: Bench::Apiserver } => bench::apiserver::run(&root()),
        Task::Mistakes => mistakes::run_all(&root()),
        Task::Bench { what: Bench::Datastore { stores } } => bench::datastore::run(&root(), &stores),
        Task::Bench { what: Bench::Lab { runs } } => bench::lab::run(&root(), runs),
    }
}

/// The repository's folder.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap_or_else(|_| PathBuf::from("."))
}
