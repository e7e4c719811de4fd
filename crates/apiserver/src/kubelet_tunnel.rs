//! Logs, exec, attach and port-forward: the request goes on to the kubelet of the pod's node, over its unix socket.
//!
//! An answer 101 turns both connections into one pipe; SPDY and WebSocket frames pass through unread.

use axum::body::Body;
use http::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use std::path::Path;
use tokio::net::UnixStream;
use tracing::debug;

/// Why the kubelet did not answer.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// Nobody listens, or the connection broke.
    #[error("the kubelet of this node does not answer ({0}); kubectl get nodes shows whether it is Ready")]
    Unavailable(String),
}

/// Sends `request` to the kubelet that listens on `socket`, as `target` (path and query), and returns its answer.
///
/// If the kubelet agrees to switch protocols, bytes are copied both ways until either side ends.
///
/// # Errors
/// [`TunnelError::Unavailable`]; the request may have reached the kubelet.
pub async fn forward(
    socket: &Path,
    target: &str,
    mut request: Request<Body>,
) -> Result<Response<Body>, TunnelError> {
    let unavailable = |error: &dyn std::fmt::Display| TunnelError::Unavailable(error.to_string());
    let stream = UnixStream::connect(socket).await.map_err(|error| unavailable(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unavailable(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "connection to a kubelet broke");
        }
    });

    let from_client = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    parts.uri = target.parse::<Uri>().map_err(|error| unavailable(&error))?;
    parts.version = http::Version::HTTP_11;
    parts.headers.insert(http::header::HOST, http::HeaderValue::from_static("kubelet"));
    let mut answer =
        sender.send_request(Request::from_parts(parts, body)).await.map_err(|error| unavailable(&error))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let from_kubelet = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            let (Ok(client), Ok(kubelet)) = (from_client.await, from_kubelet.await) else { return };
            let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut kubelet).await {
                debug!(%error, "a stream to a kubelet broke");
            }
        });
    }
    Ok(answer.map(Body::new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use hyper::service::service_fn;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_request_reaches_the_kubelet_under_its_own_path_and_the_answer_comes_back() {
        let folder = std::env::temp_dir().join(format!("tunnel-{}", uuid::Uuid::new_v4()));
        let listener = UnixListener::bind(&folder).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
                Ok::<_, std::convert::Infallible>(Response::new(request.uri().to_string()))
            });
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
        });
        let request = Request::get("/api/v1/namespaces/n/pods/p/log").body(Body::empty()).unwrap();
        let answer = forward(&folder, "/containerLogs/n/p/c?tailLines=1", request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.as_ref(), b"/containerLogs/n/p/c?tailLines=1");
        std::fs::remove_file(folder).unwrap();
    }

    #[tokio::test]
    async fn a_kubelet_that_is_away_is_an_error_with_a_remedy() {
        let request = Request::get("/x").body(Body::empty()).unwrap();
        let error = forward(Path::new("/nowhere.sock"), "/x", request).await.unwrap_err();
        assert!(error.to_string().contains("kubectl get nodes"), "{error}");
    }
}
