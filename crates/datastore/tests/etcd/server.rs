//! An etcd of the test's own: found, started on free ports, stopped when dropped.

use datastore::Datastore;
use datastore::etcd::{Etcd, Login, Pem, Settings};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a server may take to serve, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server's binary: that of `KUBEBUILDER_ASSETS`, else of `PATH`. Without one it says so past the test's captured output,
/// and where the variable `required` is set, the test fails.
pub(crate) fn find(name: &str, required: &str, remedy: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = assets
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        let missing = format!("no {name} in KUBEBUILDER_ASSETS or PATH; {remedy}");
        let required = std::env::var_os(required).is_some_and(|value| value != "0");
        assert!(!required, "{missing}");
        std::io::stderr().write_all(format!("SKIPPED: {missing}\n").as_bytes()).unwrap();
    }
    found
}

/// The etcd binary. `make test` sets `TORTIE_REQUIRE_ETCD`.
pub(crate) fn binary() -> Option<PathBuf> {
    find("etcd", "TORTIE_REQUIRE_ETCD", "scripts/install-packages installs one")
}

/// Certificates for a server that asks clients for theirs.
pub(crate) struct Tls {
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What a server of the test is like.
#[derive(Default)]
pub(crate) struct Plan<'a> {
    pub(crate) tls: Option<&'a Tls>,
    /// The namespace that its process runs in, and its address there; else it runs here, on the loopback.
    pub(crate) host: Option<(&'a File, &'a str)>,
    /// Where its data lies; else in a folder of its own.
    pub(crate) data: Option<&'a Path>,
    pub(crate) arguments: &'a [&'a str],
}

/// One member. Its data and ports outlive its process, so that it can be started again.
pub(crate) struct Server {
    binary: PathBuf,
    arguments: Vec<String>,
    pub(crate) endpoint: String,
    child: Option<Child>,
    host: Option<File>,
    _data: TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// A cluster of one.
    pub(crate) fn start(plan: &Plan<'_>) -> Option<Self> {
        Self::cluster(1, plan).map(|mut all| all.remove(0))
    }

    /// A cluster of `size` members, all started, perhaps not ready yet.
    pub(crate) fn cluster(size: usize, plan: &Plan<'_>) -> Option<Vec<Self>> {
        let binary = binary()?;
        // In a namespace of its own every port is free.
        let port = |own| if plan.host.is_some() { own } else { free_port() };
        let ports: Vec<(u16, u16)> = (0..size).map(|_| (port(2379), port(2380))).collect();
        let address = plan.host.map_or("127.0.0.1", |(_, address)| address);
        let members: Vec<String> = ports
            .iter()
            .enumerate()
            .map(|(at, (_, peer))| format!("m{at}=http://{address}:{peer}"))
            .collect();
        let scheme = if plan.tls.is_some() { "https" } else { "http" };
        let start = |at: usize, (client, peer): &(u16, u16)| {
            let data = TempDir::new().unwrap();
            let endpoint = format!("{scheme}://{address}:{client}");
            let peer = format!("http://{address}:{peer}");
            let mut arguments: Vec<String> = [
                ("--name", format!("m{at}")),
                ("--data-dir", plan.data.unwrap_or_else(|| data.path()).display().to_string()),
                ("--listen-client-urls", endpoint.clone()),
                ("--advertise-client-urls", endpoint.clone()),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer),
                ("--initial-cluster", members.join(",")),
                ("--log-level", "error".to_owned()),
            ]
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect();
            if let Some(tls) = plan.tls {
                for (flag, file) in [
                    ("--cert-file", &tls.certificate),
                    ("--key-file", &tls.key),
                    ("--trusted-ca-file", &tls.authority),
                ] {
                    arguments.extend([flag.to_owned(), file.display().to_string()]);
                }
                arguments.push("--client-cert-auth".to_owned());
            }
            arguments.extend(plan.arguments.iter().map(|argument| (*argument).to_owned()));
            let host = plan.host.map(|(host, _)| host.try_clone().unwrap());
            let mut server =
                Self { binary: binary.clone(), arguments, endpoint, child: None, host, _data: data };
            server.run();
            server
        };
        Some(ports.iter().enumerate().map(|(at, ports)| start(at, ports)).collect())
    }

    /// Starts the process, on the data that it left.
    pub(crate) fn run(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = match &self.host {
            Some(host) => spawned_in(host, &mut command),
            None => command.spawn(),
        };
        self.child = Some(child.unwrap());
    }

    fn process(&self) -> Pid {
        let child = self.child.as_ref().unwrap();
        Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
    }

    /// Stops it in its tracks: it keeps its connections and answers nothing. Returns when all its threads stand.
    pub(crate) fn pause(&self) {
        kill_process(self.process(), Signal::STOP).unwrap();
        let stopped = waitpid(Some(self.process()), WaitOptions::UNTRACED).unwrap();
        assert!(stopped.is_some_and(|(_, status)| status.stopped()), "it does not stand still");
    }

    pub(crate) fn resume(&self) {
        kill_process(self.process(), Signal::CONT).unwrap();
    }

    /// Kills it, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A driver of this member alone.
    pub(crate) fn driver(&self) -> Etcd {
        Etcd::new(self.settings()).unwrap()
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings::of([&self.endpoint])
    }

    /// See [`post_to`].
    pub(crate) async fn post(&self, path: &str, body: serde_json::Value) -> serde_json::Value {
        post_to(&self.endpoint, path, body).await
    }
}

/// POSTs `body` to a server's JSON gateway, for what the driver itself never does.
pub(crate) async fn post_to(endpoint: &str, path: &str, body: serde_json::Value) -> serde_json::Value {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::TokioIo;
    let authority = endpoint.trim_start_matches("http://");
    let stream = tokio::net::TcpStream::connect(authority).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(path)
        .header("host", authority)
        .body(Full::new(bytes::Bytes::from(body.to_string())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(status.is_success(), "{path}: {}", String::from_utf8_lossy(&text));
    serde_json::from_slice(&text).unwrap()
}

/// Starts a process in a network namespace, from a thread that is in it.
fn spawned_in(host: &File, command: &mut Command) -> std::io::Result<Child> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            command.spawn()
        });
        inside.join().unwrap()
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until the store answers a read.
pub(crate) async fn ready(store: &Etcd) {
    let since = Instant::now();
    loop {
        match store.get(&datastore::Key::Config).await {
            Ok(_) => return,
            Err(error) => assert!(since.elapsed() < PATIENCE, "etcd does not serve: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The same settings with this login.
pub(crate) fn with_login(settings: Settings, user: &str, password: &str) -> Settings {
    Settings { login: Some(Login { user: user.to_owned(), password: password.to_owned() }), ..settings }
}

/// The same settings with this TLS.
pub(crate) fn with_tls(settings: Settings, tls: &Tls) -> Settings {
    let file = |path: &Path| Pem::File(path.to_owned());
    Settings {
        authority: Some(file(&tls.authority)),
        identity: Some((file(&tls.certificate), file(&tls.key))),
        ..settings
    }
}
