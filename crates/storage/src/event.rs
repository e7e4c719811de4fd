//! A change of a key, and the value that it leaves.

use bytes::Bytes;

/// A key's value and where it stands in the store's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Revision of the last change.
    pub revision: u64,
    /// Revision at which the key was created.
    pub created: u64,
    /// The value.
    pub value: Bytes,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The change's own revision; no two events share one.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// The value after the change; `None`: deleted.
    pub now: Option<Entry>,
    /// The value before; `None`: created.
    pub before: Option<Entry>,
}
