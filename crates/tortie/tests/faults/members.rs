//! The members of one etcd, each a process in a host of its own.

use crate::PATIENCE;
use crate::namespace::Namespace;
use crate::network::Network;
use api::{ClusterInformation, Encapsulation, Pool};
use datastore::etcd::{Etcd, Settings};
use datastore::{Datastore as _, Key, Record, Write};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The etcd binary: that of `KUBEBUILDER_ASSETS`, else of `PATH`. Without one it says so, and where `TORTIE_REQUIRE_ETCD` is
/// set, as `make test` does, the test fails.
pub(crate) fn binary() -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = assets
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join("etcd"))
        .find(|file| file.is_file());
    if found.is_none() {
        let missing = "no etcd in KUBEBUILDER_ASSETS or PATH; scripts/install-packages installs one";
        let required = std::env::var_os("TORTIE_REQUIRE_ETCD").is_some_and(|value| value != "0");
        assert!(!required, "{missing}");
        std::io::stderr().write_all(format!("SKIPPED: {missing}\n").as_bytes()).unwrap();
    }
    found
}

struct Member {
    host: Namespace,
    port: String,
    address: String,
    arguments: Vec<String>,
    child: Option<Child>,
}

/// The members, and where their data lies: what a killed one had written it finds again.
pub(crate) struct Members {
    binary: PathBuf,
    members: Vec<Member>,
    data: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Members {
    /// Starts `size` members, perhaps not ready yet.
    pub(crate) fn start(binary: &Path, size: usize, network: &mut Network) -> Self {
        let data = tempfile::tempdir().unwrap();
        let hosts: Vec<_> = (0..size).map(|_| network.host()).collect();
        let cluster: Vec<String> =
            hosts.iter().enumerate().map(|(at, (_, ip, _))| format!("m{at}=http://{ip}:2380")).collect();
        let cluster = cluster.join(",");
        let member = |(at, (host, address, port)): (usize, (Namespace, String, String))| {
            let arguments = [
                ("--name", format!("m{at}")),
                ("--data-dir", data.path().join(format!("m{at}")).display().to_string()),
                ("--listen-client-urls", format!("http://{address}:2379")),
                ("--advertise-client-urls", format!("http://{address}:2379")),
                ("--listen-peer-urls", format!("http://{address}:2380")),
                ("--initial-advertise-peer-urls", format!("http://{address}:2380")),
                ("--initial-cluster", cluster.clone()),
                ("--log-level", "error".to_owned()),
            ];
            let arguments = arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
            Member { host, port, address, arguments: arguments.collect(), child: None }
        };
        let members = hosts.into_iter().enumerate().map(member).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut all = Self { binary: binary.to_owned(), members, data, runtime };
        (0..size).for_each(|at| all.run(at));
        all
    }

    pub(crate) fn count(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("http://{}:2379", member.address)).collect()
    }

    /// Port of the switch that a member is wired to.
    pub(crate) fn port(&self, at: usize) -> &str {
        &self.members[at].port
    }

    /// Starts a member's process, on the data that it left.
    pub(crate) fn run(&mut self, at: usize) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.data.path().join(format!("m{at}.log")))
            .unwrap();
        let member = &mut self.members[at];
        assert!(member.child.is_none(), "it runs already");
        let mut command = Command::new(&self.binary);
        command.args(&member.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        member.child = Some(member.host.run(|| command.spawn().unwrap()));
    }

    /// Kills it, as `kill -9` does.
    pub(crate) fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.members[at].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn process(&self, at: usize) -> Pid {
        let child = self.members[at].child.as_ref().unwrap();
        Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
    }

    /// Stops it in its tracks: it keeps its connections and answers nothing. Returns when all its threads stand.
    pub(crate) fn pause(&self, at: usize) {
        kill_process(self.process(at), Signal::STOP).unwrap();
        let stopped = waitpid(Some(self.process(at)), WaitOptions::UNTRACED).unwrap();
        assert!(stopped.is_some_and(|(_, status)| status.stopped()), "it does not stand still");
    }

    pub(crate) fn resume(&self, at: usize) {
        kill_process(self.process(at), Signal::CONT).unwrap();
    }

    /// The member that leads, once there is one.
    pub(crate) fn leader(&self) -> usize {
        let since = Instant::now();
        loop {
            for (at, member) in self.members.iter().enumerate() {
                let status = post(&member.address, "/v3/maintenance/status", &json!({}));
                let leads = status.as_ref().and_then(|status| {
                    let id = status.pointer("/header/member_id")?.as_str()?;
                    Some(id == status.get("leader")?.as_str()?)
                });
                if leads == Some(true) {
                    return at;
                }
            }
            assert!(since.elapsed() < PATIENCE, "no member leads");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until every member answers a read that its leader confirms.
    pub(crate) fn all_serve(&self) {
        let since = Instant::now();
        for member in &self.members {
            // "calico", as the gateway wants it.
            while post(&member.address, "/v3/kv/range", &json!({"key": "Y2FsaWNv"})).is_none() {
                assert!(since.elapsed() < PATIENCE, "the member at {} does not serve", member.address);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Puts in what an installation has: a pool of small blocks, and the word that writers may write.
    pub(crate) fn set_up(&self) {
        let mut pool = Pool::with_defaults("pool", "10.0.0.0/21".parse().unwrap());
        pool.block_size = 28;
        pool.vxlan_mode = Encapsulation::CrossSubnet;
        let cluster = ClusterInformation {
            datastore_ready: true,
            cluster_guid: "faults".to_owned(),
            ..ClusterInformation::default()
        };
        let records = [Record::Pool(pool), Record::ClusterInformation(cluster)];
        let store = self.store();
        store.now(async |store| {
            for record in records {
                let key: Key = record.key();
                store
                    .commit(&[], &[Write::Create(record)])
                    .await
                    .unwrap_or_else(|error| panic!("{key}: {error}"));
            }
        });
    }

    /// The store, as somebody sees it who has nothing to do with the agents.
    pub(crate) fn store(&self) -> Store<'_> {
        let runtime = &self.runtime;
        let guard = runtime.enter();
        let driver = Etcd::new(Settings::of(self.endpoints())).unwrap();
        drop(guard);
        Store { driver, runtime }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        (0..self.count()).for_each(|at| self.kill(at));
        if std::thread::panicking() {
            for at in 0..self.count() {
                let log =
                    std::fs::read_to_string(self.data.path().join(format!("m{at}.log"))).unwrap_or_default();
                eprintln!("etcd m{at} said at last:\n{}", crate::agents::tail(&log));
            }
        }
    }
}

/// A driver with somebody to drive it.
pub(crate) struct Store<'a> {
    driver: Etcd,
    runtime: &'a tokio::runtime::Runtime,
}

impl Store<'_> {
    pub(crate) fn now<T>(&self, work: impl AsyncFnOnce(&Etcd) -> T) -> T {
        self.runtime.block_on(work(&self.driver))
    }
}

/// POSTs to a member's JSON gateway: its answer, if it gives one of success soon.
fn post(address: &str, path: &str, body: &Value) -> Option<Value> {
    let target = format!("{address}:2379").parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let body = body.to_string();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.0\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    (head.split(' ').nth(1)? == "200").then(|| serde_json::from_str(body).ok())?
}
