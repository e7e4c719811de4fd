//! Requests to the API server, objects as JSON values.

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use kube::core::WatchEvent;
use serde_json::Value;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::debug;

/// Wait before a lost watch, or a request that found no server, is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(300);

/// Longest time that one request may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// What a watch delivers.
#[derive(Debug)]
pub(super) enum Change {
    /// All objects there are.
    Listed(Vec<Value>),
    /// A new or changed object.
    Put(Value),
    /// An object that is gone, as it was last.
    Deleted(Value),
}

/// The API server, as this kubelet.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, kube::Error> {
        self.send("GET", path, "application/json", Vec::new()).await
    }

    pub(super) async fn create(&self, path: &str, object: &Value) -> Result<Value, kube::Error> {
        self.send("POST", path, "application/json", object.to_string().into_bytes()).await
    }

    pub(super) async fn patch(&self, path: &str, patch: &Value) -> Result<Value, kube::Error> {
        self.send("PATCH", path, "application/merge-patch+json", patch.to_string().into_bytes()).await
    }

    pub(super) async fn delete(&self, path: &str, options: &Value) -> Result<Value, kube::Error> {
        self.send("DELETE", path, "application/json", options.to_string().into_bytes()).await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Value, kube::Error> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(body)
            .map_err(kube::Error::HttpError)?;
        match tokio::time::timeout(DEADLINE, self.client.request(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(kube::Error::Service("the API server did not answer in time".into())),
        }
    }

    /// Follows a collection until nobody listens any more. `query` is the beginning of the query string.
    pub(super) async fn follow(self, path: String, query: String, sender: mpsc::Sender<Change>) {
        loop {
            if let Err(error) = self.list_and_watch(&path, &query, &sender).await {
                debug!(path, error = format!("{error:#}"), "watch lost");
            }
            if sender.is_closed() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn list_and_watch(&self, path: &str, query: &str, sender: &mpsc::Sender<Change>) -> Result<()> {
        let mut list = self.get(&format!("{path}?{query}")).await?;
        let mut revision = super::pod::text(&list, "/metadata/resourceVersion").to_owned();
        let objects = match list.get_mut("items").map(Value::take) {
            Some(Value::Array(objects)) => objects,
            _ => Vec::new(),
        };
        sender.send(Change::Listed(objects)).await?;
        loop {
            let uri = format!(
                "{path}?{query}&watch=true&allowWatchBookmarks=true&timeoutSeconds=290&resourceVersion={revision}"
            );
            let request = http::Request::get(uri).body(Vec::new()).context("building a request")?;
            let mut events = self.client.request_events::<Value>(request).await?.boxed();
            let read = |object: &Value| super::pod::text(object, "/metadata/resourceVersion").to_owned();
            while let Some(event) = events.try_next().await? {
                let change = match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        revision = read(&object);
                        Change::Put(object)
                    }
                    WatchEvent::Deleted(object) => {
                        revision = read(&object);
                        Change::Deleted(object)
                    }
                    WatchEvent::Bookmark(bookmark) => {
                        revision = bookmark.metadata.resource_version;
                        continue;
                    }
                    WatchEvent::Error(status) => bail!("{}", status.message),
                };
                sender.send(change).await?;
            }
        }
    }
}

/// The HTTP status of the server's answer; `None` when there was no answer.
pub(super) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
