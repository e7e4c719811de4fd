//! What a command fails with: one sentence for people, and what it printed before.

use datastore::{CommitError, ReadError};
use ipam::StoreError;

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    printed: String,
    sentence: String,
}

impl Failure {
    /// Fails with this sentence.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self { printed: String::new(), sentence: sentence.into() }
    }

    /// Fails after having printed something.
    pub(crate) fn after(printed: String, sentence: impl Into<String>) -> Self {
        Self { printed, sentence: sentence.into() }
    }

    /// What goes to stdout.
    pub(crate) fn printed(&self) -> &str {
        &self.printed
    }

    /// What goes to stderr.
    pub(crate) fn sentence(&self) -> String {
        self.sentence.clone()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        Self::new(error.to_string())
    }
}
