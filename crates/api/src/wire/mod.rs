//! Wire forms of the records: custom resources of `crd.projectcalico.org/v1` and, by [`Group::form`], of
//! `projectcalico.org/v3`, what is read of a core/v1 Node, and the values of etcd (`to_etcd`, `from_etcd`; the keys are
//! the driver's).
//!
//! A record turns into a whole object by `to_v1`, or only into its `spec` by `spec_v1` for a write that must keep the
//! rest of an object that exists; `from_v1` reads a whole object back. Writing is strict, reading tolerates what
//! old and foreign writers left (data model §14.5).
//!
//! ```
//! use api::{Handle, wire::Resource};
//! let object = serde_json::json!({"metadata": {"name": "net.4f2c"}, "spec": {"handleID": "net.4F2C", "block": {"10.244.7.64/26": 1}}});
//! let handle = Handle::from_v1(&object)?;
//! assert_eq!((handle.id.as_str(), Resource::HANDLE.plural), ("net.4F2C", "ipamhandles"));
//! # Ok::<(), api::wire::WireError>(())
//! ```

mod block_etcd;
mod block_v1;
mod claim_etcd;
mod claim_v1;
mod etcd_text;
mod field;
mod group;
mod mending;
mod node_core;
mod pool_v1;
mod resource_etcd;
mod settings_v1;

pub use group::Group;
pub use resource_etcd::{Over, created_etcd};

use serde_json::{Value, json};

/// API group of the custom resources that Calico's own datastore uses.
pub const GROUP_V1: &str = "crd.projectcalico.org";

/// `apiVersion` of these custom resources.
pub const API_VERSION_V1: &str = "crd.projectcalico.org/v1";

/// Name of the singletons (IPAM configuration, cluster information).
pub const SINGLETON: &str = "default";

/// A kind of custom resource of [`API_VERSION_V1`]. All are cluster-scoped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `kind` of an object.
    pub kind: &'static str,
    /// Last part of the REST path.
    pub plural: &'static str,
}

impl Resource {
    /// IPPool.
    pub const POOL: Self = Self { kind: "IPPool", plural: "ippools" };
    /// IPAMBlock.
    pub const BLOCK: Self = Self { kind: "IPAMBlock", plural: "ipamblocks" };
    /// BlockAffinity.
    pub const AFFINITY: Self = Self { kind: "BlockAffinity", plural: "blockaffinities" };
    /// IPAMHandle.
    pub const HANDLE: Self = Self { kind: "IPAMHandle", plural: "ipamhandles" };
    /// IPAMConfig.
    pub const CONFIG: Self = Self { kind: "IPAMConfig", plural: "ipamconfigs" };
    /// IPReservation.
    pub const RESERVATION: Self = Self { kind: "IPReservation", plural: "ipreservations" };
    /// ClusterInformation.
    pub const CLUSTER_INFORMATION: Self = Self { kind: "ClusterInformation", plural: "clusterinformations" };

    /// REST path of the collection: `/apis/crd.projectcalico.org/v1/<plural>`.
    pub fn path(self) -> String {
        format!("/apis/{API_VERSION_V1}/{}", self.plural)
    }

    /// An object of this kind, without labels.
    fn object(self, name: &str, spec: &Value) -> Value {
        json!({"apiVersion": API_VERSION_V1, "kind": self.kind, "metadata": {"name": name}, "spec": spec})
    }
}

/// An object that cannot be read as the record it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that the record cannot be understood without.
    #[error("{object} has no {field}: add it or delete the object")]
    Missing {
        /// Kind and name.
        object: String,
        /// Path of the field.
        field: String,
    },
    /// A field with a value that makes no sense.
    #[error("{object} has {value} in {field}, which should be {expected}: correct it or delete the object")]
    Invalid {
        /// Kind and name.
        object: String,
        /// Path of the field.
        field: String,
        /// What stands there, shortened.
        value: String,
        /// What should stand there.
        expected: &'static str,
    },
}
