//! A watch: one stream of changes from a revision on, whole transactions at a time.

use super::members::Connection;
use super::messages::{self, WatchCreate, WatchRequest, WatchResponse, WatchedEvent};
use super::own::OWN;
use super::path::{self, BadName};
use super::{Etcd, Failure, value};
use crate::{Event, Kind, ReadError, Revision, Scope, Stored};
use futures::stream::{self, BoxStream, StreamExt};
use std::collections::VecDeque;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// The request for the changes of `scope` after `from`.
fn request(scope: &Scope, from: Revision) -> Result<WatchRequest, BadName> {
    let (first, end) = path::range(scope)?;
    let create = WatchCreate {
        key: first.into_bytes(),
        range_end: end.into_bytes(),
        start_revision: messages::wire_revision(Revision(from.0.saturating_add(1))),
        progress_notify: true,
        fragment: true,
    };
    Ok(WatchRequest { create: Some(create) })
}

/// What a response that ends the watch says.
fn ended(scope: &Scope, response: WatchResponse) -> ReadError {
    let what = scope.to_string();
    if response.compact_revision != 0 {
        return ReadError::Expired { what };
    }
    let reason = response.cancel_reason;
    let failure = Failure::Answered { code: tonic::Code::Unavailable, message: reason.clone() };
    if failure.is_expired() {
        ReadError::Expired { what }
    } else if reason.contains("permission denied") {
        ReadError::Forbidden { what, reason }
    } else {
        // A token that is not known (any more) too: the next watch logs in anew.
        ReadError::Unavailable { what, reason }
    }
}

/// A watch that is open.
struct Watch {
    driver: Etcd,
    scope: Scope,
    connection: Connection,
    responses: Streaming<WatchResponse>,
    /// Kept, because the server ends a watch whose client has nothing more to say.
    _requests: mpsc::Sender<WatchRequest>,
    /// Events of a response of which not all parts are there.
    parts: Vec<WatchedEvent>,
    /// Told next. Events of one transaction come here together, so that none is lost between two of them.
    told: VecDeque<Event>,
    /// Told up to here.
    at: Revision,
    /// Says once why it ended, then ends.
    over: bool,
}

impl Etcd {
    pub(super) async fn open_watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        let request = request(scope, from).map_err(|bad| bad.reading(scope.to_string()))?;
        let failed = |failure: Failure| failure.reading(scope.to_string());
        let until = tokio::time::Instant::now() + self.deadline;
        let Ok(connection) = tokio::time::timeout_at(until, self.members.connection()).await else {
            return Err(failed(Failure::deadline(self.deadline)));
        };
        let connection = connection.map_err(failed)?;
        let opening = self.open_once(scope, from, request, connection.clone());
        let Ok(opened) = tokio::time::timeout_at(until, opening).await else {
            // The next try is not to wait for the same member.
            self.members.give_up(&connection);
            return Err(failed(Failure::deadline(self.deadline)));
        };
        let watch = opened?;
        Ok(stream::unfold(watch, |mut watch| async move {
            let event = watch.next().await?;
            Some((event, watch))
        })
        .boxed())
    }

    async fn open_once(
        &self,
        scope: &Scope,
        from: Revision,
        request: WatchRequest,
        connection: Connection,
    ) -> Result<Watch, ReadError> {
        let failed = |failure: Failure| failure.reading(scope.to_string());
        let (requests, waiting) = mpsc::channel(1);
        // The channel has room for it.
        let _ = requests.try_send(request);
        let waiting = ReceiverStream::new(waiting);
        let opened = self.members.open::<_, WatchResponse>(&connection, messages::WATCH, waiting).await;
        let mut responses = opened.map_err(|failure| self.forgetting(failure)).map_err(failed)?;
        let silent = || Failure::NoAnswer("the watch ended before it began".to_owned());
        let first: Result<WatchResponse, Failure> = match responses.message().await {
            Ok(first) => first.ok_or_else(silent),
            Err(status) => Err(Failure::from_status(&status)),
        };
        let first = match first {
            Ok(first) => first,
            Err(failure) => {
                if failure.is_of_the_member() {
                    self.members.give_up(&connection);
                }
                return Err(failed(self.forgetting(failure)));
            }
        };
        if first.canceled {
            self.members.forget_token();
            return Err(ended(scope, first));
        }
        Ok(Watch {
            driver: self.clone(),
            scope: scope.clone(),
            connection,
            responses,
            _requests: requests,
            parts: Vec::new(),
            told: VecDeque::new(),
            at: from,
            over: false,
        })
    }

    /// Forgets the token where a failure says that it is of no use.
    fn forgetting(&self, failure: Failure) -> Failure {
        if failure.is_stale_token() {
            self.members.forget_token();
        }
        failure
    }
}

impl Watch {
    /// The next event; `None` after the failure that ended the watch.
    async fn next(&mut self) -> Option<Result<Event, ReadError>> {
        loop {
            if let Some(event) = self.told.pop_front() {
                return Some(Ok(event));
            }
            if self.over {
                return None;
            }
            let what = self.scope.to_string();
            let response = tokio::select! {
                biased;
                response = self.responses.message() => response,
                () = self.connection.clone().ended() => {
                    self.over = true;
                    let reason = "the member that it came from does not answer".to_owned();
                    return Some(Err(ReadError::Unavailable { what, reason }));
                }
            };
            match response {
                Ok(Some(response)) if response.canceled => {
                    self.over = true;
                    return Some(Err(ended(&self.scope, response)));
                }
                Ok(Some(response)) => self.hear(response),
                Ok(None) => {
                    self.over = true;
                    let reason = "the server ended the watch".to_owned();
                    return Some(Err(ReadError::Unavailable { what, reason }));
                }
                Err(status) => {
                    self.over = true;
                    let failure = self.driver.forgetting(Failure::from_status(&status));
                    if failure.is_of_the_member() {
                        self.driver.members.give_up(&self.connection);
                    }
                    return Some(Err(failure.reading(what)));
                }
            }
        }
    }

    fn hear(&mut self, response: WatchResponse) {
        let at = response.header.map_or(Revision(0), |header| messages::revision(header.revision));
        let says_nothing = response.events.is_empty() && self.parts.is_empty() && !response.fragment;
        self.parts.extend(response.events);
        if response.fragment {
            return;
        }
        // A member that lags behind the one that was listed knows less than has been told.
        if says_nothing && !response.created && at >= self.at {
            self.at = at;
            self.told.push_back(Event::Progress(at));
        }
        for event in std::mem::take(&mut self.parts) {
            self.at = event.kv.as_ref().map_or(self.at, |found| messages::revision(found.mod_revision));
            self.told.extend(self.driver.event(&self.scope, event));
        }
    }
}

impl Etcd {
    /// A change as the trait's event; `None` for what is no record.
    fn event(&self, scope: &Scope, event: WatchedEvent) -> Option<Event> {
        let found = event.kv?;
        let at = messages::revision(found.mod_revision);
        if event.kind == 1 {
            let key = path::read(scope.kind(), std::str::from_utf8(&found.key).ok()?)?;
            self.forget(&key);
            return Some(Event::Deleted(key, at));
        }
        if scope.kind() == Kind::Block
            && let Some(record) = OWN.take(&found.key, &found.value)
        {
            return Some(Event::Put(Stored { record, version: value::version(&found), created: None }));
        }
        let (key, record) = value::read_any(scope.kind(), &found)?;
        match self.note(&key, record) {
            Ok(stored) if !stored.record.is_deleted() => Some(Event::Put(stored)),
            Ok(_) => Some(Event::Deleted(key, at)),
            Err(reason) => {
                tracing::warn!(%key, reason, "skipped record");
                Some(Event::Unreadable(key, at))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacted_history_expires_a_watch_and_a_lost_leader_does_not() {
        let scope = Scope::All(Kind::Block);
        let compacted = WatchResponse { canceled: true, compact_revision: 9, ..WatchResponse::default() };
        assert!(matches!(ended(&scope, compacted), ReadError::Expired { .. }));
        let reason = "etcdserver: no leader".to_owned();
        let lost = WatchResponse { canceled: true, cancel_reason: reason, ..WatchResponse::default() };
        assert!(matches!(ended(&scope, lost), ReadError::Unavailable { .. }));
        let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied".to_owned();
        let denied = WatchResponse { canceled: true, cancel_reason: reason, ..WatchResponse::default() };
        assert!(matches!(ended(&scope, denied), ReadError::Forbidden { .. }));
    }

    #[test]
    fn watch_begins_after_the_revision_that_is_known() {
        let request = request(&Scope::All(Kind::Config), Revision(41)).unwrap().create.unwrap();
        assert_eq!(request.start_revision, 42);
        assert_eq!(request.key, b"/calico/ipam/v2/config");
    }
}
