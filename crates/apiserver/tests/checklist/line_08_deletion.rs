//! Line 8: what goes, what stays until it may go, and what is said about it meanwhile.

use crate::support::{Client, Lab, MERGE};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn delete(admin: &Client, path: &str, options: &Value) -> Value {
    admin
        .send(http::Method::DELETE, path, &[("content-type", "application/json")], options.to_string().into())
        .await
        .ok()
}

async fn map(admin: &Client, name: &str, metadata: Value) -> String {
    let mut object = json!({"metadata": metadata});
    object["metadata"]["name"] = name.into();
    let made = admin.post(MAPS, &object).await.ok();
    made["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn owner(name: &str, uid: &str) -> Value {
    json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": true}])
}

/// Waits until an object is gone, by a watch that begins with it if it is still there.
async fn gone(admin: &Client, collection: &str, name: &str) {
    let path = format!(
        "{collection}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true\
         &fieldSelector=metadata.name%3D{name}"
    );
    let mut events = admin.watch(&path, "application/json").await;
    let first = events.next().await.unwrap();
    if first["type"] == "BOOKMARK" {
        return;
    }
    while events.told().await.0 != "DELETED" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn line_08_deletions_wait_for_what_they_must_and_say_for_what() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    finalizers(&admin).await;
    dependents(&admin).await;
    grace_is_only_shortened(&admin).await;
    a_full_namespace_goes_when_its_last_finalizer_does(&admin).await;
}

async fn finalizers(admin: &Client) {
    map(admin, "kept", json!({"finalizers": ["example.org/hold"]})).await;
    let marked = delete(admin, &format!("{MAPS}/kept"), &json!({})).await;
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let added = json!({"metadata": {"finalizers": ["example.org/hold", "example.org/more"]}});
    assert_eq!(admin.patch(&format!("{MAPS}/kept"), MERGE, &added).await.code, 422);
    admin.patch(&format!("{MAPS}/kept"), MERGE, &json!({"metadata": {"finalizers": null}})).await.ok();
    assert_eq!(admin.get(&format!("{MAPS}/kept")).await.code, 404);
}

async fn dependents(admin: &Client) {
    // In the foreground the dependents go first: the owner waits for one that is held.
    let uid = map(admin, "front", json!({})).await;
    let held = json!({"ownerReferences": owner("front", &uid), "finalizers": ["example.org/hold"]});
    map(admin, "front-child", held).await;
    delete(admin, &format!("{MAPS}/front"), &json!({"propagationPolicy": "Foreground"})).await;
    let waiting = admin.get(&format!("{MAPS}/front")).await.ok();
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    admin.patch(&format!("{MAPS}/front-child"), MERGE, &json!({"metadata": {"finalizers": null}})).await.ok();
    gone(admin, MAPS, "front-child").await;
    gone(admin, MAPS, "front").await;
    // Orphans stay and forget their owner.
    let uid = map(admin, "parent", json!({})).await;
    map(admin, "orphan", json!({"ownerReferences": owner("parent", &uid)})).await;
    delete(admin, &format!("{MAPS}/parent"), &json!({"propagationPolicy": "Orphan"})).await;
    gone(admin, MAPS, "parent").await;
    let orphan = admin.get(&format!("{MAPS}/orphan")).await.ok();
    assert!(orphan["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty), "{orphan}");
    // Two that own each other hold nobody up.
    for policy in ["Background", "Foreground"] {
        let (first, second) = (format!("{policy}-a").to_lowercase(), format!("{policy}-b").to_lowercase());
        let first_uid = map(admin, &first, json!({})).await;
        let second_uid = map(admin, &second, json!({"ownerReferences": owner(&first, &first_uid)})).await;
        let closing = json!({"metadata": {"ownerReferences": owner(&second, &second_uid)}});
        admin.patch(&format!("{MAPS}/{first}"), MERGE, &closing).await.ok();
        delete(admin, &format!("{MAPS}/{first}"), &json!({"propagationPolicy": policy})).await;
        gone(admin, MAPS, &first).await;
        gone(admin, MAPS, &second).await;
    }
}

async fn grace_is_only_shortened(admin: &Client) {
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    admin.post(PODS, &pod).await.ok();
    let path = format!("{PODS}/p");
    for (asked, wanted) in
        [(json!({}), 30), (json!({"gracePeriodSeconds": 60}), 30), (json!({"gracePeriodSeconds": 5}), 5)]
    {
        let pod = delete(admin, &path, &asked).await;
        assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], wanted, "{asked}");
    }
    delete(admin, &path, &json!({"gracePeriodSeconds": 0})).await;
    assert_eq!(admin.get(&path).await.code, 404);
}

async fn a_full_namespace_goes_when_its_last_finalizer_does(admin: &Client) {
    admin.post("/api/v1/namespaces", &json!({"metadata": {"name": "full"}})).await.ok();
    let maps = "/api/v1/namespaces/full/configmaps";
    let mut session = admin.session().await;
    for number in 0..1000 {
        let mut metadata = json!({"name": format!("m{number}")});
        if number == 500 {
            metadata["finalizers"] = json!(["example.org/stuck"]);
        }
        session.post(maps, &json!({"metadata": metadata})).await.ok();
    }
    let mut events = admin
        .watch("/api/v1/namespaces?watch=true&fieldSelector=metadata.name%3Dfull", "application/json")
        .await;
    admin.delete("/api/v1/namespaces/full").await.ok();
    // Told as soon as only the stuck one is left.
    let conditions = loop {
        let event = events.next().await.unwrap();
        let conditions = event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions
            .iter()
            .any(|one| one["type"] == "NamespaceFinalizersRemaining" && one["status"] == "True")
        {
            break conditions;
        }
        assert_ne!(event["type"], "DELETED");
    };
    let texts: Vec<&str> = conditions.iter().filter_map(|one| one["message"].as_str()).collect();
    assert!(texts.iter().any(|text| text.contains("example.org/stuck in 1 resource instances")), "{texts:?}");
    assert_eq!(admin.get(maps).await.ok()["items"].as_array().map(Vec::len), Some(1));
    let refused = admin.post(maps, &json!({"metadata": {"name": "late"}})).await;
    assert_eq!(refused.code, 403);
    admin.patch(&format!("{maps}/m500"), MERGE, &json!({"metadata": {"finalizers": null}})).await.ok();
    while events.told().await.0 != "DELETED" {}
    assert_eq!(admin.get("/api/v1/namespaces/full").await.code, 404);
}
