//! The store over a disk that loses power, tears writes, fails to synchronise and runs full: what was answered stays,
//! nothing is there by halves, and the file never turns unreadable.

#![expect(clippy::unwrap_used, reason = "tests")]

mod disk;

use disk::{Dice, Disk};
use std::collections::BTreeMap;
use storage::{Commit, CommitError, Limits, Store, Write};

type Content = BTreeMap<String, String>;

fn content(store: &Store) -> Content {
    let listing = store.list("", None, 0);
    listing
        .entries
        .into_iter()
        .map(|(key, entry)| (key, String::from_utf8(entry.value.to_vec()).unwrap()))
        .collect()
}

/// A commit of one to four writes over a few keys, so that they meet, of up to ten kilobytes a value.
fn random(dice: &mut Dice, number: usize) -> Vec<Write> {
    (0..=dice.below(4))
        .map(|_| {
            let key = format!("/{}", dice.below(12));
            if dice.below(4) == 0 {
                return Write::Delete(key);
            }
            let value = format!("{number}:{}", "x".repeat(dice.below(10_000)));
            Write::Put(key, value.into())
        })
        .collect()
}

fn apply(content: &mut Content, writes: &[Write]) {
    for write in writes {
        match write {
            Write::Put(key, value) => {
                content.insert(key.clone(), String::from_utf8(value.to_vec()).unwrap());
            }
            Write::Delete(key) => {
                content.remove(key);
            }
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn open(disk: &Disk) -> Result<Store, storage::OpenError> {
    let disk = disk.clone();
    Store::open_on(move || disk.clone(), Limits::default())
}

/// How often each thing happened, so that a run in which nothing happens fails.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    cuts: usize,
    doubts_made: usize,
    doubts_not_made: usize,
}

/// Commits until the power goes, again and again, and compares what is there with what was answered.
fn survives_power_cuts(seed: u64, tally: &mut Tally) {
    let disk = Disk::new(seed);
    let mut dice = Dice::new(seed ^ 0xd15c);
    let mut known = Content::new();
    for round in 0..6 {
        let store = open(&disk).unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error:?}"));
        assert_eq!(content(&store), known, "seed {seed}, round {round}");
        disk.cut_power_in(dice.below(300));
        let mut in_doubt = None;
        for number in 0.. {
            let writes = random(&mut dice, number);
            match block_on(store.commit(Commit { checks: vec![], writes: writes.clone() })) {
                Ok(_) => apply(&mut known, &writes),
                Err(CommitError::Unavailable { .. }) => {
                    in_doubt = Some(writes);
                    break;
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        assert!(disk.is_dark(), "seed {seed}: refused while there was power");
        tally.cuts += 1;
        drop(store);
        disk.restore_power();
        // The commit under way is there whole or not at all.
        let store = open(&disk).unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error:?}"));
        let found = content(&store);
        let mut made = known.clone();
        apply(&mut made, &in_doubt.unwrap());
        if found == made && found != known {
            tally.doubts_made += 1;
            known = made;
        } else {
            assert_eq!(found, known, "seed {seed}, round {round}");
            tally.doubts_not_made += 1;
        }
    }
}

#[test]
fn what_was_answered_survives_power_cuts_and_nothing_is_there_by_halves() {
    let mut tally = Tally::default();
    for seed in 0..60 {
        survives_power_cuts(seed, &mut tally);
    }
    assert_eq!(tally.cuts, 360);
    assert!(tally.doubts_made > 10 && tally.doubts_not_made > 100, "{tally:?}");
}

#[test]
fn power_may_go_while_a_file_is_opened_after_the_power_went() {
    for seed in 0..40 {
        let disk = Disk::new(seed);
        let mut dice = Dice::new(seed);
        let store = open(&disk).unwrap();
        let mut known = Content::new();
        for number in 0..10 {
            let writes = random(&mut dice, number);
            block_on(store.commit(Commit { checks: vec![], writes: writes.clone() })).unwrap();
            apply(&mut known, &writes);
        }
        disk.cut_power_in(0);
        drop(store);
        disk.restore_power();
        for _ in 0..5 {
            disk.cut_power_in(dice.below(60));
            drop(open(&disk));
            disk.cut_power_in(0);
            disk.restore_power();
        }
        assert_eq!(content(&open(&disk).unwrap()), known, "seed {seed}");
    }
}

#[test]
fn a_synchronisation_that_fails_is_no_answer_and_the_store_goes_on_with_what_the_disk_has() {
    let mut refused = 0;
    for seed in 0..60 {
        let disk = Disk::new(seed);
        let mut dice = Dice::new(seed ^ 0x5afe);
        let store = open(&disk).unwrap();
        let mut known = Content::new();
        for number in 0..60 {
            if number % 10 == 5 {
                disk.fail_sync_in(dice.below(6));
            }
            let writes = random(&mut dice, number);
            match block_on(store.commit(Commit { checks: vec![], writes: writes.clone() })) {
                Ok(_) => apply(&mut known, &writes),
                Err(CommitError::Unavailable { .. }) => {
                    refused += 1;
                    // Readers never see what was not answered, before it is known what became of it.
                    assert_eq!(content(&store), known, "seed {seed}");
                    let none = Commit { checks: vec![], writes: vec![Write::Delete("/none".into())] };
                    block_on(store.commit(none)).unwrap();
                    if content(&store) != known {
                        apply(&mut known, &writes);
                    }
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
            assert_eq!(content(&store), known, "seed {seed}, commit {number}");
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_full_disk_takes_deletes_when_it_takes_nothing_else() {
    for seed in 0..20 {
        let disk = Disk::new(seed);
        let store = open(&disk).unwrap();
        let mut known = Content::new();
        disk.give_space(disk.size() + 300_000);
        let put = |number: usize| vec![Write::Put(format!("/{number}"), "x".repeat(5_000).into())];
        let mut number = 0;
        let refused = loop {
            let writes = put(number);
            match block_on(store.commit(Commit { checks: vec![], writes: writes.clone() })) {
                Ok(_) => apply(&mut known, &writes),
                Err(error) => break error,
            }
            number += 1;
        };
        assert!(refused.to_string().contains("free space"), "{refused}");
        assert!(store.trouble().is_some());
        assert!(number > 10, "seed {seed}: {number}");
        assert_eq!(content(&store), known);
        for gone in 0..number / 2 {
            let writes = vec![Write::Delete(format!("/{gone}"))];
            block_on(store.commit(Commit { checks: vec![], writes: writes.clone() }))
                .unwrap_or_else(|error| panic!("seed {seed}: a delete while the disk is full: {error}"));
            apply(&mut known, &writes);
        }
        assert!(store.trouble().is_some(), "deletes do not say that there is room");
        // What the deletes freed is room again.
        block_on(store.commit(Commit { checks: vec![], writes: put(number) })).unwrap();
        assert_eq!(store.trouble(), None);
        apply(&mut known, &put(number));
        drop(store);
        assert_eq!(content(&open(&disk).unwrap()), known, "seed {seed}");
    }
}
