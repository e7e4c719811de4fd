//! Revisioned keys in one durable file: compare-and-set, several keys in one commit, a watch log, group commit.
//!
//! All current values are held in memory; the file is read once, at open. A commit is answered after it is durable
//! in the file, and readers and watchers see it only then. Knows nothing of what the values mean.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! use storage::{Check, Commit, Store, Write};
//! let store = Store::in_memory()?;
//! let mut watch = store.watch("/pods/", store.revision())?;
//! let commit = Commit {
//!     checks: vec![Check::Absent("/pods/a".into())],
//!     writes: vec![Write::Put("/pods/a".into(), "1".into())],
//! };
//! let revisions = store.commit(commit).await?;
//! assert_eq!(store.get("/pods/a").map(|entry| entry.revision), Some(revisions[0]));
//! assert_eq!(watch.next().await?.key, "/pods/a");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

mod backup;
mod commit;
mod event;
mod file;
mod history;
mod reserved;
mod state;
mod store;
mod watch;

pub use backup::{AHEAD, Backup, BackupError, RestoreError};
pub use commit::{Check, Commit, CommitError, Write};
pub use event::{Entry, Event};
pub use file::OpenError;
pub use state::Listing;
pub use store::{Limits, Store};
pub use watch::{Compacted, Cut, Watch};
