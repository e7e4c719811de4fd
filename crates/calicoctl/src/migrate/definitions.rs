//! The custom resource definitions that an import needs, made where they are missing.

use crate::failure::Failure;
use api::wire::Group;
use datastore::kubernetes::Kubernetes;
use serde_json::{Value, json};

/// What the lesson installs, and so does an import.
const MANIFEST: &str = include_str!("../../../../manifests/operator-crds.yaml");

/// Our definitions of the records' group, one document each.
fn documents() -> impl Iterator<Item = &'static str> {
    MANIFEST.split("\n---\n").filter(|document| document.contains("\n  group: crd.projectcalico.org\n"))
}

/// Defines each kind of the group that the API does not know, and waits until it is served. A cluster whose records are in
/// the newer group has definitions of its own.
pub(super) async fn install(store: &Kubernetes) -> Result<(), Failure> {
    if store.group().await == Group::V3 {
        return Ok(());
    }
    for document in documents() {
        let definition: Value = serde_saphyr::from_str(document)
            .map_err(|error| Failure::new(format!("a definition of this program is no YAML: {error}")))?;
        define(store, &definition).await?;
    }
    Ok(())
}

async fn define(store: &Kubernetes, definition: &Value) -> Result<(), Failure> {
    store.define(definition).await.map_err(|error| Failure::new(format!("failed to create {error}")))
}

/// Defines a kind that is not about addresses, with a spec of which nothing is dropped.
pub(super) async fn install_other(
    store: &Kubernetes,
    kind: &str,
    plural: &str,
    namespaced: bool,
) -> Result<(), Failure> {
    if store.group().await == Group::V3 {
        return Ok(());
    }
    let spec = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let properties = json!({"apiVersion": {"type": "string"}, "kind": {"type": "string"},
        "metadata": {"type": "object"}, "spec": spec});
    let names = json!({"kind": kind, "listKind": format!("{kind}List"), "plural": plural,
        "singular": kind.to_lowercase()});
    let version = json!({"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}});
    let group = "crd.projectcalico.org";
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {"group": group, "names": names, "versions": [version],
            "scope": if namespaced { "Namespaced" } else { "Cluster" }}});
    define(store, &definition).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_record_is_defined() {
        let plurals: Vec<String> = documents()
            .map(|document| serde_saphyr::from_str::<Value>(document).unwrap())
            .map(|definition| definition["spec"]["names"]["plural"].as_str().unwrap().to_owned())
            .collect();
        for resource in [
            api::wire::Resource::POOL,
            api::wire::Resource::BLOCK,
            api::wire::Resource::AFFINITY,
            api::wire::Resource::HANDLE,
            api::wire::Resource::CONFIG,
            api::wire::Resource::RESERVATION,
            api::wire::Resource::CLUSTER_INFORMATION,
        ] {
            assert!(plurals.iter().any(|plural| plural == resource.plural), "{}", resource.plural);
        }
    }
}
