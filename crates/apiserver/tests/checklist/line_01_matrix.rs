//! Line 1: every kubectl, every command, compared with what it printed when it was last looked at.
//!
//! The golden file `matrix.golden` has one section for each row of the matrix, and one more where a version prints
//! something else. `TORTIE_BLESS=1` writes it anew; look at the difference before it is kept.

use crate::kubectl::{Kubectl, Program, all, text};
use crate::size;
use crate::support::{Client, Lab, MERGE};
use regex::Regex;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;

/// Commands, in the order in which they are run against one fresh server each version. Rows begin with their name.
const ROWS: &str = include_str!("matrix.rows");

fn golden_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checklist/matrix.golden")
}

/// (name, script) of each row: a line `# name`, and the lines below it.
fn rows() -> Vec<(&'static str, &'static str)> {
    ROWS.split("\n# ").skip(1).map(|row| row.split_once('\n').expect("a script below the name")).collect()
}

/// What is different each time: times, identities, places.
struct Mask(Vec<(Regex, &'static str)>);

impl Mask {
    fn new(lab: &Lab) -> Self {
        let own = |text: &str| regex::escape(text);
        let rules = [
            (own(lab.folder.path().to_str().unwrap()), "FOLDER"),
            (own(&lab.address.to_string()), "SERVER"),
            (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}".into(), "UID"),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)".into(), "TIME"),
            (r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}".into(), "TIME"),
            (r#"((resourceVersion|last-applied-revision)"?: ?)"?\d+"?"#.into(), "${1}N"),
            (r"\b(\d+m)?\d+s\b".into(), "AGE"),
            (r"eyJ[\w.-]+".into(), "TOKEN"),
            (r"LIVE-\d+|MERGED-\d+".into(), "FILE"),
            // Columns are as wide as their widest cell, and times are not.
            (r"[ \t]+\n".into(), "\n"),
        ];
        Self(rules.into_iter().map(|(pattern, with)| (Regex::new(&pattern).unwrap(), with)).collect())
    }

    fn mask(&self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |text, (pattern, with)| pattern.replace_all(&text, *with).into_owned())
    }
}

fn shown(mask: &Mask, output: &Output) -> String {
    let mut shown = format!("exit {}\n", output.status.code().unwrap_or(-1));
    for (name, bytes) in [("", &output.stdout), ("stderr: ", &output.stderr)] {
        for line in mask.mask(&text(bytes)).lines() {
            writeln!(shown, "{name}{line}").unwrap();
        }
    }
    shown
}

/// What a cluster has that nobody of us runs here: nodes, running pods, finished rollouts.
async fn furnish(lab: &Lab) {
    let admin = lab.admin();
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/operator-crds.yaml");
    std::fs::copy(manifest, lab.folder.path().join("crds.yaml")).unwrap();
    for name in ["n1", "n2"] {
        let node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
            "spec": {"podCIDR": "10.244.0.0/24"},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready",
                    "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "addresses": [{"type": "InternalIP", "address": "172.18.0.2"}, {"type": "Hostname", "address": name}],
                "nodeInfo": {"kubeletVersion": "v1.28.0", "osImage": "os", "kernelVersion": "k", "architecture": "amd64",
                    "containerRuntimeVersion": "c://1", "operatingSystem": "linux", "machineID": "", "systemUUID": "",
                    "bootID": "", "kubeProxyVersion": "v1.28.0"},
                "capacity": {"cpu": "2", "memory": "1Gi", "pods": "110"},
                "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "110"},
            },
        });
        admin.post("/api/v1/nodes", &node).await.ok();
    }
    let lease =
        json!({"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1", "leaseDurationSeconds": 40}});
    admin.post("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", &lease).await.ok();
    pod(&admin, "one").await;
    pod(&admin, "two").await;
    kubelet(lab);
}

async fn pod(admin: &Client, name: &str) {
    let pods = "/api/v1/namespaces/default/pods";
    let object = json!({
        "metadata": {"name": name, "labels": {"app": "seed"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
    });
    admin.post(pods, &object).await.ok();
    let status = json!({"status": {
        "phase": "Running", "podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}], "hostIP": "172.18.0.2",
        "startTime": "2026-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "image": "i", "imageID": "i",
            "containerID": "c://1", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "lastState": {}}],
    }});
    admin.patch(&format!("{pods}/{name}/status"), MERGE, &status).await.ok();
}

/// A kubelet all of whose containers have said two lines.
fn kubelet(lab: &Lab) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = lab.folder.path().join("kubelet");
    std::fs::create_dir_all(&folder).unwrap();
    let listener = tokio::net::UnixListener::bind(folder.join("n1.sock")).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let last = String::from_utf8_lossy(&head).contains("tailLines=1");
            let lines = if last { "two\n" } else { "one\ntwo\n" };
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{lines}", lines.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
}

/// A deployment's controller, as far as a rollout is followed: every replica that is asked for is there.
async fn roll(admin: Client) {
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let mut events = admin.watch(&format!("{path}?watch=true"), "application/json").await;
    while let Some(event) = events.next().await {
        let object = &event["object"];
        let (generation, replicas) = (&object["metadata"]["generation"], &object["spec"]["replicas"]);
        let status = json!({"status": {
            "observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas,
            "readyReplicas": replicas, "availableReplicas": replicas,
            "conditions": [{"type": "Available", "status": "True"}, {"type": "Progressing", "status": "True"}],
        }});
        if event["type"] != "DELETED" && object["status"] != status["status"] {
            let name = object["metadata"]["name"].as_str().unwrap();
            // It may be gone by now.
            admin.patch(&format!("{path}/{name}/status"), MERGE, &status).await;
        }
    }
}

async fn run(program: &Program) -> Vec<(&'static str, String)> {
    let lab = Lab::start().await;
    furnish(&lab).await;
    tokio::spawn(roll(lab.admin()));
    let mask = Mask::new(&lab);
    let kubectl = Kubectl::new(&lab, program);
    let mut all = Vec::new();
    for (name, script) in rows() {
        let output = kubectl.shell(script).await;
        let printed = shown(&mask, &output);
        // Neither an empty cache, nor colours, nor talking much changes what a reading command prints.
        if size(1, 0) == 1 && name.starts_with("get ") && !name.contains("watch") {
            let again = kubectl.clone().cold().with("NO_COLOR", "1").shell(script).await;
            assert_eq!(printed, shown(&mask, &again), "1.{}: {name} with an empty cache", program.minor);
            let talking = kubectl.shell(&script.replace("kubectl get", "kubectl -v=8 get")).await;
            assert_eq!(
                (output.status.code(), mask.mask(&text(&output.stdout))),
                (talking.status.code(), mask.mask(&text(&talking.stdout))),
                "1.{}: {name} with -v=8",
                program.minor
            );
        }
        all.push((name, printed));
    }
    all
}

/// Variants of each row: what is printed, and by which minor versions.
type Golden = BTreeMap<String, Vec<(Vec<u32>, String)>>;

fn write(golden: &Golden) -> String {
    let mut text = String::from("What kubectl prints for each row of matrix.rows, by its minor versions.\n");
    for (name, _) in rows() {
        for (versions, printed) in &golden[name] {
            let versions: Vec<String> = versions.iter().map(u32::to_string).collect();
            write!(text, "\n=== {name} @ {}\n{printed}", versions.join(" ")).unwrap();
        }
    }
    text
}

fn read(text: &str) -> Golden {
    let mut golden = Golden::new();
    for section in text.split("\n=== ").skip(1) {
        let (head, printed) = section.split_once('\n').unwrap();
        let (name, versions) = head.rsplit_once(" @ ").unwrap();
        let versions = versions.split(' ').map(|version| version.parse().unwrap()).collect();
        golden.entry(name.to_owned()).or_default().push((versions, printed.to_owned()));
    }
    golden
}

/// What this version should print; a version that nobody has looked at, what the newest before it did.
fn wanted(variants: &[(Vec<u32>, String)], minor: u32) -> &str {
    let newest = |versions: &Vec<u32>| versions.iter().filter(|version| **version <= minor).max().copied();
    let best = variants.iter().max_by_key(|(versions, _)| newest(versions));
    best.map_or("", |(_, printed)| printed)
}

/// All of them at full size; else the one of the server's version and the newest.
fn chosen() -> Vec<Program> {
    let mut programs = all();
    if size(1, 0) == 0 && std::env::var_os("TORTIE_BLESS").is_none() {
        let newest = programs.last().map(|one| one.minor);
        programs.retain(|one| one.minor == 28 || Some(one.minor) == newest);
    }
    programs
}

#[tokio::test(flavor = "multi_thread")]
async fn line_01_every_kubectl_prints_for_every_command_what_it_should() {
    let mut runs = Vec::new();
    // Two at a time: most of it is kubectl's own work.
    let programs = chosen();
    for pair in programs.chunks(2) {
        let both: Vec<_> = pair
            .iter()
            .map(|program| {
                let program = program.clone();
                tokio::spawn(async move { (program.minor, run(&program).await) })
            })
            .collect();
        for one in both {
            runs.push(one.await.unwrap());
        }
    }
    if std::env::var_os("TORTIE_BLESS").is_some() {
        let mut golden = Golden::new();
        for (minor, run) in &runs {
            for (name, printed) in run {
                let variants = golden.entry((*name).to_owned()).or_default();
                match variants.iter_mut().find(|(_, known)| known == printed) {
                    Some((versions, _)) => versions.push(*minor),
                    None => variants.push((vec![*minor], printed.clone())),
                }
            }
        }
        std::fs::write(golden_file(), write(&golden)).unwrap();
        return;
    }
    let golden = read(&std::fs::read_to_string(golden_file()).unwrap());
    for (minor, run) in &runs {
        for (name, printed) in run {
            let variants = golden.get(*name).unwrap_or_else(|| panic!("{name} is not in matrix.golden"));
            assert_eq!(printed.trim_end(), wanted(variants, *minor).trim_end(), "1.{minor}: {name}");
        }
    }
}
