//! The store against its promises: conditions, order, watches, the past, and a disk that fails.

#![expect(clippy::unwrap_used, reason = "tests")]

use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use storage::{Check, Commit, CommitError, Compacted, Cut, Limits, Store, Write};

fn small(history_events: usize, watch_queue: usize) -> Store {
    let limits = Limits { history_events, watch_queue, ..Limits::default() };
    Store::open_on(InMemoryBackend::new, limits).unwrap()
}

async fn put(store: &Store, key: &str, value: &'static str) -> u64 {
    let commit = Commit { checks: vec![], writes: vec![Write::Put(key.into(), value.into())] };
    store.commit(commit).await.unwrap()[0]
}

fn keys(listing: &storage::Listing) -> Vec<&str> {
    listing.entries.iter().map(|(key, _)| key.as_str()).collect()
}

#[tokio::test]
async fn a_stale_revision_is_refused_and_changes_nothing() {
    let store = Store::in_memory().unwrap();
    let first = put(&store, "a", "1").await;
    let second = put(&store, "a", "2").await;
    let commit = Commit {
        checks: vec![Check::Revision("a".into(), first)],
        writes: vec![Write::Put("a".into(), "3".into()), Write::Put("b".into(), "3".into())],
    };
    let refused = store.commit(commit).await;
    assert_eq!(refused, Err(CommitError::Conflict { key: "a".into(), found: Some(second) }));
    assert_eq!(store.get("a").unwrap().value, "2");
    assert_eq!(store.get("b"), None);
    assert_eq!(store.revision(), second);
}

#[tokio::test]
async fn of_many_writers_with_one_revision_exactly_one_wins() {
    let store = Store::in_memory().unwrap();
    let seen = put(&store, "a", "0").await;
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.commit(Commit::update("a", seen, "1".into())).await.is_ok() })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        won += u32::from(task.await.unwrap());
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_watch_tells_each_change_once_and_in_order() {
    let store = Store::in_memory().unwrap();
    put(&store, "/a/1", "x").await;
    let from = store.revision();
    put(&store, "/a/2", "x").await;
    let mut watch = store.watch("/a/", from).unwrap();
    put(&store, "/b/1", "x").await;
    put(&store, "/a/2", "y").await;
    let gone = store.commit(Commit { checks: vec![], writes: vec![Write::Delete("/a/1".into())] });
    gone.await.unwrap();
    let mut told = Vec::new();
    while told.len() < 3 {
        let event = watch.next().await.unwrap();
        told.push((event.key.clone(), event.before.is_some(), event.now.is_some()));
    }
    let expected = [("/a/2", false, true), ("/a/2", true, true), ("/a/1", true, false)];
    assert_eq!(told, expected.map(|(key, before, now)| (key.to_owned(), before, now)));
    assert!(watch.is_drained());
}

#[tokio::test]
async fn a_watch_of_a_forgotten_revision_is_refused() {
    let store = small(3, 10);
    for _ in 0..5 {
        put(&store, "a", "x").await;
    }
    assert_eq!(store.watch("a", 1).err(), Some(Compacted { asked: 1, oldest: 2 }));
    let mut watch = store.watch("a", 2).unwrap();
    assert_eq!(watch.next().await.unwrap().revision, 3);
}

#[tokio::test]
async fn a_reader_that_falls_behind_is_cut_after_what_it_was_told() {
    let store = small(100, 2);
    let mut watch = store.watch("a", 0).unwrap();
    for _ in 0..4 {
        put(&store, "a", "x").await;
    }
    assert_eq!(watch.next().await.unwrap().revision, 1);
    assert_eq!(watch.next().await.unwrap().revision, 2);
    assert_eq!(watch.next().await.err(), Some(Cut));
    assert_eq!(store.watchers(), 0);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_keeps_few_bytes_in_memory() {
    let limits = Limits { watch_bytes: 1000, ..Limits::default() };
    let store = Store::open_on(InMemoryBackend::new, limits).unwrap();
    let mut stalled = store.watch("a", 0).unwrap();
    let mut reading = store.watch("a", 0).unwrap();
    // One that is larger than all that may wait is told all the same.
    put(&store, "a", Box::leak("x".repeat(5000).into_boxed_str())).await;
    for revision in 1..=10 {
        assert_eq!(reading.next().await.unwrap().revision, revision);
        put(&store, "a", "y").await;
    }
    assert_eq!(stalled.next().await.unwrap().revision, 1);
    assert_eq!(stalled.next().await.err(), Some(Cut));
    assert_eq!(store.watchers(), 1);
}

#[tokio::test]
async fn pages_of_a_past_revision_show_that_revision() {
    let store = small(100, 10);
    for key in ["/a/1", "/a/2", "/a/3", "/a/4"] {
        put(&store, key, "old").await;
    }
    let first = store.list("/a/", None, 2);
    assert_eq!((keys(&first), first.remaining), (vec!["/a/1", "/a/2"], 2));
    put(&store, "/a/3", "new").await;
    put(&store, "/a/25", "new").await;
    store.commit(Commit { checks: vec![], writes: vec![Write::Delete("/a/4".into())] }).await.unwrap();
    let rest = store.list_at(first.revision, "/a/", Some("/a/2"), 0).unwrap();
    assert_eq!(keys(&rest), ["/a/3", "/a/4"]);
    assert!(rest.entries.iter().all(|(_, entry)| entry.value == "old"));
    assert_eq!(keys(&store.list("/a/", Some("/a/2"), 0)), ["/a/25", "/a/3"]);
}

#[tokio::test]
async fn what_was_answered_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = Store::open(&path, Limits::default()).unwrap();
    put(&store, "a", "1").await;
    let created = store.get("a").unwrap().created;
    let last = put(&store, "a", "2").await;
    assert!(matches!(
        Store::open(&path, Limits::default()),
        Err(storage::OpenError::InUse { .. } | storage::OpenError::Io { .. })
    ));
    let copy = folder.path().join("copy");
    // As after a kill: the file as it is while the store is open.
    std::fs::copy(&path, &copy).unwrap();
    let again = Store::open(&copy, Limits::default()).unwrap();
    let entry = again.get("a").unwrap();
    assert_eq!((entry.revision, entry.created, entry.value.as_ref()), (last, created, b"2".as_ref()));
    assert_eq!(again.revision(), last);
    assert!(again.watch("", created).is_err(), "the history before the opening is not known");
}

#[test]
fn a_file_of_something_else_is_not_taken_for_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    assert!(Store::open(&path, Limits::default()).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), vec![b'x'; 8192]);
}

/// Memory that can be made to refuse writes, as a full disk does.
#[derive(Debug, Clone)]
struct FullDisk {
    memory: Arc<InMemoryBackend>,
    full: Arc<AtomicBool>,
}

impl FullDisk {
    fn check(&self) -> Result<(), io::Error> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for FullDisk {
    fn len(&self) -> Result<u64, io::Error> {
        self.memory.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.memory.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.check()?;
        self.memory.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.check()?;
        self.memory.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.check()?;
        self.memory.write(offset, data)
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_serves_reads_until_there_is_space() {
    let disk = FullDisk { memory: Arc::new(InMemoryBackend::new()), full: Arc::default() };
    let full = Arc::clone(&disk.full);
    let store = Store::open_on(move || disk.clone(), Limits::default()).unwrap();
    put(&store, "a", "1").await;
    full.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let refused = store.commit(Commit::create("b", "1".into())).await;
        assert!(matches!(refused, Err(CommitError::Unavailable { .. })), "{refused:?}");
        assert_eq!(store.get("a").unwrap().value, "1");
        assert_eq!(store.get("b"), None);
    }
    full.store(false, Ordering::SeqCst);
    let revision = put(&store, "c", "1").await;
    assert_eq!(store.get("c").unwrap().revision, revision);
    assert_eq!(store.get("a").unwrap().value, "1");
}
