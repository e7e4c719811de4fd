//! The node's durable queue of releases, as a pure step machine: DELs that are answered although the store cannot be
//! reached (architecture D4).
//!
//! ```text
//!   Del ──► Append ──Logged──► Reply(Accepted)                  the entry is durable: the runtime may forget the container
//!                       │
//!                       └──► Release ──Released(Done)──► Remove ──Unlogged──► forgotten
//!                              ▲   └──Released(Unavailable)──┐
//!                              └──── Reachable, Tick, Add ◄──┘
//!   Add ──► nothing queued for the attachment: Reply(Proceed)
//!       └─► else its releases are done first, and durably forgotten; if they cannot be, Reply(TryAgain)
//! ```
//!
//! Why an ADD waits until the log has forgotten: a runtime may use a container id again, and a release that is replayed after
//! a crash must not find what the new ADD was given. Where entries name addresses, their stamps protect the new ones a
//! second time; an entry that names none, because the agent that took the DEL did not know, relies on this order alone.
//!
//! An entry that could not be made durable is refused and kept in memory all the same: its DEL was asked for, and the
//! log may hold it. Effects on the log are to be carried out one after the other, in their order; the others in any.
//! [`replay`] makes a release's datastore calls, [`log`] the log's bytes; the caller owns the file and the clock.

pub mod log;
mod replay;
#[cfg(test)]
mod tests;

pub use replay::{Replayed, replay};

use crate::agent::RequestId;
use crate::mistake::{Mistake, made};
use api::attachment::Attachment;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Entries at most: beyond it a DEL is told to try again.
pub const ENTRIES: usize = 4096;

/// Releases on their way at once.
const RELEASES: usize = 16;

/// How long an ADD may wait for the releases before it: less than the plugin waits for the agent.
const PATIENCE: SignedDuration = SignedDuration::from_secs(6);

/// First wait after a release that failed; doubles up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: SignedDuration = SignedDuration::from_millis(100);

/// Longest wait before the next try.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(30);

/// Records in the log beyond the live ones, before it is written anew.
const GARBAGE: usize = 256;

/// Number of an entry in the log. No two live entries share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Number(pub u64);

/// An allocation that a DEL gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Held {
    /// The address.
    pub address: IpAddr,
    /// Its stamp when the DEL came: the address is left alone if it has another by the time of the release.
    pub sequence: u64,
}

/// A release that is owed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whose.
    pub attachment: Attachment,
    /// Handle that must hold what is released.
    pub handle: String,
    /// What the attachment holds; `None`: whoever took the DEL did not know, and the store is asked.
    ///
    /// An address that is answered again or handed on gets another stamp, and an older one frees nothing. So addresses may be
    /// named only as the last ADD was answered, where no ADD is under way or has failed or ended without an answer since, and
    /// nobody has handed the address on.
    pub held: Option<Vec<Held>>,
    /// GUID of the cluster whose addresses these are; `None`: not known. In another cluster nothing is released.
    pub cluster: Option<String>,
    /// When the DEL came.
    pub at: Timestamp,
}

impl Entry {
    /// Whether the two owe the same.
    fn is_same(&self, other: &Self) -> bool {
        let Self { attachment, handle, held, cluster, at: _ } = self;
        (attachment, handle, held, cluster) == (&other.attachment, &other.handle, &other.held, &other.cluster)
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A DEL whose release the store could not take.
    Del(RequestId, Entry),
    /// An ADD is about to be served for this attachment.
    Add(RequestId, Attachment),
    /// An [`Effect::Append`] is durable, or failed for this reason.
    Logged(Number, Result<(), String>),
    /// An [`Effect::Remove`] is durable, or failed for this reason.
    Unlogged(Number, Result<(), String>),
    /// An [`Effect::Rewrite`] is durable, or failed for this reason, which leaves the log as it was.
    Rewritten(Result<(), String>),
    /// An [`Effect::Release`] ended.
    Released(Number, Replayed),
    /// The store can be reached again.
    Reachable,
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Append [`log::append`] to the log, make it durable, and bring [`Event::Logged`].
    Append(Number, Entry),
    /// Append [`log::remove`] to the log, make it durable, and bring [`Event::Unlogged`].
    Remove(Number),
    /// Replace the log by these entries, durably and at once, and bring [`Event::Rewritten`].
    Rewrite(Vec<(Number, Entry)>),
    /// Carry out [`replay`] and bring [`Event::Released`].
    Release(Number, Entry),
    /// Answer a request.
    Reply(RequestId, Verdict),
    /// A finding, for the log of events.
    Note(Note),
}

impl Effect {
    /// Whether it writes the log: such effects are carried out one after the other.
    pub fn is_of_log(&self) -> bool {
        matches!(self, Self::Append(..) | Self::Remove(_) | Self::Rewrite(_))
    }
}

/// What a request is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To a DEL: the release is durable here, success.
    Accepted,
    /// To an ADD: nothing is queued for its attachment, serve it.
    Proceed,
    /// CNI error 11.
    TryAgain {
        /// Why, and what to do.
        reason: String,
    },
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The log held bytes that make no sense. Entries in them are lost: the collector frees their addresses.
    Damaged {
        /// Lines that were left out.
        lines: usize,
    },
    /// An entry is of another cluster and was dropped.
    Foreign {
        /// Its handle.
        handle: String,
    },
    /// A release is done.
    Released {
        /// Its handle.
        handle: String,
    },
    /// A release failed and will be tried again.
    Postponed {
        /// Its handle.
        handle: String,
        /// Why.
        reason: String,
    },
    /// The log could not be written.
    LogFailed {
        /// Why.
        reason: String,
    },
}

/// Whether an entry is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durable {
    Writing,
    Yes,
    /// A write failed: it may be there or not.
    Perhaps,
}

/// How far the release is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Releasing,
    /// Nothing is owed any more, and the log is told so.
    Removing,
    /// Nothing is owed any more, and the log could not be told.
    Remembered,
}

#[derive(Debug)]
struct Queued {
    entry: Entry,
    durable: Durable,
    stage: Stage,
    /// DELs that are answered once it is durable.
    waiting: Vec<RequestId>,
}

/// The queue.
#[derive(Debug)]
pub struct ReleaseQueue {
    entries: BTreeMap<Number, Queued>,
    /// Numbers by attachment, oldest first.
    turns: BTreeMap<Attachment, BTreeSet<Number>>,
    /// ADDs that wait for the releases before them, and until when.
    adds: BTreeMap<Attachment, Vec<(RequestId, Timestamp)>>,
    next: u64,
    /// Records in the log, live or not.
    records: usize,
    rewriting: bool,
    /// No try before this instant, but for an ADD.
    resting: Option<Timestamp>,
    wait: SignedDuration,
}

impl ReleaseQueue {
    /// The queue that a log holds, whatever became of the process that wrote it.
    ///
    /// Effects: the log is written anew if it holds more than live entries.
    pub fn recover(bytes: &[u8]) -> (Self, Vec<Effect>) {
        let found = log::decode(bytes);
        let mut queue = Self {
            entries: BTreeMap::new(),
            turns: BTreeMap::new(),
            adds: BTreeMap::new(),
            next: found.next,
            records: found.records,
            rewriting: false,
            resting: None,
            wait: SHORTEST_WAIT,
        };
        for (number, entry) in found.entries {
            queue.turns.entry(turn_of(&entry)).or_default().insert(number);
            let queued = Queued { entry, durable: Durable::Yes, stage: Stage::Waiting, waiting: Vec::new() };
            queue.entries.insert(number, queued);
        }
        let mut effects = Vec::new();
        if found.damaged > 0 {
            effects.push(Effect::Note(Note::Damaged { lines: found.damaged }));
        }
        if found.damaged > 0 || found.records > queue.entries.len() {
            queue.rewrite(&mut effects);
        }
        (queue, effects)
    }

    /// Entries that are owed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When [`Event::Tick`] is due at the latest; `None` while nothing waits.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let adds = self.adds.values().flatten().map(|(_, until)| *until).min();
        let idle = self.entries.values().any(|queued| {
            matches!(queued.stage, Stage::Waiting | Stage::Remembered) && queued.durable != Durable::Writing
        });
        let retry = self.resting.filter(|_| idle);
        adds.into_iter().chain(retry).min()
    }

    /// Takes one event in and answers what is to be done.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Del(request, entry) => self.del(request, entry, &mut effects),
            Event::Add(request, attachment) => {
                let until = now.checked_add(PATIENCE).unwrap_or(Timestamp::MAX);
                self.adds.entry(attachment).or_default().push((request, until));
            }
            Event::Logged(number, result) => self.logged(number, result, &mut effects),
            Event::Unlogged(number, result) => self.unlogged(now, number, result, &mut effects),
            Event::Rewritten(result) => {
                self.rewriting = false;
                match result {
                    // What was appended since is counted from the next recovery on: the bound is a rough one.
                    Ok(()) => self.records = self.entries.len(),
                    Err(reason) => {
                        self.rest(now);
                        effects.push(Effect::Note(Note::LogFailed { reason }));
                    }
                }
            }
            Event::Released(number, outcome) => self.released(now, number, outcome, &mut effects),
            Event::Reachable => {
                self.resting = None;
                self.wait = SHORTEST_WAIT;
            }
            Event::Tick => {}
        }
        self.advance(now, &mut effects);
        effects
    }

    fn del(&mut self, request: RequestId, entry: Entry, effects: &mut Vec<Effect>) {
        // An ADD of the container that is not being served yet is not wanted any more.
        self.refuse_adds(&entry.attachment, "a DEL for the same container came in", effects);
        let numbers = self.turns.get(&entry.attachment).into_iter().flatten().copied();
        let mut same = numbers.filter(|number| {
            self.entries.get(number).is_some_and(|queued| {
                // What is done is done for the addresses that were named, not for whatever is found later.
                let owed = matches!(queued.stage, Stage::Waiting | Stage::Releasing);
                queued.entry.is_same(&entry) && (owed || entry.held.is_some())
            })
        });
        if let Some(number) = same.next_back()
            && let Some(queued) = self.entries.get_mut(&number)
        {
            match queued.durable {
                // The log is being told to forget it: nothing may be written after that.
                _ if matches!(queued.stage, Stage::Removing | Stage::Remembered) => {
                    effects.push(Effect::Reply(request, Verdict::Accepted));
                }
                Durable::Yes => effects.push(Effect::Reply(request, Verdict::Accepted)),
                Durable::Writing => queued.waiting.push(request),
                Durable::Perhaps => {
                    queued.durable = Durable::Writing;
                    queued.waiting.push(request);
                    self.records += 1;
                    effects.push(Effect::Append(number, queued.entry.clone()));
                }
            }
            return;
        }
        if self.entries.len() >= ENTRIES || log::is_too_long(&entry) {
            let reason = format!(
                "{} releases wait for the datastore on this node; try again when it can be reached",
                self.entries.len()
            );
            effects.push(Effect::Reply(request, Verdict::TryAgain { reason }));
            return;
        }
        self.next += 1;
        let number = Number(self.next);
        self.records += 1;
        self.turns.entry(entry.attachment.clone()).or_default().insert(number);
        effects.push(Effect::Append(number, entry.clone()));
        let queued =
            Queued { entry, durable: Durable::Writing, stage: Stage::Waiting, waiting: vec![request] };
        self.entries.insert(number, queued);
    }

    fn logged(&mut self, number: Number, result: Result<(), String>, effects: &mut Vec<Effect>) {
        let Some(queued) = self.entries.get_mut(&number) else { return };
        let waiting = std::mem::take(&mut queued.waiting);
        let verdict = match result {
            Ok(()) => {
                queued.durable = Durable::Yes;
                Verdict::Accepted
            }
            Err(reason) => {
                queued.durable = Durable::Perhaps;
                effects.push(Effect::Note(Note::LogFailed { reason: reason.clone() }));
                let reason =
                    format!("the release cannot be kept on this node: {reason}; make room on its disk");
                Verdict::TryAgain { reason }
            }
        };
        effects.extend(waiting.into_iter().map(|request| Effect::Reply(request, verdict.clone())));
    }

    fn unlogged(
        &mut self,
        now: Timestamp,
        number: Number,
        result: Result<(), String>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(queued) = self.entries.get_mut(&number).filter(|queued| queued.stage == Stage::Removing)
        else {
            return;
        };
        match result {
            Ok(()) => {
                let attachments = [turn_of(&queued.entry), queued.entry.attachment.clone()];
                self.entries.remove(&number);
                for attachment in attachments {
                    if let Some(turn) = self.turns.get_mut(&attachment) {
                        turn.remove(&number);
                        if turn.is_empty() {
                            self.turns.remove(&attachment);
                        }
                    }
                }
            }
            Err(reason) => {
                queued.stage = Stage::Remembered;
                let attachment = queued.entry.attachment.clone();
                effects.push(Effect::Note(Note::LogFailed { reason: reason.clone() }));
                self.refuse_adds(&attachment, &reason, effects);
                self.rest(now);
            }
        }
    }

    fn released(&mut self, now: Timestamp, number: Number, outcome: Replayed, effects: &mut Vec<Effect>) {
        let Some(queued) = self.entries.get_mut(&number).filter(|queued| queued.stage == Stage::Releasing)
        else {
            return;
        };
        let handle = queued.entry.handle.clone();
        match outcome {
            Replayed::Done => {
                queued.stage = Stage::Remembered;
                self.wait = SHORTEST_WAIT;
                self.resting = None;
                effects.push(Effect::Note(Note::Released { handle }));
            }
            Replayed::Foreign => {
                queued.stage = Stage::Remembered;
                effects.push(Effect::Note(Note::Foreign { handle }));
            }
            Replayed::Unavailable { reason } => {
                queued.stage = Stage::Waiting;
                let attachment = queued.entry.attachment.clone();
                self.refuse_adds(&attachment, &reason, effects);
                effects.push(Effect::Note(Note::Postponed { handle, reason }));
                self.rest(now);
            }
        }
    }

    fn rest(&mut self, now: Timestamp) {
        self.resting = Some(now.checked_add(self.wait).unwrap_or(Timestamp::MAX));
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    fn refuse_adds(&mut self, attachment: &Attachment, reason: &str, effects: &mut Vec<Effect>) {
        for (request, _) in self.adds.remove(attachment).unwrap_or_default() {
            let reason = format!("an earlier release for this container is not done: {reason}; try again");
            effects.push(Effect::Reply(request, Verdict::TryAgain { reason }));
        }
    }

    /// Does what can be done now: answers ADDs, and starts the first release of every attachment.
    fn advance(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for attachment in self.adds.keys().cloned().collect::<Vec<_>>() {
            if !self.turns.contains_key(&attachment) {
                let adds = self.adds.remove(&attachment).unwrap_or_default();
                effects.extend(adds.into_iter().map(|(add, _)| Effect::Reply(add, Verdict::Proceed)));
            } else if self
                .adds
                .get(&attachment)
                .is_some_and(|adds| adds.iter().any(|(_, until)| *until <= now))
            {
                self.refuse_adds(&attachment, "the datastore is slow", effects);
            }
        }
        if self.resting.is_some_and(|until| until <= now) {
            self.resting = None;
        }
        let mut flying = self.entries.values().filter(|queued| queued.stage == Stage::Releasing).count();
        for (attachment, turn) in &self.turns {
            let wanted = self.adds.contains_key(attachment);
            let Some(number) = turn.first() else { continue };
            let Some(queued) = self.entries.get_mut(number) else { continue };
            if queued.durable == Durable::Writing || (self.resting.is_some() && !wanted) {
                continue;
            }
            match queued.stage {
                Stage::Waiting if wanted || flying < RELEASES => {
                    queued.stage = Stage::Releasing;
                    flying += 1;
                    effects.push(Effect::Release(*number, queued.entry.clone()));
                }
                Stage::Remembered => {
                    queued.stage = Stage::Removing;
                    self.records += 1;
                    effects.push(Effect::Remove(*number));
                }
                _ => {}
            }
        }
        if self.records > self.entries.len() + GARBAGE && self.resting.is_none() {
            self.rewrite(effects);
        }
    }

    /// Has the log written anew with what is owed.
    fn rewrite(&mut self, effects: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.rewriting, true) {
            return;
        }
        let owed = self
            .entries
            .iter()
            .filter(|(_, queued)| matches!(queued.stage, Stage::Waiting | Stage::Releasing))
            .map(|(number, queued)| (*number, queued.entry.clone()));
        effects.push(Effect::Rewrite(owed.collect()));
    }
}

/// Whose ADDs a recovered release goes before: those of its attachment.
fn turn_of(entry: &Entry) -> Attachment {
    let mut attachment = entry.attachment.clone();
    if made(Mistake::ReplayedRelease) {
        attachment.interface.clear();
    }
    attachment
}
