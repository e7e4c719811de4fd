//! The `kind` command, as much of it as the lesson uses.

use crate::cluster::Cluster;
use crate::console;
use crate::containerlab::{Wanted, make_cluster, step_text};
use crate::deploy::{self, Outcome, Progress, Request, Step};
use crate::kind_config::{self, KindConfig, is_cluster_name, wrong_cluster_name};
use crate::known::{self, Known};
use crate::{destroy, kubeconfig, topology};
use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "kind", about = "Create and delete local clusters", disable_version_flag = true)]
struct Arguments {
    /// Silence standard error
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Verbosity (accepted, without effect)
    #[arg(short, long, global = true, value_name = "LEVEL")]
    verbosity: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create a cluster
    Create {
        #[command(subcommand)]
        what: Create,
    },
    /// Delete a cluster
    Delete {
        #[command(subcommand)]
        what: Delete,
    },
    /// Export a cluster's kubeconfig
    Export {
        #[command(subcommand)]
        what: Export,
    },
    /// Get clusters, nodes or a kubeconfig
    Get {
        #[command(subcommand)]
        what: Get,
    },
    /// Print the version
    Version,
}

#[derive(Args)]
struct Name {
    /// Name of the cluster
    #[arg(short, long, env = "KIND_CLUSTER_NAME", default_value = "kind")]
    name: String,
}

#[derive(Subcommand)]
enum Create {
    /// Create a cluster
    Cluster {
        /// Name of the cluster; wins over the configuration's
        #[arg(short, long, env = "KIND_CLUSTER_NAME")]
        name: Option<String>,
        /// The configuration
        #[arg(long)]
        config: Option<PathBuf>,
        /// Image of the nodes
        #[arg(long)]
        image: Option<String>,
        /// How long to wait for the nodes to be Ready
        #[arg(long, default_value = "0s")]
        wait: String,
        /// The kubeconfig file to merge into
        #[arg(long)]
        kubeconfig: Option<PathBuf>,
        /// Keep what was made when it fails (accepted, without effect)
        #[arg(long)]
        retain: bool,
    },
}

#[derive(Subcommand)]
enum Delete {
    /// Delete a cluster
    Cluster {
        #[command(flatten)]
        name: Name,
        /// The kubeconfig file to remove its entry from (accepted: the one it was merged into is known)
        #[arg(long)]
        kubeconfig: Option<PathBuf>,
    },
    /// Delete several clusters
    Clusters {
        /// Their names
        names: Vec<String>,
        /// All of them
        #[arg(short = 'A', long)]
        all: bool,
        /// As for one cluster
        #[arg(long)]
        kubeconfig: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum Export {
    /// Merge the cluster's entry into a kubeconfig file
    Kubeconfig {
        #[command(flatten)]
        name: Name,
        /// The file; without it, the one that kubectl reads
        #[arg(long)]
        kubeconfig: Option<PathBuf>,
        /// With the address inside the lab
        #[arg(long)]
        internal: bool,
    },
}

#[derive(Subcommand)]
enum Get {
    /// List clusters
    Clusters,
    /// List nodes
    Nodes {
        #[command(flatten)]
        name: Name,
        /// Of all clusters
        #[arg(short = 'A', long)]
        all_clusters: bool,
    },
    /// Print a kubeconfig
    Kubeconfig {
        #[command(flatten)]
        name: Name,
        /// With the address inside the lab
        #[arg(long)]
        internal: bool,
    },
}

/// Runs `kind` with these arguments, the program's name first.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            console::note(&format!(
                "ERROR: {}",
                error.render().to_string().trim_start_matches("error: ").trim_end()
            ));
            return ExitCode::FAILURE;
        }
        Err(help) => {
            console::result(&help.render().to_string());
            return ExitCode::SUCCESS;
        }
    };
    if arguments.quiet {
        console::be_quiet();
    }
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::note(&format!("ERROR: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Version => {
            let (system, machine) = (std::env::consts::OS, std::env::consts::ARCH);
            let machine = match machine {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            };
            console::result(&format!("kind v{} tortie {system}/{machine}\n", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Command::Get { what: Get::Clusters } => {
            let mut names: Vec<String> = known::all()?.into_iter().map(|known| known.cluster).collect();
            names.sort();
            if names.is_empty() {
                console::note("No kind clusters found.");
            }
            console::result(&lines(&names));
            Ok(())
        }
        Command::Get { what: Get::Nodes { name, all_clusters } } => get_nodes(&name.name, all_clusters),
        Command::Get { what: Get::Kubeconfig { name, internal } } => {
            console::result(&format!("{}\n", kubeconfig_of(&name.name, internal)?));
            Ok(())
        }
        Command::Export { what: Export::Kubeconfig { name, kubeconfig, internal } } => {
            export(&name.name, kubeconfig, internal)
        }
        Command::Delete { what: Delete::Cluster { name, kubeconfig: _ } } => delete(&name.name),
        Command::Delete { what: Delete::Clusters { names, all, kubeconfig: _ } } => {
            let names =
                if all { known::all()?.into_iter().map(|known| known.cluster).collect() } else { names };
            names.iter().try_for_each(|name| delete(name))
        }
        Command::Create { what: Create::Cluster { name, config, image, wait, kubeconfig, retain: _ } } => {
            create(name, config, image, &wait, kubeconfig)
        }
    }
}

fn lines(names: &[String]) -> String {
    names.iter().map(|name| format!("{name}\n")).collect()
}

fn get_nodes(name: &str, all: bool) -> Result<()> {
    let mut nodes = Vec::new();
    for known in known::all()?.iter().filter(|known| all || known.cluster == name) {
        // The newest container first, as docker lists them.
        nodes.extend(known.read_cluster()?.nodes.into_iter().rev().map(|node| node.name));
    }
    match (nodes.is_empty(), all) {
        (false, _) => {}
        (true, true) => console::note("No kind nodes for any cluster."),
        (true, false) => console::note(&format!("No kind nodes found for cluster {name:?}.")),
    }
    console::result(&lines(&nodes));
    Ok(())
}

fn find(name: &str) -> Result<(Known, Cluster)> {
    let known = known::by_cluster(name)?.with_context(|| {
        format!(
            "could not locate any control plane nodes for cluster named '{name}'. Use the --name option to select a \
             different cluster"
        )
    })?;
    let cluster = known.read_cluster()?;
    Ok((known, cluster))
}

fn kubeconfig_of(name: &str, internal: bool) -> Result<String> {
    let (_, cluster) = find(name)?;
    let path = cluster.kubeconfig_of("admin");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    if !internal {
        return Ok(text);
    }
    let inside = cluster.control_plane().map_or_else(
        || cluster.internal_server(),
        |node| format!("https://{}:{}", node.name, crate::cluster::API_PORT),
    );
    Ok(text.replace(&format!("https://{}", cluster.api_server), &inside))
}

fn export(name: &str, target: Option<PathBuf>, internal: bool) -> Result<()> {
    let text = kubeconfig_of(name, internal)?;
    let target =
        target.or_else(kubeconfig::user_file).context("there is no home directory; use --kubeconfig")?;
    kubeconfig::merge(&target, &text)?;
    console::note(&format!("Set kubectl context to \"kind-{name}\""));
    Ok(())
}

fn delete(name: &str) -> Result<()> {
    console::note(&format!("Deleting cluster {name:?} ..."));
    let Some(known) = known::by_cluster(name)? else { return Ok(()) };
    let cluster = known.read_cluster().ok();
    destroy::destroy(&known)?;
    if let Some(cluster) = cluster {
        let names: Vec<String> = cluster.nodes.iter().map(|node| format!("{:?}", node.name)).collect();
        console::note(&format!("Deleted nodes: [{}]", names.join(" ")));
    }
    Ok(())
}

fn create(
    name: Option<String>,
    config: Option<PathBuf>,
    image: Option<String>,
    wait: &str,
    target: Option<PathBuf>,
) -> Result<()> {
    let here = std::env::current_dir().context("finding the working directory")?;
    let file = config.map(|file| here.join(file));
    let config = match &file {
        Some(file) => kind_config::read(file)?,
        None => KindConfig::single_node(),
    };
    let name = name.or_else(|| config.name.clone()).unwrap_or_else(|| "kind".into());
    if !is_cluster_name(&name) {
        bail!("{}", wrong_cluster_name(&name));
    }
    if name.len() > 50 {
        console::note(&format!(
            "WARNING: cluster name {name:?} is probably too long, this might not work properly"
        ));
    }
    if known::by_cluster(&name)?.is_some() {
        bail!("node(s) already exist for a cluster with the name {name:?}");
    }
    let wait = topology::parse_duration(wait)
        .with_context(|| format!("--wait: {wait:?} is no duration; write 0s, 90s or 5m"))?;
    let mut warnings = config.warnings.clone();
    let cluster = make_cluster(
        Wanted {
            lab: &name,
            name: &name,
            topology: file.unwrap_or_default(),
            directory: deploy::directory_for(&name, None)?,
            config: &config,
            image: image.as_deref(),
            kubeconfig: target.map(|target| here.join(target)),
        },
        &mut warnings,
    )?;
    for warning in warnings {
        console::note(&format!("WARNING: {warning}"));
    }
    console::note(&format!("Creating cluster {name:?} ..."));
    let mut progress = Plain {
        nodes: cluster.nodes.len(),
        image: cluster.nodes.first().map(|node| node.image.clone()).unwrap_or_default(),
        wait,
        current: None,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let outcome = runtime.block_on(deploy::deploy(Request { cluster, wait }, &mut progress))?;
    if let Outcome::Created(_) = outcome {
        console::note(&format!("Set kubectl context to \"kind-{name}\""));
        console::note("You can now use your cluster with:\n");
        console::note(&format!("kubectl cluster-info --context kind-{name}"));
    }
    Ok(())
}

/// Progress as plain lines.
struct Plain {
    nodes: usize,
    image: String,
    wait: Duration,
    current: Option<String>,
}

impl Progress for Plain {
    fn begin(&mut self, step: Step) {
        if step == Step::JoiningNodes && self.nodes == 1 {
            self.current = None;
            return;
        }
        let text = step_text(step, &self.image, self.nodes, self.wait);
        console::note(&format!(" • {text}  ..."));
        self.current = Some(text);
    }

    fn done(&mut self) {
        if let Some(text) = self.current.take() {
            console::note(&format!(" ✓ {text}"));
        }
    }

    fn ready(&mut self, after: Option<Duration>) {
        self.done();
        match after {
            Some(after) => console::note(&format!(" • Ready after {}s 💚", after.as_secs())),
            None => console::note(" • WARNING: Timed out waiting for Ready ⚠️"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_kinds() {
        Arguments::command().debug_assert();
        for line in [
            "kind get kubeconfig --name=calico-ipam",
            "kind get kubeconfig --name calico-ipam",
            "kind get kubeconfig -n calico-ipam --internal",
            "kind get clusters",
            "kind get clusters -q",
            "kind get nodes -A",
            "kind delete cluster --name x",
            "kind create cluster --name x --config f --image i --wait 1m --kubeconfig p",
            "kind export kubeconfig",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
