//! One write at a time under its condition, and what undoing one needs; [`crate::ordered`] makes commits of them.

use super::failure::Failure;
use super::object::Face;
use super::{Kubernetes, delete_options, object};
use crate::ordered::Single;
use crate::{CommitError, Key, Kind, ReadError, Record, Version, Write};
use serde_json::{Value, json};
use std::time::Duration;

impl Single for Kubernetes {
    type Before = Value;

    async fn write_one(&self, write: &Write) -> Result<Version, CommitError> {
        let creating = matches!(write, Write::Create(_));
        self.write(write).await.map_err(|failure| failure.writing(write.key(), 0, creating))
    }

    async fn version_of(&self, key: &Key) -> Result<Option<Version>, ReadError> {
        let Some(object) = self.object(key).await? else { return Ok(None) };
        let malformed = |reason| ReadError::Malformed { what: key.to_string(), reason };
        let stored = object::from_object(key.kind(), &object).map_err(malformed)?;
        Ok(stored.filter(|stored| !stored.record.is_deleted()).map(|stored| stored.version))
    }

    async fn before(&self, key: &Key, version: &Version) -> Result<Option<Value>, ReadError> {
        let found = self.object(key).await?;
        Ok(found
            .filter(|object| object::version(object).is_ok_and(|found| found.revision == version.revision)))
    }

    async fn restore(&self, key: &Key, mut before: Value, version: &Version) -> Result<(), CommitError> {
        let face =
            self.face(key.kind()).await.map_err(|error| not_read(error).writing(key.clone(), 0, false))?;
        object::condition(&mut before, key.kind(), version);
        let path = format!("{}/{}", face.collection(key.kind()), object::object_name(&before));
        let put = self.call("PUT", &path, Some(&before)).await;
        put.map(drop).map_err(|failure| failure.writing(key.clone(), 0, false))
    }

    async fn recreate(&self, key: &Key, mut before: Value) -> Result<(), CommitError> {
        let face =
            self.face(key.kind()).await.map_err(|error| not_read(error).writing(key.clone(), 0, true))?;
        object::forget_birth(&mut before);
        let post = self.call("POST", &face.collection(key.kind()), Some(&before)).await;
        post.map(drop).map_err(|failure| failure.writing(key.clone(), 0, true))
    }

    fn elapsed(&self) -> Duration {
        self.shared.started.elapsed()
    }
}

impl Kubernetes {
    /// Makes one write under its condition.
    async fn write(&self, write: &Write) -> Result<Version, Failure> {
        let key = write.key();
        let kind = key.kind();
        let face = self.face(kind).await.map_err(not_read)?;
        let collection = face.collection(kind);
        let name = face.name(&key);
        let answer = match write {
            Write::Create(Record::Node(_)) | Write::Delete(Record::Node(_), _) => {
                let message =
                    "nodes are made and deleted by the cluster, not by address management".to_owned();
                return Err(Failure::Answered { code: 405, reason: "MethodNotAllowed".to_owned(), message });
            }
            Write::Create(record) => self.call("POST", &collection, Some(&face.object(record))).await?,
            Write::Update(Record::Node(node), version) => {
                return self.annotate(&collection, node, version).await;
            }
            Write::Update(record, version) => {
                let body = self.replacement(record, version, face, &name);
                self.call("PUT", &format!("{collection}/{name}"), Some(&body)).await?
            }
            Write::Delete(record, version) => return self.delete(record, version, face, &name).await,
            Write::Pass { .. } => {
                let message = "a record that passes through a state is two writes".to_owned();
                return Err(Failure::Answered { code: 400, reason: "BadRequest".to_owned(), message });
            }
        };
        self.note(kind, &answer);
        object::version(&answer).map_err(Failure::Unreadable)
    }

    /// The object that replaces the one of `record` last seen as `version`.
    pub(super) fn replacement(&self, record: &Record, version: &Version, face: Face, name: &str) -> Value {
        let kind = record.key().kind();
        let mut body = face.object(record);
        object::keep_metadata(&mut body, &self.kept(kind, name));
        object::condition(&mut body, kind, version);
        body
    }

    /// Deletes an object in the state it was seen in.
    ///
    /// One request: the server compares identity and revision itself (since Kubernetes 1.14). The mark that Calico writes
    /// first takes the place of that comparison; an object without it is there or gone, and peers know both.
    async fn delete(
        &self,
        record: &Record,
        version: &Version,
        face: Face,
        name: &str,
    ) -> Result<Version, Failure> {
        let kind = record.key().kind();
        let path = format!("{}/{name}", face.collection(kind));
        let options = delete_options(version.uid.as_deref(), Some(version.revision));
        self.call("DELETE", &path, Some(&options)).await?;
        self.forget(kind, name);
        Ok(version.clone())
    }

    /// The second phase of a peer's delete: removes the object that carries `deleted`, and no successor of it.
    pub(super) async fn finish_delete(
        &self,
        face: Face,
        kind: Kind,
        name: &str,
        marked: &Version,
    ) -> Result<(), Failure> {
        let path = format!("{}/{name}", face.collection(kind));
        let options = delete_options(marked.uid.as_deref(), None);
        match self.call("DELETE", &path, Some(&options)).await {
            Ok(_) => {}
            Err(failure) if failure.is_conflict() => {}
            Err(failure) => return Err(failure),
        }
        self.forget(kind, name);
        Ok(())
    }

    /// Changes a node's annotations to those of `node`, and nothing else of it.
    async fn annotate(
        &self,
        collection: &str,
        node: &api::Node,
        version: &Version,
    ) -> Result<Version, Failure> {
        let path = format!("{collection}/{}", node.name);
        let current = self.call("GET", &path, None).await?;
        if object::version(&current).map_err(Failure::Unreadable)?.revision != version.revision {
            let message = format!("node {} changed since it was read", node.name);
            return Err(Failure::Answered { code: 409, reason: "Conflict".to_owned(), message });
        }
        let before = current.pointer("/metadata/annotations").and_then(Value::as_object);
        let removed = before.into_iter().flatten().map(|(key, _)| key);
        let mut annotations: serde_json::Map<String, Value> = removed
            .filter(|key| !node.annotations.contains_key(*key))
            .map(|key| (key.clone(), Value::Null))
            .collect();
        annotations.extend(node.annotations.iter().map(|(key, value)| (key.clone(), json!(value))));
        let patch = json!({"metadata": {
            "resourceVersion": version.revision.0.to_string(),
            "annotations": annotations,
        }});
        let answer = self.call("PATCH", &path, Some(&patch)).await?;
        object::version(&answer).map_err(Failure::Unreadable)
    }
}

/// A write that cannot be made because something had to be read first.
pub(super) fn not_read(error: ReadError) -> Failure {
    match error {
        ReadError::Forbidden { reason, .. } => {
            Failure::Answered { code: 403, reason: "Forbidden".to_owned(), message: reason }
        }
        error => Failure::NotConnected(error.to_string()),
    }
}
