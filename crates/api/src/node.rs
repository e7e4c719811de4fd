//! What IPAM and routing know of a node (data model §10, dataplane §2).

use std::collections::BTreeMap;
use std::net::IpAddr;

/// The part of a core/v1 Node, or of a node in etcd, that Tortie reads. Written back only as changes of `annotations`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels, with those of annotation `projectcalico.org/labels` underneath.
    pub labels: BTreeMap<String, String>,
    /// Annotations; Calico keeps a node's address and tunnel addresses here.
    pub annotations: BTreeMap<String, String>,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<IpAddr>,
    /// Name of the Node of Kubernetes that a node in etcd says to be (`spec.orchRefs`); a core/v1 Node says nothing of the kind.
    /// Written where nothing of it stands there.
    pub kubernetes_name: Option<String>,
}
