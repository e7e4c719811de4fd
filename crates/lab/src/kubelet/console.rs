//! The streams of a container that somebody may type into (`stdin: true`).
//!
//! Only these containers write through the kubelet; when it is killed, they see the end of their input. All others
//! write to their log themselves.

use super::pipes::Pipe;
use crate::holder::Attached;
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{broadcast, mpsc};
use tracing::debug;

/// Pieces of output that someone attached may fall behind.
const BEHIND: usize = 256;

/// Pieces of input that wait to be read.
const AHEAD: usize = 16;

/// A piece of output, and whether it is standard error.
pub(super) type Piece = (bool, Bytes);

/// The streams of a running container.
#[derive(Debug)]
pub(super) struct Console {
    input: Mutex<Option<mpsc::Sender<Bytes>>>,
    output: broadcast::Sender<Piece>,
    terminal: Option<Arc<Pipe>>,
}

impl Console {
    /// Takes the streams; output goes to `log` too.
    pub(super) fn start(attached: Attached, tty: bool, log: PathBuf) -> std::io::Result<Self> {
        let (output, _) = broadcast::channel(BEHIND);
        let (input, mut typed) = mpsc::channel::<Bytes>(AHEAD);
        let stdout = Arc::new(Pipe::new(attached.stdout)?);
        let stdin = match attached.stdin {
            Some(stdin) => Some(Arc::new(Pipe::new(stdin)?)),
            None => tty.then(|| stdout.clone()),
        };
        if let Some(stderr) = attached.stderr {
            tokio::spawn(pump(Arc::new(Pipe::new(stderr)?), true, output.clone(), log.clone()));
        }
        tokio::spawn(pump(stdout.clone(), false, output.clone(), log));
        if let Some(stdin) = stdin {
            tokio::spawn(async move {
                while let Some(bytes) = typed.recv().await {
                    if stdin.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self { input: Mutex::new(Some(input)), output, terminal: tty.then_some(stdout) })
    }

    /// Where to type; `None` once the input has ended.
    pub(super) fn input(&self) -> Option<mpsc::Sender<Bytes>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the input for good.
    pub(super) fn close(&self) {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// What is written from now on.
    pub(super) fn listen(&self) -> broadcast::Receiver<Piece> {
        self.output.subscribe()
    }

    /// Tells the terminal its size.
    pub(super) fn resize(&self, size: (u16, u16)) {
        if let Some(terminal) = &self.terminal {
            terminal.resize(size);
        }
    }
}

async fn pump(stream: Arc<Pipe>, is_error: bool, output: broadcast::Sender<Piece>, log: PathBuf) {
    let opened = tokio::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&log).await;
    let mut log = opened.inspect_err(|error| debug!(path = %log.display(), %error, "no log")).ok();
    let mut buffer = vec![0; 8192];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let bytes = buffer.get(..count).unwrap_or_default();
        if let Some(log) = &mut log {
            // A full disk takes the log, not the session.
            let _ = log.write_all(bytes).await;
            let _ = log.flush().await;
        }
        // Nobody may be attached.
        let _ = output.send((is_error, Bytes::copy_from_slice(bytes)));
    }
}
