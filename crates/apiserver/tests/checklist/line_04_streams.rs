//! Line 4, the server's half: a stream to a pod is a pipe to the kubelet of its node, whatever is spoken on it.
//!
//! What kubectl and the kubelet say to each other on it (exit codes, terminals, forwarded ports) is tried in a whole lab,
//! by the tests of the binary.

use crate::support::{Client, Lab};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

const PODS: &str = "/api/v1/namespaces/default/pods";
const MANY: usize = 10 << 20;

/// A kubelet that speaks whatever protocol it is asked for and hands each stream over.
fn kubelet(lab: &Lab) -> mpsc::Receiver<(String, UnixStream)> {
    let folder = lab.folder.path().join("kubelet");
    std::fs::create_dir_all(&folder).unwrap();
    let listener = UnixListener::bind(folder.join("n1.sock")).unwrap();
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let upgrade =
                head.lines().find_map(|line| line.strip_prefix("upgrade: ")).unwrap_or("none").to_owned();
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: {upgrade}\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            if sender.send((head, stream)).await.is_err() {
                return;
            }
        }
    });
    receiver
}

async fn open(client: &Client, method: Method, protocol: &str) -> TokioIo<hyper::upgrade::Upgraded> {
    let mut sender = client.connect().await.unwrap();
    let request = Request::builder()
        .method(method)
        .uri(format!("{PODS}/p/exec?command=cat&container=c&stdin=true&stdout=true"))
        .header("host", "localhost")
        .header("connection", "Upgrade")
        .header("upgrade", protocol)
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-version", "13")
        .body(Full::<Bytes>::default())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["upgrade"]),
        (101, &protocol.parse().unwrap())
    );
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn line_04_streams_carry_every_byte_both_ways_and_end_with_their_client() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    admin.post(PODS, &pod).await.ok();
    let mut streams = kubelet(&lab);
    let bytes: Vec<u8> = (0..MANY).map(|at| u8::try_from(at * 7919 % 251).unwrap()).collect();
    let digest = Sha256::digest(&bytes);
    for (method, protocol) in [(Method::POST, "SPDY/3.1"), (Method::GET, "websocket")] {
        let mut there = open(&admin, method, protocol).await;
        let (head, mut pod) = streams.recv().await.unwrap();
        assert!(head.contains("/exec/default/p/c?command=cat"), "{head}");
        // As much out of the pod as into it, at the same time.
        let sent = bytes.clone();
        let echo = tokio::spawn(async move {
            let mut taken = vec![0; MANY];
            pod.read_exact(&mut taken).await.unwrap();
            pod.write_all(&taken).await.unwrap();
            pod
        });
        there.write_all(&sent).await.unwrap();
        there.flush().await.unwrap();
        let mut back = vec![0; MANY];
        there.read_exact(&mut back).await.unwrap();
        assert_eq!(Sha256::digest(&back), digest, "{protocol}");
        let mut pod = echo.await.unwrap();
        // A client that is killed in the middle ends the stream at the pod.
        drop(there);
        assert_eq!(pod.read(&mut [0; 16]).await.unwrap_or(0), 0);
    }
    fifty_at_once(&admin, &mut streams).await;
}

async fn fifty_at_once(admin: &Client, streams: &mut mpsc::Receiver<(String, UnixStream)>) {
    let clients: Vec<_> = (0..50_u8)
        .map(|number| {
            let admin = admin.clone();
            tokio::spawn(async move {
                let mut stream = open(&admin, Method::POST, "SPDY/3.1").await;
                let sent = vec![number; 10_000];
                stream.write_all(&sent).await.unwrap();
                stream.flush().await.unwrap();
                let mut back = vec![0; sent.len()];
                stream.read_exact(&mut back).await.unwrap();
                assert_eq!(back, sent);
            })
        })
        .collect();
    for _ in 0..clients.len() {
        let (_, mut pod) = streams.recv().await.unwrap();
        tokio::spawn(async move {
            let (mut reader, mut writer) = pod.split();
            tokio::io::copy(&mut reader, &mut writer).await.ok();
        });
    }
    for client in clients {
        client.await.unwrap();
    }
}
