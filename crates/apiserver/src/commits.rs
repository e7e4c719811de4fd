//! Several writes of custom resources that are made together or not at all: `POST /apis/tortie.io/v1/commits`.
//!
//! The store has transactions and Kubernetes' API has none. This kind, found in discovery like any other, hands them to
//! clients that keep records in custom resources. Each check and write is allowed, shaped and validated as if it came
//! alone; built-in kinds, whose writes have consequences elsewhere, are not taken.
//!
//! ```json
//! {"kind": "Commit", "apiVersion": "tortie.io/v1", "spec": {
//!   "checks": [{"path": "/apis/example.org/v1/pools/a", "resourceVersion": "7"}, {"path": "/apis/example.org/v1/pools/b"}],
//!   "writes": [{"verb": "create", "path": "/apis/example.org/v1/blocks", "object": {}},
//!              {"verb": "update", "path": "/apis/example.org/v1/blocks/x", "object": {}},
//!              {"verb": "delete", "path": "/apis/example.org/v1/blocks/y", "uid": "…", "resourceVersion": "9"}]}}
//! ```
//!
//! A check without `resourceVersion` says that there is no such object. The answer's `status.results` has uid and
//! resourceVersion of each write, in order; a refusal says in a cause of reason [`FAILED_ITEM`] which item it is about.

use crate::authorize::{self, Attributes};
use crate::delete::{self, DeleteOptions};
use crate::error::Status;
use crate::identity::User;
use crate::names;
use crate::objects::{self, is_terminating, meta};
use crate::path::Target;
use crate::registry::Registry;
use crate::request::{Call, WriteOptions};
use crate::resource::Resource;
use crate::server::{Server, unwritten};
use crate::write::{self, Aspect};
use serde_json::{Value, json};
use std::sync::Arc;
use storage::{Check, Commit, CommitError, Write};

/// Group of the kind, by which clients find it.
pub const GROUP: &str = "tortie.io";

/// Reason of the cause that names the item of a refused commit: `spec.writes[2]`.
pub const FAILED_ITEM: &str = "FailedItem";

/// Checks and writes of one commit, each.
const ITEMS: usize = 1024;

/// A commit in the making.
#[derive(Default)]
struct Plan {
    /// Who makes it.
    user: Option<Arc<User>>,
    commit: Commit,
    /// The item that each key of a check stands for.
    items: Vec<(String, String)>,
    /// Identity of each write's object, and the revision of one that stays as it is.
    results: Vec<(String, Option<u64>)>,
}

/// A write that is part of the plan.
struct Planned {
    key: String,
    uid: String,
    /// Revision of an object that already is what it is to be.
    unchanged: Option<u64>,
}

impl Server {
    /// Makes the commit that `object` describes and answers it with its status.
    pub(crate) async fn commit(&self, call: &Call, mut object: Value) -> Result<Value, Status> {
        let registry = self.registry();
        let mut plan = Plan { user: Some(Arc::clone(&call.user)), ..Plan::default() };
        let options = WriteOptions::default();
        for (part, is_write) in [("checks", false), ("writes", true)] {
            let items = match &object["spec"][part] {
                Value::Null => continue,
                Value::Array(items) if items.len() <= ITEMS => items,
                Value::Array(_) => {
                    return Err(Status::bad_request(format!("spec.{part} has more than {ITEMS} items")));
                }
                _ => return Err(Status::bad_request(format!("spec.{part} must be a list"))),
            };
            for (index, item) in items.iter().enumerate() {
                let field = format!("spec.{part}[{index}]");
                let planned = if is_write {
                    self.plan_write(call, &registry, item, &options, &mut plan, &field)
                } else {
                    self.plan_check(call, &registry, item, &mut plan, &field)
                };
                planned.map_err(|status| about(status, &field))?;
            }
        }
        if call.options.dry_run {
            return Ok(object);
        }
        let revisions = match self.store.commit(plan.commit).await {
            Ok(revisions) => revisions,
            Err(CommitError::Conflict { key, .. }) => {
                let item = plan.items.iter().find(|(of, _)| *of == key).map_or("spec", |(_, item)| item);
                let why = format!("the object of {item} has been modified; read it again");
                return Err(about(Status::conflict(GROUP, "commits", "", &why), item));
            }
            Err(error) => return Err(unwritten(&error)),
        };
        let mut revisions = revisions.into_iter();
        let results: Vec<Value> = plan
            .results
            .into_iter()
            .map(|(uid, unchanged)| {
                let revision = unchanged.or_else(|| revisions.next()).unwrap_or_default();
                json!({"uid": uid, "resourceVersion": revision.to_string()})
            })
            .collect();
        object["status"] = json!({"results": results});
        if let Some(map) = object.as_object_mut() {
            map.remove("spec");
        }
        Ok(object)
    }

    fn plan_check(
        &self,
        call: &Call,
        registry: &Registry,
        item: &Value,
        plan: &mut Plan,
        field: &str,
    ) -> Result<(), Status> {
        let (resource, namespace, name) = self.place(call, registry, item, "get")?;
        let key = resource.key(&namespace, &name);
        let check = match &item["resourceVersion"] {
            Value::Null => Check::Absent(key.clone()),
            version => Check::Revision(key.clone(), revision(version)?),
        };
        plan.commit.checks.push(check);
        plan.items.push((key, field.to_owned()));
        Ok(())
    }

    fn plan_write(
        &self,
        call: &Call,
        registry: &Registry,
        item: &Value,
        options: &WriteOptions,
        plan: &mut Plan,
        field: &str,
    ) -> Result<(), Status> {
        let verb = match item["verb"].as_str() {
            Some("create") => "create",
            Some("update") => "update",
            Some("delete") => "delete",
            _ => return Err(Status::bad_request(format!("{field}.verb must be create, update or delete"))),
        };
        let (resource, namespace, name) = self.place(call, registry, item, verb)?;
        let planned = match verb {
            "create" => self.plan_create(&resource, &namespace, item["object"].clone(), options, plan)?,
            "update" => {
                self.plan_update(&resource, &namespace, &name, item["object"].clone(), options, plan)?
            }
            _ => self.plan_delete(&resource, &namespace, &name, item, plan)?,
        };
        if plan.items.iter().any(|(of, item)| *of == planned.key && item.starts_with("spec.writes")) {
            return Err(Status::bad_request(format!("{field} is a second write of one object")));
        }
        plan.items.push((planned.key, field.to_owned()));
        plan.results.push((planned.uid, planned.unchanged));
        Ok(())
    }

    fn plan_create(
        &self,
        resource: &Arc<Resource>,
        namespace: &str,
        object: Value,
        options: &WriteOptions,
        plan: &mut Plan,
    ) -> Result<Planned, Status> {
        let mut object = write::fresh(resource, namespace, object)?;
        if resource.has_status {
            write::replace(&mut object, "status", &Value::Null);
        }
        let name = meta(&object, "name").to_owned();
        let key = resource.key(namespace, &name);
        write::shape(resource, &mut object, None, options)?;
        let faults = names::name_errors(&resource.group, &resource.plural, &name);
        if !faults.is_empty() {
            return Err(Status::invalid(&resource.group, &resource.kind, &name, &faults));
        }
        if self.store.get(&key).is_some() {
            return Err(Status::already_exists(&resource.group, &resource.plural, &name));
        }
        if resource.namespaced {
            plan.commit.checks.push(self.open_namespace(resource, namespace, &name)?);
        }
        let guarded =
            self.guarded(plan.user.as_deref(), resource, namespace, &name, (None, Some(&object)))?;
        plan.commit.checks.extend(guarded);
        let uid = meta(&object, "uid").to_owned();
        plan.commit.checks.push(Check::Absent(key.clone()));
        plan.commit.writes.push(Write::Put(key.clone(), objects::encode(&object)));
        Ok(Planned { key, uid, unchanged: None })
    }

    fn plan_update(
        &self,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        object: Value,
        options: &WriteOptions,
        plan: &mut Plan,
    ) -> Result<Planned, Status> {
        let key = resource.key(namespace, name);
        let not_found = || Status::not_found(&resource.group, &resource.plural, name);
        let entry = self.store.get(&key).ok_or_else(not_found)?;
        let stored = objects::decode(&entry);
        if revision(&object["metadata"]["resourceVersion"])? != entry.revision || is_terminating(&stored) {
            return Err(Status::modified(&resource.group, &resource.plural, name));
        }
        let current = crate::answer::present(resource, stored.clone());
        let mut held = crate::admission::Held::default();
        let mut new = self.settle(resource, Aspect::Main, &current, object, options, &mut held)?;
        held.give_back(self);
        let guarded =
            self.guarded(plan.user.as_deref(), resource, namespace, name, (Some(&current), Some(&new)))?;
        plan.commit.checks.extend(guarded);
        new["apiVersion"] = stored["apiVersion"].clone();
        let value = objects::encode(&new);
        let uid = meta(&new, "uid").to_owned();
        plan.commit.checks.push(Check::Revision(key.clone(), entry.revision));
        // What is the same takes no revision, as with a single update.
        let unchanged = (value == entry.value).then_some(entry.revision);
        if unchanged.is_none() {
            plan.commit.writes.push(Write::Put(key.clone(), value));
        }
        Ok(Planned { key, uid, unchanged })
    }

    fn plan_delete(
        &self,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        item: &Value,
        plan: &mut Plan,
    ) -> Result<Planned, Status> {
        let key = resource.key(namespace, name);
        let not_found = || Status::not_found(&resource.group, &resource.plural, name);
        let entry = self.store.get(&key).ok_or_else(not_found)?;
        let object = objects::decode(&entry);
        let text = |field: &str| item[field].as_str().map(str::to_owned);
        let options = DeleteOptions {
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..DeleteOptions::default()
        };
        delete::check(resource, name, &object, &options)?;
        let guarded = self.guarded(plan.user.as_deref(), resource, namespace, name, (Some(&object), None))?;
        plan.commit.checks.extend(guarded);
        plan.commit.checks.push(Check::Revision(key.clone(), entry.revision));
        // With finalizers it goes later; until then it is marked.
        plan.commit.writes.push(match delete::mark(resource, &object, &options) {
            Some(marked) => Write::Put(key.clone(), objects::encode(&marked)),
            None => Write::Delete(key.clone()),
        });
        Ok(Planned { key, uid: meta(&object, "uid").to_owned(), unchanged: None })
    }

    /// The custom resource, namespace and name that an item's path means, if the caller may do `verb` there.
    fn place(
        &self,
        call: &Call,
        registry: &Registry,
        item: &Value,
        verb: &str,
    ) -> Result<(Arc<Resource>, String, String), Status> {
        let path = item["path"].as_str().unwrap_or_default();
        let unusable = || Status::bad_request(format!("{path:?} is no path of a custom resource"));
        let target = Target::parse(path).ok_or_else(unusable)?;
        let namespace = target.namespace.clone().unwrap_or_default();
        let name = target.name.clone().unwrap_or_default();
        let attributes = Attributes {
            verb,
            group: &target.group,
            resource: &target.resource,
            namespace: &namespace,
            name: &name,
            ..Attributes::default()
        };
        if !authorize::allowed(&call.user, &attributes, &self.policy()) {
            return Err(attributes.forbidden(&call.user));
        }
        let resource = registry
            .find(&target.group, &target.version, &target.resource)
            .filter(|resource| resource.custom.is_some())
            .filter(|resource| resource.namespaced == target.namespace.is_some())
            .ok_or_else(unusable)?;
        if target.subresource.is_some() || name.is_empty() != (verb == "create") {
            return Err(unusable());
        }
        Ok((Arc::clone(resource), namespace, name))
    }
}

fn revision(version: &Value) -> Result<u64, Status> {
    let number = version.as_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| Status::bad_request(format!("resourceVersion {version} is not a number in a text")))
}

/// A refusal that says which item it is about.
fn about(mut status: Status, item: &str) -> Status {
    if !status.details.is_object() {
        status.details = json!({});
    }
    let cause = json!({"reason": FAILED_ITEM, "message": "this item was refused, and nothing was done", "field": item});
    match status.details["causes"].as_array_mut() {
        Some(causes) => causes.push(cause),
        None => status.details["causes"] = json!([cause]),
    }
    status
}
