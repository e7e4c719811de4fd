//! Unix sockets under paths of any length: the kernel's limit of 107 bytes is passed by naming the directory by a
//! file descriptor.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Longest path that fits into a socket address, with its terminating zero left out.
const DIRECT: usize = 107;

/// Connects to the socket at `path`.
///
/// # Errors
/// As `connect(2)`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_directory, short) = shorten(path)?;
    UnixStream::connect(short)
}

/// Listens on a new socket at `path`.
///
/// # Errors
/// As `bind(2)`: an existing file is an error.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let (_directory, short) = shorten(path)?;
    UnixListener::bind(short)
}

/// A short way to `path`, valid while the descriptor is open.
fn shorten(path: &Path) -> io::Result<(Option<OwnedFd>, PathBuf)> {
    if path.as_os_str().len() <= DIRECT {
        return Ok((None, path.to_owned()));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a socket"));
    };
    let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((Some(directory), short))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn sockets_work_under_paths_longer_than_the_kernel_takes() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let listener = bind(&deep.join("socket")).unwrap();
        let mut client = connect(&deep.join("socket")).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }
}
