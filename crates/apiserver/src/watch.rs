//! Watches: what happens to a collection, one line an event.
//!
//! Events of a plain JSON watch without selectors are copied from the store as they are. A selector makes the server
//! parse an event's two states: an object that leaves the selection is told as deleted, one that enters as added.

use crate::answer;
use crate::error::Status;
use crate::form::Form;
use crate::objects;
use crate::read;
use crate::request::Call;
use crate::selection::Selection;
use crate::server::Server;
use crate::stalled::Watching;
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::{HeaderValue, Response, header};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use storage::{Entry, Event, Store};
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// Bytes gathered before they are sent, when many events wait.
const FLUSH_BYTES: usize = 64 << 10;
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Without a wish of the client a stream ends after this and up to as much again.
const DEFAULT_MINUTES: u64 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Added,
    Modified,
    Deleted,
    Bookmark,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
        }
    }
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// With what there is now.
    Now { end_of_initial: bool },
    /// Just after a revision.
    After(u64),
}

struct Stream {
    call: Call,
    selection: Selection,
    store: Store,
    watch: storage::Watch,
    /// What there is to send before the live events.
    first: Option<Bytes>,
    bookmarks: Option<Interval>,
    deadline: Instant,
    /// Revision up to which everything was sent.
    sent: u64,
    /// Whether a table's columns were sent.
    columns_sent: bool,
    ended: bool,
    _watching: Watching,
}

impl Server {
    /// Answers a watch.
    pub(crate) fn watch(&self, call: Call) -> Result<Response<Body>, Status> {
        let selection = Selection::parse(&call.resource, &call.query, &call.name)?;
        let start = start(&call)?;
        let bookmarks = call.query.is_true("allowWatchBookmarks");
        let scope = match (selection.name(), &call.namespace) {
            (Some(name), Some(namespace)) => call.resource.key(namespace, name),
            (Some(name), None) if !call.resource.namespaced => call.resource.key("", name),
            _ => call.resource.scope(call.namespace.as_deref()),
        };
        let listing = match start {
            Start::Now { .. } => Some(self.store.list(&scope, None, 0)),
            Start::After(_) => None,
        };
        let after = match (&listing, start) {
            (Some(listing), _) => listing.revision,
            (None, Start::After(revision)) => revision,
            (None, Start::Now { .. }) => 0,
        };
        if after > self.store.revision() {
            return Err(Status::too_large_revision(after, self.store.revision()));
        }
        let Ok(watch) = self.store.watch(&scope, after) else {
            let message = format!("too old resource version: {after} ({})", self.store.oldest());
            let error = Status::expired(message).to_value();
            let mut line = json!({"type": "ERROR", "object": error}).to_string();
            line.push('\n');
            return Ok(streaming(Body::from(line)));
        };
        let timeout = match call.query.get("timeoutSeconds").and_then(|text| text.parse::<u64>().ok()) {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(24 * 3600)),
            _ => {
                let spread = uuid::Uuid::new_v4().as_u128() % u128::from(DEFAULT_MINUTES * 60);
                Duration::from_secs(DEFAULT_MINUTES * 60 + u64::try_from(spread).unwrap_or(0))
            }
        };
        let mut stream = Stream {
            selection,
            store: self.store.clone(),
            watch,
            first: None,
            bookmarks: bookmarks.then(|| {
                let mut interval = tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
                interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
                interval
            }),
            deadline: Instant::now() + timeout,
            sent: after,
            columns_sent: false,
            ended: false,
            call,
            _watching: Watching::begin(),
        };
        if let Some(listing) = listing {
            let mut out = BytesMut::new();
            for (key, entry) in &listing.entries {
                if stream.is_named(key) && stream.selects(entry) {
                    stream.put(Kind::Added, entry, entry.revision, &mut out);
                }
            }
            if let Start::Now { end_of_initial: true } = start {
                let mark = json!({"k8s.io/initial-events-end": "true"});
                stream.put_bookmark(after, Some(mark), &mut out);
            }
            stream.first = (!out.is_empty()).then(|| out.freeze());
        }
        let body = stream::unfold(stream, |mut stream| async {
            let chunk = stream.next().await?;
            Some((Ok::<_, Infallible>(chunk), stream))
        });
        Ok(streaming(Body::from_stream(body)))
    }
}

fn start(call: &Call) -> Result<Start, Status> {
    let query = &call.query;
    let revision = read::asked_revision(query)?.filter(|revision| *revision > 0);
    if query.get("sendInitialEvents").is_some() && query.get("resourceVersionMatch") != Some("NotOlderThan") {
        let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        let error = crate::error::FieldError::forbidden("resourceVersionMatch", detail);
        return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
    }
    Ok(match (query.get("sendInitialEvents"), revision) {
        (Some("true" | "1"), _) => Start::Now { end_of_initial: query.is_true("allowWatchBookmarks") },
        (_, None) => Start::Now { end_of_initial: false },
        (_, Some(revision)) => Start::After(revision),
    })
}

fn streaming(body: Body) -> Response<Body> {
    let mut response = answer::bytes(200, answer::JSON, body);
    // Keeps well-meaning proxies from gathering events before passing them on.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let mut out = BytesMut::new();
        while out.is_empty() {
            if self.ended {
                return None;
            }
            tokio::select! {
                biased;
                event = self.watch.next() => match event {
                    Ok(event) => self.tell(&event, &mut out),
                    // The reader fell behind or the server stops: the client lists or resumes by itself.
                    Err(storage::Cut) => self.ended = true,
                },
                () = tick(&mut self.bookmarks) => self.progress(&mut out),
                () = tokio::time::sleep_until(self.deadline) => {
                    if self.bookmarks.is_some() {
                        self.progress(&mut out);
                    }
                    self.ended = true;
                }
            }
        }
        while out.len() < FLUSH_BYTES {
            let Some(event) = self.watch.try_next() else { break };
            self.tell(&event, &mut out);
        }
        Some(out.freeze())
    }

    /// A bookmark at the newest revision before which nothing is still to be sent.
    fn progress(&mut self, out: &mut BytesMut) {
        // Read first: what is published after this is not yet in the queue when it is found empty below.
        let newest = self.store.revision();
        if self.watch.is_drained() {
            self.sent = self.sent.max(newest);
        }
        self.put_bookmark(self.sent, None, out);
    }

    fn is_named(&self, key: &str) -> bool {
        self.selection.name().is_none_or(|name| key.rsplit('/').next() == Some(name))
    }

    fn selects(&self, entry: &Entry) -> bool {
        self.selection.is_by_name_only()
            || self.selection.matches(&self.call.resource, &objects::decode(entry))
    }

    fn tell(&mut self, event: &Arc<Event>, out: &mut BytesMut) {
        self.sent = event.revision;
        if !self.is_named(&event.key) {
            return;
        }
        let before = event.before.as_ref().filter(|entry| self.selects(entry));
        let now = event.now.as_ref().filter(|entry| self.selects(entry));
        match (before, now) {
            (None, Some(now)) => self.put(Kind::Added, now, event.revision, out),
            (Some(_), Some(now)) => self.put(Kind::Modified, now, event.revision, out),
            (Some(before), None) => {
                // The object as it is now if it only left the selection, else as it last was.
                let last = event.now.as_ref().unwrap_or(before);
                self.put(Kind::Deleted, last, event.revision, out);
            }
            (None, None) => {}
        }
    }

    fn put(&mut self, kind: Kind, entry: &Entry, revision: u64, out: &mut BytesMut) {
        let resource = &self.call.resource;
        out.put_slice(b"{\"type\":\"");
        out.put_slice(kind.name().as_bytes());
        out.put_slice(b"\",\"object\":");
        if matches!(self.call.form, Form::Json | Form::Yaml) && answer::is_stored_form(resource) {
            objects::render(entry, revision, out);
        } else {
            let object = answer::present(resource, objects::decode_at(entry, revision));
            let object = match self.call.form {
                Form::Json | Form::Yaml => object,
                Form::Partial => answer::partial(&object),
                Form::Table(include) => {
                    let metadata = json!({"resourceVersion": revision.to_string()});
                    let mut table = answer::table(resource, include, &[&object], metadata);
                    if std::mem::replace(&mut self.columns_sent, true) {
                        table["columnDefinitions"] = Value::Null;
                    }
                    table
                }
            };
            out.put_slice(object.to_string().as_bytes());
        }
        out.put_slice(b"}\n");
    }

    fn put_bookmark(&mut self, revision: u64, annotations: Option<Value>, out: &mut BytesMut) {
        let resource = &self.call.resource;
        let (kind, api_version) = match self.call.form {
            Form::Partial => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
            _ => (resource.kind.as_str(), resource.api_version()),
        };
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if let Some(annotations) = annotations {
            metadata["annotations"] = annotations;
        }
        let mut object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        if let Form::Table(_) = self.call.form {
            object = json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                "metadata": {"resourceVersion": revision.to_string()},
                "columnDefinitions": null,
                "rows": [{"cells": [], "object": object}],
            });
        }
        let line = json!({"type": Kind::Bookmark.name(), "object": object});
        out.put_slice(line.to_string().as_bytes());
        out.put_u8(b'\n');
    }
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
