//! The network configuration on standard input, as far as the plugins look at it.

use crate::datastore_keys::DatastoreKeys;
use crate::environment::is_identifier;
use crate::error::{CniError, code};
use api::attachment::ValidAttachment;
use serde::Deserialize;
use std::path::PathBuf;

/// Versions of the specification that the plugins speak, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A configuration. Keys that are not named here are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NetworkConfig {
    /// Version that the caller speaks; 0.1.0 when absent.
    #[serde(rename = "cniVersion")]
    pub cni_version: String,
    /// Name of the network, first part of handles.
    pub name: String,
    /// Name of the main plugin.
    #[serde(rename = "type")]
    pub kind: String,
    /// MTU of pods' interfaces in bytes; 0: the file that the agent writes, or the kernel's own.
    pub mtu: u32,
    /// Unix socket of the agent; that below `ipam` wins.
    pub agent_socket: Option<PathBuf>,
    /// Address management.
    pub ipam: IpamConfig,
    /// The datastore and the node's name, as Calico's configuration has them.
    #[serde(flatten)]
    pub datastore: DatastoreKeys,
    /// Who says what pods may reach.
    pub policy: PolicyConfig,
    /// What pods may do.
    pub container_settings: ContainerSettings,
    /// Result of an earlier ADD, with CHECK and DEL.
    #[serde(rename = "prevResult")]
    pub previous: Option<serde_json::Value>,
    /// Attachments that the runtime still has, with GC.
    #[serde(rename = "cni.dev/valid-attachments")]
    pub valid: Option<Vec<Valid>>,
    /// The same as libcni passed it on at first.
    #[serde(rename = "cni.dev/attachments")]
    pub valid_before: Option<Vec<Valid>>,
    /// Nothing is to be collected: several runtimes share the network.
    #[serde(rename = "disableGC")]
    pub gc_disabled: bool,
}

/// One attachment as GC names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Valid {
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub container: String,
    /// `CNI_IFNAME`.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// The part `ipam` of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IpamConfig {
    /// Name of the plugin to delegate to.
    #[serde(rename = "type")]
    pub kind: String,
    /// Only the text `false` turns IPv4 off (a string: that is how Calico writes it).
    pub assign_ipv4: Option<String>,
    /// Only the text `true` turns IPv6 on.
    pub assign_ipv6: Option<String>,
    /// Pools by CIDR or name; empty: any eligible.
    pub ipv4_pools: Vec<String>,
    /// As `ipv4_pools`.
    pub ipv6_pools: Vec<String>,
    /// Unix socket of the agent.
    pub agent_socket: Option<PathBuf>,
    /// Program that goes to the datastore where no agent is named.
    pub direct_program: Option<PathBuf>,
}

/// The part `policy` of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PolicyConfig {
    /// `k8s`: in Kubernetes.
    #[serde(rename = "type")]
    pub kind: String,
}

/// The part `container_settings` of a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ContainerSettings {
    /// Pods may forward packets.
    pub allow_ip_forwarding: bool,
}

impl NetworkConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// Code 6 if it is not JSON of this shape, 7 if the name is missing or malformed, 1 for an unknown version.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        let undecodable = |error: &dyn std::fmt::Display| {
            CniError::new(code::DECODE, format!("error unmarshall network config: {error}"))
        };
        // A list of values would be taken for the fields in their order.
        if text.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
            return Err(undecodable(&"it is no object"));
        }
        let mut config: Self = serde_json::from_slice(text).map_err(|error| undecodable(&error))?;
        if config.name.is_empty() {
            return Err(CniError::new(code::BAD_CONFIG, "missing network name"));
        }
        if !is_identifier(&config.name) {
            return Err(CniError::new(
                code::BAD_CONFIG,
                format!("invalid characters found in network name {:?}", config.name),
            ));
        }
        if config.cni_version.is_empty() {
            SUPPORTED_VERSIONS[0].clone_into(&mut config.cni_version);
        }
        if !SUPPORTED_VERSIONS.contains(&config.cni_version.as_str()) {
            let details =
                format!("config is {:?}, plugin supports {SUPPORTED_VERSIONS:?}", config.cni_version);
            let error = CniError::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions");
            return Err(error.because(&details));
        }
        Ok(config)
    }

    /// Whether the caller's version is at least `version`, one of [`SUPPORTED_VERSIONS`].
    #[must_use]
    pub fn speaks(&self, version: &str) -> bool {
        let position = |wanted: &str| SUPPORTED_VERSIONS.iter().position(|known| *known == wanted);
        position(&self.cni_version) >= position(version)
    }

    /// The attachments that stay when garbage is collected.
    ///
    /// # Errors
    /// Code 7 if the runtime named none, not even an empty list: nothing may be taken for garbage then.
    pub fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, CniError> {
        let Some(listed) = self.valid.as_ref().or(self.valid_before.as_ref()) else {
            let message =
                "cni.dev/valid-attachments is missing from the configuration: nothing was collected";
            return Err(CniError::new(code::BAD_CONFIG, message));
        };
        let attachment = |valid: &Valid| ValidAttachment {
            container: valid.container.clone(),
            interface: valid.interface.clone(),
        };
        Ok(listed.iter().map(attachment).collect())
    }

    /// Whether an IPv4 address is wanted.
    #[must_use]
    pub fn wants_ipv4(&self) -> bool {
        self.ipam.assign_ipv4.as_deref() != Some("false")
    }

    /// Whether an IPv6 address is wanted.
    #[must_use]
    pub fn wants_ipv6(&self) -> bool {
        self.ipam.assign_ipv6.as_deref() == Some("true")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_codes_of_the_specification() {
        for (text, code) in [
            ("", 6),
            ("3", 6),
            (r#"["1.1.0","net"]"#, 6),
            (r#"{"name":"net","ipam":{"assign_ipv4":true}}"#, 6),
            ("{}", 7),
            (r#"{"name":"a b"}"#, 7),
            (r#"{"name":"net","cniVersion":"1.2.0"}"#, 1),
        ] {
            assert_eq!(NetworkConfig::parse(text.as_bytes()).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn a_configuration_without_version_is_of_the_oldest() {
        let config = NetworkConfig::parse(br#"{"name":"net","type":"calico","later":{"x":1}}"#).unwrap();
        assert_eq!(config.cni_version, "0.1.0");
        assert!(config.wants_ipv4() && !config.wants_ipv6());
        assert!(!config.speaks("0.4.0"));
    }

    #[test]
    fn attachments_that_stay_are_read_and_their_lack_is_no_empty_list() {
        let of = |text: &str| NetworkConfig::parse(text.as_bytes()).unwrap().valid_attachments();
        assert_eq!(of(r#"{"name":"net"}"#).unwrap_err().code, 7);
        assert_eq!(of(r#"{"name":"net","cni.dev/valid-attachments":[]}"#).unwrap(), []);
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let found =
                of(&format!(r#"{{"name":"net","{key}":[{{"containerID":"a","ifname":"eth0"}}]}}"#)).unwrap();
            assert_eq!((found[0].container.as_str(), found[0].interface.as_str()), ("a", "eth0"));
        }
        let malformed = br#"{"name":"net","cni.dev/valid-attachments":[{"containerID":"a"}]}"#;
        assert_eq!(NetworkConfig::parse(malformed).unwrap_err().code, 6);
    }
}
