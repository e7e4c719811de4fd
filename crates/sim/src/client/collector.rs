//! The collector: the step machine of `ipam`, its reads and tasks as calls of the simulated store, and a view of nodes
//! and pods that is as old as its turn.

use crate::client::runtime::Phase;
use crate::faults::{Fault, Operation};
use crate::invariants::Leave;
use crate::port::SimStore;
use crate::task::{Outcome, Purpose};
use crate::world::World;
use api::{Affinity, Block, Handle};
use datastore::{Key, Kind, ReadError, Scope};
use ipam::collect::{
    Answers, Cluster, Collector, Effect, Event, Pod, PodName, Questions, Records, Task, carry_out,
};
use ipam::seen::{self, Seen};
use jiff::SignedDuration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long an address may be without its pod.
pub(crate) const GRACE: SignedDuration = SignedDuration::from_secs(90);

/// The same where time passes fast.
const SHORT_GRACE: SignedDuration = SignedDuration::from_secs(10);

/// What the collector is to be told next.
#[derive(Debug)]
enum Next {
    Hear(Event),
    /// It looks at nodes and pods when its turn comes.
    Look,
    Ask(Questions),
}

/// The collector with what it waits for.
#[derive(Debug, Default)]
pub struct Desk {
    collector: Collector,
    next: Vec<Next>,
    /// Revision of the store at which the records that it judges by were beginning to be read.
    since: u64,
}

impl World {
    /// Starts a pass; one that is under way is forgotten.
    pub(crate) fn begin_pass(&mut self, handles: bool) {
        self.desk.next.clear();
        let grace = if self.setting.brisk { SHORT_GRACE } else { GRACE };
        self.hear(Event::Begin { handles, grace: Some(grace) });
    }

    /// The collector starts anew and remembers nothing.
    pub(crate) fn restart_collector(&mut self) {
        self.desk = Desk::default();
        self.tasks.retain(|task| task.purpose != Purpose::Collector);
    }

    /// Whether it waits for nothing.
    pub(crate) fn collector_is_quiet(&self) -> bool {
        self.desk.next.is_empty()
    }

    fn hear(&mut self, event: Event) {
        let now = ipam::Clock::now(&self.time.clock());
        for effect in self.desk.collector.step(now, event) {
            let purpose = Purpose::Collector;
            match effect {
                Effect::ListRecords { handles } => {
                    let since = self.db().revision().0;
                    self.desk.since = since;
                    let read = Operation::CollectorRead;
                    self.begin(read, None, purpose, Leave::Nothing, move |store, _| async move {
                        Outcome::Records(records(&store, handles).await.ok().map(Arc::new))
                    });
                }
                Effect::ListCluster => self.desk.next.push(Next::Look),
                Effect::Ask(questions) => self.desk.next.push(Next::Ask(questions)),
                Effect::Do(task) => {
                    let step = self.step;
                    self.trace.line(|| format!("{step:>5} the collector is to {task}"));
                    let leave = may_free(&task);
                    let purpose = Purpose::Errand;
                    let operation = Operation::CollectorTask;
                    let (since, most_calls) = (self.desk.since, crate::costs::of_task(&task));
                    self.begin(operation, None, purpose, leave, move |store, clock| async move {
                        Outcome::Administered(carry_out(&store, &clock, &task).await.is_ok())
                    });
                    if let Some(task) = self.tasks.last_mut() {
                        (task.since, task.most_calls) = (since, most_calls);
                    }
                    self.dawdle();
                }
                Effect::Note(note) => {
                    let step = self.step;
                    self.trace.line(|| format!("{step:>5}     the collector notes {note:?}"));
                }
            }
        }
    }

    /// In some worlds the collector takes its time between a verdict and the deed.
    fn dawdle(&mut self) {
        if self.faults && (self.setting.brisk || self.setting.tunnels) && self.rng.chance(1, 2) {
            let until = self.step + u64::from(self.rng.between(50, 400));
            if let Some(task) = self.tasks.last_mut() {
                task.held_until = until;
            }
        }
    }

    /// What the collector read has come.
    pub(crate) fn records_read(&mut self, records: Option<Arc<Records>>) {
        self.desk.next.push(Next::Hear(records.map_or(Event::Failed, Event::Records)));
    }

    /// The collector's turn. False: it waits for nothing.
    pub(crate) fn tell_collector(&mut self) -> bool {
        let Some(next) = self.desk.next.pop() else { return false };
        self.trace.mix(&[40]);
        let event = match next {
            Next::Hear(event) => event,
            // The authority does not answer: the pass decides nothing.
            _ if self.faults && self.rng.chance(self.setting.faults_per_mille, 1_000) => Event::Failed,
            Next::Look => Event::Cluster(self.cluster()),
            Next::Ask(questions) => Event::Answers(self.answers(&questions)),
        };
        self.hear(event);
        true
    }

    /// Nodes that have a record.
    pub(crate) fn node_names(&self) -> BTreeSet<String> {
        let db = self.db();
        let names = db.all(Kind::Node).filter_map(|stored| match stored.record.key() {
            Key::Node(name) => Some(name),
            _ => None,
        });
        names.collect()
    }

    fn pods(&self) -> BTreeMap<PodName, Pod> {
        let attachments = self.attachments.iter().enumerate();
        let living = attachments
            .filter(|(_, attachment)| !attachment.tunnel)
            .filter(|(_, attachment)| matches!(attachment.phase, Phase::Adding | Phase::Up | Phase::Failed));
        let mut pods = BTreeMap::new();
        for (index, attachment) in living {
            let pod = Pod {
                uid: attachment.uid(index),
                node: self.nodes[attachment.node].name.clone(),
                addresses: self.promises.addresses_of(index).collect(),
                ..Pod::default()
            };
            if attachment.is_machine() {
                pods.insert(("default".to_owned(), attachment.target(index)), pod.clone());
            }
            pods.insert(("default".to_owned(), attachment.pod(index)), pod);
        }
        pods
    }

    fn cluster(&self) -> Cluster {
        Cluster { nodes: self.node_names(), pods: self.pods() }
    }

    fn answers(&self, questions: &Questions) -> Answers {
        let (nodes, pods) = (self.node_names(), self.pods());
        Answers {
            gone: questions.nodes.difference(&nodes).cloned().collect(),
            pods: questions.pods.iter().map(|name| (name.clone(), pods.get(name).cloned())).collect(),
        }
    }

    /// Deletes the record of a node that is gone, and makes that of one that is there.
    pub(crate) fn keep_node_records(&mut self) {
        let names = self.node_names();
        for node in 0..self.nodes.len() {
            if self.nodes[node].exists != names.contains(&self.nodes[node].name) {
                self.write_node_record(node);
            }
        }
    }

    /// A pass begins, or the collector is restarted.
    pub(crate) fn disturb_collector(&mut self) {
        if self.rng.chance(1, 8) {
            self.met(Fault::CollectorRestarted, None);
            self.restart_collector();
        }
        // Where passes are many, one that reads is left to end.
        let reads = |world: &Self| world.tasks.iter().any(|task| task.purpose == Purpose::Collector);
        if self.desk.next.is_empty() && !(self.setting.brisk && reads(self)) {
            let handles = self.rng.chance(2, 3);
            self.begin_pass(handles);
        }
    }
}

/// What a task of the collector names.
fn may_free(task: &Task) -> Leave {
    match task {
        Task::Release { releases, .. } => Leave::Named(
            releases
                .iter()
                .map(|release| {
                    let handle = release.handle.clone().unwrap_or_default();
                    (release.address, handle, release.sequence.unwrap_or_default())
                })
                .collect(),
        ),
        _ => Leave::Nothing,
    }
}

async fn records(store: &SimStore, handles: bool) -> Result<Records, ReadError> {
    let blocks: Vec<Seen<Block>> = seen::blocks(store).await?;
    let affinities: Vec<Seen<Affinity>> = seen::list(store, &Scope::All(Kind::Affinity)).await?;
    let listed: Option<Vec<Seen<Handle>>> = match handles {
        true => Some(seen::list(store, &Scope::All(Kind::Handle)).await?),
        false => None,
    };
    let config = seen::config(store).await?;
    Ok(Records {
        blocks: blocks.into_iter().map(|seen| (seen.value.cidr, seen)).collect(),
        affinities,
        handles: listed.map(|all| all.into_iter().map(|seen| (seen.value.id.clone(), seen)).collect()),
        cooldown_seconds: config.ip_cooldown_seconds,
    })
}
