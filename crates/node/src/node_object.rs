//! What the agent writes on its Node object: addresses as annotations, and that the network is up.

use http::{Method, Request};
use ipam::agent::{NOT_SERVED, TRY_AGAIN};
use jiff::Timestamp;
use kube::Client;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Annotation with the node's IPv4 address and its prefix length.
pub(crate) const IPV4_ADDRESS: &str = "projectcalico.org/IPv4Address";
/// Annotation with the address of the VXLAN device.
pub(crate) const VXLAN_ADDRESS: &str = "projectcalico.org/IPv4VXLANTunnelAddr";

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a call to the API failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It refused, or could not be reached.
    #[error("{what} failed: {reason}")]
    Failed {
        /// What was tried.
        what: String,
        /// Its words.
        reason: String,
    },
    /// The account may not: asking again changes nothing.
    #[error("{what} is forbidden: {reason}; grant the account that right")]
    Forbidden {
        /// What was tried.
        what: String,
        /// Its words.
        reason: String,
    },
    /// No answer in time.
    #[error("{what} had no answer within {} s", DEADLINE.as_secs())]
    NoAnswer {
        /// What was tried.
        what: String,
    },
}

impl CallError {
    /// CNI error code of a request that failed by this.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Forbidden { .. } => NOT_SERVED,
            Self::Failed { .. } | Self::NoAnswer { .. } => TRY_AGAIN,
        }
    }
}

async fn call(
    client: &Client,
    what: String,
    request: Result<Request<Vec<u8>>, http::Error>,
) -> Result<Value, CallError> {
    find(client, what.clone(), request)
        .await?
        .ok_or_else(|| CallError::Failed { what, reason: "there is no such object".to_owned() })
}

/// The same where the object may be missing: `None`.
async fn find(
    client: &Client,
    what: String,
    request: Result<Request<Vec<u8>>, http::Error>,
) -> Result<Option<Value>, CallError> {
    let failed = |reason: String| CallError::Failed { what: what.clone(), reason };
    let request = request.map_err(|error| failed(error.to_string()))?;
    match tokio::time::timeout(DEADLINE, client.request::<Value>(request)).await {
        Ok(Ok(object)) => Ok(Some(object)),
        // A server that knows nothing of such paths answers in words of its own, for which the client makes up another reason.
        Ok(Err(kube::Error::Api(status)))
            if status.code == 404 && matches!(status.reason.as_str(), "NotFound" | "") =>
        {
            Ok(None)
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
            Err(CallError::Forbidden { what, reason: status.message.clone() })
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(CallError::NoAnswer { what }),
    }
}

fn patch(path: String, media: &str, body: &Value) -> Result<Request<Vec<u8>>, http::Error> {
    Request::builder()
        .method(Method::PATCH)
        .uri(path)
        .header(http::header::CONTENT_TYPE, media)
        .header(http::header::ACCEPT, "application/json")
        .body(body.to_string().into_bytes())
}

/// Sets annotations of a node, `None` removes one. Nothing else of it is touched, and no state is assumed: these keys
/// are this agent's own.
///
/// # Errors
/// [`CallError`].
pub(crate) async fn annotate(
    client: &Client,
    node: &str,
    annotations: &BTreeMap<&str, Option<String>>,
) -> Result<(), CallError> {
    let body = json!({"metadata": {"annotations": annotations}});
    let request = patch(format!("/api/v1/nodes/{node}"), "application/merge-patch+json", &body);
    call(client, format!("annotating node {node}"), request).await.map(drop)
}

/// Says in the node's conditions that its network is up (lab §5).
///
/// # Errors
/// [`CallError`].
pub(crate) async fn report_network_up(client: &Client, node: &str) -> Result<(), CallError> {
    let request = patch(
        format!("/api/v1/nodes/{node}/status"),
        "application/strategic-merge-patch+json",
        &network_up(Timestamp::now()),
    );
    call(client, format!("updating the status of node {node}"), request).await.map(drop)
}

fn network_up(now: Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // Ready stays last: there are readers that take the last condition for it.
    let order: Vec<Value> = ["NetworkUnavailable", "MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
        .into_iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    json!({"status": {
        "$setElementOrder/conditions": order,
        "conditions": [{
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "CalicoIsUp",
            "message": "Calico is running on this node",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }],
    }})
}

/// Labels of a Node object; `None` if there is none of that name.
///
/// # Errors
/// [`CallError`].
pub(crate) async fn node_labels(
    client: &Client,
    node: &str,
) -> Result<Option<BTreeMap<String, String>>, CallError> {
    if !is_name(node, 253) {
        return Ok(None);
    }
    let found = metadata_of(client, format!("reading node {node}"), &format!("/api/v1/nodes/{node}")).await?;
    Ok(found.map(|metadata| map_of(&metadata, "labels")))
}

/// Labels of a namespace; none if there is no such namespace.
///
/// # Errors
/// [`CallError`].
pub(crate) async fn namespace_labels(
    client: &Client,
    namespace: &str,
) -> Result<BTreeMap<String, String>, CallError> {
    let found = namespace_metadata(client, namespace).await?;
    Ok(found.map(|metadata| map_of(&metadata, "labels")).unwrap_or_default())
}

/// Annotations of a namespace; none if there is no such namespace.
///
/// # Errors
/// [`CallError`].
pub(crate) async fn namespace_annotations(
    client: &Client,
    namespace: &str,
) -> Result<BTreeMap<String, String>, CallError> {
    let found = namespace_metadata(client, namespace).await?;
    Ok(found.map(|metadata| map_of(&metadata, "annotations")).unwrap_or_default())
}

/// Annotations of a pod; none if there is no such pod.
///
/// # Errors
/// [`CallError`].
pub(crate) async fn pod_annotations(
    client: &Client,
    namespace: &str,
    pod: &str,
) -> Result<BTreeMap<String, String>, CallError> {
    if !is_name(namespace, 63) || !is_name(pod, 253) {
        return Ok(BTreeMap::new());
    }
    let what = format!("reading pod {namespace}/{pod}");
    let found = metadata_of(client, what, &format!("/api/v1/namespaces/{namespace}/pods/{pod}")).await?;
    Ok(found.map(|metadata| map_of(&metadata, "annotations")).unwrap_or_default())
}

async fn namespace_metadata(client: &Client, namespace: &str) -> Result<Option<Value>, CallError> {
    // What is no name of a namespace has no labels either.
    if !is_name(namespace, 63) {
        return Ok(None);
    }
    let what = format!("reading namespace {namespace}");
    metadata_of(client, what, &format!("/api/v1/namespaces/{namespace}")).await
}

/// Whether this can be an object's name, and so a part of a path that leads nowhere else.
fn is_name(text: &str, longest: usize) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    !matches!(text, "" | "." | "..") && text.len() <= longest && text.bytes().all(fits)
}

/// Metadata of the object at this path; `None` where it is not there, which is no failure.
///
/// It is got and not listed by its name: Calico's account for plugins may get, and no more.
async fn metadata_of(client: &Client, what: String, path: &str) -> Result<Option<Value>, CallError> {
    let request = Request::get(path).header(http::header::ACCEPT, "application/json").body(Vec::new());
    let found = find(client, what, request).await?;
    Ok(found.map(|mut object| object.get_mut("metadata").map(Value::take).unwrap_or_default()))
}

fn map_of(metadata: &Value, key: &str) -> BTreeMap<String, String> {
    metadata.get(key).and_then(Value::as_object).map(texts).unwrap_or_default()
}

fn texts(map: &Map<String, Value>) -> BTreeMap<String, String> {
    map.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An API whose account may get and not list, as Calico's account for plugins.
    fn getter() -> Client {
        let answer = |request: Request<kube::client::Body>| {
            let (path, query) = (request.uri().path().to_owned(), request.uri().query().is_some());
            let status = |code: u16, reason: &str| {
                let body = json!({"kind": "Status", "status": "Failure", "message": reason, "code": code, "reason": reason});
                (code, body)
            };
            let object = |key: &str| (200, json!({"metadata": {"name": "a", key: {"k": "v"}}}));
            let (code, body) = match path.as_str() {
                "/api/v1/namespaces/a" => object("labels"),
                "/api/v1/namespaces/a/pods/p" => object("annotations"),
                "/api/v1/namespaces/a/pods" | "/api/v1/namespaces" => status(403, "Forbidden"),
                "/api/v1/namespaces/secret" => status(403, "Forbidden"),
                _ => status(404, "NotFound"),
            };
            assert!(!query, "{path} is asked for by a selector");
            let body = http_body_util::Full::new(bytes::Bytes::from(body.to_string()));
            std::future::ready(http::Response::builder().status(code).body(body))
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn an_account_that_may_get_and_not_list_is_enough() {
        let client = getter();
        let expected = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        assert_eq!(namespace_labels(&client, "a").await.unwrap(), expected);
        assert_eq!(pod_annotations(&client, "a", "p").await.unwrap(), expected);
        assert!(namespace_labels(&client, "b").await.unwrap().is_empty());
        assert!(pod_annotations(&client, "a", "..").await.unwrap().is_empty());
        assert_eq!(node_labels(&client, "n").await.unwrap(), None);
        assert_eq!(namespace_labels(&client, "secret").await.unwrap_err().code(), NOT_SERVED);
    }

    #[test]
    fn what_would_lead_elsewhere_in_a_path_is_no_name() {
        for text in ["", ".", "..", "a/b", "a?b", "A", "a%2e"] {
            assert!(!is_name(text, 253), "{text:?}");
        }
        assert!(is_name("a.b-c1", 6) && !is_name("a.b-c1", 5));
    }

    #[test]
    fn condition_says_that_the_network_is_up_and_leaves_ready_last() {
        let patch = network_up("2026-09-23T04:00:09.9Z".parse().unwrap());
        assert_eq!(patch["status"]["conditions"][0]["reason"], "CalicoIsUp");
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "2026-09-23T04:00:09Z");
        assert_eq!(patch["status"]["$setElementOrder/conditions"][4]["type"], "Ready");
    }
}
