//! The kubelet's HTTP server on its unix socket: logs, exec, attach, port-forward, as the API server passes them on.

use super::exec::{self, Remote};
use super::logs::{self, LogQuery};
use super::pod::Container;
use super::shared::{PodEntry, Shared};
use super::streams::{self, Wanted};
use super::{port_forward, static_pods, websocket};
use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

type Body = BoxBody<Bytes, Infallible>;

/// Serves `listener` for ever.
pub(super) async fn serve(shared: Arc<Shared>, listener: UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "did not accept a connection");
                tokio::time::sleep(super::api::RETRY).await;
                continue;
            }
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer(shared, request).await) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "a connection broke");
            }
        });
    }
}

/// Why a request is not carried out: what the API server's client is told.
#[derive(Debug)]
struct Refusal {
    code: StatusCode,
    reason: &'static str,
    message: String,
}

fn bad_request(message: String) -> Refusal {
    Refusal { code: StatusCode::BAD_REQUEST, reason: "BadRequest", message }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    route(shared, request).await.unwrap_or_else(|refusal| {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": refusal.message, "reason": refusal.reason, "code": refusal.code.as_u16(),
        });
        let mut response = Response::new(full(status.to_string()));
        *response.status_mut() = refusal.code;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    })
}

async fn route(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let path = request.uri().path().to_owned();
    let parameters = parameters(request.uri().query().unwrap_or_default());
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match *parts.as_slice() {
        ["healthz"] => Ok(Response::new(full("ok"))),
        ["containerLogs", namespace, pod, container] => {
            let entry = find(&shared, namespace, pod)?;
            log(&shared, entry, container, &parameters)
        }
        ["exec", namespace, pod, container] => {
            let entry = find(&shared, namespace, pod)?;
            let container = running(&entry, container)?;
            let words: Vec<String> = values(&parameters, "command").map(str::to_owned).collect();
            if words.is_empty() {
                return Err(bad_request("you must specify at least one command for the container".into()));
            }
            let wanted = wanted(&parameters)?;
            stream(request, wanted, move |remote| {
                tokio::spawn(exec::exec(shared, entry, container, words, wanted.tty, remote));
            })
        }
        ["attach", namespace, pod, container] => {
            let entry = find(&shared, namespace, pod)?;
            let container = running(&entry, container)?;
            stream(request, wanted(&parameters)?, move |remote| {
                tokio::spawn(exec::attach(shared, entry, container, remote));
            })
        }
        ["portForward", namespace, pod] => {
            let entry = find(&shared, namespace, pod)?;
            if !entry.sandbox {
                return Err(bad_request(format!("pod {pod} has no network yet")));
            }
            forward_ports(request, entry)
        }
        _ => Err(Refusal {
            code: StatusCode::NOT_FOUND,
            reason: "NotFound",
            message: format!("the kubelet serves no {path}"),
        }),
    }
}

fn find(shared: &Shared, namespace: &str, pod: &str) -> Result<PodEntry, Refusal> {
    let key = (namespace.to_owned(), pod.to_owned());
    shared.pods().get(&key).cloned().ok_or_else(|| Refusal {
        code: StatusCode::NOT_FOUND,
        reason: "NotFound",
        message: format!("pod \"{pod}\" is not known on node {}", shared.node.name),
    })
}

fn container<'a>(entry: &'a PodEntry, name: &str) -> Result<&'a Container, Refusal> {
    let pod = &entry.pod.name;
    entry
        .pod
        .container(name)
        .ok_or_else(|| bad_request(format!("container {name} is not valid for pod {pod}")))
}

/// The name of a container in which something can be done now.
fn running(entry: &PodEntry, name: &str) -> Result<String, Refusal> {
    let container = container(entry, name)?;
    if entry.pod.mirror {
        return Err(bad_request(format!(
            "pod {} shows a part of the lab that runs beside the nodes; use another pod of the node",
            entry.pod.name
        )));
    }
    if entry.sandbox && entry.containers.get(name).is_some_and(|entry| entry.running) {
        return Ok(container.name.clone());
    }
    Err(Refusal {
        code: StatusCode::INTERNAL_SERVER_ERROR,
        reason: "InternalError",
        message: format!("unable to upgrade connection: container not found (\"{name}\")"),
    })
}

fn log(
    shared: &Arc<Shared>,
    entry: PodEntry,
    name: &str,
    parameters: &[(String, String)],
) -> Result<Response<Body>, Refusal> {
    let name = container(&entry, name)?.name.clone();
    let query = LogQuery::read(parameters, jiff::Timestamp::now()).map_err(bad_request)?;
    let pod = &entry.pod;
    let mut path = logs::path(&shared.logs(&pod.namespace, &pod.name, &pod.uid), &name);
    if pod.mirror {
        // A stand-in of the control plane writes nothing.
        path = static_pods::log(shared, &name).unwrap_or_else(|| PathBuf::from("/dev/null"));
    } else {
        let known = entry.containers.get(&name);
        if known.is_none() {
            let reason = if pod.init.is_empty() { "ContainerCreating" } else { "PodInitializing" };
            return Err(bad_request(format!(
                "container \"{name}\" in pod \"{}\" is waiting to start: {reason}",
                pod.name
            )));
        }
        if query.previous {
            path = logs::previous(&path);
            if !known.is_some_and(|entry| entry.restarted) || !path.exists() {
                return Err(bad_request(format!(
                    "previous terminated container \"{name}\" in pod \"{}\" not found",
                    pod.name
                )));
            }
        }
    }
    let (sender, receiver) = mpsc::channel::<Bytes>(16);
    let shared = shared.clone();
    tokio::spawn(async move {
        let is_running = || !query.previous && (entry.pod.mirror || exec::is_running(&shared, &entry, &name));
        if let Err(error) = logs::send(&path, &query, &shared.marks, is_running, sender).await {
            warn!(path = %path.display(), %error, "did not read a log");
        }
    });
    let frames = ReceiverStream::new(receiver).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn wanted(parameters: &[(String, String)]) -> Result<Wanted, Refusal> {
    let flag = |names: [&str; 2]| {
        names.iter().flat_map(|name| values(parameters, name)).any(|value| matches!(value, "1" | "true"))
    };
    let wanted = Wanted {
        stdin: flag(["stdin", "input"]),
        stdout: flag(["stdout", "output"]),
        stderr: flag(["stderr", "error"]),
        tty: flag(["tty", "tty"]),
    };
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(bad_request("you must specify at least 1 of stdin, stdout, stderr".into()));
    }
    Ok(wanted)
}

/// Switches the connection to what the client speaks and hands its streams to `work`.
fn stream(
    mut request: Request<Incoming>,
    wanted: Wanted,
    work: impl FnOnce(Remote) + Send + 'static,
) -> Result<Response<Body>, Refusal> {
    let upgrade = header(request.headers(), "upgrade").to_ascii_lowercase();
    match upgrade.as_str() {
        "spdy/3.1" => {
            let offered = offered(request.headers(), "x-stream-protocol-version");
            if !offered.is_empty() && !offered.iter().any(|offered| offered == streams::PROTOCOL) {
                return Ok(no_common_protocol(streams::PROTOCOL));
            }
            switched(hyper::upgrade::on(&mut request), move |connection| async move {
                match streams::open(connection, wanted).await {
                    Some(remote) => work(remote),
                    None => debug!("a client did not open its streams"),
                }
            });
            let mut response = switching("SPDY/3.1");
            response
                .headers_mut()
                .insert("x-stream-protocol-version", HeaderValue::from_static(streams::PROTOCOL));
            Ok(response)
        }
        "websocket" => {
            let offered = offered(request.headers(), "sec-websocket-protocol");
            let protocol = websocket::PROTOCOLS
                .iter()
                .find(|protocol| offered.iter().any(|offered| offered == *protocol))
                .ok_or_else(|| {
                    bad_request(format!("none of the sub-protocols is spoken here: {}", offered.join(", ")))
                })?;
            let accept = websocket::accept(header(request.headers(), "sec-websocket-key"));
            switched(hyper::upgrade::on(&mut request), move |connection| async move {
                work(websocket::open(connection, wanted.stdin));
            });
            let mut response = switching("websocket");
            let headers = response.headers_mut();
            headers.insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
            if let Ok(accept) = HeaderValue::from_str(&accept) {
                headers.insert("sec-websocket-accept", accept);
            }
            Ok(response)
        }
        _ => Err(bad_request("Upgrade request required".into())),
    }
}

fn forward_ports(mut request: Request<Incoming>, entry: PodEntry) -> Result<Response<Body>, Refusal> {
    if !header(request.headers(), "upgrade").eq_ignore_ascii_case("spdy/3.1") {
        // Clients that tried to tunnel try SPDY next.
        return Err(bad_request("Upgrade request required: SPDY/3.1".into()));
    }
    let offered = offered(request.headers(), "x-stream-protocol-version");
    if !offered.is_empty() && !offered.iter().any(|offered| offered == port_forward::PROTOCOL) {
        return Ok(no_common_protocol(port_forward::PROTOCOL));
    }
    switched(hyper::upgrade::on(&mut request), move |connection| port_forward::serve(connection, entry));
    let mut response = switching("SPDY/3.1");
    let protocol = HeaderValue::from_static(port_forward::PROTOCOL);
    response.headers_mut().insert("x-stream-protocol-version", protocol);
    Ok(response)
}

/// Goes on with `work` once the client has read that the connection is switched.
fn switched<F: Future<Output = ()> + Send + 'static>(
    upgrade: OnUpgrade,
    work: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
) {
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => work(TokioIo::new(connection)).await,
            Err(error) => debug!(%error, "did not switch a connection"),
        }
    });
}

fn switching(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    response
}

fn no_common_protocol(spoken: &'static str) -> Response<Body> {
    let mut response = Response::new(full("unable to upgrade: unable to negotiate protocol"));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response.headers_mut().insert("x-accepted-stream-protocol-versions", HeaderValue::from_static(spoken));
    response
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The values of a header that may be repeated and may hold several with commas between them.
fn offered(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|value| value.trim().to_owned()).collect()
}

fn full(text: impl Into<Bytes>) -> Body {
    BodyExt::boxed(Full::new(text.into()))
}

fn values<'a>(parameters: &'a [(String, String)], name: &str) -> impl Iterator<Item = &'a str> {
    parameters.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Names and values of a query string.
fn parameters(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// Undoes the escapes of a query string; what is none stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let escaped = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = escaped.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match (first, escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_with_their_escapes_and_repetitions() {
        let parameters = parameters("command=sh&command=-c&command=echo%20a%2Bb+c&stdout=true&tty=1&x=%zz");
        assert_eq!(values(&parameters, "command").collect::<Vec<_>>(), ["sh", "-c", "echo a+b c"]);
        assert_eq!(values(&parameters, "x").collect::<Vec<_>>(), ["%zz"]);
        let wanted = wanted(&parameters).unwrap();
        assert_eq!(wanted, Wanted { stdin: false, stdout: true, stderr: false, tty: true });
    }

    #[test]
    fn a_session_without_any_stream_is_refused() {
        assert_eq!(wanted(&parameters("command=ls")).unwrap_err().code, StatusCode::BAD_REQUEST);
    }
}
