//! A commit: what must hold, what to write, and how it can fail.

use bytes::Bytes;

/// Something that must hold when the commit is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The key's last change is still this revision.
    Revision(String, u64),
    /// There is no such key.
    Absent(String),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Set the key, whether or not it exists: conditions are checks.
    Put(String, Bytes),
    /// Remove the key. Removing what is not there takes a revision and tells nobody.
    Delete(String),
}

impl Write {
    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// Checks and writes that are made together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// All must hold, against the state just before this commit.
    pub checks: Vec<Check>,
    /// In order; each takes the next revision.
    pub writes: Vec<Write>,
}

impl Commit {
    /// Creates `key`.
    pub fn create(key: impl Into<String>, value: Bytes) -> Self {
        let key = key.into();
        Self { checks: vec![Check::Absent(key.clone())], writes: vec![Write::Put(key, value)] }
    }

    /// Replaces `key`, last seen at `revision`.
    pub fn update(key: impl Into<String>, revision: u64, value: Bytes) -> Self {
        let key = key.into();
        Self { checks: vec![Check::Revision(key.clone(), revision)], writes: vec![Write::Put(key, value)] }
    }

    /// Deletes `key`, last seen at `revision`.
    pub fn delete(key: impl Into<String>, revision: u64) -> Self {
        let key = key.into();
        Self { checks: vec![Check::Revision(key.clone(), revision)], writes: vec![Write::Delete(key)] }
    }
}

/// Why a commit was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A check does not hold: read `key` again and decide again.
    #[error("{key} is at {found:?} and not as the commit expects: read it again")]
    Conflict {
        /// Key of the first check that failed.
        key: String,
        /// Revision of its last change; `None` when there is no such key.
        found: Option<u64>,
    },
    /// The file could not be written. **The commit may still turn out to have been made**: read before repeating.
    #[error("cannot write {file}: {reason}; reads go on, free space or mend the disk and try again")]
    Unavailable {
        /// The file.
        file: String,
        /// What the disk said.
        reason: String,
    },
    /// The commit is larger than the store takes.
    #[error("the commit has {bytes} bytes, more than {limit}: split it")]
    TooLarge {
        /// Keys and values together.
        bytes: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// The store is being closed.
    #[error("the store is closed: open it again")]
    Closed,
}
