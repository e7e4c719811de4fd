//! Keys of a network configuration that name the datastore and the node (cni §3.1, §3.2), as Calico's configuration has them.

use crate::config::NetworkConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where Calico's agent leaves the node's name.
const NODENAME_FILE: &str = "/var/lib/calico/nodename";

/// The keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DatastoreKeys {
    /// `kubernetes` or `etcdv3`.
    pub datastore_type: String,
    /// Endpoints of etcd, with commas between.
    pub etcd_endpoints: String,
    /// Domain whose SRV records name them.
    pub etcd_discovery_srv: String,
    /// Client key for etcd.
    pub etcd_key_file: String,
    /// Client certificate for etcd.
    pub etcd_cert_file: String,
    /// Authority of etcd's certificates.
    pub etcd_ca_cert_file: String,
    /// The Kubernetes API.
    pub kubernetes: KubernetesKeys,
    /// `crd.projectcalico.org/v1` or `projectcalico.org/v3`.
    pub calico_api_group: String,
    /// Calls a second; 0: no limit.
    pub qps: u32,
    /// Calls at once.
    pub burst: u32,
    /// Calico's lock of the node.
    pub ipam_lock_file: Option<PathBuf>,
    /// Name of the node.
    pub nodename: String,
    /// File with the name of the node.
    pub nodename_file: Option<PathBuf>,
    /// Name of the node, as old releases call it.
    pub hostname: String,
}

/// The part `kubernetes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct KubernetesKeys {
    /// Credentials and address of the API server.
    pub kubeconfig: String,
    /// Address of the API server, where there is no kubeconfig.
    pub k8s_api_root: String,
}

impl NetworkConfig {
    /// Whether Calico's annotations of pods count: in a network of Kubernetes.
    #[must_use]
    pub fn reads_annotations(&self) -> bool {
        self.policy.kind == "k8s" || !self.datastore.kubernetes.kubeconfig.is_empty()
    }

    /// Whether a datastore is named that could be gone to.
    #[must_use]
    pub fn names_datastore(&self) -> bool {
        let keys = &self.datastore;
        [&keys.datastore_type, &keys.etcd_endpoints, &keys.etcd_discovery_srv, &keys.kubernetes.kubeconfig]
            .into_iter()
            .any(|value| !value.is_empty())
    }

    /// Calico's variables for what the configuration says of the datastore; what it does not say has none.
    #[must_use]
    pub fn variables(&self) -> BTreeMap<String, String> {
        let keys = &self.datastore;
        let number = |value: u32| if value == 0 { String::new() } else { value.to_string() };
        [
            ("DATASTORE_TYPE", keys.datastore_type.clone()),
            ("ETCD_ENDPOINTS", keys.etcd_endpoints.clone()),
            ("ETCD_DISCOVERY_SRV", keys.etcd_discovery_srv.clone()),
            ("ETCD_KEY_FILE", keys.etcd_key_file.clone()),
            ("ETCD_CERT_FILE", keys.etcd_cert_file.clone()),
            ("ETCD_CA_CERT_FILE", keys.etcd_ca_cert_file.clone()),
            ("KUBECONFIG", keys.kubernetes.kubeconfig.clone()),
            ("K8S_API_ENDPOINT", keys.kubernetes.k8s_api_root.clone()),
            ("CALICO_API_GROUP", keys.calico_api_group.clone()),
            ("K8S_CLIENT_QPS", number(keys.qps)),
            ("K8S_CLIENT_BURST", number(keys.burst)),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// The lock that Calico's plugin holds while it assigns and releases.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.datastore.ipam_lock_file.clone().unwrap_or_else(|| PathBuf::from(api::direct::LOCK_FILE))
    }

    /// Name of the node: `nodename`, else what its file says, else `hostname`, else the system's name in small letters.
    ///
    /// The file is taken without the line end that editors leave; Calico takes it byte for byte, and writes none.
    #[must_use]
    pub fn node_name(&self) -> String {
        let keys = &self.datastore;
        let file = || {
            let path = keys.nodename_file.clone().unwrap_or_else(|| PathBuf::from(NODENAME_FILE));
            std::fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
        };
        let system = || {
            let name = rustix::system::uname();
            name.nodename().to_string_lossy().trim().to_lowercase()
        };
        let named = Some(keys.nodename.clone()).filter(|name| !name.is_empty());
        named
            .or_else(|| Some(file()).filter(|name| !name.is_empty()))
            .or_else(|| Some(keys.hostname.clone()).filter(|name| !name.is_empty()))
            .unwrap_or_else(system)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_the_configuration_says_of_the_datastore_becomes_calicos_variables() {
        let found = config(
            r#"{"name":"net","datastore_type":"kubernetes","kubernetes":{"kubeconfig":"/k"},"qps":20,
                "calico_api_group":"projectcalico.org/v3"}"#,
        );
        assert!(found.names_datastore());
        let told: Vec<(String, String)> = found.variables().into_iter().collect();
        let expected = [
            ("CALICO_API_GROUP", "projectcalico.org/v3"),
            ("DATASTORE_TYPE", "kubernetes"),
            ("K8S_CLIENT_QPS", "20"),
            ("KUBECONFIG", "/k"),
        ];
        assert_eq!(told, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(config(r#"{"name":"net","etcd_endpoints":"http://h:1"}"#).names_datastore());
        assert!(!config(r#"{"name":"net","qps":20}"#).names_datastore());
    }

    #[test]
    fn the_nodes_name_is_the_first_that_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("nodename");
        std::fs::write(
            &file,
            "from-file
",
        )
        .unwrap();
        let of = |keys: &str| config(&format!(r#"{{"name":"net"{keys}}}"#)).node_name();
        let file = format!(r#","nodename_file":"{}""#, file.display());
        assert_eq!(of(&format!(r#","nodename":"n1"{file},"hostname":"h""#)), "n1");
        assert_eq!(of(&format!(r#"{file},"hostname":"h""#)), "from-file");
        let missing = r#","nodename_file":"/nonexistent/nodename""#;
        assert_eq!(of(&format!(r#"{missing},"hostname":"h""#)), "h");
        assert_eq!(of(missing), of(missing).to_lowercase());
        assert!(!of(missing).is_empty());
    }

    #[test]
    fn the_lock_is_calicos_unless_another_is_named() {
        assert_eq!(config(r#"{"name":"net"}"#).lock_file(), PathBuf::from("/var/run/calico/ipam.lock"));
        let named = config(r#"{"name":"net","ipam_lock_file":"/l"}"#);
        assert_eq!(named.lock_file(), PathBuf::from("/l"));
    }
}
