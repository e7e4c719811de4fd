//! Backups taken while commits go on, and stores made of them.

use storage::{AHEAD, Backup, BackupError, Check, Commit, Limits, RestoreError, Store, Write};

fn bytes(backup: Backup) -> Vec<u8> {
    backup.into_chunks().flatten().collect()
}

/// A commit that puts the same number under both keys.
fn both(number: u64) -> Commit {
    let put = |key: &str| Write::Put(key.to_owned(), number.to_string().into());
    Commit { checks: Vec::new(), writes: vec![put("/a"), put("/b")] }
}

#[tokio::test]
async fn a_backup_is_of_one_revision_although_writing_goes_on() {
    let store = Store::in_memory().unwrap();
    store.commit(both(0)).await.unwrap();
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 1..500 {
                store.commit(both(number)).await.unwrap();
            }
        })
    };
    let folder = tempfile::tempdir().unwrap();
    for attempt in 0..20 {
        tokio::task::yield_now().await;
        let taken = store.backup();
        let path = folder.path().join(format!("store-{attempt}"));
        let revision = Backup::read(&bytes(taken.clone())[..]).unwrap().restore(&path).unwrap();
        let restored = Store::open(&path, Limits::default()).unwrap();
        let (a, b) = (restored.get("/a").unwrap(), restored.get("/b").unwrap());
        assert_eq!(a.value, b.value, "no half of a commit");
        assert_eq!((restored.revision(), revision), (taken.revision() + AHEAD, taken.revision() + AHEAD));
        assert_eq!(b.revision, taken.revision(), "entries keep their revisions");
        // It goes on from there.
        let next =
            restored.commit(Commit { checks: vec![Check::Revision("/a".into(), a.revision)], ..both(9) });
        assert_eq!(next.await.unwrap()[0], revision + 1);
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn whatever_is_cut_off_or_changed_is_refused() {
    let store = Store::in_memory().unwrap();
    store.commit(both(7)).await.unwrap();
    let whole = bytes(store.backup());
    assert_eq!(Backup::read(&whole[..]).unwrap(), store.backup());
    for length in 0..whole.len() {
        let damaged = Backup::read(&whole[..length]);
        assert!(matches!(damaged, Err(BackupError::Damaged(_))), "cut at {length}");
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(Backup::read(&changed[..]).is_err(), "changed at {at}");
    }
}

#[tokio::test]
async fn nothing_is_overwritten_and_nothing_half_made_is_left() {
    let store = Store::in_memory().unwrap();
    store.commit(both(7)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    store.backup().restore(&path).unwrap();
    assert!(matches!(store.backup().restore(&path), Err(RestoreError::Exists(_))));
    // What a restore left that was killed is in nobody's way.
    std::fs::write(folder.path().join("other.restoring"), "half").unwrap();
    store.backup().restore(&folder.path().join("other")).unwrap();
    let mut left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["other", "store"]);
}
