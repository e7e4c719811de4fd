//! Pipes and terminals of processes, read and written without blocking.

use rustix::fs::OFlags;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use tokio::io::unix::AsyncFd;

/// One end of a pipe, or a terminal.
#[derive(Debug)]
pub(super) struct Pipe {
    file: AsyncFd<OwnedFd>,
}

impl Pipe {
    /// Takes an end that nobody else in this process uses.
    pub(super) fn new(file: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
        #[expect(unsafe_code, reason = "tokio cannot see that an OwnedFd stays open")]
        // SAFETY: the descriptor is owned and moved in; it is closed with the AsyncFd and nowhere taken out before.
        let file = unsafe { AsyncFd::register(file) }?;
        Ok(Self { file })
    }

    /// Reads what there is; 0 at the end.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.file.readable().await?;
            let read = ready.try_io(|file| match rustix::io::read(file.as_fd(), &mut *buffer) {
                // A terminal whose other side is closed.
                Err(Errno::IO) => Ok(0),
                answer => Ok(answer?),
            });
            if let Ok(read) = read {
                return read;
            }
        }
    }

    /// Writes all of `bytes`.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.file.writable().await?;
            let written = ready.try_io(|file| Ok(rustix::io::write(file.as_fd(), bytes)?));
            if let Ok(written) = written {
                bytes = bytes.get(written?..).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Tells a terminal its size in columns and rows. Anything else does not mind.
    pub(super) fn resize(&self, (columns, rows): (u16, u16)) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        if let Err(error) = rustix::termios::tcsetwinsize(self.file.get_ref(), size) {
            tracing::debug!(%error, "did not resize a terminal");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_arrive_and_the_end_is_seen() {
        let (read, write) = std::io::pipe().unwrap();
        let (read, write) = (Pipe::new(read.into()).unwrap(), Pipe::new(write.into()).unwrap());
        // More than a pipe holds, so that both sides have to wait.
        let sent = vec![7_u8; 300_000];
        let writer = async move {
            write.write_all(&sent).await.unwrap();
        };
        let reader = async {
            let (mut total, mut buffer) = (0, vec![0; 65_536]);
            loop {
                match read.read(&mut buffer).await.unwrap() {
                    0 => return total,
                    count => total += count,
                }
            }
        };
        let ((), total) = tokio::join!(writer, reader);
        assert_eq!(total, 300_000);
    }
}
