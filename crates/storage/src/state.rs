//! What readers see: the current value of each key, and the latest changes.

use crate::event::{Entry, Event};
use crate::history::History;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Keys of a prefix, all as of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// In key order.
    pub entries: Vec<(String, Entry)>,
    /// The revision that the list shows; a watch continues from here.
    pub revision: u64,
    /// How many keys of the prefix come after the last entry; not 0 only under a limit.
    pub remaining: usize,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) revision: u64,
    pub(crate) index: BTreeMap<String, Entry>,
    pub(crate) history: History,
}

/// The first string after all that begin with `prefix`, or none.
pub(crate) fn prefix_end(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

impl State {
    /// Entries of `prefix` after the key `after`, at most `limit` (0: all).
    pub(crate) fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Listing {
        let start = match after {
            Some(key) if key >= prefix => Bound::Excluded(key),
            _ => Bound::Included(prefix),
        };
        let end = prefix_end(prefix);
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        if let (Bound::Excluded(start), Bound::Excluded(end)) = (start, end)
            && start >= end
        {
            return Listing { revision: self.revision, ..Listing::default() };
        }
        let mut range = self.index.range::<str, _>((start, end));
        let wanted = if limit == 0 { usize::MAX } else { limit };
        let entries: Vec<_> =
            range.by_ref().take(wanted).map(|(key, entry)| (key.clone(), entry.clone())).collect();
        Listing { entries, revision: self.revision, remaining: if limit == 0 { 0 } else { range.count() } }
    }

    /// As [`State::list`], as it was at the past revision `at`: changes since are undone from the history.
    /// `None` when the history no longer reaches back that far.
    pub(crate) fn list_at(
        &self,
        at: u64,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Option<Listing> {
        if at >= self.revision {
            return Some(self.list(prefix, after, limit));
        }
        let mut then: BTreeMap<String, Entry> = self.list(prefix, after, 0).entries.into_iter().collect();
        for event in self.history.since(at)?.rev() {
            if !event.key.starts_with(prefix) || after.is_some_and(|after| event.key.as_str() <= after) {
                continue;
            }
            match &event.before {
                Some(before) => then.insert(event.key.clone(), before.clone()),
                None => then.remove(&event.key),
            };
        }
        let total = then.len();
        let wanted = if limit == 0 { usize::MAX } else { limit };
        let entries: Vec<_> = then.into_iter().take(wanted).collect();
        let remaining = total - entries.len();
        Some(Listing { entries, revision: at, remaining })
    }

    /// Takes over a durable change.
    pub(crate) fn publish(&mut self, event: Arc<Event>) {
        self.revision = event.revision;
        match &event.now {
            Some(entry) => self.index.insert(event.key.clone(), entry.clone()),
            None => self.index.remove(&event.key),
        };
        self.history.push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_after_all_its_keys() {
        assert_eq!(prefix_end("/a/").as_deref(), Some("/a0"));
        assert_eq!(prefix_end(""), None);
        assert_eq!(prefix_end(&char::MAX.to_string()), None);
        assert!(prefix_end("\u{d7ff}").is_some_and(|end| *end > *"\u{d7ff}\u{10ffff}"));
    }
}
