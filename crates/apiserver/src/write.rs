//! Creating and changing objects: what the server decides itself, what the kind decides, and the race for the revision.

use crate::admission::{self, Held};
use crate::error::{FieldFault, Status};
use crate::events;
use crate::identity::User;
use crate::objects::{self, finalizers, is_terminating, meta, metadata_mut};
use crate::request::{FieldValidation, WriteOptions};
use crate::resource::Resource;
use crate::server::{Server, unwritten};
use crate::{defaults, names, validate};
use serde_json::{Map, Value};
use std::sync::Arc;
use storage::{Check, Commit, CommitError, Entry, Write};

/// How often a write without a condition of the client's is tried against others.
const ATTEMPTS: usize = 64;
/// How often a generated name is drawn.
const DRAWS: usize = 8;
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const GENERATED_PREFIX_MAX: usize = 58;

/// Which part of an object a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aspect {
    /// All but the status, if that is written apart.
    Main,
    /// The status.
    Status,
    /// Everything, as the server's own parts decide it: the rules for clients do not apply.
    Server,
}

/// What a write came to.
#[derive(Debug)]
pub(crate) enum Written {
    /// The object as it is now.
    Stored(Entry),
    /// The write took the last finalizer away, and the object with it; this is its last state.
    Removed(Entry),
}

impl Written {
    /// The object as it is, or was at last.
    pub(crate) fn entry(&self) -> &Entry {
        match self {
            Self::Stored(entry) | Self::Removed(entry) => entry,
        }
    }
}

/// Whether `metadata.generation` counts the changes of a kind.
fn has_generation(resource: &Resource) -> bool {
    resource.custom.is_some()
        || matches!(resource.group.as_str(), "apps" | "batch" | "policy" | "apiextensions.k8s.io")
        || matches!(
            resource.plural.as_str(),
            "networkpolicies" | "ingresses" | "ingressclasses" | "flowschemas"
        )
}

/// Draws an ending for a generated name.
fn generated(prefix: &str) -> String {
    let mut bits = uuid::Uuid::new_v4().as_u128();
    let letters = NAME_LETTERS.len() as u128;
    let mut name: String = prefix.chars().take(GENERATED_PREFIX_MAX).collect();
    for _ in 0..5 {
        let at = usize::try_from(bits % letters).unwrap_or(0);
        name.push(char::from(NAME_LETTERS[at]));
        bits /= letters;
    }
    name
}

/// Kind and version of the object must be those of the path; missing ones are filled in.
fn settle_type(resource: &Resource, object: &mut Value) -> Result<(), Status> {
    let (kind, api_version) = (resource.kind.clone(), resource.api_version());
    let given_kind = object["kind"].as_str().unwrap_or_default();
    let given_version = object["apiVersion"].as_str().unwrap_or_default();
    if !given_version.is_empty() && given_version != api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({api_version})"
        )));
    }
    if !given_kind.is_empty() && given_kind != kind {
        return Err(Status::bad_request(format!(
            "{given_kind} in version {:?} cannot be handled as a {kind}: the kind of the data does not fit the path",
            resource.version
        )));
    }
    object["kind"] = kind.into();
    object["apiVersion"] = api_version.into();
    Ok(())
}

fn refuse_unknown(resource: &Resource, unknown: &[String], options: &WriteOptions) -> Result<(), Status> {
    if unknown.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    match options.validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => shown.into_iter().for_each(|warning| options.warn(warning)),
        FieldValidation::Strict => {
            return Err(Status::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
                resource.kind,
                resource.version,
                resource.kind,
                shown.join(", ")
            )));
        }
    }
    Ok(())
}

/// Drops unknown fields, fills defaults, and checks the rules of the kind.
pub(crate) fn shape(
    resource: &Resource,
    object: &mut Value,
    old: Option<&Value>,
    options: &WriteOptions,
) -> Result<(), Status> {
    let name = meta(object, "name").to_owned();
    let errors = if let Some(custom) = &resource.custom {
        let Some(schema) = &custom.schema else { return Ok(()) };
        let unknown = schema.prune(object);
        schema.default(object);
        refuse_unknown(resource, &unknown, options)?;
        schema.validate(object, old)
    } else {
        let unknown = validate::unknown_fields(&resource.api_version(), &resource.kind, object);
        refuse_unknown(resource, &unknown, options)?;
        defaults::apply_defaults(&resource.group, &resource.kind, object);
        let errors = validate::validate_builtin(&resource.group, &resource.kind, object, old);
        // Kubernetes cannot even read an object of a built-in kind with a value of the wrong type.
        if let Some(wrong) = errors.iter().find(|error| error.fault == FieldFault::TypeInvalid) {
            return Err(Status::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: {wrong}",
                resource.kind, resource.version, resource.kind
            )));
        }
        errors
    };
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid(&resource.group, &resource.kind, &name, &errors))
    }
}

/// Empty maps and lists that mean the same as nothing, and metadata that clients must not set.
fn tidy_metadata(metadata: &mut Map<String, Value>) {
    metadata.remove("selfLink");
    for field in ["labels", "annotations", "finalizers", "ownerReferences", "managedFields"] {
        let empty = match metadata.get(field) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Null) => true,
            _ => false,
        };
        if empty {
            metadata.remove(field);
        }
    }
}

/// A new object as a client sent it, with what the server decides: identity, time, place.
pub(crate) fn fresh(resource: &Resource, namespace: &str, mut object: Value) -> Result<Value, Status> {
    settle_type(resource, &mut object)?;
    let given = meta(&object, "namespace");
    if resource.namespaced && !given.is_empty() && given != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if !meta(&object, "resourceVersion").is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let metadata = metadata_mut(&mut object);
    for field in ["uid", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "generation"] {
        metadata.remove(field);
    }
    tidy_metadata(metadata);
    if resource.namespaced {
        metadata.insert("namespace".into(), namespace.into());
    } else {
        metadata.remove("namespace");
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), objects::now().into());
    if has_generation(resource) {
        metadata.insert("generation".into(), 1.into());
    }
    Ok(object)
}

impl Server {
    /// The revision of a namespace in which objects may be created.
    pub(crate) fn open_namespace(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Check, Status> {
        let key = format!("/core/namespaces/{namespace}");
        let entry = self.store.get(&key).ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
        let head = objects::head(&entry);
        if head.metadata.deletion_timestamp.is_some() {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            let mut status = Status::forbidden(&resource.group, &resource.plural, name, &why);
            status.details["causes"] = serde_json::json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
            return Err(status);
        }
        Ok(Check::Revision(key, entry.revision))
    }

    /// Creates an object and returns it as stored.
    pub(crate) async fn create(
        &self,
        resource: &Arc<Resource>,
        namespace: &str,
        object: Value,
        user: &User,
        options: &WriteOptions,
    ) -> Result<Entry, Status> {
        let template = fresh(resource, namespace, object)?;
        let generates = meta(&template, "name").is_empty() && !meta(&template, "generateName").is_empty();
        for draw in 1..=if generates { DRAWS } else { 1 } {
            let mut object = template.clone();
            if generates {
                let name = generated(meta(&object, "generateName"));
                metadata_mut(&mut object).insert("name".into(), name.into());
            }
            let created = self.create_named(resource, namespace, object, user, options).await;
            match created {
                Err(status) if generates && status.reason == "AlreadyExists" && draw < DRAWS => {}
                other => return other,
            }
        }
        Err(Status::internal("no free name was drawn"))
    }

    async fn create_named(
        &self,
        resource: &Arc<Resource>,
        namespace: &str,
        mut object: Value,
        user: &User,
        options: &WriteOptions,
    ) -> Result<Entry, Status> {
        let name = meta(&object, "name").to_owned();
        if resource.has_status && !admission::keeps_status_at_creation(resource) {
            object.as_object_mut().map(|map| map.remove("status"));
        }
        shape(resource, &mut object, None, options)?;
        if resource.group == "events.k8s.io" {
            object = events::to_core(object);
        }
        let name_faults = names::name_errors(&resource.group, &resource.plural, &name);
        if !name_faults.is_empty() {
            return Err(Status::invalid(&resource.group, &resource.kind, &name, &name_faults));
        }
        // An object that is there is told first: the kind's decisions below may take addresses.
        let key = resource.key(namespace, &name);
        let exists = || Status::already_exists(&resource.group, &resource.plural, &name);
        for _ in 0..ATTEMPTS {
            let mut checks = vec![Check::Absent(key.clone())];
            if resource.namespaced {
                checks.push(self.open_namespace(resource, namespace, &name)?);
            }
            if self.store.get(&key).is_some() {
                return Err(exists());
            }
            let mut object = object.clone();
            let held = admission::on_create(self, resource, &mut object, user, options)?;
            let guarded =
                self.guarded(options.user.as_deref(), resource, namespace, &name, (None, Some(&object)));
            match guarded {
                Ok(relied) => checks.extend(relied),
                Err(status) => {
                    held.give_back(self);
                    return Err(status);
                }
            }
            let value = objects::encode(&object);
            if options.dry_run {
                held.give_back(self);
                let revision = self.store.revision();
                return Ok(Entry { revision, created: revision, value });
            }
            let mut writes = vec![Write::Put(key.clone(), value.clone())];
            writes.extend(admission::along_with(self, resource, &object));
            match self.store.commit(Commit { checks, writes }).await {
                Ok(revisions) => {
                    let revision = revisions.first().copied().unwrap_or_default();
                    admission::after_write(self, resource, &object);
                    return Ok(Entry { revision, created: revision, value });
                }
                Err(CommitError::Conflict { key: lost, .. }) => {
                    held.give_back(self);
                    if lost == key {
                        return Err(exists());
                    }
                }
                Err(error) => {
                    held.give_back(self);
                    return Err(unwritten(&error));
                }
            }
        }
        Err(Status::conflict(
            &resource.group,
            &resource.plural,
            &name,
            "its namespace keeps changing; try again",
        ))
    }

    /// Changes an object by `change`, which is given the present state (in the version of `resource`) and may be
    /// called again when somebody else was faster.
    ///
    /// A resource version in the result is a condition; without one the change wins.
    pub(crate) async fn modify(
        &self,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        aspect: Aspect,
        options: &WriteOptions,
        mut change: impl FnMut(&Value) -> Result<Value, Status>,
    ) -> Result<Written, Status> {
        let key = resource.key(namespace, name);
        let mut turn = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 && turn.is_none() {
                turn = Some(self.turns.wait(&key).await);
            }
            let Some(entry) = self.store.get(&key) else {
                return Err(Status::not_found(&resource.group, &resource.plural, name));
            };
            let stored = objects::decode(&entry);
            let current = crate::answer::present(resource, stored.clone());
            let wanted = change(&current)?;
            let asked = meta(&wanted, "resourceVersion");
            if !asked.is_empty() && asked != entry.revision.to_string() {
                return Err(Status::modified(&resource.group, &resource.plural, name));
            }
            let mut held = Held::default();
            let settled = self.settle(resource, aspect, &current, wanted, options, &mut held);
            let mut new = match settled {
                Ok(new) => new,
                Err(status) => {
                    held.give_back(self);
                    return Err(status);
                }
            };
            if resource.group == "events.k8s.io" {
                new = events::to_core(new);
            }
            let guarded = self.guarded(
                options.user.as_deref(),
                resource,
                namespace,
                name,
                (Some(&current), Some(&new)),
            );
            let guarded = match guarded {
                Ok(relied) => relied,
                Err(status) => {
                    held.give_back(self);
                    return Err(status);
                }
            };
            // Whichever version it was changed by, the object is stored in one.
            new["apiVersion"] = stored["apiVersion"].clone();
            // Compared as stored: version and revision are put in at reading.
            let value = objects::encode(&new);
            if value == entry.value || options.dry_run {
                held.give_back(self);
                return Ok(Written::Stored(Entry { value, ..entry }));
            }
            let removes = is_terminating(&new)
                && finalizers(&new).is_empty()
                && new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
                && !admission::is_held(resource, &new);
            let mut commit = if removes {
                Commit::delete(&key, entry.revision)
            } else {
                Commit::update(&key, entry.revision, value.clone())
            };
            commit.checks.extend(guarded);
            if removes {
                admission::before_removal(self, resource, &new);
            }
            let outcome = self.store.commit(commit).await;
            if removes && outcome.is_err() {
                admission::after_write(self, resource, &new);
            }
            match outcome {
                Ok(revisions) => {
                    let revision = revisions.first().copied().unwrap_or_default();
                    let entry = Entry { revision, created: entry.created, value };
                    if removes {
                        admission::after_removal(self, resource, &new);
                        return Ok(Written::Removed(entry));
                    }
                    admission::after_change(self, resource, &stored, &new);
                    return Ok(Written::Stored(entry));
                }
                Err(CommitError::Conflict { .. }) => held.give_back(self),
                Err(error) => {
                    held.give_back(self);
                    return Err(unwritten(&error));
                }
            }
        }
        Err(Status::modified(&resource.group, &resource.plural, name))
    }

    /// What an object becomes when `wanted` is written over `current`.
    pub(crate) fn settle(
        &self,
        resource: &Arc<Resource>,
        aspect: Aspect,
        current: &Value,
        mut wanted: Value,
        options: &WriteOptions,
        held: &mut Held,
    ) -> Result<Value, Status> {
        settle_type(resource, &mut wanted)?;
        let name = meta(current, "name");
        for (field, path) in [("name", "name"), ("namespace", "namespace")] {
            let given = meta(&wanted, field);
            if !given.is_empty() && given != meta(current, field) {
                return Err(Status::bad_request(format!(
                    "the {path} of the object ({given}) does not match the {path} on the URL ({})",
                    meta(current, field)
                )));
            }
        }
        let (given, uid) = (meta(&wanted, "uid"), meta(current, "uid"));
        if !given.is_empty() && given != uid {
            let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {uid}");
            return Err(Status::conflict(&resource.group, &resource.plural, name, &why));
        }
        let mut new = match aspect {
            Aspect::Main => {
                if resource.has_status {
                    replace(&mut wanted, "status", &current["status"]);
                }
                wanted
            }
            Aspect::Status => {
                let mut new = current.clone();
                replace(&mut new, "status", &wanted["status"]);
                if resource.custom.is_none() {
                    for field in ["labels", "annotations"] {
                        replace(&mut new["metadata"], field, &wanted["metadata"][field]);
                    }
                }
                new
            }
            Aspect::Server => wanted,
        };
        let old_metadata = &current["metadata"];
        let metadata = &mut new["metadata"];
        if !metadata.is_object() {
            *metadata = Value::Object(Map::new());
        }
        for field in [
            "name",
            "namespace",
            "generateName",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
        ] {
            replace(metadata, field, &old_metadata[field]);
        }
        if let Some(metadata) = metadata.as_object_mut() {
            tidy_metadata(metadata);
        }
        if aspect == Aspect::Server {
            return Ok(new);
        }
        if is_terminating(current) {
            let known = finalizers(current);
            if let Some(added) = finalizers(&new).into_iter().find(|one| !known.contains(one)) {
                let error = crate::error::FieldError::forbidden(
                    "metadata.finalizers",
                    &format!(
                        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{added:?}}}"
                    ),
                );
                return Err(Status::invalid(&resource.group, &resource.kind, name, &[error]));
            }
        }
        shape(resource, &mut new, Some(current), options)?;
        *held = admission::on_update(self, resource, aspect, current, &mut new)?;
        if has_generation(resource)
            && aspect == Aspect::Main
            && differs_in_content(current, &new, resource.has_status)
        {
            let generation = current["metadata"]["generation"].as_i64().unwrap_or(0);
            new["metadata"]["generation"] = (generation + 1).into();
        }
        Ok(new)
    }
}

/// Sets a field of an object, or removes it when the value is null.
pub(crate) fn replace(object: &mut Value, field: &str, value: &Value) {
    if let Some(map) = object.as_object_mut() {
        if value.is_null() {
            map.remove(field);
        } else {
            map.insert(field.to_owned(), value.clone());
        }
    }
}

fn differs_in_content(old: &Value, new: &Value, without_status: bool) -> bool {
    let content = |object: &Value| -> Vec<(String, Value)> {
        object
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| !matches!(key.as_str(), "metadata" | "kind" | "apiVersion"))
            .filter(|(key, _)| !(without_status && key.as_str() == "status"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    content(old) != content(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_keep_their_prefix_and_stay_short() {
        let name = generated(&"a".repeat(80));
        assert_eq!(name.len(), GENERATED_PREFIX_MAX + 5);
        assert_ne!(generated("web-"), generated("web-"));
        assert!(generated("web-").starts_with("web-"));
    }
}
