//! Network namespaces as attachments remember them: `4026532281:/run/netns/x`, inode and path.
//!
//! Only whoever executes plugins sees the paths: an agent in a container of its own may not. So the plugin looks.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The file system of namespaces, as `statfs` tells it (`NSFS_MAGIC`).
const NSFS: i64 = 0x6e73_6673;

/// The text by which a namespace is remembered; `None` if there is none at this path.
#[must_use]
pub fn describe(path: &str) -> Option<String> {
    let found = std::fs::metadata(path).ok()?;
    Some(format!("{}:{path}", found.ino()))
}

/// Whether the namespace of such a text is gone for certain: nothing is at its path, or another namespace is.
///
/// A plain file there says nothing: a namespace may be bound on it in another mount namespace, where this process does not see
/// it. Nor does the end of a process whose namespace was told by its path in `/proc`: others may still be in it.
#[must_use]
pub fn is_gone(text: &str) -> bool {
    let Some((inode, path)) = text.split_once(':').filter(|(_, path)| path.starts_with('/')) else {
        return false;
    };
    let Ok(inode) = inode.parse::<u64>() else { return false };
    let path = Path::new(path);
    if path.starts_with("/proc") && path.parent().is_some_and(|folder| folder.ends_with("ns")) {
        return false;
    }
    // One look at one file: its path may change hands meanwhile.
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    match opened {
        Ok(found) => {
            let is_namespace = rustix::fs::fstatfs(&found).is_ok_and(|system| system.f_type == NSFS);
            is_namespace && rustix::fs::fstat(&found).is_ok_and(|stat| stat.st_ino != inode)
        }
        Err(error) => matches!(error, Errno::NOENT | Errno::NOTDIR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_gone_when_its_path_is_or_holds_another() {
        let own = describe("/proc/thread-self/ns/net").unwrap();
        let (inode, _) = own.split_once(':').unwrap();
        assert!(is_gone(&format!("{inode}:/nonexistent/netns/x")));
        assert_eq!(describe("/nonexistent/netns/x"), None);
        for malformed in ["", "x", "7", "7:relative", "x:/run/netns/x"] {
            assert!(!is_gone(malformed), "{malformed}");
        }
        // Seen by another path than that of its process.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::os::unix::fs::symlink("/proc/thread-self/ns/net", &path).unwrap();
        let inode: u64 = inode.parse().unwrap();
        assert!(!is_gone(&format!("{inode}:{}", path.display())));
        assert!(is_gone(&format!("{}:{}", inode + 1, path.display())));
    }

    #[test]
    fn a_plain_file_may_hide_a_namespace_that_others_see() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_gone(&format!("4026532281:{}", file.path().display())));
    }

    #[test]
    fn the_end_of_a_process_is_not_the_end_of_its_namespace() {
        let own = describe("/proc/thread-self/ns/net").unwrap();
        let (inode, path) = own.split_once(':').unwrap();
        assert!(!is_gone(&own));
        assert!(!is_gone(&format!("{}:{path}", inode.parse::<u64>().unwrap() + 1)));
        assert!(!is_gone(&format!("{inode}:/proc/4194999/ns/net")));
    }
}
