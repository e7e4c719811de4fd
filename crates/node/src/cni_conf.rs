//! The network configuration that makes a container runtime use this agent (cni §10): written when the agent can serve.
//!
//! It stays when the agent goes: a runtime that finds it asks, and is told to try again.

use datastore::backend::{Settings, Store};
use datastore::etcd::{self, Pem};
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
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Network<'a> {
    /// Name of the node, which the plugin passes on.
    pub(crate) node: &'a str,
    /// MTU of pods' interfaces in bytes.
    pub(crate) mtu: u32,
    /// Socket on which plugins reach this agent.
    pub(crate) agent_socket: &'a Path,
    /// The datastore, which other plugins on this node may want to reach.
    pub(crate) datastore: &'a Settings,
}

/// The configuration list.
pub(crate) fn conflist(network: &Network<'_>) -> Value {
    let mut plugin = json!({
        "type": "calico",
        "datastore_type": "kubernetes",
        "nodename": network.node,
        "mtu": network.mtu,
        "ipam": {"type": "calico-ipam", "agent_socket": network.agent_socket},
        "policy": {"type": "k8s"},
    });
    if let (Store::Etcd(settings), Some(plugin)) = (&network.datastore.store, plugin.as_object_mut()) {
        plugin.insert("datastore_type".to_owned(), json!("etcdv3"));
        plugin.extend(etcd_keys(settings));
    }
    json!({"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [plugin]})
}

/// Calico's keys for etcd (cni §3.1). Certificates that are no files have none, nor have passwords.
fn etcd_keys(settings: &etcd::Settings) -> impl Iterator<Item = (String, Value)> {
    let file = |pem: Option<&Pem>| match pem {
        Some(Pem::File(path)) => Some(path.display().to_string()),
        _ => None,
    };
    let identity = settings.identity.as_ref();
    [
        ("etcd_endpoints", Some(settings.endpoints.join(","))),
        ("etcd_ca_cert_file", file(settings.authority.as_ref())),
        ("etcd_cert_file", file(identity.map(|(certificate, _)| certificate))),
        ("etcd_key_file", file(identity.map(|(_, key)| key))),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), json!(value?))))
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
        let datastore = Settings::kubernetes(None);
        let agent_socket = Path::new("/run/tortie/ipam/n1.sock");
        let network = Network { node: "n1", mtu: 1450, agent_socket, datastore: &datastore };
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

    #[test]
    fn etcd_is_named_in_calicos_keys_without_secrets() {
        let mut settings = etcd::Settings::of(["https://10.0.0.1:2379", "https://10.0.0.2:2379"]);
        settings.authority = Some(Pem::File("/ca.pem".into()));
        settings.identity = Some((Pem::File("/cert.pem".into()), Pem::Text("SECRET".to_owned())));
        let datastore = Settings { kubeconfig: None, store: Store::Etcd(settings) };
        let network = Network { node: "n1", mtu: 0, agent_socket: Path::new("/s"), datastore: &datastore };
        let written = conflist(&network);
        let plugin = &written["plugins"][0];
        assert_eq!(plugin["datastore_type"], "etcdv3");
        assert_eq!(plugin["etcd_endpoints"], "https://10.0.0.1:2379,https://10.0.0.2:2379");
        assert_eq!(plugin["etcd_ca_cert_file"], "/ca.pem");
        assert_eq!(plugin["etcd_cert_file"], "/cert.pem");
        assert!(!written.to_string().contains("SECRET"), "{written}");
    }
}
