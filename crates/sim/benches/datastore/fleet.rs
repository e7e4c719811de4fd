//! The agents of several nodes in one process, each with a connection of its own, and driven as its node drives it.
//!
//! What all of them follow is watched and decoded once here. A change of a block is handed to the agent of its owner alone: the
//! others would fold it into their index of foreign blocks, sixteen machines each for itself, and one machine that does it for
//! all would measure that in place of the store.

use api::IpVersion;
use datastore::follow::{Change, follow};
use datastore::gate::Gate;
use datastore::{Datastore, Record, Scope, Stored};
use futures::StreamExt;
use ipam::agent::{Agent, Demand, Effect, Event, Reply, RequestId, Surrender};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Events planned together at most.
const INTAKE: usize = 512;

enum Input {
    Event(Box<Event>),
    Ask(Box<dyn FnOnce(RequestId) -> Event + Send>, oneshot::Sender<Reply>),
}

/// The way to a node's agent.
#[derive(Clone)]
pub(crate) struct NodeAgent {
    node: Arc<str>,
    inputs: mpsc::UnboundedSender<Input>,
}

/// Handle and attributes of a pod, as long as a runtime makes them.
pub(crate) fn pod(node: &str, number: u32) -> (String, BTreeMap<String, String>) {
    let handle = format!("k8s-pod-network.{:0>64}", format!("{node}-{number}"));
    let attributes = [
        ("namespace", "shop".to_owned()),
        ("node", node.to_owned()),
        ("pod", format!("web-6d4cf56db6-{number:05}")),
        ("interface", "eth0".to_owned()),
        ("timestamp", "2026-08-01 10:15:31.004512 +0000 UTC".to_owned()),
    ];
    (handle, attributes.map(|(key, value)| (key.to_owned(), value)).into())
}

impl NodeAgent {
    async fn ask(&self, event: impl FnOnce(RequestId) -> Event + Send + 'static) -> Reply {
        let (sender, receiver) = oneshot::channel();
        assert!(self.inputs.send(Input::Ask(Box::new(event), sender)).is_ok(), "the agent is gone");
        receiver.await.unwrap()
    }

    /// One address for a pod.
    pub(crate) async fn add(&self, number: u32) {
        let (handle, attributes) = pod(&self.node, number);
        let demand = Demand::new(handle, vec![IpVersion::V4], attributes);
        match self.ask(|id| Event::Add(id, demand)).await {
            Reply::Added(taken) => assert_eq!(taken.len(), 1),
            other => panic!("{other:?}"),
        }
    }

    /// Back with it.
    pub(crate) async fn del(&self, number: u32) {
        let (handle, _) = pod(&self.node, number);
        let surrender = Surrender { handle, interface: None, legacy_handle: None };
        assert!(matches!(self.ask(|id| Event::Del(id, surrender)).await, Reply::Deleted));
    }
}

/// Starts an agent for each node over its store, and waits until all have read everything.
pub(crate) async fn start<D: Datastore + Clone + 'static>(
    nodes: &[(String, D)],
    over: &Arc<AtomicBool>,
) -> Vec<NodeAgent> {
    let (mut doors, mut ready) = (Vec::new(), Vec::new());
    for (node, store) in nodes {
        let (inputs, received) = mpsc::unbounded_channel();
        let (complete, completed) = watch::channel(false);
        let store = Gate::new(store.clone());
        tokio::spawn(drive(Agent::new(node), store, received, inputs.clone(), complete));
        doors.push(NodeAgent { node: node.as_str().into(), inputs });
        ready.push(completed);
    }
    let (_, first) = &nodes[0];
    let all: BTreeMap<String, mpsc::UnboundedSender<Input>> =
        nodes.iter().zip(&doors).map(|((node, _), door)| (node.clone(), door.inputs.clone())).collect();
    for scope in Agent::new(&nodes[0].0).scopes() {
        match scope {
            Scope::AffinitiesOf(_) => {
                for (node, store) in nodes {
                    let own = Scope::AffinitiesOf(api::Owner::host(node));
                    let to = BTreeMap::from([(node.clone(), all[node].clone())]);
                    tokio::spawn(feed(store.clone(), own, to, Arc::clone(over)));
                }
            }
            scope @ Scope::All(_) => {
                tokio::spawn(feed(first.clone(), scope, all.clone(), Arc::clone(over)));
            }
        }
    }
    for mut completed in ready {
        completed.wait_for(|complete| *complete).await.unwrap();
    }
    doors
}

/// Hands on what happens in `scope`, until the store is gone, which it may once the figures are there.
async fn feed<D: Datastore + 'static>(
    store: D,
    scope: Scope,
    to: BTreeMap<String, mpsc::UnboundedSender<Input>>,
    over: Arc<AtomicBool>,
) {
    let kind = scope.kind();
    let mut changes = follow(store, scope);
    while let Some(change) = changes.next().await {
        let owner = match &change {
            Change::Lost(_) if over.load(Ordering::SeqCst) => return,
            Change::Lost(error) => panic!("agents would go on with what they know: {error}"),
            Change::Put(Stored { record: Record::Block(block), .. }) => {
                block.affinity.as_ref().map(|owner| owner.name.as_str())
            }
            _ => None,
        };
        let of = |node: &String| owner.is_none_or(|owner| owner == node);
        for (_, agent) in to.iter().filter(|(node, _)| of(node)) {
            let _ = agent.send(Input::Event(Box::new(Event::Changed(kind, change.clone()))));
        }
    }
}

/// Drives one agent until nobody asks any more.
async fn drive<D: Datastore + Clone + 'static>(
    mut agent: Agent,
    store: D,
    mut inputs: mpsc::UnboundedReceiver<Input>,
    back: mpsc::UnboundedSender<Input>,
    complete: watch::Sender<bool>,
) {
    let mut waiting: BTreeMap<RequestId, oneshot::Sender<Reply>> = BTreeMap::new();
    let (mut next, mut taken) = (0, Vec::new());
    loop {
        let due = agent
            .next_deadline()
            .map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        tokio::select! {
            count = inputs.recv_many(&mut taken, INTAKE) => if count == 0 { return },
            () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {
                taken.push(Input::Event(Box::new(Event::Tick)));
            }
        }
        let events = taken.drain(..).map(|input| match input {
            Input::Event(event) => *event,
            Input::Ask(event, sender) => {
                next += 1;
                waiting.insert(RequestId(next), sender);
                event(RequestId(next))
            }
        });
        let events: Vec<Event> = events.collect();
        for effect in agent.steps(Timestamp::now(), events) {
            let (store, back) = (store.clone(), back.clone());
            let come_back = move |event| drop(back.send(Input::Event(Box::new(event))));
            match effect {
                Effect::Commit { ticket, checks, writes } => drop(tokio::spawn(async move {
                    come_back(Event::Committed(ticket, store.commit(&checks, &writes).await));
                })),
                Effect::Read { ticket, key } => drop(tokio::spawn(async move {
                    come_back(Event::Read(ticket, store.get(&key).await));
                })),
                Effect::List { ticket, scope } => drop(tokio::spawn(async move {
                    come_back(Event::Listed(ticket, store.list(&scope).await));
                })),
                Effect::Reply { request, reply } => {
                    if let Some(sender) = waiting.remove(&request) {
                        let _ = sender.send(reply);
                    }
                }
                Effect::Note(_) => {}
            }
        }
        if agent.view().is_complete() {
            complete.send_replace(true);
        }
    }
}
