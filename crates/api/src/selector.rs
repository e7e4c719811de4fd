//! Calico's selector language over labels (data model §11).
//!
//! Precedence from low to high: `||`, `&&`, prefix `!`, primary. An empty selector matches everything.
//!
//! ```
//! use api::selector::Selector;
//! let selector = Selector::parse("zone in {'a', 'b'} && !has(gpu)")?;
//! assert!(selector.matches(&[("zone".to_owned(), "a".to_owned())].into()));
//! # Ok::<(), api::selector::ParseSelectorError>(())
//! ```

use std::collections::BTreeMap;
use std::fmt;
use winnow::combinator::{alt, cut_err, delimited, not, opt, preceded, repeat, separated, terminated};
use winnow::error::{ContextError, ErrMode};
use winnow::prelude::*;
use winnow::token::{literal, take_till, take_while};

/// Longest selector that is read (data model §4.1).
const MAX_LENGTH: usize = 1024;
/// Longest label name.
const MAX_LABEL: usize = 512;
/// Deepest nesting of parentheses, so that hostile input cannot exhaust the stack.
const MAX_DEPTH: usize = 64;

/// A selector, ready to be matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Expression);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    All,
    Has(String),
    Compare(String, Comparison),
    Not(Box<Expression>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Comparison {
    Equal(String),
    NotEqual(String),
    Contains(String),
    StartsWith(String),
    EndsWith(String),
    In(Vec<String>),
    NotIn(Vec<String>),
}

/// A text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSelectorError {
    /// It does not follow the grammar.
    #[error("selector {text:?} cannot be read from {rest:?} on: write such as zone == 'a' && has(gpu)")]
    Syntax {
        /// The selector, shortened.
        text: String,
        /// Where reading stopped, shortened.
        rest: String,
    },
    /// It is longer than 1024 bytes.
    #[error("a selector of {length} bytes is longer than the 1024 allowed")]
    TooLong {
        /// Bytes.
        length: usize,
    },
    /// Parentheses are nested more than 64 deep.
    #[error("the selector is nested more than 64 deep")]
    TooDeep,
}

impl Selector {
    /// Reads a selector; blank means all.
    ///
    /// # Errors
    /// See [`ParseSelectorError`].
    pub fn parse(text: &str) -> Result<Self, ParseSelectorError> {
        if text.len() > MAX_LENGTH {
            return Err(ParseSelectorError::TooLong { length: text.len() });
        }
        if depth(text) > MAX_DEPTH {
            return Err(ParseSelectorError::TooDeep);
        }
        if text.trim_matches([' ', '\t']).is_empty() {
            return Ok(Self(Expression::All));
        }
        delimited(blank, any_of, blank).parse(text).map(Self).map_err(|error| {
            let rest = text.get(error.offset()..).unwrap_or_default();
            ParseSelectorError::Syntax { text: shortened(text), rest: shortened(rest) }
        })
    }

    /// Whether it matches these labels. A missing label satisfies only `!=` and `not in`.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }
}

/// A form of it that reads as the same selector.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Self], by: &str| {
            for (number, part) in parts.iter().enumerate() {
                f.write_str(if number == 0 { "" } else { by })?;
                match part {
                    // What binds less than its surroundings, or would melt into them, was in parentheses.
                    Self::Or(_) => write!(f, "({part})")?,
                    Self::And(_) if by == " && " => write!(f, "({part})")?,
                    _ => part.fmt(f)?,
                }
            }
            Ok(())
        };
        match self {
            Self::All => f.write_str("all()"),
            Self::Has(label) => write!(f, "has({label})"),
            Self::Compare(label, comparison) => write!(f, "{label} {comparison}"),
            // Two signs in a row would cancel each other out on reading.
            Self::Not(inner) if matches!(**inner, Self::Not(_) | Self::And(_) | Self::Or(_)) => {
                write!(f, "!({inner})")
            }
            Self::Not(inner) => write!(f, "!{inner}"),
            Self::And(parts) => joined(f, parts, " && "),
            Self::Or(parts) => joined(f, parts, " || "),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |f: &mut fmt::Formatter<'_>, word: &str, set: &[String]| {
            let entries: Vec<String> = set.iter().map(|entry| quoted(entry)).collect();
            write!(f, "{word} {{{}}}", entries.join(", "))
        };
        match self {
            Self::Equal(value) => write!(f, "== {}", quoted(value)),
            Self::NotEqual(value) => write!(f, "!= {}", quoted(value)),
            Self::Contains(value) => write!(f, "contains {}", quoted(value)),
            Self::StartsWith(value) => write!(f, "starts with {}", quoted(value)),
            Self::EndsWith(value) => write!(f, "ends with {}", quoted(value)),
            Self::In(values) => set(f, "in", values),
            Self::NotIn(values) => set(f, "not in", values),
        }
    }
}

/// A text in the quotes that it does not contain; no text that was read contains both.
fn quoted(text: &str) -> String {
    if text.contains('"') { format!("'{text}'") } else { format!("\"{text}\"") }
}

impl Expression {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::All => true,
            Self::Has(label) => labels.contains_key(label),
            Self::Compare(label, comparison) => comparison.holds(labels.get(label).map(String::as_str)),
            Self::Not(inner) => !inner.matches(labels),
            Self::And(parts) => parts.iter().all(|part| part.matches(labels)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(labels)),
        }
    }
}

impl Comparison {
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::Equal(wanted) => value == Some(wanted),
            Self::NotEqual(wanted) => value != Some(wanted),
            Self::Contains(part) => value.is_some_and(|value| value.contains(part)),
            Self::StartsWith(part) => value.is_some_and(|value| value.starts_with(part)),
            Self::EndsWith(part) => value.is_some_and(|value| value.ends_with(part)),
            Self::In(set) => value.is_some_and(|value| set.iter().any(|entry| entry == value)),
            Self::NotIn(set) => !value.is_some_and(|value| set.iter().any(|entry| entry == value)),
        }
    }
}

/// How many parentheses are open at once, those inside quoted texts not counted. Negations are read in a loop.
fn depth(text: &str) -> usize {
    let (mut open, mut deepest, mut quote) = (0_usize, 0_usize, None);
    for c in text.chars() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(opening)) if c == opening => quote = None,
            ('(', None) => open += 1,
            (')', None) => open = open.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(open);
    }
    deepest
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

type Parsed<T> = Result<T, ErrMode<ContextError>>;

fn blank(input: &mut &str) -> Parsed<()> {
    take_while(0.., [' ', '\t']).void().parse_next(input)
}

fn any_of(input: &mut &str) -> Parsed<Expression> {
    separated(1.., all_of, (blank, "||", blank)).map(|parts| joined(parts, Expression::Or)).parse_next(input)
}

fn all_of(input: &mut &str) -> Parsed<Expression> {
    separated(1.., unary, (blank, "&&", blank)).map(|parts| joined(parts, Expression::And)).parse_next(input)
}

fn joined(mut parts: Vec<Expression>, join: fn(Vec<Expression>) -> Expression) -> Expression {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        Some(last) => {
            parts.push(last);
            join(parts)
        }
        None => join(parts),
    }
}

fn unary(input: &mut &str) -> Parsed<Expression> {
    let negations: usize =
        repeat(0.., ("!", blank).void()).fold(|| 0, |count, ()| count + 1).parse_next(input)?;
    let inner = primary(input)?;
    Ok(if negations.is_multiple_of(2) { inner } else { Expression::Not(Box::new(inner)) })
}

fn primary(input: &mut &str) -> Parsed<Expression> {
    alt((
        delimited(("(", blank), any_of, (blank, cut_err(")"))),
        call("all").map(|()| Expression::All),
        call("global").map(|()| Expression::All),
        delimited(("has", blank, "(", blank), label, (blank, ")")).map(Expression::Has),
        (terminated(label, blank), comparison)
            .map(|(label, comparison)| Expression::Compare(label, comparison)),
    ))
    .parse_next(input)
}

/// `name()`, with blanks allowed inside.
fn call<'i>(name: &'static str) -> impl Parser<&'i str, (), ErrMode<ContextError>> {
    (literal(name), blank, "(", blank, ")").void()
}

fn label(input: &mut &str) -> Parsed<String> {
    take_while(1..=MAX_LABEL, |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c))
        .map(str::to_owned)
        .parse_next(input)
}

fn comparison(input: &mut &str) -> Parsed<Comparison> {
    alt((
        preceded(("==", blank), text).map(Comparison::Equal),
        preceded(("!=", blank), text).map(Comparison::NotEqual),
        preceded(("contains", blank), text).map(Comparison::Contains),
        preceded(("starts", blank, "with", blank), text).map(Comparison::StartsWith),
        preceded(("ends", blank, "with", blank), text).map(Comparison::EndsWith),
        preceded(("not", blank, "in", blank), set).map(Comparison::NotIn),
        preceded(("in", blank), set).map(Comparison::In),
    ))
    .parse_next(input)
}

fn set(input: &mut &str) -> Parsed<Vec<String>> {
    let entries = separated(1.., text, (blank, ",", blank, not("}")));
    let entries = terminated(entries, (blank, opt((",", blank))));
    delimited(("{", blank), opt(entries), "}").map(Option::unwrap_or_default).parse_next(input)
}

fn text(input: &mut &str) -> Parsed<String> {
    alt((delimited('"', take_till(0.., '"'), '"'), delimited('\'', take_till(0.., '\''), '\'')))
        .map(str::to_owned)
        .parse_next(input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Selector::parse(selector).unwrap().matches(&labels)
    }

    #[test]
    fn everything_matches_the_empty_selector() {
        for selector in ["", " \t", "all()", "all( )", "global()"] {
            assert!(matches(selector, &[]), "{selector}");
        }
    }

    #[test]
    fn a_missing_label_satisfies_only_the_negative_comparisons() {
        for (selector, verdict) in [
            ("a == 'x'", false),
            ("a in {'x'}", false),
            ("a contains 'x'", false),
            ("a starts with 'x'", false),
            ("a ends with 'x'", false),
            ("has(a)", false),
            ("a != 'x'", true),
            ("a not in {'x'}", true),
        ] {
            assert_eq!(matches(selector, &[("b", "x")]), verdict, "{selector}");
        }
    }

    #[test]
    fn comparisons_look_at_the_value() {
        let labels = [("zone", "eu-west"), ("all", "1"), ("in", "2"), ("k8s.io/os-name", "linux")];
        for selector in [
            "zone == \"eu-west\"",
            "zone=='eu-west'",
            "zone != 'us'",
            "zone contains '-'",
            "zone starts with 'eu'",
            "zone startswith 'eu'",
            "zone ends with \"west\"",
            "zone endswith 'west'",
            "zone in {'eu-west', 'us',}",
            "zone in{ 'eu-west' }",
            "zone not in {}",
            "zone notin {'us'}",
            "has( zone )",
            "all == '1'",
            "in in {'2'}",
            "k8s.io/os-name == 'linux'",
        ] {
            assert!(matches(selector, &labels), "{selector}");
        }
    }

    #[test]
    fn and_binds_stronger_than_or_and_not_strongest() {
        assert!(matches("has(a) || has(b) && has(c)", &[("a", "")]));
        assert!(!matches("(has(a) || has(b)) && has(c)", &[("a", "")]));
        assert!(matches("!has(x) && has(a)", &[("a", "")]));
        assert!(matches("!!has(a)", &[("a", "")]));
        assert!(!matches("!(has(a) || has(b))", &[("b", "")]));
    }

    #[test]
    fn what_does_not_follow_the_grammar_is_refused() {
        for selector in [
            "a",
            "a ==",
            "a == b",
            "a == 'x",
            "has()",
            "(has(a)",
            "has(a))",
            "a in {'x'",
            "a in {,}",
            "&& has(a)",
            "a = 'x'",
        ] {
            assert!(Selector::parse(selector).is_err(), "{selector}");
        }
    }

    #[test]
    fn size_and_depth_are_bounded() {
        assert_eq!(Selector::parse(&"a".repeat(1025)), Err(ParseSelectorError::TooLong { length: 1025 }));
        let nested = format!("{}has(a){}", "(".repeat(100), ")".repeat(100));
        assert_eq!(Selector::parse(&nested), Err(ParseSelectorError::TooDeep));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z()!&|={}'\", ]{0,80}") {
            let _ = Selector::parse(&text);
        }
    }
}
