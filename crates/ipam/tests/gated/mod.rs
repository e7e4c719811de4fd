//! The store in memory behind a gate: a test says of each call what becomes of it, and whether commits are atomic.

#![expect(dead_code, reason = "each of the tests that include it uses a part")]

use datastore::memory::Memory;
use datastore::ordered::{self, Single};
use datastore::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Listing, ReadError, Record, Revision, Scope,
    Stored, Version, Write,
};
use futures::future::{Either, select};
use futures::stream::BoxStream;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// A call at the gate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call<'a> {
    Get(&'a Key),
    List(&'a Scope),
    /// A commit, or one write of it where they are made one by one.
    Commit(&'a [Write]),
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is made and answered.
    Pass,
    /// The client dies before the call has any effect.
    DiesBefore,
    /// The client dies when the call has taken effect.
    DiesAfter,
    /// The answer is lost, and the call had no effect.
    LostBefore,
    /// The answer is lost, and the call took effect.
    LostAfter,
    /// The store cannot be reached.
    Unreachable,
}

/// Who decides.
pub(crate) trait Gate: Send + Sync {
    /// What becomes of this call.
    fn pass(&self, call: Call<'_>) -> impl Future<Output = Fate> + Send;
}

/// A gate by a function.
pub(crate) struct By<F>(pub(crate) F);

impl<F: Fn(Call<'_>) -> Fate + Send + Sync> Gate for By<F> {
    fn pass(&self, call: Call<'_>) -> impl Future<Output = Fate> + Send {
        std::future::ready((self.0)(call))
    }
}

/// A gate that gives every other client a turn before each call.
pub(crate) struct InTurn;

impl Gate for InTurn {
    async fn pass(&self, _: Call<'_>) -> Fate {
        let mut yielded = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return std::task::Poll::Ready(());
            }
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
        Fate::Pass
    }
}

/// The store.
pub(crate) struct Gated<G> {
    pub(crate) store: Memory,
    /// Commits are made write by write, each a call, as on a Kubernetes API.
    pub(crate) ordered: bool,
    pub(crate) gate: G,
}

impl<G: Gate> Gated<G> {
    /// Reads have no effect to lose: either the client dies or it is told.
    async fn before_read(&self, call: Call<'_>, what: String) -> Result<(), ReadError> {
        match self.gate.pass(call).await {
            Fate::Pass => Ok(()),
            Fate::DiesBefore | Fate::DiesAfter => futures::future::pending().await,
            _ => Err(ReadError::Unavailable { what, reason: "fault".to_owned() }),
        }
    }

    async fn make(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        let key = writes.first().map_or(Key::Config, Write::key);
        let unknown = CommitError::Unknown { key: key.clone(), reason: "fault".to_owned() };
        match self.gate.pass(Call::Commit(writes)).await {
            Fate::Pass => self.store.commit(checks, writes).await,
            Fate::Unreachable => Err(CommitError::Unavailable { key, reason: "fault".to_owned() }),
            Fate::DiesBefore => futures::future::pending().await,
            Fate::LostBefore => Err(unknown),
            Fate::LostAfter => {
                let _ = self.store.commit(checks, writes).await;
                Err(unknown)
            }
            Fate::DiesAfter => {
                let _ = self.store.commit(checks, writes).await;
                futures::future::pending().await
            }
        }
    }
}

impl<G: Gate> Single for Gated<G> {
    type Before = Record;

    async fn write_one(&self, write: &Write) -> Result<Version, CommitError> {
        Ok(self.make(&[], std::slice::from_ref(write)).await?.remove(0))
    }

    async fn version_of(&self, key: &Key) -> Result<Option<Version>, ReadError> {
        Ok(Datastore::get(self, key).await?.map(|stored| stored.version))
    }

    async fn before(&self, key: &Key, version: &Version) -> Result<Option<Record>, ReadError> {
        let found = Datastore::get(self, key).await?;
        Ok(found.filter(|stored| stored.version == *version).map(|stored| stored.record))
    }

    async fn restore(&self, _: &Key, before: Record, version: &Version) -> Result<(), CommitError> {
        self.write_one(&Write::Update(before, version.clone())).await.map(drop)
    }

    async fn recreate(&self, _: &Key, before: Record) -> Result<(), CommitError> {
        self.write_one(&Write::Create(before)).await.map(drop)
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

impl<G: Gate> Datastore for Gated<G> {
    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_commit: !self.ordered, name: "gated" }
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        self.before_read(Call::Get(key), key.to_string()).await?;
        self.store.get(key).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        self.before_read(Call::List(scope), scope.to_string()).await?;
        self.store.list(scope).await
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        if self.ordered {
            return ordered::commit(self, checks, writes).await;
        }
        self.make(checks, writes).await
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        self.store.watch(scope, from).await
    }
}

/// Runs a client until it answers or dies. Nothing else is pending in such tests: not being ready at once is death.
pub(crate) async fn until_answered_or_dead<T>(client: impl Future<Output = T>) -> Option<T> {
    match select(pin!(client), std::future::ready(())).await {
        Either::Left((answer, _)) => Some(answer),
        Either::Right(_) => None,
    }
}
