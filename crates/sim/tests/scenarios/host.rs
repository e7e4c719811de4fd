//! A node's agent on the stage: the step machine, its effects performed over the wire.

use crate::stage::{Stage, Time};
use crate::wire::Wire;
use api::attachment::{AddRequest, Attachment};
use datastore::follow::{Change, follow};
use datastore::{Datastore, Kind};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use ipam::Clock;
use ipam::agent::{Agent, Demand, Effect, Event, Note, Reply, RequestId, Surrender};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

/// A node's agent.
pub(crate) struct Host {
    pub(crate) node: String,
    pub(crate) agent: Agent,
    wire: Wire,
    time: Time,
    feeds: Vec<(Kind, BoxStream<'static, Change>)>,
    /// Changes are not told while this is set.
    pub(crate) blind: bool,
    /// Effects that are kept and not performed for now.
    held: fn(&Effect) -> bool,
    effects: VecDeque<Effect>,
    pub(crate) replies: BTreeMap<u64, Reply>,
    pub(crate) notes: Vec<Note>,
    requests: u64,
}

/// What a kubelet sends for a container.
pub(crate) fn add_request(container: &str) -> AddRequest {
    let attachment = Attachment {
        network: "net".to_owned(),
        container: container.to_owned(),
        interface: "eth0".to_owned(),
    };
    let attributes = [("pod", container), ("namespace", "default")];
    AddRequest {
        attachment,
        ipv4: 1,
        ipv6: 0,
        ipv4_pools: Vec::new(),
        ipv6_pools: Vec::new(),
        requested: None,
        attributes: attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        namespace: Some("default".to_owned()),
    }
}

impl Host {
    /// An agent that has just started and has seen everything.
    pub(crate) fn start(stage: &Stage, node: &str) -> Self {
        let mut host = Self::start_blind(stage, node);
        host.see();
        host
    }

    /// An agent that has just started and has seen nothing yet.
    pub(crate) fn start_blind(stage: &Stage, node: &str) -> Self {
        let agent = Agent::new(node);
        let feeds = agent.scopes().map(|scope| (scope.kind(), follow(stage.wire.memory.clone(), scope)));
        Self {
            node: node.to_owned(),
            agent,
            wire: stage.wire.clone(),
            time: stage.time.clone(),
            feeds: feeds.into(),
            blind: true,
            held: |_| false,
            effects: VecDeque::new(),
            replies: BTreeMap::new(),
            notes: Vec::new(),
            requests: 0,
        }
    }

    /// Sees what has changed, from now on too.
    pub(crate) fn see(&mut self) {
        self.blind = false;
        self.tell(Vec::new());
    }

    /// Tells one kind of records only, once.
    pub(crate) fn see_only(&mut self, kinds: &[Kind]) {
        let mut events = Vec::new();
        for (kind, feed) in &mut self.feeds {
            while kinds.contains(kind)
                && let Some(Some(change)) = feed.next().now_or_never()
            {
                events.push(Event::Changed(*kind, change));
            }
        }
        self.tell(events);
    }

    /// Takes events in, and performs what follows until nothing is left.
    pub(crate) fn tell(&mut self, events: Vec<Event>) {
        self.look();
        let effects = self.agent.steps(self.time.now(), events);
        self.effects.extend(effects);
        loop {
            self.look();
            let held = self.held;
            let Some(at) = self.effects.iter().position(|effect| !held(effect)) else { break };
            let Some(effect) = self.effects.remove(at) else { break };
            if let Some(event) = self.perform(effect) {
                self.effects.extend(self.agent.step(self.time.now(), event));
            }
        }
    }

    /// Sees what has changed, unless it is blind.
    fn look(&mut self) {
        if self.blind {
            return;
        }
        for (kind, feed) in &mut self.feeds {
            while let Some(Some(change)) = feed.next().now_or_never() {
                self.effects.extend(self.agent.step(self.time.now(), Event::Changed(*kind, change)));
            }
        }
    }

    /// Keeps effects of this kind back until [`Host::go_on`].
    pub(crate) fn hold(&mut self, held: fn(&Effect) -> bool) {
        self.held = held;
    }

    /// Performs what was kept back, and what follows.
    pub(crate) fn go_on(&mut self) {
        self.held = |_| false;
        self.tell(Vec::new());
    }

    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Commit { ticket, checks, writes } => {
                let result = self.wire.commit(&checks, &writes).now_or_never()?;
                Some(Event::Committed(ticket, result))
            }
            Effect::Read { ticket, key } => {
                let result = self.wire.get(&key).now_or_never()?;
                Some(Event::Read(ticket, result))
            }
            Effect::List { ticket, scope } => {
                let result = self.wire.list(&scope).now_or_never()?;
                Some(Event::Listed(ticket, result))
            }
            Effect::Reply { request, reply } => {
                assert_eq!(self.replies.insert(request.0, reply), None, "answered twice");
                None
            }
            Effect::Note(note) => {
                self.notes.push(note);
                None
            }
        }
    }

    /// An ADD, with the number that its answer will carry.
    pub(crate) fn add_event(&mut self, request: &AddRequest) -> (u64, Event) {
        let demand = Demand::pod(request, &self.node, self.time.now()).unwrap();
        self.demand_event(demand)
    }

    pub(crate) fn demand_event(&mut self, demand: Demand) -> (u64, Event) {
        self.requests += 1;
        (self.requests, Event::Add(RequestId(self.requests), demand))
    }

    pub(crate) fn del_event(&mut self, container: &str) -> (u64, Event) {
        self.requests += 1;
        let surrender = Surrender {
            handle: format!("net.{container}"),
            interface: Some("eth0".to_owned()),
            legacy_handle: None,
        };
        (self.requests, Event::Del(RequestId(self.requests), surrender))
    }

    /// An ADD and its answer.
    pub(crate) fn add(&mut self, request: &AddRequest) -> Reply {
        let (id, event) = self.add_event(request);
        self.tell(vec![event]);
        self.replies[&id].clone()
    }

    pub(crate) fn demand(&mut self, demand: Demand) -> Reply {
        let (id, event) = self.demand_event(demand);
        self.tell(vec![event]);
        self.replies[&id].clone()
    }

    /// The address that a container gets.
    pub(crate) fn address(&mut self, container: &str) -> Option<IpAddr> {
        addresses(&self.add(&add_request(container))).first().copied()
    }

    pub(crate) fn del(&mut self, container: &str) -> Reply {
        let (id, event) = self.del_event(container);
        self.tell(vec![event]);
        self.replies[&id].clone()
    }

    /// Time passes for it too.
    pub(crate) fn tick(&mut self) {
        self.tell(vec![Event::Tick]);
    }
}

/// The addresses of an answer; none if it is a failure.
pub(crate) fn addresses(reply: &Reply) -> Vec<IpAddr> {
    match reply {
        Reply::Added(taken) => taken.iter().map(|taken| taken.address).collect(),
        Reply::Deleted | Reply::Failed(_) => Vec::new(),
    }
}

/// What a refused request was told.
pub(crate) fn refusal(reply: &Reply) -> String {
    match reply {
        Reply::Failed(error) => format!("{} {}", error.message, error.details),
        other => panic!("not refused: {other:?}"),
    }
}
