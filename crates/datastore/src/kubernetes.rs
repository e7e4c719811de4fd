//! The records as custom resources of a Kubernetes API, Calico's own datastore (data model §3.3).
//!
//! Lists are paged by 500, watches ask for bookmarks, every call has a deadline, and no write is repeated by itself.
//! A commit is the ordered sequence of its writes, since the API has no transaction, but for our own server, which
//! takes commits and says so in discovery (architecture D3).

mod commit;
mod connection;
mod definitions;
mod failure;
mod object;
mod others;
mod rate;
mod together;
mod whole;

use crate::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Kind, Listing, ReadError, Revision, Scope,
    Stored, Version, Write, ordered,
};
use api::wire::Group;
use api::{AffinityNaming, Owner};
pub use definitions::DefineError;
pub use others::{Other, OtherError, place_of};
pub use rate::Rate;

use failure::Failure;
use futures::stream::{self, BoxStream, StreamExt};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::WatchEvent;
use object::Face;
use rate::Limiter;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use together::Outcome;

/// How long one call may take, unless set otherwise.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Objects asked for in one page of a list.
const PAGE: usize = 500;

/// How often a read is tried before its failure is reported.
const READ_TRIES: u32 = 3;

/// Seconds after which the server ends a watch.
const WATCH_SECONDS: u64 = 290;

/// How long a store without a naming record is taken as Calico's before the record is looked for again.
const NAMING_ABSENCE: Duration = Duration::from_secs(30);

/// Where the naming of affinities is recorded (architecture D9).
const NAMING_PATH: &str = "/api/v1/namespaces/kube-system/configmaps/tortie-datastore";

/// Why no connection was set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {reason}; name another with KUBECONFIG or --kubeconfig")]
    Kubeconfig {
        /// The file, or how it was looked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificates or addresses in it make no client.
    #[error("no client can be made from kubeconfig {path}: {reason}")]
    Client {
        /// The file, or how it was looked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A client of the API that `kubeconfig` names, or of the one found as kubectl finds it (KUBECONFIG, then
/// `~/.kube/config`, then the pod's service account). Nothing is sent yet.
///
/// It tries nothing twice by itself, so that a write whose answer was lost is not repeated.
///
/// # Errors
/// See [`ConnectError`].
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    // Another part of the process may have chosen a provider before: then that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let path = kubeconfig.map_or_else(|| "found by inference".to_owned(), |path| path.display().to_string());
    let bad = |reason: String| ConnectError::Kubeconfig { path: path.clone(), reason };
    let mut config = match kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|error| bad(error.to_string()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(|error| bad(error.to_string()))?
        }
        None => kube::Config::infer().await.map_err(|error| bad(error.to_string()))?,
    };
    if config.auth_info.exec.is_some() {
        let reason = "its user is logged in by a program (exec), which is not done here: give it a token or a certificate";
        return Err(bad(reason.to_owned()));
    }
    config.connect_timeout = Some(DEADLINE);
    config.default_retry = false;
    connection::client(config).map_err(|error| ConnectError::Client { path, reason: error.to_string() })
}

#[derive(Debug)]
struct Shared {
    /// When the driver was made.
    started: Instant,
    /// The group that the records are in, once that is known.
    group: OnceLock<Group>,
    /// Whether the server takes commits, once that is known.
    commits: OnceLock<bool>,
    /// Held while the server is asked for both, so that calls that begin together ask once.
    discovering: futures::lock::Mutex<()>,
    /// How affinities are named, and when that was found out.
    naming: Mutex<Option<(AffinityNaming, Instant, bool)>>,
    /// Metadata of other writers by object, as JSON, for the few objects that have any: an update must not lose it. Texts, because
    /// in some clusters all blocks have some.
    kept: Mutex<BTreeMap<(Kind, String), Box<str>>>,
}

/// The driver. Clones share the connection.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    deadline: Duration,
    limiter: Option<Arc<Limiter>>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// A driver over the API that `kubeconfig` names, or of the one found as kubectl finds it. Nothing is sent yet.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, ConnectError> {
        Ok(Self::with_client(client(kubeconfig).await?))
    }

    /// A driver over `client`, which must not repeat writes by itself (see [`client`]).
    pub fn with_client(client: Client) -> Self {
        let shared = Shared {
            started: Instant::now(),
            group: OnceLock::new(),
            commits: OnceLock::new(),
            discovering: futures::lock::Mutex::new(()),
            naming: Mutex::default(),
            kept: Mutex::default(),
        };
        Self { client, deadline: DEADLINE, limiter: None, shared: Arc::new(shared) }
    }

    /// The same driver for records in `group`, by the plain API.
    ///
    /// Without this the server is asked once which groups it serves, and whether it makes commits in one request.
    #[must_use]
    pub fn with_group(self, group: Group) -> Self {
        let _ = self.shared.group.set(group);
        let _ = self.shared.commits.set(false);
        self
    }

    /// The same driver with another deadline for each call.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The same driver with a limit of its calls; clones share it. Waiting for a place counts against no deadline.
    #[must_use]
    pub fn with_rate(self, rate: Rate) -> Self {
        Self { limiter: Limiter::new(rate).map(Arc::new), ..self }
    }

    /// Whether its calls are limited.
    pub fn is_limited(&self) -> bool {
        self.limiter.is_some()
    }

    /// Waits until a call may go out.
    async fn admitted(&self) {
        if let Some(limiter) = &self.limiter {
            let wait = limiter.take(tokio::time::Instant::now().into_std());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// The client, for calls that are not about records.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// How affinities are named here: as recorded at set-up, per node where nothing is recorded.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn naming(&self) -> Result<AffinityNaming, ReadError> {
        let known = *self.shared.naming.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((naming, at, recorded)) = known
            && (recorded || at.elapsed() < NAMING_ABSENCE)
        {
            return Ok(naming);
        }
        let what = || "the naming of affinities".to_owned();
        let found = match self.read("GET", NAMING_PATH).await {
            Ok(object) => match object.pointer("/data/affinityNaming").and_then(Value::as_str) {
                None => None,
                Some("per-block") => Some(AffinityNaming::PerBlock),
                Some("per-node") => Some(AffinityNaming::PerNode),
                Some(other) => {
                    let reason = format!(
                        "affinityNaming is {other:?} in ConfigMap kube-system/tortie-datastore; it is per-block or per-node"
                    );
                    return Err(ReadError::Malformed { what: what(), reason });
                }
            },
            Err(failure) if failure.is_not_found() => None,
            Err(failure) => return Err(failure.reading(what())),
        };
        let naming = found.unwrap_or_default();
        *self.shared.naming.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((naming, Instant::now(), found.is_some()));
        Ok(naming)
    }

    /// How objects of `kind` look here.
    async fn face(&self, kind: Kind) -> Result<Face, ReadError> {
        let group = if kind == Kind::Node { Group::V1 } else { self.group().await };
        let naming = if kind == Kind::Affinity { self.naming().await? } else { AffinityNaming::PerNode };
        Ok(Face { group, naming })
    }

    /// The group that the records are in: as set, else as the server's list of groups says (data model §1).
    ///
    /// Datastore calls: 1 the first time, unless it is set.
    pub async fn group(&self) -> Group {
        if self.shared.group.get().is_none() {
            self.discover().await;
        }
        self.shared.group.get().copied().unwrap_or_default()
    }

    /// Whether the server makes a commit in one request.
    async fn takes_commits(&self) -> bool {
        if self.shared.commits.get().is_none() {
            self.discover().await;
        }
        self.shared.commits.get().copied().unwrap_or_default()
    }

    /// Asks which groups the server has. Where the list cannot be had it is asked for again next time.
    async fn discover(&self) {
        let _one = self.shared.discovering.lock().await;
        if self.shared.group.get().is_some() && self.shared.commits.get().is_some() {
            return;
        }
        match self.read("GET", "/apis").await {
            Ok(list) => {
                let groups = list.pointer("/groups").and_then(Value::as_array);
                let names = groups.into_iter().flatten().filter_map(|group| group.get("name")?.as_str());
                let _ = self.shared.commits.set(names.clone().any(|name| name == together::GROUP));
                let _ = self.shared.group.set(Group::served(names));
            }
            Err(failure) => {
                tracing::debug!(?failure, "no list of API groups, using {}", Group::V1.api_version());
                // Who may not see the list will not see it later either.
                if !failure.is_passing() {
                    let _ = self.shared.group.set(Group::V1);
                }
            }
        }
    }

    /// One call, once.
    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        self.admitted().await;
        self.send_within(self.deadline, method, path, body).await
    }

    async fn send_within(
        &self,
        limit: Duration,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, media)
            .header(http::header::ACCEPT, "application/json")
            .body(body.map(Value::to_string).unwrap_or_default().into_bytes())
            .map_err(|error| Failure::Unreadable(error.to_string()))?;
        match tokio::time::timeout(limit, self.client.request::<Value>(request)).await {
            Ok(result) => result.map_err(Failure::from_client),
            Err(_) => Err(Failure::deadline(limit)),
        }
    }

    /// A call that changes nothing, tried again where that may help. All tries together have the deadline of one call, but for
    /// what they wait for a place under a limit of calls.
    async fn read(&self, method: &str, path: &str) -> Result<Value, Failure> {
        let (mut left, mut wait) = (self.deadline, Duration::from_millis(20));
        for _ in 1..READ_TRIES {
            self.admitted().await;
            let begun = tokio::time::Instant::now();
            match self.send_within(left, method, path, None).await {
                Err(failure) if failure.is_passing() => {
                    tracing::debug!(path, ?failure, "reading again");
                    tokio::time::sleep(wait).await;
                    left = left.saturating_sub(begun.elapsed());
                    wait *= 5;
                    if left.is_zero() {
                        return Err(failure);
                    }
                }
                result => return result,
            }
        }
        self.admitted().await;
        self.send_within(left, method, path, None).await
    }

    /// Reads a path that hangs on the group that the records are in.
    ///
    /// Where the group is not known yet it is asked for beside the read, which goes to the group of all releases so far: only
    /// a server that has the records elsewhere is read a second time.
    async fn read_of(&self, kind: Kind, path: impl Fn(Group) -> String) -> Result<Value, Failure> {
        let known = if kind == Kind::Node { Some(Group::V1) } else { self.shared.group.get().copied() };
        if let Some(group) = known {
            return self.read("GET", &path(group)).await;
        }
        let guess = Group::default();
        let guessed = path(guess);
        let (group, found) = futures::join!(self.group(), self.read("GET", &guessed));
        if group != guess {
            return self.read("GET", &path(group)).await;
        }
        match found {
            // Nobody said where the records are: that there is nothing under the guess does not mean that there is nothing.
            Err(failure) if failure.is_not_found() && self.shared.group.get().is_none() => {
                Err(Failure::NoAnswer("the server does not say which API groups it has".to_owned()))
            }
            found => found,
        }
    }

    /// Remembers what an update of `object` must keep.
    fn note(&self, kind: Kind, object: &Value) {
        let kept = object::kept_metadata(object);
        let place = (kind, object::object_name(object).to_owned());
        let mut all = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_empty() {
            all.remove(&place);
        } else if kind != Kind::Node {
            all.insert(place, Value::Object(kept).to_string().into_boxed_str());
        }
    }

    fn forget(&self, kind: Kind, name: &str) {
        let mut all = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(kind, name.to_owned()));
    }

    fn kept(&self, kind: Kind, name: &str) -> Map<String, Value> {
        let all = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let text = all.get(&(kind, name.to_owned()));
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// The object of `key` as it is, deleted or not.
    async fn object(&self, key: &Key) -> Result<Option<Value>, ReadError> {
        let kind = key.kind();
        let naming = if kind == Kind::Affinity { self.naming().await? } else { AffinityNaming::PerNode };
        let path = |group| {
            let face = Face { group, naming };
            format!("{}/{}", face.collection(kind), face.name(key))
        };
        match self.read_of(kind, path).await {
            Ok(object) => {
                self.note(kind, &object);
                Ok(Some(object))
            }
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure.reading(key.to_string())),
        }
    }

    /// Says once per sight what was mended in an object as it was read.
    fn tell_mended(kind: Kind, object: &Value) -> Option<String> {
        let fault = object::mended(kind, object)?;
        tracing::warn!(kind = %kind, object = object::object_name(object), fault, "mended object as it was read");
        Some(fault)
    }

    /// A listed or watched object as a record. One that cannot be read is left out and said once per sight.
    fn record(&self, kind: Kind, object: &Value) -> Option<Stored> {
        self.note(kind, object);
        match object::from_object(kind, object) {
            Ok(stored) => stored,
            Err(reason) => {
                tracing::warn!(kind = %kind, object = object::object_name(object), reason, "skipped object");
                None
            }
        }
    }
}

/// Label selector that finds the objects of `scope`, as a query parameter.
fn selector(scope: &Scope) -> String {
    match scope {
        Scope::All(_) => String::new(),
        Scope::AffinitiesOf(owner) => {
            let labels: Vec<String> = api::affinity::selecting_labels(owner)
                .iter()
                .map(|(key, value)| format!("{}%3D{value}", key.replace('/', "%2F")))
                .collect();
            format!("&labelSelector={}", labels.join("%2C"))
        }
    }
}

/// A continue token as a query parameter: the server may put anything into it.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

impl Datastore for Kubernetes {
    fn capabilities(&self) -> Capabilities {
        let atomic_commit = self.shared.commits.get() == Some(&true);
        Capabilities { atomic_commit, name: "kubernetes" }
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        let kind = key.kind();
        // A reader that meets a half deleted object finishes the delete; a successor may stand there afterwards.
        for _ in 0..READ_TRIES {
            let Some(object) = self.object(key).await? else { return Ok(None) };
            let malformed = |reason| ReadError::Malformed { what: key.to_string(), reason };
            let Some(stored) = object::from_object(kind, &object).map_err(malformed)? else {
                return Ok(None);
            };
            if !stored.record.is_deleted() {
                Self::tell_mended(kind, &object);
                return Ok(Some(stored));
            }
            let name = object::object_name(&object).to_owned();
            self.finish_delete(self.face(kind).await?, kind, &name, &stored.version)
                .await
                .map_err(|failure| failure.reading(key.to_string()))?;
        }
        Ok(None)
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        match scope {
            // Who asks for these is about to write some: how they are named is found out meanwhile.
            Scope::AffinitiesOf(_) => futures::join!(self.pages(scope), self.naming()).0,
            Scope::All(_) => self.pages(scope).await,
        }
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        if self.commits_together(checks, writes).await
            && let Outcome::Made(result) = self.commit_together(checks, writes).await
        {
            return result;
        }
        ordered::commit(self, checks, writes).await
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        let kind = scope.kind();
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}{}",
            self.face(kind).await?.collection(kind),
            from.0,
            selector(scope)
        );
        let request = http::Request::get(&path)
            .header(http::header::ACCEPT, "application/json")
            .body(Vec::new())
            .map_err(|error| ReadError::Malformed { what: scope.to_string(), reason: error.to_string() })?;
        self.admitted().await;
        let opening = self.client.request_events::<Value>(request);
        let events = match tokio::time::timeout(self.deadline, opening).await {
            Ok(result) => result.map_err(|error| Failure::from_client(error).reading(scope.to_string()))?,
            Err(_) => return Err(Failure::deadline(self.deadline).reading(scope.to_string())),
        };
        let events: BoxStream<'static, kube::Result<WatchEvent<Value>>> = Box::pin(events);
        let state = (events, self.clone(), scope.clone());
        Ok(stream::unfold(state, move |(mut events, driver, scope)| async move {
            loop {
                let what = || scope.to_string();
                // A server that neither ends the watch nor says anything is gone.
                let patience = Duration::from_secs(WATCH_SECONDS) + driver.deadline;
                let event = match tokio::time::timeout(patience, events.next()).await {
                    Ok(event) => event?,
                    Err(_) => {
                        return Some((
                            Err(Failure::deadline(patience).reading(what())),
                            (events, driver, scope),
                        ));
                    }
                };
                let told = match event {
                    Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                        driver.put(&scope, &object)
                    }
                    Ok(WatchEvent::Deleted(object)) => driver.deleted(&scope, &object),
                    Ok(WatchEvent::Bookmark(bookmark)) => bookmark
                        .metadata
                        .resource_version
                        .parse()
                        .ok()
                        .map(|at| Event::Progress(Revision(at))),
                    Ok(WatchEvent::Error(status)) => {
                        let failure = Failure::from_client(kube::Error::Api(status));
                        return Some((Err(failure.reading(what())), (events, driver, scope)));
                    }
                    Err(error) => {
                        let failure = Failure::from_client(error);
                        return Some((Err(failure.reading(what())), (events, driver, scope)));
                    }
                };
                if let Some(told) = told {
                    return Some((Ok(told), (events, driver, scope)));
                }
            }
        })
        .boxed())
    }
}

impl Kubernetes {
    /// Lists page by page.
    async fn pages(&self, scope: &Scope) -> Result<Listing, ReadError> {
        let kind = scope.kind();
        let query = selector(scope);
        let mut starts = 0;
        'again: loop {
            starts += 1;
            let (mut items, mut unreadable, mut next) = (Vec::new(), Vec::new(), String::new());
            let mut mended = Vec::new();
            loop {
                let from =
                    if next.is_empty() { String::new() } else { format!("&continue={}", escaped(&next)) };
                let path = |group| {
                    // What a collection is called does not hang on how affinities are named.
                    let collection = Face { group, naming: AffinityNaming::PerNode }.collection(kind);
                    format!("{collection}?limit={PAGE}{query}{from}")
                };
                let mut page = match self.read_of(kind, path).await {
                    Ok(page) => page,
                    // No definition, no records.
                    Err(failure) if failure.is_not_found() => return Ok(Listing::default()),
                    // The pages' revision is gone: begin anew.
                    Err(Failure::Answered { code: 410, .. }) if starts < READ_TRIES => continue 'again,
                    Err(failure) => return Err(failure.reading(scope.to_string())),
                };
                if let Some(Value::Array(objects)) = page.get_mut("items").map(Value::take) {
                    for object in &objects {
                        match self.record(kind, object) {
                            Some(stored) => {
                                let fault = Self::tell_mended(kind, object);
                                mended.extend(fault.map(|fault| (stored.record.key(), fault)));
                                items.push(stored);
                            }
                            None => unreadable.extend(object::key_of(kind, object)),
                        }
                    }
                }
                match page.pointer("/metadata/continue").and_then(Value::as_str) {
                    Some(token) if !token.is_empty() => next = token.to_owned(),
                    _ => {
                        items.retain(|stored: &Stored| {
                            scope.holds(&stored.record.key()) && !stored.record.is_deleted()
                        });
                        items.sort_by_cached_key(|stored: &Stored| stored.record.key());
                        unreadable.retain(|key| scope.holds(key));
                        let revision = object::version(&page)
                            .map_err(|reason| ReadError::Malformed { what: scope.to_string(), reason })?
                            .revision;
                        return Ok(Listing { items, revision, unreadable, mended });
                    }
                }
            }
        }
    }

    /// The event of an object that was created or changed.
    fn put(&self, scope: &Scope, object: &Value) -> Option<Event> {
        Self::tell_mended(scope.kind(), object);
        let Some(stored) = self.record(scope.kind(), object) else {
            let at = object::version(object).ok()?.revision;
            return Some(Event::Unreadable(object::key_of(scope.kind(), object)?, at));
        };
        let key = stored.record.key();
        let at = stored.version.revision;
        match scope {
            // Taken over by another owner: to whom follows this owner it is gone.
            Scope::AffinitiesOf(owner) if !scope.holds(&key) => Some(Event::Deleted(theirs(owner, key), at)),
            _ if stored.record.is_deleted() => Some(Event::Deleted(key, at)),
            _ => Some(Event::Put(stored)),
        }
    }

    /// The event of an object that was deleted or left the scope.
    fn deleted(&self, scope: &Scope, object: &Value) -> Option<Event> {
        self.forget(scope.kind(), object::object_name(object));
        let at = object::version(object).ok()?.revision;
        let key = object::key_of(scope.kind(), object)?;
        Some(match scope {
            Scope::AffinitiesOf(owner) => Event::Deleted(theirs(owner, key), at),
            Scope::All(_) => Event::Deleted(key, at),
        })
    }
}

/// The key of the same block's affinity, of `owner`.
fn theirs(owner: &Owner, key: Key) -> Key {
    match key {
        Key::Affinity(_, cidr) => Key::Affinity(owner.clone(), cidr),
        key => key,
    }
}

/// The preconditions of a delete.
fn delete_options(uid: Option<&str>, revision: Option<Revision>) -> Value {
    let mut preconditions = Map::new();
    if let Some(uid) = uid {
        preconditions.insert("uid".to_owned(), json!(uid));
    }
    if let Some(revision) = revision {
        preconditions.insert("resourceVersion".to_owned(), json!(revision.0.to_string()));
    }
    json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions})
}
