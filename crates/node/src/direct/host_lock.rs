//! Calico's lock of a node (cni §3.5): a file that is locked as a whole while something is assigned or released.
//!
//! Where it cannot be had at all, the work goes on without it, as in Calico's plugin: what keeps two programs from one address is
//! the datastore.

use super::refusal;
use api::attachment::ErrorReply;
use ipam::agent::TRY_AGAIN;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the lock is waited for. Calico's plugin waits for ever; a runtime does not.
const PATIENCE: Duration = Duration::from_secs(20);

/// The lock, until this is dropped.
#[derive(Debug)]
pub(super) struct HostLock {
    _file: Option<File>,
    /// Somebody else had it: what was known before may have changed.
    pub(super) waited: bool,
}

impl HostLock {
    /// Waits for the lock at `path`, whose directory is made if it is missing.
    ///
    /// # Errors
    /// Code 11 when somebody else has held it for too long.
    pub(super) async fn take(path: PathBuf) -> Result<Self, ErrorReply> {
        let (sender, receiver) = oneshot::channel();
        let named = path.clone();
        // Waiting for it blocks, and may never end: on a thread that ends with the process.
        let spawned = std::thread::Builder::new().name("host lock".to_owned()).spawn(move || {
            // Nobody may be waiting any more; the lock goes with the file then.
            let _ = sender.send(locked(&path));
        });
        if spawned.is_err() {
            return Ok(Self { _file: None, waited: false });
        }
        match tokio::time::timeout(PATIENCE, receiver).await {
            Ok(taken) => {
                let (file, waited) = taken.ok().flatten().unzip();
                Ok(Self { _file: file, waited: waited.unwrap_or(false) })
            }
            Err(_) => Err(refusal(
                TRY_AGAIN,
                format!(
                    "another plugin has held {} for {} s; see which, with fuser",
                    named.display(),
                    PATIENCE.as_secs()
                ),
            )),
        }
    }
}

/// The locked file, and whether it was waited for.
fn locked(path: &Path) -> Option<(File, bool)> {
    if let Some(directory) = path.parent() {
        // Where it cannot be made, opening says so.
        let _ = DirBuilder::new().recursive(true).mode(0o777).create(directory);
    }
    // Only its lock is used; Calico's plugin opens it for reading, and makes it where it is missing.
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = made.or_else(|_| File::open(path)).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Some((file, false));
    }
    flock(&file, FlockOperation::LockExclusive).ok()?;
    Some((file, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_lock_is_waited_for_and_its_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("calico/ipam.lock");
        assert!(!HostLock::take(path.clone()).await.unwrap().waited);
        let held = File::open(&path).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        let mut waiting = std::pin::pin!(HostLock::take(path.clone()));
        assert!(futures::poll!(&mut waiting).is_pending());
        flock(&held, FlockOperation::Unlock).unwrap();
        let taken = waiting.await.unwrap();
        let refused = flock(&held, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(refused, Err(rustix::io::Errno::WOULDBLOCK));
        drop(taken);
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    }

    #[tokio::test]
    async fn where_there_can_be_no_lock_the_work_goes_on() {
        assert!(HostLock::take("/proc/nowhere/ipam.lock".into()).await.unwrap()._file.is_none());
    }
}
