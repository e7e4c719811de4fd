//! The part of JSONPath that printer columns use: `.a.b`, `['a']`, `[0]`, `[*]`, `[?(@.k=="v")]`.

use serde_json::Value;

/// Steps of a path, at most.
const MAX_STEPS: usize = 64;

/// A path into an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A field.
    Key(String),
    /// An item of a list; negative from its end.
    Index(i64),
    /// All items or values.
    All,
    /// The items whose value at a path compares so.
    Filter { path: Vec<Step>, equal: bool, value: String },
}

impl JsonPath {
    /// Reads a path. The leading dot may be missing.
    ///
    /// # Errors
    /// What is not understood, in a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')).unwrap_or(text);
        Ok(Self { steps: steps(text.strip_prefix('$').unwrap_or(text), 0)? })
    }

    /// All values that the path leads to.
    pub fn find<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        walk(&self.steps, object)
    }
}

fn walk<'a>(steps: &[Step], object: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![object];
    for step in steps {
        found = found.into_iter().flat_map(|value| take(step, value)).collect();
    }
    found
}

fn take<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    match step {
        Step::Key(key) => value.get(key).into_iter().collect(),
        Step::Index(index) => {
            let Some(list) = value.as_array() else { return Vec::new() };
            let from_end = || list.len().checked_sub(usize::try_from(index.unsigned_abs()).ok()?);
            let at = usize::try_from(*index).ok().or_else(from_end);
            at.and_then(|at| list.get(at)).into_iter().collect()
        }
        Step::All => match value {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Filter { path, equal, value: wanted } => value
            .as_array()
            .into_iter()
            .flatten()
            .filter(|item| walk(path, item).iter().any(|found| (plain(found) == *wanted) == *equal))
            .collect(),
    }
}

/// A value as a cell shows it: strings bare, everything else as JSON.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn steps(mut rest: &str, depth: usize) -> Result<Vec<Step>, String> {
    if depth > 2 {
        return Err("filters are nested too deep".to_owned());
    }
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if steps.len() == MAX_STEPS {
            return Err(format!("a path has at most {MAX_STEPS} steps"));
        }
        if let Some(inner) = rest.strip_prefix('[') {
            let end = closing(inner).ok_or_else(|| format!("unterminated bracket at {rest:?}"))?;
            steps.push(bracket(inner[..end].trim(), depth)?);
            rest = &inner[end + 1..];
            continue;
        }
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.starts_with('.') {
            return Err("recursive descent (..) is not supported".to_owned());
        }
        let (key, after) = key(rest);
        match key.as_str() {
            "" if after.starts_with('[') => {}
            "" => break,
            "*" => steps.push(Step::All),
            _ => steps.push(Step::Key(key)),
        }
        rest = after;
    }
    Ok(steps)
}

/// A field's name up to the next dot or bracket; a backslash keeps the character after it.
fn key(text: &str) -> (String, &str) {
    let mut key = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                key.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '.' | '[' => return (key, &text[at..]),
            _ => key.push(c),
        }
    }
    (key, "")
}

/// Place of the bracket that closes what began before `text`; brackets in quotes do not count.
fn closing(text: &str) -> Option<usize> {
    let (mut quote, mut open) = (None, 0_usize);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), _) if q == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => open += 1,
            (None, ']') if open == 0 => return Some(at),
            (None, ']') => open -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str, depth: usize) -> Result<Step, String> {
    if inner == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = quoted(inner) {
        return Ok(Step::Key(name.to_owned()));
    }
    if let Some(condition) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (left, equal, right) = match (condition.split_once("=="), condition.split_once("!=")) {
            (Some((left, right)), _) => (left, true, right),
            (None, Some((left, right))) => (left, false, right),
            _ => return Err(format!("only == and != are supported in a filter: {condition:?}")),
        };
        let path =
            left.trim().strip_prefix('@').ok_or_else(|| format!("a filter begins with @: {condition:?}"))?;
        let right = right.trim();
        let value = quoted(right).unwrap_or(right).to_owned();
        return Ok(Step::Filter { path: steps(path, depth + 1)?, equal, value });
    }
    inner.parse().map(Step::Index).map_err(|_| format!("[{inner}] is not supported"))
}

fn quoted(text: &str) -> Option<&str> {
    ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn find(path: &str, object: &Value) -> Vec<String> {
        JsonPath::parse(path).unwrap().find(object).into_iter().map(plain).collect()
    }

    #[test]
    fn a_condition_is_found_by_its_type() {
        let status = json!({"status": {"conditions": [
            {"type": "Available", "status": "True"}, {"type": "Degraded", "status": "False"}]}});
        assert_eq!(find(".status.conditions[?(@.type=='Degraded')].status", &status), ["False"]);
        assert_eq!(find(r#".status.conditions[?(@.type == "Available")].status"#, &status), ["True"]);
        assert_eq!(find(".status.conditions[?(@.type!='Degraded')].type", &status), ["Available"]);
        assert!(find(".status.conditions[?(@.type=='None')].status", &status).is_empty());
    }

    #[test]
    fn keys_indexes_and_stars_lead_to_values() {
        let object = json!({"a": {"b.c": 1, "d": [10, 20, 30]}});
        assert_eq!(find(r".a.b\.c", &object), ["1"]);
        assert_eq!(find(".a['b.c']", &object), ["1"]);
        assert_eq!(find(".a.d[0]", &object), ["10"]);
        assert_eq!(find(".a.d[-1]", &object), ["30"]);
        assert!(find(".a.d[-4]", &object).is_empty());
        assert_eq!(find("a.d[*]", &object), ["10", "20", "30"]);
        assert_eq!(find("{.a.d[1]}", &object), ["20"]);
        assert!(find(".a.x.y", &object).is_empty());
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        for path in [".a[", "..a", ".a[b]", ".a[?(@.x>1)]", ".a[?(x==1)]", ".a[1:2]"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
        assert!(JsonPath::parse(&".a".repeat(100)).is_err());
        assert!(JsonPath::parse("[?(@[?(@[?(@.a==1)]==1)]==1)]").is_err());
    }
}
