//! The manifests that the lesson applies: definitions of the resources, and the operator.

#![expect(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use std::path::Path;

fn documents(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    text.split("\n---\n").skip(1).map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

fn definition(name: &str) -> Value {
    let found = documents("operator-crds.yaml").into_iter().find(|object| object["metadata"]["name"] == name);
    found.unwrap()
}

fn schema(definition: &Value) -> &Value {
    definition.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap()
}

#[test]
fn every_definition_is_named_as_the_api_wants_it_and_stores_its_one_version() {
    let definitions = documents("operator-crds.yaml");
    assert_eq!(definitions.len(), 17);
    for definition in &definitions {
        let spec = &definition["spec"];
        let name =
            format!("{}.{}", spec["names"]["plural"].as_str().unwrap(), spec["group"].as_str().unwrap());
        assert_eq!(definition["metadata"]["name"], name);
        assert_eq!(spec["versions"].as_array().unwrap().len(), 1, "{name}");
        assert_eq!(spec["versions"][0]["storage"], true, "{name}");
        assert_eq!(schema(definition)["type"], "object", "{name}");
    }
}

#[test]
fn every_resource_of_the_datastore_is_defined() {
    use api::wire::Resource;
    for resource in [
        Resource::POOL,
        Resource::BLOCK,
        Resource::AFFINITY,
        Resource::HANDLE,
        Resource::CONFIG,
        Resource::RESERVATION,
        Resource::CLUSTER_INFORMATION,
    ] {
        let definition = definition(&format!("{}.crd.projectcalico.org", resource.plural));
        assert_eq!(definition["spec"]["names"]["kind"], resource.kind);
        assert_eq!(definition["spec"]["scope"], "Cluster");
    }
}

#[test]
fn tigera_status_shows_the_lessons_columns() {
    let definition = definition("tigerastatuses.operator.tigera.io");
    let columns = definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
    let shown: Vec<&str> = columns
        .iter()
        .filter(|column| column["priority"].as_i64().unwrap_or(0) == 0)
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(shown, ["Available", "Progressing", "Degraded", "Since"]);
}

#[test]
fn definition_of_affinities_has_no_columns_of_its_own() {
    let definition = definition("blockaffinities.crd.projectcalico.org");
    assert!(definition["spec"]["versions"][0].get("additionalPrinterColumns").is_none());
    let deleted = schema(&definition).pointer("/properties/spec/properties/deleted/type");
    assert_eq!(deleted, Some(&json!("string")));
}

#[test]
fn sequence_numbers_are_whole_numbers_of_64_bits() {
    let definition = definition("ipamblocks.crd.projectcalico.org");
    let spec = schema(&definition).pointer("/properties/spec/properties").unwrap();
    assert_eq!(spec["sequenceNumber"]["format"], "int64");
    assert_eq!(spec["sequenceNumberForAllocation"]["additionalProperties"]["format"], "int64");
    assert_eq!(spec["allocations"]["items"]["nullable"], true);
}

#[test]
fn operator_runs_on_every_node_and_before_there_is_a_network() {
    let documents = documents("tigera-operator.yaml");
    let deployment = documents.iter().find(|object| object["kind"] == "Deployment").unwrap();
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["containers"][0]["image"], "tigera/operator:v1.38.0");
    assert!(
        pod["tolerations"].as_array().unwrap().iter().all(|toleration| toleration["operator"] == "Exists")
    );
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["name"], deployment["spec"]["selector"]["matchLabels"]["name"]);
}
