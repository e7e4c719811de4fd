//! Without a kubeconfig, in a pod: address, authority and token are where Kubernetes puts them.

#![expect(clippy::unwrap_used, reason = "tests")]

#[expect(dead_code, reason = "what only the tests of the driver need")]
mod embedded;
#[path = "../../datastore/tests/etcd/server.rs"]
#[expect(dead_code, reason = "what only the tests of etcd itself need")]
mod etcd;
#[path = "../../datastore/tests/kube_apiserver/server.rs"]
#[expect(dead_code, reason = "what only the tests of the driver need")]
mod server;

use datastore::kubernetes::Kubernetes;
use serde_json::{Value, json};
use server::{KubeApiserver, create};
use std::path::Path;
use std::process::{Command, Output};

/// Makes a service account that may read pools, and answers its token.
async fn token(store: &Kubernetes) -> String {
    let accounts = "/api/v1/namespaces/kube-system/serviceaccounts";
    create(store, accounts, json!({"metadata": {"name": "reader"}}).to_string()).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "reader"},
        "rules": [{"apiGroups": ["crd.projectcalico.org"], "resources": ["ippools"], "verbs": ["get", "list"]}]});
    create(store, "/apis/rbac.authorization.k8s.io/v1/clusterroles", role.to_string()).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "kube-system"}]});
    create(store, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding.to_string()).await;
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let answer = create(store, &format!("{accounts}/reader/token"), request.to_string()).await;
    answer["status"]["token"].as_str().unwrap().to_owned()
}

/// Runs calicoctl as in a pod: with a mount namespace of its own, in which the account's folder is.
fn in_a_pod(folder: &Path, port: &str, words: &str) -> Output {
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount \\
         && cp {0}/ca.crt {0}/token /run/secrets/kubernetes.io/serviceaccount/ \\
         && echo -n kube-system > /run/secrets/kubernetes.io/serviceaccount/namespace && exec {1} calicoctl {words}",
        folder.display(),
        env!("CARGO_BIN_EXE_tortie"),
    );
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .env_remove("KUBECONFIG")
        .env_remove("DATASTORE_TYPE")
        .env_remove("ETCD_ENDPOINTS")
        .env("HOME", folder)
        .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        .env("KUBERNETES_SERVICE_PORT", port)
        .output()
        .unwrap()
}

async fn reads_in_a_pod(kubeconfig: &Path) {
    let store = Kubernetes::connect(Some(kubeconfig)).await.unwrap();
    server::define_older_group(&store).await;
    let pool = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "in-a-pod"},
        "spec": {"cidr": "10.7.0.0/16", "blockSize": 26, "nodeSelector": "all()"}});
    create(&store, "/apis/crd.projectcalico.org/v1/ippools", pool.to_string()).await;
    let folder = tempfile::tempdir().unwrap();
    let config: Value = serde_json::from_slice(&std::fs::read(kubeconfig).unwrap()).unwrap();
    let text = |pointer: &str| config.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    std::fs::copy(text("/clusters/0/cluster/certificate-authority"), folder.path().join("ca.crt")).unwrap();
    let server = text("/clusters/0/cluster/server");
    let port = server.rsplit(':').next().unwrap();

    // A token that nobody gave out is refused.
    std::fs::write(folder.path().join("token"), "nonsense").unwrap();
    let refused = in_a_pod(folder.path(), port, "get ippool");
    assert!(!refused.status.success(), "{refused:?}");

    std::fs::write(folder.path().join("token"), token(&store).await).unwrap();
    // A server learns of roles by a watch of its own.
    let shown = loop {
        let shown = in_a_pod(folder.path(), port, "get ippool");
        let why = String::from_utf8_lossy(&shown.stderr).into_owned();
        if shown.status.success() || !why.contains("not permitted") {
            break shown;
        }
    };
    assert!(shown.status.success(), "{shown:?}");
    let table = String::from_utf8(shown.stdout).unwrap();
    assert!(table.contains("in-a-pod") && table.contains("10.7.0.0/16"), "{table}");
    let written = in_a_pod(folder.path(), port, "datastore migrate lock");
    let why = String::from_utf8_lossy(&written.stderr).into_owned();
    assert!(!written.status.success() && why.contains("clusterinformations"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_account_reads_from_the_embedded_server() {
    let folder = tempfile::tempdir().unwrap();
    reads_in_a_pod(&embedded::serve(folder.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_account_reads_from_a_real_kube_apiserver() {
    let Some(server) = KubeApiserver::start().await else { return };
    reads_in_a_pod(&server.kubeconfig("admin")).await;
}
