//! Pools that cannot be, and a pool that is full: what the learner sees, and how it heals.
//!
//! One lab whose whole pool has sixteen addresses, ten of which a fresh lab uses.

#[path = "lesson/stage.rs"]
mod stage;

use stage::{As, Stage};
use std::fs;

/// The one pool of this lab, in blocks of four.
const POOL: &str = "192.168.0.0/28";

/// Addresses of the pool that a fresh lab leaves.
const FREE: usize = 6;

#[test]
fn pools_that_cannot_be_are_reported_and_a_full_pool_says_what_would_free_addresses() {
    let who = if rustix::process::geteuid().is_root() { As::OrdinaryUser } else { As::Myself };
    let Some(stage) = Stage::set(who) else { return };
    deploys_with_a_small_pool(&stage);
    refuses_pools_that_cannot_be(&stage);
    becomes_available(&stage);
    fills_the_pool(&stage);
    lets_the_waiting_pod_run(&stage);
}

fn resources(stage: &Stage) -> std::path::PathBuf {
    stage.lesson().join("calico-cni-config/custom-resources.yaml")
}

fn deploys_with_a_small_pool(stage: &Stage) {
    let lesson = fs::read_to_string(resources(stage)).expect("the custom resources");
    let small = lesson.replace("blockSize: 26", "blockSize: 30").replace("192.168.0.0/16", POOL);
    assert!(small.contains(POOL) && small.contains("blockSize: 30"), "{small}");
    fs::write(resources(stage), small).expect("custom resources to write to");
    stage.shell(
        "containerlab deploy -t calico-ipam.clab.yaml && \
         (umask 077 && kind get kubeconfig --name=calico-ipam > calico-ipam.kubeconfig) && \
         kubectl create -f ../../manifests/operator-crds.yaml -f ../../manifests/tigera-operator.yaml",
    );
    // The very first Installation is wrong: there is no pool to fall back upon.
    let wrong =
        fs::read_to_string(resources(stage)).expect("the custom resources").replace(POOL, "10.0.0.0/16");
    stage.shell(&format!("kubectl apply -f - <<'EOF'\n{wrong}EOF"));
    stage.until("the first Installation is refused", CONDITIONS, |conditions| {
        conditions.contains("Degraded=True InvalidConfigurationError: ")
            && conditions.contains("IPPool 10.0.0.0/16 is not within")
    });
    assert_eq!(pools(stage), "", "no pool");
    assert_eq!(stage.shell("kubectl get nodes --no-headers").matches(" NotReady ").count(), 3);
    becomes_available(stage);
    stage.shell("kubectl wait --for=condition=Ready pods --all --all-namespaces --timeout=80s");
}

/// Each in an Installation that is otherwise the lab's own.
fn refuses_pools_that_cannot_be(stage: &Stage) {
    let good = fs::read_to_string(resources(stage)).expect("the custom resources");
    for (second, said) in [
        ("cidr: 10.96.128.0/20", "IPPool 10.96.128.0/20 overlaps with the service CIDR 10.96.0.0/16"),
        ("cidr: 172.18.0.0/24", "IPPool 172.18.0.0/24 overlaps with the network of the nodes 172.18.0.0/16"),
        (
            "cidr: 10.0.0.0/16",
            "IPPool 10.0.0.0/16 is not within the platform's configured pod network CIDR(s) [192.168.0.0/16]",
        ),
        ("cidr: 192.168.0.0/20", "192.168.0.0/20) overlaps with IPPool default-ipv4-ippool (192.168.0.0/28)"),
        (
            "{cidr: 192.168.64.0/20, name: default-ipv4-ippool}",
            "IPPool name default-ipv4-ippool is used twice",
        ),
        ("{cidr: 192.168.64.0/28, blockSize: 26}", "IPPool 192.168.64.0/28 is smaller than one block of /26"),
    ] {
        let bad = good.replace("all()\n", &format!("all()\n      - {second}\n"));
        assert!(bad.contains(second), "{bad}");
        stage.shell(&format!("kubectl apply -f - <<'EOF'\n{bad}EOF"));
        let conditions = stage.until(&format!("{second} is refused"), CONDITIONS, |conditions| {
            conditions.lines().any(|line| line.starts_with("Degraded=True ") && line.contains(said))
        });
        assert!(
            conditions.lines().any(|line| line.starts_with("Degraded=True InvalidConfigurationError: ")),
            "{conditions}"
        );
        assert!(conditions.contains("Available=False "), "{conditions}");
        let row = stage.shell("kubectl get tigerastatus calico --no-headers");
        assert_eq!(row.split_whitespace().nth(3), Some("True"), "the column DEGRADED: {row}");
        assert_eq!(pools(stage), format!("default-ipv4-ippool {POOL}\n"), "{second} made a pool");
    }
}

fn becomes_available(stage: &Stage) {
    stage.shell("kubectl apply -f calico-cni-config/custom-resources.yaml");
    stage.until("the corrected Installation is carried out", CONDITIONS, |conditions| {
        ["Available=True ", "Degraded=False "].iter().all(|wish| conditions.contains(wish))
    });
    assert_eq!(pools(stage), format!("default-ipv4-ippool {POOL}\n"));
}

fn fills_the_pool(stage: &Stage) {
    stage.shell(&format!("kubectl create deployment fill --image=nginx --replicas={FREE}"));
    stage.shell("kubectl rollout status deployment/fill --timeout=80s");
    let shown = stage.shell("calicoctl ipam show");
    let row = shown.lines().find(|line| line.contains("IP Pool")).expect("the pool's row");
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    assert_eq!(cells[2..6], [POOL, "16", "16 (100%)", "0 (0%)"], "{shown}");

    stage.shell("kubectl run late --image=nginx --restart=Never");
    let message = stage.until(
        "an event says that the pool is full",
        "kubectl get events --field-selector involvedObject.name=late,reason=FailedCreatePodSandBox \
         -o jsonpath='{range .items[*]}{.type}: {.message}{\"\\n\"}{end}'",
        |events| !events.trim().is_empty(),
    );
    let message = message.lines().next().unwrap_or_default();
    for word in [
        "Warning: ",
        "no address is free in pool default-ipv4-ippool 192.168.0.0/28",
        "4 of 4 blocks exist",
        "to free addresses delete pods",
        "add a pool",
    ] {
        assert!(message.contains(word), "{word:?} in {message}");
    }
    let row = stage.shell("kubectl get pod late --no-headers");
    assert_eq!(row.split_whitespace().nth(2), Some("ContainerCreating"), "{row}");
    let described = stage.shell("kubectl describe pod late");
    assert!(described.contains("no address is free in pool default-ipv4-ippool"), "{described}");
    assert_eq!(stage.shell("kubectl get pod late -o jsonpath='{.status.podIP}'"), "", "no address");
}

fn lets_the_waiting_pod_run(stage: &Stage) {
    stage.shell(&format!("kubectl scale deployment/fill --replicas={}", FREE - 1));
    stage.shell("kubectl wait --for=condition=Ready pod/late --timeout=80s");
    let address = stage.shell("kubectl get pod late -o jsonpath='{.status.podIP}'");
    assert!(address.starts_with("192.168.0."), "{address}");
    stage.shell("kubectl delete deployment fill && kubectl delete pod late --now");
    stage.until("all addresses come back", "calicoctl ipam show", |shown| shown.contains(" 10 (62%) "));
}

/// The pools of the cluster with their ranges.
fn pools(stage: &Stage) -> String {
    stage.shell(
        "kubectl get ippools -o jsonpath='{range .items[*]}{.metadata.name} {.spec.cidr}{\"\\n\"}{end}'",
    )
}

/// Shows the conditions of TigeraStatus calico, one on a line.
const CONDITIONS: &str = "kubectl get tigerastatus calico \
    -o jsonpath='{range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{\"\\n\"}{end}'";
