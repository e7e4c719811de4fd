//! Pieces of cells that several kinds share.

use crate::age;
use jiff::Timestamp;
use serde_json::Value;

/// What stands for an empty value.
pub(super) const NONE: &str = "<none>";
/// What stands for a value that should be there.
pub(super) const UNKNOWN: &str = "<unknown>";

/// The object's name.
pub(super) fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

/// Time since the object was created.
pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now).into()
}

/// Time since a timestamp, `<unknown>` if there is none.
pub(super) fn since(timestamp: &Value, now: Timestamp) -> String {
    timestamp.as_str().and_then(|text| age::since(text, now)).unwrap_or_else(|| UNKNOWN.to_owned())
}

/// A string, empty if there is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A string, or what stands for its absence.
pub(super) fn text_or(value: &Value, absent: &str) -> Value {
    match text(value) {
        "" => absent.into(),
        text => text.into(),
    }
}

/// A number, zero if there is none.
pub(super) fn count(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// The items of a list, none if it is no list.
pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Strings of a list joined by commas, or what stands for an empty list.
pub(super) fn joined<'a>(parts: impl IntoIterator<Item = &'a str>, absent: &str) -> String {
    let joined = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(",");
    if joined.is_empty() { absent.to_owned() } else { joined }
}

/// A map of labels as `a=b,c=d`, `<none>` if it is empty.
pub(super) fn labels(labels: &Value) -> String {
    let pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect();
    joined(pairs.iter().map(String::as_str), NONE)
}

/// A `LabelSelector` object as text, `<none>` if it is empty.
pub(super) fn selector(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), format!("{key}={}", text(value))))
        .collect();
    for expression in items(&selector["matchExpressions"]) {
        let key = text(&expression["key"]);
        let mut values: Vec<&str> = items(&expression["values"]).iter().map(text).collect();
        values.sort_unstable();
        let values = values.join(",");
        let part = match text(&expression["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key.to_owned(), part));
    }
    parts.sort();
    joined(parts.iter().map(|(_, part)| part.as_str()), NONE)
}

/// The status of a condition, if there is one of this type.
pub(super) fn condition<'a>(object: &'a Value, wanted: &str) -> Option<&'a Value> {
    items(&object["status"]["conditions"]).iter().find(|one| one["type"] == wanted)
}

/// Names and images of a pod template's containers.
pub(super) fn containers(template: &Value) -> (String, String) {
    let containers = items(&template["spec"]["containers"]);
    let of = |key: &str| joined(containers.iter().map(|one| text(&one[key])), "");
    (of("name"), of("image"))
}

/// The first three, and how many more there are.
pub(super) fn at_most_three(all: &[String]) -> String {
    match all.len() {
        0 => NONE.to_owned(),
        1..=3 => all.join(","),
        more => format!("{} + {} more...", all[..3].join(","), more - 3),
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! What the printers' tests share.

    use super::super::Columns;
    use jiff::Timestamp;
    use serde_json::Value;

    /// An hour after the objects of the tests were created.
    #[expect(non_snake_case, reason = "it stands for a constant")]
    pub(crate) fn NOW() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    /// Heads and cells of one object.
    pub(crate) fn row_of(group: &str, resource: &str, object: &Value) -> Vec<(String, Value)> {
        let columns = Columns::for_kind(group, resource);
        let definitions = columns.definitions();
        let heads =
            definitions.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned());
        heads.zip(columns.cells(object, NOW())).collect()
    }

    /// One cell of an object.
    pub(crate) fn cell(group: &str, resource: &str, object: &Value, head: &str) -> Value {
        row_of(group, resource, object).into_iter().find(|(name, _)| name == head).unwrap().1
    }
}
