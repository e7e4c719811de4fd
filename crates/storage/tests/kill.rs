//! What was answered survives `kill -9` of the process that answered it.
//!
//! Without the harness, because this program is both sides: called with a file it commits to it and says so, line by
//! line, until it is killed; called without, it starts itself, kills it, opens the file and compares.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test whose two sides speak over stdout")]

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use storage::{Commit, Limits, Store, Write};

const ROUNDS: usize = 5;
const ANSWERS: usize = 200;

fn main() {
    match std::env::args().nth(1) {
        Some(file) if file.starts_with('/') => commit_until_killed(Path::new(&file)),
        _ => survives(),
    }
}

fn commit_until_killed(file: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(file, Limits::default()).unwrap();
        let mut number = store.revision();
        loop {
            let writes =
                ["a", "b"].map(|side| Write::Put(format!("/{number}/{side}"), number.to_string().into()));
            let revisions = store.commit(Commit { checks: vec![], writes: writes.into() }).await.unwrap();
            // Said only after it was answered.
            let mut out = std::io::stdout().lock();
            if writeln!(out, "{number} {}", revisions[1]).and_then(|()| out.flush()).is_err() {
                // The other side has heard enough; it kills this one in a moment.
                return;
            }
            number = revisions[1];
        }
    });
}

fn survives() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store");
    let mut answered: Vec<(String, u64)> = Vec::new();
    for _ in 0..ROUNDS {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program).arg(&file).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut lines = said.lines();
        for _ in 0..ANSWERS {
            let line = lines.next().unwrap().unwrap();
            let (number, revision) = line.split_once(' ').unwrap();
            answered.push((number.to_owned(), revision.parse().unwrap()));
        }
        // It is still committing: nobody has stopped reading yet.
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&file, Limits::default()).unwrap();
        for (number, revision) in &answered {
            let entry = store.get(&format!("/{number}/b")).unwrap_or_else(|| panic!("{number} was lost"));
            assert_eq!((entry.revision, entry.value.as_ref()), (*revision, number.as_bytes()));
        }
        let listing = store.list("/", None, 0);
        assert_eq!(listing.entries.len() % 2, 0, "half a commit is there");
        assert!(store.revision() >= answered.last().unwrap().1);
    }
    println!("{} answered commits survived {ROUNDS} kills", answered.len());
}
