//! The expression language of validation rules (CEL): the crate `cel` with Kubernetes' functions for texts and lists.
//!
//! Rules come from whoever may write definitions, and the crate bounds nothing: how long and deep a rule may be is checked
//! before it is parsed (`bounds`), and what it does is counted while it is judged (`prepare`, `judge`). A rule that needs
//! more of the language than there is, is known by [`ParseError::Unknown`] when it is read, and not only when it is judged.
//!
//! ```
//! use apiserver::cel::Program;
//! use serde_json::json;
//! let rule = Program::parse("has(self.max) ? self.min <= self.max : true").unwrap();
//! assert_eq!(rule.evaluate(&json!({"min": 1, "max": 2}), None), Ok(json!(true)));
//! ```

mod bounds;
mod functions;
#[cfg(test)]
mod hostile;
mod judge;
mod patterns;
mod prepare;

pub use judge::{Budget, Subject};
pub(crate) use patterns::{PatternError, Patterns};

use cel::IdedExpr;
use cel::parser::PrattParser;
use regex::Regex;
use serde_json::Value;
use std::sync::Arc;

/// Why a text is no program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It is no expression, or one that is too long or too deep.
    #[error("Syntax error: {0}")]
    Syntax(String),
    /// It is one, and uses something that is not served here.
    #[error("{0} is not known")]
    Unknown(String),
}

fn syntax(what: impl Into<String>) -> ParseError {
    ParseError::Syntax(what.into())
}

/// A program that was read.
#[derive(Clone, Debug)]
pub struct Program {
    root: Arc<IdedExpr>,
    patterns: Arc<[Option<Arc<Regex>>]>,
    weight: usize,
    uses_old: bool,
}

impl Program {
    /// Reads one.
    ///
    /// # Errors
    /// [`ParseError`]; also for more than 16 KiB, and more than a hundred expressions inside each other.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Self::parse_with(text, &mut Patterns::default())
    }

    /// Reads one of a definition, whose patterns have a bound together.
    pub(crate) fn parse_with(text: &str, patterns: &mut Patterns) -> Result<Self, ParseError> {
        bounds::check(text)?;
        let parsed = PrattParser::new().parse(text);
        let mut root = parsed.map_err(|errors| {
            let first = errors.errors.into_iter().next().map_or_else(String::new, |error| error.msg);
            syntax(first.strip_prefix("Syntax error: ").unwrap_or(&first))
        })?;
        let prepared = prepare::prepare(&mut root, patterns)?;
        Ok(Self {
            root: root.into(),
            patterns: prepared.patterns.into(),
            weight: prepared.weight,
            uses_old: prepared.uses_old,
        })
    }

    /// Whether it compares with the value before: it says nothing about a new one.
    pub fn uses_old(&self) -> bool {
        self.uses_old
    }

    /// What it says about a value.
    ///
    /// # Errors
    /// What went wrong, as `no such key: x`; also when it took too long.
    pub fn evaluate(&self, value: &Value, old: Option<&Value>) -> Result<Value, String> {
        let mut budget = Budget::default();
        self.judge(&Subject::new(value, old, &mut budget), &mut budget)
    }

    /// What it says about a value that other rules judge too, within what is left to all of them.
    ///
    /// # Errors
    /// As [`Program::evaluate`].
    pub fn judge(&self, subject: &Subject<'_>, budget: &mut Budget) -> Result<Value, String> {
        judge::judge(self, subject, budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn says(text: &str, value: &Value) -> Result<Value, String> {
        Program::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).evaluate(value, None)
    }

    #[test]
    fn expressions_mean_what_they_mean_elsewhere() {
        let value = json!({
            "name": "tom", "lives": 9, "size": 1.5, "tags": ["a", "b"], "map": {"k": "v"},
            "list": [{"n": 1}, {"n": 2}], "with-dash": 1, "namespace": "x",
        });
        for text in [
            "true || self.nothing",
            "self.nothing || true",
            "!(false && self.nothing)",
            "self.lives == 9 && self.lives != 8 && self.lives > 8 && self.lives <= 9",
            "self.lives + 1 == 10 && self.lives - 1 == 8 && self.lives * 2 == 18 && self.lives / 2 == 4 && self.lives % 2 == 1",
            "self.size * 2.0 == 3.0 && -self.lives == -9",
            "self.name + 'my' == \"tommy\"",
            "'a' in self.tags && !('c' in self.tags) && 'k' in self.map",
            "size(self.tags) == 2 && self.tags.size() == 2 && size('äö') == 2 && size(self.map) == 1",
            "self.tags[0] == 'a' && self.map['k'] == 'v' && self.map.k == 'v'",
            "has(self.name) && !has(self.nothing)",
            "self.list.all(x, x.n > 0) && self.list.exists(x, x.n == 2) && self.list.exists_one(x, x.n == 2)",
            "self.list.map(x, x.n) == [1, 2] && self.list.filter(x, x.n > 1).size() == 1",
            "self.map.all(k, k.startsWith('k'))",
            "self.name.matches('^t.m$') && self.name.contains('o') && self.name.endsWith('m')",
            "self.lives > 5 ? self.name == 'tom' : false",
            "self['with-dash'] == 1 && self.with__dash__dash == 1",
            "self.__namespace__ == 'x'",
            "'A,b'.lowerAscii().split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b'",
            "int('7') == 7 && string(7) == '7' && double(7) == 7.0 && 7.0 == 7",
            "[1, 2] + [3] == [1, 2, 3] && {'a': 1}.a == 1",
            "self.tags.indexOf('b') == 1 && [3, 1, 2].max() == 3 && [1, 2].sum() == 3 && ['a', 'b'].isSorted()",
            r"'a\nb'.size() == 3 && r'a\n'.size() == 3 && '''x'y''' == 'x\'y'",
            "self.tags.all(t, self.tags.exists(u, u == t)) // and a remark",
            "0x10 == 16 && 1u == 1 && 1e2 == 100.0",
        ] {
            assert_eq!(says(text, &value), Ok(json!(true)), "{text}");
        }
    }

    #[test]
    fn what_goes_wrong_is_said() {
        let value = json!({"a": 1, "l": [1]});
        assert_eq!(says("self.b", &value), Err("no such key: b".to_owned()));
        assert_eq!(says("self.l[3]", &value), Err("index out of bounds: 3".to_owned()));
        assert_eq!(says("1 / 0", &value), Err("division by zero".to_owned()));
        assert_eq!(says("9223372036854775807 + 1", &value), Err("integer overflow".to_owned()));
        assert!(says("self.a + 'x'", &value).is_err());
        assert!(says("self.a && true", &value).is_err());
        assert!(says("'a'.matches('(')", &value).is_err());
    }

    #[test]
    fn what_is_no_expression_is_refused_and_what_is_not_served_is_named() {
        for text in
            ["", "self.", "(self", "self ==", "'open", "self..a", "1 2", "self.all(x)", "a ? b", "[1,", "@"]
        {
            assert!(matches!(Program::parse(text), Err(ParseError::Syntax(_))), "{text}");
        }
        for text in ["isURL(self)", "self.family() == 4", "quantity('1') == self", "other.a"] {
            assert!(matches!(Program::parse(text), Err(ParseError::Unknown(_))), "{text}");
        }
        let deep = "(".repeat(10_000);
        assert!(Program::parse(&deep).is_err());
        assert!(Program::parse(&format!("{}1", "!".repeat(10_000))).is_err());
    }

    #[test]
    fn a_rule_that_takes_too_long_ends() {
        let value = json!({"l": (0..200).collect::<Vec<_>>()});
        let text = "self.l.all(a, self.l.all(b, self.l.all(c, self.l.all(d, a + b + c + d >= 0))))";
        assert_eq!(says(text, &value), Err("the rule takes too many steps".to_owned()));
        let long = json!("x".repeat(10_000));
        let text = "['', '', '', ''].all(a, ['', '', '', ''].all(b, (self + self + self + self).size() > 0))";
        assert!(says(text, &long).is_ok());
    }

    #[test]
    fn the_value_before_is_compared() {
        let rule = Program::parse("self == oldSelf || oldSelf == ''").unwrap();
        assert!(rule.uses_old());
        assert_eq!(rule.evaluate(&json!("a"), Some(&json!("b"))), Ok(json!(false)));
        assert_eq!(rule.evaluate(&json!("a"), Some(&json!(""))), Ok(json!(true)));
        assert!(!Program::parse("self.a == 'oldSelf'").unwrap().uses_old());
    }
}
