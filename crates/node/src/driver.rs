//! Drives the batcher: feeds it requests, watches and results, and does what it says.
//!
//! One task owns the [`Agent`]. Whatever waits is taken in together before the next plan, so that a burst of requests
//! becomes one batch. Commits and reads run as tasks of their own and come back as events.

use crate::health::{Count, Health, Part};
use crate::registry::Registry;
use crate::releases::{Admitted, Releases};
use crate::silence::Silence;
use api::attachment::{AddRequest, Attachment, DelRequest, ErrorReply, StatusRequest};
use api::{IpVersion, Node, Pool};
use dataplane::{BlockUse, Endpoint, NodeAddresses};
use datastore::backend::Backend;
use datastore::follow::{Change, follow};
use datastore::gate::Gate;
use datastore::{CommitError, Datastore as _, Kind, ReadError, Record};
use futures::stream::{BoxStream, SelectAll, StreamExt as _};
use futures::{FutureExt as _, stream};
use ipam::agent::{Agent, Demand, Effect, Event, Note, Reply, RequestId, Surrender, TRY_AGAIN};
use ipam::release_queue;
use ipam::servable::{Room, Surroundings, hindrance};
use ipam::takeover::{Predecessor, predecessors};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{debug, error, info, warn};

/// Requests taken in by one plan at most; the rest waits its turn.
const INTAKE: usize = 512;

/// What others ask of the driver.
#[derive(Debug)]
pub(crate) enum Input {
    /// A CNI ADD.
    Add(AddRequest, oneshot::Sender<Reply>),
    /// A CNI DEL.
    Del(DelRequest, oneshot::Sender<Reply>),
    /// An address for the node itself.
    Demand(Demand, oneshot::Sender<Reply>),
    /// Its return.
    Surrender(Surrender, oneshot::Sender<Reply>),
    /// What is known now.
    Look(oneshot::Sender<Sight>),
    /// What earlier sandboxes of a pod hold.
    Predecessors(Demand, oneshot::Sender<Vec<Predecessor>>),
    /// What keeps such ADDs from being served by what is known of pools and blocks.
    Servable(StatusRequest, oneshot::Sender<Option<String>>),
    /// A result came back.
    Event(Event),
    /// An ADD that waited for releases before it.
    Admitted(AddRequest, oneshot::Sender<Reply>),
    /// An ADD whose namespace was looked up, or not.
    Located(AddRequest, Result<BTreeMap<String, String>, String>, oneshot::Sender<Reply>),
}

/// What routing and the tunnel address are computed from, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sight {
    /// Everything has been listed once.
    pub(crate) complete: bool,
    /// Nothing may be written: the datastore is being migrated.
    pub(crate) locked: bool,
    /// The node's own record.
    pub(crate) node: Option<Node>,
    /// All nodes' addresses by name.
    pub(crate) nodes: BTreeMap<String, NodeAddresses>,
    /// All pools.
    pub(crate) pools: Vec<Pool>,
    /// All blocks.
    pub(crate) blocks: Vec<BlockUse>,
    /// Pods of this node.
    pub(crate) endpoints: BTreeSet<Endpoint>,
}

/// Way to the driver.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    inputs: mpsc::Sender<Input>,
    /// Told whenever something was learnt.
    pub(crate) changed: Arc<Notify>,
}

impl Door {
    /// Sends a request in and waits for its answer.
    pub(crate) async fn ask(&self, input: impl FnOnce(oneshot::Sender<Reply>) -> Input) -> Reply {
        let (sender, receiver) = oneshot::channel();
        let gone = || {
            let message = "the agent is ending; try again".to_owned();
            Reply::Failed(ErrorReply { code: TRY_AGAIN, message, details: String::new() })
        };
        if self.inputs.send(input(sender)).await.is_err() {
            return gone();
        }
        receiver.await.unwrap_or_else(|_| gone())
    }

    /// What earlier sandboxes of the pod hold in the node's blocks.
    pub(crate) async fn predecessors(&self, demand: Demand) -> Vec<Predecessor> {
        let (sender, receiver) = oneshot::channel();
        if self.inputs.send(Input::Predecessors(demand, sender)).await.is_err() {
            return Vec::new();
        }
        receiver.await.unwrap_or_default()
    }

    /// What of the pools and blocks keeps such an ADD from being served; `None`: nothing.
    pub(crate) async fn hindrance(&self, request: StatusRequest) -> Option<String> {
        let (sender, receiver) = oneshot::channel();
        let ending = || Some("the agent is ending".to_owned());
        if self.inputs.send(Input::Servable(request, sender)).await.is_err() {
            return ending();
        }
        receiver.await.unwrap_or_else(|_| ending())
    }

    /// What is known now.
    pub(crate) async fn look(&self) -> Option<Sight> {
        let (sender, receiver) = oneshot::channel();
        self.inputs.send(Input::Look(sender)).await.ok()?;
        receiver.await.ok()
    }
}

/// Who waits for the answer to a request, and what it is about.
struct Waiter {
    sender: oneshot::Sender<Reply>,
    about: About,
}

enum About {
    /// An ADD of this attachment.
    Add(Attachment),
    /// A DEL, which may be queued.
    Del(Attachment, Surrender),
    /// The node's own address.
    Node,
}

/// The driver of one node's batcher.
pub(crate) struct Driver {
    agent: Agent,
    node: String,
    store: Gate<Backend>,
    registry: Registry,
    health: Arc<Health>,
    inputs: mpsc::Receiver<Input>,
    /// For results, which must never wait for room.
    results: mpsc::UnboundedReceiver<Input>,
    back: mpsc::UnboundedSender<Input>,
    changed: Arc<Notify>,
    releases: Releases,
    queue: mpsc::UnboundedReceiver<release_queue::Event>,
    waiting: BTreeMap<RequestId, Waiter>,
    nodes: BTreeMap<String, Node>,
    /// It was said that the datastore does not answer.
    lost: bool,
    silence: Silence,
    next: u64,
}

impl Driver {
    pub(crate) fn new(
        node: &str,
        store: Backend,
        registry: Registry,
        (releases, queue): (Releases, mpsc::UnboundedReceiver<release_queue::Event>),
        health: Arc<Health>,
    ) -> (Self, Door) {
        let (sender, inputs) = mpsc::channel(INTAKE);
        let (back, results) = mpsc::unbounded_channel();
        let changed = Arc::new(Notify::new());
        let driver = Self {
            agent: Agent::new(node),
            node: node.to_owned(),
            store: Gate::new(store),
            registry,
            health,
            inputs,
            results,
            back,
            changed: Arc::clone(&changed),
            releases,
            queue,
            waiting: BTreeMap::new(),
            nodes: BTreeMap::new(),
            lost: false,
            silence: Silence::default(),
            next: 0,
        };
        (driver, Door { inputs: sender, changed })
    }

    /// Runs until every [`Door`] is gone.
    pub(crate) async fn run(mut self) {
        let mut feeds: SelectAll<BoxStream<'static, (Kind, Change)>> =
            stream::select_all(self.agent.scopes().into_iter().map(|scope| {
                let kind = scope.kind();
                follow(self.store.clone(), scope).map(move |change| (kind, change)).boxed()
            }));
        loop {
            let mut events = Vec::new();
            let silent = self.silence.end().filter(|_| !self.health.is_away());
            let deadlines = [self.agent.next_deadline(), self.releases.next_deadline(), silent];
            let due = deadlines.into_iter().flatten().min().map(|at| {
                let left = at.duration_since(Timestamp::now());
                Duration::try_from(left).unwrap_or_default()
            });
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => self.take(input, &mut events),
                    None => return,
                },
                Some(result) = self.results.recv() => self.take(result, &mut events),
                Some(event) = self.queue.recv() => self.queued(event, &mut events),
                Some((kind, change)) = feeds.next() => self.learn(kind, change, &mut events),
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {
                    events.push(Event::Tick);
                    self.queued(release_queue::Event::Tick, &mut events);
                }
            }
            // Whatever else is there already is planned together with it.
            while events.len() < INTAKE {
                if let Ok(result) = self.results.try_recv() {
                    self.take(result, &mut events);
                } else if let Some(Some((kind, change))) = feeds.next().now_or_never() {
                    self.learn(kind, change, &mut events);
                } else if let Ok(input) = self.inputs.try_recv() {
                    self.take(input, &mut events);
                } else {
                    break;
                }
            }
            self.step(events);
        }
    }

    fn step(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let ticks_only = events.iter().all(|event| matches!(event, Event::Tick));
        let effects = self.agent.steps(Timestamp::now(), events);
        let mut admitted = Vec::new();
        for effect in effects {
            admitted.extend(self.perform(effect));
        }
        let lost = self.agent.view().is_lost();
        self.health.set_lost(lost);
        if self.agent.waiting() == 0 {
            self.silence.rest();
        }
        self.health.set_away(lost || self.silence.is_long(Timestamp::now()));
        let locked = self.agent.view().is_locked();
        let unlocked = self.health.set_locked(locked) && !locked;
        let mut reachable = unlocked;
        if self.lost && !lost {
            self.lost = false;
            info!(node = self.node, "reached the datastore again");
            reachable = true;
        }
        if self.agent.view().is_complete() && self.health.set_up(Part::Warm) {
            info!(node = self.node, "read the datastore");
            // What an earlier agent left owed begins here.
            reachable = true;
        }
        if reachable {
            admitted.extend(self.releases.step(release_queue::Event::Reachable));
        }
        self.readmit(admitted);
        if !ticks_only {
            // Remembered for a listener that is busy.
            self.changed.notify_one();
        }
    }

    fn learn(&mut self, kind: Kind, change: Change, events: &mut Vec<Event>) {
        if let Change::Lost(error) = &change {
            // Every watch says so; once is enough.
            if std::mem::replace(&mut self.lost, true) {
                debug!(%error, "still without datastore");
            } else {
                warn!(%error, "lost the datastore");
            }
        }
        if kind == Kind::Node {
            self.learn_nodes(&change);
        }
        events.push(Event::Changed(kind, change));
    }

    /// Keeps all nodes for routing; the batcher keeps its own only.
    fn learn_nodes(&mut self, change: &Change) {
        match change {
            Change::Reset(listing) => {
                self.nodes = listing
                    .items
                    .iter()
                    .filter_map(|stored| match &stored.record {
                        Record::Node(node) => Some((node.name.clone(), node.clone())),
                        _ => None,
                    })
                    .collect();
            }
            Change::Put(stored) => {
                if let Record::Node(node) = &stored.record {
                    self.nodes.insert(node.name.clone(), node.clone());
                }
            }
            Change::Deleted(datastore::Key::Node(name), _) => {
                self.nodes.remove(name);
            }
            Change::Deleted(..) | Change::Unreadable(..) | Change::Progress(_) | Change::Lost(_) => {}
        }
    }

    fn take(&mut self, input: Input, events: &mut Vec<Event>) {
        match input {
            Input::Event(event) => {
                self.hear(&event);
                events.push(event);
            }
            Input::Predecessors(demand, sender) => {
                let blocks = self.agent.view().own_blocks().map(|seen| &seen.value);
                let _ = sender.send(predecessors(blocks, &demand));
            }
            Input::Servable(request, sender) => {
                let _ = sender.send(self.hindrance(&request));
            }
            Input::Look(sender) => {
                // Nobody may be waiting any more.
                let _ = sender.send(self.sight());
            }
            Input::Add(request, sender) => {
                let admitted = self.releases.add(request, sender);
                self.admit(admitted, events);
            }
            Input::Admitted(request, sender) => self.admit(vec![(request, sender)], events),
            Input::Located(request, labels, sender) => match labels {
                Ok(labels) => self.add(&request, labels, sender, events),
                Err(message) => {
                    self.releases.added(&request.attachment);
                    let error = ErrorReply { code: TRY_AGAIN, message, details: String::new() };
                    let _ = sender.send(Reply::Failed(error));
                }
            },
            Input::Demand(demand, sender) => {
                let id = self.expect(sender, About::Node);
                events.push(Event::Add(id, demand));
            }
            Input::Del(request, sender) => match Surrender::pod(&request) {
                Ok(surrender) => self.del(request.attachment, surrender, sender, events),
                Err(error) => {
                    let _ = sender.send(Reply::Failed(error));
                }
            },
            Input::Surrender(surrender, sender) => {
                let id = self.expect(sender, About::Node);
                events.push(Event::Del(id, surrender));
            }
        }
    }

    /// Notes what ended by a word of the datastore.
    fn hear(&mut self, event: &Event) {
        let away = |error: &ReadError| matches!(error, ReadError::Unavailable { .. });
        let (ticket, heard) = match event {
            Event::Committed(ticket, result) => {
                let unheard = [result.as_ref().err()].into_iter().flatten().any(|error| {
                    matches!(error, CommitError::Unavailable { .. } | CommitError::Unknown { .. })
                });
                (ticket, !unheard)
            }
            Event::Read(ticket, result) => (ticket, !result.as_ref().is_err_and(away)),
            Event::Listed(ticket, result) => (ticket, !result.as_ref().is_err_and(away)),
            _ => return,
        };
        self.silence.over(ticket.0, heard, Timestamp::now());
    }

    /// What keeps such ADDs from being served, by what is known.
    fn hindrance(&self, request: &StatusRequest) -> Option<String> {
        let view = self.agent.view();
        let pools: Vec<Pool> = view.pools().cloned().collect();
        let blocks: Vec<Room> = view
            .index()
            .iter()
            .map(|(cidr, entry)| Room { cidr: *cidr, owner: entry.owner.clone(), free: entry.free })
            .collect();
        let around = Surroundings {
            owner: view.owner(),
            labels: view.labels(),
            pools: &pools,
            blocks: &blocks,
            strict_affinity: view.config().strict_affinity,
        };
        let wanted = [
            (request.ipv4, IpVersion::V4, &request.ipv4_pools),
            (request.ipv6, IpVersion::V6, &request.ipv6_pools),
        ];
        let mut wanted = wanted.into_iter().filter(|(count, _, _)| *count > 0);
        wanted.find_map(|(_, version, pools)| hindrance(&around, version, pools))
    }

    /// ADDs that no release stands before.
    fn admit(&mut self, admitted: Admitted, events: &mut Vec<Event>) {
        for (request, sender) in admitted {
            match &request.namespace {
                Some(namespace) if self.namespaces_matter() => {
                    self.locate(namespace.clone(), request, sender);
                }
                _ => self.add(&request, BTreeMap::new(), sender, events),
            }
        }
    }

    /// The same from where no plan is being made: they are taken in with the next one.
    fn readmit(&self, admitted: Admitted) {
        for (request, sender) in admitted {
            let _ = self.back.send(Input::Admitted(request, sender));
        }
    }

    /// The queue of releases hears of something.
    fn queued(&mut self, event: release_queue::Event, events: &mut Vec<Event>) {
        let admitted = self.releases.step(event);
        self.admit(admitted, events);
    }

    /// A DEL. While the datastore is known to be away, or was never seen, and nothing else of its attachment is under way, it is
    /// not tried first.
    fn del(
        &mut self,
        attachment: Attachment,
        surrender: Surrender,
        sender: oneshot::Sender<Reply>,
        events: &mut Vec<Event>,
    ) {
        let busy = self.waiting.values().any(|waiter| match &waiter.about {
            About::Add(other) | About::Del(other, _) => *other == attachment,
            About::Node => false,
        });
        let away = self.health.is_away() || !self.agent.view().is_complete();
        if away && !busy && self.releases.takes(&attachment) {
            let cluster = self.agent.view().cluster_guid().map(str::to_owned);
            let admitted = self.releases.del(&attachment, &surrender, cluster, sender);
            self.admit(admitted, events);
            return;
        }
        let id = self.expect(sender, About::Del(attachment, surrender.clone()));
        events.push(Event::Del(id, surrender));
    }

    /// Answers whoever asked; a DEL that can be made later is queued instead of refused.
    fn answer(&mut self, request: RequestId, reply: Reply) -> Admitted {
        let Some(Waiter { sender, about }) = self.waiting.remove(&request) else { return Vec::new() };
        match (about, &reply) {
            (About::Del(attachment, surrender), Reply::Failed(error))
                if error.code == TRY_AGAIN && self.releases.takes(&attachment) =>
            {
                let cluster = self.agent.view().cluster_guid().map(str::to_owned);
                return self.releases.del(&attachment, &surrender, cluster, sender);
            }
            (About::Add(attachment), _) => self.releases.added(&attachment),
            _ => {}
        }
        // A plugin that was killed does not listen any more; its runtime asks again or gives back.
        let _ = sender.send(reply);
        Vec::new()
    }

    fn add(
        &mut self,
        request: &AddRequest,
        namespace_labels: BTreeMap<String, String>,
        sender: oneshot::Sender<Reply>,
        events: &mut Vec<Event>,
    ) {
        match Demand::pod(request, &self.node, Timestamp::now()) {
            Ok(demand) => {
                let id = self.expect(sender, About::Add(request.attachment.clone()));
                events.push(Event::Add(id, Demand { namespace_labels, ..demand }));
            }
            Err(error) => {
                self.releases.added(&request.attachment);
                let _ = sender.send(Reply::Failed(error));
            }
        }
    }

    fn expect(&mut self, sender: oneshot::Sender<Reply>, about: About) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        self.waiting.insert(id, Waiter { sender, about });
        id
    }

    /// Whether some pool is for some namespaces only.
    fn namespaces_matter(&self) -> bool {
        self.agent.view().pools().any(|pool| pool.namespace_selector.is_some())
    }

    /// Reads the labels of a namespace; the request goes on when they are there.
    fn locate(&self, namespace: String, request: AddRequest, sender: oneshot::Sender<Reply>) {
        let (registry, back) = (self.registry.clone(), self.back.clone());
        tokio::spawn(async move {
            let labels = registry.namespace_labels(&namespace).await;
            let labels = labels.map_err(|error| {
                format!(
                    "the labels of namespace {namespace} cannot be read, and a pool asks for them: {error}"
                )
            });
            let _ = back.send(Input::Located(request, labels, sender));
        });
    }

    /// Does what the agent says; answers ADDs that a release stood before.
    fn perform(&mut self, effect: Effect) -> Admitted {
        let (store, back) = (self.store.clone(), self.back.clone());
        match effect {
            Effect::Commit { ticket, checks, writes } => {
                self.silence.asked(ticket.0, Timestamp::now());
                self.health.count(Count::Commits);
                debug!(writes = writes.len(), checks = checks.len(), "committing");
                tokio::spawn(async move {
                    let result = store.commit(&checks, &writes).await;
                    let _ = back.send(Input::Event(Event::Committed(ticket, result)));
                });
            }
            Effect::Read { ticket, key } => {
                self.silence.asked(ticket.0, Timestamp::now());
                self.health.count(Count::Reads);
                tokio::spawn(async move {
                    let result = store.get(&key).await;
                    let _ = back.send(Input::Event(Event::Read(ticket, result)));
                });
            }
            Effect::List { ticket, scope } => {
                self.silence.asked(ticket.0, Timestamp::now());
                self.health.count(Count::Reads);
                tokio::spawn(async move {
                    let result = store.list(&scope).await;
                    let _ = back.send(Input::Event(Event::Listed(ticket, result)));
                });
            }
            Effect::Reply { request, reply } => return self.answer(request, reply),
            Effect::Note(note) => self.log(note),
        }
        Vec::new()
    }

    fn log(&self, note: Note) {
        match note {
            Note::Claimed { block } => {
                self.health.count(Count::Claimed);
                info!(node = self.node, %block, "claimed block");
            }
            Note::Reclaimed { block, owner } => {
                let owner = owner.map_or_else(|| "nobody".to_owned(), |owner| owner.to_string());
                info!(node = self.node, %block, owner, "took back unused block");
            }
            Note::LostRace { block } => info!(node = self.node, %block, "lost race for block"),
            Note::Crossed { block, other } => {
                warn!(%block, %other, "block lies in another block, nothing that both have is given out");
            }
            Note::Assigned { handle, address, block, borrowed } => {
                self.health.count(Count::Assigned);
                if borrowed {
                    info!(handle, %address, %block, "borrowed address");
                } else {
                    info!(handle, %address, %block, "assigned address");
                }
            }
            Note::Explained { request, explain } => debug!(request = request.0, %explain, "considered"),
            Note::Accounted { request, account } => debug!(request = request.0, %account, "released"),
            Note::Released { handle } => {
                self.health.count(Count::Released);
                info!(handle, "released addresses");
            }
            Note::Refused { handle, error } => {
                self.health.count(Count::Refused);
                if error.code == TRY_AGAIN {
                    warn!(handle, code = error.code, reason = error.message, "refused request for now");
                } else {
                    error!(handle, code = error.code, reason = error.message, "refused request");
                }
            }
            Note::Conflict { key } => {
                self.health.count(Count::Conflicts);
                debug!(record = %key, "record changed, planning again");
            }
            Note::Unanswered { reason } => warn!(reason, "datastore did not answer"),
        }
    }

    fn sight(&self) -> Sight {
        let view = self.agent.view();
        let blocks = view.index().iter().map(|(cidr, entry)| BlockUse {
            cidr: *cidr,
            owner: entry.owner.as_ref().map(|owner| owner.name.clone()),
            borrowed: entry.elsewhere.clone(),
        });
        Sight {
            complete: view.is_complete(),
            locked: view.is_locked(),
            node: self.nodes.get(&self.node).cloned(),
            nodes: self.nodes.iter().map(|(name, node)| (name.clone(), NodeAddresses::of(node))).collect(),
            pools: view.pools().cloned().collect(),
            blocks: blocks.collect(),
            endpoints: view
                .endpoints()
                .map(|(address, interface)| Endpoint { address, interface: interface.to_owned() })
                .collect(),
        }
    }
}
