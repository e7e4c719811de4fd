//! Line 10: requests that no client means well. They are refused, one by one, and nobody else notices.
//!
//! `TORTIE_FUZZ_SEED` begins with another seed, `TORTIE_FUZZ_CASES` sets how many requests there are.

use crate::size;
use crate::support::{Client, Lab, Session};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use std::fmt::Write as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// How long a refusal may take on a busy machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
const CATS: &str = "/apis/example.org/v1/cats";

/// Numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
    }

    /// A text as it stands in a query: half of it words that mean something there.
    fn query(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..self.below(8) {
            let words = [
                "a",
                "=",
                "==",
                "!=",
                ",",
                "in",
                "notin",
                "(",
                ")",
                "!",
                " ",
                "metadata.name",
                "spec.nodeName",
                "x.y/z",
                "ü",
            ];
            if self.below(3) > 0 {
                text.push_str(self.of(&words));
            } else {
                text.push(char::from(u8::try_from(self.below(128)).unwrap()));
            }
        }
        let mut encoded = String::new();
        for byte in text.bytes() {
            write!(encoded, "%{byte:02X}").unwrap();
        }
        if self.below(20) == 0 { format!("{encoded}%zz%") } else { encoded }
    }

    /// Any JSON, with the words of patches in it.
    fn json(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 5 } else { 8 }) {
            0 => Value::Null,
            1 => self.roll().into(),
            2 => true.into(),
            3 => self.of(&["x", "", "delete", "replace", "/metadata/name", "9999-99-99"]).into(),
            4 => json!(-1.5e300),
            5 => (0..self.below(4)).map(|_| self.json(depth - 1)).collect(),
            _ => {
                let names = [
                    "metadata",
                    "name",
                    "labels",
                    "finalizers",
                    "data",
                    "spec",
                    "$patch",
                    "$retainKeys",
                    "op",
                    "path",
                    "value",
                    "from",
                    "managedFields",
                    "ownerReferences",
                    "$setElementOrder/finalizers",
                    "kind",
                ];
                let count = self.below(5);
                (0..count).map(|_| (self.of(&names).to_owned(), self.json(depth - 1))).collect()
            }
        }
    }
}

struct Sent {
    method: Method,
    path: String,
    media_type: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
}

fn malformed(dice: &mut Dice) -> Sent {
    let json = "application/json";
    let post = |media_type, body: Vec<u8>| Sent {
        method: Method::POST,
        path: MAPS.into(),
        media_type,
        headers: Vec::new(),
        body,
    };
    let get = |path: String| Sent {
        method: Method::GET,
        path,
        media_type: json,
        headers: Vec::new(),
        body: Vec::new(),
    };
    match dice.below(12) {
        0 => get(format!("{MAPS}?labelSelector={}", dice.query())),
        1 => get(format!("{MAPS}?fieldSelector={}&watch={}", dice.query(), dice.of(&["0", "false", "x"]))),
        2 => get(format!("{MAPS}?limit={}&continue={}", dice.query(), dice.query())),
        3 => get(format!("{MAPS}?resourceVersion={}&resourceVersionMatch={}", dice.query(), dice.query())),
        4 => {
            let types = [
                "application/merge-patch+json",
                "application/json-patch+json",
                "application/strategic-merge-patch+json",
                "application/apply-patch+yaml",
                "text/plain",
            ];
            let target = dice.of(&[MAPS, CATS]);
            let body =
                if dice.below(4) == 0 { dice.bytes(200) } else { dice.json(5).to_string().into_bytes() };
            Sent {
                method: Method::PATCH,
                path: format!("{target}/one?fieldManager=m&force={}", dice.of(&["true", "x"])),
                media_type: dice.of(&types),
                headers: Vec::new(),
                body,
            }
        }
        5 => {
            let mut body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12".to_vec();
            if dice.below(3) == 0 {
                body.truncate(dice.below(body.len()));
            }
            body.extend(dice.bytes(100));
            post("application/vnd.kubernetes.protobuf", body)
        }
        6 => post(dice.of(&[json, "application/yaml", "application/cbor", "text/html"]), dice.bytes(400)),
        7 => {
            let open = dice.of(&["[", "{\"a\":", "[{\"a\":"]).repeat(10_000);
            post(dice.of(&[json, "application/yaml"]), open.into_bytes())
        }
        8 => {
            let mut sent = post(json, dice.bytes(100));
            sent.headers.push(("content-encoding", "gzip"));
            sent
        }
        9 => Sent {
            body: dice.json(6).to_string().into_bytes(),
            method: Method::PUT,
            ..get(format!(
                "{}/{}",
                dice.of(&[MAPS, CATS, "/api/v1/nodes"]),
                dice.of(&["one", "two", "%2e%2e", "A"])
            ))
        },
        10 => {
            let methods =
                [Method::TRACE, Method::OPTIONS, Method::PUT, Method::PATCH, Method::CONNECT, Method::DELETE];
            let paths = [
                "/",
                "/api",
                "/apis/x",
                "/version",
                "/openapi/v3/..",
                "/api/v1/namespaces/%zz/pods",
                "/healthz/../api",
            ];
            Sent { method: methods[dice.below(methods.len())].clone(), ..get(dice.of(&paths).to_owned()) }
        }
        _ => {
            let mut sent = Sent {
                method: Method::DELETE,
                body: dice.json(3).to_string().into_bytes(),
                ..get(format!("{MAPS}/none?gracePeriodSeconds={}", dice.query()))
            };
            sent.headers.push((
                "accept",
                dice.of(&["application/cbor", ";;;", "application/json;as=Table", "*/*;q=x"]),
            ));
            sent
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn line_10_malformed_requests_are_refused_and_harm_nobody() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    let definition = json!({
        "metadata": {"name": "cats.example.org"},
        "spec": {"group": "example.org", "scope": "Cluster", "names": {"plural": "cats", "kind": "Cat"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
    });
    admin.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.ok();
    for collection in [MAPS, CATS] {
        admin.post(collection, &json!({"metadata": {"name": "one"}})).await.ok();
    }
    // Somebody who means well works all the time, in a namespace of its own, and hears of every change.
    admin.post("/api/v1/namespaces", &json!({"metadata": {"name": "peace"}})).await.ok();
    let peace = "/api/v1/namespaces/peace/configmaps";
    let mut events = admin.watch(&format!("{peace}?watch=true"), "application/json").await;
    events.told().await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let good = {
        let admin = admin.clone();
        tokio::spawn(async move {
            let mut session = admin.session().await;
            let mut count = 0;
            while stopped.try_recv().is_err() {
                session.post(peace, &json!({"metadata": {"name": format!("m{count}")}})).await.ok();
                assert_eq!(events.told().await.1, format!("m{count}"));
                count += 1;
            }
            count
        })
    };
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let cases = variable("TORTIE_FUZZ_CASES").unwrap_or_else(|| size(10_000, 1_500));
    let seed = variable("TORTIE_FUZZ_SEED").unwrap_or(1);
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let admin = admin.clone();
            tokio::spawn(refused_one_by_one(admin, seed * 4 + worker, cases / 4))
        })
        .collect();
    let mut refused = 0;
    for worker in workers {
        refused += worker.await.unwrap();
    }
    // Some of them mean something after all, as a selector that selects nothing.
    assert!(refused > cases / 2, "{refused} of {cases} were refused");
    too_large(&admin).await;
    not_even_http(&admin).await;
    let _ = stop.send(());
    assert!(good.await.unwrap() > 0);
    assert_eq!(lab.admin().get("/readyz").await.body, "ok");
}

/// Sends malformed requests and returns how many of them were refused.
async fn refused_one_by_one(admin: Client, seed: usize, cases: usize) -> usize {
    let mut refused = 0;
    let mut dice = Dice(u64::try_from(seed).unwrap());
    let mut session: Session = admin.session().await;
    for case in 0..cases {
        let sent = malformed(&mut dice);
        let mut headers = vec![("content-type", sent.media_type)];
        headers.extend(sent.headers);
        let what = format!(
            "seed {seed} case {case}: {} {} {:?}",
            sent.method,
            sent.path,
            String::from_utf8_lossy(&sent.body)
        );
        let Ok(uri) = sent.path.parse::<http::Uri>() else { continue };
        assert!(uri.path().starts_with('/'));
        let answer = session.send(sent.method, &sent.path, &headers, Bytes::from(sent.body)).await;
        assert!(answer.code < 500, "{what:.2000}\n{answer:?}");
        refused += usize::from(answer.code >= 400);
        if answer.code >= 400 && answer.code != 404 {
            assert_eq!(answer.json()["kind"], "Status", "{what:.2000}");
        }
    }
    refused
}

async fn too_large(admin: &Client) {
    let body =
        |bytes: usize| format!(r#"{{"metadata":{{"name":"big"}},"data":{{"a":"{}"}}}}"#, "x".repeat(bytes));
    for bytes in [4 << 20, 16 << 20] {
        let headers = [("content-type", "application/json")];
        // It may answer and close the connection before it was sent everything.
        let sent = admin.try_send(Method::POST, MAPS, &headers, body(bytes).into()).await;
        assert!(sent.is_err() || sent.is_ok_and(|answer| answer.code == 413));
    }
    // Small on the wire, and too large when it is unpacked.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, body(64 << 20).as_bytes()).unwrap();
    let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
    let bomb = admin.send(Method::POST, MAPS, &headers, packed.finish().unwrap().into()).await;
    assert_eq!(bomb.code, 413);
    assert_eq!(admin.get(&format!("{MAPS}/big")).await.code, 404);
}

/// Bytes on a connection that are no request, or only the beginning of one.
async fn not_even_http(admin: &Client) {
    let flood: String = (0..2000).fold(String::new(), |mut flood, number| {
        write!(flood, "x-flood-{number}: {}\r\n", "y".repeat(40)).unwrap();
        flood
    });
    let refused = [
        "\r\n\r\n\r\nnonsense\r\n\r\n".to_owned(),
        "GET /api HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /api HTTP/1.1\r\nhost: x\r\n{flood}\r\n"),
        format!("GET /api/{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(200_000)),
        "POST /api/v1/nodes HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n".to_owned(),
        "POST /api/v1/nodes HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_owned(),
    ];
    for bytes in refused {
        let mut stream = admin.raw().await.unwrap();
        // The server may answer and close before it has taken everything.
        let _ = stream.write_all(bytes.as_bytes()).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the server neither answers nor closes: {bytes:.60}");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{bytes:.60}: {answer:.200}");
    }
    // Half of a request, and of a body, left behind.
    for bytes in ["GET /ap", "POST /api/v1/nodes HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{"] {
        let mut stream = admin.raw().await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        drop(stream);
    }
    // A watch whose client closes its half of the connection.
    let mut stream = admin.raw().await.unwrap();
    stream.write_all(format!("GET {MAPS}?watch=true HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 15]).await.unwrap();
    stream.shutdown().await.unwrap();
}
