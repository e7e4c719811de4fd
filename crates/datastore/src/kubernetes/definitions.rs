//! Custom resource definitions: without them there is nowhere for records to be.

use super::Kubernetes;
use super::failure::Failure;
use crate::{CommitError, Key};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// How long the API may take to serve what was defined.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a kind is not defined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("custom resource definition {name}: {reason}")]
pub struct DefineError {
    /// The definition.
    pub name: String,
    /// What the server says, or does not.
    pub reason: String,
}

impl Kubernetes {
    /// Makes a custom resource definition where there is none of its name, and waits until its kind is served. One that is there
    /// stays as it is: a release of Calico may have made it.
    ///
    /// Datastore calls: 2 where it is there and served; otherwise 3, and 1 each 50 ms until it is.
    ///
    /// # Errors
    /// If the definition cannot be made, or its kind is not served within a minute.
    pub async fn define(&self, definition: &Value) -> Result<(), DefineError> {
        let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let name = text("/metadata/name");
        let failed = |failure: &Failure| {
            let reason = match failure {
                Failure::Answered { message, .. } => message.clone(),
                Failure::NotConnected(reason) | Failure::NoAnswer(reason) | Failure::Unreadable(reason) => {
                    reason.clone()
                }
            };
            DefineError { name: name.to_owned(), reason }
        };
        if !self.is_there(&format!("{PATH}/{name}")).await.map_err(|failure| failed(&failure))? {
            match self.call("POST", PATH, Some(definition)).await {
                Ok(_) => {}
                // Somebody else was quicker.
                Err(failure) if failure.is_conflict() => {}
                Err(failure) => return Err(failed(&failure)),
            }
        }
        let version = text("/spec/versions/0/name");
        let kind = format!("/apis/{}/{version}/{}?limit=1", text("/spec/group"), text("/spec/names/plural"));
        let since = Instant::now();
        loop {
            let reason = match self.is_there(&kind).await {
                Ok(true) => return Ok(()),
                Ok(false) => "the server does not serve it; its status says why".to_owned(),
                // A server that has just begun to serve a kind may ask for patience.
                Err(failure) if failure.is_passing() => failed(&failure).reason,
                Err(failure) => return Err(failed(&failure)),
            };
            if since.elapsed() > PATIENCE {
                return Err(DefineError { name: name.to_owned(), reason });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Creates the object of a pool or reservation as `resource` has it, with all fields of its spec and the metadata that is the
    /// user's, where a record would keep what addresses are about alone. One that is there stays as it is.
    ///
    /// Datastore calls: 1.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn create_as_it_stands(&self, key: &Key, resource: &Value) -> Result<(), CommitError> {
        let face = self
            .face(key.kind())
            .await
            .map_err(|error| super::commit::not_read(error).writing(key.clone(), 0, true))?;
        let mut object = face.group.form(json!({
            "apiVersion": api::wire::API_VERSION_V1,
            "kind": resource["kind"],
            "metadata": {"name": face.name(key)},
            "spec": resource["spec"],
        }));
        for field in ["labels", "annotations"] {
            if let Some(value @ Value::Object(_)) = resource["metadata"].get(field) {
                object["metadata"][field] = value.clone();
            }
        }
        match self.call("POST", &face.collection(key.kind()), Some(&object)).await {
            Ok(_) => Ok(()),
            Err(failure) => match failure.writing(key.clone(), 0, true) {
                CommitError::Conflict { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Whether there is something at `path`.
    pub(super) async fn is_there(&self, path: &str) -> Result<bool, Failure> {
        match self.read("GET", path).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_not_found() => Ok(false),
            Err(failure) => Err(failure),
        }
    }
}
