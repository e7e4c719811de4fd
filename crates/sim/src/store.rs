//! A client's view of the simulated store: every call waits for its turn and may fail.

use datastore::memory::Memory;
use datastore::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Listing, ReadError, Revision, Scope, Stored,
    Version, Write,
};
use futures::stream::BoxStream;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

/// What happens to a datastore call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is made and answered.
    Proceed,
    /// It does not reach the store, and the client learns only that there was no answer.
    LoseRequest,
    /// It takes effect, and the answer is lost.
    LoseReply,
    /// It takes effect, and the client dies before the answer.
    DieAfter,
}

/// One client's connection. The scheduler grants turns through it.
#[derive(Clone, Debug)]
pub struct SimStore {
    memory: Memory,
    turn: Arc<Mutex<Option<Verdict>>>,
}

impl SimStore {
    /// A connection to `memory`.
    pub fn new(memory: Memory) -> Self {
        Self { memory, turn: Arc::default() }
    }

    /// Lets the client make its next call, with this outcome.
    pub fn grant(&self, verdict: Verdict) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
    }

    /// Waits for a turn. There is no waker: the scheduler polls whom it granted one.
    async fn turn(&self) -> Verdict {
        poll_fn(|_| match self.turn.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(verdict) => Poll::Ready(verdict),
            None => Poll::Pending,
        })
        .await
    }

    /// A read: without an answer it does not matter whether the store saw it.
    async fn read(&self, what: String) -> Result<(), ReadError> {
        match self.turn().await {
            Verdict::Proceed => Ok(()),
            Verdict::DieAfter => std::future::pending().await,
            Verdict::LoseRequest | Verdict::LoseReply => {
                Err(ReadError::Unavailable { what, reason: "simulated loss".to_owned() })
            }
        }
    }
}

impl Datastore for SimStore {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        self.read(key.to_string()).await?;
        self.memory.get(key).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        self.read(format!("{scope:?}")).await?;
        self.memory.list(scope).await
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        let key = || writes.first().map_or(Key::Config, Write::key);
        let unknown = || CommitError::Unknown { key: key(), reason: "simulated loss".to_owned() };
        match self.turn().await {
            Verdict::Proceed => self.memory.commit(checks, writes).await,
            Verdict::LoseRequest => Err(unknown()),
            Verdict::LoseReply => {
                let _ = self.memory.commit(checks, writes).await;
                Err(unknown())
            }
            Verdict::DieAfter => {
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
        self.read(format!("{scope:?}")).await?;
        self.memory.watch(scope, from).await
    }
}
