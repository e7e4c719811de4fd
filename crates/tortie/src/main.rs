//! The one binary. Called as `containerlab`, `clab`, `kind`, `calicoctl` or `kubectl-calico` it is that command;
//! called as `tortie` it is the lab's own parts and the tools around them.

mod apiserver;
mod arguments;
mod cni;
mod inherited;

use ::datastore::backend::Settings;
use anyhow::Context as _;
use arguments::{Arguments, Cni, Datastore, Lab, Part};
use clap::{CommandFactory as _, Parser as _};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let called = words.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    if let Some(command) = command(&called.to_string_lossy()) {
        return command(words);
    }
    // The same commands without a link of their name: `tortie calicoctl ipam show`.
    if let Some(command) = words.get(1).and_then(|word| command(&word.to_string_lossy())) {
        return command(words.split_off(1));
    }
    let part = Arguments::parse_from(words).part;
    if matches!(part, Part::Cni(Cni::Direct)) {
        return cni::direct();
    }
    match run(part) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere to complain if even this fails.
            let _ = writeln!(std::io::stderr(), "tortie: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The command that goes by this name, if it is one of those that the binary can be.
fn command(name: &str) -> Option<fn(Vec<OsString>) -> ExitCode> {
    match name {
        "containerlab" | "clab" => Some(lab::containerlab::main),
        "kind" => Some(lab::kind::main),
        "calicoctl" | "kubectl-calico" => Some(calicoctl::main),
        _ => None,
    }
}

fn run(part: Part) -> anyhow::Result<()> {
    match part {
        // Before any thread: it enters namespaces that a process with threads may not enter.
        Part::Lab(Lab::Holder(holder)) => lab::holder::run(lab::holder::Options {
            directory: holder.dir,
            inside: holder.inside,
            owner: holder.owner,
        }),
        Part::Lab(Lab::Supervisor { lab_config }) => {
            serve(async { lab::supervisor::run(lab::supervisor::Options { lab_config }).await })
        }
        Part::Lab(Lab::Env) => lab::env::print(),
        Part::Lab(Lab::Shell) => lab::env::shell(),
        Part::Apiserver(part) => apiserver::run(part),
        Part::Node(part) => serve(async {
            let listen = part.listen.map_or(node::Listen::Inherited, node::Listen::Path);
            let options = node::Options {
                node_name: part.node_name,
                datastore: settings(part.kubeconfig)?,
                listen,
                cni_conf_dir: part.cni_conf_dir,
                cni_plugin_socket: part.cni_plugin_socket,
                state_dir: part.state_dir,
                mtu: part.mtu,
            };
            Ok(node::run(options).await?)
        }),
        // Its failures are answers, and were given above.
        Part::Cni(Cni::Direct) => Ok(()),
        Part::Controllers(part) => serve(async { Ok(controllers::run(&settings(part.kubeconfig)?).await?) }),
        Part::Operator(part) => serve(async {
            let options = controllers::operator::Options {
                kubeconfig: part.kubeconfig,
                node_networks: part.node_networks,
                // What a datastore gets that Tortie sets up for itself; one that is in use keeps its own (D9).
                affinity_naming: api::AffinityNaming::PerBlock,
            };
            Ok(controllers::operator::run(options).await?)
        }),
        Part::Kubelet(part) => serve(async {
            let options = lab::kubelet::Options {
                lab_config: part.lab_config,
                node: part.node,
                kubeconfig: part.kubeconfig,
                listener: inherited::unix()?
                    .context("a kubelet needs its socket handed over (LISTEN_FDS)")?,
            };
            lab::kubelet::run(options).await
        }),
        Part::ControllerManager(part) => serve(async {
            let cluster = lab::cluster::Cluster::read(&part.cluster_config)?;
            let options = lab::controller_manager::Options {
                kubeconfig: part.kubeconfig,
                pod_subnet: cluster.pod_subnet.to_string(),
            };
            lab::controller_manager::run(options).await
        }),
        Part::Datastore(Datastore::Copy(part)) => copy(&part),
        Part::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tortie", &mut script);
            Ok(std::io::stdout().write_all(&script)?)
        }
        Part::Manual => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
            Ok(std::io::stdout().write_all(&page)?)
        }
    }
}

fn copy(part: &arguments::Copy) -> anyhow::Result<()> {
    let options = datastore::copy::Options { dry_run: part.dry_run, unlocked: part.unlocked };
    let told = |progress: datastore::copy::Progress| {
        // Where stderr is gone there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "{}: {} of {}", progress.kind, progress.done, progress.total);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime
        .block_on(calicoctl::copy::run(&part.from, &part.to, options, told))
        .map_err(anyhow::Error::msg)?;
    Ok(std::io::stdout().write_all(report.as_bytes())?)
}

/// Which datastore is meant: by Calico's variables, with the kubeconfig that was named.
fn settings(kubeconfig: Option<PathBuf>) -> anyhow::Result<Settings> {
    let mut settings = Settings::from_environment()?;
    settings.kubeconfig = kubeconfig.or(settings.kubeconfig);
    Ok(settings)
}

/// Runs a long-lived part on a single thread: the parts wait, they do not compute.
fn serve(part: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    node::log::init();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(part)
}
