//! Logs and streams: what reaches the kubelet, and what comes back.

use crate::support::Lab;
use http::Method;
use serde_json::json;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A kubelet that remembers the head of its one request and gives `answer`.
fn kubelet(lab: &Lab, node: &str, answer: &'static str) -> Arc<Mutex<String>> {
    let folder = lab.folder.path().join("kubelet");
    std::fs::create_dir_all(&folder).unwrap();
    let listener = UnixListener::bind(folder.join(format!("{node}.sock"))).unwrap();
    let seen = Arc::new(Mutex::new(String::new()));
    let remembered = Arc::clone(&seen);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        *remembered.lock().unwrap() = String::from_utf8(head).unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        // What follows a switch of protocols is sent back as it comes.
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await.ok();
    });
    seen
}

async fn running_pod(lab: &Lab) {
    let admin = lab.admin();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    admin.post(PODS, &pod).await.ok();
}

#[tokio::test]
async fn logs_come_from_the_kubelet_of_the_pods_node() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    running_pod(&lab).await;
    let waiting = admin.get(&format!("{PODS}/p/log")).await;
    assert_eq!(
        waiting.refused(),
        (400, r#"container "c" in pod "p" is waiting to start: ContainerCreating"#.into())
    );
    assert_eq!(
        admin.get(&format!("{PODS}/p/log?container=x")).await.refused().1,
        "container x is not valid for pod p"
    );
    let status = json!({"status": {"containerStatuses": [{"name": "c", "state": {"running": {}}}]}});
    admin.patch(&format!("{PODS}/p/status"), crate::support::MERGE, &status).await.ok();
    assert_eq!(admin.get(&format!("{PODS}/p/log")).await.code, 500, "no kubelet is there yet");
    let seen = kubelet(&lab, "n1", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    let log = admin.get(&format!("{PODS}/p/log?tailLines=3")).await;
    assert_eq!(log.body, "hello");
    let head = seen.lock().unwrap().clone();
    assert!(head.starts_with("GET /containerLogs/default/p/c?tailLines=3 HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn a_stream_is_a_pipe_to_the_kubelet() {
    let lab = Lab::start().await;
    running_pod(&lab).await;
    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\r\n";
    let seen = kubelet(&lab, "n1", answer);
    let mut sender = lab.admin().connect().await.unwrap();
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(format!("{PODS}/p/exec?command=ls&container=c"))
        .header("host", "localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", "v4.channel.k8s.io")
        .body(http_body_util::Full::default())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
    let head = seen.lock().unwrap().to_lowercase();
    assert!(head.starts_with("post /exec/default/p/c?command=ls&container=c http/1.1\r\n"), "{head}");
    assert!(head.contains("x-stream-protocol-version: v4.channel.k8s.io"), "{head}");
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    let mut stream = hyper_util::rt::TokioIo::new(upgraded);
    stream.write_all(b"ping over there").await.unwrap();
    let mut echoed = [0; 15];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"ping over there");
}
