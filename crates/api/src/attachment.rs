//! The agent's request and reply: what the CNI IPAM plugin says over the node's unix socket.
//!
//! HTTP/1.1 and JSON. `POST /v1/add` takes an [`AddRequest`] and answers [`AddReply`], `POST /v1/del` a [`DelRequest`] and
//! answers `{}`, `POST /v1/check` a [`CheckRequest`] and answers `{}`, `POST /v1/status` a [`StatusRequest`] and answers
//! `{}` when such an ADD can be served (`GET /v1/status`: any ADD), `POST /v1/gc` a [`GcRequest`] and answers [`GcReply`].
//! Errors are an [`ErrorReply`].

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

/// Body of `POST /v1/add` as the plugin sends it: the request, and what it can do for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddCall {
    /// What is asked for.
    #[serde(flatten)]
    pub request: AddRequest,
    /// Calico's annotations of the pod and its namespace change what is asked for.
    #[serde(default)]
    pub annotations: bool,
    /// The caller can look whether namespaces stand: it wants to be asked where an earlier sandbox of the pod holds an address.
    #[serde(default)]
    pub looks: bool,
    /// Sandboxes, as [`AddAnswer::asked`] named them, whose namespaces the caller has found gone.
    #[serde(default)]
    pub gone: Vec<String>,
}

/// Answer to an [`AddCall`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddAnswer {
    /// As in an [`AddReply`].
    pub addresses: Vec<String>,
    /// Sandboxes of the same pod that hold addresses. Nothing was assigned: the caller looks which are gone, and calls again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<String>,
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

/// Body of `POST /v1/check`: what an ADD answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckRequest {
    /// Whose it was.
    pub attachment: Attachment,
    /// The addresses, with a prefix length or without.
    pub addresses: Vec<String>,
}

/// Body of `POST /v1/status`: what ADDs of a network will ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusRequest {
    /// As in an [`AddRequest`].
    pub ipv4: u32,
    /// As in an [`AddRequest`].
    pub ipv6: u32,
    /// As in an [`AddRequest`].
    pub ipv4_pools: Vec<String>,
    /// As in an [`AddRequest`].
    pub ipv6_pools: Vec<String>,
}

/// Body of `POST /v1/gc`: what a runtime still has on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcRequest {
    /// The network; what others hold is not touched.
    pub network: String,
    /// Its attachments that stay.
    pub valid: Vec<ValidAttachment>,
    /// Sandboxes, as [`GcReply::asked`] named them, whose namespaces the caller has found gone.
    #[serde(default)]
    pub gone: Vec<String>,
}

/// One attachment that stays.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidAttachment {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

/// Answer to a [`GcRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcReply {
    /// Addresses that were given back.
    pub released: Vec<IpAddr>,
    /// Sandboxes of stale attachments: only the caller sees whether their namespaces stand. What is in one that stands may
    /// still be used, and stays; those that are gone go into another request's `gone`.
    pub asked: Vec<String>,
}

/// Key of the attribute with the network's name: a handle alone does not tell where a network's name ends and a
/// container's begins. Peers carry it along.
pub const NETWORK: &str = "network";

/// Key of the attribute with the network namespace: its inode and its path, `4026532281:/run/netns/x`, as whoever executes
/// plugins sees it. The inode tells a namespace from a later one at the same path. Peers carry it along.
pub const SANDBOX: &str = "sandbox";

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
