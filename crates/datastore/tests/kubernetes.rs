//! The Kubernetes driver against an API in the test's own process, with faults.

#![expect(clippy::unwrap_used, reason = "tests")]

mod fake;

use api::wire::Group;
use api::{Affinity, AffinityNaming, AffinityState, Handle, IpamConfig, Node, Owner};
use datastore::conformance;
use datastore::follow::{Change, follow};
use datastore::kubernetes::{Kubernetes, Rate};
use datastore::{Check, CommitError, Datastore, Key, Kind, ReadError, Record, Scope, Stored, Version, Write};
use fake::{Fake, Fault};
use futures::StreamExt;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const HANDLE: &str = "/apis/crd.projectcalico.org/v1/ipamhandles/h";
const HANDLES: &str = "/apis/crd.projectcalico.org/v1/ipamhandles";
const NAMING: &str = "/api/v1/namespaces/kube-system/configmaps/tortie-datastore";

fn handle(count: u32) -> Record {
    let blocks = BTreeMap::from([("10.0.0.0/26".parse().unwrap(), count)]);
    Record::Handle(Handle { id: "h".to_owned(), blocks, deleted: false })
}

fn affinity(node: &str, state: AffinityState) -> Record {
    let cidr = "10.0.0.64/26".parse().unwrap();
    Record::Affinity(Affinity { owner: Owner::host(node), cidr, state, deleted: false })
}

fn datastore_block() -> Record {
    let cidr = "10.0.0.0/30".parse().unwrap();
    Record::Block(api::Block {
        cidr,
        affinity: Some(Owner::host("n")),
        claim_time: None,
        allocations: vec![None; 4].into(),
        unallocated: (0..4).collect(),
        attributes: Vec::new().into(),
        sequence_number: 1,
        sequence_for_allocation: BTreeMap::new().into(),
        deleted: false,
        legacy_host_affinity: None,
    })
}

/// A driver that does not ask for groups, so that every request is one of the operation at hand.
fn driver(fake: &Fake) -> Kubernetes {
    Kubernetes::with_client(fake.client()).with_group(Group::V1)
}

async fn one(store: &Kubernetes, write: Write) -> Result<Version, CommitError> {
    store.commit(&[], &[write]).await.map(|mut versions| versions.remove(0))
}

async fn read(store: &Kubernetes, key: &Key) -> Stored {
    store.get(key).await.unwrap().unwrap()
}

#[tokio::test]
async fn keeps_the_contract_with_affinities_named_per_node() {
    conformance::run(&driver(&Fake::new())).await.unwrap();
}

#[tokio::test]
async fn keeps_the_contract_with_affinities_named_per_block() {
    let fake = Fake::new();
    fake.put(NAMING, json!({"data": {"affinityNaming": "per-block"}}));
    conformance::run(&driver(&fake)).await.unwrap();
}

#[tokio::test]
async fn keeps_the_contract_where_only_the_newer_group_is_served_and_asks_for_it_once() {
    let fake = Fake::new();
    fake.put(
        "/apis",
        json!({"kind": "APIGroupList", "groups": [{"name": "apps"}, {"name": "projectcalico.org"}]}),
    );
    let store = Kubernetes::with_client(fake.client());
    conformance::run(&store).await.unwrap();
    one(&store, Write::Create(affinity("a", AffinityState::Pending))).await.unwrap();
    one(&store, Write::Create(Record::Config(api::IpamConfig::default()))).await.unwrap();
    let object = fake.object("/apis/projectcalico.org/v3/blockaffinities/a-10-0-0-64-26").unwrap();
    assert_eq!(object["spec"]["deleted"], false);
    let config = fake.object("/apis/projectcalico.org/v3/ipamconfigurations/default").unwrap();
    assert_eq!(config["kind"], "IPAMConfiguration");
    let requests = fake.requests();
    assert_eq!(requests.iter().filter(|request| *request == "GET /apis").count(), 1);
    // Beside the question for the groups the first read goes to the group of all releases so far.
    let guesses = requests.iter().filter(|request| request.contains("crd.projectcalico.org"));
    assert!(guesses.clone().count() <= 1, "{requests:?}");
    assert!(guesses.into_iter().all(|guess| guess.starts_with("GET ")), "{requests:?}");
}

#[tokio::test]
async fn recorded_naming_names_the_affinities() {
    let fake = Fake::new();
    fake.put(NAMING, json!({"data": {"affinityNaming": "per-block"}}));
    let store = driver(&fake);
    assert_eq!(store.naming().await, Ok(AffinityNaming::PerBlock));
    one(&store, Write::Create(affinity("a", AffinityState::Pending))).await.unwrap();
    let path = "/apis/crd.projectcalico.org/v1/blockaffinities/ipam-block-affinity-10-0-0-64-26";
    let object = fake.object(path).unwrap();
    assert_eq!(object["metadata"]["labels"]["projectcalico.org/affinity-type"], "host");
    assert_eq!(object["spec"]["deleted"], "false");
}

#[tokio::test]
async fn naming_that_nobody_knows_is_malformed_and_not_guessed() {
    let fake = Fake::new();
    fake.put(NAMING, json!({"data": {"affinityNaming": "per-rack"}}));
    let store = driver(&fake);
    let key = affinity("a", AffinityState::Pending).key();
    assert!(matches!(store.get(&key).await, Err(ReadError::Malformed { .. })));
}

#[tokio::test]
async fn warm_update_is_one_request_and_keeps_what_others_wrote_on_the_object() {
    let fake = Fake::new();
    let store = driver(&fake);
    one(&store, Write::Create(handle(1))).await.unwrap();
    let mut object = fake.object(HANDLE).unwrap();
    object["metadata"]["labels"] = json!({"team": "x"});
    let face = json!({"projectcalico.org/metadata": "{\"labels\":{\"a\":\"b\"},\"creationTimestamp\":null}"});
    object["metadata"]["annotations"] = face.clone();
    fake.put(HANDLE, object);
    let seen = read(&store, &handle(1).key()).await;
    fake.requests();
    one(&store, Write::Update(handle(2), seen.version)).await.unwrap();
    assert_eq!(fake.requests(), [format!("PUT {HANDLE}")]);
    let metadata = fake.object(HANDLE).unwrap()["metadata"].clone();
    assert_eq!((&metadata["labels"]["team"], &metadata["annotations"]), (&json!("x"), &face));
}

#[tokio::test]
async fn records_are_not_taken_for_absent_while_nobody_says_where_they_are() {
    let fake = Fake::new();
    let groups = json!({"kind": "APIGroupList", "groups": [{"name": "projectcalico.org"}]});
    fake.put("/apis", groups);
    let known = Kubernetes::with_client(fake.client());
    one(&known, Write::Create(handle(1))).await.unwrap();
    // The older group is not served at all, and the list of groups cannot be had.
    fake.fail(|_, path| match path {
        "/apis" => Some(Fault::Refused(503)),
        path if path.contains("crd.projectcalico.org") => Some(Fault::Refused(404)),
        _ => None,
    });
    let fresh = Kubernetes::with_client(fake.client());
    let (found, listed) = (fresh.get(&handle(1).key()).await, fresh.list(&Scope::All(Kind::Handle)).await);
    assert!(matches!(found, Err(ReadError::Unavailable { .. })), "{found:?}");
    assert!(matches!(listed, Err(ReadError::Unavailable { .. })), "{listed:?}");
    fake.fail(|_, _| None);
    assert_eq!(read(&fresh, &handle(1).key()).await.record, handle(1));
}

#[tokio::test]
async fn delete_is_one_request_and_meets_only_the_object_as_it_was_seen() {
    let fake = Fake::new();
    let store = driver(&fake);
    let first = one(&store, Write::Create(handle(1))).await.unwrap();
    let second = one(&store, Write::Update(handle(2), first.clone())).await.unwrap();
    fake.requests();
    let old = one(&store, Write::Delete(handle(1), first)).await;
    assert_eq!(old, Err(CommitError::Conflict { key: handle(1).key(), written: 0 }));
    assert!(fake.object(HANDLE).is_some());
    one(&store, Write::Delete(handle(2), second)).await.unwrap();
    assert_eq!(fake.requests(), [format!("DELETE {HANDLE}"), format!("DELETE {HANDLE}")]);
    assert_eq!(fake.object(HANDLE), None);
}

#[tokio::test]
async fn reader_of_an_object_that_a_peer_has_half_deleted_finishes_the_delete() {
    let fake = Fake::new();
    let store = driver(&fake);
    one(&store, Write::Create(handle(1))).await.unwrap();
    let mut marked = fake.object(HANDLE).unwrap();
    marked["spec"]["deleted"] = json!(true);
    fake.put(HANDLE, marked);
    fake.fail(|method, _| (method == "DELETE").then_some(Fault::Refused(503)));
    assert_eq!(store.list(&Scope::All(Kind::Handle)).await.unwrap().items, []);
    let unfinished = store.get(&handle(1).key()).await;
    assert!(matches!(unfinished, Err(ReadError::Unavailable { .. })), "{unfinished:?}");
    fake.fail(|_, _| None);
    assert_eq!(store.get(&handle(1).key()).await, Ok(None));
    assert_eq!(fake.object(HANDLE), None);
}

#[tokio::test]
async fn a_successor_of_what_a_peer_has_half_deleted_survives_and_is_read() {
    let block = datastore_block();
    for record in [handle(1), affinity("n", AffinityState::Confirmed), block] {
        let fake = Fake::new();
        let store = driver(&fake);
        one(&store, Write::Create(record.clone())).await.unwrap();
        let path = fake.paths().remove(0);
        let successor = fake.object(&path).unwrap();
        let mut marked = successor.clone();
        // As text for affinities, as the older group has it.
        let is_text = matches!(record, Record::Affinity(_));
        marked["spec"]["deleted"] = if is_text { json!("true") } else { json!(true) };
        fake.put(&path, marked.clone());
        let mut first = true;
        let (place, object) = (path.clone(), successor.clone());
        fake.fail(move |method, asked| {
            let now = method == "GET" && asked == place && std::mem::take(&mut first);
            now.then(|| Fault::Replaced { path: place.clone(), object: object.clone() })
        });
        let found = read(&store, &record.key()).await;
        assert_eq!(found.record, record);
        let now = fake.object(&path).unwrap();
        assert_ne!(now["metadata"]["uid"], successor["metadata"]["uid"], "it is the successor");
        let wanted = json!({"uid": successor["metadata"]["uid"]});
        assert_eq!(fake.deletes().remove(0)["preconditions"], wanted);
    }
}

#[tokio::test]
async fn a_delete_names_identity_and_revision_and_spares_a_successor_of_the_same_revision() {
    for record in [handle(1), affinity("n", AffinityState::Confirmed), datastore_block()] {
        let fake = Fake::new();
        let store = driver(&fake);
        let version = one(&store, Write::Create(record.clone())).await.unwrap();
        let stranger = Version { uid: Some("of-another".to_owned()), ..version.clone() };
        let refused = one(&store, Write::Delete(record.clone(), stranger)).await;
        assert!(matches!(refused, Err(CommitError::Conflict { .. })), "{refused:?}");
        one(&store, Write::Delete(record, version.clone())).await.unwrap();
        let asked = fake.deletes().pop().unwrap()["preconditions"].clone();
        assert_eq!(asked, json!({"uid": version.uid, "resourceVersion": version.revision.0.to_string()}));
    }
}

/// A server that says that it takes commits, and a driver that asks what it serves.
fn with_commits() -> (Fake, Kubernetes) {
    let fake = Fake::new();
    let groups =
        json!({"kind": "APIGroupList", "groups": [{"name": "crd.projectcalico.org"}, {"name": "tortie.io"}]});
    fake.put("/apis", groups);
    let store = Kubernetes::with_client(fake.client());
    (fake, store)
}

#[tokio::test]
async fn a_commit_in_one_request_whose_answer_is_lost_is_unknown_and_not_repeated() {
    let (fake, store) = with_commits();
    fake.take_commits();
    fake.fail(|method, _| (method == "POST").then_some(Fault::AnswerLost));
    let writes = [Write::Create(handle(1)), Write::Create(affinity("n", AffinityState::Pending))];
    let result = store.commit(&[], &writes).await;
    assert!(matches!(result, Err(CommitError::Unknown { .. })), "{result:?}");
    let posts: Vec<String> =
        fake.requests().into_iter().filter(|request| !request.starts_with("GET ")).collect();
    assert_eq!(posts, ["POST /apis/tortie.io/v1/commits"]);
    fake.fail(|_, _| None);
    assert_eq!(read(&store, &handle(1).key()).await.record, handle(1), "reading tells");
}

#[tokio::test]
async fn a_commit_that_the_server_does_not_serve_after_all_is_made_write_by_write() {
    let (fake, store) = with_commits();
    let writes = [Write::Create(handle(1)), Write::Create(affinity("n", AffinityState::Pending))];
    let versions = store.commit(&[], &writes).await.unwrap();
    assert_eq!(versions.len(), 2);
    let posts = fake.requests().into_iter().filter(|request| request.starts_with("POST "));
    assert_eq!(posts.count(), 3, "one that is not served, and one for each record");
    assert_eq!(read(&store, &handle(1).key()).await.version, versions[0]);
}

#[tokio::test]
async fn write_whose_answer_is_lost_is_unknown_and_not_repeated() {
    let fake = Fake::new();
    let store = driver(&fake);
    fake.fail(|method, _| (method == "POST").then_some(Fault::AnswerLost));
    let result = one(&store, Write::Create(handle(1))).await;
    assert!(matches!(result, Err(CommitError::Unknown { .. })), "{result:?}");
    assert_eq!(fake.requests(), [format!("POST {HANDLES}")]);
    assert_eq!(read(&store, &handle(1).key()).await.record, handle(1));
}

#[tokio::test]
async fn read_is_repeated_where_that_may_help() {
    let fake = Fake::new();
    let store = driver(&fake);
    one(&store, Write::Create(handle(1))).await.unwrap();
    let mut left = 2;
    fake.fail(move |_, _| {
        left -= 1;
        (left >= 0).then_some(Fault::AnswerLost)
    });
    assert_eq!(read(&store, &handle(1).key()).await.record, handle(1));
}

#[tokio::test(start_paused = true)]
async fn silent_server_is_given_up_after_the_deadline() {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        std::future::pending::<Result<http::Response<http_body_util::Full<bytes::Bytes>>, std::io::Error>>()
            .await
    });
    let client = kube::Client::new(service, "default");
    let store = Kubernetes::with_client(client).with_group(Group::V1).with_deadline(Duration::from_secs(1));
    // The clock is the runtime's, which jumps.
    let begun = tokio::time::Instant::now();
    assert!(matches!(store.get(&Key::Config).await, Err(ReadError::Unavailable { .. })));
    assert!(
        begun.elapsed() <= Duration::from_millis(1100),
        "however often it is tried: {:?}",
        begun.elapsed()
    );
    let begun = tokio::time::Instant::now();
    let write = Write::Create(Record::Config(IpamConfig::default()));
    assert!(matches!(one(&store, write).await, Err(CommitError::Unknown { .. })));
    assert!(begun.elapsed() <= Duration::from_millis(1100), "{:?}", begun.elapsed());
    let begun = tokio::time::Instant::now();
    let watch = store.watch(&Scope::All(Kind::Handle), datastore::Revision(1)).await.err();
    assert!(matches!(watch, Some(ReadError::Unavailable { .. })), "{watch:?}");
    assert!(begun.elapsed() <= Duration::from_millis(1100), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_calls_holds_back_every_kind_of_call() {
    let fake = Fake::new();
    let limited = driver(&fake).with_rate(Rate { per_second: 5.0, burst: 1 });
    for (store, wanted) in [(driver(&fake), 0), (limited, 600)] {
        // The clock is the runtime's, which jumps over waits and stands still otherwise.
        let begun = tokio::time::Instant::now();
        store.get(&Key::Config).await.unwrap();
        let listing = store.list(&Scope::All(Kind::Handle)).await.unwrap();
        let id = format!("of-{wanted}");
        let record = Record::Handle(Handle { id, blocks: BTreeMap::new(), deleted: false });
        one(&store, Write::Create(record)).await.unwrap();
        drop(store.watch(&Scope::All(Kind::Handle), listing.revision).await.unwrap());
        let took = begun.elapsed().as_millis();
        assert!((wanted..wanted + 10).contains(&took), "{took} ms for four calls");
    }
}

#[tokio::test]
async fn a_kubeconfig_that_would_run_a_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false", "interactiveMode": "Never"});
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"exec": exec}}]});
    std::fs::write(&file, config.to_string()).unwrap();
    let refused = Kubernetes::connect(Some(&file)).await.unwrap_err().to_string();
    assert!(refused.contains("exec") && refused.contains("token"), "{refused}");
}

#[tokio::test]
async fn a_token_of_the_kubeconfig_is_sent() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", listener.local_addr().unwrap())}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "a-token"}}]});
    std::fs::write(&file, config.to_string()).unwrap();
    let store = Kubernetes::connect(Some(&file)).await.unwrap().with_group(Group::V1);
    let serving = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let body = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","code":404,"reason":"NotFound","message":""}"#;
        let answer = format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(head).unwrap()
    };
    let key = Key::Config;
    let (found, head) = tokio::join!(store.get(&key), serving);
    assert_eq!(found, Ok(None));
    assert!(head.to_lowercase().contains("\r\nauthorization: bearer a-token\r\n"), "{head}");
}

#[tokio::test]
async fn commit_whose_check_fails_at_its_end_is_undone() {
    let fake = Fake::new();
    let store = driver(&fake);
    let config = Record::Config(IpamConfig::default());
    let guard = one(&store, Write::Create(config.clone())).await.unwrap();
    let version = one(&store, Write::Create(handle(1))).await.unwrap();
    let path = "/apis/crd.projectcalico.org/v1/ipamconfigs/default";
    let mut object = fake.object(path).unwrap();
    object["spec"]["strictAffinity"] = json!(true);
    // The check's record changes while the commit is under way.
    fake.fail(move |method, _| {
        (method == "POST").then(|| Fault::Meddled { path: path.to_owned(), object: object.clone() })
    });
    let writes = [Write::Update(handle(5), version), Write::Create(affinity("a", AffinityState::Pending))];
    let result = store.commit(&[Check::Unchanged(Key::Config, guard.revision)], &writes).await;
    assert_eq!(result, Err(CommitError::Conflict { key: Key::Config, written: 0 }));
    assert_eq!(read(&store, &handle(1).key()).await.record, handle(1));
    assert_eq!(store.get(&affinity("a", AffinityState::Pending).key()).await, Ok(None));
}

#[tokio::test]
async fn undone_delete_makes_the_object_that_stood_there_with_what_others_wrote_in_it() {
    let fake = Fake::new();
    let store = driver(&fake);
    let guard = one(&store, Write::Create(Record::Config(IpamConfig::default()))).await.unwrap();
    one(&store, Write::Create(handle(2))).await.unwrap();
    let place = format!("{HANDLES}/{}", api::Handle::object_name("h"));
    let mut object = fake.object(&place).unwrap();
    object["metadata"]["labels"] = json!({"team": "a"});
    fake.put(&place, object);
    let seen = read(&store, &handle(2).key()).await;
    let path = "/apis/crd.projectcalico.org/v1/ipamconfigs/default";
    let mut object = fake.object(path).unwrap();
    object["spec"]["strictAffinity"] = json!(true);
    fake.fail(move |method, _| {
        (method == "DELETE").then(|| Fault::Meddled { path: path.to_owned(), object: object.clone() })
    });
    // What a caller made of the record on the way to its delete is not what comes back.
    let check = Check::Unchanged(Key::Config, guard.revision);
    let result = store.commit(&[check], &[Write::Delete(handle(1), seen.version.clone())]).await;
    assert_eq!(result, Err(CommitError::Conflict { key: Key::Config, written: 0 }));
    let again = read(&store, &handle(2).key()).await;
    assert_eq!(again.record, handle(2));
    assert_ne!(again.version.uid, seen.version.uid);
    assert_eq!(fake.object(&place).unwrap()["metadata"]["labels"], json!({"team": "a"}));
}

#[tokio::test]
async fn node_write_changes_annotations_and_nothing_else() {
    let fake = Fake::new();
    let path = "/api/v1/nodes/n";
    fake.put(
        path,
        json!({"metadata": {"labels": {"l": "1"}, "annotations": {"keep": "1", "drop": "1"}}, "status": {"addresses": []}}),
    );
    let store = driver(&fake);
    let seen = read(&store, &Key::Node("n".to_owned())).await;
    let Record::Node(node) = seen.record else { panic!("a node") };
    let annotations = BTreeMap::from([("keep", "1"), ("new", "2")]);
    let annotations =
        annotations.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let node = Node { annotations, ..node };
    one(&store, Write::Update(Record::Node(node.clone()), seen.version.clone())).await.unwrap();
    let object = fake.object(path).unwrap();
    assert_eq!(object["metadata"]["annotations"], json!({"keep": "1", "new": "2"}));
    assert_eq!(object["metadata"]["labels"], json!({"l": "1"}));
    assert_eq!(object["status"], json!({"addresses": []}));
    let stale = one(&store, Write::Update(Record::Node(node), seen.version)).await;
    assert!(matches!(stale, Err(CommitError::Conflict { .. })));
}

#[tokio::test]
async fn long_list_comes_in_pages_and_is_whole() {
    let fake = Fake::new();
    for index in 0..1203 {
        let object = json!({"spec": {"handleID": format!("h{index}"), "block": {}}});
        fake.put(&format!("{HANDLES}/h{index}"), object);
    }
    let store = driver(&fake);
    let listing = store.list(&Scope::All(Kind::Handle)).await.unwrap();
    assert_eq!(listing.items.len(), 1203);
    assert!(listing.items.is_sorted_by_key(|stored| stored.record.key()));
    assert_eq!(fake.requests().len(), 3);
}

#[tokio::test]
async fn object_that_makes_no_sense_is_left_out_of_a_list_and_told_by_a_get() {
    let fake = Fake::new();
    fake.put("/apis/crd.projectcalico.org/v1/ippools/bad", json!({"spec": {"cidr": "nonsense"}}));
    fake.put("/apis/crd.projectcalico.org/v1/ippools/good", json!({"spec": {"cidr": "10.0.0.0/16"}}));
    let store = driver(&fake);
    let listing = store.list(&Scope::All(Kind::Pool)).await.unwrap();
    assert_eq!(listing.items.len(), 1);
    assert_eq!(listing.unreadable, [Key::Pool("bad".to_owned())], "and is not taken for absent");
    let bad = store.get(&Key::Pool("bad".to_owned())).await;
    assert!(matches!(bad, Err(ReadError::Malformed { .. })));
}

#[tokio::test]
async fn object_that_turns_into_nonsense_is_told_by_a_watch_as_there() {
    let fake = Fake::new();
    let path = "/apis/crd.projectcalico.org/v1/ippools/pool";
    fake.put(path, json!({"spec": {"cidr": "10.0.0.0/16"}}));
    let store = driver(&fake);
    let scope = Scope::All(Kind::Pool);
    let from = store.list(&scope).await.unwrap().revision;
    let mut watch = store.watch(&scope, from).await.unwrap();
    fake.put(path, json!({"spec": {"cidr": "nonsense"}}));
    let event = watch.next().await.unwrap().unwrap();
    assert!(
        matches!(&event, datastore::Event::Unreadable(Key::Pool(name), at) if name == "pool" && *at > from),
        "{event:?}"
    );
}

#[tokio::test]
async fn taken_over_affinity_leaves_the_watch_of_its_old_owner() {
    let fake = Fake::new();
    fake.put(NAMING, json!({"data": {"affinityNaming": "per-block"}}));
    let store = driver(&fake);
    let first = affinity("a", AffinityState::Pending);
    let version = one(&store, Write::Create(first.clone())).await.unwrap();
    let scope = Scope::AffinitiesOf(Owner::host("a"));
    let mut watch = store.watch(&scope, version.revision).await.unwrap();
    one(&store, Write::Update(affinity("b", AffinityState::Pending), version)).await.unwrap();
    let event = watch.next().await.unwrap().unwrap();
    assert!(matches!(event, datastore::Event::Deleted(key, _) if key == first.key()));
}

#[tokio::test]
async fn follower_lists_again_when_the_history_is_gone_and_says_so_when_the_store_is() {
    let fake = Fake::new();
    let store = driver(&fake);
    one(&store, Write::Create(handle(1))).await.unwrap();
    fake.fail(|_, _| Some(Fault::Refused(503)));
    let mut changes = follow(store.clone(), Scope::All(Kind::Handle));
    assert!(matches!(changes.next().await, Some(Change::Lost(ReadError::Unavailable { .. }))));
    let gone = fake.clone();
    fake.fail(move |_, _| None);
    let reset = loop {
        match changes.next().await {
            Some(Change::Lost(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(reset, Some(Change::Reset(listing)) if listing.items.len() == 1));
    let version = read(&store, &handle(1).key()).await.version;
    one(&store, Write::Update(handle(2), version)).await.unwrap();
    gone.compact();
    assert!(
        matches!(changes.next().await, Some(Change::Reset(listing)) if listing.items[0].record == handle(2))
    );
}

#[tokio::test]
async fn a_list_whose_revision_is_gone_between_two_pages_begins_anew() {
    let fake = Fake::new();
    for index in 0..1203 {
        fake.put(
            &format!("{HANDLES}/h{index}"),
            json!({"spec": {"handleID": format!("h{index}"), "block": {}}}),
        );
    }
    let mut asked = 0;
    fake.fail(move |_, _| {
        asked += 1;
        (asked == 2).then_some(Fault::Refused(410))
    });
    let listing = driver(&fake).list(&Scope::All(Kind::Handle)).await.unwrap();
    assert_eq!(listing.items.len(), 1203, "each once");
    assert_eq!(fake.requests().len(), 5, "one page, the refusal, and three pages");
}

#[tokio::test]
async fn a_bookmark_tells_how_far_a_quiet_watch_is() {
    let fake = Fake::new();
    let store = driver(&fake);
    let scope = Scope::All(Kind::Handle);
    let from = store.list(&scope).await.unwrap().revision;
    let mut watch = store.watch(&scope, from).await.unwrap();
    // Of another kind.
    let version = one(&store, Write::Create(Record::Config(IpamConfig::default()))).await.unwrap();
    fake.bookmark();
    assert_eq!(watch.next().await, Some(Ok(datastore::Event::Progress(version.revision))));
}

#[tokio::test]
async fn a_follower_goes_on_where_a_watch_ended_and_lists_again_where_one_says_that_history_is_gone() {
    let fake = Fake::new();
    let store = driver(&fake);
    let mut changes = follow(store.clone(), Scope::All(Kind::Handle));
    assert!(matches!(changes.next().await, Some(Change::Reset(_))));
    let version = one(&store, Write::Create(handle(1))).await.unwrap();
    assert!(matches!(changes.next().await, Some(Change::Put(stored)) if stored.version == version));
    // Servers end a watch after some minutes. Nothing is lost, and nothing is listed.
    fake.end_watches();
    let version = one(&store, Write::Update(handle(2), version)).await.unwrap();
    fake.requests();
    assert!(matches!(changes.next().await, Some(Change::Put(stored)) if stored.version == version));
    let version = one(&store, Write::Update(handle(3), version)).await.unwrap();
    assert!(matches!(changes.next().await, Some(Change::Put(stored)) if stored.version == version));
    let asked = fake.requests().into_iter().filter(|request| request.starts_with("GET ")).count();
    assert_eq!(asked, 1, "another watch");
    fake.error_event(410);
    let told = changes.next().await;
    assert!(
        matches!(&told, Some(Change::Reset(listing)) if listing.items.len() == 1 && listing.items[0].version == version),
        "{told:?}"
    );
    // Another failure of a watch is told, and the history goes on.
    let watching = tokio::spawn(async move {
        loop {
            match changes.next().await {
                Some(Change::Lost(error)) => return error,
                Some(Change::Reset(_)) => panic!("a list was not needed"),
                _ => {}
            }
        }
    });
    // Whenever it opens its watch, it hears it.
    while !watching.is_finished() {
        fake.error_event(500);
        tokio::task::yield_now().await;
    }
    let error = watching.await.unwrap();
    assert!(matches!(error, ReadError::Unavailable { .. }), "{error:?}");
}
