//! A store that counts what an operation asks of it, and loses answers on command.

use datastore::memory::Memory;
use datastore::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Listing, ReadError, Revision, Scope, Stored,
    Version, Write,
};
use futures::stream::BoxStream;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// What an operation asked of its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Single records read.
    pub(crate) gets: usize,
    /// Lists.
    pub(crate) lists: usize,
    /// Commits.
    pub(crate) commits: usize,
    /// Sets of calls that were sent together: how often nothing was in flight before a call.
    pub(crate) trips: usize,
}

impl Calls {
    /// Whether none of the counts is beyond that of `bound`.
    pub(crate) fn are_within(self, bound: Self) -> bool {
        self.gets <= bound.gets
            && self.lists <= bound.lists
            && self.commits <= bound.commits
            && self.trips <= bound.trips
    }
}

/// What happens to a commit whose answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It was not made.
    Before,
    /// It was made.
    After,
}

/// Every commit of an operation that makes so many, with each way to lose its answer.
pub(crate) fn losses(commits: usize) -> impl Iterator<Item = (usize, Lost)> {
    (0..commits).flat_map(|number| [(number, Lost::Before), (number, Lost::After)])
}

#[derive(Default)]
struct State {
    calls: Calls,
    in_flight: usize,
    lose: Option<(usize, Lost)>,
}

/// The store.
pub(crate) struct Counting {
    /// What it counts the calls of; calls made here are not counted.
    pub(crate) store: Memory,
    state: Mutex<State>,
}

impl Counting {
    /// Counts from zero.
    pub(crate) fn new(store: Memory) -> Self {
        Self { store, state: Mutex::default() }
    }

    /// Counts from zero, and loses the answer of the commit of this number, counted from zero.
    pub(crate) fn losing(store: Memory, number: usize, lost: Lost) -> Self {
        let state = State { lose: Some((number, lost)), ..State::default() };
        Self { store, state: Mutex::new(state) }
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Calls {
        self.state().calls
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call and lets those that are sent with it be sent before any is answered.
    async fn send(&self, count: impl FnOnce(&mut Calls)) {
        {
            let mut state = self.state();
            count(&mut state.calls);
            if state.in_flight == 0 {
                state.calls.trips += 1;
            }
            state.in_flight += 1;
        }
        // A call that its caller does not wait for any more is not under way either.
        let _under_way = UnderWay(self);
        OnceLater(false).await;
    }
}

/// A call until it is answered or given up.
struct UnderWay<'c>(&'c Counting);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
    }
}

/// Ready when it is asked for the second time.
struct OnceLater(bool);

impl Future for OnceLater {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Datastore for Counting {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        self.send(|calls| calls.gets += 1).await;
        self.store.get(key).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        self.send(|calls| calls.lists += 1).await;
        self.store.list(scope).await
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        self.send(|calls| calls.commits += 1).await;
        let lost = {
            let state = self.state();
            state.lose.filter(|(number, _)| number + 1 == state.calls.commits).map(|(_, lost)| lost)
        };
        let Some(lost) = lost else { return self.store.commit(checks, writes).await };
        if lost == Lost::After {
            let _ = self.store.commit(checks, writes).await;
        }
        let key = writes.first().map_or(Key::Config, Write::key);
        Err(CommitError::Unknown { key, reason: "the answer was lost".to_owned() })
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        self.store.watch(scope, from).await
    }
}
