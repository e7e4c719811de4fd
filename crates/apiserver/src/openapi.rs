//! OpenAPI documents: what kubectl reads before it creates and applies, and what `kubectl explain` shows.
//!
//! Both versions have every kind with the paths and schemas that kubectl looks for. In the third, strategic merge is
//! deliberately not listed among the patches: kubectl then uses the merge keys that it was built with.

mod schemas;
mod v2;

use crate::registry::Registry;
use crate::resource::{Resource, Style};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Begins references to schemas.
const COMPONENTS: &str = "#/components/schemas/";

/// The second version in protobuf, which kubectl before 1.29 reads before each create and apply.
pub fn v2_protobuf(registry: &Registry) -> Bytes {
    registry.openapi.get_or_init(|| v2::document(registry).into()).clone()
}

/// The second version in JSON: no paths.
pub fn v2_json() -> Value {
    json!({"swagger": "2.0", "info": info(), "paths": {}, "definitions": {}})
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.28.0"})
}

/// `api/v1` or `apis/<group>/<version>`.
fn root(resource: &Resource) -> String {
    match resource.group.as_str() {
        "" => format!("api/{}", resource.version),
        group => format!("apis/{group}/{}", resource.version),
    }
}

/// Path of the kind's collection, with a place for the namespace.
fn path_of(resource: &Resource) -> String {
    let namespace = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    format!("/{}{namespace}/{}", root(resource), resource.plural)
}

/// Where the documents are; the hash in each address changes with the document.
pub fn v3_index(registry: &Registry) -> Value {
    let mut hashers: BTreeMap<String, DefaultHasher> = BTreeMap::new();
    for resource in registry.resources() {
        let hasher = hashers.entry(root(resource)).or_default();
        (env!("CARGO_PKG_VERSION"), &resource.kind, &resource.plural).hash(hasher);
        if let Some(custom) = &resource.custom {
            custom.open_api.to_string().hash(hasher);
        }
    }
    let paths: Map<String, Value> = hashers
        .into_iter()
        .map(|(root, hasher)| {
            let url = format!("/openapi/v3/{root}?hash={:016X}", hasher.finish());
            (root, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The document of `api/v1` or `apis/<group>/<version>`; `None` if nothing is served there.
pub fn v3_document(registry: &Registry, path: &str) -> Option<Value> {
    let mut paths = Map::new();
    let mut schemas = schemas::Schemas::default();
    for resource in registry.resources().iter().filter(|resource| root(resource) == path) {
        let name = schemas.add(resource);
        add_paths(resource, &name, &mut paths);
    }
    (!paths.is_empty()).then(|| {
        json!({
            "openapi": "3.0.0",
            "info": info(),
            "paths": paths,
            "components": {"schemas": schemas.finish()},
        })
    })
}

fn parameter(name: &str, place: &str, description: &str) -> Value {
    json!({
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": {"type": "string", "uniqueItems": true},
    })
}

/// Parameters of everything that writes. kubectl leaves the check of fields to servers that list `fieldValidation`.
fn write_parameters() -> Vec<Value> {
    vec![
        parameter("dryRun", "query", "All: nothing is stored."),
        parameter("fieldManager", "query", "Who writes."),
        parameter("fieldValidation", "query", "What happens to unknown fields: Ignore, Warn or Strict."),
    ]
}

fn add_paths(resource: &Resource, schema: &str, paths: &mut Map<String, Value>) {
    let gvk = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let content = json!({"application/json": {"schema": {"$ref": format!("{COMPONENTS}{schema}")}}});
    let operation = |action: &str, parameters: Vec<Value>, body: Option<Value>| {
        let mut operation = json!({
            "responses": {"200": {"description": "OK", "content": content}},
            "parameters": parameters,
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        });
        if let Some(body) = body {
            operation["requestBody"] = json!({"content": body, "required": true});
        }
        operation
    };
    let mut of_collection = vec![];
    if resource.namespaced {
        of_collection.push(parameter("namespace", "path", "The namespace."));
    }
    let collection = path_of(resource);
    let mut of_object = of_collection.clone();
    of_object.push(parameter("name", "path", "Name of the object."));
    let create = operation("post", write_parameters(), Some(content.clone()));
    if resource.style == Style::CreateOnly {
        paths.insert(collection, json!({"parameters": of_collection, "post": create}));
        return;
    }
    let patch_content: Map<String, Value> =
        ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]
            .into_iter()
            .map(|media| (media.to_owned(), json!({"schema": {"type": "object"}})))
            .collect();
    let mut patch_parameters = write_parameters();
    patch_parameters.push(json!({
        "name": "force", "in": "query", "description": "Take over fields of others when applying.",
        "schema": {"type": "boolean", "uniqueItems": true},
    }));
    paths.insert(
        format!("{collection}/{{name}}"),
        json!({
            "parameters": of_object,
            "get": operation("get", vec![], None),
            "put": operation("put", write_parameters(), Some(content.clone())),
            "patch": operation("patch", patch_parameters, Some(patch_content.into())),
            "delete": operation("delete", vec![], None),
        }),
    );
    paths.insert(
        collection,
        json!({"parameters": of_collection, "get": operation("list", vec![], None), "post": create}),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_of_the_index_is_there() {
        let registry = Registry::default();
        let index = v3_index(&registry);
        for (path, place) in index["paths"].as_object().unwrap() {
            let url = place["serverRelativeURL"].as_str().unwrap();
            assert!(url.starts_with(&format!("/openapi/v3/{path}?hash=")), "{url}");
            assert!(v3_document(&registry, path).is_some(), "{path}");
        }
        assert!(v3_document(&registry, "apis/none/v1").is_none());
        assert!(v3_document(&registry, "apis/apps").is_none());
    }

    #[test]
    fn patches_say_that_the_server_checks_fields_and_do_not_offer_strategic_merge() {
        let document = v3_document(&Registry::default(), "apis/apps/v1").unwrap();
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let named =
            |name: &str| patch["parameters"].as_array().unwrap().iter().any(|one| one["name"] == name);
        assert!(named("fieldValidation"));
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_none());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let registry = Registry::default();
        for path in v3_index(&registry)["paths"].as_object().unwrap().keys() {
            let document = v3_document(&registry, path).unwrap();
            let mut found = Vec::new();
            references(&document, &mut found);
            for reference in found {
                let name = reference.strip_prefix(COMPONENTS).unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{path}: {name}");
            }
        }
    }
}
