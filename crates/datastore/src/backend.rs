//! Whichever store is configured: Calico knows two.

use crate::etcd::Etcd;
use crate::kubernetes::Kubernetes;
use crate::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Listing, ReadError, Revision, Scope, Stored,
    Version, Write,
};
use futures::stream::BoxStream;

/// A Kubernetes API or etcd.
#[derive(Clone, Debug)]
pub enum Backend {
    /// `DATASTORE_TYPE=kubernetes`.
    Kubernetes(Kubernetes),
    /// `DATASTORE_TYPE=etcdv3`.
    Etcd(Etcd),
}

impl Backend {
    /// The Kubernetes driver, for what only a Kubernetes API can be asked (pods, for one).
    pub fn kubernetes(&self) -> Option<&Kubernetes> {
        match self {
            Self::Kubernetes(store) => Some(store),
            Self::Etcd(_) => None,
        }
    }
}

impl Datastore for Backend {
    fn capabilities(&self) -> Capabilities {
        match self {
            Self::Kubernetes(store) => store.capabilities(),
            Self::Etcd(store) => store.capabilities(),
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        match self {
            Self::Kubernetes(store) => store.get(key).await,
            Self::Etcd(store) => store.get(key).await,
        }
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        match self {
            Self::Kubernetes(store) => store.list(scope).await,
            Self::Etcd(store) => store.list(scope).await,
        }
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        match self {
            Self::Kubernetes(store) => store.commit(checks, writes).await,
            Self::Etcd(store) => store.commit(checks, writes).await,
        }
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        match self {
            Self::Kubernetes(store) => store.watch(scope, from).await,
            Self::Etcd(store) => store.watch(scope, from).await,
        }
    }
}
