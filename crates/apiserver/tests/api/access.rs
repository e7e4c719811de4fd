//! Who is let in, and to what.

use crate::support::{Authority, Lab, MERGE};
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
    assert_eq!(asked.code, 403, "she has no role that lets her impersonate");
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

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

async fn bind(admin: &crate::support::Client, name: &str, role: &str, user: &str) {
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
    });
    admin.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.ok();
}

#[tokio::test]
async fn who_may_impersonate_says_his_role() {
    let lab = Lab::start().await;
    let (admin, bob) = (lab.admin(), lab.client("bob", &[]));
    let role = json!({"metadata": {"name": "acts"}, "rules": [
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["ann"]},
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["serviceaccounts"]}]});
    admin.post(&format!("{RBAC}/clusterroles"), &role).await.ok();
    bind(&admin, "acts", "acts", "bob").await;
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let as_whom = async |headers: &[(&str, &str)]| bob.send(Method::POST, who, headers, "{}".into()).await;
    let ann = as_whom(&[("impersonate-user", "ann")]).await.ok();
    assert_eq!(ann["status"]["userInfo"]["username"], "ann");
    assert_eq!(as_whom(&[("impersonate-user", "carl")]).await.code, 403);
    assert_eq!(
        as_whom(&[("impersonate-user", "ann"), ("impersonate-group", "system:masters")]).await.code,
        403
    );
    assert_eq!(as_whom(&[("impersonate-user", "ann"), ("impersonate-extra-x", "y")]).await.code, 400);
    let account = as_whom(&[("impersonate-user", "system:serviceaccount:default:robot")]).await.ok();
    let groups = account["status"]["userInfo"]["groups"].as_array().unwrap();
    assert!(groups.contains(&json!("system:serviceaccounts:default")), "{groups:?}");
}

#[tokio::test]
async fn a_change_of_the_roles_holds_at_once() {
    let lab = Lab::start().await;
    let (admin, ann) = (lab.admin(), lab.client("ann", &[]));
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(ann.get(maps).await.code, 403);
    bind(&admin, "sees", "view", "ann").await;
    ann.get(maps).await.ok();
    assert_eq!(ann.get("/api/v1/namespaces/default/secrets").await.code, 403, "who views sees no secrets");
    assert_eq!(ann.post(maps, &json!({"metadata": {"name": "m"}})).await.code, 403);
    admin.delete(&format!("{RBAC}/clusterrolebindings/sees")).await.ok();
    assert_eq!(ann.get(maps).await.code, 403);
    // What is gathered from others follows them.
    bind(&admin, "edits", "edit", "ann").await;
    let cats = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
    assert_eq!(ann.get(cats).await.code, 403);
    let more = json!({
        "metadata": {"name": "more", "labels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}},
        "rules": [{"verbs": ["list"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"]}],
    });
    admin.post(&format!("{RBAC}/clusterroles"), &more).await.ok();
    ann.get(cats).await.ok();
}

#[tokio::test]
async fn a_kubelet_writes_its_own_node_lease_and_pods() {
    let lab = Lab::start().await;
    let (admin, kubelet) = (lab.admin(), lab.client("system:node:n1", &["system:nodes"]));
    let nodes = "/api/v1/nodes";
    kubelet.post(nodes, &json!({"metadata": {"name": "n1"}})).await.ok();
    let (code, message) = kubelet.post(nodes, &json!({"metadata": {"name": "n2"}})).await.refused();
    assert_eq!(
        (code, message.as_str()),
        (403, r#"nodes "n2" is forbidden: node "n1" is not allowed to modify node "n2""#)
    );
    admin.post(nodes, &json!({"metadata": {"name": "n2"}})).await.ok();
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    kubelet.patch(&format!("{nodes}/n1"), crate::support::MERGE, &label).await.ok();
    assert_eq!(kubelet.patch(&format!("{nodes}/n2"), crate::support::MERGE, &label).await.code, 403);
    assert_eq!(
        kubelet.patch(&format!("{nodes}/n2/status"), crate::support::MERGE, &json!({})).await.code,
        403
    );
    let pods = "/api/v1/namespaces/default/pods";
    for (name, node) in [("mine", "n1"), ("other", "n2")] {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
        admin.post(pods, &pod).await.ok();
    }
    let running = json!({"status": {"phase": "Running"}});
    kubelet.patch(&format!("{pods}/mine/status"), crate::support::MERGE, &running).await.ok();
    assert_eq!(
        kubelet.patch(&format!("{pods}/other/status"), crate::support::MERGE, &running).await.code,
        403
    );
    assert_eq!(kubelet.delete(&format!("{pods}/other")).await.code, 403);
    let free = json!({"metadata": {"name": "free"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(kubelet.post(pods, &free).await.code, 403, "only mirrors of its own pods");
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    kubelet.post(leases, &json!({"metadata": {"name": "n1"}})).await.ok();
    assert_eq!(kubelet.post(leases, &json!({"metadata": {"name": "n2"}})).await.code, 403);
    assert_eq!(kubelet.get(&format!("{RBAC}/clusterroles")).await.code, 403);
}

#[tokio::test]
async fn an_administrator_of_a_namespace_cannot_make_himself_one_of_the_cluster() {
    let lab = Lab::start().await;
    let (admin, ann) = (lab.admin(), lab.client("ann", &[]));
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let binding = |role: &str| {
        json!({
            "metadata": {"name": role}, "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        })
    };
    let here = format!("{rbac}/namespaces/default");
    admin.post(&format!("{here}/rolebindings"), &binding("admin")).await.ok();
    ann.post(&format!("{here}/rolebindings"), &binding("edit")).await.ok();
    let (code, message) =
        ann.post(&format!("{here}/rolebindings"), &binding("cluster-admin")).await.refused();
    assert_eq!(code, 403);
    assert!(message.contains("is attempting to grant RBAC permissions not currently held"), "{message}");
    let role = |name: &str, resource: &str| json!({"metadata": {"name": name}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]});
    ann.post(&format!("{here}/roles"), &role("pods", "pods")).await.ok();
    assert_eq!(ann.post(&format!("{here}/roles"), &role("nodes", "nodes")).await.code, 403);
    let more = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": role("pods", "*")["rules"]});
    for (media, query) in [(MERGE, ""), ("application/apply-patch+yaml", "?fieldManager=ann&force=true")] {
        assert_eq!(ann.patch(&format!("{here}/roles/pods{query}"), media, &more).await.code, 403, "{media}");
    }
    assert_eq!(ann.get(&format!("{here}/roles/pods")).await.ok()["rules"], role("pods", "pods")["rules"]);
    // She who may bind it, may.
    let binder = json!({"metadata": {"name": "binder"}, "rules": [
        {"verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"],
         "resourceNames": ["cluster-admin"]}]});
    admin.post(&format!("{rbac}/clusterroles"), &binder).await.ok();
    admin.post(&format!("{here}/rolebindings"), &binding("binder")).await.ok();
    ann.post(&format!("{here}/rolebindings"), &binding("cluster-admin")).await.ok();
}

#[tokio::test]
async fn a_kubelet_reads_and_becomes_only_what_its_pods_need() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let kubelet = |node: &str| lab.client(&format!("system:node:{node}"), &["system:nodes"]);
    let (own, other) = (kubelet("n1"), kubelet("n2"));
    let space = "/api/v1/namespaces/default";
    for name in ["word", "file", "pull", "unused"] {
        admin.post(&format!("{space}/secrets"), &json!({"metadata": {"name": name}, "data": {}})).await.ok();
    }
    for name in ["runs", "default"] {
        let made =
            admin.post(&format!("{space}/serviceaccounts"), &json!({"metadata": {"name": name}})).await;
        assert!(made.code == 201 || made.code == 409);
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "nodeName": "n1", "serviceAccountName": "runs", "imagePullSecrets": [{"name": "pull"}],
        "volumes": [{"name": "v", "secret": {"secretName": "file"}}],
        "containers": [{"name": "c", "image": "i",
            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "word", "key": "k"}}}]}],
    }});
    let pod = admin.post(&format!("{space}/pods"), &pod).await.ok();
    for name in ["word", "file", "pull"] {
        own.get(&format!("{space}/secrets/{name}")).await.ok();
        assert_eq!(other.get(&format!("{space}/secrets/{name}")).await.code, 403, "{name}");
    }
    for path in ["secrets/unused", "secrets", "secrets?watch=true", "configmaps"] {
        assert_eq!(own.get(&format!("{space}/{path}")).await.code, 403, "{path}");
    }
    let bound = |name: &str, uid: &serde_json::Value| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}});
    let token = format!("{space}/serviceaccounts/runs/token");
    let uid = &pod["metadata"]["uid"];
    own.post(&token, &bound("p", uid)).await.ok();
    for (client, path, body) in [
        (&own, token.clone(), json!({})),
        (&own, token.clone(), bound("p", &json!("another"))),
        (&own, token.clone(), bound("q", uid)),
        (&own, format!("{space}/serviceaccounts/default/token"), bound("p", uid)),
        (&other, token.clone(), bound("p", uid)),
    ] {
        let (code, message) = client.post(&path, &body).await.refused();
        assert_eq!(code, 403, "{message}");
    }
    admin.post(&token, &json!({})).await.ok();
}

#[tokio::test]
async fn a_mirror_pod_gives_its_kubelet_neither_an_account_nor_a_secret() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let kubelet = lab.client("system:node:n1", &["system:nodes"]);
    let space = "/api/v1/namespaces/default";
    admin.post(&format!("{space}/secrets"), &json!({"metadata": {"name": "word"}, "data": {}})).await.ok();
    for name in ["strong", "default"] {
        let made =
            admin.post(&format!("{space}/serviceaccounts"), &json!({"metadata": {"name": name}})).await;
        assert!(made.code == 201 || made.code == 409);
    }
    let mirror = |name: &str, account: &str, volume: serde_json::Value| {
        json!({
            "metadata": {"name": name, "annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"nodeName": "n1", "serviceAccountName": account, "volumes": [volume],
                "containers": [{"name": "c", "image": "i"}]},
        })
    };
    let secret = json!({"name": "v", "secret": {"secretName": "word"}});
    let host = json!({"name": "v", "hostPath": {"path": "/etc"}});
    let pods = format!("{space}/pods");
    assert_eq!(kubelet.post(&pods, &mirror("a", "strong", host.clone())).await.code, 403);
    assert_eq!(kubelet.post(&pods, &mirror("b", "", secret.clone())).await.code, 403);
    // One of its own has the account that admission gives it, and no token of that; another's is no way either.
    let own = kubelet.post(&pods, &mirror("own", "", host)).await.ok();
    let given = admin.post(&pods, &mirror("given", "strong", secret)).await.ok();
    for (account, pod) in [("default", &own), ("strong", &given)] {
        let bound = json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod",
            "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}}});
        let token = format!("{space}/serviceaccounts/{account}/token");
        assert_eq!(kubelet.post(&token, &bound).await.code, 403, "{account}");
    }
    assert_eq!(kubelet.get(&format!("{space}/secrets/word")).await.code, 403);
    let bare = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": null}}});
    assert_eq!(kubelet.patch(&format!("{pods}/own/status"), MERGE, &bare).await.code, 403);
    kubelet.patch(&format!("{pods}/own/status"), MERGE, &json!({"status": {"phase": "Running"}})).await.ok();
}
