//! A connection's streams, from the side that the client opens them to.

use super::frame::{Codec, Frame};
use super::headers::{Deflater, Inflater};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use std::collections::BTreeMap;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, FramedWrite};
use tracing::debug;

/// Most streams of one connection at a time.
const STREAMS: usize = 256;

/// Pieces that wait to be read on a stream, and frames that wait to be written on the connection.
const QUEUE: usize = 16;

/// Bytes of one data frame that is written.
const PIECE: usize = 32 << 10;

/// A stream that the client opened.
#[derive(Debug)]
pub(in super::super) struct Stream {
    pub headers: Vec<(String, String)>,
    /// What the client sends; it ends when the client says so, or with the connection.
    pub received: mpsc::Receiver<Bytes>,
    pub sender: Sender,
}

impl Stream {
    /// Value of a header, empty if it is not there.
    pub(in super::super) fn header(&self, name: &str) -> &str {
        let header = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        header.map_or("", |(_, value)| value.as_str())
    }
}

/// The way back on a stream.
#[derive(Clone, Debug)]
pub(in super::super) struct Sender {
    stream: u32,
    frames: mpsc::Sender<Frame>,
}

impl Sender {
    /// Sends bytes. False when the connection is gone.
    pub(in super::super) async fn send(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            let frame = Frame::Data { stream: self.stream, fin: false, bytes: piece };
            if self.frames.send(frame).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Ends this direction of the stream.
    pub(in super::super) async fn finish(&self) {
        let frame = Frame::Data { stream: self.stream, fin: true, bytes: Bytes::new() };
        // A connection that is gone needs no end.
        let _ = self.frames.send(frame).await;
    }
}

/// A connection: the streams that the client opens, as it does. It ends when this is dropped and the frames on their
/// way are written.
#[derive(Debug)]
pub(in super::super) struct Session {
    opened: mpsc::Receiver<Stream>,
}

impl Session {
    /// Serves a connection that was switched to SPDY/3.1.
    pub(in super::super) fn start<T>(connection: T) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(connection);
        let (frames, outgoing) = mpsc::channel(QUEUE);
        let (announce, opened) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            if let Err(error) = write_frames(write, outgoing).await {
                debug!(%error, "a SPDY connection broke");
            }
        });
        tokio::spawn(async move {
            let reader = Reader {
                inflater: Inflater::new(),
                deflater: Deflater::new(),
                streams: BTreeMap::new(),
                frames: Some(frames),
                announce,
            };
            if let Err(error) = reader.run(read).await {
                debug!(%error, "a SPDY connection broke");
            }
        });
        Self { opened }
    }

    /// The next stream; `None` when the connection is gone.
    pub(in super::super) async fn next(&mut self) -> Option<Stream> {
        self.opened.recv().await
    }
}

async fn write_frames<T: AsyncWrite + Unpin>(
    write: T,
    mut outgoing: mpsc::Receiver<Frame>,
) -> io::Result<()> {
    let mut frames = FramedWrite::new(write, Codec);
    while let Some(frame) = outgoing.recv().await {
        frames.feed(frame).await?;
        while let Ok(frame) = outgoing.try_recv() {
            frames.feed(frame).await?;
        }
        frames.flush().await?;
    }
    frames.close().await
}

struct Reader {
    inflater: Inflater,
    deflater: Deflater,
    /// Where the bytes of a stream go; `None` once the client has said that no more come.
    streams: BTreeMap<u32, Option<mpsc::Sender<Bytes>>>,
    /// Frames to write. Given up when the session is dropped, so that the writer ends.
    frames: Option<mpsc::Sender<Frame>>,
    announce: mpsc::Sender<Stream>,
}

impl Reader {
    async fn run<T: AsyncRead + Unpin>(mut self, read: T) -> io::Result<()> {
        let mut incoming = FramedRead::new(read, Codec);
        loop {
            let frame = tokio::select! {
                frame = incoming.next() => frame,
                () = self.announce.closed(), if self.frames.is_some() => {
                    // Whoever still answers on a stream holds the writer open; the client's frames go on being read,
                    // so that it is not held up while it says goodbye.
                    self.frames = None;
                    self.streams.clear();
                    continue;
                }
            };
            match frame {
                None => return Ok(()),
                Some(frame) => self.take(frame?).await?,
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::SynStream { stream, fin, headers } => {
                // Read in any case: the blocks are one compressed stream.
                let headers = self.inflater.read(&headers)?;
                self.open(stream, fin, headers).await?;
            }
            Frame::Data { stream, fin, bytes } => {
                if let Some(Some(sender)) = self.streams.get(&stream)
                    && !bytes.is_empty()
                {
                    // Nobody may read it any more.
                    let _ = sender.send(bytes).await;
                }
                if fin && let Some(sender) = self.streams.get_mut(&stream) {
                    *sender = None;
                }
            }
            Frame::Reset { stream, .. } => {
                self.streams.remove(&stream);
            }
            Frame::Ping { id } => self.write(Frame::Ping { id }).await,
            Frame::GoAway { .. } | Frame::SynReply { .. } | Frame::Other => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Vec<(String, String)>) -> io::Result<()> {
        let Some(frames) = self.frames.clone() else { return Ok(()) };
        // A stream that ended both ways is told by nobody: the oldest ended ones make room.
        if self.streams.len() >= STREAMS {
            self.streams.retain(|_, sender| sender.as_ref().is_some_and(|sender| !sender.is_closed()));
        }
        if self.streams.len() >= STREAMS || self.streams.contains_key(&stream) {
            const REFUSED_STREAM: u32 = 3;
            self.write(Frame::Reset { stream, status: REFUSED_STREAM }).await;
            return Ok(());
        }
        let block = self.deflater.write(&[])?;
        self.write(Frame::SynReply { stream, headers: block }).await;
        let (sender, received) = mpsc::channel(QUEUE);
        self.streams.insert(stream, (!fin).then_some(sender));
        // Refused by whoever serves: it has what it needs.
        let _ = self.announce.send(Stream { headers, received, sender: Sender { stream, frames } }).await;
        Ok(())
    }

    async fn write(&self, frame: Frame) {
        if let Some(frames) = &self.frames {
            // The writer's error is told by the writer.
            let _ = frames.send(frame).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

    struct Client {
        deflater: Deflater,
        write: FramedWrite<WriteHalf<DuplexStream>, Codec>,
        read: FramedRead<ReadHalf<DuplexStream>, Codec>,
    }

    impl Client {
        fn connect() -> (Self, Session) {
            let (client, server) = tokio::io::duplex(1 << 16);
            let (read, write) = tokio::io::split(client);
            let client = Self {
                deflater: Deflater::new(),
                write: FramedWrite::new(write, Codec),
                read: FramedRead::new(read, Codec),
            };
            (client, Session::start(server))
        }

        async fn open(&mut self, stream: u32, kind: &str, fin: bool) {
            let headers = self.deflater.write(&[("streamtype", kind)]).unwrap();
            self.write.send(Frame::SynStream { stream, fin, headers }).await.unwrap();
            let reply = self.read.next().await.unwrap().unwrap();
            assert!(
                matches!(reply, Frame::SynReply { stream: replied, .. } if replied == stream),
                "{reply:?}"
            );
        }
    }

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_end_by_themselves() {
        let (mut client, mut session) = Client::connect();
        client.open(1, "error", true).await;
        client.open(3, "stdin", false).await;
        let mut error = session.next().await.unwrap();
        let mut stdin = session.next().await.unwrap();
        assert_eq!((error.header("streamType"), stdin.header("streamtype")), ("error", "stdin"));
        assert_eq!(error.received.recv().await, None);
        let data = Frame::Data { stream: 3, fin: true, bytes: Bytes::from_static(b"typed") };
        client.write.send(data).await.unwrap();
        assert_eq!(stdin.received.recv().await.unwrap(), "typed");
        assert_eq!(stdin.received.recv().await, None);
        client.write.send(Frame::Ping { id: 5 }).await.unwrap();
        assert_eq!(client.read.next().await.unwrap().unwrap(), Frame::Ping { id: 5 });
        assert!(error.sender.send(Bytes::from_static(b"done")).await);
        error.sender.finish().await;
        let bytes = Bytes::from_static(b"done");
        assert_eq!(client.read.next().await.unwrap().unwrap(), Frame::Data { stream: 1, fin: false, bytes });
        drop((error, stdin, session));
        let end = client.read.next().await.unwrap().unwrap();
        assert_eq!(end, Frame::Data { stream: 1, fin: true, bytes: Bytes::new() });
        assert!(client.read.next().await.is_none());
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_the_session_and_its_streams() {
        let (mut client, mut session) = Client::connect();
        client.open(1, "stdin", false).await;
        let mut stdin = session.next().await.unwrap();
        drop(client);
        assert_eq!(stdin.received.recv().await, None);
        assert!(session.next().await.is_none());
    }

    #[tokio::test]
    async fn there_is_a_limit_to_the_streams() {
        let (mut client, mut session) = Client::connect();
        let mut open = Vec::new();
        for index in 0..u32::try_from(STREAMS).unwrap() {
            client.open(index * 2 + 1, "data", false).await;
            open.push(session.next().await.unwrap());
        }
        let headers = client.deflater.write(&[]).unwrap();
        client.write.send(Frame::SynStream { stream: 9001, fin: false, headers }).await.unwrap();
        let answer = client.read.next().await.unwrap().unwrap();
        assert_eq!(answer, Frame::Reset { stream: 9001, status: 3 });
    }
}
