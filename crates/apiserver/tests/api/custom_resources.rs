//! Kinds that clients define.

use crate::support::{Lab, MERGE};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CATS: &str = "/apis/example.org/v1/namespaces/default/cats";

fn definition() -> Value {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string"},
            "lives": {"type": "integer", "default": 9, "minimum": 0},
        }},
        "status": {"type": "object", "properties": {"mood": {"type": "string"}}},
    }});
    json!({
        "metadata": {"name": "cats.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced",
            "names": {"plural": "cats", "kind": "Cat", "shortNames": ["ct"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                 "additionalPrinterColumns": [{"name": "Lives", "type": "integer", "jsonPath": ".spec.lives"}],
                 "schema": {"openAPIV3Schema": schema}},
                {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": schema}},
            ],
        },
    })
}

#[tokio::test]
async fn a_defined_kind_is_there_when_the_definition_is_answered() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    assert_eq!(admin.get(CATS).await.code, 404);
    let created = admin.post(DEFINITIONS, &definition()).await.ok();
    let established = &created["status"]["conditions"][1];
    assert_eq!((&established["type"], &established["status"]), (&json!("Established"), &json!("True")));
    assert_eq!(created["spec"]["names"]["listKind"], "CatList");
    let found = admin.get("/apis/example.org/v1").await.ok();
    assert_eq!(found["resources"][0]["shortNames"], json!(["ct"]));
    assert_eq!(admin.get("/apis/example.org").await.ok()["preferredVersion"]["version"], "v1");
    assert_eq!(admin.get(CATS).await.ok()["kind"], "CatList");
}

#[tokio::test]
async fn instances_are_pruned_completed_and_judged() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(DEFINITIONS, &definition()).await.ok();
    let tom = json!({"apiVersion": "example.org/v1", "kind": "Cat", "metadata": {"name": "tom"},
                     "spec": {"name": "Tom", "tail": "long"}, "status": {"mood": "good"}});
    let strict = admin.post(&format!("{CATS}?fieldValidation=Strict"), &tom).await;
    let (code, message) = strict.refused();
    assert_eq!(code, 400);
    assert!(message.ends_with(r#"strict decoding error: unknown field "spec.tail""#), "{message}");
    let created = admin.post(CATS, &tom).await;
    assert_eq!(created.headers["warning"], r#"299 - "unknown field \"spec.tail\"""#);
    let created = created.ok();
    assert_eq!(created["spec"], json!({"name": "Tom", "lives": 9}));
    assert_eq!(created.get("status"), None, "the status is written apart");
    let (code, message) =
        admin.post(CATS, &json!({"metadata": {"name": "x"}, "spec": {"lives": "many"}})).await.refused();
    assert_eq!(code, 422);
    assert!(message.starts_with(r#"Cat.example.org "x" is invalid: ["#), "{message}");
    assert!(message.contains("spec.name: Required value"), "{message}");
}

#[tokio::test]
async fn generation_counts_changes_of_the_spec_only() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(DEFINITIONS, &definition()).await.ok();
    admin.post(CATS, &json!({"metadata": {"name": "tom"}, "spec": {"name": "Tom"}})).await.ok();
    let path = format!("{CATS}/tom");
    let generation = |object: &Value| object["metadata"]["generation"].as_i64();
    let labelled = admin.patch(&path, MERGE, &json!({"metadata": {"labels": {"a": "b"}}})).await.ok();
    assert_eq!(generation(&labelled), Some(1));
    let moody = json!({"status": {"mood": "good"}, "spec": {"lives": 3}});
    let status = admin.patch(&format!("{path}/status"), MERGE, &moody).await.ok();
    assert_eq!((generation(&status), &status["spec"]["lives"]), (Some(1), &json!(9)));
    let main =
        admin.patch(&path, MERGE, &json!({"spec": {"lives": 8}, "status": {"mood": "bad"}})).await.ok();
    assert_eq!((generation(&main), &main["status"]["mood"]), (Some(2), &json!("good")));
    let mut without = main.clone();
    without["metadata"]["resourceVersion"] = Value::Null;
    let (code, message) = admin.put(&path, &without).await.refused();
    assert_eq!(code, 422);
    assert!(
        message.ends_with("metadata.resourceVersion: Invalid value: 0x0: must be specified for an update")
    );
    let strategic = admin.patch(&path, "application/strategic-merge-patch+json", &json!({})).await;
    assert_eq!(strategic.code, 415);
}

#[tokio::test]
async fn versions_are_views_of_one_object() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(DEFINITIONS, &definition()).await.ok();
    admin.post(CATS, &json!({"metadata": {"name": "tom"}, "spec": {"name": "Tom"}})).await.ok();
    let beta = "/apis/example.org/v1beta1/namespaces/default/cats";
    assert_eq!(admin.get(&format!("{beta}/tom")).await.ok()["apiVersion"], "example.org/v1beta1");
    let list = admin.get(beta).await.ok();
    assert_eq!(
        (&list["apiVersion"], &list["items"][0]["apiVersion"]),
        (&json!("example.org/v1beta1"), &json!("example.org/v1beta1"))
    );
    admin.patch(&format!("{beta}/tom"), MERGE, &json!({"spec": {"lives": 2}})).await.ok();
    let seen = admin.get(&format!("{CATS}/tom")).await.ok();
    assert_eq!((&seen["apiVersion"], &seen["spec"]["lives"]), (&json!("example.org/v1"), &json!(2)));
}

#[tokio::test]
async fn printer_columns_make_the_table() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(DEFINITIONS, &definition()).await.ok();
    admin.post(CATS, &json!({"metadata": {"name": "tom"}, "spec": {"name": "Tom"}})).await.ok();
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = admin.send(Method::GET, CATS, &accept, Bytes::new()).await.ok();
    assert_eq!(table["rows"][0]["cells"], json!(["tom", 9]));
    let other = admin.send(Method::GET, "/apis/example.org/v1beta1/cats", &accept, Bytes::new()).await.ok();
    assert_eq!(other["columnDefinitions"][1]["name"], "Age");
}

#[tokio::test]
async fn a_definition_goes_with_its_instances() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(DEFINITIONS, &definition()).await.ok();
    admin.post(CATS, &json!({"metadata": {"name": "tom"}, "spec": {"name": "Tom"}})).await.ok();
    let mut events = admin.watch(&format!("{DEFINITIONS}?watch=true"), "application/json").await;
    assert_eq!(events.told().await.0, "ADDED");
    admin.delete(&format!("{DEFINITIONS}/cats.example.org")).await.ok();
    while events.told().await.0 != "DELETED" {}
    assert_eq!(admin.get(CATS).await.code, 404);
    assert_eq!(admin.get("/apis/example.org").await.code, 404);
    admin.post(DEFINITIONS, &definition()).await.ok();
    assert_eq!(admin.get(CATS).await.ok()["items"], json!([]));
}

#[tokio::test]
async fn definitions_that_contradict_themselves_or_others_are_not_served() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let mut wrong = definition();
    wrong["metadata"]["name"] = "dogs.example.org".into();
    wrong["spec"]["versions"][0]["storage"] = false.into();
    let (code, message) = admin.post(DEFINITIONS, &wrong).await.refused();
    assert_eq!(code, 422);
    assert!(message.contains("metadata.name") && message.contains("exactly one version"), "{message}");
    admin.post(DEFINITIONS, &definition()).await.ok();
    let mut clash = definition();
    clash["metadata"]["name"] = "lions.example.org".into();
    clash["spec"]["names"]["plural"] = "lions".into();
    let answered = admin.post(DEFINITIONS, &clash).await.ok();
    assert_eq!(answered["status"]["conditions"][0]["status"], "False");
    assert_eq!(admin.get("/apis/example.org/v1/lions").await.code, 404);
}
