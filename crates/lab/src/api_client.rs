//! How the lab's own parts reach the API server: a kubeconfig file with a client certificate.

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::path::Path;

/// A client with the credentials of `kubeconfig`.
///
/// # Errors
/// When the file cannot be read or its certificates cannot be used; nothing is sent yet.
pub async fn connect(kubeconfig: &Path) -> Result<kube::Client> {
    let file =
        Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("using {}", kubeconfig.display()))?;
    // A watch may be silent for minutes; writes are answered within seconds or not at all.
    config.read_timeout = None;
    config.connect_timeout = Some(std::time::Duration::from_secs(5));
    kube::Client::try_from(config).with_context(|| format!("using {}", kubeconfig.display()))
}
