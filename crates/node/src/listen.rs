//! The socket that plugins speak to: inherited, so that it outlives the agent, or made here.

use rustix::io::{FdFlags, fcntl_setfd};
use std::fs;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// First inherited file descriptor of the LISTEN_FDS protocol.
const FIRST: i32 = 3;

/// Where the socket comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// File descriptor 3, passed on by whoever started this process (`LISTEN_FDS`).
    Inherited,
    /// Made at this path, in place of one that is left over.
    Path(PathBuf),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Nothing was passed on.
    #[error(
        "no socket was passed on: LISTEN_FDS is not set or 0; start the agent with a socket or with a path for one"
    )]
    NothingInherited,
    /// What was passed on is not a listening unix socket, or the path cannot be used.
    #[error("{what} cannot be listened on")]
    Unusable {
        /// Descriptor or path.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Opens the socket. Call it before anything else opens files, once.
///
/// # Errors
/// [`ListenError`].
pub(crate) fn listen(from: &Listen) -> Result<UnixListener, ListenError> {
    let (listener, what) = match from {
        Listen::Inherited => (inherited()?, format!("file descriptor {FIRST}")),
        Listen::Path(path) => {
            let unusable = |source| ListenError::Unusable { what: path.display().to_string(), source };
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unusable(error)),
                _ => {}
            }
            let listener = UnixListener::bind(path).map_err(unusable)?;
            // Whoever may connect may take addresses.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(unusable)?;
            (listener, path.display().to_string())
        }
    };
    listener
        .local_addr()
        .and_then(|_| listener.set_nonblocking(true))
        .map_err(|source| ListenError::Unusable { what, source })?;
    Ok(listener)
}

fn inherited() -> Result<UnixListener, ListenError> {
    let count: u32 = std::env::var("LISTEN_FDS").ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    if count == 0 {
        return Err(ListenError::NothingInherited);
    }
    #[expect(unsafe_code, reason = "a descriptor is handed over by number only")]
    // SAFETY: LISTEN_FDS says that the parent opened descriptor 3 for this process, and this runs once, before
    // anything here could have opened or owned it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(FIRST) };
    // Programs that the agent runs must not hold the socket.
    fcntl_setfd(&descriptor, FdFlags::CLOEXEC).map_err(|error| ListenError::Unusable {
        what: format!("file descriptor {FIRST}"),
        source: error.into(),
    })?;
    Ok(UnixListener::from(descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_is_for_its_owner_only_and_takes_the_place_of_a_left_over_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        for _ in 0..2 {
            drop(listen(&Listen::Path(path.clone())).unwrap());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn path_that_cannot_be_used_is_named() {
        let error = listen(&Listen::Path("/nowhere/agent.sock".into())).unwrap_err();
        assert!(error.to_string().contains("/nowhere/agent.sock"));
    }
}
