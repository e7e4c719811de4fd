//! Deleting: grace, finalizers, owners, namespaces.

use crate::support::{Client, Events, Lab, MERGE};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn watch_all(admin: &Client, path: &str) -> Events {
    let revision = admin.get(path).await.ok()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    admin.watch(&format!("{path}?watch=true&resourceVersion={revision}"), "application/json").await
}

async fn until_deleted(events: &mut Events, name: &str) {
    while events.told().await != ("DELETED".to_owned(), name.to_owned()) {}
}

async fn delete_with(admin: &Client, path: &str, options: Value) -> crate::support::Answer {
    admin
        .send(Method::DELETE, path, &[("content-type", "application/json")], options.to_string().into())
        .await
}

async fn owned(admin: &Client, owner: &str, name: &str) {
    let uid = admin.get(&format!("{MAPS}/{owner}")).await.ok()["metadata"]["uid"].clone();
    let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid, "blockOwnerDeletion": true});
    let map = json!({"metadata": {"name": name, "ownerReferences": [reference]}});
    admin.post(MAPS, &map).await.ok();
}

#[tokio::test]
async fn finalizers_keep_an_object_until_the_last_is_taken_away() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let path = format!("{MAPS}/m");
    admin.post(MAPS, &json!({"metadata": {"name": "m", "finalizers": ["a.example/x"]}})).await.ok();
    let marked = admin.delete(&path).await.ok();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["a.example/x", "a.example/y"]}});
    assert_eq!(admin.patch(&path, MERGE, &more).await.code, 422);
    let mut events = watch_all(&admin, MAPS).await;
    admin.patch(&path, MERGE, &json!({"metadata": {"finalizers": null}})).await.ok();
    assert_eq!(events.told().await, ("DELETED".into(), "m".into()));
    assert_eq!(admin.get(&path).await.code, 404);
}

#[tokio::test]
async fn preconditions_protect_a_successor() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let object = admin.post(MAPS, &json!({"metadata": {"name": "m"}})).await.ok();
    let path = format!("{MAPS}/m");
    assert_eq!(delete_with(&admin, &path, json!({"preconditions": {"uid": "other"}})).await.code, 409);
    assert_eq!(
        delete_with(&admin, &path, json!({"preconditions": {"resourceVersion": "1"}})).await.code,
        409
    );
    let right = json!({"preconditions": {"uid": object["metadata"]["uid"]}});
    let gone = delete_with(&admin, &path, right).await.ok();
    assert_eq!((&gone["status"], &gone["details"]["kind"]), (&json!("Success"), &json!("configmaps")));
    assert_eq!(
        delete_with(&admin, &path, json!({})).await.refused(),
        (404, r#"configmaps "m" not found"#.into())
    );
}

#[tokio::test]
async fn a_running_pod_stays_until_its_node_says_so() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    admin.post(pods, &pod).await.ok();
    let path = format!("{pods}/p");
    let marked = admin.delete(&path).await.ok();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(admin.get(&path).await.code, 200);
    delete_with(&admin, &path, json!({"gracePeriodSeconds": 0})).await.ok();
    assert_eq!(admin.get(&path).await.code, 404);
}

#[tokio::test]
async fn dependents_follow_their_owner() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(MAPS, &json!({"metadata": {"name": "owner"}})).await.ok();
    owned(&admin, "owner", "child").await;
    owned(&admin, "child", "grandchild").await;
    let mut events = watch_all(&admin, MAPS).await;
    admin.delete(&format!("{MAPS}/owner")).await.ok();
    until_deleted(&mut events, "grandchild").await;
    assert_eq!(admin.get(&format!("{MAPS}/child")).await.code, 404);
}

#[tokio::test]
async fn in_the_foreground_dependents_go_first() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(MAPS, &json!({"metadata": {"name": "owner"}})).await.ok();
    owned(&admin, "owner", "child").await;
    let mut events = watch_all(&admin, MAPS).await;
    let path = format!("{MAPS}/owner");
    let marked = delete_with(&admin, &path, json!({"propagationPolicy": "Foreground"})).await.ok();
    assert_eq!(marked["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    until_deleted(&mut events, "child").await;
    until_deleted(&mut events, "owner").await;
}

#[tokio::test]
async fn orphans_stay_without_their_owner() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(MAPS, &json!({"metadata": {"name": "owner"}})).await.ok();
    owned(&admin, "owner", "child").await;
    let mut events = watch_all(&admin, MAPS).await;
    delete_with(&admin, &format!("{MAPS}/owner"), json!({"propagationPolicy": "Orphan"})).await.ok();
    until_deleted(&mut events, "owner").await;
    let child = admin.get(&format!("{MAPS}/child")).await.ok();
    assert_eq!(child["metadata"].get("ownerReferences"), None);
}

#[tokio::test]
async fn who_names_an_owner_that_never_was_is_collected() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let mut events = watch_all(&admin, MAPS).await;
    let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "never"});
    admin.post(MAPS, &json!({"metadata": {"name": "m", "ownerReferences": [reference]}})).await.ok();
    until_deleted(&mut events, "m").await;
}

#[tokio::test]
async fn a_namespace_goes_with_what_is_in_it_and_waits_for_what_stays() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let namespaces = "/api/v1/namespaces";
    let created = admin.post(namespaces, &json!({"metadata": {"name": "n"}})).await.ok();
    assert_eq!(created["status"]["phase"], "Active");
    admin.get(&format!("{namespaces}/n/serviceaccounts/default")).await.ok();
    admin.get(&format!("{namespaces}/n/configmaps/kube-root-ca.crt")).await.ok();
    let maps = format!("{namespaces}/n/configmaps");
    for number in 0..50 {
        admin.post(&maps, &json!({"metadata": {"name": format!("m{number}")}})).await.ok();
    }
    admin.post(&maps, &json!({"metadata": {"name": "stuck", "finalizers": ["a.example/x"]}})).await.ok();
    let mut events = watch_all(&admin, namespaces).await;
    let marked = admin.delete(&format!("{namespaces}/n")).await.ok();
    assert_eq!(marked["status"]["phase"], "Terminating");
    let (code, message) = admin.post(&maps, &json!({"metadata": {"name": "late"}})).await.refused();
    assert_eq!(code, 403);
    assert!(
        message.ends_with("unable to create new content in namespace n because it is being terminated"),
        "{message}"
    );
    loop {
        let event = events.next().await.unwrap();
        let conditions = event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let told = |message: &str| conditions.iter().any(|condition| condition["message"] == message);
        if told("Some resources are remaining: configmaps. has 1 resource instances") {
            assert!(told(
                "Some content in the namespace has finalizers remaining: a.example/x in 1 resource instances"
            ));
            break;
        }
    }
    admin.patch(&format!("{maps}/stuck"), MERGE, &json!({"metadata": {"finalizers": null}})).await.ok();
    until_deleted(&mut events, "n").await;
    let left = admin.get("/api/v1/configmaps").await.ok();
    assert!(left["items"].as_array().unwrap().iter().all(|map| map["metadata"]["namespace"] != "n"));
    assert_eq!(admin.delete(&format!("{namespaces}/kube-system")).await.code, 403);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        admin.post(MAPS, &json!({"metadata": {"name": name, "labels": {"l": label}}})).await.ok();
    }
    let gone =
        admin.send(Method::DELETE, &format!("{MAPS}?labelSelector=l%3Dx"), &[], Bytes::new()).await.ok();
    assert_eq!(gone["items"].as_array().unwrap().len(), 2);
    assert_eq!(admin.get(&format!("{MAPS}/b")).await.code, 200);
    assert_eq!(admin.get(&format!("{MAPS}/a")).await.code, 404);
}

#[tokio::test]
async fn an_eviction_respects_the_budget() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    admin.post(pods, &pod).await.ok();
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}});
    admin.post(budgets, &budget).await.ok();
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    assert_eq!(admin.post(&format!("{pods}/p/eviction"), &eviction).await.code, 429);
    admin.delete(&format!("{budgets}/b")).await.ok();
    assert_eq!(admin.post(&format!("{pods}/p/eviction"), &eviction).await.code, 201);
    assert_eq!(admin.get(&format!("{pods}/p")).await.code, 404);
}

#[tokio::test]
async fn what_every_namespace_has_is_made_again() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let mut events = watch_all(&admin, accounts).await;
    admin.delete(&format!("{accounts}/default")).await.ok();
    assert_eq!(events.told().await, ("DELETED".into(), "default".into()));
    assert_eq!(events.told().await, ("ADDED".into(), "default".into()));
}
