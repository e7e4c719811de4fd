//! Logs of containers. Each container appends its raw output to a file of its own; the run before is kept beside it.
//!
//! Nothing stands between a container and its file, so that a kubelet may be killed without a line being lost. The
//! price is that nobody notes when a line is written. The time of a line is what the line itself begins with, as those
//! of our own parts do; lines that follow such a one share its time. Any other has the time at which the file was first
//! seen to be as long as that: [`Marks`] looks once a second, and before the first look it is the file's last change.

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;
use tracing::debug;

/// Largest log of a running container, in bytes; what is older moves to the previous one.
const SIZE_LIMIT: u64 = 16 << 20;

/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(100);

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// Longest line that is kept together, in bytes.
const LINE_LIMIT: usize = 1 << 20;

/// Most looks that are remembered of one log: the older ones are thinned out.
const MARKS: usize = 4096;

/// How long logs were, and when: so many bytes at that time.
#[derive(Debug, Default)]
pub(super) struct Marks {
    logs: Mutex<BTreeMap<PathBuf, Vec<(u64, Timestamp)>>>,
}

impl Marks {
    /// Looks at these logs, and forgets all others.
    pub(super) fn look(&self, logs: impl Iterator<Item = PathBuf>, now: Timestamp) {
        let mut known = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = BTreeMap::new();
        for log in logs {
            let mut marks = known.remove(&log).unwrap_or_default();
            let size = std::fs::metadata(&log).map_or(0, |data| data.len());
            if marks.last().is_some_and(|(last, _)| size < *last) {
                marks.clear();
            }
            if size > marks.last().map_or(0, |(last, _)| *last) {
                marks.push((size, now));
            }
            if marks.len() > MARKS {
                let mut index = 0;
                marks.retain(|_| {
                    index += 1;
                    index % 2 == 0
                });
            }
            if !marks.is_empty() {
                kept.insert(log, marks);
            }
        }
        *known = kept;
    }

    /// When the log was first seen to have more than `offset` bytes; `None` if it was not.
    fn time_at(&self, log: &Path, offset: u64) -> Option<Timestamp> {
        let known = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = known.get(log)?;
        marks.get(marks.partition_point(|(size, _)| *size <= offset)).map(|(_, time)| *time)
    }
}

/// What is asked for, as in the query of the log subresource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogQuery {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    /// Only so many lines at the end.
    pub tail: Option<u64>,
    /// Only lines not older than this.
    pub since: Option<Timestamp>,
    /// Only so many bytes.
    pub limit: Option<u64>,
}

impl LogQuery {
    /// Reads the parameters of a request; `now` is what `sinceSeconds` counts back from.
    ///
    /// # Errors
    /// The name of the parameter that makes no sense.
    pub(super) fn read(parameters: &[(String, String)], now: Timestamp) -> Result<Self, String> {
        let mut query = Self::default();
        for (name, value) in parameters {
            let wrong = || format!("invalid {name}: {value:?}");
            let number = || value.parse::<u64>().map_err(|_| wrong());
            match name.as_str() {
                "follow" => query.follow = value.parse().map_err(|_| wrong())?,
                "previous" => query.previous = value.parse().map_err(|_| wrong())?,
                "timestamps" => query.timestamps = value.parse().map_err(|_| wrong())?,
                "tailLines" => query.tail = Some(number()?),
                "limitBytes" => query.limit = Some(number()?),
                "sinceSeconds" => {
                    let since = now.checked_sub(Duration::from_secs(number()?));
                    query.since = Some(since.map_err(|_| wrong())?);
                }
                "sinceTime" => query.since = Some(value.parse().map_err(|_| wrong())?),
                _ => {}
            }
        }
        Ok(query)
    }
}

/// The log file of a container.
pub(super) fn path(directory: &Path, container: &str) -> PathBuf {
    directory.join(format!("{container}.log"))
}

/// The log of the run before.
pub(super) fn previous(log: &Path) -> PathBuf {
    log.with_extension("previous.log")
}

/// Makes room for a new run: what is there becomes the previous log.
pub(super) fn begin(log: &Path) {
    if let Err(error) = std::fs::rename(log, previous(log))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        debug!(path = %log.display(), %error, "did not keep the log of the run before");
    }
}

/// Keeps the logs below `directory` from filling the disk: one that is too large starts anew.
pub(super) fn bound(directory: &Path) {
    let files = |directory: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
    };
    for log in files(directory).iter().flat_map(|pod| files(pod)) {
        let is_running = log.file_name().is_some_and(|name| !name.to_string_lossy().contains(".previous."));
        if is_running && std::fs::metadata(&log).is_ok_and(|data| data.len() > SIZE_LIMIT) {
            // The writer appends by its open file: the name must stay with that file.
            let cut = std::fs::copy(&log, previous(&log))
                .and_then(|_| std::fs::OpenOptions::new().write(true).open(&log))
                .and_then(|file| file.set_len(0));
            if let Err(error) = cut {
                debug!(path = %log.display(), %error, "did not cut a log");
            }
        }
    }
}

/// Sends what `query` asks for of the log at `path`, which is written while `is_running`.
///
/// Ends early when nobody receives any more.
pub(super) async fn send(
    path: &Path,
    query: &LogQuery,
    marks: &Marks,
    is_running: impl Fn() -> bool,
    output: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let mut file = match File::open(path).await {
        Ok(file) => file,
        // It runs and has not written anything yet, or never will.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && query.follow => loop {
            tokio::time::sleep(FOLLOW).await;
            match File::open(path).await {
                Ok(file) => break file,
                Err(_) if is_running() && !output.is_closed() => {}
                Err(_) => return Ok(()),
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if let Some(lines) = query.tail {
        let start = tail(&mut file, lines).await?;
        file.seek(SeekFrom::Start(start)).await?;
    }
    let mut lines = Lines { query, left: query.limit, inherited: None };
    let mut pending = BytesMut::new();
    loop {
        let running = is_running();
        pending.reserve(CHUNK);
        let read = file.read_buf(&mut pending).await?;
        let mut offset = file.stream_position().await? - pending.len() as u64;
        let changed = file.metadata().await?.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
        let out = lines.take(&mut pending, read == 0 && !(query.follow && running), |length| {
            let time = marks.time_at(path, offset).or(changed).unwrap_or_default();
            offset += length;
            time
        });
        if !out.is_empty() && output.send(out).await.is_err() || lines.left == Some(0) {
            return Ok(());
        }
        if read > 0 {
            continue;
        }
        if !query.follow || !running {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW) => {}
            () = output.closed() => return Ok(()),
        }
        // Cut, because it had become too large.
        let position = file.stream_position().await?;
        if file.metadata().await?.len() < position {
            file.seek(SeekFrom::Start(0)).await?;
        }
    }
}

/// Where the last `lines` lines of a file begin.
async fn tail(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let mut end = file.metadata().await?.len();
    if lines == 0 {
        return Ok(end);
    }
    let mut found = 0;
    let mut is_last_byte = true;
    let mut buffer = vec![0; CHUNK];
    while end > 0 {
        let count = end.min(CHUNK as u64);
        let start = end - count;
        file.seek(SeekFrom::Start(start)).await?;
        let chunk = buffer.get_mut(..usize::try_from(count).unwrap_or(CHUNK)).unwrap_or_default();
        file.read_exact(chunk).await?;
        for (index, byte) in chunk.iter().enumerate().rev() {
            // The newline at the very end closes the last line; it does not begin another.
            if *byte == b'\n' && !is_last_byte {
                found += 1;
                if found == lines {
                    return Ok(start + index as u64 + 1);
                }
            }
            is_last_byte = false;
        }
        end = start;
    }
    Ok(0)
}

/// Turns what was read into what is sent.
struct Lines<'a> {
    query: &'a LogQuery,
    left: Option<u64>,
    /// The time of the last line that began with one.
    inherited: Option<Timestamp>,
}

impl Lines<'_> {
    /// Takes the complete lines out of `pending`, at the end the incomplete one too. `written` is asked for each line
    /// in turn, by its length, when it was written.
    fn take(
        &mut self,
        pending: &mut BytesMut,
        at_end: bool,
        mut written: impl FnMut(u64) -> Timestamp,
    ) -> Bytes {
        let mut out = BytesMut::new();
        loop {
            let line = match pending.iter().position(|byte| *byte == b'\n') {
                Some(newline) => pending.split_to(newline + 1),
                None if pending.len() > LINE_LIMIT || (at_end && !pending.is_empty()) => pending.split(),
                None => break,
            };
            let seen = written(line.len() as u64);
            self.inherited = time_of(&line).or(self.inherited);
            let time = self.inherited.unwrap_or(seen);
            if self.query.since.is_some_and(|since| time < since) {
                continue;
            }
            if self.query.timestamps {
                out.extend_from_slice(format!("{time:.9} ").as_bytes());
            }
            out.extend_from_slice(&line);
        }
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        out.freeze()
    }
}

/// The time that a line begins with: RFC 3339, or the same with a blank and in UTC, as our own parts write it.
fn time_of(line: &[u8]) -> Option<Timestamp> {
    let head = std::str::from_utf8(line.get(..line.len().min(40))?).ok()?;
    if !head.starts_with(|first: char| first.is_ascii_digit()) || head.get(4..5) != Some("-") {
        return None;
    }
    let mut words = head.split([' ', '\n', '\t']);
    let first = words.next()?;
    if first.contains('T') {
        return first.parse().ok();
    }
    format!("{first}T{}Z", words.next()?.trim_end_matches('Z')).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sent(text: &str, query: &LogQuery) -> String {
        let directory = tempfile::tempdir().unwrap();
        let log = path(directory.path(), "c");
        std::fs::write(&log, text).unwrap();
        let (sender, mut receiver) = mpsc::channel(100);
        let marks = Marks::default();
        marks.look([log.clone()].into_iter(), "2026-11-21T12:00:01Z".parse().unwrap());
        send(&log, query, &marks, || false, sender).await.unwrap();
        let mut all = Vec::new();
        while let Some(bytes) = receiver.recv().await {
            all.extend_from_slice(&bytes);
        }
        String::from_utf8(all).unwrap()
    }

    fn query(words: &[(&str, &str)]) -> LogQuery {
        let words: Vec<(String, String)> =
            words.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        LogQuery::read(&words, "2026-11-21T12:00:10Z".parse().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn the_tail_is_so_many_lines_whatever_the_end_looks_like() {
        assert_eq!(sent("a\nb\nc\n", &query(&[("tailLines", "2")])).await, "b\nc\n");
        assert_eq!(sent("a\nb\nc", &query(&[("tailLines", "2")])).await, "b\nc");
        assert_eq!(sent("a\nb\nc", &query(&[("tailLines", "9")])).await, "a\nb\nc");
        assert_eq!(sent("a\nb\n", &query(&[("tailLines", "0")])).await, "");
        let long = "x".repeat(CHUNK);
        assert_eq!(
            sent(&format!("a\n{long}\nc\n"), &query(&[("tailLines", "2")])).await,
            format!("{long}\nc\n")
        );
        assert_eq!(sent("a\nb\nc", &query(&[("limitBytes", "3")])).await, "a\nb");
    }

    #[tokio::test]
    async fn lines_have_the_time_they_name_or_that_of_the_one_before_that_names_one() {
        let text = "first\n2026-11-21 12:00:05.123 [INFO][1] claimed\nsecond\n2026-11-21T12:00:09Z third\n";
        assert_eq!(
            sent(text, &query(&[("timestamps", "true")])).await,
            "2026-11-21T12:00:01.000000000Z first\n\
             2026-11-21T12:00:05.123000000Z 2026-11-21 12:00:05.123 [INFO][1] claimed\n\
             2026-11-21T12:00:05.123000000Z second\n\
             2026-11-21T12:00:09.000000000Z 2026-11-21T12:00:09Z third\n"
        );
        assert_eq!(
            sent(text, &query(&[("sinceSeconds", "5")])).await,
            "2026-11-21 12:00:05.123 [INFO][1] claimed\nsecond\n2026-11-21T12:00:09Z third\n"
        );
        assert_eq!(
            sent(text, &query(&[("sinceTime", "2026-11-21T12:00:06Z")])).await,
            "2026-11-21T12:00:09Z third\n"
        );
    }

    #[tokio::test]
    async fn following_ends_with_the_container() {
        let directory = tempfile::tempdir().unwrap();
        let log = path(directory.path(), "c");
        std::fs::write(&log, "one\n").unwrap();
        let (running, is_running) = tokio::sync::watch::channel(true);
        let (sender, mut receiver) = mpsc::channel(100);
        let query = query(&[("follow", "true")]);
        let follow = async {
            send(&log, &query, &Marks::default(), || *is_running.borrow(), sender).await.unwrap();
        };
        let write = async {
            assert_eq!(receiver.recv().await.unwrap(), "one\n");
            let mut file = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
            std::io::Write::write_all(&mut file, b"two\nthree").unwrap();
            assert_eq!(receiver.recv().await.unwrap(), "two\n");
            running.send_replace(false);
            assert_eq!(receiver.recv().await.unwrap(), "three");
            assert_eq!(receiver.recv().await, None);
        };
        tokio::join!(follow, write);
    }

    #[test]
    fn a_line_was_written_when_the_log_was_first_seen_to_have_it() {
        let directory = tempfile::tempdir().unwrap();
        let log = path(directory.path(), "c");
        let at = |second| Timestamp::from_second(second).unwrap();
        let marks = Marks::default();
        for (second, text) in [(1, "one\n"), (2, "one\n"), (3, "one\ntwo\n")] {
            std::fs::write(&log, text).unwrap();
            marks.look([log.clone()].into_iter(), at(second));
        }
        assert_eq!(marks.time_at(&log, 0), Some(at(1)));
        assert_eq!(marks.time_at(&log, 4), Some(at(3)));
        assert_eq!(marks.time_at(&log, 8), None);
        // A log that begins anew.
        std::fs::write(&log, "x\n").unwrap();
        marks.look([log.clone()].into_iter(), at(4));
        assert_eq!(marks.time_at(&log, 0), Some(at(4)));
        for second in 5..10_000 {
            std::fs::write(&log, vec![b'x'; usize::try_from(second).unwrap()]).unwrap();
            marks.look([log.clone()].into_iter(), at(second));
        }
        assert!(marks.logs.lock().unwrap()[&log].len() <= MARKS);
        marks.look(std::iter::empty(), at(10_000));
        assert_eq!(marks.time_at(&log, 0), None);
    }

    #[test]
    fn a_new_run_keeps_the_log_of_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let log = path(directory.path(), "c");
        begin(&log);
        std::fs::write(&log, "old").unwrap();
        begin(&log);
        assert!(!log.exists());
        assert_eq!(std::fs::read_to_string(previous(&log)).unwrap(), "old");
    }

    #[test]
    fn a_parameter_that_makes_no_sense_is_named() {
        let wrong = [("tailLines".to_owned(), "-1".to_owned())];
        assert_eq!(LogQuery::read(&wrong, Timestamp::UNIX_EPOCH).unwrap_err(), "invalid tailLines: \"-1\"");
    }
}
