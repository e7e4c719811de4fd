//! Listening sockets handed over by whoever started this process: descriptors from 3 on, counted in `LISTEN_FDS`.

use anyhow::{Context as _, Result, bail};
use std::net::TcpListener;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

/// First descriptor of the protocol.
const FIRST: RawFd = 3;

/// Most sockets that are taken: more is a mistake of the caller.
const MOST: RawFd = 16;

/// Takes the inherited TCP sockets, non-blocking.
///
/// # Errors
/// When one of them is no listening socket.
pub(crate) fn tcp() -> Result<Vec<TcpListener>> {
    take()?
        .into_iter()
        .map(|socket| {
            let listener = TcpListener::from(socket);
            listener.local_addr().context("an inherited descriptor is no TCP socket")?;
            listener.set_nonblocking(true).context("making an inherited socket non-blocking")?;
            Ok(listener)
        })
        .collect()
}

/// Takes the one inherited unix socket, non-blocking; `None` if none was handed over.
///
/// # Errors
/// When it is no unix socket, or when there are several.
pub(crate) fn unix() -> Result<Option<UnixListener>> {
    let mut sockets = take()?;
    let Some(socket) = sockets.pop() else { return Ok(None) };
    if !sockets.is_empty() {
        bail!("LISTEN_FDS hands over {} sockets, where one is expected", sockets.len() + 1);
    }
    let listener = UnixListener::from(socket);
    listener.local_addr().context("the inherited descriptor is no unix socket")?;
    listener.set_nonblocking(true).context("making the inherited socket non-blocking")?;
    Ok(Some(listener))
}

fn take() -> Result<Vec<OwnedFd>> {
    let Ok(count) = std::env::var("LISTEN_FDS") else { return Ok(Vec::new()) };
    let count: RawFd = count.parse().with_context(|| format!("LISTEN_FDS={count} is no number"))?;
    if !(0..=MOST).contains(&count) {
        bail!("LISTEN_FDS={count}: at most {MOST} sockets can be handed over");
    }
    (FIRST..FIRST + count)
        .map(|descriptor| {
            #[expect(
                unsafe_code,
                reason = "descriptors that a parent process hands over have no other owner type"
            )]
            // SAFETY: by the LISTEN_FDS protocol these descriptors are open and ours alone. This runs once, from main,
            // before anything else in this process has opened or closed a descriptor; a number that is not open is
            // noticed by the first use of it, which fails with EBADF.
            let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
            rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
                .with_context(|| format!("LISTEN_FDS={count}, but descriptor {descriptor} is not open"))?;
            Ok(socket)
        })
        .collect()
}
