//! What a store holds of a record beyond the record itself, so that a copy loses none of it.

use crate::backend::Backend;
use crate::memory::Memory;
use crate::{CommitError, Datastore, Key, Kind, ReadError, Record, Write};
use api::Node;
use serde_json::Value;
use std::collections::BTreeMap;
use std::future::Future;

/// A store that a copy reads from or writes to.
pub trait Whole: Datastore {
    /// Pools, reservations or nodes as the resources of `projectcalico.org/v3` that they are, with labels, annotations and fields
    /// that no record has. Empty where the store keeps records alone, and of nodes that are not kept as such resources.
    ///
    /// Datastore calls: those of a list.
    fn whole(&self, kind: Kind) -> impl Future<Output = Result<BTreeMap<Key, Value>, ReadError>> + Send;

    /// Creates the pool, reservation or node `record` as `whole` has it; refused if the key exists, or left as it is.
    ///
    /// Datastore calls: 1.
    fn create_whole(
        &self,
        record: &Record,
        whole: &Value,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// A node of this store, as it is to be in a store of another kind.
    fn node_elsewhere(&self, node: Node) -> Node {
        node
    }
}

impl Whole for Memory {
    async fn whole(&self, _: Kind) -> Result<BTreeMap<Key, Value>, ReadError> {
        Ok(BTreeMap::new())
    }

    async fn create_whole(&self, record: &Record, _: &Value) -> Result<(), CommitError> {
        self.commit(&[], &[Write::Create(record.clone())]).await.map(drop)
    }
}

impl Whole for Backend {
    async fn whole(&self, kind: Kind) -> Result<BTreeMap<Key, Value>, ReadError> {
        match self {
            Self::Kubernetes(store) => store.whole(kind).await,
            Self::Etcd(store) => store.whole(kind).await,
        }
    }

    async fn create_whole(&self, record: &Record, whole: &Value) -> Result<(), CommitError> {
        match self {
            Self::Kubernetes(store) => store.create_whole(record, whole).await,
            Self::Etcd(store) => store.create_whole(record, whole).await,
        }
    }

    fn node_elsewhere(&self, node: Node) -> Node {
        match self {
            Self::Kubernetes(store) => store.node_elsewhere(node),
            Self::Etcd(store) => store.node_elsewhere(node),
        }
    }
}
