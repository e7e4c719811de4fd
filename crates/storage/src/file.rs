//! The durable file: a table of keys, and the store's revision, in redb.
//!
//! A value is stored as two little-endian `u64`, the revision of its last change and of its creation, and then its
//! bytes. The table `meta` holds `revision`, the last one given out. Both tables change in the same transaction, so a
//! file never shows a key newer than its `revision`.

use crate::event::{Entry, Event};
use crate::reserved::Reserved;
use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
/// Raised when the bytes above change meaning.
const FORMAT_NOW: u64 = 1;
/// Pages that redb keeps; values are held by the index, so few are needed.
const CACHE_BYTES: usize = 4 << 20;
const HEAD: usize = 16;

/// Why a file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{path} is in use by another process: stop that one first", path = .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("cannot open {path}: check that the folder exists, is writable and has space", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file is not one of ours, or was written by a newer version.
    #[error("{path} is not a store of format {FORMAT_NOW}: {reason}; move it away to begin anew", path = .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Where the bytes are: how to open them, and to open them again after a failure.
pub(crate) trait Disk: Send + std::fmt::Debug {
    /// Name for messages.
    fn name(&self) -> PathBuf;
    /// Opens or creates.
    fn open(&self) -> Result<Database, redb::DatabaseError>;
}

#[derive(Debug)]
pub(crate) struct PathDisk(pub(crate) PathBuf);

impl Disk for PathDisk {
    fn name(&self) -> PathBuf {
        self.0.clone()
    }

    fn open(&self) -> Result<Database, redb::DatabaseError> {
        use std::os::unix::fs::OpenOptionsExt;
        // The values may be secrets: nobody else is to read the file.
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.0)
            .map_err(|error| redb::DatabaseError::Storage(redb::StorageError::Io(error)))?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        builder.create_with_backend(Reserved::new(file)?)
    }
}

/// A disk made by a function, called once for each opening.
pub(crate) struct MadeDisk<F>(pub(crate) F);

impl<F> std::fmt::Debug for MadeDisk<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MadeDisk")
    }
}

impl<B: StorageBackend, F: Fn() -> B + Send> Disk for MadeDisk<F> {
    fn name(&self) -> PathBuf {
        Path::new("the given disk").to_owned()
    }

    fn open(&self) -> Result<Database, redb::DatabaseError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        builder.create_with_backend((self.0)())
    }
}

/// An open file, and all that it held.
pub(crate) struct Opened {
    pub(crate) database: Database,
    pub(crate) revision: u64,
    pub(crate) index: BTreeMap<String, Entry>,
}

pub(crate) fn open(disk: &dyn Disk) -> Result<Opened, OpenError> {
    let path = disk.name();
    let io = |source: redb::Error| OpenError::Io { path: disk.name(), source: Box::new(source) };
    let database = match disk.open() {
        Ok(database) => database,
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => return Err(OpenError::InUse { path }),
        Err(redb::DatabaseError::UpgradeRequired(version)) => {
            return Err(OpenError::Foreign { path, reason: format!("its file format is {version}") });
        }
        Err(error) => return Err(io(error.into())),
    };
    prepare(&database).map_err(io)?;
    let (revision, format, index) = match load(&database) {
        Ok(loaded) => loaded,
        Err(LoadError::Redb(error)) => return Err(io(*error)),
        Err(LoadError::ShortValue(key)) => {
            return Err(OpenError::Foreign { path, reason: format!("the value of {key} is cut short") });
        }
    };
    if format != FORMAT_NOW {
        return Err(OpenError::Foreign { path, reason: format!("it says format {format}") });
    }
    if let Some((key, _)) = index.iter().find(|(_, entry)| entry.revision > revision) {
        return Err(OpenError::Foreign { path, reason: format!("{key} is newer than revision {revision}") });
    }
    Ok(Opened { database, revision, index })
}

/// Makes the tables of a new file.
fn prepare(database: &Database) -> Result<(), redb::Error> {
    let read = database.begin_read()?;
    match read.open_table(META) {
        Ok(_) => return Ok(()),
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    drop(read);
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        meta.insert(FORMAT, FORMAT_NOW)?;
        meta.insert(REVISION, 0)?;
        write.open_table(KEYS)?;
    }
    write.commit()?;
    Ok(())
}

enum LoadError {
    Redb(Box<redb::Error>),
    ShortValue(String),
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

fn load(database: &Database) -> Result<(u64, u64, BTreeMap<String, Entry>), LoadError> {
    let read = database.begin_read()?;
    let meta = read.open_table(META)?;
    let number = |key: &str| Ok::<_, LoadError>(meta.get(key)?.map_or(0, |value| value.value()));
    let mut index = BTreeMap::new();
    for row in read.open_table(KEYS)?.iter()? {
        let (key, value) = row?;
        let key = key.value().to_owned();
        let Some(entry) = decode(value.value()) else { return Err(LoadError::ShortValue(key)) };
        index.insert(key, entry);
    }
    Ok((number(REVISION)?, number(FORMAT)?, index))
}

/// The revision that a file says it is at.
pub(crate) fn revision(database: &Database) -> Result<u64, Box<redb::Error>> {
    let read = database.begin_read().map_err(|error| Box::new(error.into()))?;
    let meta = read.open_table(META).map_err(|error| Box::new(error.into()))?;
    let value = meta.get(REVISION).map_err(|error| Box::new(error.into()))?;
    Ok(value.map_or(0, |value| value.value()))
}

/// Makes `events` durable, all or none.
pub(crate) fn write(
    database: &Database,
    events: &[Arc<Event>],
    revision: u64,
) -> Result<(), Box<redb::Error>> {
    let mut buffer = Vec::new();
    let mut attempt = || -> Result<(), redb::Error> {
        let write = database.begin_write()?;
        {
            let mut keys = write.open_table(KEYS)?;
            for event in events {
                match &event.now {
                    Some(entry) => {
                        encode(entry, &mut buffer);
                        keys.insert(event.key.as_str(), buffer.as_slice())?;
                    }
                    None => {
                        keys.remove(event.key.as_str())?;
                    }
                }
            }
            write.open_table(META)?.insert(REVISION, revision)?;
        }
        write.commit()?;
        Ok(())
    };
    attempt().map_err(Box::new)
}

fn encode(entry: &Entry, buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.extend_from_slice(&entry.revision.to_le_bytes());
    buffer.extend_from_slice(&entry.created.to_le_bytes());
    buffer.extend_from_slice(&entry.value);
}

fn decode(stored: &[u8]) -> Option<Entry> {
    let (head, value) = stored.split_at_checked(HEAD)?;
    let (revision, created) = head.split_first_chunk::<8>()?;
    let (created, _) = created.split_first_chunk::<8>()?;
    Some(Entry {
        revision: u64::from_le_bytes(*revision),
        created: u64::from_le_bytes(*created),
        value: Bytes::copy_from_slice(value),
    })
}
