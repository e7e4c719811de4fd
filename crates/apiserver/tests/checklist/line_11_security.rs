//! Line 11: who gets in, and how far.

use crate::support::{Authority, Client, Lab};
use bytes::Bytes;
use http::Method;
use serde_json::json;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";

#[tokio::test(flavor = "multi_thread")]
async fn line_11_strangers_stay_out_and_users_within_their_roles() {
    let lab = Lab::start().await;
    without_or_with_a_wrong_certificate(&lab).await;
    users_see_what_their_roles_say(&lab).await;
    tokens_that_do_not_hold(&lab).await;
    paths_that_climb(&lab.admin()).await;
}

async fn without_or_with_a_wrong_certificate(lab: &Lab) {
    let nobody = lab.client_of(&lab.authority, None);
    for path in ["/api", "/apis", "/api/v1/nodes", "/openapi/v3", "/metrics", "/"] {
        assert_eq!(nobody.get(path).await.refused(), (401, "Unauthorized".into()), "{path}");
    }
    let stranger = lab.client_of(&Authority::new(), Some(("admin", &["system:masters"])));
    assert!(stranger.try_send(Method::GET, "/version", &[], Bytes::new()).await.is_err());
    let late = lab.expired_client("admin", &["system:masters"]);
    assert!(late.try_send(Method::GET, "/version", &[], Bytes::new()).await.is_err());
}

async fn users_see_what_their_roles_say(lab: &Lab) {
    let (admin, ann) = (lab.admin(), lab.client("ann", &[]));
    let role = json!({"metadata": {"name": "one-map"}, "rules": [
        {"verbs": ["get", "patch"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"]}]});
    admin.post(&format!("{RBAC}/roles"), &role).await.ok();
    let binding = json!({
        "metadata": {"name": "one-map"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "one-map"},
        "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    admin.post(&format!("{RBAC}/rolebindings"), &binding).await.ok();
    let maps = "/api/v1/namespaces/default/configmaps";
    for name in ["mine", "other"] {
        admin.post(maps, &json!({"metadata": {"name": name}})).await.ok();
    }
    ann.get(&format!("{maps}/mine")).await.ok();
    let merge = "application/merge-patch+json";
    ann.patch(&format!("{maps}/mine"), merge, &json!({"data": {"a": "b"}})).await.ok();
    let refusals = [
        ann.get(&format!("{maps}/other")).await,
        ann.get(maps).await,
        ann.get("/api/v1/configmaps").await,
        ann.get("/api/v1/namespaces/kube-system/configmaps/mine").await,
        ann.get(&format!("{maps}?watch=true")).await,
        ann.delete(&format!("{maps}/mine")).await,
        ann.put(&format!("{maps}/mine"), &json!({"metadata": {"name": "mine"}})).await,
        ann.post(maps, &json!({"metadata": {"name": "third"}})).await,
        ann.get("/api/v1/namespaces/default/pods/p/log").await,
        ann.post("/api/v1/namespaces/default/pods/p/exec?command=ls", &json!({})).await,
        ann.post("/api/v1/namespaces/default/serviceaccounts/default/token", &json!({})).await,
    ];
    for refused in refusals {
        assert_eq!(refused.code, 403, "{refused:?}");
        assert_eq!(refused.json()["reason"], "Forbidden");
    }
    // Whoever may not impersonate does not become somebody else by a header.
    let headers = [("impersonate-user", "admin"), ("impersonate-group", "system:masters")];
    assert_eq!(ann.send(Method::GET, maps, &headers, Bytes::new()).await.code, 403);
}

async fn tokens_that_do_not_hold(lab: &Lab) {
    let account = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let issued = lab.admin().post(account, &json!({})).await.ok();
    let token = issued["status"]["token"].as_str().unwrap().to_owned();
    let parts: Vec<&str> = token.split('.').collect();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", parts[1]);
    for wrong in
        [String::new(), "x".into(), unsigned, format!("{}.{}.", parts[0], parts[1]), "a".repeat(20_000)]
    {
        let mut client = lab.client_of(&lab.authority, None);
        client.bearer = Some(wrong.clone());
        assert_eq!(client.get("/api/v1/pods").await.code, 401, "{wrong:.40}");
    }
    let mut pod = lab.client_of(&lab.authority, None);
    pod.bearer = Some(token);
    assert_eq!(pod.get("/api/v1/pods").await.code, 403, "a token is somebody, and has its roles only");
}

async fn paths_that_climb(admin: &Client) {
    let up = [
        "/api/v1/namespaces/default/configmaps/..%2F..%2Fsecrets",
        "/api/v1/namespaces/../configmaps",
        "/api/v1/namespaces/default%2Fkube-system/configmaps",
        "/api/v1/namespaces/default/configmaps/%2e%2e",
        "/openapi/v3/../../etc/passwd",
        "//etc/passwd",
        "/api/v1/namespaces/default/pods/%00/log",
    ];
    for path in up {
        assert_eq!(admin.get(path).await.code, 404, "{path}");
    }
    let named = json!({"metadata": {"name": "../../kube-system/x"}});
    assert_eq!(admin.post("/api/v1/namespaces/default/configmaps", &named).await.code, 422);
}
