//! Reading a schema, and refusing one that is not structural.

use super::rules::Rule;
use super::{
    Additional, Bound, Junctors, Kind, Limits, ListType, MAX_DEPTH, Node, Schema, below, prune, validate,
};
use crate::cel::{ParseError, Patterns, Program};
use crate::error::{FieldError, FieldFault};
use serde_json::{Map, Value};

pub(super) fn compile(schema: &Value, patterns: &mut Patterns) -> Result<Schema, Vec<FieldError>> {
    let mut compiler = Compiler { patterns, errors: Vec::new(), unjudged: Vec::new(), has_rules: false };
    match schema["type"].as_str() {
        None | Some("") => {
            compiler.errors.push(FieldError::required("type", "must not be empty at the root"));
        }
        Some("object") => {}
        Some(_) => {
            compiler.errors.push(FieldError::invalid("type", &schema["type"], "must be object at the root"));
        }
    }
    let root =
        if compiler.errors.is_empty() { compiler.node(schema, "", Place::Root, 0) } else { Node::default() };
    match compiler.errors.is_empty() {
        true => Ok(Schema { root, unjudged: compiler.unjudged, has_rules: compiler.has_rules }),
        false => Err(compiler.errors),
    }
}

struct Compiler<'p> {
    patterns: &'p mut Patterns,
    errors: Vec<FieldError>,
    /// Rules that need more of the language than there is.
    unjudged: Vec<String>,
    has_rules: bool,
}

/// Where a schema stands, which decides what it must say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Property,
    Items,
    Additional,
    /// Inside `allOf` and the like: no types needed.
    Junctor,
}

impl Compiler<'_> {
    fn node(&mut self, schema: &Value, path: &str, place: Place, depth: usize) -> Node {
        let at = |field: &str| below(path, field);
        let Some(map) = schema.as_object() else {
            self.errors.push(FieldError::invalid(path, schema, "must be an object"));
            return Node::default();
        };
        if depth > MAX_DEPTH {
            self.errors.push(FieldError::forbidden(path, &format!("more than {MAX_DEPTH} levels")));
            return Node::default();
        }
        let flag = |field: &str| map.get(field).and_then(Value::as_bool).unwrap_or(false);
        let mut node = Node {
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            atomic_map: map.get("x-kubernetes-map-type").is_some_and(|kind| kind == "atomic"),
            ..Node::default()
        };
        match map.get("type").and_then(Value::as_str).unwrap_or_default() {
            "" if place == Place::Junctor || node.int_or_string || node.preserve_unknown => {}
            "" => {
                let detail = match place {
                    Place::Items => "must not be empty for specified array items",
                    Place::Additional => "must not be empty for specified map values",
                    _ => "must not be empty for specified object fields",
                };
                self.errors.push(FieldError::required(at("type"), detail));
            }
            name => match Kind::parse(name) {
                Some(kind) => node.kind = Some(kind),
                None => {
                    self.errors.push(FieldError::not_supported(at("type"), &map["type"], &Kind::NAMES));
                }
            },
        }
        for (field, detail) in [
            ("$ref", "$ref is not supported"),
            ("definitions", "definitions is not supported"),
            ("patternProperties", "patternProperties is not supported"),
        ] {
            if map.contains_key(field) {
                self.errors.push(FieldError::forbidden(at(field), detail));
            }
        }
        if flag("uniqueItems") {
            let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.errors.push(FieldError::forbidden(at("uniqueItems"), detail));
        }
        if let Some(properties) = map.get("properties").and_then(Value::as_object) {
            let below = if place == Place::Junctor { Place::Junctor } else { Place::Property };
            for (name, property) in properties {
                // The metadata of every object has its own fixed shape.
                let is_fixed =
                    place == Place::Root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
                let below = if is_fixed { Place::Junctor } else { below };
                let property = self.node(property, &at(&format!("properties[{name}]")), below, depth + 1);
                node.properties.insert(name.clone(), property);
            }
        }
        match map.get("additionalProperties") {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(_)
                if map.get("properties").and_then(Value::as_object).is_some_and(|map| !map.is_empty()) =>
            {
                let detail = "additionalProperties and properties are mutual exclusive";
                self.errors.push(FieldError::forbidden(at("additionalProperties"), detail));
            }
            Some(Value::Bool(true)) => node.additional = Additional::Any,
            Some(values) => {
                let values = self.node(values, &at("additionalProperties"), Place::Additional, depth + 1);
                node.additional = Additional::Of(Box::new(values));
            }
        }
        match map.get("items") {
            Some(items) => {
                node.items = Some(Box::new(self.node(items, &at("items"), Place::Items, depth + 1)))
            }
            None if node.kind == Some(Kind::Array) && place != Place::Junctor => {
                self.errors.push(FieldError::required(at("items"), "must be specified"));
            }
            None => {}
        }
        node.list_type = self.list_type(map, &node, path);
        node.limits = self.limits(map, path);
        node.junctors = self.junctors(map, path, depth);
        if let Some(rules) = map.get("x-kubernetes-validations").and_then(Value::as_array) {
            node.rules = self.rules(rules, &at("x-kubernetes-validations"));
        }
        if let Some(default) = map.get("default").filter(|default| !default.is_null() || node.nullable) {
            self.check_default(&node, default, &at("default"));
            node.default = Some(default.clone());
        }
        node
    }

    fn check_default(&mut self, node: &Node, default: &Value, path: &str) {
        let mut filled = default.clone();
        for unknown in prune::prune_below(node, &mut filled) {
            self.errors.push(FieldError::invalid(
                path,
                default,
                &format!("must not have unknown fields: {unknown}"),
            ));
        }
        prune::default(node, &mut filled);
        for fault in validate::validate_at(node, &filled, path) {
            self.errors.push(fault);
        }
    }

    fn rules(&mut self, rules: &[Value], path: &str) -> Vec<Rule> {
        let mut read = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let text = |field: &str| rule[field].as_str().filter(|text| !text.is_empty());
            let source = text("rule").unwrap_or_default();
            let mut programs = [Some(source), text("messageExpression")]
                .into_iter()
                .flatten()
                .map(|text| Program::parse_with(text, self.patterns));
            match (programs.next(), programs.next()) {
                (Some(Ok(program)), message) => {
                    self.has_rules = true;
                    read.push(Rule {
                        message: text("message")
                            .map_or_else(|| format!("failed rule: {source}"), str::to_owned),
                        // One that is not understood gives way to the message.
                        message_program: message.and_then(Result::ok),
                        fault: match text("reason") {
                            Some("FieldValueForbidden") => FieldFault::Forbidden,
                            Some("FieldValueRequired") => FieldFault::Required,
                            Some("FieldValueDuplicate") => FieldFault::Duplicate,
                            _ => FieldFault::Invalid,
                        },
                        field: text("fieldPath").unwrap_or_default().to_owned(),
                        source: source.to_owned(),
                        program,
                    });
                }
                (Some(Err(ParseError::Unknown(_))), _) => self.unjudged.push(source.to_owned()),
                (Some(Err(error)), _) => {
                    let detail = format!("compilation failed: {error}");
                    self.errors.push(FieldError::invalid(
                        format!("{path}[{index}].rule"),
                        &source.into(),
                        &detail,
                    ));
                }
                (None, _) => {}
            }
        }
        read
    }

    fn list_type(&mut self, map: &Map<String, Value>, node: &Node, path: &str) -> ListType {
        let at = |field: &str| below(path, field);
        let keys: Vec<String> = map
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|key| key.as_str().map(str::to_owned))
            .collect();
        match map.get("x-kubernetes-list-type").and_then(Value::as_str) {
            None | Some("atomic") => ListType::Atomic,
            Some("set") => ListType::Set,
            Some("map") if keys.is_empty() => {
                let detail = "must not be empty if x-kubernetes-list-type is map";
                self.errors.push(FieldError::required(at("x-kubernetes-list-map-keys"), detail));
                ListType::Atomic
            }
            Some("map") => {
                for key in &keys {
                    let known = node.items.as_ref().is_some_and(|items| items.properties.contains_key(key));
                    if !known {
                        let detail = "entries must all be names of item properties";
                        let keys = &map["x-kubernetes-list-map-keys"];
                        self.errors.push(FieldError::invalid(at("x-kubernetes-list-map-keys"), keys, detail));
                    }
                }
                ListType::Map(keys)
            }
            Some(_) => {
                let (value, field) = (&map["x-kubernetes-list-type"], at("x-kubernetes-list-type"));
                self.errors.push(FieldError::not_supported(field, value, &["atomic", "set", "map"]));
                ListType::Atomic
            }
        }
    }

    fn limits(&mut self, map: &Map<String, Value>, path: &str) -> Option<Box<Limits>> {
        let size =
            |field: &str| map.get(field).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        let bound = |field: &str, exclusive: &str| {
            let at = map.get(field).and_then(Value::as_f64)?;
            Some(Bound { at, exclusive: map.get(exclusive).is_some_and(|flag| flag == true) })
        };
        let list = |field: &str| map.get(field).and_then(Value::as_array);
        let mut limits = Limits {
            required: list("required")
                .into_iter()
                .flatten()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect(),
            allowed: list("enum").cloned().unwrap_or_default(),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: map.get("multipleOf").and_then(Value::as_f64).filter(|step| *step > 0.0),
            min_length: size("minLength"),
            max_length: size("maxLength"),
            min_items: size("minItems"),
            max_items: size("maxItems"),
            min_properties: size("minProperties"),
            max_properties: size("maxProperties"),
            pattern: None,
            format: map.get("format").and_then(Value::as_str).map(str::to_owned),
        };
        if let Some(pattern) = map.get("pattern").and_then(Value::as_str) {
            match self.patterns.compile(pattern) {
                Ok(pattern) => limits.pattern = Some(pattern),
                Err(error) => {
                    let detail = error.to_string();
                    self.errors.push(FieldError::invalid(below(path, "pattern"), &map["pattern"], &detail));
                }
            }
        }
        let any =
            ["required", "enum", "minimum", "maximum", "multipleOf", "minLength", "maxLength", "minItems"]
                .iter()
                .chain(&["maxItems", "minProperties", "maxProperties", "pattern", "format"])
                .any(|field| map.contains_key(*field));
        any.then(|| Box::new(limits))
    }

    fn junctors(&mut self, map: &Map<String, Value>, path: &str, depth: usize) -> Option<Box<Junctors>> {
        // In an int-or-string the alternatives only repeat what the extension says.
        if map.get("x-kubernetes-int-or-string").is_some_and(|flag| flag == true) {
            return None;
        }
        let mut list = |field: &str| -> Vec<Node> {
            let schemas = map.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let path = below(path, field);
            schemas
                .iter()
                .enumerate()
                .map(|(at, schema)| self.node(schema, &format!("{path}[{at}]"), Place::Junctor, depth + 1))
                .collect()
        };
        let (all_of, any_of, one_of) = (list("allOf"), list("anyOf"), list("oneOf"));
        let not =
            map.get("not").map(|schema| self.node(schema, &below(path, "not"), Place::Junctor, depth + 1));
        let any = !all_of.is_empty() || !any_of.is_empty() || !one_of.is_empty() || not.is_some();
        any.then(|| Box::new(Junctors { all_of, any_of, one_of, not }))
    }
}
