//! The custom resource definitions that an import needs, made where they are missing.

use crate::failure::Failure;
use api::wire::Group;
use datastore::kubernetes::Kubernetes;
use serde_json::Value;

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
        store.define(&definition).await.map_err(|error| Failure::new(format!("failed to create {error}")))?;
    }
    Ok(())
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
