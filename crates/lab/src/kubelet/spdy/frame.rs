//! Frames: eight bytes of head, then the payload.
//!
//! ```text
//!  control: 1 | version 3 (15 bits) | type (16) | flags (8) | length (24) | payload
//!  data:    0 | stream (31)                     | flags (8) | length (24) | payload
//! ```

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use std::io;
use tokio_util::codec::{Decoder, Encoder};

/// Longest payload that is accepted, in bytes. Clients write what they read at once: some ten thousand.
const PAYLOAD_LIMIT: usize = 4 << 20;

const HEAD: usize = 8;
const FLAG_FIN: u8 = 1;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// A frame. Those that are of no use here come as [`Frame::Other`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Frame {
    /// A new stream; `headers` are still compressed.
    SynStream { stream: u32, fin: bool, headers: Bytes },
    /// The answer to a new stream.
    SynReply { stream: u32, headers: Bytes },
    /// The end of a stream in both directions.
    Reset { stream: u32, status: u32 },
    /// To be sent back.
    Ping { id: u32 },
    /// No more streams.
    GoAway { last: u32 },
    /// Bytes of a stream.
    Data { stream: u32, fin: bool, bytes: Bytes },
    /// Settings, windows, headers.
    Other,
}

/// Reads and writes frames.
#[derive(Debug, Default)]
pub(in super::super) struct Codec;

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a SPDY/3.1 frame: {what}"))
}

impl Decoder for Codec {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, source: &mut BytesMut) -> io::Result<Option<Frame>> {
        let Some(head) = source.get(..HEAD) else { return Ok(None) };
        let mut head = Bytes::copy_from_slice(head);
        let first = head.get_u32();
        let flags = head.get_u8();
        let length = usize::try_from(head.get_uint(3)).unwrap_or(usize::MAX);
        if length > PAYLOAD_LIMIT {
            return Err(invalid("longer than any client's"));
        }
        if source.len() < HEAD + length {
            source.reserve(HEAD + length - source.len());
            return Ok(None);
        }
        source.advance(HEAD);
        let payload = source.split_to(length).freeze();
        if first >> 31 == 0 {
            return Ok(Some(Frame::Data { stream: first, fin: flags & FLAG_FIN != 0, bytes: payload }));
        }
        if (first >> 16) & 0x7fff != 3 {
            return Err(invalid("another version"));
        }
        control(first, flags, payload).map(Some)
    }
}

fn control(first: u32, flags: u8, mut payload: Bytes) -> io::Result<Frame> {
    let kind = u16::try_from(first & 0xffff).unwrap_or_default();
    let needed = match kind {
        SYN_STREAM => 10,
        RST_STREAM | GOAWAY => 8,
        SYN_REPLY | PING => 4,
        _ => return Ok(Frame::Other),
    };
    if payload.len() < needed {
        return Err(invalid("too short"));
    }
    let number = payload.get_u32() & 0x7fff_ffff;
    Ok(match kind {
        SYN_STREAM => {
            // The stream it belongs to, its priority and slot mean nothing here.
            payload.advance(6);
            Frame::SynStream { stream: number, fin: flags & FLAG_FIN != 0, headers: payload }
        }
        SYN_REPLY => Frame::SynReply { stream: number, headers: payload },
        RST_STREAM => Frame::Reset { stream: number, status: payload.get_u32() },
        PING => Frame::Ping { id: number },
        _ => Frame::GoAway { last: number },
    })
}

impl Encoder<Frame> for Codec {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, target: &mut BytesMut) -> io::Result<()> {
        match frame {
            Frame::Data { stream, fin, bytes } => {
                target.reserve(HEAD + bytes.len());
                target.put_u32(stream & 0x7fff_ffff);
                put_length(target, fin, bytes.len())?;
                target.put_slice(&bytes);
            }
            Frame::SynStream { stream, fin, headers } => {
                put_control(target, SYN_STREAM, fin, 10 + headers.len())?;
                target.put_u32(stream);
                target.put_slice(&[0; 6]);
                target.put_slice(&headers);
            }
            Frame::SynReply { stream, headers } => {
                put_control(target, SYN_REPLY, false, 4 + headers.len())?;
                target.put_u32(stream);
                target.put_slice(&headers);
            }
            Frame::Reset { stream, status } => {
                put_control(target, RST_STREAM, false, 8)?;
                target.put_u32(stream);
                target.put_u32(status);
            }
            Frame::Ping { id } => {
                put_control(target, PING, false, 4)?;
                target.put_u32(id);
            }
            Frame::GoAway { last } => {
                put_control(target, GOAWAY, false, 8)?;
                target.put_u32(last);
                target.put_u32(0);
            }
            Frame::Other => {}
        }
        Ok(())
    }
}

fn put_control(target: &mut BytesMut, kind: u16, fin: bool, length: usize) -> io::Result<()> {
    target.reserve(HEAD + length);
    target.put_u16(0x8003);
    target.put_u16(kind);
    put_length(target, fin, length)
}

fn put_length(target: &mut BytesMut, fin: bool, length: usize) -> io::Result<()> {
    let length = u64::try_from(length).ok().filter(|length| *length < 1 << 24);
    let length = length.ok_or_else(|| invalid("longer than a frame can be"))?;
    target.put_u8(if fin { FLAG_FIN } else { 0 });
    target.put_uint(length, 3);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire_in_any_pieces() {
        let frames = [
            Frame::SynStream { stream: 1, fin: true, headers: Bytes::from_static(b"abc") },
            Frame::SynReply { stream: 1, headers: Bytes::from_static(b"de") },
            Frame::Reset { stream: 3, status: 5 },
            Frame::Ping { id: 9 },
            Frame::GoAway { last: 7 },
            Frame::Data { stream: 5, fin: false, bytes: Bytes::from_static(b"hello") },
            Frame::Data { stream: 5, fin: true, bytes: Bytes::new() },
        ];
        let mut wire = BytesMut::new();
        for frame in &frames {
            Codec.encode(frame.clone(), &mut wire).unwrap();
        }
        let mut read = Vec::new();
        let mut arrived = BytesMut::new();
        for byte in wire {
            arrived.put_u8(byte);
            read.extend(Codec.decode(&mut arrived).unwrap());
        }
        assert_eq!(read, frames);
    }

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let mut wire = BytesMut::new();
        Codec.encode(Frame::Ping { id: 2 }, &mut wire).unwrap();
        assert_eq!(wire.as_ref(), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2]);
    }

    #[test]
    fn foreign_bytes_are_refused_and_unknown_frames_passed_over() {
        let decode = |bytes: &[u8]| Codec.decode(&mut BytesMut::from(bytes));
        assert!(decode(&[0x80, 2, 0, 6, 0, 0, 0, 0]).is_err());
        assert!(decode(&[0, 0, 0, 1, 0, 255, 0, 0]).is_err());
        assert!(decode(&[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0]).is_err());
        assert_eq!(decode(&[0x80, 3, 0, 4, 0, 0, 0, 1, 0]).unwrap(), Some(Frame::Other));
        assert_eq!(decode(&[0x80, 3]).unwrap(), None);
    }
}
