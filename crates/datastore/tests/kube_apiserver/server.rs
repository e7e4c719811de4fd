//! A kube-apiserver of the test's own, over an etcd of its own: found, started on free ports, stopped when dropped.

use crate::etcd::{Plan, Server, find};
use datastore::kubernetes::{self, Kubernetes};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

/// How long a server may take to serve, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(180);

/// Bearer token of the user `reader`, who is nobody's friend until a role is bound to it.
pub(crate) const TOKEN: &str = "a-token-of-the-test";

/// These servers are large: one at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// The server with its etcd. Data and ports outlive its process, so that it can be started again.
pub(crate) struct KubeApiserver {
    binary: PathBuf,
    arguments: Vec<String>,
    pub(crate) etcd: Server,
    child: Option<Child>,
    folder: TempDir,
    port: u16,
    _turn: MutexGuard<'static, ()>,
}

/// Certificates as a cluster's set-up makes them: an authority, the server's, the administrator's; and the key that
/// signs service accounts' tokens.
pub(crate) fn certificates(folder: &Path) {
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    let authority_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    write("ca.crt", &params.self_signed(&authority_key).unwrap().pem());
    let issuer = Issuer::new(params, authority_key);
    for (file, name, group, usage) in [
        ("apiserver", "kube-apiserver", None, ExtendedKeyUsagePurpose::ServerAuth),
        ("admin", "admin", Some("system:masters"), ExtendedKeyUsagePurpose::ClientAuth),
        ("stranger", "stranger", None, ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![usage];
        write(&format!("{file}.crt"), &params.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{file}.key"), &key.serialize_pem());
    }
    let accounts = KeyPair::generate().unwrap();
    write("accounts.key", &accounts.serialize_pem());
    write("accounts.pub", &accounts.public_key_pem());
    write("tokens.csv", &format!("{TOKEN},reader,reader-uid\n"));
}

/// A kubeconfig in the folder of [`certificates`]: with the certificate of this user, or with [`TOKEN`], or with nothing.
pub(crate) fn kubeconfig(folder: &Path, port: u16, user: &str) -> PathBuf {
    let credentials = match user {
        "token" => json!({"token": TOKEN}),
        "nobody" => json!({}),
        name => json!({
            "client-certificate": folder.join(format!("{name}.crt")),
            "client-key": folder.join(format!("{name}.key"))}),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"), "certificate-authority": folder.join("ca.crt")}}],
        "users": [{"name": "user", "user": credentials}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
    });
    let path = folder.join(format!("{user}.kubeconfig"));
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

impl KubeApiserver {
    /// Starts one and waits until it serves. `None`, said past the test's captured output, where there is no binary.
    pub(crate) async fn start() -> Option<Self> {
        let remedy = "set KUBEBUILDER_ASSETS to a folder that has one";
        let binary = find("kube-apiserver", "TORTIE_REQUIRE_KUBE_APISERVER", remedy)?;
        let turn = TURN.lock().await;
        let etcd = Server::start(&Plan::default())?;
        let folder = TempDir::new().unwrap();
        certificates(folder.path());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let arguments = [
            ("--etcd-servers", etcd.endpoint.clone()),
            ("--bind-address", "127.0.0.1".to_owned()),
            ("--advertise-address", "127.0.0.1".to_owned()),
            ("--endpoint-reconciler-type", "none".to_owned()),
            ("--secure-port", port.to_string()),
            ("--service-cluster-ip-range", "10.96.0.0/16".to_owned()),
            ("--cert-dir", file("self-signed")),
            ("--tls-cert-file", file("apiserver.crt")),
            ("--tls-private-key-file", file("apiserver.key")),
            ("--client-ca-file", file("ca.crt")),
            ("--token-auth-file", file("tokens.csv")),
            ("--authorization-mode", "RBAC".to_owned()),
            ("--service-account-issuer", "https://127.0.0.1".to_owned()),
            ("--service-account-key-file", file("accounts.pub")),
            ("--service-account-signing-key-file", file("accounts.key")),
        ];
        let arguments = arguments.into_iter().map(|(flag, value)| format!("{flag}={value}")).collect();
        let mut server = Self { binary, arguments, etcd, child: None, folder, port, _turn: turn };
        server.run();
        server.ready().await;
        Some(server)
    }

    /// Starts the process, on the data that it left. What it logs stays in its folder.
    pub(crate) fn run(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let child = Command::new(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Waits until it serves.
    pub(crate) async fn ready(&mut self) {
        let client = kubernetes::client(Some(&self.kubeconfig("admin"))).await.unwrap();
        let since = Instant::now();
        loop {
            let asked = client.request_text(http::Request::get("/readyz").body(Vec::new()).unwrap()).await;
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            match (asked, ended) {
                (Ok(_), None) => return,
                (Err(_), None) if since.elapsed() < PATIENCE => {}
                (asked, ended) => panic!("{ended:?} {asked:?}: {}", self.last_words()),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Kubeconfig with the certificate of this user, or with [`TOKEN`], or with nothing.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        kubeconfig(self.folder.path(), self.port, user)
    }

    /// A driver with connections of its own.
    pub(crate) async fn driver(&self, user: &str) -> Kubernetes {
        Kubernetes::connect(Some(&self.kubeconfig(user))).await.unwrap()
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Stops it in its tracks: it keeps its connections and answers nothing.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it as `kill -9` does. Its etcd goes on.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for KubeApiserver {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Creates an object, which may be written in YAML.
pub(crate) async fn create(store: &Kubernetes, path: &str, text: String) -> Value {
    let media = if text.starts_with('{') { "application/json" } else { "application/yaml" };
    let request = http::Request::post(path)
        .header("content-type", media)
        .header("accept", "application/json")
        .body(text.into_bytes())
        .unwrap();
    store.client().request::<Value>(request).await.unwrap()
}

/// Installs definitions and waits until their collections answer.
async fn define(store: &Kubernetes, definitions: Vec<String>, collections: &[String]) {
    for definition in definitions {
        create(store, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    }
    let since = Instant::now();
    for collection in collections {
        let list = || http::Request::get(collection).body(Vec::new()).unwrap();
        while let Err(error) = store.client().request::<Value>(list()).await {
            assert!(since.elapsed() < PATIENCE, "{collection} is not served: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The definitions that the lesson installs.
pub(crate) async fn define_older_group(store: &Kubernetes) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/operator-crds.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let ours =
        text.split("\n---\n").filter(|document| document.contains("\n  group: crd.projectcalico.org\n"));
    let collections: Vec<String> =
        RESOURCES.iter().map(|(_, plural)| format!("/apis/crd.projectcalico.org/v1/{plural}")).collect();
    define(store, ours.map(str::to_owned).collect(), &collections).await;
}

/// Kinds that hold records, as the older group calls them.
pub(crate) const RESOURCES: [(&str, &str); 7] = [
    ("IPPool", "ippools"),
    ("IPAMBlock", "ipamblocks"),
    ("BlockAffinity", "blockaffinities"),
    ("IPAMHandle", "ipamhandles"),
    ("IPAMConfig", "ipamconfigs"),
    ("IPReservation", "ipreservations"),
    ("ClusterInformation", "clusterinformations"),
];

/// The newer group as custom resources. What their schemas say in a release is not tested here; whatever is sent is kept.
pub(crate) async fn define_newer_group(store: &Kubernetes) {
    let renamed = RESOURCES.map(|(kind, plural)| match kind {
        "IPAMConfig" => ("IPAMConfiguration", "ipamconfigurations"),
        _ => (kind, plural),
    });
    let definition = |(kind, plural): &(&str, &str)| {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.projectcalico.org")},
            "spec": {
                "group": "projectcalico.org",
                "scope": "Cluster",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{"name": "v3", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            },
        })
        .to_string()
    };
    let collections: Vec<String> =
        renamed.iter().map(|(_, plural)| format!("/apis/projectcalico.org/v3/{plural}")).collect();
    define(store, renamed.iter().map(definition).collect(), &collections).await;
}
