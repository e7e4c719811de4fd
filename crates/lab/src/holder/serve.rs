//! The holder inside: takes requests one at a time, reaps, and tells the watchers.

use super::namespaces::{self, Neighbours, Set};
use super::protocol::{
    Answer, Call, Endpoint, Exit, LINE_LIMIT, ListenSpec, NamespaceSpec, Network, ProcessSpec, ProcessState,
    Refusal, RefusalKind, Request, Streams,
};
use super::startup::{Options, SAYS_READY, say};
use super::{SOCKET, mounts, passing, process};
use anyhow::{Context as _, Result};
use futures::{SinkExt as _, StreamExt as _};
use rustix::process::{Pid, Signal, WaitOptions};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::codec::{Framed, LinesCodec};
use tracing::{debug, info, warn};

/// States that a watcher may fall behind before it is cut off.
const WATCHER_QUEUE: usize = 1024;

/// A process and what belongs to it.
#[derive(Debug)]
struct Process {
    state: ProcessState,
    set: Option<String>,
}

#[derive(Debug)]
struct Listener {
    file: OwnedFd,
    address: String,
}

#[derive(Debug)]
struct Watcher {
    prefix: String,
    states: mpsc::Sender<ProcessState>,
}

#[derive(Debug, Default)]
struct Kept {
    processes: BTreeMap<String, Process>,
    sets: BTreeMap<String, Arc<Set>>,
    /// Names of sets that are being made.
    reserved: BTreeSet<String>,
    listeners: BTreeMap<String, Listener>,
    watchers: Vec<Watcher>,
    confined: Option<Arc<OwnedFd>>,
}

/// What all connections share. The lock is never held while waiting.
#[derive(Clone, Debug, Default)]
struct Holder {
    kept: Arc<Mutex<Kept>>,
    stop: Arc<tokio::sync::Notify>,
}

type Reply = Result<Value, Refusal>;

pub(super) fn run(options: &Options) -> Result<()> {
    let _reserved = process::reserve_descriptors().context("reserving descriptors")?;
    mounts::prepare_lab()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the holder's runtime")?;
    runtime.block_on(serve(options))
}

async fn serve(options: &Options) -> Result<()> {
    let mut children = signal(SignalKind::child()).context("watching children")?;
    // No other signal is listened to: what the first process of the lab does not listen to, the kernel keeps from it,
    // and a pod's `kill 1` would end the lab. It ends by a request, or by SIGKILL from outside.
    let confined = namespaces::on_own_thread(namespaces::confined_mounts);
    let confined = confined.await.context("preparing the pods' mounts")??;

    let path = options.directory.join(SOCKET);
    // A socket left by a lab that was killed; a living one is excluded by the lock of whoever starts us.
    let _ = std::fs::remove_file(&path);
    let listener =
        crate::unix_socket::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).context("guarding the socket")?;
    if let Some((user, group)) = options.owner {
        std::os::unix::fs::chown(&path, Some(user), Some(group)).context("giving the socket to its owner")?;
    }
    listener.set_nonblocking(true).context("listening without blocking")?;
    let listener = tokio::net::UnixListener::from_std(listener).context("listening")?;

    let holder = Holder::default();
    holder.kept().confined = Some(Arc::new(confined));
    info!(path = %path.display(), "holding");
    say(SAYS_READY);
    // Whoever waited knows now; the pipe must not stay open in the lab.
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        rustix::stdio::dup2_stdout(null).context("closing standard output")?;
    }
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let holder = holder.clone();
                    tokio::spawn(async move { holder.converse(stream).await });
                }
                Err(error) => warn!(%error, "did not accept a connection"),
            },
            _ = children.recv() => holder.reap(),
            () = holder.stop.notified() => break,
        }
    }
    info!("ending the lab");
    let _ = std::fs::remove_file(&path);
    Ok(())
}

impl Holder {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A poisoned lock is no reason to end: the holder outlives everything.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of every child that ended.
    fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let exit = Exit {
                code: status.exit_status(),
                signal: status.terminating_signal(),
                finished: jiff::Timestamp::now(),
            };
            self.kept().ended(pid, exit);
        }
    }

    /// Answers the requests of one connection, in any order.
    async fn converse(&self, stream: UnixStream) {
        let (answers, mut outgoing) = mpsc::channel::<String>(64);
        let mut lines = Framed::new(stream, LinesCodec::new_with_max_length(LINE_LIMIT));
        loop {
            let line = tokio::select! {
                line = lines.next() => line,
                Some(answer) = outgoing.recv() => {
                    if lines.send(answer).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let Some(Ok(line)) = line else { return };
            let request: Request = match serde_json::from_str(&line) {
                Ok(request) => request,
                Err(error) => {
                    warn!(%error, "did not understand a request");
                    return;
                }
            };
            match request.call {
                Call::Watch { prefix } => return self.watch(&mut lines, prefix).await,
                Call::SpawnAttached(spec, streams) => {
                    return self.spawn_attached(lines.get_ref(), request.number, spec, streams).await;
                }
                call => {
                    let (holder, answers) = (self.clone(), answers.clone());
                    tokio::spawn(async move {
                        let outcome = holder.perform(call).await;
                        if let Err(refusal) = &outcome {
                            debug!(kind = ?refusal.kind, message = %refusal.message, "refused");
                        }
                        let answer = Answer { number: request.number, outcome };
                        if let Ok(line) = serde_json::to_string(&answer) {
                            // The one who asked may be gone.
                            let _ = answers.send(line).await;
                        }
                    });
                }
            }
        }
    }

    async fn watch(&self, lines: &mut Framed<UnixStream, LinesCodec>, prefix: String) {
        let (sender, mut states) = mpsc::channel(WATCHER_QUEUE);
        let present = {
            let mut kept = self.kept();
            let present = kept.list(&prefix);
            kept.watchers.push(Watcher { prefix, states: sender });
            present
        };
        for state in present {
            if !send_state(lines, &state).await {
                return;
            }
        }
        loop {
            tokio::select! {
                state = states.recv() => match state {
                    Some(state) if send_state(lines, &state).await => {}
                    _ => return,
                },
                // Nothing more is said by a watcher: this is its end.
                _ = lines.next() => return,
            }
        }
    }

    async fn spawn_attached(&self, stream: &UnixStream, number: u64, spec: ProcessSpec, streams: Streams) {
        let started = self.kept().spawn(spec, Some(streams));
        let (outcome, files) = match started {
            Ok((pid, files)) => (Ok(json!(pid)), files),
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        let Ok(mut line) = serde_json::to_vec(&Answer { number, outcome }) else { return };
        line.push(b'\n');
        let files: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        if let Err(error) = passing::send(stream, &line, &files).await {
            warn!(%error, "did not hand over a process's streams");
        }
    }

    async fn perform(&self, call: Call) -> Reply {
        match call {
            Call::Spawn(spec) => self.kept().spawn(spec, None).map(|(pid, _)| json!(pid)),
            Call::Signal { id, signal } => self.kept().signal(&id, signal),
            Call::List { prefix } => Ok(json!(self.kept().list(&prefix))),
            Call::Forget { id } => self.kept().forget(&id),
            Call::CreateNamespaces(spec) => self.create_namespaces(spec).await,
            Call::DeleteNamespaces { name } => self.delete_namespaces(name).await,
            Call::ListNamespaces { prefix } => {
                let kept = self.kept();
                let names: Vec<&String> = kept.sets.keys().filter(|name| name.starts_with(&prefix)).collect();
                Ok(json!(names))
            }
            Call::Listen(spec) => self.listen(spec).await,
            Call::CloseListener { name } => {
                self.kept().listeners.remove(&name);
                Ok(Value::Null)
            }
            Call::ListListeners => {
                let kept = self.kept();
                let listeners: BTreeMap<&String, &String> =
                    kept.listeners.iter().map(|(name, listener)| (name, &listener.address)).collect();
                Ok(json!(listeners))
            }
            Call::Shutdown => {
                self.stop.notify_one();
                Ok(Value::Null)
            }
            Call::Watch { .. } | Call::SpawnAttached(..) => {
                Err(refuse(RefusalKind::Invalid, "this needs a connection of its own"))
            }
        }
    }

    async fn create_namespaces(&self, spec: NamespaceSpec) -> Reply {
        let short = namespaces::short_name(&spec.name)?.to_owned();
        let name = spec.name.clone();
        let neighbours = self.kept().reserve(&spec, &short)?;
        let made = namespaces::on_own_thread(move || namespaces::make(&spec, &neighbours)).await;
        let mut kept = self.kept();
        kept.reserved.remove(&short);
        match made {
            Ok(Ok(set)) => {
                kept.sets.insert(name, Arc::new(set));
                Ok(Value::Null)
            }
            Ok(Err(error)) => Err(refuse(RefusalKind::Failed, format!("namespaces {name}: {error:#}"))),
            Err(_) => {
                Err(refuse(RefusalKind::Failed, format!("namespaces {name}: no thread could be started")))
            }
        }
    }

    async fn delete_namespaces(&self, name: String) -> Reply {
        let short = namespaces::short_name(&name)?.to_owned();
        let (set, started) = {
            let mut kept = self.kept();
            let Some(set) = kept.sets.remove(&name) else { return Ok(Value::Null) };
            // Until all of it is gone the name is taken.
            kept.reserved.insert(short.clone());
            let running = |process: &&Process| {
                process.state.is_running() && process.set.as_deref() == Some(name.as_str())
            };
            let started: Vec<i32> =
                kept.processes.values().filter(running).map(|process| process.state.pid).collect();
            (set, started)
        };
        // The kernel takes milliseconds to let namespaces go; others need not wait for that.
        let removed = short.clone();
        let gone = namespaces::on_own_thread(move || {
            for pid in started.into_iter().chain(process::members(&set)).filter_map(Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            namespaces::remove(&removed);
            Ok(())
        });
        let _ = gone.await;
        self.kept().reserved.remove(&short);
        Ok(Value::Null)
    }

    async fn listen(&self, spec: ListenSpec) -> Reply {
        if spec.name.is_empty() || spec.name.contains(':') {
            return Err(refuse(RefusalKind::Invalid, format!("{:?} is no name for a listener", spec.name)));
        }
        let network = {
            let kept = self.kept();
            if let Some(listener) = kept.listeners.get(&spec.name) {
                return Ok(json!(listener.address));
            }
            match &spec.endpoint {
                Endpoint::Tcp { namespaces: Some(name), .. } => kept.set(name)?.network.clone(),
                Endpoint::Tcp { .. } | Endpoint::Unix { .. } => None,
            }
        };
        let endpoint = spec.endpoint.clone();
        let opened = namespaces::on_own_thread(move || open_listener(&endpoint, network.as_deref())).await;
        let listener = match opened {
            Ok(Ok(listener)) => listener,
            Ok(Err(error)) => {
                return Err(refuse(RefusalKind::Failed, format!("listener {}: {error:#}", spec.name)));
            }
            Err(_) => return Err(refuse(RefusalKind::Failed, "no thread could be started")),
        };
        let address = listener.address.clone();
        self.kept().listeners.insert(spec.name, listener);
        Ok(json!(address))
    }
}

async fn send_state(lines: &mut Framed<UnixStream, LinesCodec>, state: &ProcessState) -> bool {
    match serde_json::to_string(state) {
        Ok(line) => lines.send(line).await.is_ok(),
        Err(_) => false,
    }
}

impl Kept {
    fn list(&self, prefix: &str) -> Vec<ProcessState> {
        self.processes
            .values()
            .filter(|process| process.state.id.starts_with(prefix))
            .map(|process| process.state.clone())
            .collect()
    }

    fn set(&self, name: &str) -> Result<&Arc<Set>, Refusal> {
        self.sets.get(name).ok_or_else(|| refuse(RefusalKind::NotFound, format!("no namespaces {name}")))
    }

    fn spawn(&mut self, spec: ProcessSpec, streams: Option<Streams>) -> Result<(i32, Vec<OwnedFd>), Refusal> {
        if self.processes.get(&spec.id).is_some_and(|process| process.state.is_running()) {
            return Err(refuse(RefusalKind::Exists, format!("{} is running already", spec.id)));
        }
        if spec.id.is_empty() || spec.listeners.len() > process::LISTENERS {
            let message = format!("a process needs a name and at most {} listeners", process::LISTENERS);
            return Err(refuse(RefusalKind::Invalid, message));
        }
        let set = match &spec.namespaces {
            Some(name) => Some(self.set(name)?.clone()),
            None => None,
        };
        let mut listeners = Vec::new();
        for name in &spec.listeners {
            let listener = self.listeners.get(name);
            let listener =
                listener.ok_or_else(|| refuse(RefusalKind::NotFound, format!("no listener {name}")))?;
            listeners.push(listener.file.as_fd());
        }
        let (pid, files) = process::start(&spec, streams, set.as_deref(), &listeners)?;
        let state = ProcessState {
            id: spec.id.clone(),
            pid,
            started: jiff::Timestamp::now(),
            exit: None,
            labels: spec.labels,
        };
        debug!(id = %spec.id, pid, program = spec.argv.first(), "started");
        self.tell(&state);
        self.processes.insert(spec.id, Process { state, set: spec.namespaces });
        Ok((pid, files))
    }

    fn ended(&mut self, pid: Pid, exit: Exit) {
        let raw = pid.as_raw_nonzero().get();
        let ended = self
            .processes
            .values_mut()
            .find(|process| process.state.pid == raw && process.state.is_running());
        let Some(process) = ended else { return };
        process.state.exit = Some(exit);
        let state = process.state.clone();
        debug!(id = %state.id, pid = raw, code = exit.code, signal = exit.signal, "ended");
        // What it started in its session goes with it, as in a container.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        self.tell(&state);
    }

    fn tell(&mut self, state: &ProcessState) {
        self.watchers.retain(|watcher| {
            if !state.id.starts_with(&watcher.prefix) {
                return !watcher.states.is_closed();
            }
            // A watcher that cannot keep up is cut off and has to begin again.
            watcher.states.try_send(state.clone()).is_ok()
        });
    }

    fn signal(&self, id: &str, number: i32) -> Reply {
        let running = self.processes.get(id).filter(|process| process.state.is_running());
        let process =
            running.ok_or_else(|| refuse(RefusalKind::NotFound, format!("no process {id} runs")))?;
        let signal = Signal::from_named_raw(number)
            .ok_or_else(|| refuse(RefusalKind::Invalid, format!("{number} is no signal")))?;
        if let Some(pid) = Pid::from_raw(process.state.pid) {
            rustix::process::kill_process_group(pid, signal)
                .map_err(|error| refuse(RefusalKind::Failed, format!("signal {number} to {id}: {error}")))?;
        }
        Ok(Value::Null)
    }

    fn forget(&mut self, id: &str) -> Reply {
        match self.processes.get(id) {
            None => Err(refuse(RefusalKind::NotFound, format!("no process {id}"))),
            Some(process) if process.state.is_running() => {
                Err(refuse(RefusalKind::Exists, format!("{id} is running")))
            }
            Some(_) => {
                self.processes.remove(id);
                Ok(Value::Null)
            }
        }
    }

    fn reserve(&mut self, spec: &NamespaceSpec, short: &str) -> Result<Neighbours, Refusal> {
        let taken = self.sets.keys().any(|name| name.rsplit('/').next() == Some(short));
        if taken || self.reserved.contains(short) {
            return Err(refuse(RefusalKind::Exists, format!("namespaces {} exist already", spec.name)));
        }
        let mut neighbours = Neighbours { confined: self.confined.clone(), ..Neighbours::default() };
        match &spec.network {
            Network::SameAs(Some(name)) => neighbours.shared = self.set(name)?.network.clone(),
            Network::Uplink { underlay, .. } => neighbours.underlay = self.set(underlay)?.network.clone(),
            Network::SameAs(None) | Network::Empty | Network::Bridge { .. } => {}
        }
        self.reserved.insert(short.to_owned());
        Ok(neighbours)
    }
}

fn open_listener(endpoint: &Endpoint, network: Option<&OwnedFd>) -> Result<Listener> {
    match endpoint {
        Endpoint::Tcp { address, .. } => {
            if let Some(network) = network {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(network.as_fd(), Some(kind))
                    .context("entering the namespace")?;
            }
            let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
            let address = listener.local_addr().context("reading the address")?.to_string();
            Ok(Listener { file: listener.into(), address })
        }
        Endpoint::Unix { path } => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
            }
            let _ = std::fs::remove_file(path);
            let listener: UnixListener =
                crate::unix_socket::bind(path).with_context(|| format!("listening on {}", path.display()))?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                .with_context(|| format!("guarding {}", path.display()))?;
            debug!(path = %path.display(), descriptor = listener.as_raw_fd(), "listening");
            Ok(Listener { file: listener.into(), address: path.display().to_string() })
        }
    }
}

fn refuse(kind: RefusalKind, message: impl Into<String>) -> Refusal {
    Refusal { kind, message: message.into() }
}
