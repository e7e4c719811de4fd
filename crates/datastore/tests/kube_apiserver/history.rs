//! Many clients, long lists, old revisions: what a server does over time.

use crate::server::{KubeApiserver, define_older_group};
use crate::{handle, one};
use api::Pool;
use datastore::conformance::concurrent::{Deletes, history_is_linearizable};
use datastore::follow::{Change, follow};
use datastore::kubernetes::Kubernetes;
use datastore::{Datastore, Event, Kind, ReadError, Record, Scope, Write};
use futures::StreamExt;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Operations of the eight clients together.
const OPERATIONS: usize = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_clients_are_linearizable_and_a_quiet_watch_is_told_how_far_it_is() {
    let Some(server) = KubeApiserver::start().await else { return };
    let first = server.driver("admin").await;
    define_older_group(&first).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(server.driver("admin").await);
    }
    let pools = Scope::All(Kind::Pool);
    let from = first.list(&pools).await.unwrap().revision;
    let mut quiet = first.watch(&pools, from).await.unwrap();
    let pool = Record::Pool(Pool::with_defaults("p", "10.0.0.0/16".parse().unwrap()));
    let version = one(&first, Write::Create(pool)).await.unwrap();
    assert!(matches!(quiet.next().await, Some(Ok(Event::Put(stored))) if stored.version == version));
    history_is_linearizable(&clients.iter().collect::<Vec<_>>(), OPERATIONS, Deletes::InPhases)
        .await
        .unwrap();
    // About once a minute, and no further than the kind's own last event where the server's etcd is old.
    let told = quiet.next().await.unwrap().unwrap();
    assert!(matches!(told, Event::Progress(at) if at >= version.revision), "{told:?} after {version:?}");
}

/// A client that runs `meddle` before each request for a further page.
fn meddling<F>(store: &Kubernetes, meddle: impl Fn() -> F + Clone + Send + Sync + 'static) -> kube::Client
where
    F: Future<Output = ()> + Send + 'static,
{
    let client = store.client();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (client, meddle) = (client.clone(), meddle.clone());
        async move {
            if request.uri().query().is_some_and(|query| query.contains("continue=")) {
                meddle().await;
            }
            client.send(request).await
        }
    });
    kube::Client::new(service, "default")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_is_one_state_whatever_is_written_or_compacted_between_its_pages() {
    let Some(server) = KubeApiserver::start().await else { return };
    let store = server.driver("admin").await;
    define_older_group(&store).await;
    let making = (0..1203).map(|number| {
        let store = store.clone();
        async move { one(&store, Write::Create(handle(&format!("h{number:04}"), 1))).await.unwrap() }
    });
    futures::stream::iter(making).buffered(8).for_each(|_| async {}).await;
    let handles = Scope::All(Kind::Handle);
    let plain = store.list(&handles).await.unwrap();
    assert_eq!(plain.items.len(), 1203);
    assert!(plain.items.is_sorted_by_key(|stored| stored.record.key()));

    // Written between the pages, a record that sorts last is not in the list, and the watch from there tells it.
    let (writer, pages) = (store.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&pages);
    let between = meddling(&store, move || {
        let (writer, page) = (writer.clone(), counted.fetch_add(1, Ordering::SeqCst));
        async move { drop(one(&writer, Write::Create(handle(&format!("z{page}"), 1))).await) }
    });
    let listing = Kubernetes::with_client(between).list(&handles).await.unwrap();
    assert_eq!(pages.load(Ordering::SeqCst), 2, "three pages");
    assert_eq!(listing.items.len(), 1203, "as of its first page");
    let mut watch = store.watch(&handles, listing.revision).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 2 {
        if let Event::Put(stored) = watch.next().await.unwrap().unwrap() {
            told.push(stored.record);
        }
    }
    assert_eq!(told, [handle("z0", 1), handle("z1", 1)]);

    // Its history compacted away and forgotten by the server between the pages: the list begins anew and is whole.
    let (writer, pages) = (store.clone(), Arc::new(AtomicUsize::new(0)));
    let (endpoint, counted) = (server.etcd.endpoint.clone(), Arc::clone(&pages));
    let between = meddling(&store, move || {
        let (writer, endpoint) = (writer.clone(), endpoint.clone());
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if first {
                let version = one(&writer, Write::Create(handle("late", 1))).await.unwrap();
                let revision = json!({"revision": version.revision.0.to_string(), "physical": true});
                crate::etcd::post_to(&endpoint, "/v3/kv/compaction", revision).await;
            }
        }
    });
    let listing = Kubernetes::with_client(between).list(&handles).await.unwrap();
    let whole = [1205, 1206];
    assert!(
        whole.contains(&listing.items.len()),
        "{} of the first or of the second start",
        listing.items.len()
    );
    let keys: std::collections::BTreeSet<_> =
        listing.items.iter().map(|stored| stored.record.key()).collect();
    assert_eq!(keys.len(), listing.items.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_before_what_the_server_remembers_expires_and_a_follower_lists_again() {
    let Some(mut server) = KubeApiserver::start().await else { return };
    let store = server.driver("admin").await;
    define_older_group(&store).await;
    let handles = Scope::All(Kind::Handle);
    let from = store.list(&handles).await.unwrap().revision;
    let mut follower = follow(store.clone(), handles.clone());
    assert!(matches!(follower.next().await, Some(Change::Reset(_))));
    let first = one(&store, Write::Create(handle("h", 1))).await.unwrap();
    one(&store, Write::Update(handle("h", 2), first)).await.unwrap();
    server.kill();
    // What it tells from memory begins with what it lists now.
    server.run();
    server.ready().await;
    // Ready, it may still be filling what it tells from, and says so.
    let expired = loop {
        let told = match store.watch(&handles, from).await {
            Err(error) => error,
            Ok(mut watch) => watch.next().await.unwrap().unwrap_err(),
        };
        match told {
            ReadError::Unavailable { .. } => tokio::task::yield_now().await,
            told => break told,
        }
    };
    assert!(matches!(expired, ReadError::Expired { .. }), "{expired:?}");
    loop {
        match follower.next().await.unwrap() {
            Change::Put(stored) if stored.record == handle("h", 2) => break,
            Change::Reset(listing) if listing.items.iter().any(|stored| stored.record == handle("h", 2)) => {
                break;
            }
            _ => {}
        }
    }
}
