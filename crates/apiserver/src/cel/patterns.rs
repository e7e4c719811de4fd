//! The patterns of one definition: each text is compiled once, and all of them together have a bound.

use regex::{Error, Regex, RegexBuilder};
use std::collections::HashMap;
use std::sync::Arc;

/// Size of a compiled pattern, in bytes, at most.
const MAX_PATTERN: usize = 1 << 20;
/// What a pattern is charged at least, in bytes; it is tried within four times as much until it fits.
const LEAST: usize = 1 << 14;
/// Size of all compiled patterns of a definition, in bytes, at most.
const MAX_ALL: usize = 16 << 20;

/// Why there is no pattern.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum PatternError {
    /// The text is none, or becomes too large by itself.
    #[error("must be a valid regular expression, but isn't: {0}")]
    Invalid(Error),
    /// The definition has too many.
    #[error("the patterns of this definition are too large together; write fewer or shorter ones")]
    TooMany,
}

/// Patterns that were compiled, and what is left for others.
#[derive(Debug)]
pub(crate) struct Patterns {
    known: HashMap<String, Result<Arc<Regex>, Error>>,
    left: usize,
}

impl Default for Patterns {
    fn default() -> Self {
        Self { known: HashMap::new(), left: MAX_ALL }
    }
}

impl Patterns {
    /// Compiles a pattern, unless it is known.
    ///
    /// # Errors
    /// [`PatternError`]; what is too large is charged too, because it was compiled until that was seen.
    pub(crate) fn compile(&mut self, text: &str) -> Result<Arc<Regex>, PatternError> {
        if let Some(known) = self.known.get(text) {
            return known.clone().map_err(PatternError::Invalid);
        }
        let mut limit = LEAST;
        let compiled = loop {
            if limit > self.left {
                self.left = 0;
                return Err(PatternError::TooMany);
            }
            match RegexBuilder::new(text).size_limit(limit).build() {
                Err(Error::CompiledTooBig(_)) if limit < MAX_PATTERN => limit *= 4,
                compiled => break compiled.map(Arc::new),
            }
        };
        self.left -= limit;
        self.known.insert(text.to_owned(), compiled.clone());
        compiled.map_err(PatternError::Invalid)
    }
}

/// Compiles a pattern that is made while a rule is judged, unless it is none or becomes too large.
pub(super) fn pattern(text: &str) -> Option<Regex> {
    RegexBuilder::new(text).size_limit(MAX_PATTERN).build().ok()
}
