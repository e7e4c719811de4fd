//! Blocks that this process wrote itself: they come back by its watches, and need not be read again from their text.
//!
//! What is kept is compared with the text that came, so that it cannot be mistaken for what somebody else wrote, nor for what
//! stands in another store: all drivers of the process share it.

use crate::Record;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Blocks kept at most: those whose events may be under way, and they come back within moments.
const KEPT: usize = 64;

#[derive(Debug)]
struct Own {
    path: String,
    text: String,
    record: Record,
}

/// The last text of each of some blocks.
#[derive(Debug, Default)]
pub(super) struct OwnBlocks(Mutex<VecDeque<Own>>);

/// What the drivers of this process wrote.
pub(super) static OWN: OwnBlocks = OwnBlocks(Mutex::new(VecDeque::new()));

impl OwnBlocks {
    /// Remembers a block that is about to be written.
    pub(super) fn remember(&self, path: &str, text: &str, record: &Record) {
        if !matches!(record, Record::Block(_)) || record.is_deleted() {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|own| own.path != path);
        if all.len() >= KEPT {
            all.pop_front();
        }
        all.push_back(Own { path: path.to_owned(), text: text.to_owned(), record: record.clone() });
    }

    /// The record whose text stands at a key, if it is one of these; it is told once.
    pub(super) fn take(&self, path: &[u8], text: &[u8]) -> Option<Record> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|own| own.path.as_bytes() == path && own.text.as_bytes() == text)?;
        all.remove(at).map(|own| own.record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[test]
    fn a_block_is_known_by_its_text_and_told_once() {
        let own = OwnBlocks::default();
        let block = conformance::block("192.0.2.0/30", "n").unwrap();
        own.remember("/b", "text", &block);
        assert_eq!(own.take(b"/b", b"another"), None);
        assert_eq!(own.take(b"/c", b"text"), None);
        assert_eq!(own.take(b"/b", b"text"), Some(block.clone()));
        assert_eq!(own.take(b"/b", b"text"), None);
        own.remember("/b", "old", &block);
        own.remember("/b", "new", &block);
        assert_eq!(own.take(b"/b", b"old"), None, "another write of it took its place");
        for number in 0..KEPT {
            own.remember(&format!("/{number}"), "text", &block);
        }
        assert_eq!(own.take(b"/b", b"new"), None, "not for ever");
    }
}
