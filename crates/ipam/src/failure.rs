//! What can go wrong between a protocol and its store.

use datastore::{CommitError, ReadError};

/// How often an operation reads again and decides again after a conflict before it gives up (algorithm §1).
pub const ATTEMPTS: usize = 100;

/// A store that could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A read failed.
    #[error(transparent)]
    Read(ReadError),
    /// A commit failed for another reason than a conflict, which the protocols absorb.
    #[error(transparent)]
    Commit(CommitError),
    /// Others changed the same records at every attempt.
    #[error("gave up on {what} after {ATTEMPTS} attempts: too many concurrent IPAM requests, try again")]
    Contention {
        /// What was attempted.
        what: String,
    },
}

impl StoreError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Read(error) => matches!(error, ReadError::Unavailable { .. } | ReadError::Expired { .. }),
            Self::Commit(error) => !matches!(error, CommitError::Refused { .. }),
            Self::Contention { .. } => true,
        }
    }
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<CommitError> for StoreError {
    fn from(error: CommitError) -> Self {
        Self::Commit(error)
    }
}
