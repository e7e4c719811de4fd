//! Files that only their owner may read, written so that nobody ever sees half of one.

use anyhow::{Context as _, Result};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Writes `path` with mode 0600, replacing what is there.
///
/// # Errors
/// When it cannot be written; what was there stays.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let beside = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    // Left by a process of the same number that was killed, or put there by somebody who wants to read or lead astray
    // what is written: never opened, only replaced.
    let _ = std::fs::remove_file(&beside);
    let written = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written.with_context(|| format!("writing {}", path.display()))
}

/// Makes a directory, and those above it, with mode 0700.
///
/// # Errors
/// When it cannot be made.
pub fn create_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("making the directory {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_that_waits_where_the_new_one_is_written_is_not_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let (theirs, file) = (directory.path().join("theirs"), directory.path().join("key"));
        std::fs::write(&theirs, "theirs").unwrap();
        let beside = directory.path().join(format!(".key.{}", std::process::id()));
        std::os::unix::fs::symlink(&theirs, &beside).unwrap();
        write(&file, b"secret").unwrap();
        assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "secret");
        assert_eq!(file.symlink_metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    }
}
