//! The lab's own parts end or stand still: what is said about it, and that pods go on while they do.

#[path = "lesson/stage.rs"]
#[expect(dead_code, reason = "the lesson asks more of its stage")]
mod stage;

use stage::{As, Stage, text};
use std::collections::BTreeSet;

const NODE: &str = "calico-ipam-worker2";

#[test]
fn a_silent_or_killed_agent_turns_its_node_and_the_status_and_nothing_that_runs_notices() {
    let Some(stage) = Stage::set(As::Myself) else { return };
    let output = stage.bare("./deploy.sh");
    assert!(output.status.success(), "deploy.sh: {}\n{}", text(&output.stdout), text(&output.stderr));
    start_pingers(&stage);
    let objects = names(&stage);

    // One that stands still does not answer, for as long as it does.
    signal(&stage, "STOP", &agent(NODE));
    is_broken(&stage, "after the agent was stopped");
    signal(&stage, "CONT", &agent(NODE));
    is_whole(&stage, "after the agent went on");

    // One that is killed is started again, so soon that only a stopped one is surely seen before.
    signal(&stage, "STOP", &agent(NODE));
    is_broken(&stage, "before the agent is killed");
    let killed = processes(&stage, &agent(NODE));
    signal(&stage, "KILL", &agent(NODE));
    is_whole(&stage, "after the agent was killed");
    let running = processes(&stage, &agent(NODE));
    assert_eq!(running.len(), 1, "one agent for the node: {running:?}");
    assert!(running.is_disjoint(&killed), "a new agent: {running:?} for {killed:?}");
    assert_eq!(names(&stage), objects, "objects after one agent was killed");

    kills_everything_but_the_holder(&stage, &objects);
    lost_nothing(&stage);
}

/// All at once, while pods are being made: the API server, its clients, and who would start them again.
fn kills_everything_but_the_holder(stage: &Stage, objects: &BTreeSet<String>) {
    let before = addresses(stage);
    let used = count(&stage.shell("calicoctl ipam show")).expect("the pool's row");
    let parts = "tortie (apiserver|controller-manager|controllers|operator|kubelet|node|lab supervisor)( |$)";
    let killed = processes(stage, parts);
    // One of each, and a kubelet and an agent for each of three nodes.
    assert_eq!(killed.len(), 11, "the parts of the lab: {killed:?}");
    let holders = processes(stage, "tortie lab holder ");
    assert!(!holders.is_empty(), "the lab has a holder");
    stage.shell("kubectl create deployment burst --image=nginx --replicas=20");
    signal(stage, "KILL", parts);

    let output = stage.try_shell("containerlab deploy -t calico-ipam.clab.yaml");
    assert!(output.status.success(), "{}", text(&output.stderr));
    stage.shell("kubectl rollout status deployment/burst --timeout=80s");
    is_whole(stage, "after everything but the holder was killed");
    assert_eq!(processes(stage, "tortie lab holder "), holders, "the holder is the same");
    let running = processes(stage, parts);
    assert!(running.is_disjoint(&killed), "new parts: {running:?} for {killed:?}");
    assert_eq!(running.len(), 11, "the parts of the lab: {running:?}");

    let lost: Vec<_> = objects.difference(&names(stage)).cloned().collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let after = addresses(stage);
    let moved: Vec<_> = before.difference(&after).cloned().collect();
    assert!(moved.is_empty(), "pods keep their addresses: {moved:?}");
    assert_eq!(after.len(), before.len() + 20, "{after:?}");
    let distinct: BTreeSet<&str> = after.iter().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(distinct.len(), after.len(), "an address is held twice: {after:?}");
    assert!(distinct.iter().all(|address| address.starts_with("192.168.")), "{after:?}");
    // What was taken for a pod that did not get it is given back.
    stage.until("the count is that of the pods", "calicoctl ipam show", |table| {
        count(table) == Some(used + 20)
    });
    stage.shell("kubectl delete deployment burst");
    stage.until("the addresses come back", "calicoctl ipam show", |table| count(table) == Some(used));
}

/// How many addresses of the pool are in use.
fn count(table: &str) -> Option<usize> {
    let row = table.lines().find(|line| line.contains("IP Pool"))?;
    row.split('|').nth(4)?.split_whitespace().next()?.parse().ok()
}

/// Pods that ping each other, on one node and across two, from now on.
fn start_pingers(stage: &Stage) {
    let targets: String = [("near", NODE), ("far", "calico-ipam-worker")]
        .iter()
        .map(|(name, node)| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n\
                 spec: {{nodeName: {node}, containers: [{{name: c, image: nginx}}]}}\n---\n"
            )
        })
        .collect();
    stage.shell(&format!("kubectl apply -f - <<'EOF'\n{targets}EOF"));
    stage.shell("kubectl wait --for=condition=Ready pod/near pod/far --timeout=80s");
    for target in ["near", "far"] {
        let address = stage.shell(&format!("kubectl get pod {target} -o jsonpath='{{.status.podIP}}'"));
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: to-{target}}}\n\
             spec: {{nodeName: {NODE}, restartPolicy: Never, containers: [{{name: c, image: tools, \
             command: [ping, -i, '0.2', {address}]}}]}}\n"
        );
        stage.shell(&format!("kubectl apply -f - <<'EOF'\n{pod}EOF"));
    }
    for target in ["near", "far"] {
        answered_more(stage, target, 3);
    }
}

/// Waits until the pod that pings `target` has got more than `number` answers; gives their sequence numbers.
fn answered_more(stage: &Stage, target: &str, number: usize) -> Vec<usize> {
    let log = stage.until(
        &format!("the pod {target} answers"),
        &format!("kubectl logs to-{target} --tail=-1"),
        |log| log.matches(" icmp_seq=").count() > number,
    );
    log.lines().filter_map(|line| line.split(" icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()).collect()
}

/// Every ping since the first has been answered, in one run of the program, and they go on.
fn lost_nothing(stage: &Stage) {
    for (target, ttl) in [("near", "ttl=63"), ("far", "ttl=62")] {
        let until_now = answered_more(stage, target, 0).len();
        let sequence = answered_more(stage, target, until_now + 5);
        let wished: Vec<usize> = (1..=sequence.len()).collect();
        assert_eq!(sequence, wished, "pings to the pod {target}");
        let log = stage.shell(&format!("kubectl logs to-{target}"));
        assert_eq!(
            log.matches(" icmp_seq=").count(),
            log.matches(ttl).count(),
            "hops to the pod {target}: {log}"
        );
        let restarts = format!(
            "kubectl get pod to-{target} -o jsonpath='{{.status.containerStatuses[0].restartCount}}'"
        );
        assert_eq!(stage.shell(&restarts), "0", "restarts of the pod that pings {target}");
    }
}

fn is_broken(stage: &Stage, when: &str) {
    stage.until(
        &format!("the node is not ready {when}"),
        &format!("kubectl get node {NODE} --no-headers"),
        |row| row.split_whitespace().nth(1) == Some("NotReady"),
    );
    stage.until(
        &format!("calico is not available {when}"),
        "kubectl get tigerastatus calico --no-headers",
        |row| row.split_whitespace().nth(1) == Some("False"),
    );
    let others = stage.shell("kubectl get nodes calico-ipam-control-plane calico-ipam-worker --no-headers");
    assert_eq!(others.matches(" Ready ").count(), 2, "the other nodes {when}: {others}");
}

fn is_whole(stage: &Stage, when: &str) {
    stage.until(&format!("all nodes are ready {when}"), "kubectl get nodes --no-headers", |rows| {
        rows.lines().filter(|row| row.split_whitespace().nth(1) == Some("Ready")).count() == 3
    });
    stage.until(&format!("all is available {when}"), "kubectl get tigerastatus --no-headers", |rows| {
        let available = |row: &str| row.split_whitespace().skip(1).take(3).eq(["True", "False", "False"]);
        rows.lines().count() == 2 && rows.lines().all(available)
    });
    // A pod whose container was started again is ready a moment after its node.
    stage.until(&format!("all pods are ready {when}"), PODS_READY, |ready| {
        ready.lines().count() > 10 && ready.lines().all(|line| line == "True")
    });
}

const PODS_READY: &str = "kubectl get pods -A -o jsonpath='{range .items[*]}\
    {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}'";

/// Names of all that should outlive any part. Events come and go.
fn names(stage: &Stage) -> BTreeSet<String> {
    let kinds = stage.shell("kubectl api-resources --verbs=list -o name");
    let kinds: Vec<&str> =
        kinds.lines().map(str::trim).filter(|kind| !kind.starts_with("events") && !kind.is_empty()).collect();
    let listed = stage.shell(&format!(
        "kubectl get {} -A -o jsonpath='{{range .items[*]}}{{.kind}} {{.metadata.namespace}}/{{.metadata.name}} \
         {{.metadata.uid}}{{\"\\n\"}}{{end}}'",
        kinds.join(",")
    ));
    let names: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
    assert!(names.len() > 100, "{names:?}");
    names
}

/// Pods with an address of their own, and that address.
fn addresses(stage: &Stage) -> BTreeSet<String> {
    let rows = stage.shell(
        "kubectl get pods -A -o jsonpath='{range .items[*]}{.metadata.name} {.status.podIP} {.spec.hostNetwork}{\"\\n\"}{end}'",
    );
    rows.lines().filter(|row| !row.ends_with(" true")).map(|row| row.trim().to_owned()).collect()
}

/// Matches the agent of one node.
fn agent(node: &str) -> String {
    format!("tortie node .*{node}( |$)")
}

/// Ids of this lab's processes whose command has the program's path before `pattern`.
fn processes(stage: &Stage, pattern: &str) -> BTreeSet<String> {
    stage
        .try_shell(&search(stage, pattern))
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|id| !id.is_empty())
        .map(text)
        .collect()
}

fn signal(stage: &Stage, signal: &str, pattern: &str) {
    stage.shell(&format!("kill -{signal} $({})", search(stage, pattern)));
}

fn search(stage: &Stage, pattern: &str) -> String {
    let root = stage.root().display().to_string();
    // The brackets keep the pattern from matching the shell that holds it.
    format!("pgrep -f '^[{}]{}/[^ ]*/{pattern}'", &root[..1], &root[1..])
}
