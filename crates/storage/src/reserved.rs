//! A file whose length is space that it has: what a full disk refuses is growth, never a write inside the file.
//!
//! A file that is only made longer has holes, and a write into a hole fails when the disk is full, in the middle of a
//! transaction and also for a delete. With its blocks allocated, a full store still takes deletes, and what they free
//! is room for writes.

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Bound;

/// The file.
#[derive(Debug)]
pub(crate) struct Reserved {
    inner: FileBackend,
    file: File,
}

impl Reserved {
    /// Of a file open for reading and writing.
    pub(crate) fn new(file: File) -> Result<Self, DatabaseError> {
        let again = file.try_clone().map_err(|error| DatabaseError::Storage(error.into()))?;
        Ok(Self { inner: FileBackend::new(file)?, file: again })
    }
}

impl StorageBackend for Reserved {
    fn len(&self) -> Result<u64, io::Error> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        if len > self.inner.len()? {
            match fallocate(&self.file, FallocateFlags::empty(), 0, len) {
                Ok(()) => return Ok(()),
                // A file system that cannot promise space gets a file with holes.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> Result<(), io::Error> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_that_grows_has_the_blocks_for_it_and_keeps_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let reserved = Reserved::new(file).unwrap();
        reserved.set_len(5).unwrap();
        reserved.write(0, b"bytes").unwrap();
        reserved.set_len(1 << 20).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), reserved.len().unwrap()), (1 << 20, 1 << 20));
        // Where the file system cannot allocate there is nothing to see.
        let probe = fallocate(&reserved.file, FallocateFlags::empty(), 0, 1 << 20);
        assert!(probe.is_err() || metadata.blocks() * 512 >= 1 << 20, "{} blocks", metadata.blocks());
        let mut bytes = [0; 6];
        reserved.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"bytes\0");
        reserved.set_len(3).unwrap();
        assert_eq!(reserved.len().unwrap(), 3);
    }
}
