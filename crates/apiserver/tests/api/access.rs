//! Who is let in, and to what.

use crate::support::{Authority, Lab};
use bytes::Bytes;
use http::Method;
use serde_json::json;

#[tokio::test]
async fn without_a_certificate_only_health_and_version_are_seen() {
    let lab = Lab::start().await;
    let nobody = lab.client_of(&lab.authority, None);
    assert_eq!(nobody.get("/readyz").await.body, "ok");
    assert_eq!(nobody.get("/version").await.ok()["gitVersion"], "v1.28.0");
    for path in ["/api/v1/pods", "/apis", "/openapi/v2", "/api/v1/namespaces/kube-system/secrets/x"] {
        assert_eq!(nobody.get(path).await.refused(), (401, "Unauthorized".into()), "{path}");
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_gets_no_connection() {
    let lab = Lab::start().await;
    let stranger = lab.client_of(&Authority::new(), Some(("admin", &["system:masters"])));
    assert!(stranger.try_send(Method::GET, "/version", &[], Bytes::new()).await.is_err());
}

#[tokio::test]
async fn others_do_what_their_roles_say() {
    let lab = Lab::start().await;
    let (admin, ann) = (lab.admin(), lab.client("ann", &["team"]));
    let (code, message) = ann.get("/api/v1/namespaces/default/pods").await.refused();
    assert_eq!(code, 403);
    assert_eq!(
        message,
        r#"pods is forbidden: User "ann" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]});
    admin.post(&format!("{rbac}/roles"), &role).await.ok();
    let binding = json!({
        "metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "Group", "name": "team", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    admin.post(&format!("{rbac}/rolebindings"), &binding).await.ok();
    ann.get("/api/v1/namespaces/default/pods").await.ok();
    assert_eq!(ann.get("/api/v1/namespaces/kube-system/pods").await.code, 403);
    let review =
        json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(ann.post(path, &review).await.ok()["status"]["allowed"], true);
    let asked = ann.send(Method::GET, "/api/v1/pods", &[("impersonate-user", "admin")], Bytes::new()).await;
    assert_eq!(asked.code, 403, "only the almighty impersonate");
    let as_ann = admin.send(Method::GET, "/api/v1/pods", &[("impersonate-user", "ann")], Bytes::new()).await;
    assert_eq!(as_ann.code, 403);
    for header in [("impersonate-group", "team"), ("impersonate-user", "\u{e4}nn"), ("impersonate-user", "")]
    {
        let asked = admin.send(Method::GET, "/api/v1/pods", &[header], Bytes::new()).await;
        assert_eq!(asked.code, 400, "{header:?} is not the sender's own request");
    }
}

#[tokio::test]
async fn a_token_holds_as_long_as_its_account() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    let issued = admin.post(&format!("{account}/token"), &json!({})).await.ok();
    let token = issued["status"]["token"].as_str().unwrap().to_owned();
    let mut pod = lab.client_of(&lab.authority, None);
    pod.bearer = Some(token.clone());
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = pod.post(who, &json!({})).await.ok();
    assert_eq!(answer["status"]["userInfo"]["username"], "system:serviceaccount:default:default");
    let mut forged = token.clone();
    forged.pop();
    pod.bearer = Some(forged);
    assert_eq!(pod.post(who, &json!({})).await.code, 401);
    pod.bearer = Some(token);
    admin.delete(account).await.ok();
    assert_eq!(pod.post(who, &json!({})).await.code, 401);
}

#[tokio::test]
async fn paths_that_climb_find_nothing() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    for path in
        ["/api/v1/namespaces/..%2f/pods", "/api/v1/../../etc/passwd", "/api/v1/pods/%2e%2e", "/nothing"]
    {
        assert_eq!(admin.get(path).await.code, 404, "{path}");
    }
}
