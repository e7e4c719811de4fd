//! A watcher that takes nothing: its connection is closed after a while, or it would keep what waits for it for ever.
//!
//! Only watches are closed. Whoever follows a log through a pager may stop reading for as long as he likes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

tokio::task_local! {
    /// Whether a watch is answered on the connection that this task serves.
    static WATCHED: Arc<AtomicBool>;
}

/// Kept as long as a watch is answered.
#[derive(Debug)]
pub(crate) struct Watching(Option<Arc<AtomicBool>>);

impl Watching {
    /// A watch begins on the connection of this task.
    pub(crate) fn begin() -> Self {
        let watched = WATCHED.try_with(Arc::clone).ok();
        if let Some(watched) = &watched {
            watched.store(true, Ordering::Relaxed);
        }
        Self(watched)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(watched) = &self.0 {
            watched.store(false, Ordering::Relaxed);
        }
    }
}

/// Tells watches on which connection they are.
#[derive(Debug)]
pub(crate) struct Scope(Arc<AtomicBool>);

impl Scope {
    /// Watches that begin in the future are those of the connection.
    pub(crate) async fn serving<F: Future>(self, served: F) -> F::Output {
        WATCHED.scope(self.0, served).await
    }
}

/// A connection that fails when a watch on it cannot be written to for so long.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    stream: S,
    patience: Duration,
    watched: Arc<AtomicBool>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(crate) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, watched: Arc::default(), stalled: None }
    }

    /// What the connection is to be served in.
    pub(crate) fn scope(&self) -> Scope {
        Scope(Arc::clone(&self.watched))
    }

    fn bear<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() || !self.watched.load(Ordering::Relaxed) {
            self.stalled = None;
            return outcome;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => {
                tracing::warn!("closed the connection of a watcher that takes nothing");
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bear(context, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.bear(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.bear(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_cannot_be_written_to_ends_and_other_streams_wait() {
        let (near, far) = tokio::io::duplex(16);
        let mut connection = Patient::new(near, PATIENCE);
        let watching = connection.scope().serving(async { Watching::begin() }).await;
        let failed = connection.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        drop(watching);
        let waits = tokio::time::timeout(100 * PATIENCE, connection.write_all(&[0; 100])).await;
        assert!(waits.is_err(), "what is no watch is waited for");
        drop(far);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_borne() {
        use tokio::io::AsyncReadExt;
        let (near, mut far) = tokio::io::duplex(16);
        let mut connection = Patient::new(near, PATIENCE);
        let _watching = connection.scope().serving(async { Watching::begin() }).await;
        let reader = tokio::spawn(async move {
            for _ in 0..10 {
                tokio::time::sleep(PATIENCE / 2).await;
                far.read_exact(&mut [0; 10]).await.unwrap();
            }
        });
        connection.write_all(&[0; 100]).await.unwrap();
        reader.await.unwrap();
    }
}
