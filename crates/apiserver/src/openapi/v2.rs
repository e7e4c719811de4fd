//! The second version of the document in protobuf, for kubectl before 1.29: it explains kinds from it, looks there
//! whether a kind can be tried without storing it, and takes the keys of merged lists from it.
//!
//! Field numbers are those of the published OpenAPI v2 message definitions. Extensions hold YAML, of which JSON is a
//! part.

use super::schemas::Schemas;
use super::{COMPONENTS, path_of, write_parameters};
use crate::fields;
use crate::registry::Registry;
use crate::resource::Style;
use serde_json::{Map, Value, json};

/// The numbers of the fields that are written, by message.
mod number {
    pub(super) mod document {
        pub(crate) const SWAGGER: u32 = 1;
        pub(crate) const INFO: u32 = 2;
        pub(crate) const PATHS: u32 = 8;
        pub(crate) const DEFINITIONS: u32 = 9;
    }
    pub(super) mod path_item {
        pub(crate) const GET: u32 = 2;
        pub(crate) const POST: u32 = 4;
        pub(crate) const PATCH: u32 = 8;
    }
    pub(super) mod operation {
        pub(crate) const PARAMETERS: u32 = 8;
        pub(crate) const EXTENSION: u32 = 13;
    }
    pub(super) mod query {
        pub(crate) const IN: u32 = 2;
        pub(crate) const DESCRIPTION: u32 = 3;
        pub(crate) const NAME: u32 = 4;
    }
    pub(super) mod schema {
        pub(crate) const REFERENCE: u32 = 1;
        pub(crate) const FORMAT: u32 = 2;
        pub(crate) const DESCRIPTION: u32 = 4;
        pub(crate) const REQUIRED: u32 = 19;
        pub(crate) const ADDITIONAL_PROPERTIES: u32 = 21;
        pub(crate) const TYPE: u32 = 22;
        pub(crate) const ITEMS: u32 = 23;
        pub(crate) const PROPERTIES: u32 = 25;
        pub(crate) const EXTENSION: u32 = 31;
    }
}

/// A message that is being written.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn varint(&mut self, mut value: usize) {
        while value > 0x7f {
            self.0.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap_or_default());
    }

    /// A field that holds bytes: a text or another message.
    fn put(mut self, number: u32, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        self.varint(usize::try_from(number << 3 | 2).unwrap_or_default());
        self.varint(content.len());
        self.0.extend_from_slice(content);
        self
    }

    fn put_text(self, number: u32, text: &Value) -> Self {
        match text.as_str() {
            Some(text) => self.put(number, text),
            None => self,
        }
    }

    /// A name with its value, as maps are written.
    fn named(name: &str, value: Self) -> Self {
        Self::default().put(1, name).put(2, value.0)
    }

    fn extension(self, number: u32, name: &str, value: &Value) -> Self {
        let any = Self::default().put(2, value.to_string());
        self.put(number, Self::named(name, any).0)
    }
}

/// The document of all kinds.
pub(super) fn document(registry: &Registry) -> Vec<u8> {
    let mut schemas = Schemas::default();
    let mut paths = Out::default();
    for resource in registry.resources() {
        // Without a definition kubectl asks no questions; a vague one would make it refuse nulls.
        if resource.custom.is_some() || fields::kind(&resource.api_version(), &resource.kind).is_some() {
            schemas.add(resource);
        }
        let gvk = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
        let operation = |parameters: &[Value]| {
            let mut operation = Out::default();
            for one in parameters {
                let query = Out::default()
                    .put(number::query::IN, "query")
                    .put_text(number::query::DESCRIPTION, &one["description"])
                    .put_text(number::query::NAME, &one["name"]);
                // Each level says which of several kinds of parameter it is.
                let item = Out::default().put(3, query.0);
                let item = Out::default().put(2, item.0);
                let item = Out::default().put(1, item.0);
                operation = operation.put(number::operation::PARAMETERS, item.0);
            }
            operation.extension(number::operation::EXTENSION, "x-kubernetes-group-version-kind", &gvk)
        };
        let collection = path_of(resource);
        let create = operation(&write_parameters());
        let mut of_collection = Out::default();
        if resource.style == Style::Stored {
            let of_object = Out::default()
                .put(number::path_item::GET, operation(&[]).0)
                .put(number::path_item::PATCH, operation(&write_parameters()).0);
            paths = paths.put(2, Out::named(&format!("{collection}/{{name}}"), of_object).0);
            of_collection = of_collection.put(number::path_item::GET, operation(&[]).0);
        }
        let of_collection = of_collection.put(number::path_item::POST, create.0);
        paths = paths.put(2, Out::named(&collection, of_collection).0);
    }
    let mut definitions = Out::default();
    for (name, value) in schemas.finish().as_object().into_iter().flatten() {
        definitions = definitions.put(1, Out::named(name, schema(value)).0);
    }
    Out::default()
        .put(number::document::SWAGGER, "2.0")
        .put(number::document::INFO, Out::default().put(1, "Kubernetes").put(2, "v1.28.0").0)
        .put(number::document::PATHS, paths.0)
        .put(number::document::DEFINITIONS, definitions.0)
        .0
}

/// A schema of the third version in the form of the second, which knows neither nulls nor alternatives.
fn schema(value: &Value) -> Out {
    let mut out = Out::default();
    let flag = |name: &str| value[name] == true;
    if let Some(name) = value["$ref"].as_str().and_then(|reference| reference.strip_prefix(COMPONENTS)) {
        out = out.put(number::schema::REFERENCE, format!("#/definitions/{name}"));
    }
    out = out.put_text(number::schema::DESCRIPTION, &value["description"]);
    let is_int_or_string = value["format"] == "int-or-string";
    out = out.put_text(number::schema::FORMAT, &value["format"]);
    let is_open = flag("x-kubernetes-preserve-unknown-fields");
    let kind = if is_int_or_string { "string" } else { value["type"].as_str().unwrap_or_default() };
    let is_any = kind.is_empty() || flag("nullable") || flag("x-kubernetes-int-or-string");
    // What is open must have no properties here: old clients would refuse all others.
    let is_leaf = is_any || is_open;
    if !is_any {
        out = out.put(number::schema::TYPE, Out::default().put(1, kind).0);
    }
    if !is_leaf {
        for name in value["required"].as_array().into_iter().flatten() {
            out = out.put_text(number::schema::REQUIRED, name);
        }
        if let Some(values) = value.get("additionalProperties").filter(|values| values.is_object()) {
            let item = Out::default().put(1, schema(values).0);
            out = out.put(number::schema::ADDITIONAL_PROPERTIES, item.0);
        }
        if kind == "array" {
            out = out.put(number::schema::ITEMS, Out::default().put(1, schema(&value["items"]).0).0);
        }
        if let Some(properties) = value["properties"].as_object().filter(|map| !map.is_empty()) {
            out = out.put(number::schema::PROPERTIES, named(properties).0);
        }
    }
    for name in
        ["x-kubernetes-group-version-kind", "x-kubernetes-patch-strategy", "x-kubernetes-patch-merge-key"]
    {
        if !value[name].is_null() {
            out = out.extension(number::schema::EXTENSION, name, &value[name]);
        }
    }
    out
}

fn named(properties: &Map<String, Value>) -> Out {
    properties.iter().fold(Out::default(), |out, (name, value)| out.put(1, Out::named(name, schema(value)).0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf::{Parts, Wire};
    use std::collections::BTreeMap;

    /// The messages in a field of a message.
    fn all(message: &[u8], wanted: u32) -> Vec<&[u8]> {
        Parts(message)
            .map(Result::unwrap)
            .filter_map(|(number, wire)| match wire {
                Wire::Bytes(bytes) if number == wanted => Some(bytes),
                _ => None,
            })
            .collect()
    }

    fn text(message: &[u8], wanted: u32) -> String {
        String::from_utf8(all(message, wanted).concat()).unwrap()
    }

    /// Names and values of a map.
    fn map(message: &[u8], wanted: u32) -> BTreeMap<String, &[u8]> {
        all(message, wanted).into_iter().map(|entry| (text(entry, 1), all(entry, 2)[0])).collect()
    }

    fn extensions(message: &[u8], wanted: u32) -> BTreeMap<String, Value> {
        map(message, wanted)
            .into_iter()
            .map(|(name, any)| (name, serde_json::from_str(&text(any, 2)).unwrap()))
            .collect()
    }

    #[test]
    fn kinds_are_found_by_group_version_and_kind() {
        let document = document(&Registry::default());
        let definitions = map(all(&document, number::document::DEFINITIONS)[0], 1);
        assert_eq!(
            extensions(definitions["apps.v1.Deployment"], number::schema::EXTENSION),
            [(
                "x-kubernetes-group-version-kind".to_owned(),
                json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
            )]
            .into()
        );
    }

    #[test]
    fn merged_lists_say_how_they_are_merged() {
        let document = document(&Registry::default());
        let definitions = map(all(&document, number::document::DEFINITIONS)[0], 1);
        let properties = map(all(definitions["PodSpec"], number::schema::PROPERTIES)[0], 1);
        let volumes = extensions(properties["volumes"], number::schema::EXTENSION);
        assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
        assert_eq!(volumes["x-kubernetes-patch-merge-key"], "name");
        assert!(extensions(properties["tolerations"], number::schema::EXTENSION).is_empty());
    }

    #[test]
    fn stored_kinds_can_be_tried_without_storing() {
        let document = document(&Registry::default());
        let paths = map(all(&document, number::document::PATHS)[0], 2);
        let patch = all(paths["/api/v1/namespaces/{name}"], number::path_item::PATCH)[0];
        let names: Vec<String> = all(patch, number::operation::PARAMETERS)
            .into_iter()
            .map(|item| text(all(all(all(item, 1)[0], 2)[0], 3)[0], number::query::NAME))
            .collect();
        assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation"]);
    }

    #[test]
    fn open_objects_have_no_properties_that_would_exclude_others() {
        let open = schema(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"a": {"type": "string"}}, "required": ["a"]}));
        assert!(all(&open.0, number::schema::PROPERTIES).is_empty());
        assert_eq!(text(all(&open.0, number::schema::TYPE)[0], 1), "object");
        let any = schema(&json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}]}));
        assert!(all(&any.0, number::schema::TYPE).is_empty());
    }
}
