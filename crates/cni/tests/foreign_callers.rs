//! Callers that nobody here wrote: Debian's podman, and its plugins `bridge` and `ptp`, which have addresses managed by
//! `calico-ipam`. The same is done with Debian's `host-local` first, to show that the test itself is right.
//!
//! They need root, podman, runc, a static busybox and containernetworking-plugins (scripts/install-packages); where something is
//! missing the tests say so and run nothing, and where `TORTIE_REQUIRE_PODMAN` is set they fail. `TORTIE_CONTAINERS` says how
//! many containers are run in parallel (8).

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "conformance/bench.rs"]
#[expect(dead_code, reason = "what only the lines of the specification need")]
mod bench;
#[path = "../../datastore/tests/fake/mod.rs"]
mod fake;
#[path = "../../dataplane/tests/namespace/mod.rs"]
#[expect(dead_code, reason = "what only the tests of the wiring need")]
mod namespace;

use bench::{Bench, CALICO_IPAM, is_silent, printed};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Debian's plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// Set in the process that runs inside.
const INSIDE: &str = "TORTIE_TEST_CALLERS";

fn missing() -> Option<String> {
    let files =
        ["/usr/bin/podman", "/usr/sbin/runc", "/bin/busybox", "/usr/lib/cni/bridge", "/usr/lib/cni/ptp"];
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    let lacks = files.iter().find(|file| !Path::new(file).exists()).map(|file| (*file).to_owned());
    let permitted = Command::new("unshare").args(["--net", "--mount", "true"]).output();
    lacks
        .or_else(|| (!permitted.is_ok_and(|output| output.status.success())).then(|| "namespaces".to_owned()))
}

/// Runs `body` in a network namespace and a mount namespace of its own, with a /run of its own.
fn apart(name: &str, body: impl FnOnce(&mut Bench)) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return body(&mut Bench::new());
    }
    if let Some(missing) = missing() {
        let required = std::env::var_os("TORTIE_REQUIRE_PODMAN").is_some_and(|value| value != "0");
        assert!(!required, "{name} needs {missing}");
        let told = format!("SKIPPED {name}: it needs {missing}; scripts/install-packages callers\n");
        std::io::stderr().write_all(told.as_bytes()).unwrap();
        return;
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", "mount -t tmpfs none /run && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, name)
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespaces");
}

/// podman with everything of its own in a folder.
struct Podman {
    folder: tempfile::TempDir,
}

impl Podman {
    /// One that knows the network `t`, of these plugins.
    fn new(network: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("rootfs/bin")).unwrap();
        std::fs::create_dir_all(at("net.d")).unwrap();
        std::fs::copy("/bin/busybox", at("rootfs/bin/busybox")).unwrap();
        symlink("busybox", at("rootfs/bin/sh")).unwrap();
        let list = json!({"cniVersion": "0.4.0", "name": "t", "plugins": [network]});
        std::fs::write(at("net.d/t.conflist"), list.to_string()).unwrap();
        let own = Path::new(CALICO_IPAM).parent().unwrap().display().to_string();
        let settings = format!(
            "[engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"file\"\n\
             [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{PLUGINS}\", \"{own}\"]\n\
             network_config_dir = \"{}\"\n",
            at("net.d").display()
        );
        std::fs::write(at("containers.conf"), settings).unwrap();
        Self { folder }
    }

    fn command(&self, words: &[&str]) -> Command {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new("/usr/bin/podman");
        command
            .env("CONTAINERS_CONF", at("containers.conf"))
            .arg("--root")
            .arg(at("root"))
            .args(["--runroot", "/run/podman", "--storage-driver", "vfs"])
            .args(words);
        command
    }

    /// Begins a container that prints its address and ends.
    fn begin(&self) -> Child {
        let rootfs: PathBuf = self.folder.path().join("rootfs");
        self.command(&[
            "run",
            "--rm",
            "--network",
            "t",
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
        ])
        .arg("--rootfs")
        .arg(rootfs)
        .args(["/bin/busybox", "ip", "-4", "-o", "addr", "show", "eth0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
    }
}

/// The address that a container printed.
fn address(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let address = text.split_whitespace().skip_while(|word| *word != "inet").nth(1);
    address.unwrap().split('/').next().unwrap().to_owned()
}

/// Runs containers in parallel on a network; every one has an address that begins so, and each another.
fn containers(podman: &Podman, start: &str) {
    let count = std::env::var("TORTIE_CONTAINERS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let running: Vec<Child> = (0..count).map(|_| podman.begin()).collect();
    let outputs: Vec<Output> = running.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let addresses: Vec<String> = outputs.iter().map(address).collect();
    assert!(addresses.iter().all(|address| address.starts_with(start)), "{addresses:?}");
    // One that ended gave its address back, so that not all need be different; the first of a fresh pool are.
    let distinct: BTreeSet<&String> = addresses.iter().collect();
    assert!(distinct.len() > 1, "{addresses:?}");
}

/// What is held in the network `t` by containers.
fn handles(bench: &Bench) -> Vec<String> {
    bench.fake.names("/apis/crd.projectcalico.org/v1/ipamhandles/t.")
}

fn bridge(ipam: &Value) -> Value {
    json!({"type": "bridge", "bridge": "br-t", "ipam": ipam})
}

#[test]
fn podman_runs_containers_whose_addresses_calico_ipam_manages() {
    apart("podman_runs_containers_whose_addresses_calico_ipam_manages", |bench| {
        let range = tempfile::tempdir().unwrap();
        let theirs =
            json!({"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]], "dataDir": range.path()});
        containers(&Podman::new(&bridge(&theirs)), "10.77.0.");
        let podman = Podman::new(&bridge(&bench.config()["ipam"]));
        for _ in 0..2 {
            containers(&podman, "192.168.");
            assert_eq!(
                handles(bench),
                Vec::<String>::new(),
                "every container is gone, and so is what it held"
            );
        }
        let removed = podman.command(&["network", "rm", "t"]).output().unwrap();
        assert!(removed.status.success(), "{removed:?}");
    });
}

#[test]
fn debians_plugins_delegate_to_calico_ipam() {
    apart("debians_plugins_delegate_to_calico_ipam", |bench| {
        let own = Path::new(CALICO_IPAM).parent().unwrap().display().to_string();
        let path = format!("{PLUGINS}:{own}");
        for plugin in ["bridge", "ptp"] {
            let pod = namespace::Namespace::new();
            let mut config = json!({
                "cniVersion": "1.0.0", "name": "t", "type": plugin, "ipMasq": false,
                "ipam": bench.config()["ipam"],
            });
            let netns = bench::path_of(&pod);
            let program = format!("{PLUGINS}/{plugin}");
            let call = |command: &str, config: &Value| {
                let variables = [
                    ("CNI_NETNS", netns.as_str()),
                    ("CNI_PATH", path.as_str()),
                    ("PATH", "/usr/sbin:/usr/bin"),
                ];
                bench.run(&program, command, plugin, &variables, &config.to_string())
            };
            let result = printed(&call("ADD", &config));
            assert!(bench::address(&result).starts_with("192.168."), "{result}");
            assert_eq!(handles(bench), [format!("t.{plugin}")]);
            config["prevResult"] = result;
            for _ in 0..2 {
                assert!(is_silent(&call("DEL", &config)), "{plugin}");
            }
            assert_eq!(handles(bench), Vec::<String>::new());
        }
    });
}
