//! Owners and what they own: dependents go when their last owner is gone, before it, or stay without it.
//!
//! One task follows everything that is stored and keeps two tables: which identities there are, and who depends on
//! whom. An owner is known before its dependents, as they are written later; a dependent whose owner is not there when
//! it is written has lost it already.

use crate::delete::{DeleteOptions, Deleted, FOREGROUND, ORPHAN};
use crate::error::Status;
use crate::objects::{self, Head, OwnerReference};
use crate::request::WriteOptions;
use crate::resource::Resource;
use crate::server::Server;
use crate::write::{Aspect, replace};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use storage::{Entry, Event};

/// Where a dependent is, and what it says of its owner.
#[derive(Clone, Debug)]
struct Dependent {
    owners: Vec<OwnerReference>,
    uid: String,
}

#[derive(Debug, Default)]
struct Graph {
    /// Identities that exist, by key.
    alive: HashMap<String, String>,
    uids: HashSet<String>,
    /// Dependents by key.
    dependents: BTreeMap<String, Dependent>,
    /// Keys of dependents, by the identity of an owner.
    owned: HashMap<String, BTreeSet<String>>,
    /// Keys of owners that wait for their dependents, by identity.
    waiting: HashMap<String, String>,
}

/// What is to be done about an object.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    /// Delete it, or take the references to owners that are gone away.
    Judge(String),
    /// Delete its dependents, and let it go when none blocks.
    Foreground(String),
    /// Make its dependents independent, and let it go.
    Orphan(String),
}

impl Graph {
    /// Takes over the present state of a key, and says what follows from it.
    fn observe(&mut self, key: &str, before: Option<&Entry>, now: Option<&Entry>) -> Vec<Task> {
        let mut tasks = Vec::new();
        match now {
            Some(entry) => {
                let head = objects::head(entry);
                if let Some(old) = self.alive.insert(key.to_owned(), head.metadata.uid.clone())
                    && old != head.metadata.uid
                {
                    self.uids.remove(&old);
                }
                self.uids.insert(head.metadata.uid.clone());
                self.own(key, &head, &mut tasks);
            }
            None => {
                let uid =
                    self.alive.remove(key).or_else(|| before.map(|entry| objects::head(entry).metadata.uid));
                let uid = uid.unwrap_or_default();
                self.uids.remove(&uid);
                self.waiting.remove(&uid);
                self.disown(key, &mut tasks);
                tasks.extend(self.owned.get(&uid).into_iter().flatten().cloned().map(Task::Judge));
            }
        }
        tasks
    }

    fn own(&mut self, key: &str, head: &Head, tasks: &mut Vec<Task>) {
        let metadata = &head.metadata;
        let changed = match self.dependents.get(key) {
            Some(known) => {
                known.uid != metadata.uid
                    || owner_uids(&known.owners) != owner_uids(&metadata.owner_references)
            }
            None => !metadata.owner_references.is_empty(),
        };
        if changed {
            self.disown(key, tasks);
            if !metadata.owner_references.is_empty() {
                for owner in &metadata.owner_references {
                    self.owned.entry(owner.uid.clone()).or_default().insert(key.to_owned());
                }
                let dependent =
                    Dependent { owners: metadata.owner_references.clone(), uid: metadata.uid.clone() };
                self.dependents.insert(key.to_owned(), dependent);
                if metadata.owner_references.iter().any(|owner| !self.uids.contains(&owner.uid)) {
                    tasks.push(Task::Judge(key.to_owned()));
                }
            }
        }
        if metadata.deletion_timestamp.is_some() {
            let has = |finalizer: &str| metadata.finalizers.iter().any(|one| one == finalizer);
            if has(FOREGROUND) {
                self.waiting.insert(metadata.uid.clone(), key.to_owned());
                tasks.push(Task::Foreground(key.to_owned()));
            }
            if has(ORPHAN) {
                tasks.push(Task::Orphan(key.to_owned()));
            }
        }
    }

    fn disown(&mut self, key: &str, tasks: &mut Vec<Task>) {
        let Some(dependent) = self.dependents.remove(key) else { return };
        for owner in dependent.owners {
            if let Some(keys) = self.owned.get_mut(&owner.uid) {
                keys.remove(key);
                if keys.is_empty() {
                    self.owned.remove(&owner.uid);
                }
            }
            if let Some(waiting) = self.waiting.get(&owner.uid) {
                tasks.push(Task::Foreground(waiting.clone()));
            }
        }
    }

    fn owned_by(&self, uid: &str) -> Vec<String> {
        self.owned.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Whether the object `uid` depends, over however many others, on the one `of`.
    fn depends(&self, uid: &str, of: &str) -> bool {
        let mut seen = HashSet::from([of]);
        let mut owners = vec![of];
        while let Some(owner) = owners.pop() {
            for key in self.owned.get(owner).into_iter().flatten() {
                let Some(dependent) = self.dependents.get(key) else { continue };
                if dependent.uid == uid {
                    return true;
                }
                if seen.insert(&dependent.uid) {
                    owners.push(&dependent.uid);
                }
            }
        }
        false
    }
}

fn owner_uids(owners: &[OwnerReference]) -> BTreeSet<&str> {
    owners.iter().map(|owner| owner.uid.as_str()).collect()
}

/// Runs as long as the server.
pub(crate) async fn run(server: Arc<Server>) {
    loop {
        let listing = server.store.list("/", None, 0);
        let Ok(mut watch) = server.store.watch("/", listing.revision) else { continue };
        let mut graph = Graph::default();
        let mut tasks = Vec::new();
        // All identities first: the order of keys is not that of creation.
        for (key, entry) in &listing.entries {
            let uid = objects::head(entry).metadata.uid;
            graph.uids.insert(uid.clone());
            graph.alive.insert(key.clone(), uid);
        }
        for (key, entry) in &listing.entries {
            tasks.extend(graph.observe(key, None, Some(entry)));
        }
        drop(listing);
        loop {
            for task in std::mem::take(&mut tasks) {
                if let Err(status) = perform(&server, &graph, &task).await
                    && !matches!(status.code, 404 | 409)
                {
                    tracing::warn!(?task, error = %status, "could not collect what has no owner");
                }
            }
            // A watch that is cut begins again with a look at everything.
            let Ok(event) = watch.next().await else { break };
            tasks = observe(&mut graph, &event);
        }
    }
}

fn observe(graph: &mut Graph, event: &Event) -> Vec<Task> {
    graph.observe(&event.key, event.before.as_ref(), event.now.as_ref())
}

/// The kind whose objects have such keys.
fn resource_of(server: &Server, key: &str) -> Option<Arc<Resource>> {
    let registry = server.registry();
    registry.stored().find(|resource| key.starts_with(&resource.prefix)).cloned()
}

async fn perform(server: &Arc<Server>, graph: &Graph, task: &Task) -> Result<(), Status> {
    match task {
        Task::Judge(key) => judge(server, graph, key).await,
        Task::Foreground(key) => {
            let Some((resource, head)) = find(server, key) else { return Ok(()) };
            let metadata = &head.metadata;
            if metadata.deletion_timestamp.is_none()
                || !metadata.finalizers.iter().any(|one| one == FOREGROUND)
            {
                return Ok(());
            }
            let mut blocked = false;
            for dependent in graph.owned_by(&metadata.uid) {
                let Some((kind, head)) = find(server, &dependent) else { continue };
                let refers = |owner: &&OwnerReference| owner.uid == metadata.uid;
                let Some(owner) = head.metadata.owner_references.iter().find(refers) else { continue };
                if head.metadata.deletion_timestamp.is_none() {
                    let options = DeleteOptions {
                        propagation: owner
                            .block_owner_deletion
                            .then_some(crate::delete::Propagation::Foreground),
                        ..DeleteOptions::of(&head.metadata.uid)
                    };
                    let deleted =
                        server.delete(&kind, &head.metadata.namespace, &head.metadata.name, &options).await;
                    if let Ok(Deleted::Gone(_)) = deleted {
                        continue;
                    }
                }
                // Objects that own each other in a circle would wait for each other for ever.
                blocked |= owner.block_owner_deletion && !graph.depends(&metadata.uid, &head.metadata.uid);
            }
            if blocked { Ok(()) } else { release(server, &resource, &head, FOREGROUND).await }
        }
        Task::Orphan(key) => {
            let Some((resource, head)) = find(server, key) else { return Ok(()) };
            let mut gone = HashSet::new();
            gone.insert(head.metadata.uid.clone());
            for dependent in graph.owned_by(&head.metadata.uid) {
                if let Some((kind, dependent)) = find(server, &dependent) {
                    strip(server, &kind, &dependent, |uid| gone.contains(uid)).await?;
                }
            }
            release(server, &resource, &head, ORPHAN).await
        }
    }
}

fn find(server: &Server, key: &str) -> Option<(Arc<Resource>, Head)> {
    let resource = resource_of(server, key)?;
    Some((resource, objects::head(&server.store.get(key)?)))
}

/// A dependent some of whose owners are gone: without any it goes, else only the references do.
async fn judge(server: &Arc<Server>, graph: &Graph, key: &str) -> Result<(), Status> {
    let Some((resource, head)) = find(server, key) else { return Ok(()) };
    let metadata = &head.metadata;
    let gone = |owner: &OwnerReference| !graph.uids.contains(&owner.uid);
    if metadata.owner_references.is_empty() || !metadata.owner_references.iter().any(gone) {
        return Ok(());
    }
    if !metadata.owner_references.iter().all(gone) {
        return strip(server, &resource, &head, |uid| !graph.uids.contains(uid)).await;
    }
    if metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let options = DeleteOptions {
        propagation: Some(crate::delete::Propagation::Background),
        ..DeleteOptions::of(&metadata.uid)
    };
    server.delete(&resource, &metadata.namespace, &metadata.name, &options).await?;
    tracing::debug!(key, "deleted an object whose owners are gone");
    Ok(())
}

/// Removes the references to owners that are gone.
async fn strip(
    server: &Server,
    resource: &Arc<Resource>,
    head: &Head,
    is_gone: impl Fn(&str) -> bool,
) -> Result<(), Status> {
    change(server, resource, head, |object| {
        let kept: Vec<Value> = object["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|owner| !owner["uid"].as_str().is_some_and(&is_gone))
            .cloned()
            .collect();
        replace(&mut object["metadata"], "ownerReferences", &kept.into());
    })
    .await
}

/// Removes a finalizer, unless the name is another object's by now.
async fn release(
    server: &Server,
    resource: &Arc<Resource>,
    head: &Head,
    finalizer: &str,
) -> Result<(), Status> {
    change(server, resource, head, |object| {
        if objects::meta(object, "uid") == head.metadata.uid {
            objects::without_finalizer(object, finalizer);
        }
    })
    .await
}

/// Writes what the server itself changes on an object.
async fn change(
    server: &Server,
    resource: &Arc<Resource>,
    head: &Head,
    edit: impl Fn(&mut Value),
) -> Result<(), Status> {
    let metadata = &head.metadata;
    let edited = |current: &Value| {
        let mut next = current.clone();
        edit(&mut next);
        Ok(next)
    };
    let options = WriteOptions::default();
    server
        .modify(resource, &metadata.namespace, &metadata.name, Aspect::Server, &options, edited)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(uid: &str, owners: &[&str]) -> Entry {
        let owners: Vec<Value> = owners.iter().map(|uid| json!({"uid": uid})).collect();
        let object =
            json!({"kind": "X", "apiVersion": "v1", "metadata": {"uid": uid, "ownerReferences": owners}});
        Entry { revision: 1, created: 1, value: objects::encode(&object) }
    }

    #[test]
    fn a_dependent_is_judged_when_an_owner_goes_or_was_never_there() {
        let mut graph = Graph::default();
        assert_eq!(graph.observe("/a", None, Some(&entry("1", &[]))), []);
        assert_eq!(graph.observe("/b", None, Some(&entry("2", &["1"]))), []);
        assert_eq!(graph.observe("/c", None, Some(&entry("3", &["9"]))), [Task::Judge("/c".into())]);
        assert_eq!(graph.observe("/a", None, None), [Task::Judge("/b".into())]);
        assert_eq!(graph.observe("/b", None, None), []);
        assert!(graph.owned.contains_key("9") && !graph.owned.contains_key("1"));
    }

    #[test]
    fn a_circle_of_owners_is_seen() {
        let mut graph = Graph::default();
        for (key, uid, owners) in
            [("/a", "1", vec!["3"]), ("/b", "2", vec!["1"]), ("/c", "3", vec!["2"]), ("/d", "4", vec!["1"])]
        {
            graph.observe(key, None, Some(&entry(uid, &owners)));
        }
        assert!(graph.depends("1", "2") && graph.depends("2", "1"));
        assert!(graph.depends("4", "3") && !graph.depends("3", "4"));
    }

    #[test]
    fn a_successor_of_the_same_name_is_not_the_owner() {
        let mut graph = Graph::default();
        graph.observe("/a", None, Some(&entry("1", &[])));
        graph.observe("/a", None, Some(&entry("2", &[])));
        assert_eq!(graph.observe("/b", None, Some(&entry("3", &["1"]))), [Task::Judge("/b".into())]);
    }
}
