//! Watches: what is told, in which order, and when it ends.

use crate::support::{Lab, MERGE};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";

fn labelled(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"l": label}}})
}

fn told(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_from_a_list_tells_what_came_after_it() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(MAPS, &labelled("before", "a")).await.ok();
    let list = admin.get(MAPS).await.ok();
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = admin.watch(&format!("{MAPS}?watch=true&resourceVersion={revision}"), JSON).await;
    admin.post(MAPS, &labelled("m", "a")).await.ok();
    let changed = admin.patch(&format!("{MAPS}/m"), MERGE, &json!({"data": {"x": "y"}})).await.ok();
    admin.delete(&format!("{MAPS}/m")).await.ok();
    assert_eq!(events.told().await, told("ADDED", "m"));
    assert_eq!(events.next().await.unwrap(), json!({"type": "MODIFIED", "object": changed}));
    let gone = events.next().await.unwrap();
    assert_eq!((&gone["type"], &gone["object"]["data"]["x"]), (&json!("DELETED"), &json!("y")));
    let revision =
        |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(revision(&gone["object"]) > revision(&changed), "a deletion has a revision of its own");
}

#[tokio::test]
async fn entering_and_leaving_a_selection_is_adding_and_deleting() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(MAPS, &labelled("m", "a")).await.ok();
    let path = format!("{MAPS}?watch=true&labelSelector=l%3Db&resourceVersion=0");
    let mut events = admin.watch(&path, JSON).await;
    for label in ["b", "b2", "b"] {
        admin.patch(&format!("{MAPS}/m"), MERGE, &json!({"metadata": {"labels": {"l": label}}})).await.ok();
    }
    admin.patch(&format!("{MAPS}/m"), MERGE, &json!({"data": {"x": "y"}})).await.ok();
    let mut kinds = Vec::new();
    for _ in 0..4 {
        kinds.push(events.told().await.0);
    }
    assert_eq!(kinds, ["ADDED", "DELETED", "ADDED", "MODIFIED"]);
}

#[tokio::test]
async fn a_watch_of_one_object_begins_with_it_and_hears_nothing_of_others() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(MAPS, &labelled("m", "a")).await.ok();
    admin.post(MAPS, &labelled("m-2", "a")).await.ok();
    let path = format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Dm&resourceVersion=0");
    let mut events = admin.watch(&path, JSON).await;
    assert_eq!(events.told().await, told("ADDED", "m"));
    admin.delete(&format!("{MAPS}/m-2")).await.ok();
    admin.delete(&format!("{MAPS}/m")).await.ok();
    assert_eq!(events.told().await, told("DELETED", "m"));
}

#[tokio::test]
async fn initial_events_end_with_a_marked_bookmark() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let path = "/api/v1/namespaces?watch=true&sendInitialEvents=true&allowWatchBookmarks=true";
    let mut events = admin.watch(&format!("{path}&resourceVersionMatch=NotOlderThan"), JSON).await;
    for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
        assert_eq!(events.told().await, told("ADDED", name));
    }
    let mark = events.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(admin.get(path).await.code, 422, "it must say which revisions match");
}

#[tokio::test]
async fn a_watch_ends_after_its_time_with_a_bookmark() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let path = format!(
        "{MAPS}?watch=true&timeoutSeconds=1&allowWatchBookmarks=true&fieldSelector=metadata.name%3Dnone"
    );
    let mut events = admin.watch(&path, JSON).await;
    let last = events.next().await.unwrap();
    assert_eq!(
        (last["type"].as_str(), last["object"]["kind"].as_str()),
        (Some("BOOKMARK"), Some("ConfigMap"))
    );
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_watch_from_before_the_servers_memory_is_told_to_list_again() {
    let mut lab = Lab::start().await;
    let admin = lab.admin();
    let answer = admin.get(&format!("{MAPS}?watch=true&resourceVersion=99999999")).await;
    assert_eq!(answer.code, 504);
    let revision = admin.get(MAPS).await.ok()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let stored = admin.post(MAPS, &labelled("m", "a")).await.ok();
    lab.restart().await;
    assert_eq!(admin.get(&format!("{MAPS}/m")).await.ok(), stored, "what was answered is there afterwards");
    let mut events = admin.watch(&format!("{MAPS}?watch=true&resourceVersion={revision}"), JSON).await;
    let error = events.next().await.unwrap();
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(error["object"]["reason"], "Expired");
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn tables_are_watched_row_by_row() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let mut events = admin.watch("/api/v1/namespaces?watch=true", table).await;
    let first = events.next().await.unwrap();
    assert_eq!(first["object"]["kind"], "Table");
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "default");
    assert_eq!(events.next().await.unwrap()["object"]["columnDefinitions"], Value::Null);
}

#[tokio::test]
async fn many_watchers_hear_every_change_once() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let revision = admin.get(MAPS).await.ok()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let path = format!("{MAPS}?watch=true&resourceVersion={revision}");
    let mut watchers = Vec::new();
    for _ in 0..10 {
        let mut events = admin.watch(&path, JSON).await;
        watchers.push(tokio::spawn(async move {
            let mut names = Vec::new();
            while names.len() < 100 {
                names.push(events.told().await.1);
            }
            names
        }));
    }
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let admin = admin.clone();
            tokio::spawn(async move {
                for number in 0..25 {
                    admin.post(MAPS, &labelled(&format!("m{writer}-{number}"), "a")).await.ok();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut all = Vec::new();
    for watcher in watchers {
        all.push(watcher.await.unwrap());
    }
    assert!(all.iter().all(|names| *names == all[0]), "all hear the same order");
    let mut names = all[0].clone();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 100);
}
