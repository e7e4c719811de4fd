//! The end of namespaces and definitions: what is in them goes first. While a namespace lasts, what every namespace
//! has is made again when it goes.
//!
//! One task follows the namespaces and definitions that are being deleted. For each it deletes the content, and looks
//! again whenever something of it went, until nothing is left; then it takes its own finalizer away.

use crate::admission;
use crate::custom;
use crate::delete::DeleteOptions;
use crate::error::Status;
use crate::objects::{self, without_finalizer};
use crate::request::WriteOptions;
use crate::resource::Resource;
use crate::server::{DEFINITIONS, Server};
use crate::write::{Aspect, replace};
use futures::{StreamExt, future, stream};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use storage::{Check, Commit, Entry};

const NAMESPACES: &str = "/core/namespaces/";

/// Keys of those that are being deleted.
type Ending = BTreeSet<String>;

/// Runs as long as the server.
pub(crate) async fn run(server: Arc<Server>) {
    loop {
        let revision = server.store.revision();
        let Ok(mut watch) = server.store.watch("/", revision) else { continue };
        let mut ending = Ending::new();
        for prefix in [NAMESPACES, DEFINITIONS] {
            for (key, entry) in server.store.list(prefix, None, 0).entries {
                note(&mut ending, &key, Some(&entry));
            }
        }
        for key in ending.clone() {
            step(&server, &key).await;
        }
        // A watch that is cut begins again with a look at everything.
        while let Ok(event) = watch.next().await {
            // The last of many that went is what matters: those that wait already are taken together.
            let mut concerned = BTreeSet::new();
            let mut next = Some(event);
            while let Some(event) = next {
                let key = event.key.as_str();
                if key.starts_with(NAMESPACES) || key.starts_with(DEFINITIONS) {
                    note(&mut ending, key, event.now.as_ref());
                    concerned.extend(ending.get(key).cloned());
                } else if event.now.is_none() {
                    concerned.extend(ending.iter().filter(|ended| concerns(&server, ended, key)).cloned());
                    restore(&server, key).await;
                }
                next = watch.try_next();
            }
            for ended in concerned.intersection(&ending) {
                step(&server, ended).await;
            }
        }
    }
}

/// Makes the account and the certificate that every namespace has again, if that is what went.
async fn restore(server: &Server, key: &str) {
    let mut parts = key.trim_start_matches('/').split('/');
    let namespace = match [parts.next(), parts.next(), parts.next(), parts.next()] {
        [Some("core"), Some("serviceaccounts"), Some(namespace), Some("default")] => namespace,
        [Some("core"), Some("configmaps"), Some(namespace), Some("kube-root-ca.crt")] => namespace,
        _ => return,
    };
    let Some(entry) = server.store.get(&format!("{NAMESPACES}{namespace}")) else { return };
    if objects::head(&entry).metadata.deletion_timestamp.is_some() {
        return;
    }
    for write in admission::furnishings(server, namespace) {
        if write.key() != key {
            continue;
        }
        let namespace_lasts = Check::Revision(format!("{NAMESPACES}{namespace}"), entry.revision);
        let checks = vec![Check::Absent(key.to_owned()), namespace_lasts];
        // Losing a race means that somebody else made it, or that the namespace ends.
        if server.store.commit(Commit { checks, writes: vec![write] }).await.is_ok() {
            tracing::info!(key, "made again what every namespace has");
        }
    }
}

fn note(ending: &mut Ending, key: &str, entry: Option<&storage::Entry>) {
    let is_ending = entry.is_some_and(|entry| objects::head(entry).metadata.deletion_timestamp.is_some());
    if is_ending {
        ending.insert(key.to_owned());
    } else {
        ending.remove(key);
    }
}

/// Whether what had `key` was part of the namespace or definition `ended`.
fn concerns(server: &Server, ended: &str, key: &str) -> bool {
    if let Some(namespace) = ended.strip_prefix(NAMESPACES) {
        return key.split('/').nth(3) == Some(namespace);
    }
    let definition = ended.strip_prefix(DEFINITIONS).unwrap_or_default();
    kinds(server, definition).iter().any(|kind| key.starts_with(&kind.prefix))
}

fn kinds(server: &Server, definition: &str) -> Vec<Arc<Resource>> {
    let registry = server.registry();
    let of = |resource: &&Arc<Resource>| {
        resource.custom.as_ref().is_some_and(|custom| custom.definition == definition)
    };
    let mut kinds: Vec<Arc<Resource>> = registry.resources().iter().filter(of).cloned().collect();
    kinds.dedup_by(|a, b| a.prefix == b.prefix);
    kinds
}

async fn step(server: &Arc<Server>, key: &str) {
    let done = match key.strip_prefix(NAMESPACES) {
        Some(namespace) => end_namespace(server, namespace).await,
        None => end_definition(server, key.strip_prefix(DEFINITIONS).unwrap_or_default()).await,
    };
    match done {
        Err(status) if status.code != 404 => {
            tracing::warn!(key, error = %status, "could not finish a deletion; it is tried again with the next change");
        }
        _ => {}
    }
}

/// Deletions under way at once: what waits together becomes durable together.
const AT_ONCE: usize = 64;

/// Asks for the deletion of everything in `scope` that was not asked to go yet. Returns what is left.
async fn purge(server: &Arc<Server>, resource: &Arc<Resource>, scope: &str) -> Vec<Entry> {
    stream::iter(server.store.list(scope, None, 0).entries)
        .map(|(key, entry)| async move {
            let head = objects::head(&entry);
            if head.metadata.deletion_timestamp.is_some() {
                return Some(entry);
            }
            let options = DeleteOptions::of(&head.metadata.uid);
            let (namespace, name) = (head.metadata.namespace.as_str(), head.metadata.name.as_str());
            match server.delete(resource, namespace, name, &options).await {
                Err(status) if !matches!(status.code, 404 | 409) => {
                    tracing::warn!(key, error = %status, "could not delete what is in a namespace or definition");
                }
                _ => {}
            }
            server.store.get(&key)
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(future::ready)
        .collect()
        .await
}

/// What keeps a namespace: how many objects of which kinds, and which finalizers they have.
#[derive(Debug, Default)]
struct Remains {
    kinds: Vec<String>,
    finalizers: BTreeMap<String, usize>,
}

impl Remains {
    fn add(&mut self, resource: &Resource, left: &[Entry]) {
        if left.is_empty() {
            return;
        }
        // Kubernetes writes the point after kinds without a group, too.
        self.kinds.push(format!(
            "{}.{} has {} resource instances",
            resource.plural,
            resource.group,
            left.len()
        ));
        for entry in left {
            for finalizer in objects::finalizers(&objects::decode(entry)) {
                *self.finalizers.entry(finalizer.to_owned()).or_default() += 1;
            }
        }
    }

    /// The conditions that say so, as (type, whether it holds, reason, message).
    fn conditions(&self) -> [(&'static str, bool, &'static str, String); 5] {
        let finalizers: Vec<String> = self
            .finalizers
            .iter()
            .map(|(name, count)| format!("{name} in {count} resource instances"))
            .collect();
        [
            (
                "NamespaceDeletionDiscoveryFailure",
                false,
                "ResourcesDiscovered",
                "All resources successfully discovered".to_owned(),
            ),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                false,
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed".to_owned(),
            ),
            (
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".to_owned(),
            ),
            match self.kinds.as_slice() {
                [] => (
                    "NamespaceContentRemaining",
                    false,
                    "ContentRemoved",
                    "All content successfully removed".to_owned(),
                ),
                kinds => (
                    "NamespaceContentRemaining",
                    true,
                    "SomeResourcesRemain",
                    format!("Some resources are remaining: {}", kinds.join(", ")),
                ),
            },
            match finalizers.as_slice() {
                [] => (
                    "NamespaceFinalizersRemaining",
                    false,
                    "ContentHasNoFinalizers",
                    "All content-preserving finalizers finished".to_owned(),
                ),
                finalizers => (
                    "NamespaceFinalizersRemaining",
                    true,
                    "SomeFinalizersRemain",
                    format!(
                        "Some content in the namespace has finalizers remaining: {}",
                        finalizers.join(", ")
                    ),
                ),
            },
        ]
    }
}

async fn end_namespace(server: &Arc<Server>, namespace: &str) -> Result<(), Status> {
    let registry = server.registry();
    let mut remains = Remains::default();
    let mut kinds: Vec<Arc<Resource>> =
        registry.stored().filter(|resource| resource.namespaced).cloned().collect();
    // Pods last: what made them must not make them again.
    kinds.sort_by_key(|resource| resource.is("", "pods"));
    for resource in kinds {
        remains.add(&resource, &purge(server, &resource, &resource.scope(Some(namespace))).await);
    }
    let namespaces = server.builtin("", "namespaces")?;
    let options = WriteOptions::default();
    server
        .modify(&namespaces, "", namespace, Aspect::Server, &options, |current| {
            let mut next = current.clone();
            if !objects::is_terminating(current) {
                return Ok(next);
            }
            if remains.kinds.is_empty() {
                let others: Vec<Value> =
                    current["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
                let others: Vec<Value> = others.into_iter().filter(|one| one != "kubernetes").collect();
                replace(&mut next["spec"], "finalizers", &others.into());
            } else {
                for (kind, holds, reason, message) in remains.conditions() {
                    set_condition(&mut next, kind, holds, reason, &message);
                }
            }
            Ok(next)
        })
        .await
        .map(drop)
}

fn set_condition(object: &mut Value, kind: &str, holds: bool, reason: &str, message: &str) {
    let conditions = &mut object["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    let status = if holds { "True" } else { "False" };
    let mut condition = json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": objects::now(),
    });
    match list.iter_mut().find(|condition| condition["type"] == kind) {
        Some(known) => {
            if known["status"] == status {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = condition;
        }
        None => list.push(condition),
    }
}

async fn end_definition(server: &Arc<Server>, name: &str) -> Result<(), Status> {
    let mut is_empty = true;
    for resource in kinds(server, name) {
        is_empty &= purge(server, &resource, &resource.prefix).await.is_empty();
    }
    if !is_empty {
        return Ok(());
    }
    let definitions = server.builtin("apiextensions.k8s.io", "customresourcedefinitions")?;
    let options = WriteOptions::default();
    server
        .modify(&definitions, "", name, Aspect::Server, &options, |current| {
            let mut next = current.clone();
            if objects::is_terminating(current) {
                without_finalizer(&mut next, custom::CLEANUP);
            }
            Ok(next)
        })
        .await
        .map(drop)
}
