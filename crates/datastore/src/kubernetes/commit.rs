//! A commit without transactions: writes in order, checks read again after the last one, undone where one fails.

use super::failure::Failure;
use super::{Kubernetes, delete_options, object};
use crate::{Check, CommitError, Key, Kind, ReadError, Record, Version, Write};
use api::AffinityNaming;
use serde_json::{Value, json};

/// What takes a write back that was made.
enum Undo {
    Remove(Record, Version),
    Restore(Key, Value, Version),
    Recreate(Record),
}

impl Kubernetes {
    pub(super) async fn commit_in_order(
        &self,
        checks: &[Check],
        writes: &[Write],
    ) -> Result<Vec<Version>, CommitError> {
        let foreign = checks_of_others(checks, writes)?;
        let guarded = !foreign.is_empty();
        let mut versions = Vec::with_capacity(writes.len());
        let mut undos = Vec::new();
        for (written, write) in writes.iter().enumerate() {
            // Only a commit that may have to be undone pays for looking at what it replaces.
            let before = match write {
                Write::Update(record, version) if guarded => {
                    Some(self.before(record, version, written).await?)
                }
                _ => None,
            };
            let version = self.write(write).await.map_err(|failure| {
                failure.writing(write.key(), written, matches!(write, Write::Create(_)))
            })?;
            if guarded {
                undos.push(match (write, before) {
                    (Write::Create(record), _) => Undo::Remove(record.clone(), version.clone()),
                    (Write::Update(_, _), Some(before)) => {
                        Undo::Restore(write.key(), before, version.clone())
                    }
                    (Write::Update(record, _) | Write::Delete(record, _), _) => {
                        Undo::Recreate(record.clone())
                    }
                });
            }
            versions.push(version);
        }
        for check in foreign {
            let key = match check {
                Check::Unchanged(key, _) | Check::Absent(key) => key,
            };
            let holds = match (self.state(key).await, check) {
                (Ok(found), Check::Unchanged(_, revision)) => {
                    found.is_some_and(|found| found.revision == *revision)
                }
                (Ok(found), Check::Absent(_)) => found.is_none(),
                (Err(error), _) => {
                    // Nobody is answered on a check that could not be read: take everything back.
                    self.undo(undos).await;
                    return Err(unknown(key, error));
                }
            };
            if !holds {
                let left = self.undo(undos).await;
                tracing::info!(record = %key, left, "check failed, commit undone");
                return Err(CommitError::Conflict { key: key.clone(), written: left });
            }
        }
        Ok(versions)
    }

    /// Makes one write under its condition.
    async fn write(&self, write: &Write) -> Result<Version, Failure> {
        let key = write.key();
        let kind = key.kind();
        let naming = self.naming_for(kind).await.map_err(not_read)?;
        let collection = object::collection(kind);
        let name = object::name(&key, naming);
        let answer = match write {
            Write::Create(Record::Node(_)) | Write::Delete(Record::Node(_), _) => {
                let message =
                    "nodes are made and deleted by the cluster, not by address management".to_owned();
                return Err(Failure::Answered { code: 405, reason: "MethodNotAllowed".to_owned(), message });
            }
            Write::Create(record) => {
                self.call("POST", &collection, Some(&object::to_object(record, naming))).await?
            }
            Write::Update(Record::Node(node), version) => {
                return self.annotate(&collection, node, version).await;
            }
            Write::Update(record, version) => {
                let body = self.replacement(record, version, naming, &name);
                self.call("PUT", &format!("{collection}/{name}"), Some(&body)).await?
            }
            Write::Delete(record, version) => return self.delete(record, version, naming, &name).await,
        };
        self.note(kind, &answer);
        object::version(&answer).map_err(Failure::Unreadable)
    }

    /// The object that replaces the one of `record` last seen as `version`.
    fn replacement(&self, record: &Record, version: &Version, naming: AffinityNaming, name: &str) -> Value {
        let kind = record.key().kind();
        let mut body = object::to_object(record, naming);
        object::keep_metadata(&mut body, &self.kept(kind, name));
        object::condition(&mut body, kind, version);
        body
    }

    async fn delete(
        &self,
        record: &Record,
        version: &Version,
        naming: AffinityNaming,
        name: &str,
    ) -> Result<Version, Failure> {
        let kind = record.key().kind();
        let path = format!("{}/{name}", object::collection(kind));
        if !object::deletes_in_two_phases(kind) {
            let options = delete_options(version.uid.as_deref(), Some(version.revision));
            self.call("DELETE", &path, Some(&options)).await?;
            self.forget(kind, name);
            return Ok(version.clone());
        }
        let mut body = self.replacement(record, version, naming, name);
        object::mark_deleted(&mut body, kind);
        let marked = self.call("PUT", &path, Some(&body)).await?;
        // From here on the record is deleted: whoever reads it finishes what is left.
        let marked = object::version(&marked).map_err(Failure::Unreadable)?;
        if let Err(failure) = self.finish_delete(kind, name, &marked).await {
            tracing::warn!(object = name, ?failure, "left a deleted object for the next reader to remove");
        }
        Ok(version.clone())
    }

    /// The second phase of a delete: removes the object that carries `deleted`, and no successor of it.
    pub(super) async fn finish_delete(
        &self,
        kind: Kind,
        name: &str,
        marked: &Version,
    ) -> Result<(), Failure> {
        let path = format!("{}/{name}", object::collection(kind));
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

    /// The object that an update is about to replace, if it still is what was seen.
    async fn before(&self, record: &Record, version: &Version, written: usize) -> Result<Value, CommitError> {
        let key = record.key();
        let found = self.object(&key).await.map_err(|error| match (error, written) {
            (ReadError::Unavailable { reason, .. }, 0) => {
                CommitError::Unavailable { key: key.clone(), reason }
            }
            (error, _) => unknown(&key, error),
        })?;
        found
            .filter(|object| object::version(object).is_ok_and(|found| found.revision == version.revision))
            .ok_or(CommitError::Conflict { key, written })
    }

    /// State of the record of `key`, `None` where there is none or it is deleted.
    async fn state(&self, key: &Key) -> Result<Option<Version>, ReadError> {
        let Some(object) = self.object(key).await? else { return Ok(None) };
        let malformed = |reason| ReadError::Malformed { what: key.to_string(), reason };
        let stored = object::from_object(key.kind(), &object).map_err(malformed)?;
        Ok(stored.filter(|stored| !stored.record.is_deleted()).map(|stored| stored.version))
    }

    /// Takes writes back, the last one first, and answers how many could not be.
    async fn undo(&self, undos: Vec<Undo>) -> usize {
        let mut left = undos.len();
        for undo in undos.into_iter().rev() {
            let result = match undo {
                Undo::Remove(record, version) => self.write(&Write::Delete(record, version)).await.map(drop),
                Undo::Recreate(record) => self.write(&Write::Create(record)).await.map(drop),
                Undo::Restore(key, before, version) => self.restore(&key, before, &version).await,
            };
            if let Err(failure) = result {
                tracing::warn!(?failure, left, "could not undo a write");
                break;
            }
            left -= 1;
        }
        left
    }

    async fn restore(&self, key: &Key, mut before: Value, version: &Version) -> Result<(), Failure> {
        object::condition(&mut before, key.kind(), version);
        let path = format!("{}/{}", object::collection(key.kind()), object::object_name(&before));
        self.call("PUT", &path, Some(&before)).await.map(drop)
    }
}

/// The checks that no write of the same commit makes by itself. A check that contradicts a write is a conflict now.
fn checks_of_others<'a>(checks: &'a [Check], writes: &[Write]) -> Result<Vec<&'a Check>, CommitError> {
    let mut others = Vec::new();
    for check in checks {
        let (Check::Unchanged(key, _) | Check::Absent(key)) = check;
        let agrees = writes.iter().find(|write| write.key() == *key).map(|write| match (check, write) {
            (Check::Absent(_), Write::Create(_)) => true,
            (Check::Unchanged(_, at), Write::Update(_, seen) | Write::Delete(_, seen)) => {
                *at == seen.revision
            }
            _ => false,
        });
        match agrees {
            None => others.push(check),
            Some(true) => {}
            Some(false) => return Err(CommitError::Conflict { key: key.clone(), written: 0 }),
        }
    }
    Ok(others)
}

/// A write that cannot be made because something had to be read first.
fn not_read(error: ReadError) -> Failure {
    match error {
        ReadError::Forbidden { reason, .. } => {
            Failure::Answered { code: 403, reason: "Forbidden".to_owned(), message: reason }
        }
        error => Failure::NotConnected(error.to_string()),
    }
}

fn unknown(key: &Key, error: ReadError) -> CommitError {
    CommitError::Unknown { key: key.clone(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Revision;
    use api::IpamConfig;

    #[test]
    fn check_of_a_written_record_is_the_writes_own_condition() {
        let write = Write::Create(Record::Config(IpamConfig::default()));
        let checks = [Check::Absent(Key::Config), Check::Absent(Key::ClusterInformation)];
        let others = checks_of_others(&checks, std::slice::from_ref(&write)).unwrap();
        assert_eq!(others, [&Check::Absent(Key::ClusterInformation)]);
        let contradiction = [Check::Unchanged(Key::Config, Revision(1))];
        let result = checks_of_others(&contradiction, &[write]);
        assert!(matches!(result, Err(CommitError::Conflict { key: Key::Config, written: 0 })));
    }
}
