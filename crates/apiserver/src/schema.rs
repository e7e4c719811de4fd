//! Structural schemas of custom resources: compiled once, then used to prune, default and validate objects.

mod compile;
mod formats;
mod prune;
mod rules;
mod validate;

use crate::cel::Patterns;
use crate::error::FieldError;
use regex::Regex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Levels of a schema, at most.
const MAX_DEPTH: usize = 64;

/// The schema of one version of a custom kind.
#[derive(Clone, Debug)]
pub struct Schema {
    root: Node,
    unjudged: Vec<String>,
    has_rules: bool,
}

/// JSON types that a schema can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Kind {
    const NAMES: [&'static str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// What else may stand in an object besides its properties.
#[derive(Clone, Debug, Default)]
enum Additional {
    /// Nothing: it is pruned.
    #[default]
    None,
    /// Anything.
    Any,
    /// Values of this schema.
    Of(Box<Node>),
}

/// How the elements of a list are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// A bound on a number, and whether the bound itself is excluded.
#[derive(Clone, Copy, Debug)]
struct Bound {
    at: f64,
    exclusive: bool,
}

/// What each value must look like, level by level.
#[derive(Clone, Debug, Default)]
struct Node {
    kind: Option<Kind>,
    nullable: bool,
    int_or_string: bool,
    preserve_unknown: bool,
    embedded: bool,
    properties: BTreeMap<String, Node>,
    additional: Additional,
    items: Option<Box<Node>>,
    list_type: ListType,
    atomic_map: bool,
    default: Option<Value>,
    limits: Option<Box<Limits>>,
    rules: Vec<rules::Rule>,
    /// Value checks that do not shape the object: `allOf`, `anyOf`, `oneOf`, `not`.
    junctors: Option<Box<Junctors>>,
}

/// Value checks; most nodes have none.
#[derive(Clone, Debug, Default)]
struct Limits {
    required: Vec<String>,
    allowed: Vec<Value>,
    minimum: Option<Bound>,
    maximum: Option<Bound>,
    multiple_of: Option<f64>,
    min_length: Option<usize>,
    max_length: Option<usize>,
    min_items: Option<usize>,
    max_items: Option<usize>,
    min_properties: Option<usize>,
    max_properties: Option<usize>,
    pattern: Option<Arc<Regex>>,
    format: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct Junctors {
    all_of: Vec<Node>,
    any_of: Vec<Node>,
    one_of: Vec<Node>,
    not: Option<Node>,
}

impl Schema {
    /// Reads an `openAPIV3Schema`.
    ///
    /// # Errors
    /// What keeps it from being a structural schema. Paths are relative to the schema, as
    /// `properties[spec].properties[cidr].type`.
    pub fn compile(schema: &Value) -> Result<Self, Vec<FieldError>> {
        compile::compile(schema, &mut Patterns::default())
    }

    /// Reads one of the schemas of a definition, whose patterns have a bound together.
    pub(crate) fn compile_with(schema: &Value, patterns: &mut Patterns) -> Result<Self, Vec<FieldError>> {
        compile::compile(schema, patterns)
    }

    /// The validation rules that need more of the language than there is ([`crate::cel`]). They are not judged: whoever
    /// accepts the definition should say so.
    pub fn unjudged_rules(&self) -> &[String] {
        &self.unjudged
    }

    /// Removes what the schema does not know. Returns the paths removed, as `spec.foo` or `spec.list[0].foo`.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        prune::prune(&self.root, object)
    }

    /// Fills missing fields that have a default; null counts as missing where it is not allowed.
    pub fn default(&self, object: &mut Value) {
        prune::default(&self.root, object);
    }

    /// What is wrong with an object. With the stored object, values that did not change are not judged again, so
    /// that a schema made stricter does not freeze old objects.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = validate::validate(&self.root, object, old);
        if self.has_rules {
            rules::judge(&self.root, object, old, &mut faults);
        }
        faults
    }

    /// How server-side apply treats each field: begins at the object itself.
    pub fn walk(&self) -> Walk<'_> {
        Walk { node: Some(&self.root) }
    }
}

/// A place in a schema, for server-side apply.
#[derive(Clone, Copy, Debug)]
pub struct Walk<'a> {
    node: Option<&'a Node>,
}

impl<'a> Walk<'a> {
    /// The place of a field of the object here.
    pub fn field(self, name: &str) -> Walk<'a> {
        let node = self.node.and_then(|node| {
            node.properties.get(name).or(match &node.additional {
                Additional::Of(values) => Some(&**values),
                _ => None,
            })
        });
        Walk { node }
    }

    /// The place of the elements of the list here.
    pub fn items(self) -> Walk<'a> {
        Walk { node: self.node.and_then(|node| node.items.as_deref()) }
    }

    /// Whether the list here holds distinct values, told apart by themselves.
    pub fn is_set(self) -> bool {
        self.node.is_some_and(|node| node.list_type == ListType::Set)
    }

    /// The keys by which the elements of the list here are told apart.
    pub fn keys(self) -> Option<&'a [String]> {
        match self.node.map(|node| &node.list_type) {
            Some(ListType::Map(keys)) => Some(keys),
            _ => None,
        }
    }

    /// The default of the value here.
    pub fn default_value(self) -> Option<&'a Value> {
        self.node.and_then(|node| node.default.as_ref())
    }

    /// Whether the object here is replaced as a whole.
    pub fn is_atomic_map(self) -> bool {
        self.node.is_some_and(|node| node.atomic_map)
    }
}

/// A path of a field below another.
fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pool() -> Schema {
        Schema::compile(&json!({
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object",
                    "required": ["cidr"],
                    "properties": {
                        "cidr": {"type": "string", "maxLength": 10, "pattern": "^[0-9./]+$"},
                        "blockSize": {"type": "integer", "minimum": 20, "maximum": 32, "default": 26},
                        "mode": {"type": "string", "enum": ["Always", "Never"]},
                        "limit": {"x-kubernetes-int-or-string": true},
                        "note": {"type": "string", "nullable": true},
                        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                                 "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}}},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "uses": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                        "rules": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                            "items": {"type": "object", "required": ["name"],
                                "properties": {"name": {"type": "string"}, "weight": {"type": "integer", "default": 1}}}},
                    },
                },
            },
        }))
        .unwrap()
    }

    fn faults(spec: Value) -> Vec<String> {
        pool().validate(&json!({"spec": spec}), None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unknown_fields_are_pruned_and_named() {
        let mut object = json!({
            "apiVersion": "a/v1", "kind": "K", "metadata": {"name": "x", "nonsense": 1}, "status": {},
            "spec": {"cidr": "1", "foo": 1, "rules": [{"name": "a", "bar": 2}], "labels": {"any": "x"},
                "free": {"thing": {"deep": 1}, "known": {"a": "x", "b": 1}}},
        });
        let pruned = pool().prune(&mut object);
        assert_eq!(
            pruned,
            ["metadata.nonsense", "spec.foo", "spec.free.known.b", "spec.rules[0].bar", "status"]
        );
        assert_eq!(object["spec"]["free"], json!({"thing": {"deep": 1}, "known": {"a": "x"}}));
        assert_eq!(object["kind"], "K");
    }

    #[test]
    fn defaults_fill_what_is_missing_or_null() {
        let mut object =
            json!({"spec": {"blockSize": null, "rules": [{"name": "a"}, {"name": "b", "weight": 5}]}});
        pool().default(&mut object);
        assert_eq!(object["spec"]["blockSize"], 26);
        assert_eq!(object["spec"]["rules"], json!([{"name": "a", "weight": 1}, {"name": "b", "weight": 5}]));
    }

    #[test]
    fn faults_read_like_those_of_kubernetes() {
        assert_eq!(faults(json!({})), ["spec.cidr: Required value"]);
        assert_eq!(
            faults(json!({"cidr": 1})),
            [r#"spec.cidr: Invalid value: "integer": spec.cidr in body must be of type string: "integer""#]
        );
        assert_eq!(
            faults(json!({"cidr": "1", "mode": "Maybe"})),
            [r#"spec.mode: Unsupported value: "Maybe": supported values: "Always", "Never""#]
        );
        assert_eq!(
            faults(json!({"cidr": "1", "blockSize": 40})),
            ["spec.blockSize: Invalid value: 40: spec.blockSize in body should be less than or equal to 32"]
        );
        assert_eq!(
            faults(json!({"cidr": "a"})),
            [r#"spec.cidr: Invalid value: "a": spec.cidr in body should match '^[0-9./]+$'"#]
        );
        assert_eq!(
            faults(json!({"cidr": "1", "uses": ["a", "b", "a"]})),
            [r#"spec.uses[2]: Duplicate value: "a""#]
        );
        assert_eq!(
            faults(json!({"cidr": "1", "rules": [{"name": "a"}, {"name": "a"}]})),
            [r#"spec.rules[1]: Duplicate value: {"name":"a"}"#]
        );
        assert_eq!(
            faults(json!({"cidr": "1", "labels": {"a": 1}})),
            [
                r#"spec.labels.a: Invalid value: "integer": spec.labels.a in body must be of type string: "integer""#
            ]
        );
    }

    #[test]
    fn what_is_allowed_passes() {
        let fine =
            json!({"cidr": "10.0.0.0", "limit": "50%", "note": null, "free": {"x": [1]}, "blockSize": 26.0});
        assert!(faults(fine).is_empty());
        assert!(faults(json!({"cidr": "1", "limit": 5})).is_empty());
        assert_eq!(faults(json!({"cidr": "1", "limit": true})).len(), 1);
        assert_eq!(faults(json!({"cidr": null})).len(), 1);
    }

    #[test]
    fn values_that_did_not_change_are_not_judged_again() {
        let old = json!({"spec": {"cidr": "abc", "mode": "Always"}});
        let new = json!({"spec": {"cidr": "abc", "mode": "Never"}});
        assert!(pool().validate(&new, Some(&old)).is_empty());
        assert_eq!(pool().validate(&new, None).len(), 1);
    }

    #[test]
    fn schemas_that_are_not_structural_are_refused() {
        let refused = |schema: Value| -> Vec<String> {
            Schema::compile(&schema).unwrap_err().iter().map(ToString::to_string).collect()
        };
        assert_eq!(refused(json!({})), ["type: Required value: must not be empty at the root"]);
        assert_eq!(
            refused(json!({"type": "string"})),
            [r#"type: Invalid value: "string": must be object at the root"#]
        );
        assert_eq!(
            refused(json!({"type": "object", "properties": {"a": {}}})),
            ["properties[a].type: Required value: must not be empty for specified object fields"]
        );
        assert_eq!(
            refused(json!({"type": "object", "properties": {"a": {"type": "array"}}})),
            ["properties[a].items: Required value: must be specified"]
        );
        assert_eq!(
            refused(json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}})).len(),
            1
        );
        assert_eq!(
            refused(json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}))
                .len(),
            1
        );
        let mut deep = json!({"type": "object"});
        for _ in 0..100 {
            deep = json!({"type": "object", "properties": {"a": deep}});
        }
        assert!(!refused(deep).is_empty());
    }

    #[test]
    fn patterns_of_calico_are_understood() {
        for (pattern, fits, differs) in [
            ("^(?i)(Drop|Accept|Return)?$", "ACCEPT", "Refuse"),
            (r"^([0-9]+(\\.[0-9]+)?(ms|s|m|h))*$", "1m30s", "1 minute"),
            (r"^\s*\d+\s*$", " 5", "x"),
        ] {
            let schema =
                json!({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}});
            let schema = Schema::compile(&schema).unwrap();
            assert!(schema.validate(&json!({"a": fits}), None).is_empty(), "{pattern}");
            assert_eq!(schema.validate(&json!({"a": differs}), None).len(), 1, "{pattern}");
        }
    }

    #[test]
    fn alternatives_are_checked() {
        let schema = Schema::compile(&json!({"type": "object", "properties": {"a": {"type": "object",
            "properties": {"x": {"type": "string"}, "y": {"type": "string"}},
            "oneOf": [{"required": ["x"]}, {"required": ["y"]}]}}}))
        .unwrap();
        let faults = |a: Value| schema.validate(&json!({"a": a}), None).len();
        assert_eq!(faults(json!({"x": "1"})), 0);
        assert_eq!(faults(json!({"x": "1", "y": "1"})), 1);
        assert_eq!(faults(json!({})), 1);
    }
}
