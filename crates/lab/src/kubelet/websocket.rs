//! The streams of exec and attach over WebSocket: binary messages whose first byte names the channel.

use super::exec::{Output, Remote};
use super::streams::parse_sizes;
use base64::Engine as _;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use sha1::{Digest as _, Sha1};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::codec::{Decoder, Encoder, Framed};
use tracing::debug;

/// Sub-protocols in the order of preference. The second does not tell the end of standard input.
pub(super) const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// Longest message that is accepted, in bytes.
const MESSAGE_LIMIT: usize = 4 << 20;

const QUEUE: usize = 16;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The answer to `Sec-WebSocket-Key` (RFC 6455, 4.2.2).
pub(super) fn accept(key: &str) -> String {
    let digest = Sha1::digest(format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key.trim()));
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// Takes the client's streams from a connection that was switched to WebSocket.
pub(super) fn open<T>(connection: T, stdin: bool) -> Remote
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (output, outgoing) = mpsc::channel(QUEUE);
    let (size, sizes) = mpsc::channel(QUEUE);
    let (typed, received) = mpsc::channel(QUEUE);
    let typed = stdin.then_some(typed);
    tokio::spawn(async move {
        if let Err(error) = carry(Framed::new(connection, Codec::default()), outgoing, typed, size).await {
            debug!(%error, "a WebSocket connection broke");
        }
    });
    Remote { stdin: stdin.then_some(received), sizes, output }
}

async fn carry<T: AsyncRead + AsyncWrite + Unpin>(
    mut messages: Framed<T, Codec>,
    mut outgoing: mpsc::Receiver<Output>,
    mut typed: Option<mpsc::Sender<Bytes>>,
    sizes: mpsc::Sender<(u16, u16)>,
) -> io::Result<()> {
    loop {
        tokio::select! {
            output = outgoing.recv() => match output {
                Some(Output::Out(bytes)) => messages.send(channel(STDOUT, &bytes)).await?,
                Some(Output::Error(bytes)) => messages.send(channel(STDERR, &bytes)).await?,
                Some(Output::End(status)) => {
                    messages.send(channel(STATUS, status.to_string().as_bytes())).await?;
                    break;
                }
                None => break,
            },
            message = messages.next() => match message {
                None => return Ok(()),
                Some(message) => match message? {
                    Message::Binary(bytes) => match bytes.split_first() {
                        Some((&STDIN, rest)) if !rest.is_empty() => {
                            if let Some(typed) = &typed {
                                // A command that ended reads no more.
                                let _ = typed.send(Bytes::copy_from_slice(rest)).await;
                            }
                        }
                        Some((&RESIZE, rest)) => {
                            for size in parse_sizes(rest).0 {
                                let _ = sizes.send(size).await;
                            }
                        }
                        Some((&CLOSE, [STDIN])) => typed = None,
                        _ => {}
                    },
                    Message::Ping(bytes) => messages.send(Message::Pong(bytes)).await?,
                    Message::Pong(_) => {}
                    Message::Close => return messages.send(Message::Close).await,
                },
            },
        }
    }
    // Without it clients take the end for a broken connection.
    messages.send(Message::Close).await?;
    messages.close().await
}

fn channel(number: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(number);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// A message, put together from its fragments. Text counts as binary.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    Binary(Bytes),
    Ping(Bytes),
    Pong(Bytes),
    /// With code 1000 when it is ours.
    Close,
}

/// The server's side of RFC 6455: reads masked frames, writes unmasked ones.
#[derive(Debug, Default)]
struct Codec {
    fragments: BytesMut,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a WebSocket frame of a client: {what}"))
}

impl Decoder for Codec {
    type Item = Message;
    type Error = io::Error;

    fn decode(&mut self, source: &mut BytesMut) -> io::Result<Option<Message>> {
        loop {
            let Some((last, opcode, payload)) = frame(source)? else { return Ok(None) };
            match opcode {
                0..=2 => {
                    if self.fragments.len() + payload.len() > MESSAGE_LIMIT {
                        return Err(invalid("longer than any client's"));
                    }
                    self.fragments.extend_from_slice(&payload);
                    if last {
                        return Ok(Some(Message::Binary(self.fragments.split().freeze())));
                    }
                }
                8 => return Ok(Some(Message::Close)),
                9 => return Ok(Some(Message::Ping(payload.freeze()))),
                10 => return Ok(Some(Message::Pong(payload.freeze()))),
                _ => return Err(invalid("unknown kind")),
            }
        }
    }
}

/// The next whole frame: whether it is a message's last, its kind, its payload.
fn frame(source: &mut BytesMut) -> io::Result<Option<(bool, u8, BytesMut)>> {
    let [first, second, ..] = *source.as_ref() else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(invalid("not masked"));
    }
    let (extended, short) = match second & 0x7f {
        126 => (2, 0),
        127 => (8, 0),
        short => (0, usize::from(short)),
    };
    let head = 2 + extended + 4;
    let Some(mut rest) = source.get(2..head) else { return Ok(None) };
    let length = match extended {
        0 => short,
        bytes => usize::try_from(rest.get_uint(bytes)).unwrap_or(usize::MAX),
    };
    if length > MESSAGE_LIMIT {
        return Err(invalid("longer than any client's"));
    }
    let mask = rest.get_u32().to_be_bytes();
    if source.len() < head + length {
        source.reserve(head + length - source.len());
        return Ok(None);
    }
    source.advance(head);
    let mut payload = source.split_to(length);
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Some((first & 0x80 != 0, first & 0x0f, payload)))
}

impl Encoder<Message> for Codec {
    type Error = io::Error;

    fn encode(&mut self, message: Message, target: &mut BytesMut) -> io::Result<()> {
        let (opcode, payload) = match message {
            Message::Binary(bytes) => (2, bytes),
            Message::Ping(bytes) => (9, bytes),
            Message::Pong(bytes) => (10, bytes),
            Message::Close => (8, Bytes::from_static(&[0x03, 0xe8])),
        };
        target.put_u8(0x80 | opcode);
        match payload.len() {
            short @ 0..126 => target.put_u8(u8::try_from(short).unwrap_or_default()),
            length => match u16::try_from(length) {
                Ok(length) => {
                    target.put_u8(126);
                    target.put_u16(length);
                }
                Err(_) => {
                    target.put_u8(127);
                    target.put_u64(u64::try_from(length).unwrap_or(u64::MAX));
                }
            },
        }
        target.put_slice(&payload);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::exec::success;
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A frame as clients send it.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut wire = vec![first, 0x80 | u8::try_from(payload.len()).unwrap(), 1, 2, 3, 4];
        wire.extend(payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, mask)| byte ^ mask));
        wire
    }

    #[test]
    fn the_handshake_is_answered_as_the_standard_says() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn channels_are_carried_and_the_end_closes() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut remote = open(server, true);
        client.write_all(&masked(0x02, &[STDIN, b'a'])).await.unwrap();
        client.write_all(&masked(0x80, b"b")).await.unwrap();
        client.write_all(&masked(0x82, b"\x04{\"Width\":7,\"Height\":3}")).await.unwrap();
        client.write_all(&masked(0x82, &[CLOSE, STDIN])).await.unwrap();
        let mut stdin = remote.stdin.take().unwrap();
        assert_eq!(stdin.recv().await.unwrap(), "ab");
        assert_eq!(remote.sizes.recv().await, Some((7, 3)));
        assert_eq!(stdin.recv().await, None);
        remote.output.send(Output::Out(Bytes::from_static(b"x"))).await.unwrap();
        remote.output.send(Output::End(success())).await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert!(all.starts_with(&[0x82, 2, STDOUT, b'x', 0x82]), "{all:?}");
        assert!(all.ends_with(&[0x88, 2, 0x03, 0xe8]), "{all:?}");
    }

    #[test]
    fn long_messages_have_long_heads() {
        let mut wire = BytesMut::new();
        Codec::default().encode(Message::Binary(Bytes::from(vec![0; 70_000])), &mut wire).unwrap();
        assert_eq!(wire[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let decode = |bytes: &[u8]| Codec::default().decode(&mut BytesMut::from(bytes));
        assert!(decode(&[0x82, 1, 0]).is_err());
        assert!(decode(&[0x82, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0]).is_err());
        assert_eq!(decode(&[0x82, 0x81, 0, 0]).unwrap(), None);
    }
}
