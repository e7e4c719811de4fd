//! A node's agent in a small world: the step machine of `ipam` with its calls of the store, and what it hears by watch.
//!
//! Its watch is either as late as can be, so that it knows what there was at the beginning and what it reads itself, or it
//! is up to date whenever one of its calls is answered. What lies between is a matter of seeds.

use super::actors::{ActorClock, Ended, later};
use crate::db::Db;
use crate::port::SimStore;
use api::IpVersion;
use datastore::follow::Change;
use datastore::{Datastore as _, Event as Heard, Scope};
use ipam::Clock as _;
use ipam::agent::{Agent, Demand, Effect, Event, Reply, RequestId, Surrender};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

/// What an agent is asked, all at once.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Its node.
    pub node: &'static str,
    /// Handles that want an address.
    pub adds: &'static [&'static str],
    /// Handles that give theirs back.
    pub dels: &'static [&'static str],
    /// Its watch is up to date, and not as late as can be.
    pub hears: bool,
}

/// Times that an agent with nothing under way is told that its patience is over.
const TICKS: usize = 3;

type Calling = Pin<Box<dyn Future<Output = Event>>>;

/// What an agent follows, and how far it has heard of it.
struct Watch {
    db: Arc<Mutex<Db>>,
    feeds: Vec<(Scope, usize)>,
}

impl Watch {
    fn begin(agent: &Agent, db: &Arc<Mutex<Db>>) -> (Self, Vec<Event>) {
        let table = db.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = Vec::new();
        let feeds = agent.scopes().into_iter().map(|scope| {
            events.push(Event::Changed(scope.kind(), Change::Reset(table.list(&scope))));
            let heard = table.history(scope.kind()).len();
            (scope, heard)
        });
        let feeds = feeds.collect();
        drop(table);
        (Self { db: Arc::clone(db), feeds }, events)
    }

    fn news(&mut self) -> Vec<Event> {
        let table = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = Vec::new();
        for (scope, heard) in &mut self.feeds {
            for change in table.history(scope.kind()).iter().skip(*heard) {
                *heard += 1;
                if scope.holds(&change.key) {
                    let change = match change.event() {
                        Heard::Put(stored) => Change::Put(stored),
                        Heard::Deleted(key, at) => Change::Deleted(key, at),
                        Heard::Unreadable(key, at) => Change::Unreadable(key, at),
                        Heard::Progress(at) => Change::Progress(at),
                    };
                    events.push(Event::Changed(scope.kind(), change));
                }
            }
        }
        events
    }
}

/// An agent from its start until it has answered and has nothing left to do.
pub(super) async fn serve(
    store: SimStore,
    clock: ActorClock,
    number: usize,
    db: Arc<Mutex<Db>>,
    asked: Asked,
) -> Ended {
    let mut agent = Agent::new(asked.node);
    let (mut watch, mut events) = Watch::begin(&agent, &db);
    let mut requests: BTreeMap<RequestId, &'static str> = BTreeMap::new();
    for handle in asked.dels {
        let id = RequestId(u64::try_from(requests.len()).unwrap_or(0));
        requests.insert(id, handle);
        let surrender = Surrender { handle: (*handle).to_owned(), interface: None, legacy_handle: None };
        events.push(Event::Del(id, surrender));
    }
    for handle in asked.adds {
        let id = RequestId(u64::try_from(requests.len()).unwrap_or(0));
        requests.insert(id, handle);
        let attributes = [("node", asked.node), ("namespace", "default"), ("pod", handle)];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        events.push(Event::Add(id, Demand::new(*handle, vec![IpVersion::V4], attributes)));
    }
    let mut told = Vec::new();
    let mut calls: Vec<Calling> = Vec::new();
    let mut ticks = 0;
    loop {
        let now = if ticks > 0 { later(number, 60).now() } else { clock.now() };
        for effect in agent.steps(now, std::mem::take(&mut events)) {
            match effect {
                Effect::Reply { request, reply } => {
                    let given = match reply {
                        Reply::Added(taken) => {
                            Some(taken.iter().map(|taken| (taken.address, taken.sequence)).collect())
                        }
                        Reply::Deleted | Reply::Failed(_) => None,
                    };
                    told.extend(requests.remove(&request).map(|handle| (handle, given)));
                }
                Effect::Note(_) => {}
                call => calls.extend(calling(&store, call)),
            }
        }
        if calls.is_empty() && (agent.waiting() == 0 || ticks >= TICKS) {
            return Ended::Told(told);
        }
        if calls.is_empty() {
            // It waits for what a watch would tell it, and in vain.
            ticks += 1;
            events.push(Event::Tick);
            continue;
        }
        let answer = poll_fn(|context| {
            for at in 0..calls.len() {
                let answer = calls.get_mut(at).map(|call| call.as_mut().poll(context));
                if let Some(Poll::Ready(answer)) = answer {
                    drop(calls.remove(at));
                    return Poll::Ready(answer);
                }
            }
            Poll::Pending
        })
        .await;
        if asked.hears {
            events.extend(watch.news());
        }
        events.push(answer);
    }
}

/// A call of the store that an effect is.
fn calling(store: &SimStore, effect: Effect) -> Option<Calling> {
    let store = store.clone();
    Some(match effect {
        Effect::Commit { ticket, checks, writes } => {
            Box::pin(async move { Event::Committed(ticket, store.commit(&checks, &writes).await) })
        }
        Effect::Read { ticket, key } => Box::pin(async move { Event::Read(ticket, store.get(&key).await) }),
        Effect::List { ticket, scope } => {
            Box::pin(async move { Event::Listed(ticket, store.list(&scope).await) })
        }
        Effect::Reply { .. } | Effect::Note(_) => return None,
    })
}
