//! The queue of releases in the agent: a DEL that the datastore cannot take is recorded on the node and answered with
//! success; an ADD asks the queue before it is served (architecture D4). Without a directory to keep it in there is none,
//! and a DEL fails while the datastore is away.
//!
//! A DEL is queued only while no ADD of its attachment is under way: what that is given must not be freed later by an entry
//! that names no address.

use crate::health::Health;
use crate::release_log::{LogError, Writer};
use api::attachment::{AddRequest, Attachment, ErrorReply};
use datastore::backend::Backend;
use datastore::gate::Gate;
use ipam::Clock;
use ipam::agent::{Reply, RequestId, Surrender, TRY_AGAIN};
use ipam::release_queue::{Effect, Entry, Event, Note, ReleaseQueue, Verdict, replay};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

/// How often a log is tried that another agent has.
const TRIES: u32 = 40;

/// Pause between these.
const PAUSE: Duration = Duration::from_millis(50);

/// The machine's clock.
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Who waits for the queue's word.
#[derive(Debug)]
enum Waiter {
    Add(Box<AddRequest>, oneshot::Sender<Reply>),
    Del(oneshot::Sender<Reply>),
}

/// The queue, its log and who waits for it.
pub(crate) struct Releases {
    /// `None`: this agent keeps no releases.
    queue: Option<(ReleaseQueue, Writer)>,
    store: Gate<Backend>,
    health: Arc<Health>,
    /// Results come back here.
    back: mpsc::UnboundedSender<Event>,
    waiting: BTreeMap<RequestId, Waiter>,
    /// ADDs under way by attachment, at the queue or at the agent.
    adds: BTreeMap<Attachment, u32>,
    next: u64,
}

impl Releases {
    /// The queue that is kept in `directory`, and where its events come from. One that an agent is about to let go is waited for.
    ///
    /// # Errors
    /// [`LogError`].
    pub(crate) async fn open(
        directory: Option<&Path>,
        store: Backend,
        health: Arc<Health>,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), LogError> {
        let (back, events) = mpsc::unbounded_channel();
        let mut releases = Self {
            queue: None,
            store: Gate::new(store),
            health,
            back,
            waiting: BTreeMap::new(),
            adds: BTreeMap::new(),
            next: 0,
        };
        if let Some(directory) = directory {
            let mut tries = 0;
            let (writer, bytes) = loop {
                let back = releases.back.clone();
                // Nobody listens when the agent ends.
                match Writer::open(directory, move |event| drop(back.send(event))) {
                    Err(LogError::Taken { .. }) if tries < TRIES => tries += 1,
                    opened => break opened?,
                }
                tokio::time::sleep(PAUSE).await;
            };
            let (queue, effects) = ReleaseQueue::recover(&bytes);
            if !queue.is_empty() {
                info!(releases = queue.len(), "found releases that are owed");
            }
            releases.queue = Some((queue, writer));
            // Nothing waits yet, so that nothing can be admitted.
            releases.perform(effects);
        }
        Ok((releases, events))
    }

    /// When [`Event::Tick`] is due at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.queue.as_ref()?.0.next_deadline()
    }

    fn expect(&mut self, waiter: Waiter) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        self.waiting.insert(id, waiter);
        id
    }

    /// An ADD came. Answers those that may be served now. Each ADD is reported by [`Releases::added`] when it is answered.
    pub(crate) fn add(&mut self, request: AddRequest, sender: oneshot::Sender<Reply>) -> Admitted {
        *self.adds.entry(request.attachment.clone()).or_default() += 1;
        if self.queue.is_none() {
            return vec![(request, sender)];
        }
        let attachment = request.attachment.clone();
        let id = self.expect(Waiter::Add(Box::new(request), sender));
        self.step(Event::Add(id, attachment))
    }

    /// An ADD of this attachment was answered.
    pub(crate) fn added(&mut self, attachment: &Attachment) {
        if let Some(count) = self.adds.get_mut(attachment) {
            *count -= 1;
            if *count == 0 {
                self.adds.remove(attachment);
            }
        }
    }

    /// Whether a DEL of this attachment may be queued.
    pub(crate) fn takes(&self, attachment: &Attachment) -> bool {
        self.queue.is_some() && !self.adds.contains_key(attachment)
    }

    /// A DEL that the agent could not serve, of an attachment that [`Releases::takes`]. Answered once it is durable.
    pub(crate) fn del(
        &mut self,
        attachment: &Attachment,
        surrender: &Surrender,
        cluster: Option<String>,
        sender: oneshot::Sender<Reply>,
    ) -> Admitted {
        let entry = Entry {
            attachment: attachment.clone(),
            handle: surrender.handle.clone(),
            // What another block lends is not known here. The store is asked, and no ADD comes in between.
            held: None,
            cluster,
            at: Timestamp::now(),
        };
        let id = self.expect(Waiter::Del(sender));
        self.step(Event::Del(id, entry))
    }

    /// Takes one event in. Answers the ADDs that may be served now.
    pub(crate) fn step(&mut self, event: Event) -> Admitted {
        let Some((queue, _)) = &mut self.queue else { return Vec::new() };
        let effects = queue.step(Timestamp::now(), event);
        self.health.set_owed(queue.len());
        self.perform(effects)
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Admitted {
        let mut admitted = Vec::new();
        for effect in effects {
            match effect {
                Effect::Append(..) | Effect::Remove(_) | Effect::Rewrite(_) => {
                    if let Some((_, writer)) = &self.queue {
                        writer.write(effect);
                    }
                }
                Effect::Release(number, entry) => {
                    let (store, back) = (self.store.clone(), self.back.clone());
                    tokio::spawn(async move {
                        let outcome = replay(&store, &SystemClock, &entry).await;
                        let _ = back.send(Event::Released(number, outcome));
                    });
                }
                Effect::Reply(request, verdict) => admitted.extend(self.reply(request, verdict)),
                Effect::Note(note) => log(&note),
            }
        }
        admitted
    }

    fn reply(
        &mut self,
        request: RequestId,
        verdict: Verdict,
    ) -> Option<(AddRequest, oneshot::Sender<Reply>)> {
        let refused = |reason: String| {
            Reply::Failed(ErrorReply { code: TRY_AGAIN, message: reason, details: String::new() })
        };
        // A plugin that was killed does not listen any more; its runtime asks again.
        match (self.waiting.remove(&request)?, verdict) {
            (Waiter::Add(request, sender), Verdict::TryAgain { reason }) => {
                self.added(&request.attachment);
                let _ = sender.send(refused(reason));
                None
            }
            (Waiter::Add(request, sender), Verdict::Proceed | Verdict::Accepted) => Some((*request, sender)),
            (Waiter::Del(sender), Verdict::TryAgain { reason }) => {
                let _ = sender.send(refused(reason));
                None
            }
            (Waiter::Del(sender), Verdict::Accepted | Verdict::Proceed) => {
                let _ = sender.send(Reply::Deleted);
                None
            }
        }
    }
}

/// ADDs that nothing is queued before.
pub(crate) type Admitted = Vec<(AddRequest, oneshot::Sender<Reply>)>;

fn log(note: &Note) {
    match note {
        Note::Damaged { lines } => {
            warn!(lines, "left out damaged lines of the releases; the collector frees what they named");
        }
        Note::Foreign { handle } => warn!(handle, "dropped a release that another cluster owes"),
        Note::Released { handle } => info!(handle, "released addresses that were owed"),
        Note::Postponed { handle, reason } => debug!(handle, reason, "postponed a release"),
        Note::LogFailed { reason } => warn!(reason, "could not write the releases"),
    }
}
