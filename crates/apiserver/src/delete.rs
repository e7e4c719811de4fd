//! Deleting: at once, after a pod's grace, or when the finalizers agree.

use crate::admission;
use crate::answer;
use crate::custom;
use crate::error::{self, FieldError, Status};
use crate::identity::User;
use crate::objects::{self, finalizers, is_terminating, meta, metadata_mut};
use crate::path::Query;
use crate::request::Call;
use crate::resource::Resource;
use crate::selection::Selection;
use crate::server::{Server, unwritten};
use axum::body::Body;
use http::Response;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::sync::Arc;
use storage::{Commit, CommitError, Entry};

/// Finalizer of an owner that waits for its dependents to go first.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner whose dependents are to be left without it.
pub(crate) const ORPHAN: &str = "orphan";

const ATTEMPTS: usize = 64;

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// They go after it.
    #[default]
    Background,
    /// They go before it.
    Foreground,
    /// They stay.
    Orphan,
}

/// How an object is to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_seconds: Option<i64>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) dry_run: bool,
    /// Who deletes. None: the server itself.
    pub(crate) user: Option<Arc<User>>,
}

impl DeleteOptions {
    /// The same, of a user.
    pub(crate) fn by(self, user: &Arc<User>) -> Self {
        Self { user: Some(Arc::clone(user)), ..self }
    }

    /// Reads them from the body, if it has any, and the query.
    pub(crate) fn parse(body: Option<&Value>, query: &Query) -> Result<Self, Status> {
        let body = body.unwrap_or(&Value::Null);
        let invalid = |field: &str, value: &Value, detail: &str| {
            let error = FieldError::invalid(field, value, detail);
            Status::invalid("meta.k8s.io", "DeleteOptions", "", &[error])
        };
        let grace_seconds =
            match (&body["gracePeriodSeconds"], query.get("gracePeriodSeconds")) {
                (Value::Null, None) => None,
                (Value::Null, Some(text)) => Some(text.parse().map_err(|_| {
                    invalid("gracePeriodSeconds", &text.into(), "must be a number of seconds")
                })?),
                (given, _) => Some(
                    given
                        .as_i64()
                        .ok_or_else(|| invalid("gracePeriodSeconds", given, "must be a number of seconds"))?,
                ),
            };
        let orphans = body["orphanDependents"].as_bool();
        let propagation = match body["propagationPolicy"].as_str().or_else(|| query.get("propagationPolicy"))
        {
            None => {
                orphans.map(|orphans| if orphans { Propagation::Orphan } else { Propagation::Background })
            }
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some("Orphan") => Some(Propagation::Orphan),
            Some(other) => {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                let error = FieldError::not_supported("propagationPolicy", &other.into(), &supported);
                return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
            }
        };
        let precondition = |field: &str| body["preconditions"][field].as_str().map(str::to_owned);
        let dry_run = body["dryRun"].as_array().is_some_and(|list| list.iter().any(|one| one == "All"));
        Ok(Self {
            grace_seconds,
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            dry_run: dry_run || query.get("dryRun") == Some("All"),
            user: None,
        })
    }

    /// Deletion of exactly this object, as the server's own tasks ask for it.
    pub(crate) fn of(uid: &str) -> Self {
        Self { uid: Some(uid.to_owned()), ..Self::default() }
    }
}

/// What a deletion came to.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Value),
    /// It will go later.
    Pending(Entry),
}

impl Server {
    /// Deletes one object.
    pub(crate) async fn delete(
        &self,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let key = resource.key(namespace, name);
        let mut turn = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 && turn.is_none() {
                turn = Some(self.turns.wait(&key).await);
            }
            let Some(entry) = self.store.get(&key) else {
                return Err(Status::not_found(&resource.group, &resource.plural, name));
            };
            let object = objects::decode(&entry);
            check(resource, name, &object, options)?;
            let guarded =
                self.guarded(options.user.as_deref(), resource, namespace, name, (Some(&object), None))?;
            let next = mark(resource, &object, options);
            let mut commit = match &next {
                _ if options.dry_run => return Ok(Deleted::Gone(object)),
                None => Commit::delete(&key, entry.revision),
                Some(next) => {
                    let value = objects::encode(next);
                    if value == entry.value {
                        return Ok(Deleted::Pending(entry));
                    }
                    Commit::update(&key, entry.revision, value)
                }
            };
            if next.is_none() {
                admission::before_removal(self, resource, &object);
            }
            commit.checks.extend(guarded);
            let outcome = self.store.commit(commit).await;
            if outcome.is_err() && next.is_none() {
                admission::after_write(self, resource, &object);
            }
            match outcome {
                Ok(revisions) => {
                    let revision = revisions.first().copied().unwrap_or_default();
                    let Some(next) = next else {
                        admission::after_removal(self, resource, &object);
                        return Ok(Deleted::Gone(object));
                    };
                    let value = objects::encode(&next);
                    return Ok(Deleted::Pending(Entry { revision, created: entry.created, value }));
                }
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(unwritten(&error)),
            }
        }
        Err(Status::modified(&resource.group, &resource.plural, name))
    }

    /// Answers a DELETE of one object.
    pub(crate) async fn delete_one(
        &self,
        call: &Call,
        options: &DeleteOptions,
    ) -> Result<Response<Body>, Status> {
        let resource = &call.resource;
        match self.delete(resource, call.namespace(), &call.name, options).await? {
            Deleted::Pending(entry) => Ok(answer::object(call, 200, &entry)),
            // Pods are answered with the pod that went, as kubelets and kubectl know it.
            Deleted::Gone(mut object) if resource.is("", "pods") => {
                if is_terminating(&object) {
                    object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
                }
                Ok(answer::value(call, 200, &object))
            }
            Deleted::Gone(object) => {
                let uid = meta(&object, "uid");
                Ok(answer::value(
                    call,
                    200,
                    &error::deleted(&resource.group, &resource.plural, &call.name, uid),
                ))
            }
        }
    }

    /// Answers a DELETE of a collection.
    pub(crate) async fn delete_collection(
        &self,
        call: &Call,
        options: &DeleteOptions,
    ) -> Result<Response<Body>, Status> {
        let selection = Selection::parse(&call.resource, &call.query, "")?;
        let listing = self.store.list(&call.resource.scope(call.namespace.as_deref()), None, 0);
        let mut items = Vec::new();
        for (_, entry) in listing.entries {
            let object = objects::decode(&entry);
            let named = selection.name().is_none_or(|name| meta(&object, "name") == name);
            if !named || !selection.matches(&call.resource, &object) {
                continue;
            }
            let (namespace, name) = (meta(&object, "namespace"), meta(&object, "name"));
            match self.delete(&call.resource, namespace, name, options).await {
                Ok(Deleted::Gone(object)) => items.push(object),
                Ok(Deleted::Pending(entry)) => items.push(objects::decode(&entry)),
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        let list = json!({
            "kind": call.resource.list_kind,
            "apiVersion": call.resource.api_version(),
            "metadata": {"resourceVersion": self.store.revision().to_string()},
            "items": items,
        });
        Ok(answer::value(call, 200, &list))
    }
}

pub(crate) fn check(
    resource: &Resource,
    name: &str,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let (uid, version) = (meta(object, "uid"), meta(object, "resourceVersion"));
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        let why = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&resource.group, &resource.kind, name, &why));
    }
    if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != version) {
        let why = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        );
        return Err(Status::conflict(&resource.group, &resource.kind, name, &why));
    }
    if resource.is("", "namespaces") && matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(Status::forbidden("", "namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}

/// The object as it is while its deletion is pending; `None`: it goes at once.
pub(crate) fn mark(resource: &Resource, object: &Value, options: &DeleteOptions) -> Option<Value> {
    let mut next = object.clone();
    let was_terminating = is_terminating(object);
    set_propagation(&mut next, options.propagation);
    let grace = if resource.is("", "pods") { pod_grace(object, options) } else { 0 };
    let is_namespace = resource.is("", "namespaces");
    let waits = grace > 0 || !finalizers(&next).is_empty() || admission::is_held(resource, &next);
    if !waits {
        return None;
    }
    let metadata = metadata_mut(&mut next);
    let known = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64);
    if was_terminating && known.is_none_or(|known| known <= grace) {
        // Grace is only ever shortened.
        return Some(next);
    }
    let first_asked = || Timestamp::now();
    let deadline =
        first_asked().checked_add(SignedDuration::from_secs(grace)).unwrap_or_else(|_| Timestamp::now());
    metadata.insert("deletionTimestamp".into(), objects::timestamp(deadline).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if let Some(generation) = metadata.get("generation").and_then(Value::as_i64)
        && !was_terminating
    {
        metadata.insert("generation".into(), (generation + 1).into());
    }
    if is_namespace {
        metadata.remove("deletionGracePeriodSeconds");
        next["status"]["phase"] = "Terminating".into();
    }
    if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
        let clash = (!custom::is_established(object)).then_some("the names were not accepted");
        custom::set_status(&mut next, clash);
    }
    Some(next)
}

fn set_propagation(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut list: Vec<Value> = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    list.retain(|one| one != FOREGROUND && one != ORPHAN);
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => list.push(FOREGROUND.into()),
        Propagation::Orphan => list.push(ORPHAN.into()),
    }
    crate::write::replace(
        &mut object["metadata"],
        "finalizers",
        &if list.is_empty() { Value::Null } else { list.into() },
    );
}

/// Seconds that a pod is given to stop. Pods that run nowhere, or no longer, need none.
fn pod_grace(pod: &Value, options: &DeleteOptions) -> i64 {
    let unscheduled = pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let finished = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || finished {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    let asked = options.grace_seconds.unwrap_or_else(|| {
        // Asking again without a wish does not lengthen a grace that was shortened.
        pod["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(own)
    });
    if asked < 0 { 1 } else { asked }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn pods() -> Arc<Resource> {
        Arc::clone(Registry::default().find("", "v1", "pods").unwrap())
    }

    fn running() -> Value {
        json!({"metadata": {"name": "a", "uid": "u"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30},
               "status": {"phase": "Running"}})
    }

    #[test]
    fn a_running_pod_waits_for_its_node_and_grace_only_shrinks() {
        let pods = pods();
        let marked = mark(&pods, &running(), &DeleteOptions::default()).unwrap();
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        let longer = DeleteOptions { grace_seconds: Some(90), ..DeleteOptions::default() };
        assert_eq!(mark(&pods, &marked, &longer).as_ref(), Some(&marked));
        let shorter = DeleteOptions { grace_seconds: Some(5), ..DeleteOptions::default() };
        let marked = mark(&pods, &marked, &shorter).unwrap();
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 5);
        let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        assert_eq!(mark(&pods, &marked, &now), None);
    }

    #[test]
    fn a_pod_without_a_node_goes_at_once() {
        let mut pod = running();
        pod["spec"]["nodeName"] = Value::Null;
        assert_eq!(mark(&pods(), &pod, &DeleteOptions::default()), None);
    }
}
