//! The streams of exec and attach as SPDY streams, one for each direction and one for the end.

use super::exec::{Output, Remote};
use super::spdy::{Sender, Session, Stream};
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tracing::debug;

/// The only version of the protocol over these streams that is spoken: that of all kubectl since 1.4.
pub(super) const PROTOCOL: &str = "v4.channel.k8s.io";

/// How long the client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);

/// How long the client may take to close the connection after the end.
const CLOSING: Duration = Duration::from_secs(2);

/// Pieces that wait on their way.
const QUEUE: usize = 16;

/// What the client wants of a container's streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

#[derive(Default)]
struct Opened {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Opened {
    fn is_complete(&self, wanted: Wanted) -> bool {
        self.error.is_some()
            && (self.stdin.is_some() || !wanted.stdin)
            && (self.stdout.is_some() || !wanted.stdout)
            && (self.stderr.is_some() || !wanted.stderr || wanted.tty)
            && (self.resize.is_some() || !wanted.tty)
    }

    fn take(&mut self, stream: Stream) {
        let place = match stream.header("streamtype") {
            "error" => &mut self.error,
            "stdin" => &mut self.stdin,
            "stdout" => &mut self.stdout,
            "stderr" => &mut self.stderr,
            "resize" => &mut self.resize,
            other => {
                debug!(kind = other, "did not know what to do with a stream");
                return;
            }
        };
        *place = Some(stream);
    }
}

/// Waits for the client's streams on a connection that was switched to SPDY/3.1. `None` when they do not come.
pub(super) async fn open<T>(connection: T, wanted: Wanted) -> Option<Remote>
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = Session::start(connection);
    let mut opened = Opened::default();
    let opening = async {
        while !opened.is_complete(wanted) {
            opened.take(session.next().await?);
        }
        Some(())
    };
    tokio::time::timeout(OPENING, opening).await.ok().flatten()?;
    let (output, outgoing) = mpsc::channel(QUEUE);
    let (size, sizes) = mpsc::channel(QUEUE);
    if let Some(resize) = opened.resize.take() {
        tokio::spawn(read_sizes(resize.received, size));
    }
    let stdin = opened.stdin.take().map(|stream| stream.received);
    tokio::spawn(write(
        session,
        outgoing,
        opened.error?.sender,
        opened.stdout.map(|stream| stream.sender),
        opened.stderr.map(|stream| stream.sender),
    ));
    Some(Remote { stdin, sizes, output })
}

async fn write(
    mut session: Session,
    mut outgoing: mpsc::Receiver<Output>,
    error: Sender,
    stdout: Option<Sender>,
    stderr: Option<Sender>,
) {
    loop {
        let output = tokio::select! {
            output = outgoing.recv() => output,
            // No further stream is expected: this is the client's end.
            stream = session.next() => match stream {
                Some(_) => continue,
                None => return,
            },
        };
        let (to, bytes) = match output {
            Some(Output::Out(bytes)) => (&stdout, bytes),
            Some(Output::Error(bytes)) => (&stderr, bytes),
            Some(Output::End(status)) => {
                for stream in [&stdout, &stderr].into_iter().flatten() {
                    stream.finish().await;
                }
                error.send(Bytes::from(status.to_string())).await;
                error.finish().await;
                break;
            }
            None => break,
        };
        if let Some(to) = to
            && !to.send(bytes).await
        {
            return;
        }
    }
    let closed = async { while session.next().await.is_some() {} };
    // One that does not close it loses nothing.
    let _ = tokio::time::timeout(CLOSING, closed).await;
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Reads the sizes of a terminal: JSON objects one after another.
async fn read_sizes(mut received: mpsc::Receiver<Bytes>, sizes: mpsc::Sender<(u16, u16)>) {
    /// Longest size, in bytes.
    const LIMIT: usize = 4096;
    let mut pending = BytesMut::new();
    while let Some(bytes) = received.recv().await {
        pending.extend_from_slice(&bytes);
        let (read, used) = parse_sizes(&pending);
        let _ = pending.split_to(used);
        for size in read {
            if sizes.send(size).await.is_err() {
                return;
            }
        }
        if pending.len() > LIMIT {
            return;
        }
    }
}

/// The complete sizes in `text`, columns and rows, and how many bytes they take.
pub(super) fn parse_sizes(text: &[u8]) -> (Vec<(u16, u16)>, usize) {
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut sizes = Vec::new();
    let mut used = 0;
    while let Some(Ok(size)) = objects.next() {
        sizes.push((size.width, size.height));
        used = objects.byte_offset();
    }
    (sizes, used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_one_after_another_and_halves_wait() {
        let text = b"{\"Width\":80,\"Height\":24}\n{\"Width\":100,\"Height\":30}\n{\"Wid";
        let (sizes, used) = parse_sizes(text);
        assert_eq!(sizes, [(80, 24), (100, 30)]);
        assert!(text[used..].trim_ascii_start().starts_with(b"{\"Wid"));
    }
}
