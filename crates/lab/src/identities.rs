//! What each part of the lab may do: roles of its own for each, and a guard over the records that agents write.
//!
//! Kubelets and the controller manager have the roles that every cluster has for them; here are those of Calico's parts.

use crate::records_guard::USER_PREFIX;
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";
const READ: [&str; 3] = ["get", "list", "watch"];
const ALL: [&str; 7] = ["get", "list", "watch", "create", "update", "patch", "delete"];

/// Both of Calico's groups: which one holds the records is the datastore's business.
const CALICO: [&str; 2] = ["crd.projectcalico.org", "projectcalico.org"];

/// Group of the agents' users.
pub const AGENTS: &str = "tortie:agents";

/// User of the agent of a node.
#[must_use]
pub fn agent(node: &str) -> String {
    format!("{USER_PREFIX}{node}")
}

/// User of Calico's controllers.
pub const CONTROLLERS: &str = "system:serviceaccount:calico-system:calico-kube-controllers";

/// User of the operator.
pub const OPERATOR: &str = "system:serviceaccount:tigera-operator:tigera-operator";

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

/// Records of allocations.
const RECORDS: [&str; 3] = ["ipamblocks", "blockaffinities", "ipamhandles"];

/// Settings that the allocator follows.
const SETTINGS: [&str; 8] = [
    "ippools",
    "ipreservations",
    "ipamconfigs",
    "ipamconfigurations",
    "clusterinformations",
    "felixconfigurations",
    "bgpconfigurations",
    "kubecontrollersconfigurations",
];

fn commits() -> Value {
    rule(&["tortie.io"], &["commits"], &["create"])
}

fn node() -> Vec<Value> {
    vec![
        rule(&CALICO, &RECORDS, &ALL),
        rule(&CALICO, &SETTINGS, &READ),
        rule(&[""], &["nodes", "pods", "namespaces"], &READ),
        // Their own: the guard looks at the name.
        rule(&[""], &["nodes"], &["patch"]),
        rule(&[""], &["nodes/status"], &["patch"]),
        json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["tortie-datastore"], "verbs": ["get"]}),
        commits(),
    ]
}

fn controllers() -> Vec<Value> {
    vec![
        rule(&CALICO, &RECORDS, &ALL),
        rule(&CALICO, &SETTINGS, &READ),
        rule(
            &CALICO,
            &[
                "ippools",
                "ippools/status",
                "clusterinformations",
                "kubecontrollersconfigurations",
                "kubecontrollersconfigurations/status",
            ],
            &["create", "update", "patch"],
        ),
        rule(&[""], &["nodes", "pods", "namespaces", "services"], &READ),
        rule(&[""], &["services/status"], &["update", "patch"]),
        json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["tortie-datastore"], "verbs": ["get"]}),
        commits(),
    ]
}

fn operator() -> Vec<Value> {
    vec![
        rule(&["operator.tigera.io"], &["*"], &ALL),
        rule(&CALICO, &["*"], &ALL),
        rule(&[""], &["namespaces", "configmaps", "serviceaccounts", "services", "events"], &ALL),
        rule(&[""], &["nodes", "pods"], &READ),
        rule(&["apps"], &["daemonsets", "deployments"], &ALL),
        rule(&["apiregistration.k8s.io"], &["apiservices", "apiservices/status"], &ALL),
        rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], &READ),
        commits(),
    ]
}

/// The roles and their bindings, as (path, object).
#[must_use]
pub fn objects() -> Vec<(String, Value)> {
    let parts = [
        ("tortie:calico-node", node(), "Group", AGENTS),
        ("tortie:calico-kube-controllers", controllers(), "User", CONTROLLERS),
        ("tortie:tigera-operator", operator(), "User", OPERATOR),
    ];
    let mut objects = Vec::new();
    for (name, rules, kind, subject) in parts {
        let api_version = format!("{RBAC}/v1");
        let role = json!({"apiVersion": api_version, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules});
        let binding = json!({
            "apiVersion": api_version, "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": RBAC, "kind": kind, "name": subject}],
        });
        objects.push((format!("/apis/{RBAC}/v1/clusterroles"), role));
        objects.push((format!("/apis/{RBAC}/v1/clusterrolebindings"), binding));
    }
    objects
}
