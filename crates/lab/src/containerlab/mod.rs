//! The `containerlab` command: deploy, destroy and inspect labs of kind clusters.

mod inspect;

use crate::cluster::{Cluster, image_version};
use crate::console::{self, Level};
use crate::deploy::{self, Outcome, Progress, Request, Step};
use crate::destroy;
use crate::kind_config::{self, KindConfig};
use crate::known::{self, Known};
use crate::topology::{self, Topology};
use crate::yaml::Wrong;
use anyhow::{Context as _, Result, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use inspect::Format;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "containerlab", about = "Deploy, inspect and destroy labs", disable_version_flag = true)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// Path to the topology file
    #[arg(short, long, global = true, value_name = "FILE")]
    topo: Option<PathBuf>,
    /// Lab name
    #[arg(long, global = true)]
    name: Option<String>,
    /// Template variables (not supported)
    #[arg(long, global = true, hide = true)]
    vars: Option<String>,
    /// Timeout for requests to the container runtime (accepted, without effect)
    #[arg(long, global = true)]
    timeout: Option<String>,
    /// Container runtime (accepted, without effect)
    #[arg(short, long, global = true)]
    runtime: Option<String>,
    /// Logging level: debug, info, warn, error
    #[arg(long, global = true)]
    log_level: Option<String>,
    /// Show debug messages
    #[arg(short, long, global = true)]
    debug: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Deploy a lab
    #[command(visible_alias = "dep")]
    Deploy {
        /// Destroy the lab first if it is there
        #[arg(short = 'c', long)]
        reconfigure: bool,
        /// Limit of workers (accepted, without effect)
        #[arg(long)]
        max_workers: Option<u32>,
    },
    /// Destroy the lab and deploy it again
    Redeploy {
        /// Remove the lab directory (it always is)
        #[arg(short = 'c', long)]
        cleanup: bool,
    },
    /// Destroy a lab
    #[command(visible_alias = "des")]
    Destroy {
        /// Remove the lab directory (it always is)
        #[arg(short = 'c', long)]
        cleanup: bool,
        /// Destroy all labs
        #[arg(short, long)]
        all: bool,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        /// Stop containers gracefully (accepted, without effect)
        #[arg(long)]
        graceful: bool,
        /// Keep the management network (accepted, without effect)
        #[arg(long)]
        keep_mgmt_net: bool,
    },
    /// Show the nodes of a lab
    #[command(visible_aliases = ["ins", "i"])]
    Inspect {
        /// Show all labs
        #[arg(short, long)]
        all: bool,
        /// Output format: table, json or csv
        #[arg(short, long, default_value = "table")]
        format: String,
        /// One line for each node, with its owner
        #[arg(short, long)]
        wide: bool,
        /// Everything that is known, as JSON
        #[arg(long)]
        details: bool,
    },
    /// Show the version
    Version,
    /// Print shell completions
    Completion {
        /// bash, zsh, fish, …
        shell: clap_complete::Shell,
    },
}

/// Runs `containerlab` with these arguments, the program's name first.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            console::note(error.render().to_string().trim_end());
            return ExitCode::FAILURE;
        }
        Err(help) => {
            console::result(&help.render().to_string());
            return ExitCode::SUCCESS;
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::note(&format!("Error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let Arguments { common, command } = arguments;
    if common.debug || common.log_level.as_deref() == Some("debug") {
        console::show_debug();
    }
    if common.vars.is_some() {
        bail!("--vars: templates are not supported; write the values into the topology or use ${{VARIABLE}}");
    }
    for (flag, given) in [("--timeout", &common.timeout), ("--runtime", &common.runtime)] {
        if let Some(value) = given {
            console::log(Level::Debug, "accepted without effect", &[("flag", flag), ("value", value)]);
        }
    }
    match command {
        Command::Deploy { reconfigure, max_workers: _ } => deploy_lab(&common, reconfigure),
        Command::Redeploy { cleanup: _ } => deploy_lab(&common, true),
        Command::Destroy { all, yes: _, cleanup: _, graceful: _, keep_mgmt_net: _ } => {
            destroy_labs(&common, all)
        }
        Command::Inspect { all, format, wide, details } => {
            let format = match (format.as_str(), details) {
                ("json", true) | ("table", true) => Format::Details,
                ("table", false) => Format::Table { wide },
                ("json", false) => Format::Json,
                ("csv", false) => Format::Csv,
                (other, _) => bail!(
                    "output format {other:?} is not supported when --details is not used, use 'table', 'json' or 'csv'"
                ),
            };
            inspect_labs(&common, all, format)
        }
        Command::Version => {
            console::result(&version_text());
            Ok(())
        }
        Command::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "containerlab", &mut text);
            console::result(&String::from_utf8_lossy(&text));
            Ok(())
        }
    }
}

fn version_text() -> String {
    format!(
        "containerlab of tortie\n    version: {}\n    kinds: {}\n",
        env!("CARGO_PKG_VERSION"),
        topology::CLUSTER_KIND
    )
}

/// Names of the topology files in a directory, sorted.
pub(crate) fn topologies_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            // *.clab.y*ml
            name.rsplit_once(".clab.").is_some_and(|(_, end)| end.starts_with('y') && end.ends_with("ml"))
        })
        .map(PathBuf::from)
        .collect();
    files.sort();
    files
}

/// The topology file that the arguments mean, absolute; `None` when they name a lab instead.
fn find_topology(common: &Common) -> Result<Option<PathBuf>> {
    let here = std::env::current_dir().context("finding the working directory")?;
    let Some(given) = &common.topo else {
        if common.name.is_some() {
            return Ok(None);
        }
        let found = topologies_in(&here);
        return match &found[..] {
            [] => bail!("no topology files matching the pattern *.clab.yml or *.clab.yaml found"),
            [file] => Ok(Some(here.join(file))),
            several => {
                let names: Vec<String> =
                    several.iter().map(|file| format!("{:?}", file.display().to_string())).collect();
                bail!(
                    "more than one topology file matching the pattern *.clab.yml or *.clab.yaml found, can't pick one: [{}]",
                    names.join(" ")
                )
            }
        };
    };
    if given.as_os_str() == "-" || given.as_os_str() == "stdin" {
        bail!("a topology from standard input has no directory for its files; save it and name the file");
    }
    let path = here.join(given);
    if !path.exists() {
        bail!("stat {}: no such file or directory", given.display());
    }
    if !path.is_dir() {
        return Ok(Some(std::path::absolute(path).context("finding the topology")?));
    }
    let found = topologies_in(&path);
    match &found[..] {
        [] => bail!("no topology files found in directory {:?}", given.display().to_string()),
        [file] => Ok(Some(std::path::absolute(path.join(file)).context("finding the topology")?)),
        several => {
            let names: Vec<String> = several.iter().map(|file| file.display().to_string()).collect();
            bail!(
                "found multiple topology definitions [ {} ] in a given directory {:?}. Provide the specific filename",
                names.join(", "),
                given.display().to_string()
            )
        }
    }
}

/// Reads a topology, and says so first.
fn load(file: &Path) -> Result<Topology> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    console::info("Parsing & checking topology", &[("file", &name)]);
    Ok(topology::read(file, |name| std::env::var(name).ok())?)
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(future)
}

/// The cluster that a topology asks for.
fn cluster_of(topology: &Topology) -> Result<(Cluster, Vec<String>)> {
    let mut warnings = topology.warnings.clone();
    let config = match &topology.startup_config {
        None => KindConfig::single_node(),
        Some(file) => {
            if !file.exists() {
                let message = format!(
                    "topology.nodes.{}.startup-config: {} does not exist; correct the path, it begins at the topology",
                    topology.cluster,
                    file.display()
                );
                return Err(Wrong::at(&topology.file, topology.startup_config_line, message).into());
            }
            kind_config::read(file)?
        }
    };
    warnings.extend(config.warnings.iter().cloned());
    if !kind_config::is_cluster_name(&topology.cluster) {
        let message = kind_config::wrong_cluster_name(&topology.cluster);
        let message = format!("topology.nodes: {message}; rename the node");
        return Err(Wrong::at(&topology.file, topology.cluster_line, message).into());
    }
    if let Some(message) = too_long(&topology.cluster, &config) {
        let message = format!("topology.nodes: {message}");
        return Err(Wrong::at(&topology.file, topology.cluster_line, message).into());
    }
    let beside = topology.file.parent();
    let directory = deploy::directory_for(&topology.lab, beside)?;
    let cluster = make_cluster(
        Wanted {
            lab: &topology.lab,
            name: &topology.cluster,
            topology: topology.file.clone(),
            directory,
            config: &config,
            image: topology.image.as_deref(),
            kubeconfig: topology.kubeconfig.clone(),
        },
        &mut warnings,
    )?;
    Ok((cluster, warnings))
}

/// Longest name of a machine, in bytes.
const HOST_NAME_LIMIT: usize = 64;

/// What to say about a cluster name that is too long for its nodes' names.
fn too_long(name: &str, config: &KindConfig) -> Option<String> {
    let longest = config.nodes_of(name, None).iter().map(|node| node.name.len()).max()?;
    (longest > HOST_NAME_LIMIT).then(|| {
        format!(
            "the cluster name {name:?} makes node names of more than {HOST_NAME_LIMIT} characters; choose a shorter one"
        )
    })
}

/// What a cluster is made from.
pub(crate) struct Wanted<'a> {
    pub(crate) lab: &'a str,
    pub(crate) name: &'a str,
    pub(crate) topology: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) config: &'a KindConfig,
    pub(crate) image: Option<&'a str>,
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// Describes a cluster.
pub(crate) fn make_cluster(wanted: Wanted<'_>, warnings: &mut Vec<String>) -> Result<Cluster> {
    let nodes = wanted.config.nodes_of(wanted.name, wanted.image);
    if let Some(message) = too_long(wanted.name, wanted.config) {
        bail!("{message}");
    }
    let image = nodes.first().map_or(kind_config::DEFAULT_IMAGE, |node| node.image.as_str());
    let (version, given) = image_version(image);
    if !given {
        warnings.push(format!("image {image} has no version in its tag; taking {version}"));
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Ok(Cluster {
        lab: wanted.lab.to_owned(),
        name: wanted.name.to_owned(),
        topology: wanted.topology,
        directory: wanted.directory,
        program: std::env::current_exe().context("finding the program itself")?,
        version,
        nodes,
        pod_subnet: wanted.config.pod_subnet,
        service_subnet: wanted.config.service_subnet,
        kube_proxy_mode: wanted.config.kube_proxy_mode.clone(),
        api_server: ([127, 0, 0, 1], wanted.config.api_server_port).into(),
        kubeconfig: wanted.kubeconfig,
        owner: variable("SUDO_USER").or_else(|| variable("USER")).unwrap_or_else(|| "root".into()),
        created: jiff::Timestamp::now(),
    })
}

fn deploy_lab(common: &Common, reconfigure: bool) -> Result<()> {
    console::info("Containerlab started", &[("version", env!("CARGO_PKG_VERSION"))]);
    let file = match find_topology(common)? {
        Some(file) => file,
        None => by_name(common)?.read_cluster()?.topology,
    };
    let mut topology = load(&file)?;
    if let Some(name) = &common.name {
        topology.lab.clone_from(name);
    }
    let (cluster, warnings) = cluster_of(&topology)?;
    for warning in &warnings {
        console::warn(warning, &[]);
    }
    if reconfigure && let Some(known) = known::by_lab(&cluster.lab)? {
        console::info("Removing directory", &[("path", &known.directory.display().to_string())]);
        destroy::destroy(&known)?;
    }
    console::log(Level::Debug, "lab", &[("directory", &cluster.directory.display().to_string())]);
    let mut progress = Lines::new(&cluster, topology.wait);
    if known::by_lab(&cluster.lab)?.is_none_or(|known| known.holder().is_none()) {
        progress.announce(&cluster, file.parent());
    }
    let outcome = block_on(deploy::deploy(Request { cluster, wait: topology.wait }, &mut progress))?;
    match &outcome {
        Outcome::Created(cluster) => {
            inspect::print(&[(known_of(cluster), cluster.as_ref().clone())], Format::Table { wide: false })
        }
        Outcome::Completed(cluster) => {
            console::info(
                "The lab is deployed already; what was missing was started again",
                &[("name", &cluster.lab)],
            );
            let known = known::by_lab(&cluster.lab)?.unwrap_or_else(|| known_of(cluster));
            inspect::print(&[(known, cluster.as_ref().clone())], Format::Table { wide: false })
        }
    }
}

fn known_of(cluster: &Cluster) -> Known {
    destroy::unknown(cluster)
}

fn by_name(common: &Common) -> Result<Known> {
    let name = common.name.as_deref().unwrap_or_default();
    known::by_lab(name)?.with_context(|| format!("lab '{name}' not found - no running containers"))
}

fn destroy_labs(common: &Common, all: bool) -> Result<()> {
    if all {
        if common.name.is_some() {
            bail!("--all and --name should not be used together");
        }
        let mut failed = Vec::new();
        for known in known::all()? {
            if let Err(error) = destroy_lab(&known) {
                failed.push(format!("{error:#}"));
            }
        }
        if !failed.is_empty() {
            bail!("{}", failed.join("; "));
        }
        return Ok(());
    }
    let known = match find_topology(common)? {
        None => Some(by_name(common)?),
        Some(file) => {
            let topology = load(&file)?;
            let lab = common.name.clone().unwrap_or(topology.lab);
            let known = known::by_lab(&lab)?;
            if known.is_some() {
                // As containerlab does: the file is read a second time.
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                console::info("Parsing & checking topology", &[("file", &name)]);
            }
            // A lab that is known no more, but whose directory is still there.
            known.or_else(|| {
                let directory = deploy::directory_for(&lab, file.parent()).ok()?;
                let cluster = Cluster::read(&directory.join(crate::cluster::FILE)).ok()?;
                Some(Known { directory, ..destroy::unknown(&cluster) })
            })
        }
    };
    known.map_or(Ok(()), |known| destroy_lab(&known))
}

fn destroy_lab(known: &Known) -> Result<()> {
    console::info("Destroying lab", &[("name", &known.lab)]);
    let cluster = known.read_cluster().ok();
    console::info(&format!("Deleting kind cluster {:?}", known.cluster), &[]);
    destroy::destroy(known)?;
    if let Some(cluster) = cluster {
        let names: Vec<String> = cluster.nodes.iter().map(|node| format!("{:?}", node.name)).collect();
        console::info(&format!("Deleted nodes: [{}]", names.join(" ")), &[("kind-cluster", &known.cluster)]);
    }
    Ok(())
}

fn inspect_labs(common: &Common, all: bool, format: Format) -> Result<()> {
    let here = std::env::current_dir().context("finding the working directory")?;
    let labs = if all {
        known::all()?
    } else if common.topo.is_none() && common.name.is_none() && topologies_in(&here).is_empty() {
        bail!("provide either a lab name (--name) or a topology file path (--topo) or the --all flag");
    } else {
        match find_topology(common)? {
            None => vec![by_name(common)?],
            Some(file) => {
                let topology = load(&file)?;
                known::by_lab(&topology.lab)?.into_iter().collect()
            }
        }
    };
    let labs: Vec<(Known, Cluster)> = labs
        .into_iter()
        .filter_map(|known| known.read_cluster().ok().map(|cluster| (known, cluster)))
        .collect();
    if labs.is_empty() {
        match format {
            Format::Json | Format::Details => console::result("{}\n"),
            Format::Csv => console::result(inspect::CSV_HEADER),
            Format::Table { .. } => console::info("no containers found", &[]),
        }
        return Ok(());
    }
    match format {
        Format::Table { .. } if all => inspect::print_all(&labs, format),
        _ => inspect::print(&labs, format),
    }
}

/// Progress as log lines.
struct Lines {
    cluster: String,
    nodes: usize,
    image: String,
    wait: Duration,
    current: Option<String>,
}

impl Lines {
    fn new(cluster: &Cluster, wait: Duration) -> Self {
        Self {
            cluster: cluster.name.clone(),
            nodes: cluster.nodes.len(),
            image: cluster.nodes.first().map(|node| node.image.clone()).unwrap_or_default(),
            wait,
            current: None,
        }
    }

    fn announce(&self, cluster: &Cluster, beside: Option<&Path>) {
        let subnets = crate::cluster::node_addresses(0);
        let (v4, v6) = (subnets.0.trunc().to_string(), subnets.1.trunc().to_string());
        console::info(
            "Creating lab network",
            &[("name", "kind"), ("IPv4 subnet", &v4), ("IPv6 subnet", &v6), ("MTU", "1500")],
        );
        if beside.is_some_and(|beside| !cluster.directory.starts_with(beside)) {
            console::warn("The topology's directory cannot be written; the lab directory is elsewhere", &[]);
        }
        console::info("Creating lab directory", &[("path", &cluster.directory.display().to_string())]);
        self.say(&format!("Creating cluster {:?} ...", self.cluster));
    }

    fn say(&self, text: &str) {
        console::info(text, &[("kind-cluster", &self.cluster)]);
    }
}

/// What kind writes about a step.
pub(crate) fn step_text(step: Step, image: &str, nodes: usize, wait: Duration) -> String {
    match step {
        Step::EnsuringImage => format!("Ensuring node image ({image}) 🖼️ "),
        Step::PreparingNodes => format!("Preparing nodes{} ", " 📦".repeat(nodes)),
        Step::WritingConfiguration => "Writing configuration 📜".into(),
        Step::StartingControlPlane => "Starting control-plane 🕹️".into(),
        Step::InstallingStorageClass => "Installing StorageClass 💾".into(),
        Step::JoiningNodes => "Joining worker nodes 🚜".into(),
        Step::WaitingForReady => format!("Waiting ≤ {} for control-plane = Ready ⏳", go_duration(wait)),
    }
}

/// A duration as Go prints it: 15m0s, 1h30m0s, 45s.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}

impl Progress for Lines {
    fn begin(&mut self, step: Step) {
        if step == Step::JoiningNodes && self.nodes == 1 {
            self.current = None;
            return;
        }
        let text = step_text(step, &self.image, self.nodes, self.wait);
        self.say(&format!(" • {text} ..."));
        self.current = Some(text);
    }

    fn done(&mut self) {
        if let Some(text) = self.current.take() {
            self.say(&format!(" ✓ {text}"));
        }
    }

    fn ready(&mut self, after: Option<Duration>) {
        self.done();
        match after {
            Some(after) => self.say(&format!(" • Ready after {} 💚", go_duration(after))),
            None => self.say(" • WARNING: Timed out waiting for Ready ⚠️"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_containerlabs() {
        Arguments::command().debug_assert();
        for line in [
            "containerlab deploy -t x.clab.yaml",
            "containerlab -t x.clab.yaml dep -c",
            "clab inspect -t x -f json",
            "clab ins --all -w",
            "clab destroy --name x --cleanup -r docker",
            "clab des -a -y",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn steps_read_as_kinds_do() {
        let wait = Duration::from_secs(900);
        assert_eq!(step_text(Step::PreparingNodes, "", 3, wait), "Preparing nodes 📦 📦 📦 ");
        assert_eq!(
            step_text(Step::WaitingForReady, "", 3, wait),
            "Waiting ≤ 15m0s for control-plane = Ready ⏳"
        );
        assert_eq!(go_duration(Duration::from_secs(5400)), "1h30m0s");
        assert_eq!(go_duration(Duration::from_millis(17_900)), "17s");
    }
}
