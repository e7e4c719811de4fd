//! Line 2: what kubectl takes from OpenAPI, in both of its versions.

use crate::kubectl::{Kubectl, all};
use crate::support::Lab;
use bytes::Bytes;
use http::Method;
use std::path::Path;

#[tokio::test(flavor = "multi_thread")]
async fn line_02_every_kubectl_creates_applies_and_explains() {
    let lab = Lab::start().await;
    documents(&lab).await;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/operator-crds.yaml");
    let mut first = true;
    for program in all() {
        let kubectl = Kubectl::new(&lab, &program).cold();
        if std::mem::take(&mut first) {
            kubectl.run(&format!("kubectl create -f {}", manifest.display())).await;
        }
        let version = program.minor;
        let named = |kind: &str, name: &str, rest: &str| {
            format!(
                "<<'EOF'\n{{\"apiVersion\":\"v1\",\"kind\":\"{kind}\",\"metadata\":{{\"name\":\"{name}\"}}{rest}}}\nEOF"
            )
        };
        let map = named("ConfigMap", &format!("made-{version}"), r#","data":{"a":"b"}"#);
        let made = kubectl.run(&format!("kubectl create -f - {map}")).await;
        assert_eq!(made, format!("configmap/made-{version} created\n"));
        let unknown = named("ConfigMap", &format!("strict-{version}"), r#","dada":{"a":"b"}"#);
        let refused = kubectl.shell(&format!("kubectl create -f - {unknown}")).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("unknown field \"dada\""), "1.{version}: {said}");
        let applied = named("ConfigMap", &format!("applied-{version}"), r#","data":{"a":"b"}"#);
        for wanted in ["created", "unchanged"] {
            let shown = kubectl.run(&format!("kubectl apply -f - {applied}")).await;
            assert_eq!(shown, format!("configmap/applied-{version} {wanted}\n"));
        }
        for (what, fields) in [
            ("pod.spec.containers", &["image", "livenessProbe", "volumeMounts"][..]),
            ("ippool.spec", &["cidr", "blockSize", "nodeSelector"]),
            ("deployment.spec.strategy", &["rollingUpdate", "type"]),
        ] {
            let explained = kubectl.run(&format!("kubectl explain {what}")).await;
            assert!(
                explained.starts_with("KIND:") || explained.starts_with("GROUP:"),
                "1.{version}: {explained}"
            );
            for field in fields {
                assert!(
                    explained.lines().any(|line| line.trim_start().starts_with(&format!("{field}\t"))),
                    "1.{version}: {what}.{field} is not explained: {explained}"
                );
            }
        }
        let all = kubectl.run("kubectl explain pod --recursive").await;
        assert!(all.contains("terminationGracePeriodSeconds"), "1.{version}: {all}");
    }
}

async fn documents(lab: &Lab) {
    let admin = lab.admin();
    let protobuf = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let second = admin.send(Method::GET, "/openapi/v2", &[("accept", protobuf)], Bytes::new()).await;
    assert_eq!((second.code, &second.headers["content-type"]), (200, &protobuf.parse().unwrap()));
    assert!(admin.get("/openapi/v2").await.ok()["swagger"].is_string());
    let index = admin.get("/openapi/v3").await.ok();
    for (group, place) in index["paths"].as_object().unwrap() {
        let document = admin.get(place["serverRelativeURL"].as_str().unwrap()).await.ok();
        assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")), "{group}");
    }
}
