//! CustomResourceDefinitions: checked, completed, and turned into kinds that are served.

use crate::cel::Patterns;
use crate::error::{FieldError, Status};
use crate::objects::{meta, now};
use crate::resource::{CustomResource, Resource, ScalePaths, Style};
use crate::schema::Schema;
use crate::table::Columns;
use serde_json::{Value, json};
use std::sync::Arc;

/// Finalizer under which a definition waits for its instances to go.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn versions(definition: &Value) -> impl Iterator<Item = &Value> {
    definition["spec"]["versions"].as_array().into_iter().flatten()
}

fn field_path(path: &str) -> Vec<String> {
    path.trim_start_matches('.').split('.').map(str::to_owned).collect()
}

/// Fills what a new or changed definition leaves open.
pub fn complete(definition: &mut Value) {
    let kind = text(&definition["spec"]["names"], "kind").to_owned();
    if let Some(spec) = definition["spec"].as_object_mut() {
        spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    }
    if let Some(names) = definition["spec"]["names"].as_object_mut() {
        names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
        names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
    }
}

/// What is wrong with a definition.
pub fn check(definition: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &definition["spec"];
    let (plural, group) = (text(&spec["names"], "plural"), text(spec, "group"));
    for (value, field) in [
        (group, "spec.group"),
        (plural, "spec.names.plural"),
        (text(&spec["names"], "kind"), "spec.names.kind"),
    ] {
        if value.is_empty() {
            errors.push(FieldError::required(field, ""));
        } else if value.contains('/') {
            errors.push(FieldError::invalid(field, &value.into(), "must not contain a slash"));
        }
    }
    let wanted = format!("{plural}.{group}");
    if meta(definition, "name") != wanted {
        let detail = r#"must be spec.names.plural+"."+spec.group"#;
        errors.push(FieldError::invalid("metadata.name", &definition["metadata"]["name"], detail));
    }
    match text(spec, "scope") {
        "Cluster" | "Namespaced" => {}
        "" => errors.push(FieldError::required("spec.scope", "")),
        _ => errors.push(FieldError::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"])),
    }
    let storage = versions(definition).filter(|version| version["storage"] == true).count();
    if storage != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", &json!(versions(definition).count()), detail));
    }
    if spec["conversion"]["strategy"].as_str().is_some_and(|strategy| strategy != "None") {
        errors.push(FieldError::not_supported(
            "spec.conversion.strategy",
            &spec["conversion"]["strategy"],
            &["None"],
        ));
    }
    let mut patterns = Patterns::default();
    for (at, version) in versions(definition).enumerate() {
        let field = format!("spec.versions[{at}]");
        if text(version, "name").is_empty() {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        }
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_null() {
            let detail = "schemas are required";
            errors.push(FieldError::required(format!("{field}.schema.openAPIV3Schema"), detail));
        } else if let Err(faults) = Schema::compile_with(schema, &mut patterns) {
            errors.extend(
                faults.into_iter().map(|fault| FieldError {
                    field: format!("{field}.schema.openAPIV3Schema.{}", fault.field)
                        .trim_end_matches('.')
                        .to_owned(),
                    ..fault
                }),
            );
        }
    }
    errors
}

/// Validation rules of all versions that are not judged.
pub(crate) fn unjudged_rules(definition: &Value) -> Vec<String> {
    let mut patterns = Patterns::default();
    versions(definition)
        .filter_map(|version| Schema::compile_with(&version["schema"]["openAPIV3Schema"], &mut patterns).ok())
        .flat_map(|schema| schema.unjudged_rules().to_vec())
        .collect()
}

/// Whether the definition's names are free, and so whether it is served.
///
/// `others` are the kinds served by other definitions.
pub fn name_clash<'a>(definition: &Value, others: impl Iterator<Item = &'a Arc<Resource>>) -> Option<String> {
    let spec = &definition["spec"];
    let (group, names) = (text(spec, "group"), &spec["names"]);
    for other in others.filter(|other| other.group == group) {
        if other.plural == text(names, "plural") {
            return Some(format!("{:?} is already in use", other.plural));
        }
        if other.kind == text(names, "kind") {
            return Some(format!("{:?} is already in use", other.kind));
        }
    }
    None
}

/// Sets the conditions and names that a definition has once it was judged.
pub fn set_status(definition: &mut Value, clash: Option<&str>) {
    let stored: Vec<Value> = versions(definition)
        .filter(|version| version["storage"] == true)
        .map(|version| version["name"].clone())
        .collect();
    let since = |kind: &str, status: &str, definition: &Value| {
        let conditions = definition["status"]["conditions"].as_array();
        let known =
            conditions.into_iter().flatten().find(|one| one["type"] == kind && one["status"] == status);
        known.map_or_else(|| now().into(), |known| known["lastTransitionTime"].clone())
    };
    let condition = |kind: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since(kind, status, definition),
        })
    };
    let mut conditions = match clash {
        None => vec![
            condition("NamesAccepted", true, "NoConflicts", "no conflicts found"),
            condition("Established", true, "InitialNamesAccepted", "the initial names have been accepted"),
        ],
        Some(clash) => vec![
            condition("NamesAccepted", false, "PluralConflict", clash),
            condition("Established", false, "NotAccepted", "not all names are accepted"),
        ],
    };
    if definition["metadata"]["deletionTimestamp"].is_string() {
        conditions.push(condition(
            "Terminating",
            true,
            "InstanceDeletionInProgress",
            "CustomResource deletion is in progress",
        ));
    }
    let mut all: Vec<Value> = definition["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    all.extend(stored.into_iter().filter(|one| !all.contains(one)).collect::<Vec<_>>());
    let accepted =
        if clash.is_none() { definition["spec"]["names"].clone() } else { json!({"plural": "", "kind": ""}) };
    definition["status"] =
        json!({"conditions": conditions, "acceptedNames": accepted, "storedVersions": all});
}

/// Whether a definition was accepted.
pub fn is_established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|one| one["type"] == "Established" && one["status"] == "True")
}

/// The kinds that an accepted definition serves, one a version.
///
/// # Errors
/// 422 when a schema cannot be used; [`check`] finds the same before it is stored.
pub fn resources(definition: &Value) -> Result<Vec<Arc<Resource>>, Status> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let list = |field: &str| -> Vec<String> {
        names[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (group, plural) = (text(spec, "group").to_owned(), text(names, "plural").to_owned());
    let served: Vec<&Value> = versions(definition).filter(|version| version["served"] == true).collect();
    let (mut resources, mut patterns) = (Vec::new(), Patterns::default());
    for version in &served {
        let open_api = version["schema"]["openAPIV3Schema"].clone();
        let schema = Schema::compile_with(&open_api, &mut patterns).map_err(|errors| {
            let name = meta(definition, "name");
            Status::invalid("apiextensions.k8s.io", "CustomResourceDefinition", name, &errors)
        })?;
        let subresources = &version["subresources"];
        let scale = subresources["scale"].as_object().map(|scale| ScalePaths {
            spec_replicas: field_path(
                scale.get("specReplicasPath").and_then(Value::as_str).unwrap_or_default(),
            ),
            status_replicas: field_path(
                scale.get("statusReplicasPath").and_then(Value::as_str).unwrap_or_default(),
            ),
            selector: scale.get("labelSelectorPath").and_then(Value::as_str).map(field_path),
        });
        let selectable = version["selectableFields"].as_array().into_iter().flatten();
        let selectable = selectable.filter_map(|field| field["jsonPath"].as_str());
        let custom = CustomResource {
            definition: meta(definition, "name").to_owned(),
            schema: Some(schema),
            open_api,
            columns: Columns::from_crd(version),
            scale,
            selectable: selectable.map(|path| path.trim_start_matches('.').to_owned()).collect(),
            has_siblings: versions(definition).count() > 1,
        };
        resources.push(Arc::new(Resource {
            version: text(version, "name").to_owned(),
            kind: text(names, "kind").to_owned(),
            list_kind: text(names, "listKind").to_owned(),
            singular: text(names, "singular").to_owned(),
            namespaced: text(spec, "scope") == "Namespaced",
            short_names: list("shortNames"),
            categories: list("categories"),
            style: Style::Stored,
            has_status: subresources["status"].is_object(),
            subresources: if custom.scale.is_some() { vec!["scale"] } else { Vec::new() },
            custom: Some(Arc::new(custom)),
            prefix: format!("/{group}/{plural}/"),
            group: group.clone(),
            plural: plural.clone(),
        }));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({
            "metadata": {"name": "cats.example.org"},
            "spec": {
                "group": "example.org", "scope": "Namespaced", "names": {"plural": "cats", "kind": "Cat"},
                "versions": [{"name": "v1", "served": true, "storage": true,
                              "schema": {"openAPIV3Schema": {"type": "object"}}}],
            },
        })
    }

    #[test]
    fn an_accepted_definition_serves_its_kind() {
        let mut definition = definition();
        complete(&mut definition);
        assert_eq!(check(&definition), []);
        let clash = name_clash(&definition, [].into_iter());
        set_status(&mut definition, clash.as_deref());
        assert!(is_established(&definition));
        let resources = resources(&definition).unwrap();
        assert_eq!(resources[0].list_kind, "CatList");
        assert_eq!(resources[0].key("a", "b"), "/example.org/cats/a/b");
        let clash = name_clash(&definition, resources.iter());
        set_status(&mut definition, clash.as_deref());
        assert!(!is_established(&definition));
    }

    #[test]
    fn a_name_that_is_not_plural_and_group_is_refused() {
        let mut definition = definition();
        definition["metadata"]["name"] = "dogs.example.org".into();
        assert_eq!(check(&definition)[0].field, "metadata.name");
    }
}
