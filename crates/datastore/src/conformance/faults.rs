//! Concurrent clients whose server is killed, stands still, cannot be reached or has no room: what was answered holds, what was
//! not is told as unknown, and the clients go on when it is over.

use super::concurrent::{Deletes, run_clients};
use super::history::{Did, judge};
use crate::{CommitError, Datastore, Key, Kind, Revision, Scope, Write};
use futures::future::{Either, select};
use std::future::{Future, pending};
use std::pin::pin;
use std::time::Duration;

/// Between two looks at how far it is.
const PAUSE: Duration = Duration::from_millis(20);

/// Changes made between two disturbances, whatever the machine's speed.
const WORK: u64 = 100;

/// What a test does to the server of a store.
pub trait Disturbance {
    /// Begins it. Answers whether the server now leaves without an answer what is sent to it; else it is over already, as when
    /// the server was killed and started again.
    fn begin(&mut self, round: usize) -> impl Future<Output = bool>;

    /// Ends it.
    fn end(&mut self, round: usize) -> impl Future<Output = ()>;
}

/// What became of the writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of which nobody was told whether they were made.
    pub unknown: usize,
    /// Of which the client was told that they were made.
    pub written: usize,
}

/// Lets `clients` make `operations` between them, as [`run_clients`] does, while their server is disturbed `rounds` times at
/// most, and judges their history. `patient` is a client that waits longer for an answer than they do.
///
/// # Errors
/// The operation that cannot have been, or a write into a disturbance that was told as anything but unknown.
pub async fn history_is_linearizable_under<D: Datastore>(
    server: &mut impl Disturbance,
    clients: &[&D],
    patient: &D,
    operations: usize,
    (rounds, deletes): (usize, Deletes),
) -> Result<Outcome, String> {
    let working = pin!(run_clients(clients, "disturbed", operations, 5, deletes));
    let disturbing = pin!(async {
        for round in 0..rounds {
            some_work(patient).await;
            if server.begin(round).await {
                // When this one has given up, so have all that were under way.
                let record = super::handle(&format!("disturbance.{round}"), 1)?;
                let write = patient.commit(&[], &[Write::Create(record)]).await;
                if !matches!(write, Err(CommitError::Unknown { .. })) {
                    return Err(format!("a write without an answer was told as {write:?}"));
                }
            }
            server.end(round).await;
            serving(patient).await;
        }
        // The clients go on by themselves.
        pending::<Result<(), String>>().await
    });
    let run = match select(working, disturbing).await {
        Either::Left((run, _)) => run?,
        Either::Right((disturbed, _)) => {
            disturbed?;
            return Err("the disturbances ended before the clients".to_owned());
        }
    };
    judge(&run.history)?;
    let unknown = run.history.iter().filter(|operation| matches!(operation.did, Did::Unknown { .. })).count();
    Ok(Outcome { unknown, written: run.written.len() })
}

/// Waits until the store answers a read.
async fn serving<D: Datastore>(store: &D) {
    while store.get(&Key::Config).await.is_err() {
        tokio::time::sleep(PAUSE).await;
    }
}

async fn revision<D: Datastore>(store: &D) -> Revision {
    loop {
        match store.list(&Scope::All(Kind::Handle)).await {
            Ok(listing) => return listing.revision,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn some_work<D: Datastore>(store: &D) {
    let from = revision(store).await;
    while revision(store).await.0 < from.0 + WORK {
        tokio::time::sleep(PAUSE).await;
    }
}
