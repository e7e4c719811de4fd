//! Labs that come to nothing: a failed deployment, a crash, a second destruction. Nothing may be left of them.
//!
//! Started with a command as its first argument this program is that part of the lab; otherwise it tests.

#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(clippy::print_stdout, reason = "says what it ran, as the usual harness does")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

const TOPOLOGY: &str = "\
name: brief
topology:
  nodes:
    brief:
      kind: k8s-kind
      image: kindest/node:v1.28.0
      startup-config: nodes.yaml
";

const NODES: &str = "\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking: {disableDefaultCNI: true}
nodes: [{role: control-plane}, {role: worker}]
";

fn main() -> ExitCode {
    let words: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let word = |index: usize| words.get(index).and_then(|word| word.to_str()).unwrap_or_default();
    let value = |name: &str| {
        let position = words.iter().position(|word| word == name).unwrap();
        PathBuf::from(&words[position + 1])
    };
    match (word(1), word(2)) {
        ("lab", "holder") => {
            let inside = words.iter().any(|word| word == "--inside");
            let options = lab::holder::Options { directory: value("--dir"), inside, owner: None };
            return if lab::holder::run(options).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        ("lab", "supervisor") => {
            let options = lab::supervisor::Options { lab_config: value("--lab-config") };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            return if runtime.block_on(lab::supervisor::run(options)).is_ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        ("containerlab", _) => return lab::containerlab::main(words[1..].to_vec()),
        ("kind", _) => return lab::kind::main(words[1..].to_vec()),
        ("apiserver", _) => {
            println!("the disk is on fire");
            return ExitCode::FAILURE;
        }
        ("kubelet" | "controller-manager", _) => {
            std::thread::park();
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let place = tempfile::tempdir().unwrap();
    if let Err(error) = probe(place.path()) {
        println!("skipped: no namespaces here: {error:#}");
        return ExitCode::SUCCESS;
    }
    bad_topologies_create_nothing(place.path());
    a_failed_deployment_leaves_nothing(place.path());
    an_interrupted_deployment_leaves_nothing(place.path());
    what_a_crash_left_is_removed(place.path());
    what_a_crash_left_does_not_hinder_the_next_deployment(place.path());
    a_lab_whose_directory_somebody_removed_is_destroyed_too(place.path());
    a_lab_whose_directory_is_gone_leaves_the_users_kubeconfig(place.path());
    println!("ok: labs that come to nothing leave nothing");
    ExitCode::SUCCESS
}

fn probe(place: &Path) -> anyhow::Result<()> {
    let directory = place.join("probe");
    std::fs::create_dir(&directory)?;
    let holder = lab::holder::start(&std::env::current_exe()?, &directory, None)?;
    holder.end()?;
    Ok(std::fs::remove_dir_all(&directory)?)
}

fn bad_topologies_create_nothing(place: &Path) {
    let place = lesson(place, "bad");
    let before = files(&place);
    let refused = |from: &str, to: &str, file: &str, text: &str, words: &[&str]| {
        std::fs::write(place.join(file), text.replace(from, to)).unwrap();
        let output = containerlab(&place, &["deploy", "-t", "brief.clab.yaml"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        std::fs::write(place.join(file), text).unwrap();
        assert_eq!(files(&place), before);
    };
    let topology =
        |from: &str, to: &str, words: &[&str]| refused(from, to, "brief.clab.yaml", TOPOLOGY, words);
    topology("image:", "imagee:", &["brief.clab.yaml:6", "unknown field `imagee`", "allowed are"]);
    topology("k8s-kind", "linux", &["brief.clab.yaml:5", "kind \"linux\" is not supported"]);
    topology("nodes.yaml", "none.yaml", &["brief.clab.yaml:7", "startup-config", "none.yaml does not exist"]);
    refused("worker", "boss", "nodes.yaml", NODES, &["nodes.yaml:4", "\"boss\" is not a valid node role"]);
}

fn a_failed_deployment_leaves_nothing(place: &Path) {
    let place = lesson(place, "failed");
    let before = files(&place);
    let output = containerlab(&place, &["deploy", "-t", "brief.clab.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("Error: the lab's apiserver ended with code 1: the disk is on fire"), "{said}");
    assert_eq!(files(&place), before);
    assert_eq!(processes(&place), Vec::<String>::new());
    let output = containerlab(&place, &["inspect", "-t", "brief.clab.yaml"]);
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no containers found"));
}

fn an_interrupted_deployment_leaves_nothing(place: &Path) {
    let place = lesson(place, "interrupted");
    let before = files(&place);
    let mut deploy = start_to_deploy(&place);
    let process = rustix::process::Pid::from_child(&deploy);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(deploy.wait().unwrap().code(), Some(1));
    assert_eq!(files(&place), before);
    assert_eq!(processes(&place), Vec::<String>::new());
}

/// A deployment that has come as far as the API server.
fn start_to_deploy(place: &Path) -> std::process::Child {
    let mut command = command(place, &["containerlab", "deploy", "-t", "brief.clab.yaml"]);
    let mut deploy = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    while !place.join("clab-brief/logs/apiserver.log").exists() {
        assert!(deploy.try_wait().unwrap().is_none(), "the deployment ended early");
        std::thread::yield_now();
    }
    deploy
}

fn what_a_crash_left_is_removed(place: &Path) {
    let place = lesson(place, "crashed");
    let before = files(&place);
    // Killed in the midst of it: holder, supervisor and directory are there.
    let mut deploy = start_to_deploy(&place);
    deploy.kill().unwrap();
    deploy.wait().unwrap();
    let directory = place.join("clab-brief");
    assert!(lab::holder::Running::find(&directory).is_some());
    let output = command(&place, &["kind", "get", "clusters"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "brief\n");
    for _ in 0..2 {
        let output = containerlab(&place, &["destroy", "-t", "brief.clab.yaml"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(files(&place), before);
        assert_eq!(processes(&place), Vec::<String>::new());
    }
    let output = command(&place, &["kind", "delete", "cluster", "--name", "brief"]).output().unwrap();
    assert!(output.status.success());
}

fn what_a_crash_left_does_not_hinder_the_next_deployment(place: &Path) {
    let place = lesson(place, "crashed-before");
    let before = files(&place);
    let mut deploy = start_to_deploy(&place);
    deploy.kill().unwrap();
    deploy.wait().unwrap();
    // With the holder all processes of the lab end; its directory and its record stay.
    lab::holder::Running::find(&place.join("clab-brief")).unwrap().end().unwrap();
    let output = containerlab(&place, &["deploy", "-t", "brief.clab.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("Error: the lab's apiserver ended with code 1"),
        "came as far as it can here: {said}"
    );
    assert_eq!(files(&place), before);
    assert_eq!(processes(&place), Vec::<String>::new());
}

fn a_lab_whose_directory_somebody_removed_is_destroyed_too(place: &Path) {
    let place = lesson(place, "removed");
    let before = files(&place);
    let mut deploy = start_to_deploy(&place);
    deploy.kill().unwrap();
    deploy.wait().unwrap();
    assert_ne!(processes(&place), Vec::<String>::new());
    let directory = place.join("clab-brief");
    // The lab still writes into it meanwhile.
    while directory.exists() {
        let _ = std::fs::remove_dir_all(&directory);
    }
    let output = containerlab(&place, &["destroy", "-t", "brief.clab.yaml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(processes(&place), Vec::<String>::new());
    assert_eq!(files(&place), before);
}

fn a_lab_whose_directory_is_gone_leaves_the_users_kubeconfig(place: &Path) {
    let place = lesson(place, "entered");
    let (kubeconfig, labs) = (place.join("theirs.kubeconfig"), place.join(".local/state/tortie/labs"));
    let text = "{apiVersion: v1, kind: Config, current-context: theirs, \
                clusters: [{name: kind-brief, cluster: {server: 'https://127.0.0.1:1'}}], \
                contexts: [{name: kind-brief, context: {cluster: kind-brief, user: kind-brief}}, \
                {name: theirs, context: {cluster: theirs, user: theirs}}], users: [{name: kind-brief, user: {}}]}";
    std::fs::write(&kubeconfig, text).unwrap();
    std::fs::create_dir_all(&labs).unwrap();
    let known = lab::known::Known {
        lab: "brief".into(),
        cluster: "brief".into(),
        directory: place.join("clab-brief"),
        made: Vec::new(),
        kubeconfig: Some(kubeconfig.clone()),
        made_for_kubeconfig: Vec::new(),
    };
    std::fs::write(labs.join("brief.json"), serde_json::to_vec(&known).unwrap()).unwrap();
    let output = containerlab(&place, &["destroy", "-t", "brief.clab.yaml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left = std::fs::read_to_string(&kubeconfig).unwrap();
    assert!(left.contains("theirs") && !left.contains("kind-brief"), "{left}");
}

/// A home directory with the lesson's kind of files in it.
fn lesson(place: &Path, name: &str) -> PathBuf {
    let place = place.join(name);
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("brief.clab.yaml"), TOPOLOGY).unwrap();
    std::fs::write(place.join("nodes.yaml"), NODES).unwrap();
    place
}

fn containerlab(place: &Path, words: &[&str]) -> Output {
    let mut all = vec!["containerlab"];
    all.extend(words);
    command(place, &all).output().unwrap()
}

fn command(place: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(words).current_dir(place).env("HOME", place).env("NO_COLOR", "1");
    for name in ["KUBECONFIG", "XDG_STATE_HOME", "SUDO_UID", "CLAB_LABDIR_BASE"] {
        command.env_remove(name);
    }
    command.stdin(std::process::Stdio::null());
    command
}

/// All files below a directory.
fn files(place: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![place.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

/// Command lines of living processes that name a directory.
fn processes(place: &Path) -> Vec<String> {
    let place = place.display().to_string();
    let lines = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(&place)).collect()
}
