//! What is said over the holder's control socket: one JSON object a line, answers carry the number of their request.

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Longest line either side accepts, in bytes: a namespace set with its files, or a list of some thousand processes.
pub(super) const LINE_LIMIT: usize = 4 << 20;

/// A process to start as a child of the holder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Name of the process, unique among the running ones, with `/` between its parts (`node/<node>/kubelet`).
    ///
    /// A process that has ended is replaced by a new one of the same name.
    pub id: String,
    /// Program and arguments. A program without `/` is looked up in `PATH` of `env`, else of the holder.
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited. `PATH` is added when missing.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None` means `/`.
    pub cwd: Option<PathBuf>,
    /// Namespace set to enter; `None` means the lab's own mounts and the host's network.
    pub namespaces: Option<String>,
    /// Enter only the set's network and hostname and keep the lab's own mounts: for parts of ours that need the
    /// lab directory although they stand in a pod.
    pub network_only: bool,
    /// Named listeners to hand over, as file descriptors 3, 4, … in this order (`LISTEN_FDS`, `LISTEN_FDNAMES`;
    /// `LISTEN_PID` is not set, because the number is not known before the program runs).
    pub listeners: Vec<String>,
    /// File that standard output is appended to; directories are made. `None` means `/dev/null`.
    pub stdout: Option<PathBuf>,
    /// File that standard error is appended to. `None` means `/dev/null`.
    pub stderr: Option<PathBuf>,
    /// Free notes, returned by `list` and `watch`: what an adopter must know about the process.
    pub labels: BTreeMap<String, String>,
}

/// How a process's standard streams are handed to the one who asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// Whether standard input is wanted; without it the process reads an empty file.
    pub stdin: bool,
    /// A terminal of this size (columns, rows) instead of pipes.
    pub terminal: Option<(u16, u16)>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, when it ended by itself.
    pub code: Option<i32>,
    /// Signal number, when a signal ended it.
    pub signal: Option<i32>,
    /// When the holder saw the end.
    pub finished: Timestamp,
}

/// A process that the holder started and has not been told to forget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// The name given in [`ProcessSpec::id`].
    pub id: String,
    /// Process id as seen inside the lab.
    pub pid: i32,
    /// When it was started.
    pub started: Timestamp,
    /// How it ended; `None` while it runs.
    pub exit: Option<Exit>,
    /// The notes given at the start.
    pub labels: BTreeMap<String, String>,
}

impl ProcessState {
    /// Whether the process had not ended when this was written.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.exit.is_none()
    }
}

/// Where a namespace set's network comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// A new network namespace with nothing but a loopback that is up.
    Empty,
    /// A new network namespace with a bridge: the network between the lab's nodes.
    Bridge {
        /// Name of the bridge.
        name: String,
        /// Addresses of the bridge, with their prefix lengths.
        addresses: Vec<IpNet>,
    },
    /// A new network namespace with an `eth0` on another set's bridge; forwards packets.
    Uplink {
        /// The set that has the bridge.
        underlay: String,
        /// Name of the bridge.
        bridge: String,
        /// Name of `eth0`'s other end, at most 15 bytes.
        port: String,
        /// Addresses of `eth0`, with their prefix lengths.
        addresses: Vec<IpNet>,
        /// Default gateways.
        gateways: Vec<IpAddr>,
    },
    /// The network namespace of another set, or the host's for `None`.
    SameAs(Option<String>),
}

/// A set of namespaces (network, hostname, mounts) that the holder keeps under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceSpec {
    /// `underlay`, `node/<name>` or `pod/<uid>`. The network namespace appears as `/run/tortie/netns/<last part>`.
    pub name: String,
    /// Hostname inside.
    pub hostname: String,
    /// The network.
    pub network: Network,
    /// Files that are seen instead of the host's, by absolute path: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`.
    pub files: BTreeMap<PathBuf, String>,
    /// For pods: the whole tree read-only, own empty `/tmp`, `/run`, `/dev/shm`, a minimal `/dev`, few capabilities.
    pub confined: bool,
    /// Directories that are seen empty (the lab directory, above all), and for pods files too. Missing ones are passed
    /// over.
    pub hide: Vec<PathBuf>,
}

/// A listening socket to keep under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenSpec {
    /// `apiserver/host`, `apiserver/node`, `ipam/<node>`, `kubelet/<node>`: no `:` in it.
    pub name: String,
    /// What to listen on.
    pub endpoint: Endpoint,
}

/// What a listener listens on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Endpoint {
    /// A TCP address in the network of a namespace set, or of the host for `None`. Port 0 takes a free one.
    Tcp {
        /// Address and port.
        address: SocketAddr,
        /// Name of the set.
        namespaces: Option<String>,
    },
    /// A unix socket with mode 0600, in the lab's own mounts; directories are made.
    Unix {
        /// Its path.
        path: PathBuf,
    },
}

/// What can be asked of the holder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Call {
    Spawn(ProcessSpec),
    SpawnAttached(ProcessSpec, Streams),
    Signal { id: String, signal: i32 },
    List { prefix: String },
    Forget { id: String },
    Watch { prefix: String },
    CreateNamespaces(NamespaceSpec),
    DeleteNamespaces { name: String },
    ListNamespaces { prefix: String },
    Listen(ListenSpec),
    CloseListener { name: String },
    ListListeners,
    Shutdown,
}

/// A request on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub number: u64,
    pub call: Call,
}

/// Why the holder did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// No process, namespace set or listener of that name.
    NotFound,
    /// A running process, a set or a listener of that name exists already.
    Exists,
    /// The program is not there or may not be run (a shell would answer 127 or 126).
    NotRunnable,
    /// The request makes no sense.
    Invalid,
    /// The kernel refused.
    Failed,
}

/// A refusal on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub kind: RefusalKind,
    pub message: String,
}

/// An answer on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub number: u64,
    pub outcome: Result<serde_json::Value, Refusal>,
}
