//! Objects of the records' group that are no records: a migration carries them along, nothing here understands them.

use super::failure::Failure;
use super::{Kubernetes, PAGE, escaped};
use crate::ReadError;
use serde_json::{Value, json};

/// A resource of Calico's that is not about addresses: `/apis/GROUP/VERSION/[namespaces/NAMESPACE/]PLURAL/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other<'a> {
    /// Plural of its kind.
    pub plural: &'a str,
    /// The resource as `projectcalico.org/v3` has it.
    pub resource: &'a Value,
}

/// Why one was not created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{plural} {name}: {reason}")]
pub struct OtherError {
    /// Plural of its kind.
    pub plural: String,
    /// Its name, after its namespace where it has one.
    pub name: String,
    /// What the server says, or does not.
    pub reason: String,
}

fn field<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Namespace, empty where it has none, and name.
pub fn place_of(resource: &Value) -> (&str, &str) {
    (field(resource, "/metadata/namespace"), field(resource, "/metadata/name"))
}

impl Kubernetes {
    /// Every object of a kind, in whatever namespace; none where the kind is not defined.
    ///
    /// Datastore calls: 1 per 500.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn others(&self, plural: &str) -> Result<Vec<Value>, ReadError> {
        let collection = format!("/apis/{}/{plural}", self.group().await.api_version());
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let from = if next.is_empty() { next } else { format!("&continue={}", escaped(&next)) };
            let mut page = match self.read("GET", &format!("{collection}?limit={PAGE}{from}")).await {
                Ok(page) => page,
                Err(failure) if failure.is_not_found() => return Ok(Vec::new()),
                Err(failure) => return Err(failure.reading(plural.to_owned())),
            };
            if let Some(Value::Array(objects)) = page.get_mut("items").map(Value::take) {
                all.extend(objects);
            }
            next = field(&page, "/metadata/continue").to_owned();
            if next.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Whether there is such a namespace.
    ///
    /// Datastore calls: 1.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn has_namespace(&self, name: &str) -> Result<bool, ReadError> {
        let path = format!("/api/v1/namespaces/{}", escaped(name));
        self.is_there(&path).await.map_err(|failure| failure.reading(format!("namespace {name}")))
    }

    /// Creates an object as it stands: its whole spec, and the metadata that is the user's. One that is there stays as it is.
    ///
    /// Datastore calls: 1.
    ///
    /// # Errors
    /// See [`OtherError`].
    pub async fn create_other(&self, other: Other<'_>) -> Result<(), OtherError> {
        let Other { plural, resource } = other;
        let (namespace, name) = place_of(resource);
        let group = self.group().await.api_version();
        let mut object = json!({"apiVersion": group, "kind": resource["kind"], "metadata": {"name": name},
            "spec": resource.get("spec").cloned().unwrap_or_else(|| json!({}))});
        for part in ["labels", "annotations"] {
            if let Some(value @ Value::Object(_)) = resource["metadata"].get(part) {
                object["metadata"][part] = value.clone();
            }
        }
        let collection = if namespace.is_empty() {
            format!("/apis/{group}/{plural}")
        } else {
            object["metadata"]["namespace"] = json!(namespace);
            format!("/apis/{group}/namespaces/{}/{plural}", escaped(namespace))
        };
        let reason = match self.call("POST", &collection, Some(&object)).await {
            Ok(_) => return Ok(()),
            // It is there.
            Err(Failure::Answered { code: 409, .. }) => return Ok(()),
            Err(Failure::Answered { message, .. }) => message,
            Err(Failure::NotConnected(reason) | Failure::NoAnswer(reason) | Failure::Unreadable(reason)) => {
                reason
            }
        };
        let name = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
        Err(OtherError { plural: plural.to_owned(), name, reason })
    }
}
