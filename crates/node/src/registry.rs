//! Where the node is recorded: a Kubernetes API has Node objects made by kubelets, in etcd the agent makes its own.

use crate::node_object::{self, CallError};
use api::Node;
use datastore::backend::Backend;
use datastore::{CommitError, Datastore, Key, Record, Write};
use kube::Client;
use std::collections::BTreeMap;

/// Times that the record is read again because somebody else changed it.
const ATTEMPTS: u32 = 5;

/// What the agent reads and writes beside allocations.
#[derive(Clone)]
pub(crate) struct Registry {
    store: Backend,
    /// The Kubernetes API, where there is one.
    client: Option<Client>,
}

impl Registry {
    pub(crate) fn new(store: Backend, client: Option<Client>) -> Self {
        Self { store, client }
    }

    /// The Kubernetes API, where there is one to ask about pods.
    pub(crate) fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// Whether the node's record is the agent's to make.
    pub(crate) fn makes_nodes(&self) -> bool {
        matches!(self.store, Backend::Etcd(_))
    }

    /// Sets annotations of a node, `None` removes one. In etcd they are fields of the record, which is made if missing.
    ///
    /// # Errors
    /// [`CallError`]; in doubt call it again.
    pub(crate) async fn annotate(
        &self,
        node: &str,
        annotations: &BTreeMap<&str, Option<String>>,
    ) -> Result<(), CallError> {
        match &self.store {
            Backend::Kubernetes(store) => node_object::annotate(&store.client(), node, annotations).await,
            Backend::Etcd(store) => record(store, self.description(node).await?, annotations).await,
        }
    }

    /// What a node's record begins as: with the labels of its Node of Kubernetes and a reference to it, where it is one.
    async fn description(&self, node: &str) -> Result<Node, CallError> {
        let labels = match &self.client {
            Some(client) => node_object::node_labels(client, node).await?,
            None => None,
        };
        let kubernetes_name = labels.is_some().then(|| node.to_owned());
        let labels = labels.unwrap_or_default();
        Ok(Node { name: node.to_owned(), labels, kubernetes_name, ..Node::default() })
    }

    /// Says in the conditions of the Node object that its network is up; without Kubernetes there is nobody to tell.
    ///
    /// # Errors
    /// [`CallError`].
    pub(crate) async fn report_network_up(&self, node: &str) -> Result<(), CallError> {
        match &self.client {
            Some(client) => node_object::report_network_up(client, node).await,
            None => Ok(()),
        }
    }

    /// Labels of a namespace; none if there is no such namespace.
    ///
    /// # Errors
    /// [`CallError`], also where there is no Kubernetes API to ask: which pools are meant cannot be told then.
    pub(crate) async fn namespace_labels(
        &self,
        namespace: &str,
    ) -> Result<BTreeMap<String, String>, CallError> {
        match &self.client {
            Some(client) => node_object::namespace_labels(client, namespace).await,
            None => Err(CallError::Failed {
                what: format!("reading namespace {namespace}"),
                reason: "the agent knows no Kubernetes API: name one with KUBECONFIG".to_owned(),
            }),
        }
    }
}

/// The same on a store that holds the nodes itself. `new` is what a record begins as that is missing.
///
/// Datastore calls: 1 read and 1 commit, again for each conflict.
async fn record<D: Datastore>(
    store: &D,
    new: Node,
    annotations: &BTreeMap<&str, Option<String>>,
) -> Result<(), CallError> {
    let what = || format!("recording addresses of node {}", new.name);
    let failed =
        |error: &dyn std::fmt::Display| CallError::Failed { what: what(), reason: error.to_string() };
    for _ in 0..ATTEMPTS {
        let found = store.get(&Key::Node(new.name.clone())).await.map_err(|error| failed(&error))?;
        let changed = |mut node: Node| {
            for (key, value) in annotations {
                match value {
                    Some(value) => node.annotations.insert((*key).to_owned(), value.clone()),
                    None => node.annotations.remove(*key),
                };
            }
            Record::Node(node)
        };
        let write = match found.map(|stored| (stored.record, stored.version)) {
            Some((Record::Node(mut node), version)) => {
                // One that was made before the Node of Kubernetes was.
                node.kubernetes_name = node.kubernetes_name.or_else(|| new.kubernetes_name.clone());
                Write::Update(changed(node), version)
            }
            _ => Write::Create(changed(new.clone())),
        };
        match store.commit(&[], &[write]).await {
            Ok(_) => return Ok(()),
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    Err(failed(&"others keep changing the record"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_object::{IPV4_ADDRESS, VXLAN_ADDRESS};
    use datastore::memory::Memory;

    #[tokio::test]
    async fn node_is_made_where_there_is_none_and_keeps_what_others_wrote() {
        let store = Memory::new();
        let key = Key::Node("n".to_owned());
        let address = BTreeMap::from([(IPV4_ADDRESS, Some("172.18.0.2/16".to_owned()))]);
        let new = |kubernetes_name| Node { name: "n".to_owned(), kubernetes_name, ..Node::default() };
        record(&store, new(None), &address).await.unwrap();
        let stored = store.get(&key).await.unwrap().unwrap();
        let Record::Node(mut node) = stored.record else { panic!("a node") };
        assert_eq!(node.annotations[IPV4_ADDRESS], "172.18.0.2/16");
        node.annotations.insert("other".to_owned(), "x".to_owned());
        store.commit(&[], &[Write::Update(Record::Node(node), stored.version)]).await.unwrap();
        let tunnel = BTreeMap::from([(IPV4_ADDRESS, None), (VXLAN_ADDRESS, Some("10.0.0.0".to_owned()))]);
        record(&store, new(Some("k".to_owned())), &tunnel).await.unwrap();
        let Record::Node(node) = store.get(&key).await.unwrap().unwrap().record else { panic!("a node") };
        assert_eq!(node.kubernetes_name.as_deref(), Some("k"));
        let expected = [(VXLAN_ADDRESS, "10.0.0.0"), ("other", "x")];
        assert_eq!(node.annotations, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }
}
