//! The functions, by name and number of arguments.

use super::Operator;
use super::evaluate::{binary, compare, equal};
use regex::RegexBuilder;
use serde_json::Value;
use std::cmp::Ordering;

/// Size of a compiled pattern, in bytes, at most.
const MAX_PATTERN: usize = 1 << 20;

/// Whether there is a function that is called with this many arguments.
pub(super) fn is_function(name: &str, arguments: usize) -> bool {
    matches!((name, arguments), ("size" | "int" | "string" | "double" | "uint" | "bool" | "dyn", 1))
}

/// Whether there is a function that is called on a value with this many arguments more.
pub(super) fn is_method(name: &str, arguments: usize) -> bool {
    matches!(
        (name, arguments),
        ("size" | "lowerAscii" | "upperAscii" | "trim" | "sum" | "min" | "max" | "isSorted" | "join", 0)
            | (
                "contains"
                    | "startsWith"
                    | "endsWith"
                    | "matches"
                    | "split"
                    | "join"
                    | "indexOf"
                    | "lastIndexOf",
                1
            )
            | ("substring" | "charAt", 1)
            | ("replace" | "substring", 2)
    )
}

fn none(name: &str) -> String {
    format!("no such overload: {name}")
}

fn number(count: usize) -> Value {
    i64::try_from(count).unwrap_or(i64::MAX).into()
}

/// Calls one; a method's value comes first.
pub(super) fn call(name: &str, values: &[&Value]) -> Result<Value, String> {
    match (name, values) {
        ("size", [Value::String(text)]) => Ok(number(text.chars().count())),
        ("size", [Value::Array(list)]) => Ok(number(list.len())),
        ("size", [Value::Object(map)]) => Ok(number(map.len())),
        ("dyn", [value]) => Ok((*value).clone()),
        ("int" | "uint" | "string" | "double" | "bool", [value]) => convert(name, value),
        (_, [Value::String(text), rest @ ..]) => on_text(name, text, rest),
        (_, [Value::Array(list), rest @ ..]) => on_list(name, list, rest),
        _ => Err(none(name)),
    }
}

fn convert(name: &str, value: &Value) -> Result<Value, String> {
    let failed = || format!("type conversion error to {name}");
    match (name, value) {
        ("int" | "uint", Value::Number(from)) => {
            if let Some(whole) = from.as_i64() {
                return Ok(whole.into());
            }
            let double = from.as_f64().unwrap_or(f64::NAN).trunc();
            // Through a text: there is no conversion that refuses what does not fit.
            format!("{double:.0}").parse::<i64>().map(Value::from).map_err(|_| failed())
        }
        ("int" | "uint", Value::String(text)) => text.parse::<i64>().map(Value::from).map_err(|_| failed()),
        ("double", Value::Number(from)) => Ok(from.as_f64().unwrap_or(f64::NAN).into()),
        ("double", Value::String(text)) => text.parse::<f64>().map(Value::from).map_err(|_| failed()),
        ("string", Value::String(text)) => Ok(text.as_str().into()),
        ("string", Value::Number(_) | Value::Bool(_)) => Ok(value.to_string().into()),
        ("bool", Value::Bool(_)) => Ok(value.clone()),
        ("bool", Value::String(text)) => text.parse::<bool>().map(Value::from).map_err(|_| failed()),
        _ => Err(none(name)),
    }
}

fn position(text: &str, byte: Option<usize>) -> Value {
    byte.map_or_else(|| (-1).into(), |byte| number(text[..byte].chars().count()))
}

fn on_text(name: &str, text: &str, rest: &[&Value]) -> Result<Value, String> {
    match (name, rest) {
        ("contains", [Value::String(part)]) => Ok(text.contains(part.as_str()).into()),
        ("startsWith", [Value::String(part)]) => Ok(text.starts_with(part.as_str()).into()),
        ("endsWith", [Value::String(part)]) => Ok(text.ends_with(part.as_str()).into()),
        ("matches", [Value::String(pattern)]) => {
            let built = RegexBuilder::new(pattern).size_limit(MAX_PATTERN).build();
            Ok(built.map_err(|_| format!("error parsing regexp: {pattern:?}"))?.is_match(text).into())
        }
        ("lowerAscii", []) => Ok(text.to_ascii_lowercase().into()),
        ("upperAscii", []) => Ok(text.to_ascii_uppercase().into()),
        ("trim", []) => Ok(text.trim().into()),
        ("split", [Value::String(by)]) => {
            if by.is_empty() {
                return Ok(text.chars().map(|letter| Value::from(letter.to_string())).collect());
            }
            Ok(text.split(by.as_str()).map(Value::from).collect())
        }
        ("replace", [Value::String(from), Value::String(to)]) => {
            if text.len().saturating_mul(to.len().max(1)) > MAX_PATTERN {
                return Err("the rule takes too many steps".to_owned());
            }
            Ok(text.replace(from.as_str(), to).into())
        }
        ("indexOf", [Value::String(part)]) => Ok(position(text, text.find(part.as_str()))),
        ("lastIndexOf", [Value::String(part)]) => Ok(position(text, text.rfind(part.as_str()))),
        ("charAt", [at]) => {
            let at = at.as_u64().and_then(|at| usize::try_from(at).ok());
            let letter = at.and_then(|at| text.chars().nth(at));
            letter.map(|letter| letter.to_string().into()).ok_or_else(|| "index out of range".to_owned())
        }
        ("substring", [from, rest @ ..]) => {
            let letters: Vec<char> = text.chars().collect();
            let place = |value: &Value| value.as_u64().and_then(|at| usize::try_from(at).ok());
            let end = rest.first().map_or(Some(letters.len()), |end| place(end));
            let found = place(from).zip(end).and_then(|(from, end)| letters.get(from..end));
            found
                .map(|part| part.iter().collect::<String>().into())
                .ok_or_else(|| "index out of range".to_owned())
        }
        _ => Err(none(name)),
    }
}

fn on_list(name: &str, list: &[Value], rest: &[&Value]) -> Result<Value, String> {
    let texts = || -> Option<Vec<&str>> { list.iter().map(Value::as_str).collect() };
    match (name, rest) {
        ("join", []) => Ok(texts().ok_or_else(|| none(name))?.concat().into()),
        ("join", [Value::String(by)]) => Ok(texts().ok_or_else(|| none(name))?.join(by).into()),
        ("indexOf", [wanted]) => {
            Ok(list.iter().position(|item| equal(item, wanted)).map_or_else(|| (-1).into(), number))
        }
        ("lastIndexOf", [wanted]) => {
            Ok(list.iter().rposition(|item| equal(item, wanted)).map_or_else(|| (-1).into(), number))
        }
        ("sum", []) => list.iter().try_fold(Value::from(0), |sum, item| binary(Operator::Add, &sum, item)),
        ("isSorted", []) => {
            Ok(list.windows(2).all(|pair| compare(&pair[0], &pair[1]).is_some_and(Ordering::is_le)).into())
        }
        ("min" | "max", []) => {
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let mut items = list.iter();
            let first = items.next().ok_or_else(|| format!("{name} called on empty list"))?;
            items
                .try_fold(first, |best, item| Some(if compare(item, best)? == wanted { item } else { best }))
                .cloned()
                .ok_or_else(|| none(name))
        }
        _ => Err(none(name)),
    }
}
