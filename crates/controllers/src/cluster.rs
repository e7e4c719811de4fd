//! The rim of every controller: watched objects come in as a view, actions go out as requests.
//!
//! The answer to a write enters the view at once, so that a reconciler which runs before the watch has delivered the
//! change does not make the same object twice. An event older than what is held is dropped by its revision.

use crate::object::{self, AFFINITY, IP_POOL, Kind, Name};
use api::Cidr;
use datastore::kubernetes::Kubernetes;
use futures::StreamExt;
use futures::stream;
use ipam::administration::release_affinities_in;
use kube::Client;
use kube::core::WatchEvent;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;

/// Requests under way at once: enough to keep a durable store's group commit busy.
const CONCURRENCY: usize = 32;

/// Longest wait for the answer to a request.
const DEADLINE: Duration = Duration::from_secs(5);

/// First wait after a failed watch or write; doubles up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

/// Longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Rounds of one settling: a namespace, what is in it, its status, and some that overlap.
const ROUNDS: usize = 8;

/// What is watched: a kind in a namespace (empty: everywhere).
pub(crate) type Collection = (Kind, &'static str);

/// Watched objects by kind and name.
#[derive(Debug, Default)]
pub(crate) struct View {
    objects: BTreeMap<(Kind, Name), Value>,
}

impl View {
    /// One object.
    pub(crate) fn get(&self, kind: Kind, name: &Name) -> Option<&Value> {
        self.objects.get(&(kind, name.clone()))
    }

    /// Objects of a kind, by namespace and name.
    pub(crate) fn all(&self, kind: Kind) -> impl Iterator<Item = &Value> {
        let first = (kind, Name::cluster(""));
        self.objects.range(first..).take_while(move |((of, _), _)| *of == kind).map(|(_, object)| object)
    }

    /// Takes in an object unless a newer one is held.
    pub(crate) fn put(&mut self, kind: Kind, mut object: Value) {
        let place = (kind, Name::of(&object));
        if self.objects.get(&place).is_some_and(|held| object::revision(held) >= object::revision(&object)) {
            return;
        }
        // Nobody here reads it, and it is often larger than the rest.
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        self.objects.insert(place, object);
    }

    /// Forgets an object, unless its name has been given to a successor since.
    pub(crate) fn remove(&mut self, kind: Kind, name: &Name, uid: &str) {
        let place = (kind, name.clone());
        if self.objects.get(&place).is_some_and(|held| object::text(held, "/metadata/uid") == uid) {
            self.objects.remove(&place);
        }
    }

    /// Replaces a collection by a fresh list.
    pub(crate) fn reset(&mut self, (kind, namespace): Collection, list: Vec<Value>) {
        self.objects
            .retain(|(of, name), _| *of != kind || !(namespace.is_empty() || name.namespace == namespace));
        for object in list {
            self.put(kind, object);
        }
    }
}

/// A request that a reconciler wants made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Create an object.
    Create(Kind, Value),
    /// Change what an object holds by a merge patch.
    Patch(Kind, Name, Value),
    /// Change an object's status by a merge patch.
    PatchStatus(Kind, Name, Value),
    /// Delete the object that has this uid.
    Delete(Kind, Name, String),
    /// Take all blocks of a pool from their nodes.
    GiveUpBlocks(Name, Cidr),
}

impl Action {
    /// Kind of the object that it changes.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Create(kind, _)
            | Self::Patch(kind, ..)
            | Self::PatchStatus(kind, ..)
            | Self::Delete(kind, ..) => *kind,
            Self::GiveUpBlocks(..) => IP_POOL,
        }
    }

    fn name(&self) -> Name {
        match self {
            Self::Create(_, object) => Name::of(object),
            Self::Patch(_, name, _)
            | Self::PatchStatus(_, name, _)
            | Self::Delete(_, name, _)
            | Self::GiveUpBlocks(name, _) => name.clone(),
        }
    }
}

enum Delivery {
    Listed(Collection, Vec<Value>),
    Put(Kind, Value),
    Deleted(Kind, Value),
}

/// The view and the watches that feed it.
pub(crate) struct Cluster {
    client: Client,
    pub(crate) view: View,
    deliveries: mpsc::Receiver<Delivery>,
    missing: BTreeSet<Collection>,
    wait: Duration,
    /// Dropped with the view, which ends them.
    _tasks: tokio::task::JoinSet<()>,
}

impl Cluster {
    /// Starts to watch `collections`.
    pub(crate) fn watch(client: Client, collections: &[Collection]) -> Self {
        Self::watch_reduced(client, collections, |_, _| {})
    }

    /// Starts to watch `collections` and keeps of each object what `reduce` leaves of it: its name, uid and
    /// resourceVersion must stay.
    pub(crate) fn watch_reduced(
        client: Client,
        collections: &[Collection],
        reduce: fn(Kind, &mut Value),
    ) -> Self {
        let (sender, deliveries) = mpsc::channel(1024);
        let mut tasks = tokio::task::JoinSet::new();
        for collection in collections {
            tasks.spawn(follow(client.clone(), *collection, sender.clone(), reduce));
        }
        let missing = collections.iter().copied().collect();
        Self { client, view: View::default(), deliveries, missing, wait: Duration::ZERO, _tasks: tasks }
    }

    /// Waits until something changed, every collection is known, and, after a failed write, its pause is over.
    ///
    /// `at_most`: come back after this long even if nothing changed, because a clock alone can change a verdict.
    pub(crate) async fn changed(&mut self, at_most: Duration) {
        let retry = !self.wait.is_zero();
        let patience = if retry { self.wait } else { at_most };
        let deadline = tokio::time::Instant::now() + patience;
        let mut inbox = Vec::new();
        loop {
            tokio::select! {
                received = self.deliveries.recv_many(&mut inbox, 1024) => {
                    if received == 0 {
                        // Every watch has ended, which none does: there is nothing left to wait for.
                        std::future::pending::<()>().await;
                    }
                }
                () = tokio::time::sleep_until(deadline), if self.missing.is_empty() => {}
            }
            for delivery in inbox.drain(..) {
                match delivery {
                    Delivery::Listed(collection, objects) => {
                        self.missing.remove(&collection);
                        self.view.reset(collection, objects);
                    }
                    Delivery::Put(kind, object) => self.view.put(kind, object),
                    Delivery::Deleted(kind, object) => {
                        self.view.remove(kind, &Name::of(&object), object::text(&object, "/metadata/uid"));
                    }
                }
            }
            // A verdict from half a view would delete what it cannot see.
            if self.missing.is_empty() {
                return;
            }
        }
    }

    /// Whether every collection has been listed: before that nothing must be decided.
    pub(crate) fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// Carries out what `reconcile` wants until it wants nothing more; what failed is tried again after a pause.
    pub(crate) async fn settle(&mut self, reconcile: impl Fn(&View) -> Vec<Action>) {
        for _ in 0..ROUNDS {
            let actions = reconcile(&self.view);
            if actions.is_empty() {
                self.wait = Duration::ZERO;
                return;
            }
            let client = &self.client;
            let answers: Vec<_> = stream::iter(actions)
                .map(|action| async move {
                    let answer = perform(client, &action).await;
                    (action, answer)
                })
                .buffer_unordered(CONCURRENCY)
                .collect()
                .await;
            let mut failed = false;
            for (action, answer) in answers {
                failed |= !self.take_in(&action, answer);
            }
            if failed {
                self.wait = (self.wait * 2).clamp(SHORTEST_WAIT, LONGEST_WAIT);
                return;
            }
        }
        tracing::warn!("still something to do after {ROUNDS} rounds");
        self.wait = LONGEST_WAIT;
    }

    /// Lays the answer to a write over the view. False if the write failed.
    fn take_in(&mut self, action: &Action, answer: Result<Value, Refusal>) -> bool {
        let (kind, name) = (action.kind(), action.name());
        match (answer, action) {
            (Ok(answer), Action::Delete(_, _, uid)) => {
                if object::is_deleting(&answer) {
                    self.view.put(kind, answer);
                } else {
                    self.view.remove(kind, &name, uid);
                }
                tracing::info!(kind = kind.name, object = %name, "deleted");
                true
            }
            (Ok(_), Action::GiveUpBlocks(_, pool)) => {
                self.view.objects.retain(|(kind, _), object| {
                    let block = object::text(object, "/spec/cidr").parse::<Cidr>();
                    *kind != AFFINITY || !block.is_ok_and(|block| block.overlaps(*pool))
                });
                tracing::info!(pool = name.name, "took the blocks of a pool from their nodes");
                true
            }
            (Ok(answer), _) => {
                let what = if matches!(action, Action::Create(..)) { "created" } else { "changed" };
                tracing::info!(kind = kind.name, object = %name, revision = object::revision(&answer), "{what}");
                self.view.put(kind, answer);
                true
            }
            // Somebody was faster: the watch brings what has to be decided upon anew.
            (Err(Refusal { code: 404 | 409, reason }), _) => {
                tracing::debug!(kind = kind.name, object = %name, reason, "overtaken");
                false
            }
            (Err(Refusal { reason, .. }), _) => {
                tracing::warn!(kind = kind.name, object = %name, reason, "write failed, trying again");
                false
            }
        }
    }
}

/// Why a request has no result; `code` is 0 where there was no answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) reason: String,
}

impl From<kube::Error> for Refusal {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self { code: status.code, reason: status.message },
            error => Self { code: 0, reason: error.to_string() },
        }
    }
}

/// One request, answered within a deadline.
pub(crate) async fn send(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Refusal> {
    let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, media)
        .body(body.map(Value::to_string).unwrap_or_default().into_bytes())
        .map_err(|error| Refusal { code: 0, reason: error.to_string() })?;
    match tokio::time::timeout(DEADLINE, client.request(request)).await {
        Ok(answer) => answer.map_err(Refusal::from),
        Err(_) => Err(Refusal { code: 0, reason: format!("no answer within {} s", DEADLINE.as_secs()) }),
    }
}

async fn perform(client: &Client, action: &Action) -> Result<Value, Refusal> {
    let name = action.name();
    let collection = action.kind().path(&name.namespace);
    let path = format!("{collection}/{}", name.name);
    match action {
        Action::Create(_, object) => send(client, "POST", &collection, Some(object)).await,
        Action::Patch(_, _, patch) => send(client, "PATCH", &path, Some(patch)).await,
        Action::PatchStatus(_, _, patch) => {
            send(client, "PATCH", &format!("{path}/status"), Some(patch)).await
        }
        Action::Delete(_, _, uid) => {
            let options = json!({"propagationPolicy": "Background", "preconditions": {"uid": uid}});
            send(client, "DELETE", &path, Some(&options)).await
        }
        Action::GiveUpBlocks(_, pool) => {
            let store = Kubernetes::with_client(client.clone());
            match release_affinities_in(&store, &SystemClock, *pool).await {
                Ok(_) => Ok(Value::Null),
                Err(error) => Err(Refusal { code: 0, reason: error.to_string() }),
            }
        }
    }
}

/// The clock of the machine.
pub(crate) struct SystemClock;

impl ipam::Clock for SystemClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }
}

/// Lists and watches a collection for ever.
async fn follow(
    client: Client,
    collection: Collection,
    sender: mpsc::Sender<Delivery>,
    reduce: fn(Kind, &mut Value),
) {
    let mut wait = SHORTEST_WAIT;
    loop {
        let mut listed = false;
        if let Err(refusal) = list_and_watch(&client, collection, &sender, reduce, &mut listed).await {
            tracing::debug!(kind = collection.0.name, reason = refusal.reason, "watch lost");
            // Its definition does not exist yet, so there are none.
            if refusal.code == 404 && sender.send(Delivery::Listed(collection, Vec::new())).await.is_err() {
                return;
            }
        }
        if sender.is_closed() {
            return;
        }
        wait = if listed { SHORTEST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
        tokio::time::sleep(wait).await;
    }
}

async fn list_and_watch(
    client: &Client,
    (kind, namespace): Collection,
    sender: &mpsc::Sender<Delivery>,
    reduce: fn(Kind, &mut Value),
    listed: &mut bool,
) -> Result<(), Refusal> {
    let closed = |_| Refusal { code: 0, reason: "nobody listens".to_owned() };
    let path = kind.path(namespace);
    let mut list = send(client, "GET", &path, None).await?;
    let mut revision = object::text(&list, "/metadata/resourceVersion").to_owned();
    let mut objects = match list.get_mut("items").map(Value::take) {
        Some(Value::Array(objects)) => objects,
        _ => Vec::new(),
    };
    objects.iter_mut().for_each(|object| reduce(kind, object));
    *listed = true;
    sender.send(Delivery::Listed((kind, namespace), objects)).await.map_err(closed)?;
    loop {
        let path = format!(
            "{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds=290&resourceVersion={revision}"
        );
        let request = http::Request::get(path)
            .body(Vec::new())
            .map_err(|error| Refusal { code: 0, reason: error.to_string() })?;
        let mut events = Box::pin(client.request_events::<Value>(request).await?);
        while let Some(event) = events.next().await {
            let delivery = match event? {
                WatchEvent::Added(mut object) | WatchEvent::Modified(mut object) => {
                    reduce(kind, &mut object);
                    object::text(&object, "/metadata/resourceVersion").clone_into(&mut revision);
                    Delivery::Put(kind, object)
                }
                WatchEvent::Deleted(object) => {
                    object::text(&object, "/metadata/resourceVersion").clone_into(&mut revision);
                    Delivery::Deleted(kind, object)
                }
                WatchEvent::Bookmark(bookmark) => {
                    revision = bookmark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            };
            sender.send(delivery).await.map_err(closed)?;
        }
        // A server that ends every watch at once is not asked in a tight loop.
        tokio::time::sleep(SHORTEST_WAIT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{NODE, POD};

    fn pod(namespace: &str, revision: &str, uid: &str) -> Value {
        json!({"metadata": {"namespace": namespace, "name": "a", "uid": uid, "resourceVersion": revision}})
    }

    #[test]
    fn older_event_does_not_undo_the_answer_to_our_own_write() {
        let mut view = View::default();
        view.put(POD, pod("x", "7", "u"));
        view.put(POD, pod("x", "5", "u"));
        assert_eq!(view.all(POD).map(object::revision).collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn late_deletion_does_not_take_the_successor_of_the_same_name() {
        let mut view = View::default();
        view.put(POD, pod("x", "9", "second"));
        view.remove(POD, &Name::within("x", "a"), "first");
        assert!(view.get(POD, &Name::within("x", "a")).is_some());
    }

    #[test]
    fn fresh_list_replaces_its_own_collection_only() {
        let mut view = View::default();
        view.put(POD, pod("x", "1", "u"));
        view.put(POD, pod("y", "1", "u"));
        view.put(NODE, json!({"metadata": {"name": "n", "resourceVersion": "1"}}));
        view.reset((POD, "x"), Vec::new());
        assert!(view.get(POD, &Name::within("x", "a")).is_none());
        assert!(view.get(POD, &Name::within("y", "a")).is_some());
        assert!(view.get(NODE, &Name::cluster("n")).is_some());
    }
}
