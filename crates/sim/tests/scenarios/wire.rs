//! The store of a scenario: every call is counted, and may be lost, refused, answered to nobody, or preceded by another's deed.

use datastore::memory::Memory;
use datastore::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Listing, ReadError, Revision, Scope, Stored,
    Version, Write,
};
use futures::stream::BoxStream;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// What becomes of a call in place of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Refused without a trace, and the caller knows.
    Refused,
    /// Not done, and the caller does not know.
    RequestLost,
    /// Done, and the caller does not know.
    ReplyLost,
    /// The caller dies before it.
    DiesBefore,
    /// It is done, and the caller dies.
    DiesAfter,
}

/// Something that another client does meanwhile.
type Deed = Box<dyn FnOnce(&Memory) + Send>;

#[derive(Default)]
struct Script {
    calls: usize,
    reads: usize,
    commits: usize,
    fates: BTreeMap<usize, Fate>,
    deeds: BTreeMap<usize, Deed>,
    /// Every call has this fate.
    always: Option<Fate>,
}

/// A connection to the store in memory.
#[derive(Clone)]
pub(crate) struct Wire {
    /// The store behind it, without any script.
    pub(crate) memory: Memory,
    script: Arc<Mutex<Script>>,
}

impl Wire {
    pub(crate) fn new(memory: Memory) -> Self {
        Self { memory, script: Arc::default() }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Counts from here on; what was scripted is forgotten.
    pub(crate) fn restart(&self) {
        *self.script() = Script::default();
    }

    /// What becomes of the `number`th call from the restart on, counted from 1.
    pub(crate) fn at(&self, number: usize, fate: Fate) {
        self.script().fates.insert(number, fate);
    }

    /// What becomes of every call from now on; `None`: success.
    pub(crate) fn always(&self, fate: Option<Fate>) {
        self.script().always = fate;
    }

    /// What another client does just before the `number`th call from the restart on.
    pub(crate) fn before(&self, number: usize, deed: impl FnOnce(&Memory) + Send + 'static) {
        self.script().deeds.insert(number, Box::new(deed));
    }

    /// Calls since the restart.
    pub(crate) fn calls(&self) -> usize {
        self.script().calls
    }

    /// Reads and commits since the restart.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let script = self.script();
        (script.reads, script.commits)
    }

    /// Counts a call and says what becomes of it.
    fn turn(&self, read: bool) -> Option<Fate> {
        let (deed, fate) = {
            let mut script = self.script();
            script.calls += 1;
            let number = script.calls;
            *if read { &mut script.reads } else { &mut script.commits } += 1;
            (script.deeds.remove(&number), script.fates.remove(&number).or(script.always))
        };
        if let Some(deed) = deed {
            deed(&self.memory);
        }
        fate
    }

    async fn read(&self, what: impl ToString) -> Result<(), ReadError> {
        match self.turn(true) {
            None => Ok(()),
            Some(Fate::DiesBefore | Fate::DiesAfter) => std::future::pending().await,
            Some(_) => Err(ReadError::Unavailable { what: what.to_string(), reason: "no answer".to_owned() }),
        }
    }
}

impl Datastore for Wire {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        self.read(key).await?;
        self.memory.get(key).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        self.read(scope).await?;
        self.memory.list(scope).await
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        let Some(first) = writes.first() else { return Ok(Vec::new()) };
        let (key, reason) = (first.key(), "no answer".to_owned());
        match self.turn(false) {
            None => self.memory.commit(checks, writes).await,
            Some(Fate::Refused) => Err(CommitError::Unavailable { key, reason }),
            Some(Fate::RequestLost) => Err(CommitError::Unknown { key, reason }),
            Some(Fate::ReplyLost) => {
                let _ = self.memory.commit(checks, writes).await;
                Err(CommitError::Unknown { key, reason })
            }
            Some(Fate::DiesBefore) => std::future::pending().await,
            Some(Fate::DiesAfter) => {
                let _ = self.memory.commit(checks, writes).await;
                std::future::pending().await
            }
        }
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        self.memory.watch(scope, from).await
    }
}
