//! A Kubernetes API in the test's own process: collections of objects with revisions, preconditions, pages and watches.

#![expect(dead_code, reason = "each of the tests that include it uses a part")]

use bytes::Bytes;
use futures::stream;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

/// Where commits in one request go.
const COMMITS: &str = "/apis/tortie.io/v1/commits";

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// What happens to a request instead of its answer.
pub(crate) enum Fault {
    /// It is carried out, but no answer arrives.
    AnswerLost,
    /// It is not carried out and refused with this code.
    Refused(u16),
    /// It is carried out, and right after it somebody else changes an object.
    Meddled { path: String, object: Value },
    /// It is carried out, and right after it somebody else deletes an object and makes another of its name.
    Replaced { path: String, object: Value },
}

/// What watches are told besides changes.
#[derive(Clone, Copy)]
enum Signal {
    Bookmark(u64),
    Error(u16),
    End,
}

type Hook = Box<dyn FnMut(&str, &str) -> Option<Fault> + Send>;

struct Change {
    revision: u64,
    kind: &'static str,
    path: String,
    object: Value,
    before: Option<Value>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<String, Value>,
    history: Vec<Change>,
    requests: Vec<String>,
    /// Bodies of deletes.
    deletes: Vec<Value>,
    signals: Vec<Signal>,
    /// Whether commits are taken, whatever the list of groups says.
    commits: bool,
    hook: Option<Hook>,
}

/// The server. Clones share it.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changed: Arc<tokio::sync::watch::Sender<u64>>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), changed: Arc::new(tokio::sync::watch::Sender::new(0)) }
    }

    /// A client of it.
    pub(crate) fn client(&self) -> kube::Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { fake.answer(request).await }
        });
        kube::Client::new(service, "default")
    }

    /// Asks `hook` about every request from now on, by method and path.
    pub(crate) fn fail(&self, hook: impl FnMut(&str, &str) -> Option<Fault> + Send + 'static) {
        self.state.lock().unwrap().hook = Some(Box::new(hook));
    }

    /// Method and path of the requests since the last call of this.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// What the deletes since the last call of this asked for.
    pub(crate) fn deletes(&self) -> Vec<Value> {
        std::mem::take(&mut self.state.lock().unwrap().deletes)
    }

    /// Takes commits in one request.
    pub(crate) fn take_commits(&self) {
        self.state.lock().unwrap().commits = true;
    }

    fn signal(&self, signal: impl FnOnce(u64) -> Signal) {
        let mut state = self.state.lock().unwrap();
        let revision = state.revision;
        state.signals.push(signal(revision));
        drop(state);
        self.changed.send_replace(revision);
    }

    /// Tells the watches that asked for it how far they are.
    pub(crate) fn bookmark(&self) {
        self.signal(Signal::Bookmark);
    }

    /// Tells every watch an error with this code.
    pub(crate) fn error_event(&self, code: u16) {
        self.signal(|_| Signal::Error(code));
    }

    /// Ends every watch, as a server does after some minutes.
    pub(crate) fn end_watches(&self) {
        self.signal(|_| Signal::End);
    }

    /// Where there are objects.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.state.lock().unwrap().objects.keys().cloned().collect()
    }

    /// The object at `path` as stored.
    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    /// Names of the objects whose path begins so.
    pub(crate) fn names(&self, start: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let found = state.objects.keys().filter(|path| path.starts_with(start));
        found.filter_map(|path| path.rsplit('/').next()).map(str::to_owned).collect()
    }

    /// Changes the object at `path`, or makes it, as somebody else would.
    pub(crate) fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state.lock().unwrap();
        let before = state.objects.get(path).cloned();
        object["metadata"]["name"] = json!(path.rsplit('/').next());
        if let Some((_, rest)) = path.split_once("/namespaces/")
            && let Some((namespace, _)) = rest.split_once('/')
        {
            object["metadata"]["namespace"] = json!(namespace);
        }
        state.store(path, object, before);
        let revision = state.revision;
        drop(state);
        self.changed.send_replace(revision);
    }

    /// Deletes the object at `path`, as somebody else would.
    pub(crate) fn remove(&self, path: &str) {
        let mut state = self.state.lock().unwrap();
        state.delete(path, &Value::Null);
        let revision = state.revision;
        drop(state);
        self.changed.send_replace(revision);
    }

    /// Waits until `holds`, which is asked again after every change.
    pub(crate) async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let mut receiver = self.changed.subscribe();
        while !holds(self) {
            receiver.changed().await.unwrap();
        }
    }

    /// Forgets the history so far.
    pub(crate) fn compact(&self) {
        self.state.lock().unwrap().history.clear();
    }

    async fn answer(&self, request: Request<Body>) -> Result<Answer, std::io::Error> {
        let method = request.method().as_str().to_owned();
        let path = request.uri().path().to_owned();
        let query = query(request.uri().query().unwrap_or_default());
        let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let answer = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(format!("{method} {path}"));
            let fault = state.hook.as_mut().and_then(|hook| hook(&method, &path));
            if let Some(Fault::Refused(code)) = fault {
                return Ok(failure(code, "refused"));
            }
            let answer = match method.as_str() {
                "GET" if query.get("watch").is_some_and(|watch| watch == "true") => {
                    self.watch(&state, &path, &query)
                }
                "GET" => state.get(&path, &query),
                "POST" if path == COMMITS => state.commit(&body),
                "POST" => state.create(&path, body),
                "PUT" => state.replace(&path, body),
                "PATCH" => state.patch(&path, &body),
                "DELETE" => {
                    state.deletes.push(body.clone());
                    state.delete(&path, &body)
                }
                _ => failure(405, "method not allowed"),
            };
            if let Some(Fault::Meddled { path, object }) = &fault {
                let before = state.objects.get(path).cloned();
                state.store(path, object.clone(), before);
            }
            if let Some(Fault::Replaced { path, object }) = &fault {
                state.delete(path, &Value::Null);
                state.store(path, object.clone(), None);
            }
            self.changed.send_replace(state.revision);
            if matches!(fault, Some(Fault::AnswerLost)) {
                return Err(std::io::Error::other("connection reset"));
            }
            answer
        };
        Ok(answer)
    }

    fn watch(&self, state: &State, path: &str, query: &BTreeMap<String, String>) -> Answer {
        let from: u64 = query["resourceVersion"].parse().unwrap();
        let oldest = state.history.first().map_or(state.revision, |change| change.revision - 1);
        if from < oldest {
            return failure(410, "too old resource version");
        }
        let collection = path.to_owned();
        let selector = query.get("labelSelector").cloned().unwrap_or_default();
        let fake = self.clone();
        let receiver = self.changed.subscribe();
        let bookmarks = query.get("allowWatchBookmarks").is_some_and(|wanted| wanted == "true");
        let heard = state.signals.len();
        let start = (fake, receiver, from, heard, false);
        let body = stream::unfold(start, move |(fake, mut receiver, mut after, mut heard, mut over)| {
            let (collection, selector) = (collection.clone(), selector.clone());
            async move {
                loop {
                    if over {
                        return None;
                    }
                    let lines: String = {
                        let state = fake.state.lock().unwrap();
                        let lines = state
                            .history
                            .iter()
                            .filter(|change| change.revision > after && is_in(&collection, &change.path))
                            .filter_map(|change| {
                                let now = change.kind != "DELETED" && selects(&selector, &change.object);
                                let then =
                                    change.before.as_ref().is_some_and(|before| selects(&selector, before));
                                let kind = match (then, now) {
                                    (true, true) => "MODIFIED",
                                    (false, true) => "ADDED",
                                    (true, false) => "DELETED",
                                    (false, false) => return None,
                                };
                                Some(json!({"type": kind, "object": change.object}).to_string() + "\n")
                            })
                            .chain(state.signals[heard..].iter().filter_map(|signal| match signal {
                                Signal::Bookmark(at) if bookmarks => {
                                    let metadata = json!({"resourceVersion": at.to_string()});
                                    let object = json!({"kind": "Any", "apiVersion": "v1", "metadata": metadata});
                                    Some(json!({"type": "BOOKMARK", "object": object}).to_string() + "\n")
                                }
                                Signal::Error(code) => {
                                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                                        "metadata": {}, "code": code, "reason": "Expired", "message": "too old"});
                                    Some(json!({"type": "ERROR", "object": status}).to_string() + "\n")
                                }
                                _ => None,
                            }))
                            .collect();
                        over = state.signals[heard..].iter().any(|signal| matches!(signal, Signal::End));
                        heard = state.signals.len();
                        after = state.revision;
                        lines
                    };
                    if !lines.is_empty() {
                        let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(lines)));
                        return Some((frame, (fake, receiver, after, heard, over)));
                    }
                    if over {
                        return None;
                    }
                    receiver.changed().await.ok()?;
                }
            }
        });
        Response::new(BoxBody::new(StreamBody::new(Box::pin(SyncStream(Mutex::new(Box::pin(body)))))))
    }
}

/// A boxed body must be `Sync`, which a stream that is polled by one owner only can be made.
struct SyncStream<S>(Mutex<S>);

impl<S: futures::Stream + Unpin> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        futures::StreamExt::poll_next_unpin(self.get_mut().0.get_mut().unwrap(), context)
    }
}

impl State {
    fn store(&mut self, path: &str, mut object: Value, before: Option<Value>) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let (uid, created) = match &before {
            Some(before) => {
                (before["metadata"]["uid"].clone(), before["metadata"]["creationTimestamp"].clone())
            }
            None => (json!(format!("uid-{}", self.revision)), json!("2026-11-21T12:00:00Z")),
        };
        object["metadata"]["uid"] = uid;
        object["metadata"]["creationTimestamp"] = created;
        self.objects.insert(path.to_owned(), object.clone());
        self.history.push(Change {
            revision: self.revision,
            kind: "PUT",
            path: path.to_owned(),
            object: object.clone(),
            before,
        });
        object
    }

    fn get(&self, path: &str, query: &BTreeMap<String, String>) -> Answer {
        if let Some(object) = self.objects.get(path) {
            return success(object);
        }
        if !is_collection(path) {
            return failure(404, "not found");
        }
        let limit = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let selector = query.get("labelSelector").cloned().unwrap_or_default();
        let after = query.get("continue").cloned().unwrap_or_default();
        let mut matching = self
            .objects
            .iter()
            .filter(|(place, _)| is_in(path, place) && **place > after)
            .filter(|(_, object)| selects(&selector, object));
        let page: Vec<_> = matching.by_ref().take(limit).collect();
        let next =
            if matching.next().is_some() { page.last().map(|(place, _)| place.as_str()) } else { None };
        let items: Vec<&Value> = page.iter().map(|(_, object)| *object).collect();
        success(&json!({
            "kind": "List",
            "metadata": {"resourceVersion": self.revision.to_string(), "continue": next.unwrap_or_default()},
            "items": items,
        }))
    }

    /// A commit in one request; what it checks is taken to hold.
    fn commit(&mut self, commit: &Value) -> Answer {
        if !self.commits {
            return failure(404, "the server could not find the requested resource");
        }
        let mut results = Vec::new();
        for item in commit.pointer("/spec/writes").and_then(Value::as_array).unwrap() {
            let path = item["path"].as_str().unwrap();
            let object = match item["verb"].as_str().unwrap() {
                "create" => {
                    let name = item.pointer("/object/metadata/name").and_then(Value::as_str).unwrap();
                    self.store(&format!("{path}/{name}"), item["object"].clone(), None)
                }
                "update" => {
                    let before = self.objects.get(path).cloned();
                    self.store(path, item["object"].clone(), before)
                }
                verb => panic!("{verb}"),
            };
            let metadata = &object["metadata"];
            results.push(json!({"resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"]}));
        }
        success(&json!({"kind": "Commit", "apiVersion": "tortie.io/v1", "status": {"results": results}}))
    }

    fn create(&mut self, path: &str, object: Value) -> Answer {
        let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
        if self.objects.contains_key(&path) {
            return failure(409, "already exists");
        }
        success(&self.store(&path, object, None))
    }

    fn replace(&mut self, path: &str, object: Value) -> Answer {
        let Some(before) = self.objects.get(path).cloned() else { return failure(404, "not found") };
        let own = |field: &str| object["metadata"].get(field);
        if own("resourceVersion") != before["metadata"].get("resourceVersion") {
            return failure(409, "the object has been modified");
        }
        if own("uid").is_some_and(|uid| *uid != before["metadata"]["uid"]) {
            return failure(409, "Precondition failed: UID in precondition");
        }
        success(&self.store(path, object, Some(before)))
    }

    fn patch(&mut self, path: &str, patch: &Value) -> Answer {
        let path = path.strip_suffix("/status").unwrap_or(path);
        let Some(before) = self.objects.get(path).cloned() else { return failure(404, "not found") };
        let wanted = patch.pointer("/metadata/resourceVersion");
        if wanted.is_some_and(|wanted| *wanted != before["metadata"]["resourceVersion"]) {
            return failure(409, "the object has been modified");
        }
        let mut object = before.clone();
        merge(&mut object, patch);
        success(&self.store(path, object, Some(before)))
    }

    fn delete(&mut self, path: &str, options: &Value) -> Answer {
        let Some(mut object) = self.objects.get(path).cloned() else { return failure(404, "not found") };
        let precondition = |field: &str| options.pointer(&format!("/preconditions/{field}"));
        for field in ["uid", "resourceVersion"] {
            if precondition(field).is_some_and(|wanted| *wanted != object["metadata"][field]) {
                return failure(409, "Precondition failed: UID in precondition");
            }
        }
        let before = self.objects.remove(path);
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let change =
            Change { revision: self.revision, kind: "DELETED", path: path.to_owned(), object, before };
        self.history.push(change);
        success(&json!({"kind": "Status", "status": "Success"}))
    }
}

/// Whether `path` names a collection: after group and version there is a plural, perhaps behind a namespace.
fn is_collection(path: &str) -> bool {
    let parts = path.split('/').skip(1).count();
    if path.starts_with("/apis/") { parts.is_multiple_of(2) } else { !parts.is_multiple_of(2) }
}

/// Whether the object at `place` is in `collection`, which may span all namespaces.
fn is_in(collection: &str, place: &str) -> bool {
    let Some((parent, _)) = place.rsplit_once('/') else { return false };
    if parent == collection {
        return true;
    }
    let Some((root, rest)) = parent.split_once("/namespaces/") else { return false };
    rest.split_once('/').is_some_and(|(_, plural)| format!("{root}/{plural}") == collection)
}

fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut object[key], value);
        }
    }
}

fn selects(selector: &str, object: &Value) -> bool {
    selector.split(',').filter(|term| !term.is_empty()).all(|term| {
        let (key, value) = term.split_once('=').unwrap();
        object["metadata"]["labels"].get(key).and_then(Value::as_str) == Some(value)
    })
}

fn query(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), unescaped(value)))
        .collect()
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&tail[..2]).unwrap(), 16).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn success(body: &Value) -> Answer {
    Response::new(BoxBody::new(Full::new(Bytes::from(body.to_string()))))
}

fn failure(code: u16, message: &str) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": "",
        "message": message});
    let mut answer = success(&body);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap();
    answer
}
