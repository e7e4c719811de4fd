//! A line of JSON together with open files, over a unix socket.

use super::protocol::LINE_LIMIT;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Most files that travel with one line: the three standard streams.
const FILES: usize = 3;

/// Writes all of `bytes`.
pub(super) async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes `line`, which ends in a newline, with `files` attached to its first byte.
pub(super) async fn send(stream: &UnixStream, line: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many files for one line"));
            }
            Ok(rustix::net::sendmsg(
                stream.as_fd(),
                &[IoSlice::new(line)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )?)
        })
        .await?;
    write_all(stream, line.get(sent..).unwrap_or_default()).await
}

/// Reads one line and the files that came with it.
pub(super) async fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut line = Vec::new();
    let mut files = Vec::new();
    while !line.ends_with(b"\n") {
        let mut chunk = [0; 4096];
        let received = stream
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let message = rustix::net::recvmsg(
                    stream.as_fd(),
                    &mut [IoSliceMut::new(&mut chunk)],
                    &mut ancillary,
                    RecvFlags::CMSG_CLOEXEC,
                )?;
                for part in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(passed) = part {
                        files.extend(passed);
                    }
                }
                Ok(message.bytes)
            })
            .await?;
        if received == 0 || line.len() > LINE_LIMIT {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(chunk.get(..received).unwrap_or_default());
    }
    Ok((line, files))
}
