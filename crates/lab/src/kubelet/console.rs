//! The streams of a container that somebody may type into (`stdin: true`).
//!
//! Only these containers write through the kubelet; when it is killed, they see the end of their input. All others
//! write to their log themselves.

use super::pipes::Pipe;
use crate::holder::Attached;
use bytes::Bytes;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Notify, broadcast, mpsc};
use tracing::debug;

/// Pieces of output that someone attached may fall behind.
const BEHIND: usize = 256;

/// Pieces of input that wait to be read.
const AHEAD: usize = 16;

/// Pieces of output that are kept for the first who attaches: a container starts sooner than its client attaches.
const EARLY: usize = 64;

/// A piece of output, and whether it is standard error.
pub(super) type Piece = (bool, Bytes);

/// The streams of a running container.
#[derive(Debug)]
pub(super) struct Console {
    input: Mutex<Option<mpsc::Sender<Bytes>>>,
    closing: Arc<Notify>,
    output: Arc<Listeners>,
    terminal: Option<Arc<Pipe>>,
}

/// Those who are attached, and what was written before the first of them came.
#[derive(Debug)]
struct Listeners {
    sender: broadcast::Sender<Piece>,
    early: Mutex<Option<VecDeque<Piece>>>,
}

impl Listeners {
    fn tell(&self, piece: Piece) {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(early) = early.as_mut() {
            if early.len() == EARLY {
                early.pop_front();
            }
            early.push_back(piece.clone());
        }
        // Nobody may be attached.
        let _ = self.sender.send(piece);
    }

    fn listen(&self) -> (VecDeque<Piece>, broadcast::Receiver<Piece>) {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        (early.take().unwrap_or_default(), self.sender.subscribe())
    }
}

impl Console {
    /// Takes the streams; output goes to `log` too.
    pub(super) fn start(attached: Attached, tty: bool, log: PathBuf) -> std::io::Result<Self> {
        let (sender, _) = broadcast::channel(BEHIND);
        let output = Arc::new(Listeners { sender, early: Mutex::new(Some(VecDeque::new())) });
        let closing = Arc::new(Notify::new());
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
            let closing = closing.clone();
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        bytes = typed.recv() => match bytes {
                            Some(bytes) if stdin.write_all(&bytes).await.is_ok() => {}
                            _ => return,
                        },
                        // What was typed before is still written.
                        () = closing.notified() => typed.close(),
                    }
                }
            });
        }
        Ok(Self { input: Mutex::new(Some(input)), closing, output, terminal: tty.then_some(stdout) })
    }

    /// Where to type; `None` once the input has ended.
    pub(super) fn input(&self) -> Option<mpsc::Sender<Bytes>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the input for good, also for those who are attached.
    pub(super) fn close(&self) {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.closing.notify_one();
    }

    /// What is written from now on; who comes first gets what was written until now, too.
    pub(super) fn listen(&self) -> (VecDeque<Piece>, broadcast::Receiver<Piece>) {
        self.output.listen()
    }

    /// Tells the terminal its size.
    pub(super) fn resize(&self, size: (u16, u16)) {
        if let Some(terminal) = &self.terminal {
            terminal.resize(size);
        }
    }
}

async fn pump(stream: Arc<Pipe>, is_error: bool, output: Arc<Listeners>, log: PathBuf) {
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
        output.tell((is_error, Bytes::copy_from_slice(bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    /// A console, and the container's ends of its standard input and output.
    fn console(log: PathBuf) -> std::io::Result<(Console, std::io::PipeReader, std::io::PipeWriter)> {
        let (theirs_in, stdin) = std::io::pipe()?;
        let (stdout, theirs_out) = std::io::pipe()?;
        let attached = Attached { pid: 1, stdin: Some(stdin.into()), stdout: stdout.into(), stderr: None };
        Ok((Console::start(attached, false, log)?, theirs_in, theirs_out))
    }

    #[tokio::test]
    async fn the_input_ends_though_somebody_is_still_attached() {
        let directory = tempfile::tempdir().unwrap();
        let (console, mut stdin, _stdout) = console(directory.path().join("log")).unwrap();
        let input = console.input().unwrap();
        input.send(Bytes::from_static(b"hello")).await.unwrap();
        console.close();
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            stdin.read_to_string(&mut text).map(|_| text)
        });
        assert_eq!(read.await.unwrap().unwrap(), "hello");
        assert!(input.send(Bytes::from_static(b"late")).await.is_err());
    }

    #[tokio::test]
    async fn who_attaches_first_sees_what_was_written_before() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let (console, _stdin, mut stdout) = console(log.clone()).unwrap();
        stdout.write_all(b"$ ").unwrap();
        drop(stdout);
        // The output has ended when nobody can send to the listeners any more but the console.
        while Arc::strong_count(&console.output) > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(console.listen().0, [(false, Bytes::from_static(b"$ "))]);
        assert!(console.listen().0.is_empty());
    }
}
