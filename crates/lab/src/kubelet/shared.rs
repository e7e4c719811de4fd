//! What all parts of one kubelet share.

use super::agent::State;
use super::api::Api;
use super::console::Console;
use super::events::Events;
use super::logs::{self, Marks};
use super::pod::{Pod, PodName};
use crate::cluster::{Cluster, Node};
use crate::holder;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, watch};

/// Sandboxes that are made or removed at once: enough to keep two cores busy, few enough to keep each quick.
const SANDBOXES: usize = 16;

/// What the server of logs and exec may know of a container.
#[derive(Clone, Debug, Default)]
pub(super) struct ContainerEntry {
    /// When its newest run began; `None` when it never ran.
    pub started: Option<Timestamp>,
    pub running: bool,
    /// Whether there was a run before the newest.
    pub restarted: bool,
    pub env: BTreeMap<String, String>,
    /// Its streams, when somebody may type into it.
    pub console: Option<Arc<Console>>,
}

/// What the server of logs and exec may know of a pod.
#[derive(Clone, Debug)]
pub(super) struct PodEntry {
    pub pod: Arc<Pod>,
    /// Whether its namespaces exist.
    pub sandbox: bool,
    pub containers: BTreeMap<String, ContainerEntry>,
}

/// What all parts of one kubelet share. Nothing in it is locked while waiting.
#[derive(Debug)]
pub(super) struct Shared {
    pub cluster: Cluster,
    pub node: Node,
    pub started: Timestamp,
    pub api: Api,
    pub holder: holder::Client,
    pub events: Events,
    pub sandboxes: Semaphore,
    pub network: watch::Receiver<State>,
    /// Whether the container with the node agent runs.
    pub agent_running: watch::Sender<bool>,
    /// How the containers' logs grew.
    pub marks: Marks,
    pods: Mutex<BTreeMap<PodName, PodEntry>>,
}

impl Shared {
    pub(super) fn new(
        cluster: Cluster,
        node: Node,
        api: Api,
        holder: holder::Client,
        network: watch::Receiver<State>,
        agent_running: watch::Sender<bool>,
    ) -> Self {
        let events = Events::start(api.clone(), node.name.clone());
        Self {
            cluster,
            node,
            started: Timestamp::now(),
            api,
            holder,
            events,
            sandboxes: Semaphore::new(SANDBOXES),
            network,
            agent_running,
            marks: Marks::default(),
            pods: Mutex::new(BTreeMap::new()),
        }
    }

    /// What is known of all pods.
    pub(super) fn pods(&self) -> MutexGuard<'_, BTreeMap<PodName, PodEntry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's files.
    pub(super) fn directory(&self) -> PathBuf {
        self.cluster.node_directory(&self.node.name)
    }

    /// Prefix of the names of all containers' processes.
    pub(super) fn processes(&self) -> String {
        format!("node/{}/pod/", self.node.name)
    }

    /// Name of a container's process.
    pub(super) fn process(&self, uid: &str, container: &str) -> String {
        format!("{}{uid}/{container}", self.processes())
    }

    /// Directory of a pod's logs.
    pub(super) fn logs(&self, namespace: &str, pod: &str, uid: &str) -> PathBuf {
        self.directory().join("logs").join(format!("{namespace}_{pod}_{uid}"))
    }

    /// The logs of the containers that run.
    pub(super) fn written_logs(&self) -> Vec<PathBuf> {
        let mut written = Vec::new();
        for PodEntry { pod, containers, .. } in self.pods().values() {
            let directory = self.logs(&pod.namespace, &pod.name, &pod.uid);
            let running = containers.iter().filter(|(_, entry)| entry.running);
            written.extend(running.map(|(name, _)| logs::path(&directory, name)));
        }
        written
    }

    /// Directory of our programs and of the CNI plugins.
    pub(super) fn programs(&self) -> PathBuf {
        self.cluster.program.parent().map_or_else(|| PathBuf::from("/"), PathBuf::from)
    }

    /// Socket that the node agent serves on.
    pub(super) fn agent_socket(&self) -> PathBuf {
        PathBuf::from(format!("/run/tortie/ipam/{}.sock", self.node.name))
    }

    /// Name of the listener on that socket.
    pub(super) fn agent_listener(&self) -> String {
        format!("ipam/{}", self.node.name)
    }
}
