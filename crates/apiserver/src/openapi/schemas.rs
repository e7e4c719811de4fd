//! The schemas of a document: of built-in kinds from the table of fields, of custom kinds from their definitions.

use super::COMPONENTS;
use crate::fields::{self, Field, Message, Shape, Type};
use crate::resource::Resource;
use serde_json::{Map, Value, json};

/// The schemas of one document, each once.
#[derive(Debug, Default)]
pub(super) struct Schemas {
    schemas: Map<String, Value>,
}

impl Schemas {
    /// Adds a kind and all that it refers to, and returns the name of its schema.
    pub(super) fn add(&mut self, resource: &Resource) -> String {
        let mut group: Vec<&str> = resource.group.split('.').filter(|part| !part.is_empty()).collect();
        group.reverse();
        let group = if group.is_empty() { "core".to_owned() } else { group.join(".") };
        let name = format!("{group}.{}.{}", resource.version, resource.kind);
        let mut schema = match (&resource.custom, fields::kind(&resource.api_version(), &resource.kind)) {
            (Some(custom), _) => custom.open_api.clone(),
            (None, Some(message)) => self.object(message),
            (None, None) => json!({"type": "object", "properties": {
                "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            }}),
        };
        self.refer(fields::object_meta());
        if let Some(map) = schema.as_object_mut() {
            let properties = map.entry("properties").or_insert_with(|| json!({}));
            for (field, schema) in [
                (
                    "apiVersion",
                    json!({"type": "string", "description": "Group and version of the object's form."}),
                ),
                ("kind", json!({"type": "string", "description": "What the object is."})),
                ("metadata", json!({"$ref": reference(fields::object_meta())})),
            ] {
                if let Some(properties) = properties.as_object_mut() {
                    properties.insert(field.to_owned(), schema);
                }
            }
            map.insert(
                "x-kubernetes-group-version-kind".to_owned(),
                json!([{"group": resource.group, "version": resource.version, "kind": resource.kind}]),
            );
        }
        self.schemas.insert(name.clone(), schema);
        name
    }

    pub(super) fn finish(self) -> Value {
        self.schemas.into()
    }

    fn refer(&mut self, message: &'static Message) -> Value {
        if !self.schemas.contains_key(message.name) {
            // Its place is taken first, so that a message that contains itself ends here.
            self.schemas.insert(message.name.to_owned(), Value::Null);
            let schema = match message.list_of {
                Some(of) => json!({"type": "array", "items": self.value(of)}),
                None => self.object(message),
            };
            self.schemas.insert(message.name.to_owned(), schema);
        }
        json!({"$ref": reference(message)})
    }

    fn object(&mut self, message: &'static Message) -> Value {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        self.properties(message, &mut properties, &mut required);
        let mut schema = json!({"type": "object", "properties": properties});
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        schema
    }

    fn properties(
        &mut self,
        message: &'static Message,
        properties: &mut Map<String, Value>,
        required: &mut Vec<&'static str>,
    ) {
        for field in &message.fields {
            if field.is_inline() {
                if let Some(inner) = field.message() {
                    self.properties(inner, properties, required);
                }
                continue;
            }
            if field.required {
                required.push(field.name);
            }
            let mut schema = self.field(field);
            let strategy = match (field.merge_key, field.retain_keys) {
                (Some(_), true) => "merge,retainKeys",
                (Some(_), false) => "merge",
                (None, true) => "retainKeys",
                (None, false) => "",
            };
            if !strategy.is_empty() {
                schema["x-kubernetes-patch-strategy"] = strategy.into();
            }
            if let Some(key) = field.merge_key.filter(|key| !key.is_empty()) {
                schema["x-kubernetes-patch-merge-key"] = key.into();
            }
            properties.insert(field.name.to_owned(), schema);
        }
    }

    fn field(&mut self, field: &'static Field) -> Value {
        let value = self.value(field.of);
        match field.shape {
            Shape::One => value,
            Shape::List => json!({"type": "array", "items": value}),
            Shape::Map => json!({"type": "object", "additionalProperties": value}),
        }
    }

    fn value(&mut self, of: Type) -> Value {
        match of {
            Type::String | Type::Duration | Type::Quantity => json!({"type": "string"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Int => json!({"type": "integer"}),
            Type::Double => json!({"type": "number"}),
            Type::Time | Type::MicroTime => json!({"type": "string", "format": "date-time"}),
            Type::IntOrString => {
                json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
            }
            Type::Any | Type::Fields => json!({"type": "object"}),
            Type::Message(_) => match fields::message(of) {
                Some(message) => self.refer(message),
                None => json!({"type": "object"}),
            },
        }
    }
}

fn reference(message: &Message) -> String {
    format!("{COMPONENTS}{}", message.name)
}
