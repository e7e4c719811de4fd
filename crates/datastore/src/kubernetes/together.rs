//! A commit in one request, where the server takes such: our own embedded one does, and says so in discovery.

use super::Kubernetes;
use super::failure::Failure;
use crate::{Check, CommitError, Key, Kind, Revision, Version, Write};
use kube::core::Status;
use serde_json::{Value, json};

/// The API group by which a server says that it takes commits.
pub(super) const GROUP: &str = "tortie.io";

const PATH: &str = "/apis/tortie.io/v1/commits";

/// Reason of the cause that names the item of a refused commit.
const FAILED_ITEM: &str = "FailedItem";

/// How a commit in one request ended.
pub(super) enum Outcome {
    Made(Result<Vec<Version>, CommitError>),
    /// The server does not take commits after all.
    NotServed,
}

impl Kubernetes {
    /// Whether this commit is better made in one request, and the server takes such.
    pub(super) async fn commits_together(&self, checks: &[Check], writes: &[Write]) -> bool {
        let several = writes.len() > 1 || checks.iter().any(|check| !agrees(check, writes));
        let custom = checks.iter().map(checked).chain(writes.iter().map(Write::key));
        several && custom.into_iter().all(|key| key.kind() != Kind::Node) && self.takes_commits().await
    }

    pub(super) async fn commit_together(&self, checks: &[Check], writes: &[Write]) -> Outcome {
        let body = match self.commit_body(checks, writes).await {
            Ok(body) => body,
            Err(failure) => return Outcome::Made(Err(failure.writing(first(writes), 0, false))),
        };
        let request = http::Request::post(PATH)
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json")
            .body(body.to_string().into_bytes());
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                let failure = Failure::Unreadable(error.to_string());
                return Outcome::Made(Err(failure.writing(first(writes), 0, false)));
            }
        };
        self.admitted().await;
        match tokio::time::timeout(self.deadline, self.client.request::<Value>(request)).await {
            Ok(Ok(answer)) => Outcome::Made(results(&answer, writes)),
            Ok(Err(kube::Error::Api(status))) => {
                let item = failed_item(&status);
                if status.code == 404 && item.is_none() {
                    return Outcome::NotServed;
                }
                let (key, creates) = item
                    .as_deref()
                    .and_then(|item| named(item, checks, writes))
                    .unwrap_or_else(|| (first(writes), false));
                let failure = Failure::from_client(kube::Error::Api(status));
                Outcome::Made(Err(failure.writing(key, 0, creates)))
            }
            Ok(Err(error)) => {
                Outcome::Made(Err(Failure::from_client(error).writing(first(writes), 0, false)))
            }
            Err(_) => Outcome::Made(Err(Failure::deadline(self.deadline).writing(first(writes), 0, false))),
        }
    }

    async fn commit_body(&self, checks: &[Check], writes: &[Write]) -> Result<Value, Failure> {
        let mut items = (Vec::with_capacity(checks.len()), Vec::with_capacity(writes.len()));
        for check in checks {
            let key = checked(check);
            let face = self.face(key.kind()).await.map_err(super::commit::not_read)?;
            let mut item = json!({"path": format!("{}/{}", face.collection(key.kind()), face.name(&key))});
            if let Check::Unchanged(_, revision) = check {
                item["resourceVersion"] = json!(revision.0.to_string());
            }
            items.0.push(item);
        }
        for write in writes {
            let key = write.key();
            let face = self.face(key.kind()).await.map_err(super::commit::not_read)?;
            let collection = face.collection(key.kind());
            let name = face.name(&key);
            let path = || format!("{collection}/{name}");
            items.1.push(match write {
                Write::Create(record) | Write::Pass { last: record, seen: None, .. } => {
                    json!({"verb": "create", "path": collection, "object": face.object(record)})
                }
                Write::Update(record, version) | Write::Pass { last: record, seen: Some(version), .. } => {
                    let object = self.replacement(record, version, face, &name);
                    json!({"verb": "update", "path": path(), "object": object})
                }
                Write::Delete(_, version) => {
                    let revision = version.revision.0.to_string();
                    let mut item = json!({"verb": "delete", "path": path(), "resourceVersion": revision});
                    if let Some(uid) = &version.uid {
                        item["uid"] = json!(uid);
                    }
                    item
                }
            });
        }
        Ok(
            json!({"kind": "Commit", "apiVersion": "tortie.io/v1", "spec": {"checks": items.0, "writes": items.1}}),
        )
    }
}

fn checked(check: &Check) -> Key {
    let (Check::Unchanged(key, _) | Check::Absent(key)) = check;
    key.clone()
}

/// Whether a check only repeats the condition of a write.
fn agrees(check: &Check, writes: &[Write]) -> bool {
    writes.iter().any(|write| write.key() == checked(check))
}

/// What a failure is told about where nothing better is known.
fn first(writes: &[Write]) -> Key {
    writes.first().map_or(Key::Config, Write::key)
}

fn failed_item(status: &Status) -> Option<String> {
    let causes = &status.details.as_ref()?.causes;
    Some(causes.iter().find(|cause| cause.reason == FAILED_ITEM)?.field.clone())
}

/// The key that `spec.writes[2]` or `spec.checks[0]` is about, and whether it is to be created.
fn named(item: &str, checks: &[Check], writes: &[Write]) -> Option<(Key, bool)> {
    let (list, index) = item.strip_prefix("spec.")?.strip_suffix(']')?.split_once('[')?;
    let index: usize = index.parse().ok()?;
    match list {
        "checks" => Some((checked(checks.get(index)?), false)),
        "writes" => {
            let write = writes.get(index)?;
            Some((write.key(), matches!(write, Write::Create(_) | Write::Pass { seen: None, .. })))
        }
        _ => None,
    }
}

fn results(answer: &Value, writes: &[Write]) -> Result<Vec<Version>, CommitError> {
    let found = answer.pointer("/status/results").and_then(Value::as_array);
    let unreadable = || CommitError::Unknown {
        key: first(writes),
        reason: "the server's answer to a commit has no results".to_owned(),
    };
    let found = found.filter(|found| found.len() == writes.len()).ok_or_else(unreadable)?;
    writes
        .iter()
        .zip(found)
        .map(|(write, result)| match write {
            Write::Delete(_, version) => Ok(version.clone()),
            _ => {
                let revision = result["resourceVersion"].as_str().and_then(|text| text.parse().ok());
                let uid = result["uid"].as_str().map(str::to_owned);
                Ok(Version { revision: Revision(revision.ok_or_else(unreadable)?), uid })
            }
        })
        .collect()
}
