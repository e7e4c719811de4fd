//! Several writes of custom resources that are made together or not at all.

use crate::support::{Client, Lab};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const BOXES: &str = "/apis/example.org/v1/boxes";
const COMMITS: &str = "/apis/tortie.io/v1/commits";

async fn define(admin: &Client) {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}}}});
    let definition = json!({"metadata": {"name": "boxes.example.org"}, "spec": {
        "group": "example.org", "scope": "Cluster", "names": {"plural": "boxes", "kind": "Box"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    admin.post(DEFINITIONS, &definition).await.ok();
}

fn named(name: &str, size: i64) -> Value {
    json!({"apiVersion": "example.org/v1", "kind": "Box", "metadata": {"name": name}, "spec": {"size": size}})
}

fn commit(checks: &Value, writes: &Value) -> Value {
    json!({"spec": {"checks": checks, "writes": writes}})
}

fn create(name: &str, size: i64) -> Value {
    json!({"verb": "create", "path": BOXES, "object": named(name, size)})
}

fn failed_item(refused: &Value) -> &str {
    let causes = refused["details"]["causes"].as_array().unwrap();
    let item = causes.iter().find(|cause| cause["reason"] == "FailedItem").unwrap();
    item["field"].as_str().unwrap()
}

#[tokio::test]
async fn discovery_tells_that_commits_are_taken() {
    let lab = Lab::start().await;
    let groups = lab.admin().get("/apis").await.ok();
    let found = groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == "tortie.io");
    assert!(found, "{groups}");
}

#[tokio::test]
async fn creates_updates_and_deletes_are_made_together_and_answered_in_order() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    define(&admin).await;
    let old = admin.post(BOXES, &named("old", 1)).await.ok();
    let mut kept = admin.post(BOXES, &named("kept", 1)).await.ok();
    let same = kept["metadata"]["resourceVersion"].clone();
    let mut grown = admin.post(BOXES, &named("grown", 1)).await.ok();
    grown["spec"]["size"] = 2.into();
    kept["metadata"]["labels"] = json!({});
    let writes = json!([
        {"verb": "update", "path": format!("{BOXES}/kept"), "object": kept},
        create("new", 5),
        {"verb": "update", "path": format!("{BOXES}/grown"), "object": grown},
        {"verb": "delete", "path": format!("{BOXES}/old"), "uid": old["metadata"]["uid"],
         "resourceVersion": old["metadata"]["resourceVersion"]},
    ]);
    let checks = json!([{"path": format!("{BOXES}/none")}, {"path": format!("{BOXES}/kept"), "resourceVersion": same}]);
    let made = admin.post(COMMITS, &commit(&checks, &writes)).await.ok();
    let results = &made["status"]["results"];
    assert_eq!(results[0]["resourceVersion"], same, "what is the same takes no revision");
    for (index, name) in [(1, "new"), (2, "grown")] {
        let metadata = admin.get(&format!("{BOXES}/{name}")).await.ok()["metadata"].clone();
        assert_eq!(results[index]["resourceVersion"], metadata["resourceVersion"]);
        assert_eq!(results[index]["uid"], metadata["uid"]);
    }
    assert_eq!(admin.get(&format!("{BOXES}/grown")).await.ok()["spec"]["size"], 2);
    assert_eq!(admin.get(&format!("{BOXES}/old")).await.code, 404);
}

#[tokio::test]
async fn one_refused_item_is_named_and_nothing_is_done() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    define(&admin).await;
    let there = admin.post(BOXES, &named("there", 1)).await.ok();
    let mut stale = there.clone();
    stale["metadata"]["resourceVersion"] = "1".into();
    let path = format!("{BOXES}/there");
    for (checks, second, code, item) in [
        (json!([]), create("there", 1), 409, "spec.writes[1]"),
        (json!([]), create("small", 0), 422, "spec.writes[1]"),
        (json!([]), create("a", 2), 400, "spec.writes[1]"),
        (json!([]), json!({"verb": "update", "path": path, "object": stale}), 409, "spec.writes[1]"),
        (json!([]), json!({"verb": "delete", "path": path, "uid": "another"}), 409, "spec.writes[1]"),
        (json!([]), json!({"verb": "delete", "path": format!("{BOXES}/none")}), 404, "spec.writes[1]"),
        (
            json!([]),
            json!({"verb": "create", "path": "/api/v1/namespaces", "object": {}}),
            400,
            "spec.writes[1]",
        ),
        (json!([]), json!({"verb": "patch", "path": path}), 400, "spec.writes[1]"),
        (json!([{"path": path}]), create("b", 1), 409, "spec.checks[0]"),
        (json!([{"path": path, "resourceVersion": "1"}]), create("b", 1), 409, "spec.checks[0]"),
    ] {
        let refused = admin.post(COMMITS, &commit(&checks, &json!([create("a", 1), second]))).await;
        assert_eq!(refused.code, code, "{second}: {}", refused.json());
        assert_eq!(failed_item(&refused.json()), item, "{second}");
        assert_eq!(admin.get(&format!("{BOXES}/a")).await.code, 404, "{second}");
    }
    assert_eq!(admin.get(&path).await.ok(), there);
}

#[tokio::test]
async fn a_commit_may_do_only_what_its_items_may() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    define(&admin).await;
    let role = json!({"metadata": {"name": "boxer"}, "rules": [
        {"apiGroups": ["tortie.io"], "resources": ["commits"], "verbs": ["create"]},
        {"apiGroups": ["example.org"], "resources": ["boxes"], "verbs": ["create"]}]});
    admin.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await.ok();
    let binding = json!({"metadata": {"name": "boxer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "boxer"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}]});
    admin.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await.ok();
    let jane = lab.client("jane", &[]);
    jane.post(COMMITS, &commit(&json!([]), &json!([create("a", 1)]))).await.ok();
    let delete = json!([create("b", 1), {"verb": "delete", "path": format!("{BOXES}/a")}]);
    let refused = jane.post(COMMITS, &commit(&json!([]), &delete)).await;
    assert_eq!((refused.code, failed_item(&refused.json())), (403, "spec.writes[1]"));
    let peek = commit(&json!([{"path": format!("{BOXES}/a")}]), &json!([create("b", 1)]));
    assert_eq!(jane.post(COMMITS, &peek).await.code, 403);
    let joe = lab.client("joe", &[]);
    assert_eq!(joe.post(COMMITS, &commit(&json!([]), &json!([create("b", 1)]))).await.code, 403);
    assert_eq!(admin.get(&format!("{BOXES}/b")).await.code, 404);
}

#[tokio::test]
async fn of_commits_that_need_the_same_record_exactly_one_is_made() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    define(&admin).await;
    let seen = admin.post(BOXES, &named("shared", 1)).await.ok();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..16_i64 {
        let client = lab.admin();
        let mut mine = seen.clone();
        mine["spec"]["size"] = (number + 2).into();
        let writes = json!([create(&format!("own-{number}"), 1),
            {"verb": "update", "path": format!("{BOXES}/shared"), "object": mine}]);
        tasks.spawn(async move { client.post(COMMITS, &commit(&json!([]), &writes)).await.code });
    }
    let codes = tasks.join_all().await;
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| matches!(code, 201 | 409)), "{codes:?}");
    assert_eq!(admin.get(BOXES).await.ok()["items"].as_array().unwrap().len(), 2);
}
