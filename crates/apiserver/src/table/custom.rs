//! Columns that a custom resource definition asks for.

use crate::age;
use crate::jsonpath::{JsonPath, plain};
use jiff::Timestamp;
use serde_json::Value;

/// One printer column.
#[derive(Clone, Debug)]
pub(super) struct CustomColumn {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) format: String,
    pub(super) description: String,
    pub(super) priority: i64,
    path: Option<JsonPath>,
}

impl CustomColumn {
    pub(super) fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let Some(path) = &self.path else { return Value::Null };
        let found = path.find(object);
        let Some(first) = found.first().filter(|value| !value.is_null()) else { return Value::Null };
        match self.kind.as_str() {
            "integer" if first.is_i64() || first.is_u64() => (*first).clone(),
            "number" if first.is_number() => (*first).clone(),
            "boolean" if first.is_boolean() => (*first).clone(),
            "integer" | "number" | "boolean" => Value::Null,
            "date" => {
                let since = first.as_str().and_then(|text| age::since(text, now));
                since.unwrap_or_else(|| "<invalid>".to_owned()).into()
            }
            _ if found.len() == 1 => plain(first).into(),
            _ => found.iter().map(|value| plain(value)).collect::<Vec<_>>().join(",").into(),
        }
    }
}

/// Reads the printer columns of one version of a definition; the age where there are none.
pub(super) fn columns(version: &Value) -> Vec<CustomColumn> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match version["additionalPrinterColumns"].as_array() {
        Some(columns) if !columns.is_empty() => columns
            .iter()
            .map(|column| CustomColumn {
                name: text(&column["name"]),
                kind: text(&column["type"]),
                format: text(&column["format"]),
                description: text(&column["description"]),
                priority: column["priority"].as_i64().unwrap_or(0),
                path: column["jsonPath"].as_str().and_then(|path| JsonPath::parse(path).ok()),
            })
            .collect(),
        _ => vec![CustomColumn {
            name: "Age".to_owned(),
            kind: "date".to_owned(),
            format: String::new(),
            description: String::new(),
            priority: 0,
            path: JsonPath::parse(".metadata.creationTimestamp").ok(),
        }],
    }
}

#[cfg(test)]
mod tests {
    use crate::table::Columns;
    use crate::table::format::testing::NOW;
    use serde_json::{Value, json};

    fn cells(version: &Value, object: &Value) -> Value {
        Columns::from_crd(version).cells(object, NOW()).into()
    }

    #[test]
    fn a_kind_without_printer_columns_shows_its_age() {
        let object = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:59:00Z"}});
        assert_eq!(cells(&json!({}), &object), json!(["a", "60s"]));
        let definitions = Columns::from_crd(&json!({})).definitions();
        assert_eq!(definitions[1]["name"], "Age");
    }

    #[test]
    fn conditions_become_columns() {
        let version = json!({"additionalPrinterColumns": [
            {"name": "Available", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Available')].status"},
            {"name": "Since", "type": "date", "jsonPath": ".status.conditions[?(@.type=='Available')].lastTransitionTime"},
            {"name": "Count", "type": "integer", "jsonPath": ".spec.count"},
            {"name": "Missing", "type": "string", "jsonPath": ".spec.missing"},
        ]});
        let object = json!({"metadata": {"name": "calico"}, "spec": {"count": "three"}, "status": {"conditions": [
            {"type": "Available", "status": "True", "lastTransitionTime": "2026-01-01T00:58:25Z"}]}});
        assert_eq!(cells(&version, &object), json!(["calico", "True", "95s", null, null]));
    }
}
