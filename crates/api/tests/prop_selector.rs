//! Selectors of any shape: what is read means what was written, in every spelling of the grammar (data model §11).

use api::selector::{ParseSelectorError, Selector};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A selector in the plainest form, which knows what it means.
#[derive(Clone, Debug)]
enum Meaning {
    Always(&'static str),
    Has(String),
    Compare(String, &'static str, String),
    Among(String, bool, Vec<String>),
    Not(Box<Meaning>),
    Both(Box<Meaning>, Box<Meaning>),
    Either(Box<Meaning>, Box<Meaning>),
}

use Meaning::{Always, Among, Both, Compare, Either, Has, Not};

/// Labels are few, and some are words of the grammar.
fn label() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "in", "not", "all", "has", "k8s.io/os-name", "starts"])
            .prop_map(str::to_owned),
        1 => "[A-Za-z0-9_./-]{1,12}",
    ]
}

/// Values without the quote that `spell` puts around them.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec!["", "x", "xy", "yx", "&& !has(a) ||", "}, {", "ö\u{2028}"]).prop_map(str::to_owned),
        1 => "[^\"]{0,12}",
    ]
}

fn meaning() -> impl Strategy<Value = Meaning> {
    let word = prop::sample::select(vec!["==", "!=", "contains", "starts with", "ends with"]);
    let leaf = prop_oneof![
        prop::sample::select(vec!["all()", "global()", "all( )"]).prop_map(Always),
        label().prop_map(Has),
        (label(), word, value()).prop_map(|(label, word, value)| Compare(label, word, value)),
        (label(), any::<bool>(), prop::collection::vec(value(), 0..3))
            .prop_map(|(label, within, set)| Among(label, within, set)),
    ];
    leaf.prop_recursive(5, 24, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|inner| Not(Box::new(inner))),
            (inner.clone(), inner.clone()).prop_map(|(left, right)| Both(Box::new(left), Box::new(right))),
            (inner.clone(), inner).prop_map(|(left, right)| Either(Box::new(left), Box::new(right))),
        ]
    })
}

impl Meaning {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Always(_) => true,
            Has(label) => labels.contains_key(label),
            Compare(label, word, value) => match (labels.get(label), *word) {
                (found, "!=") => found != Some(value),
                (None, _) => false,
                (Some(found), "==") => found == value,
                (Some(found), "contains") => found.contains(value.as_str()),
                (Some(found), "starts with") => found.starts_with(value.as_str()),
                (Some(found), _) => found.ends_with(value.as_str()),
            },
            Among(label, within, set) => {
                labels.get(label).is_some_and(|found| set.contains(found)) == *within
            }
            Not(inner) => !inner.holds(labels),
            Both(left, right) => left.holds(labels) && right.holds(labels),
            Either(left, right) => left.holds(labels) || right.holds(labels),
        }
    }

    /// Writes it in one of the spellings that the grammar allows: `draw` chooses blanks, quotes and parentheses.
    fn spell(&self, draw: &mut impl FnMut(u8) -> u8, around: u8) -> String {
        let blank = |draw: &mut dyn FnMut(u8) -> u8| ["", " ", "\t", "  "][usize::from(draw(4))];
        let quote = |value: &str, draw: &mut dyn FnMut(u8) -> u8| {
            let sign = if value.contains('\'') || draw(2) == 0 { '"' } else { '\'' };
            format!("{sign}{value}{sign}")
        };
        let (strength, text) = match self {
            Always(text) => (3, (*text).to_owned()),
            Has(label) => (3, format!("has({}{label}{})", blank(draw), blank(draw))),
            Compare(label, word, value) => {
                let word = if draw(2) == 0 { word.replace(' ', "") } else { (*word).to_owned() };
                (3, format!("{label} {word}{}{}", blank(draw), quote(value, draw)))
            }
            Among(label, within, set) => {
                let word = if *within { "in" } else { ["not in", "notin"][usize::from(draw(2))] };
                let mut text = format!("{label} {word}{}{{", blank(draw));
                for (number, value) in set.iter().enumerate() {
                    text += if number == 0 { "" } else { "," };
                    text += blank(draw);
                    text += &quote(value, draw);
                    text += blank(draw);
                }
                text += if set.is_empty() || draw(2) == 0 { "" } else { ", " };
                (3, text + "}")
            }
            Not(inner) => (2, format!("!{}{}", blank(draw), inner.spell(draw, 2))),
            Both(left, right) => {
                let (left, right) = (left.spell(draw, 1), right.spell(draw, 1));
                (1, format!("{left}{}&&{}{right}", blank(draw), blank(draw)))
            }
            Either(left, right) => {
                let (left, right) = (left.spell(draw, 0), right.spell(draw, 0));
                (0, format!("{left}{}||{}{right}", blank(draw), blank(draw)))
            }
        };
        if strength < around || draw(8) == 0 {
            format!("({}{text}{})", blank(draw), blank(draw))
        } else {
            text
        }
    }
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(label(), value(), 0..5)
}

proptest! {
    #[test]
    fn a_selector_means_what_was_written_and_prints_as_itself(
        meaning in meaning(),
        choices in prop::collection::vec(any::<u8>(), 1..64),
        labels in prop::collection::vec(labels(), 1..6),
    ) {
        let mut at = 0;
        let mut draw = |limit: u8| {
            at = (at + 1) % choices.len();
            choices[at] % limit
        };
        let text = meaning.spell(&mut draw, 0);
        prop_assume!(text.len() <= 1024);
        let selector = Selector::parse(&text).map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
        for labels in &labels {
            prop_assert_eq!(selector.matches(labels), meaning.holds(labels), "{} of {:?}", &text, labels);
        }
        let printed = selector.to_string();
        if printed.len() <= 1024 {
            prop_assert_eq!(Selector::parse(&printed), Ok(selector), "{}", printed);
        }
    }

    #[test]
    fn nesting_is_read_up_to_its_bound_and_refused_beyond(depth in 0_usize..300, not: bool, quote in 0_usize..3) {
        let open = if not { "!(" } else { "(" };
        let text = format!("{}a == {}{}", open.repeat(depth), ["'('", "'))'", "\"'((\""][quote], ")".repeat(depth));
        match Selector::parse(&text) {
            Ok(selector) => {
                prop_assert!(depth <= 64);
                let value = [("a".to_owned(), ["(", "))", "'(("][quote].to_owned())].into();
                prop_assert_eq!(selector.matches(&value), !not || depth % 2 == 0);
                prop_assert!(selector.to_string().len() <= text.len());
            }
            Err(ParseSelectorError::TooDeep) => prop_assert!(depth > 64),
            Err(error) => prop_assert!(text.len() > 1024, "{}", error),
        }
    }
}

#[test]
fn labels_are_bounded_too() {
    let label = "a".repeat(512);
    assert!(Selector::parse(&format!("has({label})")).is_ok());
    assert!(Selector::parse(&format!("has({label}a)")).is_err());
    assert!(Selector::parse(&"!".repeat(1023)).is_err());
    let negations = format!("{}all()", "!".repeat(1001));
    assert!(!Selector::parse(&negations).unwrap().matches(&BTreeMap::new()));
}
