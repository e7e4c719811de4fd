//! The agent's request and reply: what the CNI IPAM plugin says over the node's unix socket.
//!
//! HTTP/1.1 and JSON. `POST /v1/add` takes an [`AddRequest`] and answers [`AddReply`], `POST /v1/del` a
//! [`DelRequest`] and answers `{}`, `GET /v1/status` answers 200 when the node can serve. Errors are an [`ErrorReply`].

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One attachment of a container to a network: the key by which ADD is idempotent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// CNI network name, first part of the handle.
    pub network: String,
    /// `CNI_CONTAINERID`, second part of the handle.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

/// Body of `POST /v1/add`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddRequest {
    /// Whom for.
    pub attachment: Attachment,
    /// IPv4 addresses wanted, 0 or 1.
    pub ipv4: u32,
    /// IPv6 addresses wanted, 0 or 1.
    pub ipv6: u32,
    /// Pools asked for by CIDR or name; empty: any eligible.
    #[serde(default)]
    pub ipv4_pools: Vec<String>,
    /// As `ipv4_pools`.
    #[serde(default)]
    pub ipv6_pools: Vec<String>,
    /// One specific address (`IP=` of CNI_ARGS).
    #[serde(default)]
    pub requested: Option<IpAddr>,
    /// Attributes stored with the allocation: `node` and `timestamp` are added by the agent.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Namespace of the pod, for pools with a namespace selector.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// Answer to an ADD: durable in the datastore when it is sent (invariant 9).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddReply {
    /// Addresses with the prefix length of their block (`192.168.12.69/26`), IPv4 first.
    pub addresses: Vec<String>,
}

/// Body of `POST /v1/del`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DelRequest {
    /// Whom to release for.
    pub attachment: Attachment,
    /// `<namespace>.<pod>` for the handle form of old releases, where known.
    #[serde(default)]
    pub legacy_handle: Option<String>,
}

/// Any failure, with the CNI error code the plugin passes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorReply {
    /// CNI error code: 11 for what may be retried, 7 for bad requests, 100 and above for the rest.
    pub code: u32,
    /// What failed, on which object, and what to do.
    pub message: String,
    /// What was considered on the way, one line.
    #[serde(default)]
    pub details: String,
}

/// Name of the host end of a pod's interface: `cali` and the first 11 hex digits of SHA-1(`<namespace>.<pod>`)
/// (dataplane §1). The plugin makes it, the agent finds it again by the attributes of the allocation.
///
/// ```
/// assert_eq!(api::attachment::host_interface("default", "web-0"), "cali0d7763386da");
/// ```
#[must_use]
pub fn host_interface(namespace: &str, pod: &str) -> String {
    let digest = Sha1::digest(format!("{namespace}.{pod}"));
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("cali{}", hex.chars().take(11).collect::<String>())
}
