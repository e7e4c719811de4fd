//! Reading fields of foreign JSON: absent and null are one, and every refusal names the object and the field.

use super::{Resource, WireError};
use crate::Cidr;
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A JSON object being read, with the names that an error needs.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    kind: &'static str,
    name: &'a str,
    path: &'static str,
    map: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    /// The object itself.
    pub(super) fn of(kind: &'static str, object: &'a Value) -> Self {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("(unnamed)");
        Self { kind, name, path: "", map: object.as_object() }
    }

    /// A value that is not told its name by itself: the key that it stands under has it.
    pub(super) fn value(kind: &'static str, name: &'a str, value: &'a Value) -> Self {
        Self { kind, name, path: "", map: value.as_object() }
    }

    /// The object's `spec`; an absent one has no fields.
    pub(super) fn spec(resource: Resource, object: &'a Value) -> Self {
        let outer = Self::of(resource.kind, object);
        Self { path: "spec.", map: object.get("spec").and_then(Value::as_object), ..outer }
    }

    /// `metadata.name`.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn object_name(&self, object: &Value) -> Result<String, WireError> {
        match object.pointer("/metadata/name").and_then(Value::as_str) {
            Some(name) if !name.is_empty() => Ok(name.to_owned()),
            _ => Err(WireError::Missing { object: self.object(), field: "metadata.name".to_owned() }),
        }
    }

    fn object(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }

    /// A field; null counts as absent.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map?.get(field).filter(|value| !value.is_null())
    }

    /// The error for a field that is needed and not there.
    pub(super) fn missing(&self, field: &str) -> WireError {
        WireError::Missing { object: self.object(), field: format!("{}{field}", self.path) }
    }

    /// The error for a field whose value is of no use.
    pub(super) fn invalid(&self, field: &str, value: &Value, expected: &'static str) -> WireError {
        let mut value = value.to_string();
        if let Some((cut, _)) = value.char_indices().nth(60) {
            value.truncate(cut);
            value.push('…');
        }
        WireError::Invalid { object: self.object(), field: format!("{}{field}", self.path), value, expected }
    }

    /// A text; absent is empty.
    pub(super) fn text(&self, field: &str) -> Result<&'a str, WireError> {
        match self.get(field) {
            None => Ok(""),
            Some(value) => value.as_str().ok_or_else(|| self.invalid(field, value, "a text")),
        }
    }

    /// A text that is read by `parse`.
    pub(super) fn parsed<T>(
        &self,
        field: &str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, WireError> {
        let text = self.text(field)?;
        parse(text).ok_or_else(|| self.invalid(field, &Value::from(text), expected))
    }

    /// A CIDR that must be there.
    pub(super) fn cidr(&self, field: &str) -> Result<Cidr, WireError> {
        if self.get(field).is_none() {
            return Err(self.missing(field));
        }
        self.parsed(field, "a CIDR", |text| text.parse().ok())
    }

    /// A truth value, also as the text that Calico's v1 affinities hold; absent is `default`.
    pub(super) fn flag(&self, field: &str, default: bool) -> Result<bool, WireError> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => match value.as_str() {
                Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
                Some("0" | "f" | "F" | "false" | "FALSE" | "False" | "") => Ok(false),
                _ => Err(self.invalid(field, value, "true or false")),
            },
        }
    }

    /// A whole number that is not negative, exact to 64 bits; absent is `default`.
    pub(super) fn number(&self, field: &str, default: u64) -> Result<u64, WireError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => {
                value.as_u64().ok_or_else(|| self.invalid(field, value, "a whole number, not negative"))
            }
        }
    }

    /// As [`Fields::number`], for the smaller numbers.
    pub(super) fn small(&self, field: &str, default: u32) -> Result<u32, WireError> {
        let number = self.number(field, u64::from(default))?;
        u32::try_from(number).map_err(|_| self.invalid(field, &Value::from(number), "a number below 2^32"))
    }

    /// An array; absent is empty.
    pub(super) fn array(&self, field: &str) -> Result<&'a [Value], WireError> {
        match self.get(field) {
            None => Ok(&[]),
            Some(value) => {
                value.as_array().map(Vec::as_slice).ok_or_else(|| self.invalid(field, value, "an array"))
            }
        }
    }

    /// The entries of an object; absent is empty.
    pub(super) fn entries(&self, field: &str) -> Result<Option<&'a Map<String, Value>>, WireError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => value.as_object().map(Some).ok_or_else(|| self.invalid(field, value, "an object")),
        }
    }

    /// A point in time, fractions of a second accepted.
    pub(super) fn time(&self, field: &str) -> Result<Option<Timestamp>, WireError> {
        match self.get(field) {
            None => Ok(None),
            Some(_) => self.parsed(field, "an RFC 3339 time", |text| text.parse().ok()).map(Some),
        }
    }
}

/// The texts of a JSON object; entries of another type are left out.
pub(super) fn texts(value: Option<&Value>) -> BTreeMap<String, String> {
    let Some(map) = value.and_then(Value::as_object) else { return BTreeMap::new() };
    map.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// A point in time as Kubernetes writes it: RFC 3339, UTC, whole seconds (data model §2.4).
pub(super) fn whole_seconds(time: Timestamp) -> String {
    // Not by a pattern: years before 0 have a sign and six digits, or nobody can read them again.
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}
