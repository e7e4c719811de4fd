//! What the API server does in a second, and what it takes: `cargo xtask bench apiserver`.
//!
//! Prints one line of JSON for each figure. The server is a process of its own (this program, called with `serve`); with
//! `KUBEBUILDER_ASSETS` a kube-apiserver over etcd is measured beside it in the same rounds, both of them durable.

#![expect(clippy::unwrap_used, reason = "a bench")]

#[path = "../../tests/checklist/real.rs"]
mod real;
#[path = "../../tests/api/support.rs"]
#[expect(dead_code, reason = "tests ask more of it")]
mod support;

use serde_json::{Value, json};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use support::{Client, Lab};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ROUNDS: usize = 3;
/// How long each rate is measured.
const SPAN: Duration = Duration::from_secs(2);

fn tell(name: &str, unit: &str, runs: &[f64]) {
    // Whoever asked for figures and does not read them has none.
    let _ = writeln!(std::io::stdout(), "{}", json!({"name": name, "unit": unit, "runs": runs}));
}

/// Our server in a process of its own.
struct Ours {
    child: Child,
    client: Client,
}

impl Drop for Ours {
    fn drop(&mut self) {
        // One that ended by itself was noticed before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ours {
    /// Starts it on an empty file, and says how long that took.
    async fn start(lab: &Lab, name: &str) -> (Self, Duration) {
        let folder = lab.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for file in ["ca.crt", "apiserver.crt", "apiserver.key"] {
            std::fs::copy(lab.folder.path().join(file), folder.join(file)).unwrap();
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let client = lab.admin().at(address);
        let begun = Instant::now();
        let command = Command::new(std::env::current_exe().unwrap())
            .arg("serve")
            .arg(&folder)
            .arg(address.port().to_string())
            .spawn();
        let ours = Self { child: command.unwrap(), client };
        loop {
            let asked = ours.client.try_send(http::Method::GET, "/readyz", &[], bytes::Bytes::new()).await;
            if asked.is_ok() {
                return (ours, begun.elapsed());
            }
            // Of another process's start nothing tells.
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }

    fn resident_megabytes(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }
}

fn serve(folder: &Path, port: u16) {
    let options = apiserver::Options {
        data_file: folder.join("store"),
        pki_dir: folder.to_owned(),
        listeners: vec![TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap()],
        kubelet_socket_dir: folder.join("kubelet"),
        service_cidr: "10.96.0.0/16".into(),
        server_version: "v1.28.0".into(),
        advertise: None,
        guards: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(apiserver::run(options)).unwrap();
}

/// A rate, and how long a request took, in milliseconds.
struct Rate {
    each_second: f64,
    p50: f64,
    p99: f64,
}

fn quantile(sorted: &[f64], at: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let mut index = 0;
    while index < last
        && f64::from(u32::try_from(index).unwrap()) < at * f64::from(u32::try_from(last).unwrap())
    {
        index += 1;
    }
    sorted.get(index).copied().unwrap_or_default()
}

/// Creates objects and then changes each on condition of its revision, on some connections at once.
async fn writes(client: &Client, connections: usize, round: usize) -> [Rate; 2] {
    let tasks: Vec<_> = (0..connections)
        .map(|connection| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut session = client.session().await;
                let (mut created, mut changed, mut objects) = (Vec::new(), Vec::new(), Vec::<Value>::new());
                let begun = Instant::now();
                while begun.elapsed() < SPAN {
                    let name = format!("b-{connections}-{round}-{connection}-{}", created.len());
                    let map = json!({"metadata": {"name": name}, "data": {"filler": "x".repeat(500)}});
                    let since = Instant::now();
                    objects.push(session.post(MAPS, &map).await.ok());
                    created.push(since.elapsed().as_secs_f64() * 1000.0);
                }
                let begun = Instant::now();
                for mut object in objects.into_iter().cycle() {
                    if begun.elapsed() >= SPAN || changed.len() == created.len() {
                        break;
                    }
                    object["data"]["n"] = changed.len().to_string().into();
                    let path = format!("{MAPS}/{}", object["metadata"]["name"].as_str().unwrap());
                    let since = Instant::now();
                    session.put(&path, &object).await.ok();
                    changed.push(since.elapsed().as_secs_f64() * 1000.0);
                }
                (created, changed, begun.elapsed().as_secs_f64())
            })
        })
        .collect();
    let (mut created, mut changed, mut update_seconds) = (Vec::new(), Vec::new(), 0.0_f64);
    for task in tasks {
        let (some_created, some_changed, seconds) = task.await.unwrap();
        created.extend(some_created);
        changed.extend(some_changed);
        update_seconds = update_seconds.max(seconds);
    }
    [(created, SPAN.as_secs_f64()), (changed, update_seconds)].map(|(mut latencies, seconds)| {
        latencies.sort_by(f64::total_cmp);
        Rate {
            each_second: f64::from(u32::try_from(latencies.len()).unwrap()) / seconds,
            p50: quantile(&latencies, 0.5),
            p99: quantile(&latencies, 0.99),
        }
    })
}

async fn rates(ours: &Client, theirs: Option<&Client>) {
    for connections in [1, 4, 16] {
        let mut all = Vec::new();
        for round in 0..ROUNDS {
            let our = writes(ours, connections, round).await;
            let their = match theirs {
                Some(theirs) => Some(writes(theirs, connections, round).await),
                None => None,
            };
            all.push((our, their));
        }
        for (at, what) in ["creates", "updates"].into_iter().enumerate() {
            let by = format!("{connections} connections: {what}");
            let figures =
                |of: &dyn Fn(&Rate) -> f64| -> Vec<f64> { all.iter().map(|(our, _)| of(&our[at])).collect() };
            tell(&by, "1/s", &figures(&|rate| rate.each_second));
            tell(&format!("{by}, p50"), "ms", &figures(&|rate| rate.p50));
            tell(&format!("{by}, p99"), "ms", &figures(&|rate| rate.p99));
            let of_theirs: Vec<(&Rate, &Rate)> =
                all.iter().filter_map(|(our, their)| Some((&our[at], &their.as_ref()?[at]))).collect();
            if !of_theirs.is_empty() {
                let their = |of: &dyn Fn(&Rate) -> f64| -> Vec<f64> {
                    of_theirs.iter().map(|(_, their)| of(their)).collect()
                };
                tell(&format!("kube-apiserver, {by}"), "1/s", &their(&|rate| rate.each_second));
                tell(&format!("kube-apiserver, {by}, p99"), "ms", &their(&|rate| rate.p99));
                let ratios: Vec<f64> =
                    of_theirs.iter().map(|(our, their)| our.each_second / their.each_second).collect();
                tell(&format!("ratio to kube-apiserver, {by}"), "×", &ratios);
            }
        }
    }
}

/// Makes objects of a custom kind, a thousand in one commit.
async fn fill(client: &Client, count: usize) {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}});
    let definition = json!({
        "metadata": {"name": "grains.bench.example.org"},
        "spec": {"group": "bench.example.org", "scope": "Cluster", "names": {"plural": "grains", "kind": "Grain"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
    });
    client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.ok();
    for begin in (0..count).step_by(1000) {
        let writes: Vec<Value> = (begin..begin + 1000)
            .map(|n| {
                json!({"verb": "create", "path": "/apis/bench.example.org/v1/grains",
                       "object": {"metadata": {"name": format!("grain-{n}")}, "spec": {"n": n}}})
            })
            .collect();
        client.post("/apis/tortie.io/v1/commits", &json!({"spec": {"writes": writes}})).await.ok();
    }
}

/// How long an event takes to the last of a thousand watchers.
async fn watchers(client: &Client) {
    let path = format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Dwatched");
    client.post(MAPS, &json!({"metadata": {"name": "watched"}})).await.ok();
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    // They end with this set, before the server does.
    let mut watching = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let mut events = client.watch(&path, "application/json").await;
        let heard = heard.clone();
        watching.spawn(async move {
            while events.next().await.is_some() {
                if heard.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
    }
    for _ in 0..1000 {
        hears.recv().await.unwrap();
    }
    let mut session = client.session().await;
    let mut delays = Vec::new();
    for number in 0..100 {
        let since = Instant::now();
        let patch = json!({"data": {"n": number.to_string()}});
        session.patch(&format!("{MAPS}/watched"), support::MERGE, &patch).await.ok();
        let mut last = since;
        for _ in 0..1000 {
            last = last.max(hears.recv().await.unwrap());
        }
        delays.push(last.duration_since(since).as_secs_f64() * 1000.0);
    }
    delays.sort_by(f64::total_cmp);
    tell("1000 watchers: write to the last of them, p50", "ms", &[quantile(&delays, 0.5)]);
    tell("1000 watchers: write to the last of them, p99", "ms", &[quantile(&delays, 0.99)]);
}

async fn measure() {
    let lab = Lab::start().await;
    let mut starts = Vec::new();
    for round in 0..5 {
        let (_ours, took) = Ours::start(&lab, &format!("start-{round}")).await;
        starts.push(took.as_secs_f64() * 1000.0);
    }
    tell("start to ready with an empty file", "ms", &starts);
    let (ours, _) = Ours::start(&lab, "rates").await;
    let theirs = real::Real::start(&lab, false).await;
    let their_client = theirs.as_ref().map(|theirs| theirs.client(&lab));
    rates(&ours.client, their_client.as_ref()).await;
    drop(theirs);
    watchers(&ours.client).await;
    drop(ours);
    let (ours, _) = Ours::start(&lab, "lists").await;
    fill(&ours.client, 10_000).await;
    let mut session = ours.client.session().await;
    let mut lists = Vec::new();
    for _ in 0..10 {
        let since = Instant::now();
        let listed = session.get("/apis/bench.example.org/v1/grains").await;
        lists.push(since.elapsed().as_secs_f64() * 1000.0);
        assert!(listed.body.len() > 1_000_000);
    }
    tell("10,000 objects listed", "ms", &lists);
    drop((ours, session));
    let (ours, _) = Ours::start(&lab, "memory").await;
    fill(&ours.client, 100_000).await;
    tell("resident memory with 100,000 objects", "MB", &[ours.resident_megabytes()]);
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, verb, folder, port] = &words[..]
        && verb == "serve"
    {
        return serve(Path::new(folder), port.parse().unwrap());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(measure());
}
