//! Carries out the steps of one pod.

use super::api::code;
use super::console::Console;
use super::environment::{self, Sources};
use super::plan::{self, Blocked, Ended, Run, Sandbox, Step, View};
use super::pod::{Container, Pod, PodName};
use super::program::{self, Program, StandIn};
use super::sandbox::{self, Record};
use super::shared::{ContainerEntry, PodEntry, Shared};
use super::status::{self, Observed};
use super::{agent, logs, process};
use crate::holder::{ProcessState, RefusalKind, Streams};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

/// First and longest wait before a failed sandbox is tried again.
const SANDBOX_BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Wait before something that the API server or a missing object held up is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Message {
    /// The pod is new or has changed.
    Pod(Box<Pod>),
    /// The API has it no more.
    Gone,
    /// A process of it started or ended.
    Process(ProcessState),
}

/// What an earlier kubelet left of a pod.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    pub record: Option<Record>,
    pub processes: Vec<ProcessState>,
}

struct Worker {
    shared: Arc<Shared>,
    key: PodName,
    uid: String,
    pod: Option<Arc<Pod>>,
    record: Option<Record>,
    /// The sandbox that the pod has, or had last: a pod that is done keeps the address it had in its status.
    connected: Option<Record>,
    runs: BTreeMap<String, Run>,
    environments: BTreeMap<String, BTreeMap<String, String>>,
    consoles: BTreeMap<String, Arc<Console>>,
    blocked: BTreeMap<String, Blocked>,
    retry: Option<Timestamp>,
    back_off: Duration,
    terminated: Option<Timestamp>,
    killed: bool,
    /// The status that the API has, as far as known, and the whole patch told last.
    told: Value,
    told_patch: Value,
    retell: bool,
    /// Containers whose stand-in was announced.
    announced: BTreeSet<String>,
}

/// Runs a pod until nothing of it is left. `pod` is `None` for what an earlier kubelet left of a pod that the API has
/// no more.
pub(super) async fn run(
    shared: Arc<Shared>,
    pod: Option<Box<Pod>>,
    legacy: Legacy,
    mut messages: mpsc::UnboundedReceiver<Message>,
) {
    let Some((key, uid)) = pod
        .as_ref()
        .map(|pod| (pod.key(), pod.uid.clone()))
        .or_else(|| legacy.record.as_ref().map(|r| ((r.namespace.clone(), r.name.clone()), r.uid.clone())))
    else {
        return;
    };
    let mut network = shared.network.clone();
    let mut worker = Worker::new(shared, key, uid, pod.map(|pod| Arc::new(*pod)), legacy).await;
    loop {
        while let Ok(message) = messages.try_recv() {
            worker.take(message);
        }
        let state = network.borrow_and_update().clone();
        let step = worker.next(&state);
        match step {
            Step::End => break,
            Step::Wait(until) => {
                worker.tell(&state).await;
                worker.publish();
                wait(&mut worker, until, &mut messages, &mut network).await;
            }
            step => worker.perform(step).await,
        }
    }
    worker.end().await;
}

async fn wait(
    worker: &mut Worker,
    until: Option<Timestamp>,
    messages: &mut mpsc::UnboundedReceiver<Message>,
    network: &mut watch::Receiver<agent::State>,
) {
    let now = Timestamp::now();
    let retell = worker.retell.then(|| now.checked_add(RETRY).unwrap_or(now));
    let until = match (until, retell) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    let pause = until
        .map_or(Duration::MAX, |until| Duration::try_from(until.duration_since(now)).unwrap_or_default());
    tokio::select! {
        message = messages.recv() => match message {
            Some(message) => worker.take(message),
            // The kubelet ends.
            None => std::future::pending().await,
        },
        changed = network.changed() => {
            if changed.is_err() {
                std::future::pending::<()>().await;
            }
        }
        () = tokio::time::sleep(pause) => {}
    }
}

impl Worker {
    async fn new(
        shared: Arc<Shared>,
        key: PodName,
        uid: String,
        pod: Option<Arc<Pod>>,
        legacy: Legacy,
    ) -> Self {
        let told = pod.as_ref().and_then(|pod| pod.object.get("status")).cloned().unwrap_or(Value::Null);
        let mut worker = Self {
            shared,
            key,
            uid,
            pod,
            connected: legacy.record.clone(),
            record: legacy.record,
            runs: BTreeMap::new(),
            environments: BTreeMap::new(),
            consoles: BTreeMap::new(),
            blocked: BTreeMap::new(),
            retry: None,
            back_off: Duration::ZERO,
            terminated: None,
            killed: false,
            told,
            told_patch: Value::Null,
            retell: false,
            announced: BTreeSet::new(),
        };
        worker.adopt(&legacy.processes).await;
        worker
    }

    /// Takes over what an earlier kubelet started.
    async fn adopt(&mut self, processes: &[ProcessState]) {
        if let Some(pod) = self.pod.clone() {
            // What the API was told stands for what has no process: stand-ins among the init containers.
            for (name, ended) in status::told_ends(&pod.object, "initContainerStatuses", "state") {
                if ended.code == 0 {
                    self.runs.insert(name, completed(ended));
                }
            }
            let last = status::told_ends(&pod.object, "containerStatuses", "lastState");
            for state in processes {
                if let Some((name, mut run)) = process::adopted(&self.shared, state) {
                    run.last = last.get(&name).cloned();
                    self.announced.insert(name.clone());
                    if let Some(container) = pod.container(&name)
                        && let Ok(env) = self.environment(&pod, container).await
                    {
                        self.environments.insert(name.clone(), env);
                    }
                    self.runs.insert(name, run);
                }
            }
        }
        for state in processes {
            self.take(Message::Process(state.clone()));
        }
        if !self.runs.is_empty() {
            info!(pod = self.key.1, namespace = self.key.0, containers = self.runs.len(), "adopted a pod");
        }
        // A sandbox that was being made when the kubelet ended is made anew.
        if let Some(record) = self.record.clone().filter(|record| !record.complete) {
            self.remove_sandbox(&record).await;
        }
        self.publish();
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Gone => self.pod = None,
            Message::Pod(pod) => {
                // What others said of the pod goes with what is told next.
                if self.told_patch.is_null() {
                    self.told = pod.object.get("status").cloned().unwrap_or(Value::Null);
                }
                self.pod = Some(Arc::new(*pod));
            }
            Message::Process(state) => self.ended(&state),
        }
    }

    /// Takes note of a process's end.
    fn ended(&mut self, state: &ProcessState) {
        let Some(exit) = state.exit else { return };
        let Some(name) = state.id.rsplit('/').next() else { return };
        let Some(run) = self.runs.get_mut(name) else { return };
        if run.ended.is_some() || state.labels.get(process::CONTAINER_ID) != Some(&run.container_id) {
            return;
        }
        let code = exit.code.or_else(|| exit.signal.map(|signal| 128 + signal)).unwrap_or(255);
        let ran = Duration::try_from(exit.finished.duration_since(run.started)).unwrap_or_default();
        run.ended = Some(Ended {
            container_id: run.container_id.clone(),
            code,
            reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
            message: String::new(),
            started: run.started,
            finished: exit.finished,
        });
        run.back_off = run.program.back_off(run.waited, ran);
        let is_agent = run.program == Program::Agent;
        let long = run.back_off > program::FIRST_BACK_OFF;
        info!(pod = self.key.1, namespace = self.key.0, container = name, code, "a container ended");
        if is_agent {
            self.shared.agent_running.send_replace(false);
        }
        self.consoles.remove(name);
        if let Some(pod) = self.pod.as_ref().filter(|pod| long && !pod.deleting) {
            let message = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                pod.name, pod.namespace, pod.uid
            );
            self.shared.events.warning(pod, Some(name), "BackOff", message);
        }
    }

    fn next(&self, network: &agent::State) -> Step {
        plan::next(&View {
            now: Timestamp::now(),
            pod: self.pod.as_deref(),
            network_ready: network.is_ready(),
            sandbox: match &self.record {
                None => Sandbox::None,
                Some(record) if record.complete => Sandbox::Ready,
                Some(_) => Sandbox::Broken,
            },
            retry: self.retry,
            runs: &self.runs,
            blocked: &self.blocked,
            terminated: self.terminated,
            killed: self.killed,
        })
    }

    async fn perform(&mut self, step: Step) {
        match step {
            Step::Create => self.create_sandbox().await,
            Step::Start(name) => self.start(&name).await,
            Step::Terminate => {
                self.terminated = Some(Timestamp::now());
                self.signal_all(Signal::TERM).await;
            }
            Step::Kill => {
                self.killed = true;
                self.signal_all(Signal::KILL).await;
            }
            Step::Remove => {
                if let Some(record) = self.record.clone() {
                    self.remove_sandbox(&record).await;
                }
            }
            Step::Delete => self.delete().await,
            Step::End | Step::Wait(_) => {}
        }
    }

    async fn create_sandbox(&mut self) {
        let Some(pod) = self.pod.clone() else { return };
        let shared = self.shared.clone();
        let permit = shared.sandboxes.acquire().await;
        let created = sandbox::create(&shared, &pod, &mut self.record).await;
        let Err(error) = created else {
            self.connected = self.record.clone();
            self.retry = None;
            self.back_off = Duration::ZERO;
            return;
        };
        let message = format!("Failed to create pod sandbox: {error:#}");
        warn!(
            pod = pod.name,
            namespace = pod.namespace,
            error = format!("{error:#}"),
            "did not connect a pod"
        );
        self.shared.events.warning(&pod, None, "FailedCreatePodSandBox", message);
        // What the failed attempt left goes first; the next attempt begins with nothing.
        if let Some(record) = self.record.clone()
            && sandbox::remove(&shared, &record).await.is_ok()
        {
            self.record = None;
        }
        drop(permit);
        self.retry_later();
    }

    async fn remove_sandbox(&mut self, record: &Record) {
        let shared = self.shared.clone();
        let _permit = shared.sandboxes.acquire().await;
        match sandbox::remove(&shared, record).await {
            Ok(()) => {
                self.record = None;
                self.retry = None;
                self.back_off = Duration::ZERO;
            }
            Err(error) => {
                warn!(pod = self.key.1, error = format!("{error:#}"), "did not disconnect a pod");
                if let Some(pod) = &self.pod {
                    let message = format!("error killing pod: failed to \"KillPodSandbox\": {error:#}");
                    self.shared.events.warning(pod, None, "FailedKillPod", message);
                }
                self.retry_later();
            }
        }
    }

    fn retry_later(&mut self) {
        let (first, last) = SANDBOX_BACK_OFF;
        self.back_off = self.back_off.saturating_mul(2).clamp(first, last);
        let now = Timestamp::now();
        self.retry = Some(now.checked_add(self.back_off).unwrap_or(now));
    }

    /// Starts a container, again or for the first time.
    async fn start(&mut self, name: &str) {
        let Some(pod) = self.pod.clone() else { return };
        let Some(container) = pod.container(name) else { return };
        self.blocked.remove(name);
        let env = match self.environment(&pod, container).await {
            Ok(env) => env,
            Err(message) => {
                self.shared.events.warning(&pod, Some(name), "Failed", format!("Error: {message}"));
                self.block(name, "CreateContainerConfigError", message);
                return;
            }
        };
        let command = environment::command(container, &env);
        let program = program::choose(&pod, container, command, program::is_runnable);
        let is_init = pod.init.iter().any(|init| init.name == name);
        let mut run = self.new_run(name, program);
        if is_init && run.program.is_stand_in() {
            let now = Timestamp::now();
            run.ended = Some(Ended {
                container_id: run.container_id.clone(),
                code: 0,
                reason: "Completed".into(),
                message: String::new(),
                started: now,
                finished: now,
            });
        } else if let Err(blocked) = self.spawn(&pod, container, &mut run, &env).await {
            self.shared.events.warning(&pod, Some(name), "Failed", format!("Error: {blocked}"));
            self.block(name, "RunContainerError", blocked);
            return;
        }
        self.announce(&pod, container, &run.program);
        if run.program == Program::Agent && run.ended.is_none() {
            self.shared.agent_running.send_replace(true);
        }
        self.environments.insert(name.to_owned(), env);
        self.runs.insert(name.to_owned(), run);
        self.publish();
    }

    fn new_run(&self, name: &str, program: Program) -> Run {
        let before = self.runs.get(name);
        Run {
            container_id: format!(
                "containerd://{}{}",
                uuid::Uuid::new_v4().simple(),
                uuid::Uuid::new_v4().simple()
            ),
            program,
            restarts: before.map_or(0, |run| run.restarts + 1),
            started: Timestamp::now(),
            ended: None,
            last: before.and_then(|run| run.ended.clone()),
            waited: before.map_or(Duration::ZERO, |run| run.back_off),
            back_off: Duration::ZERO,
        }
    }

    async fn spawn(
        &mut self,
        pod: &Pod,
        container: &Container,
        run: &mut Run,
        env: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let log = logs::path(&self.shared.logs(&pod.namespace, &pod.name, &pod.uid), &container.name);
        logs::begin(&log);
        let spec = process::spec(&self.shared, pod, container, run, env.clone(), log.clone());
        let interactive = container.stdin && matches!(run.program, Program::Host(_));
        let started = if interactive || (container.tty && matches!(run.program, Program::Host(_))) {
            let terminal = container.tty.then_some((80, 24));
            match self.shared.holder.spawn_attached(spec, Streams { stdin: container.stdin, terminal }).await
            {
                Ok(attached) => {
                    let pid = attached.pid;
                    match Console::start(attached, container.tty, log) {
                        Ok(console) => {
                            self.consoles.insert(container.name.clone(), Arc::new(console));
                        }
                        Err(error) => warn!(pod = pod.name, %error, "did not take a container's streams"),
                    }
                    Ok(pid)
                }
                Err(error) => Err(error),
            }
        } else {
            self.shared.holder.spawn(spec).await
        };
        match started {
            Ok(pid) => {
                if !run.program.is_ours() {
                    sandbox::name_itself(pid, pod, &self.addresses());
                }
                debug!(pod = pod.name, container = container.name, pid, "started a container");
                Ok(())
            }
            Err(error) if error.kind() == Some(RefusalKind::NotRunnable) => {
                let now = Timestamp::now();
                run.ended = Some(Ended {
                    container_id: run.container_id.clone(),
                    code: 128,
                    reason: "StartError".into(),
                    message: error.to_string(),
                    started: now,
                    finished: now,
                });
                run.back_off = run.program.back_off(run.waited, Duration::ZERO);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Says once what a container really is.
    fn announce(&mut self, pod: &Pod, container: &Container, program: &Program) {
        let Program::StandIn(why) = program else {
            let message = format!("Started container {}", container.name);
            self.shared.events.normal(pod, &container.name, "Started", message);
            return;
        };
        let is_main = pod.containers.iter().any(|main| main.name == container.name);
        if !is_main || !self.announced.insert(container.name.clone()) {
            return;
        }
        let message = match why {
            StandIn::NoCommand => format!(
                "Image \"{}\" is not pulled in this lab: container {} is a stand-in that only waits; \
                 give a command that the host has to run one",
                container.image, container.name
            ),
            StandIn::NoProgram(program) => format!(
                "The host has no program \"{program}\": container {} is a stand-in that only waits; \
                 install it on the host or give another command",
                container.name
            ),
        };
        self.shared.events.normal(pod, &container.name, "StandIn", message);
    }

    fn block(&mut self, name: &str, reason: &str, message: String) {
        let now = Timestamp::now();
        let retry = now.checked_add(RETRY * 2).unwrap_or(now);
        self.blocked.insert(name.to_owned(), Blocked { reason: reason.to_owned(), message, retry });
    }

    async fn environment(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<BTreeMap<String, String>, String> {
        let mut sources = Sources {
            node: self.shared.node.name.clone(),
            host_ip: self.shared.node.address.addr().to_string(),
            pod_ips: self.addresses(),
            ..Sources::default()
        };
        let (config_maps, secrets) = environment::needs(container);
        for (names, plural, found) in [
            (config_maps, "configmaps", &mut sources.config_maps),
            (secrets, "secrets", &mut sources.secrets),
        ] {
            for name in names {
                let path = format!("/api/v1/namespaces/{}/{plural}/{name}", pod.namespace);
                match self.shared.api.get(&path).await {
                    Ok(object) => {
                        found.insert(name, object);
                    }
                    Err(error) if code(&error) == Some(404) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        let hostname = if pod.host_network { &self.shared.node.name } else { &pod.hostname };
        let base = environment::base(hostname, &self.shared.cluster.service_address(1).to_string());
        environment::build(pod, container, base, &sources)
    }

    fn addresses(&self) -> Vec<String> {
        self.connected.as_ref().map(|record| record.addresses(&self.shared)).unwrap_or_default()
    }

    async fn signal_all(&self, signal: Signal) {
        for (name, run) in &self.runs {
            if run.ended.is_some() {
                continue;
            }
            let process = self.shared.process(&self.uid, name);
            if let Err(error) = self.shared.holder.signal(&process, signal.as_raw()).await {
                debug!(pod = self.key.1, container = name, %error, "did not signal");
            }
        }
    }

    async fn delete(&mut self) {
        let (namespace, name) = &self.key;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}});
        match self.shared.api.delete(&path, &options).await {
            Ok(_) => self.pod = None,
            Err(error) if matches!(code(&error), Some(404 | 409)) => self.pod = None,
            Err(error) => {
                debug!(pod = name, %error, "did not delete");
                let now = Timestamp::now();
                self.retry = Some(now.checked_add(RETRY).unwrap_or(now));
            }
        }
    }

    /// Tells the API what changed.
    async fn tell(&mut self, network: &agent::State) {
        self.retell = false;
        let Some(pod) = self.pod.clone() else { return };
        // The end of a pod's life was told by the kubelet that saw it.
        if pod.finished && self.runs.is_empty() {
            return;
        }
        let host_ip = self.shared.node.address.addr().to_string();
        let addresses = self.addresses();
        let attachment = self
            .connected
            .as_ref()
            .filter(|record| record.network.is_some())
            .map(|record| record.id.as_str());
        let patch = status::patch(&Observed {
            now: Timestamp::now(),
            pod: &pod,
            runs: &self.runs,
            blocked: &self.blocked,
            host_ip: &host_ip,
            pod_ips: &addresses,
            attachment,
            agent_ready: network.agent_ready,
            told: &self.told,
        });
        if patch == self.told_patch {
            return;
        }
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace, pod.name);
        match self.shared.api.patch(&path, &patch).await {
            Ok(_) => {
                self.told = patch.get("status").cloned().unwrap_or(Value::Null);
                self.told_patch = patch;
            }
            // Gone, or another pod of the same name: the watch says more.
            Err(error) if matches!(code(&error), Some(404 | 409)) => self.told_patch = patch,
            Err(error) => {
                debug!(pod = pod.name, %error, "did not tell a pod's status");
                self.retell = true;
            }
        }
    }

    /// Shows the server of logs and exec what there is.
    fn publish(&self) {
        let Some(pod) = &self.pod else {
            let mut pods = self.shared.pods();
            if pods.get(&self.key).is_some_and(|entry| entry.pod.uid == self.uid) {
                pods.remove(&self.key);
            }
            return;
        };
        let containers = self
            .runs
            .iter()
            .map(|(name, run)| {
                let entry = ContainerEntry {
                    started: Some(run.started),
                    running: run.ended.is_none(),
                    restarted: run.last.is_some(),
                    env: self.environments.get(name).cloned().unwrap_or_default(),
                    console: self.consoles.get(name).cloned(),
                };
                (name.clone(), entry)
            })
            .collect();
        let entry = PodEntry { pod: pod.clone(), sandbox: self.record.is_some(), containers };
        self.shared.pods().insert(self.key.clone(), entry);
    }

    /// Removes the last traces.
    async fn end(mut self) {
        self.pod = None;
        self.publish();
        for (name, run) in &self.runs {
            if run.program == Program::Agent {
                self.shared.agent_running.send_replace(false);
            }
            let process = self.shared.process(&self.uid, name);
            // One whose end the holder has not seen yet is forgotten when it has.
            let _ = self.shared.holder.forget(&process).await;
        }
        let logs = self.shared.logs(&self.key.0, &self.key.1, &self.uid);
        if let Err(error) = std::fs::remove_dir_all(&logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            debug!(path = %logs.display(), %error, "did not remove logs");
        }
        info!(pod = self.key.1, namespace = self.key.0, "a pod is gone");
    }
}

/// An init container that ended well before this kubelet began.
fn completed(ended: Ended) -> Run {
    Run {
        container_id: ended.container_id.clone(),
        program: Program::StandIn(StandIn::NoCommand),
        restarts: 0,
        started: ended.started,
        ended: Some(ended),
        last: None,
        waited: Duration::ZERO,
        back_off: Duration::ZERO,
    }
}
