//! Lists: selectors, pages, forms.

use crate::support::{Client, Lab};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn fill(admin: &Client, count: usize) {
    for number in 0..count {
        let parity = if number % 2 == 0 { "even" } else { "odd" };
        let map = json!({"metadata": {"name": format!("m{number:02}"), "labels": {"parity": parity}}});
        admin.post(MAPS, &map).await.ok();
    }
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn pages_together_are_the_list_as_it_was_at_the_first() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    fill(&admin, 9).await;
    let mut seen = Vec::new();
    let mut page = admin.get(&format!("{MAPS}?limit=4")).await.ok();
    assert_eq!(page["metadata"]["remainingItemCount"], 6, "and the root certificate's map");
    let revision = page["metadata"]["resourceVersion"].clone();
    admin.post(MAPS, &json!({"metadata": {"name": "m07a"}})).await.ok();
    admin.delete(&format!("{MAPS}/m08")).await.ok();
    loop {
        seen.extend(names(&page));
        assert_eq!(page["metadata"]["resourceVersion"], revision);
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = admin.get(&format!("{MAPS}?limit=4&continue={token}")).await.ok();
    }
    let mut expected = vec!["kube-root-ca.crt".to_owned()];
    expected.extend((0..9).map(|number| format!("m{number:02}")));
    assert_eq!(seen, expected);
    assert_eq!(admin.get(&format!("{MAPS}?continue=bad")).await.code, 400);
}

#[tokio::test]
async fn selectors_choose_by_label_field_and_page() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    fill(&admin, 6).await;
    let list = |query: &str| {
        let (admin, path) = (admin.clone(), format!("{MAPS}?{query}"));
        async move { admin.get(&path).await }
    };
    assert_eq!(names(&list("labelSelector=parity%3Dodd").await.ok()), ["m01", "m03", "m05"]);
    assert_eq!(names(&list("fieldSelector=metadata.name%3Dm02").await.ok()), ["m02"]);
    let first = list("labelSelector=parity%3Dodd&limit=2").await.ok();
    assert_eq!(names(&first), ["m01", "m03"]);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = list(&format!("labelSelector=parity%3Dodd&limit=2&continue={token}")).await.ok();
    assert_eq!((names(&rest), rest["metadata"].get("continue")), (vec!["m05".to_owned()], None));
    assert_eq!(list("labelSelector=a%3D%3D%3Db").await.code, 400);
    assert_eq!(
        list("fieldSelector=data.x%3D1").await.refused(),
        (400, "field label not supported: data.x".into())
    );
}

#[tokio::test]
async fn a_list_from_the_future_is_asked_to_wait() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let answer = admin.get(&format!("{MAPS}?resourceVersion=1000000")).await;
    assert_eq!(answer.code, 504);
    assert_eq!(answer.json()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(admin.get(&format!("{MAPS}?resourceVersion=x")).await.code, 400);
}

#[tokio::test]
async fn one_list_has_many_forms() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let list = |accept: &'static str| {
        let admin = admin.clone();
        async move { admin.send(Method::GET, "/api/v1/namespaces", &[("accept", accept)], Bytes::new()).await }
    };
    let table = list("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await.ok();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "default");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = list("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0].get("spec"), None);
    let yaml = list("application/yaml").await;
    assert!(yaml.body.starts_with(b"apiVersion: v1\n"), "{:?}", yaml.body);
    assert_eq!(list("application/vnd.kubernetes.protobuf").await.code, 406);
    let plain = list("*/*").await.ok();
    assert_eq!(
        (plain["kind"].as_str(), plain["items"].as_array().unwrap().len()),
        (Some("NamespaceList"), 4)
    );
}

#[tokio::test]
async fn discovery_names_every_kind_that_can_be_listed() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    for root in ["/api", "/apis"] {
        let answer = admin.send(Method::GET, root, &[("accept", accept)], Bytes::new()).await;
        assert_eq!(answer.headers["content-type"], accept);
        for group in answer.ok()["items"].as_array().unwrap() {
            for version in group["versions"].as_array().unwrap() {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                let version_name = version["version"].as_str().unwrap();
                let base = if name.is_empty() {
                    "/api/v1".to_owned()
                } else {
                    format!("/apis/{name}/{version_name}")
                };
                let legacy = admin.get(&base).await.ok();
                assert_eq!(legacy["kind"], "APIResourceList");
                for resource in version["resources"].as_array().unwrap() {
                    if resource["verbs"].as_array().unwrap().iter().any(|verb| verb == "list") {
                        let plural = resource["resource"].as_str().unwrap();
                        admin.get(&format!("{base}/{plural}")).await.ok();
                    }
                }
            }
        }
    }
    let etag = admin.get("/apis").await.headers["etag"].clone();
    let again = [("if-none-match", etag.to_str().unwrap())];
    assert_eq!(admin.send(Method::GET, "/apis", &again, Bytes::new()).await.code, 304);
}

#[tokio::test]
async fn old_clients_get_an_empty_openapi_in_protobuf() {
    let lab = Lab::start().await;
    let accept = [("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")];
    let answer = lab.admin().send(Method::GET, "/openapi/v2", &accept, Bytes::new()).await;
    assert_eq!(answer.code, 200);
    assert_eq!(answer.headers["content-type"], "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
}
