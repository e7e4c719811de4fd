//! A node with its agent over an API in the test's own process, and the plugins as a runtime executes them.

use super::fake::Fake;
use super::namespace::Namespace;
use datastore::backend::{Backend, Settings};
use datastore::kubernetes::Kubernetes;
use node::{Listen, Options};
use serde_json::{Value, json};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

pub(crate) const CALICO: &str = env!("CARGO_BIN_EXE_calico");
pub(crate) const CALICO_IPAM: &str = env!("CARGO_BIN_EXE_calico-ipam");
pub(crate) const NODE: &str = "n1";
pub(crate) const NETWORK: &str = "net";
const GROUP: &str = "/apis/crd.projectcalico.org/v1";

/// One node.
pub(crate) struct Bench {
    directory: tempfile::TempDir,
    pub(crate) fake: Fake,
    agent: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    _outside: Namespace,
}

impl Bench {
    /// A node with a pool of IPv4 addresses, and an agent that can serve.
    pub(crate) fn new() -> Self {
        let own = Namespace(std::fs::File::open("/proc/thread-self/ns/net").unwrap());
        let outside = Namespace::new();
        own.wire("eth0", "172.18.0.2/16", &outside, "peer", "172.18.0.1/16");
        let fake = Fake::new();
        let address = json!({"addresses": [{"type": "InternalIP", "address": "172.18.0.2"}]});
        fake.put(&format!("/api/v1/nodes/{NODE}"), json!({"status": address}));
        let directory = tempfile::tempdir().unwrap();
        let mut bench = Self { directory, fake, agent: None, _outside: outside };
        bench.pool("p", json!({"cidr": "192.168.0.0/16"}));
        bench.start();
        bench
    }

    /// Makes a pool, or changes it.
    pub(crate) fn pool(&self, name: &str, spec: Value) {
        self.fake.put(&format!("{GROUP}/ippools/{name}"), json!({"spec": spec}));
    }

    pub(crate) fn remove_pool(&self, name: &str) {
        self.fake.remove(&format!("{GROUP}/ippools/{name}"));
    }

    pub(crate) fn lock(&self, locked: bool) {
        let spec = json!({"spec": {"datastoreReady": !locked}});
        self.fake.put(&format!("{GROUP}/clusterinformations/default"), spec);
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    /// Starts the agent and waits until a STATUS says that it can serve.
    pub(crate) fn start(&mut self) {
        let options = Options {
            node_name: NODE.to_owned(),
            datastore: Settings::kubernetes(None),
            listen: Listen::Path(self.socket()),
            cni_conf_dir: self.directory.path().join("net.d"),
            cni_plugin_socket: self.socket(),
            state_dir: Some(self.directory.path().join("state")),
            mtu: None,
        };
        let (stop, stopped) = oneshot::channel();
        let fake = self.fake.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let store = Backend::Kubernetes(Kubernetes::with_client(fake.client()));
                tokio::select! {
                    ended = node::serve(options, store) => panic!("the agent ended: {ended:?}"),
                    _ = stopped => {}
                }
            });
        });
        self.agent = Some((stop, thread));
        self.until(|bench| bench.ipam("STATUS", "", bench.config()).status.success());
    }

    /// Ends the agent.
    pub(crate) fn stop(&mut self) {
        let (stop, thread) = self.agent.take().unwrap();
        stop.send(()).unwrap();
        thread.join().unwrap();
    }

    /// Waits until something is so. Each look is a call of a plugin, which takes its time.
    pub(crate) fn until(&self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The configuration of the network.
    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": NETWORK, "type": "calico", "mtu": 1400,
            "ipam": {"type": "calico-ipam", "agent_socket": self.socket()},
        })
    }

    /// Runs a plugin with a complete environment for `command`, changed by `variables`: an empty value takes one away.
    pub(crate) fn run(
        &self,
        program: &str,
        command: &str,
        container: &str,
        variables: &[(&str, &str)],
        input: &str,
    ) -> Output {
        let mut process = Command::new(program);
        process
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", "/nonexistent/netns")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", Path::new(program).parent().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in variables {
            match value.is_empty() {
                true => process.env_remove(name),
                false => process.env(name, value),
            };
        }
        let mut child = process.spawn().unwrap();
        // One that fails early does not read its input.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Runs `calico-ipam` with a configuration.
    pub(crate) fn ipam(&self, command: &str, container: &str, config: Value) -> Output {
        self.run(CALICO_IPAM, command, container, &[], &config.to_string())
    }

    /// Runs `calico` for a pod whose network namespace this is.
    pub(crate) fn calico(&self, command: &str, container: &str, pod: &Namespace, config: Value) -> Output {
        let netns = path_of(pod);
        let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}");
        let variables = [("CNI_NETNS", netns.as_str()), ("CNI_ARGS", arguments.as_str())];
        self.run(CALICO, command, container, &variables, &config.to_string())
    }

    /// The address that an ADD of `calico-ipam` answers.
    pub(crate) fn add(&self, container: &str) -> String {
        address(&printed(&self.ipam("ADD", container, self.config())))
    }

    /// What is stored of a handle.
    pub(crate) fn handle(&self, container: &str) -> Option<Value> {
        self.fake.object(&format!("{GROUP}/ipamhandles/{NETWORK}.{container}"))
    }

    /// The configuration with the result of an ADD, for CHECK.
    pub(crate) fn config_after(&self, added: &Output) -> Value {
        let mut config = self.config();
        config["prevResult"] = printed(added);
        config
    }

    /// The configuration with what a runtime still has, for GC.
    pub(crate) fn config_with_valid(&self, valid: &[(&str, &str)]) -> Value {
        let mut config = self.config();
        let valid =
            valid.iter().map(|(container, interface)| json!({"containerID": container, "ifname": interface}));
        config["cni.dev/valid-attachments"] = Value::Array(valid.collect());
        config
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.stop();
        }
    }
}

/// Path at which a plugin finds a namespace.
pub(crate) fn path_of(namespace: &Namespace) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.0.as_raw_fd())
}

/// A path of this namespace that goes when the link is removed. A descriptor's own path may be another file's a moment later.
pub(crate) fn linked(namespace: &Namespace, link: &Path) -> String {
    std::os::unix::fs::symlink(path_of(namespace), link).unwrap();
    link.display().to_string()
}

/// What a plugin that succeeded printed.
pub(crate) fn printed(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The first address of a result, without its prefix length.
pub(crate) fn address(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

/// Succeeded, without a word.
pub(crate) fn is_silent(output: &Output) -> bool {
    output.status.success() && output.stdout.is_empty()
}

/// Code and message of the error that a plugin printed; it has the form of the specification, and is none of Calico's 999.
pub(crate) fn refused(output: &Output) -> (u64, String) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(error["cniVersion"].as_str().is_some_and(|version| !version.is_empty()), "{error}");
    let (code, message) = (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned());
    assert!(code != 999 && !message.is_empty(), "{error}");
    let details = error["details"].as_str().unwrap_or_default();
    (code, format!("{message} {details}"))
}
