//! Facts about the whole cluster (data model §10).

/// The ClusterInformation singleton `default`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterInformation {
    /// Writers stop while this is false (a migration is going on). Absent object or field: ready.
    pub datastore_ready: bool,
    /// Identity of the cluster, checked before a queued release is replayed.
    pub cluster_guid: String,
    /// Version shown by `calicoctl version`.
    pub calico_version: String,
    /// Further fields of its spec, kept as they are.
    pub rest: serde_json::Map<String, serde_json::Value>,
}
