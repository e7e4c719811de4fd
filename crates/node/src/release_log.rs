//! The file under the queue of releases: appended to and made durable on a thread of its own, in order.
//!
//! ```text
//!   STATE-DIR/releases.log       records of ipam::release_queue::log
//!   STATE-DIR/releases.log.new   a log being written anew; renamed over the other when it is durable
//! ```
//!
//! The directory is locked as long as the agent lives: two agents over one log would forget each other's releases.

use ipam::release_queue::{Effect, Event, log};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// Name of the file.
const FILE: &str = "releases.log";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another agent has it.
    #[error("another agent keeps its releases in {directory}: give each node's agent a directory of its own")]
    Taken {
        /// The directory.
        directory: PathBuf,
    },
    /// The system refuses.
    #[error("releases cannot be kept in {directory}: make it a directory that the agent can write")]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The file, open for appending.
#[derive(Debug)]
struct Log {
    directory: PathBuf,
    /// Its lock is the agent's claim to the log.
    lock: File,
    file: File,
}

impl Log {
    /// Takes the log in `directory`, and reads what it holds.
    fn open(directory: &Path) -> Result<(Self, Vec<u8>), LogError> {
        let unusable = |source: io::Error| LogError::Unusable { directory: directory.to_owned(), source };
        fs::create_dir_all(directory).map_err(unusable)?;
        let lock = File::open(directory).map_err(unusable)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LogError::Taken { directory: directory.to_owned() });
            }
            Err(error) => return Err(unusable(error.into())),
        }
        let file = appended(&directory.join(FILE)).map_err(unusable)?;
        // A file that was made just now is there after a loss of power only when its directory says so.
        lock.sync_all().map_err(unusable)?;
        let bytes = fs::read(directory.join(FILE)).map_err(unusable)?;
        Ok((Self { directory: directory.to_owned(), lock, file }, bytes))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.sync_data()
    }

    fn rewrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        let draft = self.directory.join(format!("{FILE}.new"));
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = appended(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, self.directory.join(FILE))?;
        self.file = file;
        self.lock.sync_all()
    }

    fn write(&mut self, effect: &Effect) -> Option<Event> {
        let told = |result: io::Result<()>| result.map_err(|error| error.to_string());
        Some(match effect {
            Effect::Append(number, entry) => {
                Event::Logged(*number, told(self.append(&log::append(*number, entry))))
            }
            Effect::Remove(number) => Event::Unlogged(*number, told(self.append(&log::remove(*number)))),
            Effect::Rewrite(entries) => Event::Rewritten(told(self.rewrite(&log::whole(entries)))),
            Effect::Release(..) | Effect::Reply(..) | Effect::Note(_) => return None,
        })
    }
}

fn appended(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Way to the thread that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    effects: mpsc::Sender<Effect>,
}

impl Writer {
    /// Takes the log in `directory`; answers what it holds. `done` is told what became of each write, in order.
    ///
    /// # Errors
    /// [`LogError`].
    pub(crate) fn open(
        directory: &Path,
        done: impl Fn(Event) + Send + 'static,
    ) -> Result<(Self, Vec<u8>), LogError> {
        let (mut log, bytes) = Log::open(directory)?;
        let (effects, orders) = mpsc::channel::<Effect>();
        let work = move || {
            for effect in orders {
                if let Some(event) = log.write(&effect) {
                    done(event);
                }
            }
        };
        let spawned = std::thread::Builder::new().name("releases".to_owned()).spawn(work);
        spawned.map_err(|source| LogError::Unusable { directory: directory.to_owned(), source })?;
        Ok((Self { effects }, bytes))
    }

    /// Has one effect on the log carried out after those before it.
    pub(crate) fn write(&self, effect: Effect) {
        // The thread ends after this.
        let _ = self.effects.send(effect);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::attachment::Attachment;
    use ipam::release_queue::{Entry, Number};
    use jiff::Timestamp;

    fn entry(container: &str) -> Entry {
        let attachment = Attachment {
            network: "net".to_owned(),
            container: container.to_owned(),
            interface: "eth0".to_owned(),
        };
        let handle = format!("net.{container}");
        Entry { attachment, handle, held: None, cluster: None, at: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn what_was_written_is_found_by_the_next_agent_and_by_no_other_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let (done, events) = mpsc::channel();
        let (writer, bytes) = Writer::open(&path, move |event| done.send(event).unwrap()).unwrap();
        assert!(bytes.is_empty());
        writer.write(Effect::Append(Number(1), entry("a")));
        writer.write(Effect::Append(Number(2), entry("b")));
        writer.write(Effect::Remove(Number(1)));
        assert!(matches!(Log::open(&path), Err(LogError::Taken { .. })));
        let found: Vec<bool> = (0..3)
            .map(|_| match events.recv().unwrap() {
                Event::Logged(_, result) | Event::Unlogged(_, result) => result.is_ok(),
                _ => false,
            })
            .collect();
        assert_eq!(found, [true; 3]);
        writer.write(Effect::Rewrite(vec![(Number(2), entry("b"))]));
        assert!(matches!(events.recv().unwrap(), Event::Rewritten(Ok(()))));
        writer.write(Effect::Append(Number(3), entry("c")));
        assert!(matches!(events.recv().unwrap(), Event::Logged(Number(3), Ok(()))));
        drop(writer);
        // The thread lets go of the log when it has ended.
        assert!(events.recv().is_err());
        let (_, bytes) = Log::open(&path).unwrap();
        let held = log::decode(&bytes);
        assert_eq!(held.entries, [(Number(2), entry("b")), (Number(3), entry("c"))].into());
        assert_eq!(held.damaged, 0);
    }
}
