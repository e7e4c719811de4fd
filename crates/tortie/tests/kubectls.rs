//! The lesson's commands with every kubectl on the machine: Debian's old one, the one on PATH, and others beside it.

#[path = "lesson/stage.rs"]
#[expect(dead_code, reason = "the lesson asks more of its stage")]
mod stage;

use stage::{As, Stage, text};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// What one kubectl has shown: the step and the essence of its output.
type Shown = Vec<(&'static str, String)>;

#[test]
fn every_kubectl_on_the_machine_runs_the_lessons_commands_and_shows_the_same() {
    let kubectls = kubectls();
    let Some(stage) = Stage::set(As::Myself) else { return };
    let output = stage.bare("./deploy.sh");
    assert!(output.status.success(), "deploy.sh: {}\n{}", text(&output.stdout), text(&output.stderr));
    let mut first: Option<(String, Shown)> = None;
    for kubectl in &kubectls {
        let runs = Kubectl::on(&stage, kubectl);
        let shown = runs.the_commands();
        match &first {
            None => first = Some((runs.version, shown)),
            Some((version, wished)) => {
                for (is, wish) in shown.iter().zip(wished) {
                    assert_eq!(is, wish, "{} and {version}", runs.version);
                }
                assert_eq!(shown.len(), wished.len());
            }
        }
    }
}

/// The kubectls of this machine. That of the PATH is there, or the lesson could not be run at all.
fn kubectls() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let debian = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/kubectl-debian/usr/bin/kubectl");
    if debian.exists() {
        found.push(debian.canonicalize().expect("Debian's kubectl"));
    } else {
        eprintln!(
            "SKIPPED: Debian's kubectl is not there; scripts/fetch-debian-kubectl gets it where there is apt"
        );
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path)
        .map(|folder| folder.join("kubectl"))
        .find(|kubectl| kubectl.exists())
        .expect("a kubectl on PATH");
    // Where a link on PATH leads, there may be more of them.
    let itself = on_path.canonicalize().expect("what the link leads to");
    let others: BTreeSet<PathBuf> = [&on_path, &itself]
        .into_iter()
        .filter_map(|kubectl| fs::read_dir(kubectl.parent()?).ok())
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("kubectl.1."))
        .filter_map(|entry| entry.path().canonicalize().ok())
        .collect();
    found.push(itself);
    found.extend(others);
    found
}

/// One kubectl on the stage.
struct Kubectl<'a> {
    stage: &'a Stage,
    folder: PathBuf,
    version: String,
}

impl<'a> Kubectl<'a> {
    fn on(stage: &'a Stage, program: &Path) -> Self {
        let folder = stage.root().join("kubectl");
        fs::create_dir_all(&folder).expect("a folder");
        let link = folder.join("kubectl");
        // The one before it.
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(program, &link).expect("a link");
        let mut kubectl = Self { stage, folder, version: String::new() };
        let versions: serde_json::Value =
            serde_json::from_str(&kubectl.run("kubectl version -o json")).expect("JSON");
        assert_eq!(versions["serverVersion"]["gitVersion"], "v1.28.0", "{versions}");
        kubectl.version = format!("{} {}", program.display(), versions["clientVersion"]["gitVersion"]);
        kubectl
    }

    fn script(&self, script: &str) -> String {
        format!("export PATH={}:$PATH\n{script}", self.folder.display())
    }

    fn run(&self, script: &str) -> String {
        let output = self.stage.try_shell(&self.script(script));
        assert!(
            output.status.success(),
            "{}: {script}\nexited with {}\nstdout: {}\nstderr: {}",
            self.version,
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Exit code and stderr of what must fail.
    fn fails(&self, script: &str) -> (Option<i32>, String) {
        let output = self.stage.try_shell(&self.script(script));
        assert!(!output.status.success(), "{}: {script} should fail", self.version);
        (output.status.code(), text(&output.stderr))
    }

    fn the_commands(&self) -> Shown {
        let mut shown = Shown::new();
        self.looks(&mut shown);
        self.explains(&mut shown);
        self.makes(&mut shown);
        self.enters(&mut shown);
        self.takes_away(&mut shown);
        shown
    }

    fn looks(&self, shown: &mut Shown) {
        let nodes = self.run("kubectl get nodes");
        // All but the age.
        let rows = nodes.lines().map(|row| {
            let words: Vec<&str> = row.split_whitespace().collect();
            assert_eq!(words.len(), 5, "{nodes}");
            [words[0], words[1], words[2], words[4]].join(" ")
        });
        shown.push(("get nodes", rows.collect::<Vec<_>>().join("\n")));
        let wide = self.run("kubectl get nodes -o wide");
        assert!(wide.contains("172.18.0.4"), "{wide}");
        let affinities = self.run(
            "kubectl get blockaffinities -o=jsonpath='{range .items[*]}{.metadata.name}{\"\\t\"}{.spec.node}\
             {\"\\t\"}{.spec.cidr}{\"\\n\"}{end}'",
        );
        assert_eq!(affinities.lines().count(), 3, "{affinities}");
        shown.push(("get -o jsonpath", affinities));
        let yaml = self.run("kubectl get ippool default-ipv4-ippool -o yaml");
        let (_, spec) = yaml.split_once("\nspec:").expect("a specification");
        shown.push(("get -o yaml", spec.to_owned()));
        let status = self.run("kubectl get tigerastatus");
        let rows = status.lines().map(|row| row.split_whitespace().take(4).collect::<Vec<_>>().join(" "));
        shown.push(("get tigerastatus", rows.collect::<Vec<_>>().join("\n")));
        let logs = self.run("kubectl logs -n calico-system -l k8s-app=calico-node -c calico-node");
        assert!(logs.contains("[INFO]"), "{}: the agents' logs: {logs}", self.version);
        // Ended once it has shown something: a watch has no end of its own.
        let watched = self
            .run("exec 3< <(exec kubectl get nodes --watch -o name); read -r node <&3; kill $!; echo $node");
        shown.push(("get --watch", watched));
    }

    /// How it is laid out differs from version to version; what there is does not.
    fn explains(&self, shown: &mut Shown) {
        let explained = self.run("kubectl explain ippool.spec");
        let kind = explained.lines().find(|line| line.starts_with("KIND:")).unwrap_or_default();
        assert_eq!(kind.split_whitespace().nth(1), Some("IPPool"), "{explained}");
        let fields: BTreeSet<&str> = explained.lines().filter_map(field).collect();
        assert!(fields.contains("cidr") && fields.contains("blockSize"), "{}: {explained}", self.version);
        shown.push(("explain", format!("{fields:?}")));
        let resources: BTreeSet<String> =
            self.run("kubectl api-resources -o name").lines().map(|name| name.trim().to_owned()).collect();
        assert!(resources.contains("ippools.crd.projectcalico.org"), "{resources:?}");
        shown.push(("api-resources", format!("{resources:?}")));
        let table = self.run("kubectl api-resources --api-group=crd.projectcalico.org --no-headers");
        let kinds: BTreeSet<&str> = table.lines().filter_map(|row| row.split_whitespace().last()).collect();
        assert!(kinds.contains("BlockAffinity"), "{}: {table}", self.version);
    }

    fn makes(&self, shown: &mut Shown) {
        shown.push(("create -f", self.run(&from_stdin("kubectl create -f -", DEPLOYMENT))));
        let (code, said) = self.fails(&from_stdin("kubectl create -f -", DEPLOYMENT));
        assert!(said.contains("(AlreadyExists)"), "{}: {said}", self.version);
        shown.push(("create -f again", format!("{code:?}")));
        let (code, said) = self
            .fails(&from_stdin("kubectl create -f -", &DEPLOYMENT.replace("replicas: 1", "replicas: many")));
        assert!(said.contains("replicas"), "{}: {said}", self.version);
        shown.push(("create -f with a wrong type", format!("{code:?}")));
        shown.push(("apply -f", self.run(&from_stdin("kubectl apply -f -", POD))));
        shown.push(("apply -f again", self.run(&from_stdin("kubectl apply -f -", POD))));
        let labelled = POD.replace("app: talker", "app: talker, more: labels");
        shown.push(("apply -f of a change", self.run(&from_stdin("kubectl apply -f -", &labelled))));
        shown.push(("run", self.run("kubectl run runner --image=tools --restart=Never")));
        self.run("kubectl wait --for=condition=Ready pod/talker pod/runner --timeout=80s");
        let status = self.run("kubectl rollout status deployment/web --timeout=80s");
        shown.push(("rollout status", status.lines().last().unwrap_or_default().to_owned()));
        shown.push(("scale", self.run("kubectl scale deployment/web --replicas=2")));
        self.run("kubectl rollout status deployment/web --timeout=80s");
        let ready = self.run("kubectl get deployment web -o jsonpath='{.status.readyReplicas}'");
        shown.push(("get -o jsonpath of what was scaled", ready));
    }

    fn enters(&self, shown: &mut Shown) {
        let hostname = self.run("kubectl exec runner -- hostname");
        assert_eq!(hostname, "runner\n", "{}", self.version);
        shown.push(("exec", hostname));
        shown.push(("exec with input", self.run("echo to and fro | kubectl exec -i runner -- cat")));
        let address = self.run("kubectl get pod talker -o jsonpath='{.status.podIP}'");
        let ping = self.run(&format!("kubectl exec runner -- ping -c 1 -W 5 {address}"));
        assert!(ping.contains(" 0% packet loss"), "{}: {ping}", self.version);
        let (code, _) = self.fails("kubectl exec runner -- sh -c 'exit 3'");
        assert_eq!(code, Some(3), "{}", self.version);
        let logs = self.stage.until(
            "the pod that talks has talked",
            &self.script("kubectl logs -l app=talker"),
            |logs| logs.lines().count() >= 2,
        );
        shown.push(("logs -l", logs));
        shown.push(("logs --tail", self.run("kubectl logs talker --tail=1")));
    }

    fn takes_away(&self, shown: &mut Shown) {
        let deleted = self.run("kubectl delete pod talker runner --now && kubectl delete deployment web");
        // The newest say from which namespace, too.
        let lines = deleted.lines().map(|line| line.split(" deleted").next().unwrap_or_default());
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), 3, "{}: {deleted}", self.version);
        shown.push(("delete", lines.join("\n")));
        self.stage
            .until("the addresses come back", "calicoctl ipam show", |table| table.contains(" 10 (0%) "));
        let (code, said) = self.fails("kubectl get pod runner");
        assert!(said.contains("pods \"runner\" not found"), "{}: {said}", self.version);
        shown.push(("get of what is gone", format!("{code:?} {said}")));
    }
}

/// The name of a field in what `explain` prints: indented by two or three blanks, then its type in angle brackets.
fn field(line: &str) -> Option<&str> {
    let indented = line.len() - line.trim_start_matches(' ').len();
    let (name, kind) = line.trim_start_matches(' ').split_once(['\t', ' '])?;
    ((1..=3).contains(&indented) && kind.trim_start().starts_with('<')).then_some(name)
}

fn from_stdin(command: &str, manifest: &str) -> String {
    format!("{command} <<'EOF'\n{manifest}EOF")
}

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: nginx}]}
";

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec: {containers: [{name: c, image: tools, command: [sh, -c, 'echo one; echo two; exec sleep 1000']}]}
";
