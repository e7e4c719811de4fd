//! Backups: everything that a store holds at one revision, as bytes, and a new file made of them.
//!
//! A backup is text but for the values: a line `tortie-backup 1 REVISION COUNT`; then for each key a line
//! `REVISION CREATED KEY-BYTES VALUE-BYTES`, the key, the value and a line feed; at the end a line `end SHA-256` over all
//! bytes before it. A backup that was cut short or changed is not read.

use crate::event::{Entry, Event};
use crate::file::{self, Disk as _, OpenError, PathDisk};
use crate::store::Store;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::io::{self, BufRead, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &str = "tortie-backup 1";

/// How far ahead of the backup a restored store begins: whoever saw a revision given out after the backup must not take
/// it for one of the restored store's.
pub const AHEAD: u64 = 1_000_000;

/// Keys written to a new file in one transaction.
const CHUNK: usize = 10_000;

/// Largest key or value that is read, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Everything in a store at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    revision: u64,
    entries: Vec<(String, Entry)>,
}

/// Why bytes are no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// They could not be read.
    #[error("the backup cannot be read")]
    Io(#[from] io::Error),
    /// They are not what a backup is.
    #[error("the backup is damaged: {0}; take another one")]
    Damaged(&'static str),
}

/// Why a backup could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is a file already.
    #[error("{path} exists: move it away, or restore to another place", path = .0.display())]
    Exists(PathBuf),
    /// The new file cannot be made.
    #[error("cannot make the restored store")]
    Open(#[from] OpenError),
    /// The new file cannot be written.
    #[error("cannot write {path}: check that there is space", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Store {
    /// Everything as it is now. Commits go on meanwhile.
    pub fn backup(&self) -> Backup {
        let listing = self.list("", None, 0);
        Backup { revision: listing.revision, entries: listing.entries }
    }
}

impl Backup {
    /// The revision that it shows.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Its bytes, part by part.
    pub fn into_chunks(self) -> impl Iterator<Item = Bytes> + Send {
        let head = Bytes::from(format!("{MAGIC} {} {}\n", self.revision, self.entries.len()));
        let bodies = self.entries.into_iter().flat_map(|(key, entry)| {
            let (revision, created, value) = (entry.revision, entry.created, entry.value);
            let line = format!("{revision} {created} {} {}\n{key}", key.len(), value.len());
            [Bytes::from(line), value, Bytes::from_static(b"\n")]
        });
        let mut hash = Sha256::new();
        let mut all = std::iter::once(head).chain(bodies);
        let mut ended = false;
        std::iter::from_fn(move || {
            if let Some(chunk) = all.next() {
                hash.update(&chunk);
                return Some(chunk);
            }
            if std::mem::replace(&mut ended, true) {
                return None;
            }
            Some(Bytes::from(format!("end {}\n", hex(&hash.finalize_reset()))))
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`BackupError`] when it is not whole.
    pub fn read(input: impl BufRead) -> Result<Self, BackupError> {
        let mut input = Hashed { input, hash: Sha256::new() };
        let head = input.line()?;
        let rest =
            head.strip_prefix(MAGIC).ok_or(BackupError::Damaged("it does not begin as a backup does"))?;
        let [revision, count] = numbers(rest)?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let [of, created, key, value] = numbers(&input.line()?)?;
            let key = String::from_utf8(input.bytes(key)?)
                .map_err(|_| BackupError::Damaged("a key is not text"))?;
            let value = Bytes::from(input.bytes(value)?);
            if input.bytes(1)? != b"\n" || of > revision || created > of {
                return Err(BackupError::Damaged("a value does not end where it should"));
            }
            entries.push((key, Entry { revision: of, created, value }));
        }
        let wanted = format!("end {}", hex(&input.hash.clone().finalize()));
        if input.line()? != wanted {
            return Err(BackupError::Damaged("its checksum is another one"));
        }
        Ok(Self { revision, entries })
    }

    /// Makes a new file of it, and returns the revision at which it begins: [`AHEAD`] of the backup's.
    ///
    /// The file is there when it is whole, and not before.
    ///
    /// # Errors
    /// [`RestoreError`]: it exists, or cannot be written.
    pub fn restore(self, path: &Path) -> Result<u64, RestoreError> {
        if path.exists() {
            return Err(RestoreError::Exists(path.to_owned()));
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(".restoring");
        let beside = PathBuf::from(beside);
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| RestoreError::Write {
            path: beside.clone(),
            source,
        };
        // What an earlier attempt left is of no use.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error.into())),
            _ => {}
        }
        let revision = self.revision + AHEAD;
        let disk = PathDisk(beside.clone());
        let opened = file::open(&disk)?;
        let mut events = self.entries.into_iter().map(|(key, entry)| {
            Arc::new(Event { revision: entry.revision, key, now: Some(entry), before: None })
        });
        loop {
            let chunk: Vec<Arc<Event>> = events.by_ref().take(CHUNK).collect();
            file::write(&opened.database, &chunk, revision).map_err(|error| failed(error))?;
            if chunk.len() < CHUNK {
                break;
            }
        }
        drop(opened);
        std::fs::rename(disk.name(), path).map_err(|error| failed(error.into()))?;
        let folder =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        std::fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| failed(error.into()))?;
        Ok(revision)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn numbers<const N: usize>(text: &str) -> Result<[u64; N], BackupError> {
    let damaged = BackupError::Damaged("a line has no numbers where it should");
    let found: Option<Vec<u64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
    found.and_then(|found| found.try_into().ok()).ok_or(damaged)
}

/// Reads and hashes.
struct Hashed<R> {
    input: R,
    hash: Sha256,
}

impl<R: BufRead> Hashed<R> {
    fn line(&mut self) -> Result<String, BackupError> {
        let mut line = Vec::new();
        (&mut self.input).take(4096).read_until(b'\n', &mut line)?;
        self.hash.update(&line);
        match line.pop() {
            Some(b'\n') => String::from_utf8(line).map_err(|_| BackupError::Damaged("a line is not text")),
            _ => Err(BackupError::Damaged("it ends too soon")),
        }
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, BackupError> {
        if count > MAX_BYTES {
            return Err(BackupError::Damaged("a value is larger than any can be"));
        }
        let mut bytes = Vec::new();
        (&mut self.input).take(count).read_to_end(&mut bytes)?;
        self.hash.update(&bytes);
        if u64::try_from(bytes.len()).is_ok_and(|length| length == count) {
            Ok(bytes)
        } else {
            Err(BackupError::Damaged("it ends too soon"))
        }
    }
}
