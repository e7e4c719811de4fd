//! The network configuration that makes a container runtime use this agent (cni §10): written when the agent can serve.
//!
//! It stays when the agent goes: a runtime that finds it asks, and is told to try again.

use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Name of the file, which makes it the first in the directory.
pub const FILE: &str = "10-calico.conflist";

/// Why the configuration was not written.
#[derive(Debug, thiserror::Error)]
#[error("the network configuration {path} cannot be written: make its directory writable")]
pub(crate) struct InstallError {
    /// The file.
    path: PathBuf,
    /// The cause.
    #[source]
    source: io::Error,
}

/// What the configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network<'a> {
    /// Name of the node, which the plugin passes on.
    pub(crate) node: &'a str,
    /// MTU of pods' interfaces in bytes.
    pub(crate) mtu: u32,
    /// Socket on which plugins reach this agent.
    pub(crate) agent_socket: &'a Path,
}

/// The configuration list.
pub(crate) fn conflist(network: &Network<'_>) -> Value {
    json!({
        "name": "k8s-pod-network",
        "cniVersion": "1.0.0",
        "plugins": [{
            "type": "calico",
            "datastore_type": "kubernetes",
            "nodename": network.node,
            "mtu": network.mtu,
            "ipam": {"type": "calico-ipam", "agent_socket": network.agent_socket},
            "policy": {"type": "k8s"},
        }],
    })
}

/// Writes the configuration so that a reader finds the old one or the new one, and answers whether it changed.
///
/// # Errors
/// [`InstallError`].
pub(crate) fn install(directory: &Path, network: &Network<'_>) -> Result<bool, InstallError> {
    let path = directory.join(FILE);
    let failed = |source| InstallError { path: path.clone(), source };
    let mut content = conflist(network).to_string();
    content.push('\n');
    if fs::read_to_string(&path).is_ok_and(|found| found == content) {
        return Ok(false);
    }
    fs::create_dir_all(directory).map_err(failed)?;
    // A name that no runtime takes for a configuration.
    let draft = directory.join(format!(".{FILE}.new"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&draft).map_err(failed)?;
    file.write_all(content.as_bytes()).map_err(failed)?;
    fs::rename(&draft, &path).map_err(failed)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_names_the_plugins_the_node_and_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let network = Network { node: "n1", mtu: 1450, agent_socket: Path::new("/run/tortie/ipam/n1.sock") };
        assert!(install(directory.path(), &network).unwrap());
        assert!(!install(directory.path(), &network).unwrap());
        let read: Value =
            serde_json::from_str(&fs::read_to_string(directory.path().join(FILE)).unwrap()).unwrap();
        assert_eq!(read["plugins"][0]["type"], "calico");
        assert_eq!(read["plugins"][0]["mtu"], 1450);
        assert_eq!(read["plugins"][0]["ipam"]["agent_socket"], "/run/tortie/ipam/n1.sock");
        assert!(install(directory.path(), &Network { mtu: 1400, ..network }).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
