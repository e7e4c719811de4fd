//! Network namespaces as attachments remember them: `4026532281:/run/netns/x`, inode and path.
//!
//! Only whoever executes plugins sees the paths: an agent in a container of its own may not. So the plugin looks.

use std::io;
use std::os::unix::fs::MetadataExt as _;

/// The text by which a namespace is remembered; `None` if there is none at this path.
#[must_use]
pub fn describe(path: &str) -> Option<String> {
    let found = std::fs::metadata(path).ok()?;
    Some(format!("{}:{path}", found.ino()))
}

/// Whether the namespace of such a text is gone for certain: nothing is at its path, or something else is.
#[must_use]
pub fn is_gone(text: &str) -> bool {
    let Some((inode, path)) = text.split_once(':').filter(|(_, path)| path.starts_with('/')) else {
        return false;
    };
    let Ok(inode) = inode.parse::<u64>() else { return false };
    match std::fs::metadata(path) {
        Ok(found) => found.ino() != inode,
        Err(error) => {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_gone_when_its_path_is_or_holds_another() {
        let own = describe("/proc/thread-self/ns/net").unwrap();
        assert!(!is_gone(&own));
        let (inode, path) = own.split_once(':').unwrap();
        assert!(is_gone(&format!("{}:{path}", inode.parse::<u64>().unwrap() + 1)));
        assert!(is_gone(&format!("{inode}:/nonexistent/netns/x")));
        assert_eq!(describe("/nonexistent/netns/x"), None);
        for malformed in ["", "x", "7", "7:relative", "x:/run/netns/x"] {
            assert!(!is_gone(malformed), "{malformed}");
        }
    }
}
