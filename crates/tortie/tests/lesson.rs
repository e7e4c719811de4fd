//! The lesson, end to end: its own files, its own commands, the real kubectl, pods that ping each other, parts that are killed.
//!
//! As root and as an ordinary user. Everything happens in the lab's own namespaces; what is on the host before and after is compared.

#[path = "lesson/stage.rs"]
mod stage;
#[path = "lesson/traces.rs"]
mod traces;

use stage::{As, Stage, text};
use std::collections::BTreeSet;
use traces::Traces;

/// The lesson's blocks: a pure function of the nodes' names.
const BLOCKS: [(&str, &str); 3] = [
    ("calico-ipam-control-plane", "192.168.18.64/26"),
    ("calico-ipam-worker", "192.168.131.128/26"),
    ("calico-ipam-worker2", "192.168.112.128/26"),
];

#[test]
fn the_lesson_runs_as_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: not root");
        return;
    }
    let Some(stage) = Stage::set(As::Myself) else { return };
    the_lesson(&stage);
}

#[test]
fn the_lesson_runs_as_an_ordinary_user() {
    let who = if rustix::process::geteuid().is_root() { As::OrdinaryUser } else { As::Myself };
    let Some(stage) = Stage::set(who) else { return };
    the_lesson(&stage);
}

fn the_lesson(stage: &Stage) {
    let before = Traces::of(stage.root());
    deploys(stage);
    shows_the_lessons_face(stage);
    counts_only_what_answers(stage);
    pods_come_and_go(stage);
    packets_flow(stage);
    an_unforeseen_resource_gets_its_table(stage);
    survives_kills(stage);
    claims_second_blocks(stage);
    leaves_nothing(stage, &before);
}

fn deploys(stage: &Stage) {
    let output = stage.bare("./deploy.sh");
    assert!(output.status.success(), "deploy.sh: {}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(stage.lesson().join("calico-ipam.kubeconfig").exists(), "deploy.sh exports the kubeconfig");
}

fn shows_the_lessons_face(stage: &Stage) {
    let inspected = stage.shell("containerlab inspect -t calico-ipam.clab.yaml");
    assert_eq!(inspected, INSPECT, "containerlab inspect");

    let nodes = stage.shell("kubectl get nodes -o wide --no-headers");
    for (name, address) in [
        ("calico-ipam-control-plane", "172.18.0.3"),
        ("calico-ipam-worker", "172.18.0.2"),
        ("calico-ipam-worker2", "172.18.0.4"),
    ] {
        let line = nodes.lines().find(|line| line.split_whitespace().next() == Some(name)).expect(name);
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((words[1], words[4], words[5]), ("Ready", "v1.28.0", address), "{line}");
    }

    let status = stage.shell("kubectl get tigerastatus");
    let rows: Vec<Vec<&str>> = status.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "AVAILABLE", "PROGRESSING", "DEGRADED", "SINCE"]);
    assert_eq!(rows[1][..4], ["apiserver", "True", "False", "False"]);
    assert_eq!(rows[2][..4], ["calico", "True", "False", "False"]);
    assert_eq!(rows.len(), 3, "{status}");

    let affinities = stage.shell("kubectl get blockaffinities");
    assert_eq!(
        affinities.lines().next().map(|line| line.split_whitespace().collect::<Vec<_>>()),
        Some(vec!["NAME", "AGE"])
    );
    let listed = stage.shell(
        r#"kubectl get blockaffinities -o=jsonpath='{range .items[*]}{.metadata.name}{"\t"}{.spec.node}{"\t"}{.spec.cidr}{"\n"}{end}'"#,
    );
    let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
    let wished: BTreeSet<String> = BLOCKS
        .iter()
        .map(|(node, block)| {
            format!("ipam-block-affinity-{}\t{node}\t{block}", block.replace(['.', '/'], "-"))
        })
        .collect();
    assert_eq!(listed, wished);
    let yaml = stage.shell("kubectl get blockaffinities -o yaml");
    for line in ["apiVersion: crd.projectcalico.org/v1", "state: confirmed", "deleted: \"false\""] {
        assert_eq!(yaml.matches(line).count(), 3, "{line} in {yaml}");
    }

    let shown = stage.shell("calicoctl ipam show");
    let cells: Vec<Vec<&str>> = shown
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(cells[0], ["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS FREE"]);
    assert_eq!(cells[1], ["IP Pool", "192.168.0.0/16", "65536", "10 (0%)", "65526 (100%)"]);

    let pods = stage.shell("kubectl get pods -n calico-system --no-headers");
    for (prefix, count) in
        [("calico-node-", 3), ("calico-typha-", 2), ("calico-kube-controllers-", 1), ("csi-node-driver-", 3)]
    {
        let running =
            pods.lines().filter(|line| line.starts_with(prefix) && line.contains("Running")).count();
        assert_eq!(running, count, "{prefix} in {pods}");
    }
    let logs = stage.shell("kubectl logs -n calico-system -l k8s-app=calico-node -c calico-node");
    assert!(logs.lines().any(|line| line.contains("[INFO]")), "the agents' own log: {logs}");
}

/// Every address in use is an ordinal with a handle, and answers ping; editing a block changes the count.
fn counts_only_what_answers(stage: &Stage) {
    let used = used_addresses(stage);
    assert_eq!(used.len(), 10, "{used:?}");
    stage.shell("kubectl run pinger --image=tools --restart=Never");
    stage.shell("kubectl wait --for=condition=Ready pod/pinger --timeout=30s");
    for address in &used {
        stage.shell(&format!("kubectl exec pinger -- ping -c 1 -W 5 {address}"));
    }
    stage.shell("kubectl delete pod pinger --grace-period=1");
    stage.until("the pinger's address comes back", "calicoctl ipam show", |shown| in_use(shown) == Some(10));

    let name = "192-168-18-64-26";
    let block = stage.shell(&format!("kubectl get ipamblock {name} -o json"));
    let mut edited: serde_json::Value = serde_json::from_str(&block).expect("a block in JSON");
    let last = edited["spec"]["unallocated"].as_array_mut().and_then(Vec::pop).expect("a free ordinal");
    let position = usize::try_from(last.as_u64().expect("a number")).expect("a small number");
    let attributes = edited["spec"]["attributes"].as_array_mut().expect("attributes");
    attributes.push(serde_json::json!({"handle_id": "by-hand"}));
    let index = attributes.len() - 1;
    edited["spec"]["allocations"][position] = serde_json::json!(index);
    let replace = |value: &serde_json::Value| {
        stage.shell(&format!("kubectl replace -f - <<'EOF'\n{value}\nEOF"));
    };
    replace(&edited);
    assert_eq!(in_use(&stage.shell("calicoctl ipam show")), Some(11), "an edited block is counted");
    let mut restored: serde_json::Value = serde_json::from_str(&block).expect("a block in JSON");
    let held: serde_json::Value =
        serde_json::from_str(&stage.shell(&format!("kubectl get ipamblock {name} -o json"))).expect("JSON");
    restored["metadata"]["resourceVersion"] = held["metadata"]["resourceVersion"].clone();
    replace(&restored);
    assert_eq!(in_use(&stage.shell("calicoctl ipam show")), Some(10));
}

/// The column IPS IN USE of the lesson's one pool.
fn in_use(shown: &str) -> Option<u32> {
    let row = shown.lines().find(|line| line.contains("IP Pool"))?;
    row.split('|').nth(4)?.split_whitespace().next()?.parse().ok()
}

/// Addresses that blocks say are in use by a handle.
fn used_addresses(stage: &Stage) -> BTreeSet<String> {
    let blocks: serde_json::Value =
        serde_json::from_str(&stage.shell("kubectl get ipamblocks -o json")).expect("JSON");
    let mut used = BTreeSet::new();
    for block in blocks["items"].as_array().expect("blocks") {
        let network = block["spec"]["cidr"].as_str().and_then(|cidr| cidr.split('/').next()).expect("a CIDR");
        let base: std::net::Ipv4Addr = network.parse().expect("an address");
        for (ordinal, allocation) in
            block["spec"]["allocations"].as_array().expect("allocations").iter().enumerate()
        {
            let Some(index) = allocation.as_u64() else { continue };
            let attribute = &block["spec"]["attributes"][usize::try_from(index).expect("small")];
            assert!(attribute["handle_id"].is_string(), "every address in use has a handle: {attribute}");
            let offset = u32::try_from(ordinal).expect("small");
            assert!(used.insert(std::net::Ipv4Addr::from(u32::from(base) + offset).to_string()));
        }
    }
    used
}

fn pods_come_and_go(stage: &Stage) {
    stage.shell("kubectl create namespace shop");
    stage.shell("kubectl create deployment web --image=nginx --replicas=4 -n shop");
    stage.shell("kubectl rollout status deployment/web -n shop --timeout=60s");
    assert_eq!(in_use(&stage.shell("calicoctl ipam show")), Some(14));
    let wide = stage.shell("kubectl get pods -n shop -o wide --no-headers");
    let used = used_addresses(stage);
    let shown: BTreeSet<String> =
        wide.lines().filter_map(|line| line.split_whitespace().nth(5)).map(str::to_owned).collect();
    assert_eq!(shown.len(), 4, "{wide}");
    assert!(shown.is_subset(&used), "{shown:?} in {used:?}");

    stage.shell("kubectl scale deployment/web -n shop --replicas=1");
    stage
        .until("scaling down gives addresses back", "calicoctl ipam show", |shown| in_use(shown) == Some(11));
    stage.shell("kubectl delete deployment web -n shop");
    stage.until("deletion gives addresses back", "calicoctl ipam show", |shown| in_use(shown) == Some(10));

    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: applied, namespace: shop}\nspec: {containers: [{name: c, image: nginx}]}\n";
    stage.shell(&format!("kubectl apply -f - <<'EOF'\n{manifest}EOF"));
    stage.shell("kubectl wait --for=condition=Ready pod/applied -n shop --timeout=30s");
    stage.shell(&format!("kubectl apply -f - <<'EOF'\n{manifest}EOF"));
    stage.shell("kubectl delete namespace shop --timeout=30s");
    stage.until("the namespace takes its pods along", "calicoctl ipam show", |shown| {
        in_use(shown) == Some(10)
    });
}

fn packets_flow(stage: &Stage) {
    let pod = |name: &str, node: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: {node}, containers: [{{name: c, image: tools}}]}}\n---\n"
        )
    };
    let manifest =
        [pod("a", "calico-ipam-worker"), pod("b", "calico-ipam-worker"), pod("c", "calico-ipam-worker2")]
            .concat();
    stage.shell(&format!("kubectl apply -f - <<'EOF'\n{manifest}EOF"));
    stage.shell("kubectl wait --for=condition=Ready pod/a pod/b pod/c --timeout=30s");
    let address = |pod: &str| stage.shell(&format!("kubectl get pod {pod} -o jsonpath='{{.status.podIP}}'"));
    let (b, c) = (address("b"), address("c"));
    let ping = |target: &str| stage.shell(&format!("kubectl exec a -- ping -c 2 -W 5 {target}"));
    assert!(ping(&b).contains("ttl=63"), "same node: one hop");
    assert!(ping(&c).contains("ttl=62"), "other node: two hops");
    ping("172.18.0.2");
    ping("172.18.0.4");
    ping("172.18.0.1");
    stage.shell("kubectl delete pod a b c --grace-period=1");
}

fn an_unforeseen_resource_gets_its_table(stage: &Stage) {
    let definition = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: teapots.kitchen.example}
spec:
  group: kitchen.example
  scope: Namespaced
  names: {plural: teapots, singular: teapot, kind: Teapot, shortNames: [tp]}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {cups: {type: integer}}}}}}
    additionalPrinterColumns:
    - {name: Cups, type: integer, jsonPath: .spec.cups}
"#;
    stage.shell(&format!("kubectl create -f - <<'EOF'{definition}EOF"));
    let teapot = "apiVersion: kitchen.example/v1\nkind: Teapot\nmetadata: {name: brown}\nspec: {cups: 6}\n";
    stage.shell(&format!("kubectl apply -f - <<'EOF'\n{teapot}EOF"));
    let table = stage.shell("kubectl get tp");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [vec!["NAME", "CUPS"], vec!["brown", "6"]]);
    stage.shell("kubectl delete crd teapots.kitchen.example");
}

/// `kill -9` of each part under a trickle of pods: everything comes back, no address is held twice, nothing is lost.
fn survives_kills(stage: &Stage) {
    stage.shell("kubectl create deployment trickle --image=nginx --replicas=3");
    stage.shell("kubectl rollout status deployment/trickle --timeout=60s");
    let mut replicas = 3;
    for victim in [
        "tortie node .*calico-ipam-worker2",
        "tortie apiserver",
        "tortie controllers",
        "tortie operator",
        "tortie kubelet .*calico-ipam-worker2",
        "tortie lab supervisor",
    ] {
        let root = stage.root().display().to_string();
        // The brackets keep the pattern from matching the shell that holds it.
        stage.shell(&format!("kill -9 $(pgrep -f '[{}]{}/.*{victim}')", &root[..1], &root[1..]));
        if victim.contains("supervisor") {
            let output = stage.try_shell("containerlab deploy -t calico-ipam.clab.yaml");
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
        replicas += 2;
        stage.until(
            "scaling is accepted",
            &format!("kubectl scale deployment/trickle --replicas={replicas}"),
            |_| true,
        );
        stage.until(
            &format!("pods run after {victim} was killed"),
            "kubectl get deployment trickle -o jsonpath='{.status.readyReplicas}'",
            |ready| ready == replicas.to_string(),
        );
        let addresses = stage.shell(
            "kubectl get pods -l app=trickle -o jsonpath='{range .items[*]}{.status.podIP}{\"\\n\"}{end}'",
        );
        let distinct: BTreeSet<&str> = addresses.lines().collect();
        assert_eq!(distinct.len(), addresses.lines().count(), "an address is held twice: {addresses}");
        stage.until("the cluster is whole again", "kubectl get tigerastatus --no-headers", |status| {
            status.lines().filter(|line| line.split_whitespace().nth(1) == Some("True")).count() == 2
        });
    }
    stage.shell("kubectl delete deployment trickle");
    stage.until("nothing is lost", "calicoctl ipam show", |shown| in_use(shown) == Some(10));
}

fn claims_second_blocks(stage: &Stage) {
    stage.shell("kubectl create deployment many --image=nginx --replicas=150");
    stage.shell("kubectl rollout status deployment/many --timeout=120s");
    let blocks = stage.shell("kubectl get ipamblocks --no-headers");
    assert!(blocks.lines().count() > 3, "150 pods need second blocks: {blocks}");
    assert_eq!(in_use(&stage.shell("calicoctl ipam show")), Some(160));
    stage.shell("kubectl delete deployment many");
    stage.until("all come back", "calicoctl ipam show", |shown| in_use(shown) == Some(10));
}

fn leaves_nothing(stage: &Stage, before: &Traces) {
    let server = stage.shell("kubectl config view -o jsonpath='{.clusters[0].cluster.server}'");
    let address = server.trim_start_matches("https://").to_owned();
    assert!(std::net::TcpStream::connect(&address).is_ok(), "the API server listens on {address}");
    let output = stage.bare("./destroy.sh");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(std::net::TcpStream::connect(&address).is_err(), "nobody listens on {address} any more");
    let output = stage.bare("./destroy.sh");
    assert!(output.status.success(), "a second time: {}", text(&output.stderr));
    assert_eq!(&Traces::of(stage.root()), before);
}

/// What the lesson prints.
const INSPECT: &str = "\
╭───────────────────────────┬──────────────────────┬─────────┬───────────────────────╮
│            Name           │      Kind/Image      │  State  │     IPv4/6 Address    │
├───────────────────────────┼──────────────────────┼─────────┼───────────────────────┤
│ calico-ipam-control-plane │ k8s-kind             │ running │ 172.18.0.3            │
│                           │ kindest/node:v1.28.0 │         │ fc00:f853:ccd:e793::3 │
├───────────────────────────┼──────────────────────┼─────────┼───────────────────────┤
│ calico-ipam-worker        │ k8s-kind             │ running │ 172.18.0.2            │
│                           │ kindest/node:v1.28.0 │         │ fc00:f853:ccd:e793::2 │
├───────────────────────────┼──────────────────────┼─────────┼───────────────────────┤
│ calico-ipam-worker2       │ k8s-kind             │ running │ 172.18.0.4            │
│                           │ kindest/node:v1.28.0 │         │ fc00:f853:ccd:e793::4 │
╰───────────────────────────┴──────────────────────┴─────────┴───────────────────────╯
";
