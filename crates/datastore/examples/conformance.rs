//! Runs the checks of every driver against a Kubernetes API: `cargo run -p datastore --example conformance -- KUBECONFIG`.
//!
//! The definitions of `manifests/operator-crds.yaml` must be installed. The checks make records in the address ranges of
//! the documentation and take them away again.

use datastore::{Datastore, conformance, kubernetes::Kubernetes};
use std::path::PathBuf;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kubeconfig = std::env::args_os().nth(1).map(PathBuf::from);
    let store = Kubernetes::connect(kubeconfig.as_deref()).await?;
    conformance::run(&store).await?;
    tracing::info!(store = store.capabilities().name, "keeps the contract");
    Ok(())
}
