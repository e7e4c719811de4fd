//! Creating and changing.

use crate::support::{JSON_PATCH, Lab, MERGE};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

#[tokio::test]
async fn an_object_is_created_once_and_read_back() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let created = admin.post(MAPS, &map("m")).await;
    assert_eq!(created.code, 201);
    let object = created.ok();
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        assert!(object["metadata"][field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
    }
    assert_eq!(object["metadata"]["namespace"], "default");
    assert_eq!(admin.get(&format!("{MAPS}/m")).await.ok(), object);
    assert_eq!(admin.post(MAPS, &map("m")).await.refused(), (409, r#"configmaps "m" already exists"#.into()));
    let nowhere = admin.post("/api/v1/namespaces/nowhere/configmaps", &map("m")).await;
    assert_eq!(nowhere.refused(), (404, r#"namespaces "nowhere" not found"#.into()));
}

#[tokio::test]
async fn generated_names_differ_and_a_dry_run_stores_nothing() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let template = json!({"metadata": {"generateName": "g-"}});
    let one = admin.post(MAPS, &template).await.ok();
    let two = admin.post(MAPS, &template).await.ok();
    assert_ne!(one["metadata"]["name"], two["metadata"]["name"]);
    assert!(one["metadata"]["name"].as_str().unwrap().starts_with("g-"));
    let dry = admin.post(&format!("{MAPS}?dryRun=All"), &map("dry")).await;
    assert_eq!((dry.code, dry.ok()["metadata"]["name"].as_str()), (201, Some("dry")));
    assert_eq!(admin.get(&format!("{MAPS}/dry")).await.code, 404);
}

#[tokio::test]
async fn a_stale_put_is_refused_and_an_equal_one_changes_nothing() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let first = admin.post(MAPS, &map("m")).await.ok();
    let path = format!("{MAPS}/m");
    assert_eq!(admin.put(&path, &first).await.ok(), first, "nothing changed, so neither did the revision");
    let mut next = first.clone();
    next["data"]["a"] = "2".into();
    let second = admin.put(&path, &next).await.ok();
    assert_ne!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let (code, message) = admin.put(&path, &next).await.refused();
    assert_eq!(code, 409);
    assert_eq!(
        message,
        r#"Operation cannot be fulfilled on configmaps "m": the object has been modified; please apply your changes to the latest version and try again"#
    );
    next["metadata"]["uid"] = "other".into();
    next["metadata"]["resourceVersion"] = Value::Null;
    assert_eq!(admin.put(&path, &next).await.code, 409);
}

#[tokio::test]
async fn patches_without_a_condition_never_lose_each_other() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(MAPS, &map("m")).await.ok();
    let path = format!("{MAPS}/m");
    let patches: Vec<_> = (0..40)
        .map(|number| {
            let (admin, path) = (admin.clone(), path.clone());
            tokio::spawn(async move {
                let patch = json!({"data": {format!("k{number}"): "x"}});
                admin.patch(&path, MERGE, &patch).await.ok();
            })
        })
        .collect();
    for patch in patches {
        patch.await.unwrap();
    }
    assert_eq!(admin.get(&path).await.ok()["data"].as_object().unwrap().len(), 41);
}

#[tokio::test]
async fn of_many_puts_with_one_revision_one_wins() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let seen = admin.post(MAPS, &map("m")).await.ok();
    let puts: Vec<_> = (0..30)
        .map(|number| {
            let (admin, mut object) = (admin.clone(), seen.clone());
            object["data"]["a"] = format!("n{number}").into();
            tokio::spawn(async move { admin.put(&format!("{MAPS}/m"), &object).await.code })
        })
        .collect();
    let mut codes = Vec::new();
    for put in puts {
        codes.push(put.await.unwrap());
    }
    codes.sort_unstable();
    assert_eq!((codes[0], codes[1]), (200, 409));
}

#[tokio::test]
async fn patches_can_be_conditional_and_are_judged_by_their_kind() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    admin.post(MAPS, &map("m")).await.ok();
    let path = format!("{MAPS}/m");
    let stale = json!({"metadata": {"resourceVersion": "1"}, "data": {"b": "2"}});
    assert_eq!(admin.patch(&path, MERGE, &stale).await.code, 409);
    let failing = json!([{"op": "test", "path": "/data/a", "value": "9"}]);
    assert_eq!(admin.patch(&path, JSON_PATCH, &failing).await.code, 422);
    let change = json!([{"op": "add", "path": "/data/b", "value": "2"}]);
    assert_eq!(admin.patch(&path, JSON_PATCH, &change).await.ok()["data"], json!({"a": "1", "b": "2"}));
    assert_eq!(admin.patch(&path, "text/plain", &change).await.code, 415);
    let renamed = json!({"metadata": {"name": "other"}});
    assert_eq!(admin.patch(&path, MERGE, &renamed).await.code, 400);
}

#[tokio::test]
async fn the_status_of_a_pod_is_written_apart() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "busybox"}]},
                     "status": {"phase": "Running"}});
    let created = admin.post(pods, &pod).await.ok();
    assert_eq!(created["status"]["phase"], "Pending");
    assert_eq!(created["spec"]["serviceAccountName"], "default");
    let patch = json!({"status": {"phase": "Running"}, "metadata": {"labels": {"a": "b"}}});
    let main = admin.patch(&format!("{pods}/p"), MERGE, &patch).await.ok();
    assert_eq!(
        (&main["status"]["phase"], &main["metadata"]["labels"]["a"]),
        (&json!("Pending"), &json!("b"))
    );
    let changed = admin.patch(&format!("{pods}/p/status"), MERGE, &patch).await.ok();
    assert_eq!(changed["status"]["phase"], "Running");
    let moved = json!({"spec": {"nodeName": "n"}});
    assert_eq!(admin.patch(&format!("{pods}/p"), MERGE, &moved).await.code, 422);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}});
    admin.post(pods, &pod).await.ok();
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    admin.post(&format!("{pods}/p/binding"), &binding).await.ok();
    let bound = admin.get(&format!("{pods}/p")).await.ok();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(admin.post(&format!("{pods}/p/binding"), &binding).await.code, 409);
}

#[tokio::test]
async fn services_get_addresses_of_their_own() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let services = "/api/v1/namespaces/default/services";
    let kubernetes = admin.get(&format!("{services}/kubernetes")).await.ok();
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let ports = json!([{"port": 53}]);
    let dns = service("dns", json!({"ports": ports, "clusterIP": "10.96.0.10"}));
    admin.post(services, &dns).await.ok();
    let again = service("dns2", json!({"ports": ports, "clusterIP": "10.96.0.10"}));
    assert_eq!(admin.post(services, &again).await.code, 422);
    let node = service("node", json!({"ports": ports, "type": "NodePort"}));
    let node = admin.post(services, &node).await.ok();
    assert!(node["spec"]["ports"][0]["nodePort"].as_u64().unwrap() >= 30_000);
    let address = node["spec"]["clusterIP"].as_str().unwrap().to_owned();
    admin.delete(&format!("{services}/node")).await.ok();
    let taken = service("next", json!({"ports": ports, "clusterIP": address}));
    admin.post(services, &taken).await.ok();
}

#[tokio::test]
async fn node_ports_stay_with_their_port_and_are_free_afterwards() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let services = "/api/v1/namespaces/default/services";
    let spec = json!({"type": "NodePort", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]});
    let created = admin.post(services, &json!({"metadata": {"name": "s"}, "spec": spec})).await.ok();
    let node_port = |service: &Value, at: usize| service["spec"]["ports"][at]["nodePort"].clone();
    let path = format!("{services}/s");
    let mut wanted = created.clone();
    wanted["spec"]["ports"] = json!([{"name": "b", "port": 81}, {"name": "c", "port": 82}]);
    let changed = admin.put(&path, &wanted).await.ok();
    assert_eq!(node_port(&changed, 0), node_port(&created, 1));
    let freed = json!([{"port": 90, "nodePort": node_port(&created, 0)}]);
    let other = json!({"metadata": {"name": "t"}, "spec": {"type": "NodePort", "ports": freed}});
    admin.post(services, &other).await.ok();
    let taken = json!([{"port": 91, "nodePort": node_port(&changed, 0)}]);
    let third = json!({"metadata": {"name": "u"}, "spec": {"type": "NodePort", "ports": taken}});
    assert_eq!(admin.post(services, &third).await.code, 422);
}

#[tokio::test]
async fn the_scale_of_a_workload_is_read_and_written() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}},
    }});
    let created = admin.post(deployments, &deployment).await.ok();
    assert_eq!((&created["spec"]["replicas"], &created["metadata"]["generation"]), (&json!(1), &json!(1)));
    let path = format!("{deployments}/d/scale");
    let scale = admin.patch(&path, MERGE, &json!({"spec": {"replicas": 3}})).await.ok();
    assert_eq!(scale["spec"]["replicas"], 3);
    assert_eq!(scale["status"]["selector"], "app=d");
    let read = admin.get(&path).await.ok();
    let mut wanted = read.clone();
    wanted["spec"]["replicas"] = 5.into();
    admin.put(&path, &wanted).await.ok();
    assert_eq!(admin.put(&path, &wanted).await.code, 409, "the scale read before is stale now");
    let now = admin.get(&format!("{deployments}/d")).await.ok();
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(5), &json!(3)));
    assert_eq!(admin.patch(&path, MERGE, &json!({"spec": {"replicas": -1}})).await.code, 422);
}

#[tokio::test]
async fn events_are_one_store_with_two_faces() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let event = json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
                       "note": "said", "reason": "R", "type": "Normal", "reportingController": "c",
                       "reportingInstance": "i", "action": "A", "eventTime": "2026-11-21T00:00:00.000000Z"});
    let own = "/apis/events.k8s.io/v1/namespaces/default/events";
    assert_eq!(admin.post(own, &event).await.ok()["note"], "said");
    let core = admin.get("/api/v1/namespaces/default/events/e").await.ok();
    assert_eq!((&core["message"], &core["involvedObject"]["name"]), (&json!("said"), &json!("p")));
    let found =
        admin.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp").await.ok();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    let patched = admin.patch(&format!("{own}/e"), MERGE, &json!({"note": "again"})).await.ok();
    assert_eq!(patched["note"], "again");
}

#[tokio::test]
async fn bodies_that_are_not_objects_are_refused() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let json = [("content-type", "application/json")];
    for (headers, body, code) in [
        (json, "{", 400),
        (json, "[]", 400),
        ([("content-type", "application/cbor")], "{}", 415),
        ([("content-type", "application/yaml")], "a: [", 400),
        ([("content-encoding", "gzip")], "no gzip", 400),
        ([("content-type", "application/vnd.kubernetes.protobuf")], "no protobuf", 400),
    ] {
        assert_eq!(admin.send(Method::POST, MAPS, &headers, body.into()).await.code, code, "{body}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(admin.send(Method::POST, MAPS, &json, deep.into()).await.code, 400);
    let large = Bytes::from(vec![b' '; 5 << 20]);
    assert_eq!(admin.send(Method::POST, MAPS, &json, large).await.code, 413);
    let yaml = "kind: ConfigMap\nmetadata:\n  name: yam\ndata: {on: 'yes'}\n";
    let created = admin.send(Method::POST, MAPS, &[("content-type", "application/yaml")], yaml.into()).await;
    assert_eq!(created.ok()["data"]["on"], "yes");
}
