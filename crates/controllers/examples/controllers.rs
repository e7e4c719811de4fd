//! Runs a controller against a Kubernetes API: `cargo run -p controllers --example controllers -- operator|controllers KUBECONFIG`.

use api::AffinityNaming;
use controllers::operator;
use std::path::PathBuf;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let usage = "usage: controllers operator|controllers KUBECONFIG";
    let mut arguments = std::env::args_os().skip(1);
    let which = arguments.next().ok_or(usage)?;
    let kubeconfig = arguments.next().map(PathBuf::from).ok_or(usage)?;
    if which == "operator" {
        let node_networks = vec!["172.18.0.0/16".parse()?];
        let options =
            operator::Options { kubeconfig, node_networks, affinity_naming: AffinityNaming::PerBlock };
        operator::run(options).await?;
    } else {
        controllers::run(&datastore::backend::Settings::kubernetes(Some(kubeconfig))).await?;
    }
    Ok(())
}
