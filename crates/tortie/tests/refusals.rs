//! What a lab cannot be made of is refused: the message names the file, the line, the key and a remedy, and nothing is made.

#[path = "lesson/stage.rs"]
#[expect(dead_code, reason = "only one of these tests needs a stage, and less of it than the lesson")]
mod stage;

use stage::{As, Stage, text};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const TOPOLOGY: &str = "calico-ipam.clab.yaml";
const CLUSTER: &str = "calico-ipam-no-cni.yaml";

/// One slip in one of the lesson's two files, and what must be said about it.
struct Slip {
    file: &'static str,
    /// What stands in the lesson's file, and what stands there instead.
    change: (&'static str, &'static str),
    /// Text on the line that must be named; empty where something is missing, and the file alone can be named.
    line: &'static str,
    /// Key, then remedy, then what else must be said.
    said: &'static [&'static str],
}

const fn slip(
    file: &'static str,
    change: (&'static str, &'static str),
    line: &'static str,
    said: &'static [&'static str],
) -> Slip {
    Slip { file, change, line, said }
}

const SLIPS: [Slip; 34] = [
    // The topology.
    slip(
        TOPOLOGY,
        ("image:", "imag:"),
        "imag:",
        &["`imag`", "allowed are kind, image", "failed to read topology file: "],
    ),
    slip(
        TOPOLOGY,
        ("topology:", "topolgy:"),
        "topolgy:",
        &["`topolgy`", "allowed are name", "release notes"],
    ),
    slip(TOPOLOGY, ("wait: 0s", "wiat: 0s"), "wiat", &["`wiat`", "allowed are wait, kubeconfig"]),
    slip(TOPOLOGY, ("name: calico-ipam\n", ""), "", &["no lab name", "add a line: name:"]),
    slip(
        TOPOLOGY,
        ("name: calico-ipam", "name: -calico"),
        "name: -",
        &["name: ", "begin with a letter or digit"],
    ),
    slip(TOPOLOGY, ("name: calico-ipam", "name: [calico]"), "name: [", &["name: ", "expected string"]),
    slip(
        TOPOLOGY,
        ("kind: k8s-kind", "kind: linux"),
        "kind: linux",
        &[
            "kind \"linux\" is not supported",
            "Supported kinds are \"k8s-kind\"",
            "constructing node \"calico-ipam\"",
        ],
    ),
    slip(
        TOPOLOGY,
        ("kind: k8s-kind", "group: some"),
        "    calico-ipam:",
        &["topology.nodes.calico-ipam", "add kind: k8s-kind"],
    ),
    slip(
        TOPOLOGY,
        ("wait: 0s", "wait: soon"),
        "wait: soon",
        &["extras.k8s_kind.deploy.wait", "write 0s, 90s or 5m", "failed to parse wait duration: "],
    ),
    slip(
        TOPOLOGY,
        ("wait: 0s", "wait: -5s"),
        "wait: -5s",
        &["extras.k8s_kind.deploy.wait", "write 0s, 90s or 5m"],
    ),
    slip(
        TOPOLOGY,
        ("no-cni.yaml", "nothing.yaml"),
        "nothing.yaml",
        &["startup-config", "correct the path", "calico-ipam-nothing.yaml does not exist"],
    ),
    slip(
        TOPOLOGY,
        ("    calico-ipam:", "    Calico_ipam:"),
        "Calico_ipam:",
        &["topology.nodes", "rename the node", "cluster names must match `^[a-z0-9.-]+$`"],
    ),
    slip(
        TOPOLOGY,
        ("    calico-ipam:", "    a-name-that-is-too-long-by-itself-for-the-name-of-a-machine:"),
        "a-name-that",
        &["topology.nodes", "choose a shorter one"],
    ),
    slip(
        TOPOLOGY,
        ("  nodes:", "  links: [{endpoints: [a, b]}]\n  nodes:"),
        "links:",
        &["topology.links", "remove them"],
    ),
    slip(
        TOPOLOGY,
        ("  nodes:", "  nodes:\n    other: {kind: k8s-kind}"),
        "    calico-ipam:",
        &["topology.nodes.calico-ipam", "a topology of its own"],
    ),
    slip(TOPOLOGY, ("node:v1.28.0", "node:{{ .v }}"), "{{", &["{{ … }}", "write the value itself"]),
    // The cluster.
    slip(
        CLUSTER,
        ("podSubnet:", "podSubnets:"),
        "podSubnets:",
        &["`podSubnets`", "allowed are ipFamily, podSubnet"],
    ),
    slip(
        CLUSTER,
        ("v1alpha4", "v1beta1"),
        "v1beta1",
        &["unknown apiVersion: kind.x-k8s.io/v1beta1", "write apiVersion: kind.x-k8s.io/v1alpha4"],
    ),
    slip(
        CLUSTER,
        ("Cluster", "Klaster"),
        "Klaster",
        &["unknown kind Klaster for apiVersion: ", "write kind: Cluster"],
    ),
    slip(
        CLUSTER,
        ("CNI: true", "CNI: false"),
        "CNI: false",
        &["networking.disableDefaultCNI", "set disableDefaultCNI: true"],
    ),
    slip(
        CLUSTER,
        ("  disableDefaultCNI: true\n", ""),
        "",
        &["networking.disableDefaultCNI", "set disableDefaultCNI: true"],
    ),
    slip(
        CLUSTER,
        ("192.168.0.0/16", "192.168.0.0"),
        "podSubnet:",
        &["invalid pod subnet failed to parse cidr value:\"192.168.0.0\" with error: ", "write one like"],
    ),
    slip(
        CLUSTER,
        ("10.96.0.0/16", "ten"),
        "serviceSubnet:",
        &["invalid service subnet failed to parse cidr value:\"ten\"", "write one like"],
    ),
    slip(
        CLUSTER,
        ("192.168.0.0/16", "10.96.0.0/12"),
        "podSubnet:",
        &["networking.podSubnet", "choose another", "overlaps the service subnet"],
    ),
    slip(
        CLUSTER,
        ("192.168.0.0/16", "172.18.0.0/20"),
        "podSubnet:",
        &["networking.podSubnet", "choose another", "overlaps the nodes' network 172.18.0.0/16"],
    ),
    slip(
        CLUSTER,
        ("10.96.0.0/16", "172.16.0.0/12"),
        "serviceSubnet:",
        &["networking.serviceSubnet", "choose another", "overlaps the nodes' network"],
    ),
    slip(
        CLUSTER,
        ("networking:", "networking:\n  ipFamily: dual"),
        "ipFamily",
        &["networking.ipFamily", "write ipv4"],
    ),
    slip(
        CLUSTER,
        ("networking:", "networking:\n  ipFamily: five"),
        "ipFamily",
        &["invalid ipFamily: five", "write ipv4"],
    ),
    slip(
        CLUSTER,
        ("networking:", "networking:\n  kubeProxyMode: magic"),
        "kubeProxyMode",
        &["invalid kubeProxyMode: magic", "write iptables"],
    ),
    slip(
        CLUSTER,
        ("networking:", "networking:\n  apiServerPort: 70000"),
        "apiServerPort",
        &["invalid apiServerPort: 70000", "write a number from 0"],
    ),
    slip(
        CLUSTER,
        ("networking:", "networking:\n  apiServerAddress: 0.0.0.0"),
        "apiServerAddress",
        &["networking.apiServerAddress", "write 127.0.0.1 or leave it out"],
    ),
    slip(
        CLUSTER,
        ("role: worker", "role: master"),
        "role: master",
        &["\"master\" is not a valid node role", "write control-plane or worker"],
    ),
    slip(
        CLUSTER,
        ("  - role: control-plane\n", ""),
        "role: worker",
        &["must have at least one control-plane node", "add - role: control-plane"],
    ),
    slip(
        CLUSTER,
        ("role: worker", "role: control-plane # too"),
        "# too",
        &["nodes: more than one control-plane", "make the others role: worker"],
    ),
];

#[test]
fn what_is_wrong_in_the_lessons_files_is_named_with_file_line_key_and_remedy_and_nothing_is_made() {
    for Slip { file, change, line, said } in &SLIPS {
        let folder = lesson_folder();
        let path = folder.path().join(file);
        let lesson = fs::read_to_string(&path).expect("the lesson's file");
        assert!(lesson.contains(change.0), "{file} has no {:?} any more", change.0);
        let slipped = lesson.replacen(change.0, change.1, 1);
        fs::write(&path, &slipped).expect("a file to write to");
        let mut place = path.display().to_string();
        if !line.is_empty() {
            let index = slipped.lines().position(|text| text.contains(line)).expect("the line");
            place = format!("{place}:{}", index + 1);
        }
        let refusal = refused(folder.path(), &["containerlab", "deploy", "-t", TOPOLOGY]);
        assert!(refusal.contains(&format!("{place}: ")), "{change:?}: {place} in {refusal}");
        for word in *said {
            assert!(refusal.contains(word), "{change:?}: {word:?} in {refusal}");
        }
        assert!(refusal.starts_with("Error: ") || refusal.contains("\nError: "), "{refusal}");
    }
}

#[test]
fn kind_refuses_the_same_configurations_in_the_same_words() {
    for Slip { file, change, line, said } in SLIPS.iter().filter(|slip| slip.file == CLUSTER) {
        let folder = lesson_folder();
        let path = folder.path().join(file);
        let slipped = fs::read_to_string(&path).expect("the file").replacen(change.0, change.1, 1);
        fs::write(&path, &slipped).expect("a file to write to");
        let refusal = refused(folder.path(), &["kind", "create", "cluster", "--config", CLUSTER]);
        let number = slipped.lines().position(|text| text.contains(line)).map_or(0, |index| index + 1);
        let place = if line.is_empty() { format!("{CLUSTER}: ") } else { format!("{CLUSTER}:{number}: ") };
        assert!(refusal.contains(&place), "{change:?}: {place} in {refusal}");
        assert!(said.iter().all(|word| refusal.contains(word)), "{change:?}: {said:?} in {refusal}");
    }
}

#[test]
fn several_slips_in_a_configuration_are_told_at_once() {
    let folder = lesson_folder();
    let path = folder.path().join(CLUSTER);
    let lesson = fs::read_to_string(&path).expect("the file");
    fs::write(&path, lesson.replace("10.96.0.0/16", "ten").replacen("worker", "master", 1)).expect("a file");
    let refusal = refused(folder.path(), &["containerlab", "deploy", "-t", TOPOLOGY]);
    for word in ["[", "invalid service subnet", ", ", "is not a valid node role", "]"] {
        assert!(refusal.contains(word), "{word:?} in {refusal}");
    }
}

#[test]
fn arguments_that_name_no_lab_are_refused_in_containerlabs_words() {
    for (arguments, said) in [
        (&["deploy", "-t", "other.yaml"][..], "stat other.yaml: no such file or directory"),
        (&["deploy", "-t", "home"], "no topology files found in directory \"home\""),
        (&["deploy", "-t", TOPOLOGY, "--vars", "v.yaml"], "--vars: templates are not supported"),
        (&["destroy", "--name", "other"], "lab 'other' not found - no running containers"),
        (&["destroy", "--all", "--name", "other"], "--all and --name should not be used together"),
        (&["inspect", "--name", "other"], "lab 'other' not found - no running containers"),
        (
            &["inspect", "-t", TOPOLOGY, "-f", "xml"],
            "output format \"xml\" is not supported when --details is not used, use 'table', 'json' or 'csv'",
        ),
    ] {
        let folder = lesson_folder();
        let mut words = vec!["containerlab"];
        words.extend(arguments);
        let refusal = refused(folder.path(), &words);
        assert!(refusal.contains(said), "{arguments:?}: {refusal}");
    }
    let folder = lesson_folder();
    fs::remove_file(folder.path().join(TOPOLOGY)).expect("the topology");
    let refusal = refused(folder.path(), &["containerlab", "inspect"]);
    let said = "provide either a lab name (--name) or a topology file path (--topo) or the --all flag";
    assert!(refusal.contains(said), "{refusal}");
    let refusal = refused(folder.path(), &["containerlab", "deploy"]);
    assert!(
        refusal.contains("no topology files matching the pattern *.clab.yml or *.clab.yaml found"),
        "{refusal}"
    );
}

#[test]
fn a_second_lab_cannot_have_the_cluster_of_the_first() {
    let Some(stage) = Stage::set(As::Myself) else { return };
    stage.shell(&format!("containerlab deploy -t {TOPOLOGY}"));
    let topology = fs::read_to_string(stage.lesson().join(TOPOLOGY)).expect("the topology");
    fs::write(stage.lesson().join("other.yaml"), topology.replacen("name: calico-ipam", "name: other", 1))
        .expect("another topology");
    let before = below(stage.root());
    let refused = stage.try_shell("containerlab deploy -t other.yaml");
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    let said = text(&refused.stderr);
    for word in [
        "other.yaml: topology.nodes: ",
        "node(s) already exist for a cluster with the name \"calico-ipam\" (lab \"calico-ipam\")",
        "destroy that lab or rename the node",
    ] {
        assert!(said.contains(word), "{word:?} in {said}");
    }
    // The first one works in its directory meanwhile.
    let made: Vec<_> = below(stage.root())
        .difference(&before)
        .filter(|path| !path.contains("/clab-calico-ipam/"))
        .cloned()
        .collect();
    assert!(made.is_empty(), "{made:?}");
    stage.shell("kind get kubeconfig --name=calico-ipam > calico-ipam.kubeconfig && kubectl get nodes");
    fs::remove_file(stage.lesson().join("other.yaml")).expect("the other topology");
}

/// The lesson's two files in a folder of their own, with an empty home.
fn lesson_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("refusals-").tempdir_in("/var/tmp").expect("a folder");
    let lesson = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/01-calico-ipam");
    for name in [TOPOLOGY, CLUSTER] {
        fs::copy(lesson.join(name), folder.path().join(name)).expect("the lesson's file");
    }
    fs::create_dir(folder.path().join("home")).expect("a home");
    folder
}

/// What `tortie` says on stderr, which must end with 1 and leave no file and no process.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let before = below(folder);
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_tortie"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder.join("home"))
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .output()
        .expect("the built program");
    let (said, shown) = (text(&stderr), text(&stdout));
    assert_eq!(status.code(), Some(1), "{arguments:?}: {said}");
    assert_eq!(shown, "", "{arguments:?}: results only");
    assert_eq!(below(folder), before, "{arguments:?} made something: {said}");
    assert_eq!(processes_about(folder), BTreeSet::new(), "{arguments:?} started something: {said}");
    said
}

/// All files and folders below `folder`.
fn below(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.append(&mut below(&path));
        }
        found.insert(path.display().to_string());
    }
    found
}

/// Processes that have `folder` in their arguments or work in it.
fn processes_about(folder: &Path) -> BTreeSet<String> {
    let name = folder.display().to_string();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let command =
            String::from_utf8_lossy(&fs::read(path.join("cmdline")).unwrap_or_default()).into_owned();
        let works_in = fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        if command.contains(&name) || works_in {
            found.insert(command.replace('\0', " "));
        }
    }
    found
}
