//! What the agent writes on its Node object: addresses as annotations, and that the network is up.

use http::{Method, Request};
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
    /// No answer in time.
    #[error("{what} had no answer within {} s", DEADLINE.as_secs())]
    NoAnswer {
        /// What was tried.
        what: String,
    },
}

async fn call(
    client: &Client,
    what: String,
    request: Result<Request<Vec<u8>>, http::Error>,
) -> Result<Value, CallError> {
    let failed = |reason: String| CallError::Failed { what: what.clone(), reason };
    let request = request.map_err(|error| failed(error.to_string()))?;
    match tokio::time::timeout(DEADLINE, client.request::<Value>(request)).await {
        Ok(result) => result.map_err(|error| failed(error.to_string())),
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
    let what = format!("reading node {node}");
    let request = Request::get(format!("/api/v1/nodes?fieldSelector=metadata.name%3D{node}"))
        .header(http::header::ACCEPT, "application/json")
        .body(Vec::new());
    let list = call(client, what, request).await?;
    let labels = |object: &Value| {
        object.pointer("/metadata/labels").and_then(Value::as_object).map(texts).unwrap_or_default()
    };
    Ok(list.pointer("/items/0").map(labels))
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
    Ok(found.get("labels").and_then(Value::as_object).map(texts).unwrap_or_default())
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
    Ok(found.get("annotations").and_then(Value::as_object).map(texts).unwrap_or_default())
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
    let path = format!("/api/v1/namespaces/{namespace}/pods?fieldSelector=metadata.name%3D{pod}");
    let found = metadata_of(client, what, &path, pod).await?;
    Ok(found.get("annotations").and_then(Value::as_object).map(texts).unwrap_or_default())
}

async fn namespace_metadata(client: &Client, namespace: &str) -> Result<Value, CallError> {
    // What is no name of a namespace has no labels either.
    if !is_name(namespace, 63) {
        return Ok(Value::Null);
    }
    let what = format!("reading namespace {namespace}");
    let path = format!("/api/v1/namespaces?fieldSelector=metadata.name%3D{namespace}");
    metadata_of(client, what, &path, namespace).await
}

fn is_name(text: &str, longest: usize) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    text.len() <= longest && text.bytes().all(fits)
}

/// Metadata of the object of this name in a list; nothing where it is not there, which is no failure.
async fn metadata_of(client: &Client, what: String, path: &str, name: &str) -> Result<Value, CallError> {
    let request = Request::get(path).header(http::header::ACCEPT, "application/json").body(Vec::new());
    let mut list = call(client, what, request).await?;
    let items = list.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten();
    let mut found = items.filter_map(|item| item.get_mut("metadata").map(Value::take));
    // A server that knows no such selector answers more than was asked for.
    Ok(found.find(|metadata| metadata["name"] == name).unwrap_or_default())
}

fn texts(map: &Map<String, Value>) -> BTreeMap<String, String> {
    map.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condition_says_that_the_network_is_up_and_leaves_ready_last() {
        let patch = network_up("2026-09-23T04:00:09.9Z".parse().unwrap());
        assert_eq!(patch["status"]["conditions"][0]["reason"], "CalicoIsUp");
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "2026-09-23T04:00:09Z");
        assert_eq!(patch["status"]["$setElementOrder/conditions"][4]["type"], "Ready");
    }
}
