//! The agents: the very program, each in a host of its own, reached by its socket.

use crate::PATIENCE;
use crate::namespace::Namespace;
use crate::network::Network;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Agent {
    host: Namespace,
    endpoints: String,
    child: Option<Child>,
}

/// All of them, and the folder with their sockets, logs and network configurations.
pub(crate) struct Agents {
    agents: Vec<Agent>,
    sockets: Vec<PathBuf>,
    folder: tempfile::TempDir,
}

/// Name of a node.
pub(crate) fn node(at: usize) -> String {
    format!("node{at}")
}

impl Agents {
    /// Starts `count`, and waits until each can serve. Not all of them begin with the same member.
    pub(crate) fn start(count: usize, endpoints: &[String], network: &mut Network) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let agent = |at: usize| {
            let mut endpoints = endpoints.to_vec();
            let first = at % endpoints.len();
            endpoints.rotate_left(first);
            let (host, _, _) = network.host();
            Agent { host, endpoints: endpoints.join(","), child: None }
        };
        let agents = (0..count).map(agent).collect();
        let sockets = (0..count).map(|at| folder.path().join(format!("{}.sock", node(at)))).collect();
        let mut all = Self { agents, sockets, folder };
        (0..count).for_each(|at| all.run(at));
        let since = Instant::now();
        for socket in &all.sockets {
            let server = cni::server::Server::Agent(cni::agent::Agent::at(socket.clone()));
            while server.status(&api::attachment::StatusRequest::default()).is_err() {
                assert!(since.elapsed() < PATIENCE, "the agent at {} cannot serve", socket.display());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        all
    }

    pub(crate) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    fn run(&mut self, at: usize) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join(format!("{}.log", node(at))))
            .unwrap();
        let agent = &mut self.agents[at];
        let mut command = Command::new(env!("CARGO_BIN_EXE_tortie"));
        command
            .args(["node", "--node-name", &node(at), "--listen"])
            .arg(&self.sockets[at])
            .arg("--cni-plugin-socket")
            .arg(&self.sockets[at])
            .arg("--cni-conf-dir")
            .arg(self.folder.path().join(format!("{}.d", node(at))))
            .arg("--state-dir")
            .arg(self.folder.path().join(format!("{}.state", node(at))))
            .env("DATASTORE_TYPE", "etcdv3")
            .env("ETCD_ENDPOINTS", &agent.endpoints)
            .env_remove("KUBECONFIG")
            .env_remove("LISTEN_FDS")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        agent.child = Some(agent.host.run(|| command.spawn().unwrap()));
    }

    fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.agents[at].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Kills one, and starts another in its place.
    pub(crate) fn restart(&mut self, at: usize) {
        self.kill(at);
        self.run(at);
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        (0..self.agents.len()).for_each(|at| self.kill(at));
        if std::thread::panicking() {
            for at in 0..self.agents.len() {
                let path = self.folder.path().join(format!("{}.log", node(at)));
                eprintln!(
                    "{} said at last:\n{}",
                    node(at),
                    tail(&std::fs::read_to_string(path).unwrap_or_default())
                );
            }
        }
    }
}

/// The last lines of a log.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
