//! Selectors of lists and watches: by labels, and by the few fields that each kind offers.

use crate::names::{is_label_key, is_label_value};
use crate::resource::Resource;
use serde_json::Value;

/// Longest selector that is read, in bytes.
const MAX_LENGTH: usize = 64 * 1024;

/// What a selector asks of one label or field.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    /// The value is one of these.
    In(Vec<String>),
    /// The value is none of these, or absent.
    NotIn(Vec<String>),
    /// There is a value.
    Exists,
    /// There is none.
    Absent,
    /// An integer above this.
    Above(i64),
    /// An integer below this.
    Below(i64),
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
            Self::NotIn(values) => value.is_none_or(|value| values.iter().all(|one| one != value)),
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::Above(limit) => number().is_some_and(|number| number > *limit),
            Self::Below(limit) => number().is_some_and(|number| number < *limit),
        }
    }
}

/// A label selector: all its requirements must hold. The empty one selects everything.
///
/// ```
/// # use apiserver::selector::LabelSelector;
/// let selector = LabelSelector::parse("app in (web, db),!canary,tier!=front").unwrap();
/// assert!(selector.matches(&serde_json::json!({"app": "db"})));
/// assert!(!selector.matches(&serde_json::json!({"app": "db", "canary": ""})));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<(String, Requirement)>,
}

impl LabelSelector {
    /// Reads the text of the `labelSelector` parameter: `k=v`, `k==v`, `k!=v`, `k in (a,b)`, `k notin (a,b)`, `k`,
    /// `!k`, `k>1`, `k<1`, separated by commas.
    ///
    /// # Errors
    /// A sentence for the message of a 400.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!(
                "unable to parse requirement: the selector has more than {MAX_LENGTH} bytes"
            ));
        }
        let mut scanner = Scanner { rest: text };
        let mut requirements = Vec::new();
        scanner.skip_spaces();
        if scanner.rest.is_empty() {
            return Ok(Self::default());
        }
        loop {
            requirements
                .push(scanner.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?);
            scanner.skip_spaces();
            if scanner.rest.is_empty() {
                return Ok(Self { requirements });
            }
            if !scanner.take(",") {
                return Err(format!(
                    "unable to parse requirement: found {:?}, expected: ',' or end of the selector",
                    scanner.shown()
                ));
            }
        }
    }

    /// Reads a `LabelSelector` object: `matchLabels` and `matchExpressions`. An empty one selects everything.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn from_value(selector: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        if let Some(labels) = selector["matchLabels"].as_object() {
            for (key, value) in labels {
                let value =
                    value.as_str().ok_or_else(|| format!("the value of label {key:?} is not a string"))?;
                requirements.push((key.clone(), Requirement::In(vec![value.to_owned()])));
            }
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values: Vec<String> = expression["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect();
            let requirement = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Requirement::In(values),
                "NotIn" => Requirement::NotIn(values),
                "Exists" => Requirement::Exists,
                "DoesNotExist" => Requirement::Absent,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            requirements.push((key, requirement));
        }
        Ok(Self { requirements })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object with these `metadata.labels` is selected; null means no labels.
    pub fn matches(&self, labels: &Value) -> bool {
        self.requirements.iter().all(|(key, requirement)| requirement.holds(labels[key.as_str()].as_str()))
    }
}

/// Reads the text of a label selector from left to right.
struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_spaces();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// The next characters, for a message.
    fn shown(&self) -> String {
        self.rest.chars().take(20).collect()
    }

    fn word(&mut self) -> &'a str {
        self.skip_spaces();
        let end =
            self.rest.find(|c: char| c.is_whitespace() || ",=!()<>".contains(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn requirement(&mut self) -> Result<(String, Requirement), String> {
        if self.take("!") {
            return Ok((self.key()?, Requirement::Absent));
        }
        let key = self.key()?;
        self.skip_spaces();
        let requirement = if self.take("!=") {
            Requirement::NotIn(vec![self.value()?])
        } else if self.take("==") || self.take("=") {
            Requirement::In(vec![self.value()?])
        } else if self.take(">") {
            Requirement::Above(self.number(&key)?)
        } else if self.take("<") {
            Requirement::Below(self.number(&key)?)
        } else if self.rest.is_empty() || self.rest.starts_with(',') {
            Requirement::Exists
        } else {
            match self.word() {
                "in" => Requirement::In(self.values()?),
                "notin" => Requirement::NotIn(self.values()?),
                "" => return Err(format!("found {:?}, expected an operator", self.shown())),
                other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
            }
        };
        Ok((key, requirement))
    }

    fn key(&mut self) -> Result<String, String> {
        let word = self.word();
        if word.is_empty() {
            return Err(format!("found {:?}, expected: !, identifier, or 'end of string'", self.shown()));
        }
        match is_label_key(word) {
            true => Ok(word.to_owned()),
            false => Err(format!("<nil>: Invalid value: {word:?}: not a valid label key")),
        }
    }

    fn value(&mut self) -> Result<String, String> {
        let word = self.word();
        match is_label_value(word) {
            true => Ok(word.to_owned()),
            false => Err(format!("values[0]: Invalid value: {word:?}: not a valid label value")),
        }
    }

    fn number(&mut self, key: &str) -> Result<i64, String> {
        let word = self.word();
        word.parse().map_err(|_| format!("for key {key:?}, {word:?} is not an integer"))
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        if !self.take("(") {
            return Err(format!("found {:?}, expected: '('", self.shown()));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            if self.take(")") {
                return Ok(values);
            }
            if !self.take(",") {
                return Err(format!("found {:?}, expected: ',' or ')'", self.shown()));
            }
        }
    }
}

/// A field selector: all its terms must hold. The empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// Reads the text of the `fieldSelector` parameter: `f=v`, `f==v`, `f!=v`, separated by commas. A backslash keeps
    /// a comma, an equals sign or a backslash in a value.
    ///
    /// # Errors
    /// A sentence for the message of a 400.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!("invalid selector: it has more than {MAX_LENGTH} bytes"));
        }
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let invalid = || format!("invalid selector: '{text}'; can't understand '{term}'");
            let at = term.find(['=', '!']).ok_or_else(invalid)?;
            let (field, rest) = term.split_at(at);
            let (equal, value) = if let Some(value) = rest.strip_prefix("!=") {
                (false, value)
            } else if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
                (true, value)
            } else {
                return Err(invalid());
            };
            terms.push(Term { field: field.to_owned(), equal, value: unescape(value) });
        }
        Ok(Self { terms })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The name that it asks for, if it asks for one: `metadata.name=…`.
    pub fn name(&self) -> Option<&str> {
        self.terms
            .iter()
            .find(|term| term.equal && term.field == "metadata.name")
            .map(|term| term.value.as_str())
    }

    /// The first field that the kind does not offer.
    pub fn unsupported(&self, resource: &Resource) -> Option<&str> {
        let selectable = resource.custom.as_ref().map_or(&[][..], |custom| &custom.selectable);
        let offered = offered(&resource.group, &resource.plural);
        self.terms.iter().map(|term| term.field.as_str()).find(|field| {
            !matches!(*field, "metadata.name" | "metadata.namespace")
                && !offered.contains(field)
                && !selectable.iter().any(|one| one == field)
        })
    }

    /// Whether `object` of this kind is selected.
    pub fn matches(&self, resource: &Resource, object: &Value) -> bool {
        self.terms.iter().all(|term| {
            (field_value(&resource.group, &resource.plural, object, &term.field) == term.value) == term.equal
        })
    }
}

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "reason",
    "reportingComponent",
    "reportingController",
    "source",
    "type",
];

fn offered(group: &str, resource: &str) -> &'static [&'static str] {
    match (group, resource) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "namespaces") => &["status.phase"],
        ("", "secrets") => &["type"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        ("" | "events.k8s.io", "events") => EVENT_FIELDS,
        _ => &[],
    }
}

fn field_value(group: &str, resource: &str, object: &Value, field: &str) -> String {
    let at = |path: &str| -> String {
        let found = path.split('.').try_fold(object, |value, key| value.get(key));
        match found {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(flag)) => flag.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        }
    };
    let or = |value: String, other: String| if value.is_empty() { other } else { value };
    match (group, resource, field) {
        ("", "pods", "spec.hostNetwork") | ("", "nodes", "spec.unschedulable") => {
            or(at(field), "false".to_owned())
        }
        ("", "pods", "status.podIPs") => object["status"]["podIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["ip"].as_str())
            .collect::<Vec<_>>()
            .join(","),
        ("batch", "jobs", "status.successful") => or(at("status.succeeded"), "0".to_owned()),
        (_, "events", "source") => {
            or(at("source.component"), or(at("reportingComponent"), at("reportingController")))
        }
        (_, "events", "reportingComponent" | "reportingController") => {
            or(at("reportingComponent"), at("reportingController"))
        }
        // One store holds both forms of events, under the field names of whoever wrote them.
        (_, "events", _) => match (field.strip_prefix("involvedObject."), field.strip_prefix("regarding.")) {
            (Some(rest), _) | (_, Some(rest)) => {
                or(at(&format!("involvedObject.{rest}")), at(&format!("regarding.{rest}")))
            }
            _ => at(field),
        },
        _ => at(field),
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut escaped = false;
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
            continue;
        }
        out.push(c);
        escaped = false;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use serde_json::json;
    use std::sync::Arc;

    fn selects(selector: &str, labels: &Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches(labels)
    }

    #[test]
    fn every_form_of_a_requirement_is_read() {
        let labels = json!({"app": "web", "example.com/tier": "front", "n": "5"});
        for selector in [
            "",
            "app",
            "app=web",
            "app==web",
            "app = web",
            "app in (db, web)",
            "app notin (db),n",
            "!canary",
            "! canary",
            "example.com/tier=front",
            "n>4,n<6",
        ] {
            assert!(selects(selector, &labels), "{selector}");
        }
        for selector in ["app!=web", "app notin (web)", "!app", "app=", "n>5", "canary"] {
            assert!(!selects(selector, &labels), "{selector}");
        }
    }

    #[test]
    fn unequal_selects_objects_without_the_label() {
        assert!(selects("app!=web", &json!({})));
        assert!(selects("app notin (web)", &Value::Null));
        assert!(!selects("app in (web)", &Value::Null));
    }

    #[test]
    fn bad_selectors_are_refused_with_a_sentence() {
        for selector in [
            "=a", "a b", "a in b", "a in (b", "a==b=c", ",", "a,", "-a", "a=b/c", "!", "a in ()x", "(", "a>x",
        ] {
            let error = LabelSelector::parse(selector).unwrap_err();
            assert!(error.starts_with("unable to parse requirement: "), "{selector}: {error}");
        }
    }

    #[test]
    fn a_selector_object_selects_like_its_text() {
        let selector = LabelSelector::from_value(&json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}],
        }))
        .unwrap();
        assert!(selector.matches(&json!({"app": "web"})));
        assert!(!selector.matches(&json!({"app": "web", "tier": "back"})));
    }

    fn resource(plural: &str) -> Arc<Resource> {
        Arc::clone(Registry::default().find("", "v1", plural).unwrap())
    }

    #[test]
    fn pods_are_selected_by_node_and_phase() {
        let selector =
            FieldSelector::parse("spec.nodeName=n1,status.phase!=Failed,status.phase!=Succeeded").unwrap();
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node}, "status": {"phase": phase}});
        let pods = resource("pods");
        assert_eq!(selector.unsupported(&pods), None);
        assert!(selector.matches(&pods, &pod("n1", "Running")));
        assert!(!selector.matches(&pods, &pod("n1", "Failed")));
        assert!(!selector.matches(&pods, &pod("n2", "Running")));
    }

    #[test]
    fn an_empty_value_matches_what_is_not_there() {
        let selector = FieldSelector::parse("involvedObject.namespace=,involvedObject.name=n1").unwrap();
        let events = resource("events");
        assert!(selector.matches(&events, &json!({"involvedObject": {"name": "n1"}})));
        assert!(!selector.matches(&events, &json!({"involvedObject": {"name": "n1", "namespace": "a"}})));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let selector = FieldSelector::parse("metadata.name=a,x=y").unwrap();
        assert_eq!(selector.unsupported(&resource("pods")), Some("x"));
        assert!(FieldSelector::parse("metadata.name").is_err());
        assert!(FieldSelector::parse("a!b").is_err());
    }

    #[test]
    fn the_selected_name_is_known_without_looking_at_objects() {
        assert_eq!(FieldSelector::parse("metadata.name=p1").unwrap().name(), Some("p1"));
        assert_eq!(FieldSelector::parse("metadata.name!=p1").unwrap().name(), None);
    }

    #[test]
    fn escaped_commas_stay_in_the_value() {
        let selector = FieldSelector::parse(r"reason=a\,b,type=Normal").unwrap();
        assert!(selector.matches(&resource("events"), &json!({"reason": "a,b", "type": "Normal"})));
    }
}
