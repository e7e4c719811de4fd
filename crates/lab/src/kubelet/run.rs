//! The kubelet's rim: what it is started with, and the loop that hands news to the pods' workers.

use super::agent::{self, State};
use super::api::{Api, Change};
use super::pod::{Pod, PodName, text};
use super::sandbox::{self, Record};
use super::shared::{PodEntry, Shared};
use super::worker::{self, Legacy, Message};
use super::{logs, registration, server, static_pods};
use crate::cluster::Cluster;
use crate::holder::{self, Endpoint, ListenSpec, ProcessState};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

/// How often it is noted how far the logs have grown.
const LOOK: Duration = Duration::from_secs(1);

/// How often logs that have grown too large are cut.
const TIDY: Duration = Duration::from_secs(30);

/// What a kubelet needs to know.
#[derive(Debug)]
pub struct Options {
    /// The lab's description, `lab.json` in the lab directory.
    pub lab_config: PathBuf,
    /// Name of the node.
    pub node: String,
    /// Credentials and address of the API server.
    pub kubeconfig: PathBuf,
    /// Where the API server asks for logs and sessions: the lab's socket `kubelet/<node>`.
    pub listener: std::os::unix::net::UnixListener,
}

/// Runs the kubelet of one node until the lab ends.
///
/// # Errors
/// When the lab's description or the credentials cannot be read, or the holder does not answer. A lost API server is
/// waited for, not reported as an error.
pub async fn run(options: Options) -> Result<()> {
    let cluster = Cluster::read(&options.lab_config)?;
    let node = cluster.node(&options.node).cloned();
    let node = node.with_context(|| {
        format!("{} has no node {}; see containerlab inspect", options.lab_config.display(), options.node)
    })?;
    let api = Api::new(datastore::kubernetes::client(Some(&options.kubeconfig)).await?);
    let holder = holder::Client::connect(&cluster.directory).await?;
    options.listener.set_nonblocking(true).context("listening without blocking")?;
    let listener = UnixListener::from_std(options.listener).context("listening")?;

    let (network, network_state) = watch::channel(State::default());
    let (agent_running, running) = watch::channel(false);
    let shared = Arc::new(Shared::new(cluster, node, api, holder, network_state.clone(), agent_running));
    let endpoint = Endpoint::Unix { path: shared.agent_socket() };
    shared.holder.listen(ListenSpec { name: shared.agent_listener(), endpoint }).await?;

    let configuration = shared.cluster.cni_directory(&shared.node.name);
    crate::private_file::create_directory(&configuration)?;
    let mut kubelet = Kubelet::new(shared.clone());
    let mut ends = shared.holder.watch(&shared.processes()).await?;
    kubelet.take_over().await?;

    tokio::spawn(agent::follow(shared.agent_socket(), configuration, running, network));
    tokio::spawn(registration::keep(shared.clone(), network_state));
    tokio::spawn(static_pods::create(shared.clone()));
    tokio::spawn(server::serve(shared.clone(), listener));
    let (sender, mut changes) = mpsc::channel(1024);
    let query = format!("fieldSelector=spec.nodeName%3D{}", shared.node.name);
    tokio::spawn(shared.api.clone().follow("/api/v1/pods".into(), query, sender));
    info!(node = shared.node.name, "serving");

    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tidy = tokio::time::interval(TIDY);
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Some(change) => kubelet.take(change),
                None => return Ok(()),
            },
            state = ends.next() => match state {
                Ok(state) => kubelet.process(state),
                Err(error) => {
                    warn!(%error, "lost sight of the processes; looking again");
                    // It begins with all there are.
                    ends = shared.holder.watch(&shared.processes()).await?;
                }
            },
            Some((uid, key)) = kubelet.finished.recv() => kubelet.finish(&uid, &key),
            _ = look.tick() => shared.marks.look(shared.written_logs().into_iter(), jiff::Timestamp::now()),
            _ = tidy.tick() => logs::bound(&shared.directory().join("logs")),
        }
    }
}

/// A pod that is being run.
struct Handle {
    messages: mpsc::UnboundedSender<Message>,
}

struct Kubelet {
    shared: Arc<Shared>,
    /// By uid: a pod that was deleted and made again under its name is another.
    pods: BTreeMap<String, Handle>,
    /// By the process's name.
    processes: BTreeMap<String, ProcessState>,
    /// What earlier kubelets left, by uid.
    records: BTreeMap<String, Record>,
    /// Whether the API has told which pods there are.
    settled: bool,
    finish: mpsc::UnboundedSender<(String, PodName)>,
    finished: mpsc::UnboundedReceiver<(String, PodName)>,
}

impl Kubelet {
    fn new(shared: Arc<Shared>) -> Self {
        let (finish, finished) = mpsc::unbounded_channel();
        Self {
            shared,
            pods: BTreeMap::new(),
            processes: BTreeMap::new(),
            records: BTreeMap::new(),
            settled: false,
            finish,
            finished,
        }
    }

    /// Learns what an earlier kubelet of this node left.
    async fn take_over(&mut self) -> Result<()> {
        let sets = self.shared.holder.namespaces("pod/").await?;
        for mut record in sandbox::records(&self.shared) {
            // Its namespaces may have gone with an earlier holder: then it is made anew.
            record.complete &= sets.contains(&super::pod::namespaces(&record.uid));
            self.records.insert(record.uid.clone(), record);
        }
        for state in self.shared.holder.list(&self.shared.processes()).await? {
            self.processes.insert(state.id.clone(), state);
        }
        Ok(())
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Put(object) => self.put(object),
            Change::Deleted(object) => {
                self.gone(text(&object, "/metadata/uid"));
                let pod = Pod::read(object);
                if pod.mirror {
                    self.forget_mirror(&pod);
                    tokio::spawn(static_pods::create(self.shared.clone()));
                }
            }
            Change::Listed(objects) => {
                let listed: Vec<String> =
                    objects.iter().map(|object| text(object, "/metadata/uid").to_owned()).collect();
                for object in objects {
                    self.put(object);
                }
                let unlisted: Vec<String> =
                    self.pods.keys().filter(|uid| !listed.contains(uid)).cloned().collect();
                for uid in unlisted {
                    self.gone(&uid);
                }
                // What is left of pods that nobody knows any more goes, too.
                for record in std::mem::take(&mut self.records).into_values() {
                    let uid = record.uid.clone();
                    let key = (record.namespace.clone(), record.name.clone());
                    self.start(uid, key, None, Some(record));
                }
                self.drop_strays();
            }
        }
    }

    fn put(&mut self, object: Value) {
        let pod = Box::new(Pod::read(object));
        if pod.uid.is_empty() {
            return;
        }
        if pod.mirror {
            let pod = Arc::new(*pod);
            let entry = PodEntry { pod: pod.clone(), sandbox: false, containers: BTreeMap::new() };
            self.shared.pods().insert(pod.key(), entry);
            tokio::spawn(static_pods::settle(self.shared.clone(), pod));
            return;
        }
        if let Some(handle) = self.pods.get(&pod.uid) {
            // A worker that has just ended is started anew when it says so.
            let _ = handle.messages.send(Message::Pod(pod));
            return;
        }
        let (uid, key) = (pod.uid.clone(), pod.key());
        let record = self.records.remove(&uid);
        self.start(uid, key, Some(pod), record);
    }

    fn start(&mut self, uid: String, key: PodName, pod: Option<Box<Pod>>, record: Option<Record>) {
        let (messages, receiver) = mpsc::unbounded_channel();
        let prefix = format!("{}{uid}/", self.shared.processes());
        let range = self.processes.range(prefix.clone()..);
        let processes = range.take_while(|(id, _)| id.starts_with(&prefix));
        let processes = processes.map(|(_, state)| state.clone()).collect();
        let legacy = Legacy { record, processes };
        let work = worker::run(self.shared.clone(), pod, legacy, receiver);
        let finish = self.finish.clone();
        self.pods.insert(uid.clone(), Handle { messages });
        tokio::spawn(async move {
            work.await;
            // Unheard only when the kubelet itself ends.
            let _ = finish.send((uid, key));
        });
    }

    fn gone(&mut self, uid: &str) {
        if let Some(handle) = self.pods.get(uid) {
            let _ = handle.messages.send(Message::Gone);
        }
    }

    fn process(&mut self, state: ProcessState) {
        let uid = state.id.strip_prefix(&self.shared.processes()).and_then(|rest| rest.split('/').next());
        if let Some(handle) = uid.and_then(|uid| self.pods.get(uid)) {
            let _ = handle.messages.send(Message::Process(state.clone()));
        } else if self.settled && state.exit.is_some() {
            self.processes.remove(&state.id);
            self.forget(state.id);
            return;
        }
        self.processes.insert(state.id.clone(), state);
    }

    /// Ends and forgets processes of pods that nobody knows.
    fn drop_strays(&mut self) {
        self.settled = true;
        let prefix = self.shared.processes();
        let known = |id: &str| {
            let uid = id.strip_prefix(&prefix).and_then(|rest| rest.split('/').next());
            uid.is_some_and(|uid| self.pods.contains_key(uid))
        };
        let strays: Vec<(String, bool)> = self
            .processes
            .iter()
            .filter(|(id, _)| !known(id))
            .map(|(id, state)| (id.clone(), state.is_running()))
            .collect();
        for (id, is_running) in strays {
            if is_running {
                let shared = self.shared.clone();
                // Its end is seen by the watch.
                tokio::spawn(async move {
                    let _ = shared.holder.signal(&id, rustix::process::Signal::KILL.as_raw()).await;
                });
            } else {
                self.processes.remove(&id);
                self.forget(id);
            }
        }
    }

    /// Has the holder drop the record of a process that has ended.
    fn forget(&self, id: String) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            // It may have been dropped already.
            let _ = shared.holder.forget(&id).await;
        });
    }

    fn finish(&mut self, uid: &str, key: &PodName) {
        self.pods.remove(uid);
        let prefix = format!("{}{uid}/", self.shared.processes());
        let mut ended = Vec::new();
        self.processes.retain(|id, state| {
            let is_of_pod = id.starts_with(&prefix);
            if is_of_pod && state.exit.is_some() {
                ended.push(id.clone());
            }
            // One that still runs is forgotten when its end is told.
            !is_of_pod || state.exit.is_none()
        });
        for id in ended {
            self.forget(id);
        }
        let mut pods = self.shared.pods();
        if pods.get(key).is_some_and(|entry| entry.pod.uid == uid) {
            pods.remove(key);
        }
    }

    fn forget_mirror(&self, pod: &Pod) {
        let mut pods = self.shared.pods();
        if pods.get(&pod.key()).is_some_and(|entry| entry.pod.uid == pod.uid) {
            pods.remove(&pod.key());
        }
    }
}
