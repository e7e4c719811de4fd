//! Who is let in: certificates, tokens, and what a role allows.

use crate::server::{KubeApiserver, TOKEN, create, define_older_group};
use crate::{handle, one};
use datastore::{CommitError, Datastore, Kind, ReadError, Scope, Write};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_tokens_let_in_as_far_as_their_roles_go() {
    let Some(server) = KubeApiserver::start().await else { return };
    let admin = server.driver("admin").await;
    define_older_group(&admin).await;
    let handles = Scope::All(Kind::Handle);
    for user in ["stranger", "token", "nobody"] {
        let refused = server.driver(user).await.list(&handles).await;
        assert!(matches!(refused, Err(ReadError::Forbidden { .. })), "{user}: {refused:?}");
        let refused = one(&server.driver(user).await, Write::Create(handle("h", 1))).await;
        assert!(matches!(refused, Err(CommitError::Refused { written: 0, .. })), "{user}: {refused:?}");
    }
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "ipam"},
        "rules": [{"apiGroups": ["crd.projectcalico.org"], "resources": ["ipamhandles"], "verbs": ["get", "list", "watch"]}]});
    create(&admin, "/apis/rbac.authorization.k8s.io/v1/clusterroles", role.to_string()).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "ipam"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "ipam"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "reader"},
            {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "stranger"}]});
    create(&admin, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding.to_string()).await;
    let version = one(&admin, Write::Create(handle("h", 1))).await.unwrap();
    for user in ["stranger", "token"] {
        let reader = server.driver(user).await;
        // The server learns of roles by a watch of its own.
        let listing = loop {
            match reader.list(&handles).await {
                Ok(listing) => break listing,
                Err(ReadError::Forbidden { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{user}: {error}"),
            }
        };
        assert_eq!(listing.items.len(), 1, "{user}");
        let refused = one(&reader, Write::Update(handle("h", 2), version.clone())).await;
        assert!(
            matches!(&refused, Err(CommitError::Refused { reason, written: 0, .. }) if reason.contains("cannot update")),
            "{user}: {refused:?}"
        );
    }
    // A token that the server does not know is refused, which is no proof that the collection is empty.
    let config = server.kubeconfig("token");
    let text = std::fs::read_to_string(&config).unwrap().replace(TOKEN, "another");
    std::fs::write(&config, text).unwrap();
    let unknown = datastore::kubernetes::Kubernetes::connect(Some(&config)).await.unwrap();
    let refused = unknown.list(&handles).await;
    assert!(matches!(refused, Err(ReadError::Forbidden { .. })), "{refused:?}");
}
