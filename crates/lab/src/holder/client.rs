//! The other end of the holder's control socket.

use super::passing;
use super::protocol::{
    Answer, Call, LINE_LIMIT, ListenSpec, NamespaceSpec, ProcessSpec, ProcessState, RefusalKind, Request,
    Streams,
};
use futures::{SinkExt as _, StreamExt as _};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio_util::codec::{FramedRead, FramedWrite, LinesCodec};

/// Why a request to the holder was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The holder answered no.
    #[error("{message}")]
    Refused {
        /// What the caller can do about it.
        kind: RefusalKind,
        /// What was refused and why.
        message: String,
    },
    /// The connection is gone: so is the lab, because the holder never ends before it.
    #[error("the lab's holder does not answer ({0}); run containerlab deploy")]
    Gone(String),
}

impl ClientError {
    /// The holder's reason, when it answered.
    #[must_use]
    pub fn kind(&self) -> Option<RefusalKind> {
        match self {
            Self::Refused { kind, .. } => Some(*kind),
            Self::Gone(_) => None,
        }
    }

    fn gone(cause: &dyn std::fmt::Display) -> Self {
        Self::Gone(cause.to_string())
    }
}

/// A process whose standard streams are in the caller's hands.
#[derive(Debug)]
pub struct Attached {
    /// Process id as seen inside the lab.
    pub pid: i32,
    /// Writing end of standard input, when it was asked for and there is no terminal.
    pub stdin: Option<OwnedFd>,
    /// Reading end of standard output; with a terminal, the terminal itself, to read and to write.
    pub stdout: OwnedFd,
    /// Reading end of standard error; none with a terminal.
    pub stderr: Option<OwnedFd>,
}

/// A connection to the holder. Clones share it; requests of all clones may be under way at once.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

type Outcome = Result<serde_json::Value, ClientError>;

#[derive(Debug)]
struct Shared {
    /// Kept open while the client lives, so that further connections find the socket whatever its path's length.
    directory: std::path::PathBuf,
    requests: tokio::sync::mpsc::UnboundedSender<String>,
    waiting: Mutex<Option<BTreeMap<u64, oneshot::Sender<Outcome>>>>,
    last: AtomicU64,
}

impl Client {
    /// Connects to the holder of the lab in `directory` (its socket is `holder.sock` there).
    ///
    /// # Errors
    /// [`ClientError::Gone`] when nothing listens there.
    pub async fn connect(directory: &Path) -> Result<Self, ClientError> {
        let (read, write) = open(directory)?.into_split();
        let (requests, mut outgoing) = tokio::sync::mpsc::unbounded_channel::<String>();
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            requests,
            waiting: Mutex::new(Some(BTreeMap::new())),
            last: AtomicU64::new(0),
        });
        tokio::spawn(async move {
            let mut lines: FramedWrite<OwnedWriteHalf, LinesCodec> =
                FramedWrite::new(write, LinesCodec::new_with_max_length(LINE_LIMIT));
            while let Some(line) = outgoing.recv().await {
                if lines.send(line).await.is_err() {
                    return;
                }
            }
        });
        // The reader holds no strong reference: when the last client goes, the channel closes, the writing half is
        // dropped, the holder closes its side, and the reader ends.
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            let mut lines: FramedRead<OwnedReadHalf, LinesCodec> =
                FramedRead::new(read, LinesCodec::new_with_max_length(LINE_LIMIT));
            let cause = loop {
                match lines.next().await {
                    None => break "it closed the connection".to_owned(),
                    Some(Err(error)) => break error.to_string(),
                    Some(Ok(line)) => {
                        let Ok(answer) = serde_json::from_str::<Answer>(&line) else { continue };
                        let Some(shared) = weak.upgrade() else { return };
                        shared.settle(answer);
                    }
                }
            };
            if let Some(shared) = weak.upgrade() {
                shared.close(&cause);
            }
        });
        Ok(Self { shared })
    }

    /// Starts a process and returns its process id.
    ///
    /// # Errors
    /// `Exists` when one of that name runs, `NotFound` for an unknown set or listener, `NotRunnable` for the program.
    pub async fn spawn(&self, spec: ProcessSpec) -> Result<i32, ClientError> {
        self.ask(Call::Spawn(spec)).await
    }

    /// Starts a process whose standard streams come back to the caller; its end is seen by [`Client::watch`].
    ///
    /// # Errors
    /// As [`Client::spawn`].
    pub async fn spawn_attached(&self, spec: ProcessSpec, streams: Streams) -> Result<Attached, ClientError> {
        let connection = open(&self.shared.directory)?;
        let request = Request { number: 0, call: Call::SpawnAttached(spec, streams) };
        let mut line = serde_json::to_vec(&request).map_err(|error| ClientError::gone(&error))?;
        line.push(b'\n');
        passing::write_all(&connection, &line).await.map_err(|error| ClientError::gone(&error))?;
        let (answer, files) =
            passing::receive(&connection).await.map_err(|error| ClientError::gone(&error))?;
        let answer: Answer = serde_json::from_slice(&answer).map_err(|error| ClientError::gone(&error))?;
        let pid: i32 = decode(answered(answer)?)?;
        let mut files = files.into_iter();
        let stdin = if streams.stdin && streams.terminal.is_none() { files.next() } else { None };
        let stdout = files.next().ok_or_else(|| ClientError::Gone("it passed no streams".into()))?;
        Ok(Attached { pid, stdin, stdout, stderr: files.next() })
    }

    /// Sends `signal` (its number) to a process and to what it started.
    ///
    /// # Errors
    /// `NotFound` when none of that name runs.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<(), ClientError> {
        self.ask(Call::Signal { id: id.to_owned(), signal }).await
    }

    /// The processes whose name starts with `prefix`, running or ended, by name.
    ///
    /// # Errors
    /// Only when the holder is gone.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ProcessState>, ClientError> {
        self.ask(Call::List { prefix: prefix.to_owned() }).await
    }

    /// Drops the record of an ended process.
    ///
    /// # Errors
    /// `Exists` when it still runs, `NotFound` when there is none.
    pub async fn forget(&self, id: &str) -> Result<(), ClientError> {
        self.ask(Call::Forget { id: id.to_owned() }).await
    }

    /// Follows the processes whose name starts with `prefix`: first all there are, then each start and each end.
    ///
    /// # Errors
    /// Only when the holder is gone.
    pub async fn watch(&self, prefix: &str) -> Result<Watch, ClientError> {
        let connection = open(&self.shared.directory)?;
        let request = Request { number: 0, call: Call::Watch { prefix: prefix.to_owned() } };
        let mut line = serde_json::to_vec(&request).map_err(|error| ClientError::gone(&error))?;
        line.push(b'\n');
        passing::write_all(&connection, &line).await.map_err(|error| ClientError::gone(&error))?;
        Ok(Watch { lines: FramedRead::new(connection, LinesCodec::new_with_max_length(LINE_LIMIT)) })
    }

    /// Makes a namespace set.
    ///
    /// # Errors
    /// `Exists` when there is one of that name, `NotFound` when its network names a set that is not there,
    /// `Failed` when the kernel refuses; nothing of it is left then.
    pub async fn create_namespaces(&self, spec: NamespaceSpec) -> Result<(), ClientError> {
        self.ask(Call::CreateNamespaces(spec)).await
    }

    /// Ends whatever runs in a namespace set and lets it go. A set that is not there is no error.
    ///
    /// # Errors
    /// Only when the holder is gone.
    pub async fn delete_namespaces(&self, name: &str) -> Result<(), ClientError> {
        self.ask(Call::DeleteNamespaces { name: name.to_owned() }).await
    }

    /// Names of the namespace sets that start with `prefix`.
    ///
    /// # Errors
    /// Only when the holder is gone.
    pub async fn namespaces(&self, prefix: &str) -> Result<Vec<String>, ClientError> {
        self.ask(Call::ListNamespaces { prefix: prefix.to_owned() }).await
    }

    /// Opens a listener and returns where it listens; one that exists under this name is returned as it is.
    ///
    /// # Errors
    /// `NotFound` for an unknown set, `Failed` when the address is taken.
    pub async fn listen(&self, spec: ListenSpec) -> Result<String, ClientError> {
        self.ask(Call::Listen(spec)).await
    }

    /// Closes a listener. One that is not there is no error.
    ///
    /// # Errors
    /// Only when the holder is gone.
    pub async fn close_listener(&self, name: &str) -> Result<(), ClientError> {
        self.ask(Call::CloseListener { name: name.to_owned() }).await
    }

    /// All listeners: name and where it listens.
    ///
    /// # Errors
    /// Only when the holder is gone.
    pub async fn listeners(&self) -> Result<BTreeMap<String, String>, ClientError> {
        self.ask(Call::ListListeners).await
    }

    /// Ends the lab: everything the holder keeps goes with it.
    ///
    /// # Errors
    /// Only when the holder is gone already.
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.ask(Call::Shutdown).await
    }

    async fn ask<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let number = self.shared.last.fetch_add(1, Ordering::Relaxed) + 1;
        let line =
            serde_json::to_string(&Request { number, call }).map_err(|error| ClientError::gone(&error))?;
        let (sender, receiver) = oneshot::channel();
        match &mut *self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(waiting) => waiting.insert(number, sender),
            None => return Err(ClientError::Gone("it closed the connection".into())),
        };
        self.shared.requests.send(line).map_err(|error| ClientError::gone(&error))?;
        decode(receiver.await.map_err(|error| ClientError::gone(&error))??)
    }
}

impl Shared {
    fn settle(&self, answer: Answer) {
        let waiting = match &mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(waiting) => waiting.remove(&answer.number),
            None => None,
        };
        if let Some(sender) = waiting {
            // Nobody waits any more when the caller's future was dropped.
            let _ = sender.send(answered(answer));
        }
    }

    fn close(&self, cause: &str) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        for sender in waiting.into_iter().flat_map(BTreeMap::into_values) {
            let _ = sender.send(Err(ClientError::Gone(cause.to_owned())));
        }
    }
}

/// States of processes as they change.
#[derive(Debug)]
pub struct Watch {
    lines: FramedRead<UnixStream, LinesCodec>,
}

impl Watch {
    /// The next state.
    ///
    /// Cancel safe: dropping the future loses no state.
    ///
    /// # Errors
    /// [`ClientError::Gone`] when the holder ended or this watcher fell more than a thousand states behind.
    pub async fn next(&mut self) -> Result<ProcessState, ClientError> {
        match self.lines.next().await {
            Some(Ok(line)) => serde_json::from_str(&line).map_err(|error| ClientError::gone(&error)),
            Some(Err(error)) => Err(ClientError::gone(&error)),
            None => Err(ClientError::Gone("the watch ended".into())),
        }
    }
}

fn open(directory: &Path) -> Result<UnixStream, ClientError> {
    let stream = crate::unix_socket::connect(&directory.join(super::SOCKET))
        .and_then(|stream| stream.set_nonblocking(true).map(|()| stream))
        .and_then(UnixStream::from_std);
    stream.map_err(|error| ClientError::gone(&error))
}

fn answered(answer: Answer) -> Outcome {
    answer.outcome.map_err(|refusal| ClientError::Refused { kind: refusal.kind, message: refusal.message })
}

fn decode<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, ClientError> {
    serde_json::from_value(value).map_err(|error| ClientError::gone(&error))
}
