//! Turns: who lost a race for an object without a condition of its own waits for the others, and does not lose again and
//! again.

use std::hash::{DefaultHasher, Hash, Hasher};
use tokio::sync::{Mutex, MutexGuard};

/// Queues. Keys share them: waiting for another object's writers costs time and nothing else.
const QUEUES: usize = 64;

/// Fair queues of writers.
#[derive(Debug)]
pub(crate) struct Turns(Vec<Mutex<()>>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..QUEUES).map(|_| Mutex::default()).collect())
    }
}

impl Turns {
    /// Waits until all who asked before have had their turn. The turn ends when what is returned is dropped.
    pub(crate) async fn wait(&self, key: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % QUEUES as u64).unwrap_or_default();
        self.0[at].lock().await
    }
}
