//! How long the datastore has said nothing to what it was asked: whoever waits for addresses hears of it soon. Pure.

use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;

/// Silence after which the datastore counts as away. Its slow answers are answers.
const LONGEST: SignedDuration = SignedDuration::from_millis(1000);

/// The questions that are open, and since when no answer came.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    open: BTreeSet<u64>,
    since: Option<Timestamp>,
}

impl Silence {
    /// Something is asked.
    pub(crate) fn asked(&mut self, question: u64, now: Timestamp) {
        self.open.insert(question);
        self.since.get_or_insert(now);
    }

    /// A question is over; `heard`: by a word of the datastore, and not for the lack of one.
    pub(crate) fn over(&mut self, question: u64, heard: bool, now: Timestamp) {
        self.open.remove(&question);
        if heard {
            self.since = (!self.open.is_empty()).then_some(now);
        }
    }

    /// Nobody wants anything of the datastore any more.
    pub(crate) fn rest(&mut self) {
        if self.open.is_empty() {
            self.since = None;
        }
    }

    /// Whether it has lasted too long.
    pub(crate) fn is_long(&self, now: Timestamp) -> bool {
        self.end().is_some_and(|end| end <= now)
    }

    /// When it will have.
    pub(crate) fn end(&self) -> Option<Timestamp> {
        self.since?.checked_add(LONGEST).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_long_when_questions_stay_open_or_fail_without_a_word() {
        let at = |millis: i64| Timestamp::from_millisecond(millis).unwrap();
        let mut silence = Silence::default();
        assert!(!silence.is_long(at(0)) && silence.end().is_none());
        silence.asked(1, at(0));
        silence.asked(2, at(900));
        assert!(!silence.is_long(at(999)) && silence.is_long(at(1000)));
        // An answer to one is a sign of life for both.
        silence.over(1, true, at(1000));
        assert!(!silence.is_long(at(1999)) && silence.is_long(at(2000)));
        silence.over(2, true, at(2000));
        assert_eq!(silence.end(), None);
        // What is refused at once, again and again, is silence too.
        silence.asked(3, at(3000));
        silence.over(3, false, at(3001));
        silence.asked(4, at(3900));
        silence.over(4, false, at(3901));
        assert!(silence.is_long(at(4000)));
        silence.rest();
        assert!(!silence.is_long(at(9000)));
    }
}
