//! The Kubernetes driver over the embedded API server, by TLS with a client's certificate: the contract of every
//! driver, under both ways to name affinities.

#![expect(clippy::unwrap_used, reason = "tests")]

mod embedded;

use api::wire::Group;
use datastore::conformance::concurrent::{Deletes, history_is_linearizable};
use datastore::kubernetes::Kubernetes;
use datastore::{Datastore as _, conformance};
use embedded::{create, installed};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn driver_keeps_the_contract_over_the_embedded_server() {
    let folder = tempfile::tempdir().unwrap();
    let store = installed(folder.path()).await;
    conformance::run(&store).await.unwrap();
    assert!(store.capabilities().atomic_commit, "discovery says that commits are taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn driver_keeps_the_contract_over_the_plain_api_of_the_embedded_server() {
    let folder = tempfile::tempdir().unwrap();
    let store = Kubernetes::with_client(installed(folder.path()).await.client()).with_group(Group::V1);
    conformance::run(&store).await.unwrap();
    assert!(!store.capabilities().atomic_commit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn driver_keeps_the_contract_with_affinities_named_per_block() {
    let folder = tempfile::tempdir().unwrap();
    let store = installed(folder.path()).await;
    let record = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tortie-datastore"},
        "data": {"affinityNaming": "per-block"}});
    create(&store, "/api/v1/namespaces/kube-system/configmaps", &record).await;
    assert_eq!(store.naming().await, Ok(api::AffinityNaming::PerBlock));
    conformance::run(&store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_clients_of_the_embedded_server_are_linearizable() {
    let folder = tempfile::tempdir().unwrap();
    let first = installed(folder.path()).await;
    let mut clients = vec![first];
    while clients.len() < 8 {
        clients.push(Kubernetes::connect(Some(&folder.path().join("kubeconfig"))).await.unwrap());
    }
    let clients: Vec<&Kubernetes> = clients.iter().collect();
    history_is_linearizable(&clients, 10_000, Deletes::InPhases).await.unwrap();
}
