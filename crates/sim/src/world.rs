//! One simulated cluster under a seeded scheduler.
//!
//! ```text
//!   runtimes ── ADD, DEL ──► plugins, agents ── datastore calls ──► scheduler ── verdicts ──► records
//!                                 ▲                                     │                        │
//!                                 └── what changed, sooner or later ────┼── faults               ▼
//!                                                                       └──────────────────► judge
//! ```
//!
//! A step is one of: a datastore call is made or befallen by a fault, an agent is told of a change or of a result, a
//! runtime asks for something, the cluster changes. The judge looks at every step.

use crate::begin::NodeState;
use crate::client::collector::Desk;
use crate::client::pools::PoolWork;
use crate::client::runtime::Attachment;
use crate::clock::{SimClock, Time};
use crate::costs::Costs;
use crate::coverage::Coverage;
use crate::db::{Applied, Db};
use crate::faults::{Fault, Operation};
use crate::invariants::{Judge, Leave, Serves, Step};
use crate::port::{Port, SimStore, Verdict};
use crate::promises::Promises;
use crate::rng::Rng;
use crate::setting::{Schedule, Setting};
use crate::task::{Outcome, Purpose, Task};
use crate::trace::Trace;
use ipam::Clock as _;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

/// How it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Invariants that did not hold, each with its step. Empty is good.
    pub broken: Vec<String>,
    /// Steps made, those of coming to rest included.
    pub steps: u64,
    /// Datastore calls made or befallen.
    pub calls: u64,
    /// ADDs answered with addresses.
    pub added: u64,
    /// DELs answered with success.
    pub deleted: u64,
    /// Operations that failed or were cut short.
    pub cut_short: u64,
    /// Which faults met which operations.
    pub coverage: Coverage,
    /// What undisturbed operations cost.
    pub costs: Costs,
    /// Digest of everything that happened, in order.
    pub digest: u64,
    /// The readable trace, if it was asked for.
    pub lines: Vec<String>,
}

/// The cluster and everything under way in it.
#[derive(Debug)]
pub struct World {
    pub(crate) setting: Setting,
    pub(crate) rng: Rng,
    pub(crate) time: Time,
    pub(crate) db: Arc<Mutex<Db>>,
    pub(crate) nodes: Vec<NodeState>,
    pub(crate) attachments: Vec<Attachment>,
    pub(crate) pools: Vec<PoolWork>,
    pub(crate) desk: Desk,
    pub(crate) tasks: Vec<Task>,
    pub(crate) promises: Promises,
    pub(crate) judge: Judge,
    pub(crate) trace: Trace,
    pub(crate) end: End,
    pub(crate) step: u64,
    pub(crate) next: u64,
    /// DELs that will be sent at this step.
    pub(crate) delayed: Vec<(u64, usize)>,
    /// Faults occur.
    pub(crate) faults: bool,
    pub(crate) applied: Vec<Applied>,
}

/// Runs the world of a seed to its end.
pub fn run(seed: u64, readable: bool) -> End {
    run_setting(Setting::draw(seed), readable)
}

/// Runs a given world to its end.
pub fn run_setting(setting: Setting, readable: bool) -> End {
    let mut world = World::new(setting, readable);
    while world.step < world.setting.steps && world.end.broken.is_empty() {
        world.advance();
    }
    world.come_to_rest();
    world.finish()
}

impl World {
    pub(crate) fn db(&self) -> MutexGuard<'_, Db> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this fault is one of this world's.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults && self.setting.cluster_faults.contains(&fault)
    }

    /// One step.
    pub(crate) fn advance(&mut self) {
        self.step += 1;
        // Mostly little time passes, and now and then enough for a cooldown or a grace period.
        let often = if self.setting.brisk { 8 } else { 1 };
        match self.rng.below(256) {
            roll if roll < often => self.time.advance(self.rng.between(5_000, 70_000)),
            ..64 => self.time.advance(self.rng.between(1, 60)),
            _ => {}
        }
        if self.faults {
            // What seldom happens is met by faults more often, so that each meets each.
            let seldom = self.tasks.iter().any(|task| is_seldom(task.operation));
            let every = if seldom { self.setting.cluster_every / 3 + 1 } else { self.setting.cluster_every };
            if self.rng.chance(1, every) {
                self.disturb();
            }
        }
        self.send_delayed();
        let roll = self.rng.below(100);
        let (asks, watches) = (self.setting.ask_per_cent, self.setting.watch_per_cent);
        if roll < asks && self.faults {
            self.ask();
        } else if roll < asks + watches {
            self.tell_somebody();
        } else if !self.call() && !self.tell_somebody() && self.faults {
            self.ask();
        }
    }

    /// Makes a datastore call of some task, or lets a fault befall it. False: nobody waits for one.
    fn call(&mut self) -> bool {
        if self.rng.chance(1, 8) && self.arrive() {
            return true;
        }
        let Some(index) = self.choose() else { return false };
        let fault = (self.faults && self.rng.chance(self.setting.faults_per_mille, 1_000))
            .then(|| self.rng.pick(&self.setting.call_faults))
            .flatten();
        self.make(index, fault);
        true
    }

    /// A task with a call that waits.
    fn choose(&mut self) -> Option<usize> {
        let count = self.tasks.len();
        if count == 0 {
            return None;
        }
        let start = self.rng.below(count);
        let uneven = self.setting.schedule == Schedule::Uneven && !self.rng.chance(1, 6);
        let ready = |task: &Task| task.held_until <= self.step && task.port.waiting() > 0;
        let round = || (0..count).map(|offset| (start + offset) % count);
        let quick = uneven.then(|| round().find(|at| !self.tasks[*at].slow && ready(&self.tasks[*at])));
        quick.flatten().or_else(|| round().find(|at| ready(&self.tasks[*at]))).or_else(|| {
            // Everybody is held up: the longest waiting goes on.
            round().find(|at| self.tasks[*at].port.waiting() > 0)
        })
    }

    /// The next call of a task, perhaps befallen by a fault.
    pub(crate) fn make(&mut self, index: usize, fault: Option<Fault>) {
        let Some(task) = self.tasks.get_mut(index) else { return };
        let operation = task.operation;
        if let Some(fault) = fault
            && crate::coverage::possible(fault, operation)
        {
            self.end.coverage.hit(fault, operation);
        }
        if fault == Some(Fault::Delay) {
            let longest = if self.setting.brisk { 480 } else { 120 };
            task.held_until = self.step + 10 + u64::try_from(self.rng.below(longest)).unwrap_or(0);
            return;
        }
        let purpose = task.purpose;
        if fault.is_some() {
            task.disturbed = true;
            match purpose {
                Purpose::Add { attachment, .. } | Purpose::Del { attachment, .. } => {
                    self.attachments[attachment].clean = false;
                }
                Purpose::Effect { node } => self.spoil_node(node),
                Purpose::Pool { .. } | Purpose::Collector | Purpose::Errand => {}
            }
        }
        // A peer that is not answered rolls back what was done (W14): its handle is not to be relied on from here on.
        if operation.is_of_a_peer()
            && matches!(fault, Some(Fault::ReplyLost | Fault::Late))
            && let Purpose::Add { attachment, .. } | Purpose::Del { attachment, .. } = purpose
        {
            let handle = self.attachments[attachment].handle.clone();
            self.judge.spoilt.insert(handle);
        }
        self.end.calls += 1;
        let Some(task) = self.tasks.get(index) else { return };
        let (number, port) = (task.number, task.port.clone());
        let waiting = self.rng.below(port.waiting());
        if fault == Some(Fault::DeathBefore) {
            self.trace.mix(&[number, 99]);
            let step = self.step;
            self.trace.line(|| format!("{step:>5} {} dies before its call", who(&self.tasks[index])));
            self.die(index);
            return;
        }
        let verdict = fault.and_then(Fault::verdict).unwrap_or(Verdict::Proceed);
        let call = port.grant(waiting, verdict);
        if self.trace.is_readable() {
            let (step, who) = (self.step, who(&self.tasks[index]));
            self.trace.line(|| {
                let call = call.map(|call| format!("{call:?}")).unwrap_or_default();
                format!("{step:>5} {who} {call} {}", fault.map_or("", Fault::name))
            });
        }
        self.trace.mix(&[number, u64::from(verdict as u8)]);
        self.poll(index);
        if verdict == Verdict::DieAfter
            && let Some(index) = self.tasks.iter().position(|task| task.number == number)
        {
            self.die(index);
        }
    }

    /// Starts a task and lets it go as far as its first call.
    pub(crate) fn begin<F, T>(
        &mut self,
        operation: Operation,
        node: Option<usize>,
        purpose: Purpose,
        leave: Leave,
        task: F,
    ) where
        F: FnOnce(SimStore, SimClock) -> T,
        T: Future<Output = Outcome> + 'static,
    {
        self.next += 1;
        let port = Port::default();
        let store = SimStore::new(Arc::clone(&self.db), port.clone(), &self.time);
        let store = if operation.is_of_a_peer() { store.marking() } else { store };
        let clock = node.map_or_else(|| self.time.clock(), |node| self.nodes[node].clock.clone());
        let slow = self.rng.chance(1, 2);
        let since = self.db().revision().0;
        self.end.coverage.ran(operation);
        self.tasks.push(Task {
            number: self.next,
            operation,
            node,
            purpose,
            leave,
            port,
            future: Box::pin(task(store, clock)),
            held_until: 0,
            slow,
            since,
            most_calls: crate::costs::most_calls(operation),
            disturbed: false,
        });
        self.poll(self.tasks.len() - 1);
    }

    /// Lets a task go on, judges what it did, and takes its outcome to whom it is for.
    fn poll(&mut self, index: usize) {
        let Some(task) = self.tasks.get_mut(index) else { return };
        let done = task.poll();
        let number = task.number;
        self.db().sent_by(number);
        self.judge_step(Some(index), number);
        if let Poll::Ready(outcome) = done {
            let task = self.tasks.swap_remove(index);
            self.task_is_judged(&task);
            self.ended(&task, outcome);
        }
    }

    /// Judges what was done since the last look: by the task at `index` if it is still there, of this `number`.
    pub(crate) fn judge_step(&mut self, index: Option<usize>, number: u64) {
        let mut applied = std::mem::take(&mut self.applied);
        {
            let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
            db.take_applied(&mut applied);
            if applied.is_empty() {
                self.applied = applied;
                return;
            }
            let task = index.and_then(|index| self.tasks.get(index));
            let leave = task.map_or(&Leave::Unpromised, |task| &task.leave);
            // What arrives late may have been sent for an ADD.
            let serves = match task {
                // A pod that goes hands the address to the other pod of its machine.
                Some(Task { purpose: Purpose::Del { attachment, .. }, .. })
                    if self.attachments[*attachment].is_machine() =>
                {
                    Serves::Handle(&self.attachments[*attachment].handle)
                }
                Some(task) if !task.operation.serves_adds() => Serves::Nobody,
                Some(Task { purpose: Purpose::Add { attachment, .. }, .. }) => {
                    Serves::Handle(&self.attachments[*attachment].handle)
                }
                _ => Serves::Anybody,
            };
            let by_peer = task.is_some_and(|task| task.operation.is_of_a_peer());
            let name = task.and_then(|task| self.bound_to(task)).map(|node| self.nodes[node].name.as_str());
            let since = task.map_or(0, |task| task.since);
            let latest = self.time.latest();
            let step = Step { task: number, leave, serves, by_peer, node: name, since, latest };
            let mut wrong = Vec::new();
            self.judge.see(&db, &applied, step, &self.promises, &mut wrong);
            for task in self.tasks.iter_mut().filter(|task| task.number != number) {
                task.disturbed = true;
            }
            let at = self.step;
            self.end.broken.extend(wrong.into_iter().map(|text| format!("step {at}: {text}")));
            self.trace.mix(&[db.revision().0]);
        }
        if self.trace.is_readable() {
            for change in &applied {
                self.trace.line(|| match &change.after {
                    Some(stored) => {
                        format!("        {} = {}", change.key, crate::trace::shown(&stored.record))
                    }
                    None => format!("        {} is gone", change.key),
                });
            }
        }
        applied.clear();
        self.applied = applied;
    }

    /// The node to whose blocks an automatic assignment of this task is bound under strict affinity, and whose limit it keeps.
    fn bound_to(&self, task: &Task) -> Option<usize> {
        use Operation::{AgentBatch, AgentClaim, PluginAdd, PluginBoth};
        let binds = matches!(task.operation, AgentBatch | AgentClaim | PluginAdd | PluginBoth);
        task.node.filter(|_| binds)
    }

    /// What a task left open while it ran must be in order when it has ended.
    fn task_is_judged(&mut self, task: &Task) {
        let wrong = {
            let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
            self.judge.task_ended(&db, task.number)
        };
        for text in wrong {
            self.wrong(text);
        }
        if !task.disturbed {
            let calls = (task.port.granted(), task.port.trips());
            if calls.0 > task.most_calls {
                let who = who(task);
                self.wrong(format!("10: {who} {} calls although nothing disturbed it", calls.0));
            }
            self.end.costs.note(task.operation, calls);
        }
    }

    /// A task ends without an answer. An agent dies as a whole.
    fn die(&mut self, index: usize) {
        let purpose = self.tasks[index].purpose;
        if let Purpose::Effect { node } = purpose {
            self.restart_agent(node);
            return;
        }
        let task = self.tasks.swap_remove(index);
        self.end.cut_short += 1;
        self.unanswered(task.purpose);
    }

    /// Everything that runs on a node ends without an answer.
    pub(crate) fn end_tasks_of(&mut self, node: usize) {
        while let Some(index) = self.tasks.iter().position(|task| task.node == Some(node)) {
            let task = self.tasks.swap_remove(index);
            self.end.cut_short += 1;
            self.unanswered(task.purpose);
        }
    }

    fn unanswered(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Add { attachment, .. } => self.in_doubt(attachment, false),
            Purpose::Del { attachment, .. } => self.in_doubt(attachment, true),
            Purpose::Pool { pool } => self.pool_work_ended(pool, false),
            Purpose::Collector => self.records_read(None),
            Purpose::Effect { .. } | Purpose::Errand => {}
        }
    }

    fn ended(&mut self, task: &Task, outcome: Outcome) {
        match (task.purpose, outcome) {
            (Purpose::Add { attachment, epoch }, Outcome::Added(result)) => {
                self.added(attachment, epoch, result);
            }
            (Purpose::Del { attachment, alone }, Outcome::Deleted(result)) => {
                self.deleted(attachment, alone, &result);
            }
            (Purpose::Effect { node }, outcome) => self.effect_ended(node, outcome),
            (Purpose::Collector, Outcome::Records(records)) => self.records_read(records),
            (Purpose::Pool { pool }, Outcome::Administered(done)) => self.pool_work_ended(pool, done),
            _ => {}
        }
    }

    /// A commit whose sender has given up arrives after all.
    fn arrive(&mut self) -> bool {
        let count = self.db().late();
        if count == 0 {
            return false;
        }
        let index = self.rng.below(count);
        let now = self.time.clock().now();
        let arrived = self.db().arrive(index, now);
        let step = self.step;
        self.trace.line(|| {
            format!(
                "{step:>5} a late commit of {} arrives",
                arrived.as_ref().map_or_else(String::new, |(key, _)| key.to_string())
            )
        });
        // Its sender, if it is still there, may take back what it wrote, as if it had not been late.
        let sender = arrived.map(|(_, sender)| sender);
        let sender = sender.filter(|sender| self.tasks.iter().any(|task| task.number == *sender));
        self.judge_step(None, sender.unwrap_or(0));
        true
    }

    /// Notes that a fault of the cluster met everything that is under way, or what is on one node.
    pub(crate) fn met(&mut self, fault: Fault, node: Option<usize>) {
        self.trace.mix(&[1_000 + fault as u64]);
        let step = self.step;
        let place = || node.map_or_else(String::new, |node| format!(" on node-{node}"));
        self.trace.line(|| format!("{step:>5} {}{}", fault.name(), place()));
        for task in self.tasks.iter().filter(|task| node.is_none() || task.node == node) {
            if crate::coverage::possible(fault, task.operation) {
                self.end.coverage.hit(fault, task.operation);
            }
        }
    }

    pub(crate) fn wrong(&mut self, text: String) {
        let step = self.step;
        self.end.broken.push(format!("step {step}: {text}"));
    }

    /// A node for a fault: often one on which something happens that seldom does.
    pub(crate) fn some_node(&mut self) -> usize {
        let seldom = self.tasks.iter().filter(|task| is_seldom(task.operation)).find_map(|task| task.node);
        let any = self.rng.below(self.nodes.len());
        seldom.filter(|_| self.rng.chance(1, 2)).unwrap_or(any)
    }

    /// Nothing is waited for by anybody, and nothing is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.tasks.is_empty()
            && self.collector_is_quiet()
            && self.db().late() == 0
            && self.delayed.is_empty()
            && self.agents_are_quiet()
    }

    fn finish(mut self) -> End {
        self.end.steps = self.step;
        self.end.digest = self.trace.digest();
        for text in &self.end.broken {
            self.trace.line(|| format!("BROKEN {text}"));
        }
        self.end.lines = self.trace.into_lines();
        self.end
    }
}

fn is_seldom(operation: Operation) -> bool {
    use Operation::{
        AgentClaim, AgentReclaim, CollectorTask, EmptyPool, MoveOwner, PluginBoth, PluginExact, QueueRelease,
    };
    matches!(
        operation,
        AgentClaim
            | AgentReclaim
            | EmptyPool
            | QueueRelease
            | CollectorTask
            | PluginBoth
            | PluginExact
            | MoveOwner
    )
}

/// Who acts, for the trace.
pub(crate) fn who(task: &Task) -> String {
    let node = task.node.map_or_else(|| "cluster".to_owned(), |node| format!("node-{node}"));
    let whom = match task.purpose {
        Purpose::Add { attachment, .. } | Purpose::Del { attachment, .. } => {
            format!(" (attachment {attachment})")
        }
        _ => String::new(),
    };
    format!("#{} {node} {}{whom}:", task.number, task.operation.name())
}
