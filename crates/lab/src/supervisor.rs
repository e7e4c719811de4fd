//! Keeps the lab's own processes running: the API server, the controllers, a kubelet for each node.

use crate::cluster::Cluster;
use crate::holder::{Client, ProcessSpec, ProcessState};
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// Prefix of the names of the processes that the supervisor keeps.
pub const PREFIX: &str = "lab/";

/// The supervisor's own name with the holder.
pub const OWN_ID: &str = "supervisor";

/// The API server's name with the holder.
pub const API_ID: &str = "lab/apiserver";

/// Wait before the first restart of a process; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A process that ran this long had started well: its next restart waits as the first.
const PROVEN: Duration = Duration::from_secs(10);

/// What the supervisor needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's description, `lab.json`.
    pub lab_config: PathBuf,
}

/// Runs until the lab ends.
///
/// # Errors
/// When the holder does not answer: then the lab has ended.
pub async fn run(options: Options) -> Result<()> {
    let cluster = Cluster::read(&options.lab_config)?;
    let client = Client::connect(&cluster.directory).await.context("asking the holder")?;
    let mut watch = client.watch(PREFIX).await.context("watching the lab's processes")?;
    let mut kept: BTreeMap<String, Kept> =
        processes(&cluster).into_iter().map(|spec| (spec.id.clone(), Kept::new(spec))).collect();
    for state in client.list(PREFIX).await.context("listing the lab's processes")? {
        // What ended while there was no supervisor is started at once.
        if state.is_running() {
            observe(&mut kept, &state);
        }
    }
    loop {
        for process in kept.values_mut().filter(|process| process.is_due(Instant::now())) {
            match client.spawn(process.spec.clone()).await {
                Ok(pid) => {
                    info!(process = %process.spec.id, pid, "started");
                    process.started(Instant::now());
                }
                Err(error) if error.kind().is_none() => return Err(error).context("asking the holder"),
                Err(error) => {
                    warn!(process = %process.spec.id, %error, "did not start");
                    process.put_off(Instant::now());
                }
            }
        }
        let next = kept.values().filter_map(|process| process.due).min();
        tokio::select! {
            state = watch.next() => observe(&mut kept, &state.context("watching the lab's processes")?),
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

fn observe(kept: &mut BTreeMap<String, Kept>, state: &ProcessState) {
    let Some(process) = kept.get_mut(&state.id) else { return };
    match state.exit {
        None => process.due = None,
        Some(_) if process.due.is_some() => {}
        Some(exit) => {
            warn!(process = %state.id, pid = state.pid, code = exit.code, signal = exit.signal, "ended");
            process.ended(Instant::now());
        }
    }
}

/// A process to keep running.
#[derive(Debug)]
struct Kept {
    spec: ProcessSpec,
    /// When to start it; `None` while it runs.
    due: Option<Instant>,
    since: Option<Instant>,
    wait: Duration,
}

impl Kept {
    fn new(spec: ProcessSpec) -> Self {
        Self { spec, due: Some(Instant::now()), since: None, wait: FIRST_WAIT }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    fn started(&mut self, now: Instant) {
        self.due = None;
        self.since = Some(now);
    }

    fn ended(&mut self, now: Instant) {
        if self.since.is_some_and(|since| now.duration_since(since) >= PROVEN) {
            self.wait = FIRST_WAIT;
        }
        self.put_off(now);
    }

    fn put_off(&mut self, now: Instant) {
        self.due = Some(now + self.wait);
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

/// How a part of the lab is started: `tortie` with these arguments.
#[must_use]
pub fn part(cluster: &Cluster, id: &str, log: &str, arguments: &[&str]) -> ProcessSpec {
    let mut argv = vec![cluster.program.display().to_string()];
    argv.extend(arguments.iter().map(|&argument| argument.to_owned()));
    ProcessSpec {
        id: id.to_owned(),
        argv,
        env: environment(),
        stdout: Some(cluster.log(log)),
        stderr: Some(cluster.log(log)),
        ..ProcessSpec::default()
    }
}

/// What the lab's processes inherit from whoever deployed it: where to find tools, and how much to log.
fn environment() -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> = ["RUST_LOG", "RUST_BACKTRACE"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
        .collect();
    let standard = crate::holder::STANDARD_PATH;
    let path =
        std::env::var("PATH").map_or_else(|_| standard.to_owned(), |path| format!("{path}:{standard}"));
    environment.insert("PATH".into(), path);
    environment
}

/// The processes of a lab, in the order in which they are best started.
fn processes(cluster: &Cluster) -> Vec<ProcessSpec> {
    let text = |path: PathBuf| path.display().to_string();
    let config = text(cluster.directory.join(crate::cluster::FILE));
    let mut api_server = part(
        cluster,
        API_ID,
        "apiserver",
        &[
            "apiserver",
            "--data-file",
            &text(cluster.directory.join("data").join("cluster.redb")),
            "--pki-dir",
            &text(cluster.directory.join("pki")),
            "--kubelet-sockets",
            KUBELET_SOCKETS,
            "--service-cidr",
            &cluster.service_subnet.to_string(),
            "--server-version",
            &cluster.version,
            "--advertise",
            cluster.internal_server().trim_start_matches("https://"),
        ],
    );
    api_server.listeners = vec!["apiserver/host".into(), "apiserver/node".into()];
    let mut processes = vec![api_server];
    let mut manager = part(
        cluster,
        "lab/controller-manager",
        "controller-manager",
        &[
            "controller-manager",
            "--kubeconfig",
            &text(cluster.kubeconfig_of("controller-manager")),
            "--cluster-config",
            &config,
        ],
    );
    manager.namespaces = cluster.control_plane().map(crate::cluster::Node::namespaces);
    processes.push(manager);
    for node in &cluster.nodes {
        let name = &node.name;
        let mut kubelet = part(
            cluster,
            &format!("lab/kubelet/{name}"),
            &format!("kubelet-{name}"),
            &[
                "kubelet",
                "--lab-config",
                &config,
                "--node",
                name,
                "--kubeconfig",
                &text(cluster.kubeconfig_of(&format!("kubelet-{name}"))),
            ],
        );
        kubelet.namespaces = Some(node.namespaces());
        kubelet.listeners = vec![format!("kubelet/{name}")];
        processes.push(kubelet);
    }
    processes
}

/// Where the kubelets' sockets are, in the lab's mounts.
pub const KUBELET_SOCKETS: &str = "/run/tortie/kubelet";

/// Where the agents' sockets are, in the lab's mounts.
pub const AGENT_SOCKETS: &str = "/run/tortie/ipam";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_keeps_ending_is_started_ever_more_slowly() {
        let mut process = Kept::new(ProcessSpec::default());
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..7 {
            process.started(now);
            process.ended(now);
            let due = process.due.unwrap();
            waits.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        process.started(now);
        process.ended(now + PROVEN);
        assert_eq!(process.due.unwrap(), now + PROVEN + FIRST_WAIT);
    }

    #[test]
    fn an_end_seen_twice_counts_once() {
        let spec = ProcessSpec { id: "lab/x".into(), ..ProcessSpec::default() };
        let mut kept = BTreeMap::from([(spec.id.clone(), Kept::new(spec))]);
        kept.get_mut("lab/x").unwrap().started(Instant::now());
        let state = ProcessState {
            id: "lab/x".into(),
            pid: 1,
            started: jiff::Timestamp::UNIX_EPOCH,
            exit: Some(crate::holder::Exit {
                code: Some(1),
                signal: None,
                finished: jiff::Timestamp::UNIX_EPOCH,
            }),
            labels: BTreeMap::new(),
        };
        observe(&mut kept, &state);
        let due = kept["lab/x"].due;
        assert!(due.is_some());
        observe(&mut kept, &state);
        assert_eq!(kept["lab/x"].due, due);
    }
}
