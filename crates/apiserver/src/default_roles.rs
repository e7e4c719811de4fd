//! The roles and bindings that every cluster has: what everybody may, the roles for people, and Kubernetes' own parts.

use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn paths(paths: &[&str]) -> Value {
    json!({"nonResourceURLs": paths, "verbs": ["get"]})
}

fn role(name: &str, rules: &[Value]) -> Value {
    let labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    json!({"metadata": {"name": name, "labels": labels}, "rules": rules})
}

/// A role for people: what it holds itself goes to the next larger one, and rules of others labelled for it are added.
fn aggregated(name: &str, own: Option<&str>, rules: &[Value]) -> [Value; 2] {
    let mut whole = role(name, &[]);
    whole["aggregationRule"] = json!({"clusterRoleSelectors": [
        {"matchLabels": {format!("rbac.authorization.k8s.io/aggregate-to-{name}"): "true"}}]});
    if let Some(larger) = own {
        whole["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{larger}")] =
            "true".into();
    }
    let mut part = role(&format!("system:aggregate-to-{name}"), rules);
    part["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{name}")] = "true".into();
    [whole, part]
}

/// What is in a namespace, in groups, less what only its administrator sees.
const CONTENT: [(&str, &[&str]); 8] = [
    (
        "",
        &[
            "configmaps",
            "endpoints",
            "events",
            "persistentvolumeclaims",
            "persistentvolumeclaims/status",
            "pods",
            "pods/log",
            "pods/status",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "resourcequotas",
            "resourcequotas/status",
            "limitranges",
            "serviceaccounts",
            "services",
            "services/status",
            "bindings",
            "namespaces",
            "namespaces/status",
        ],
    ),
    (
        "apps",
        &[
            "controllerrevisions",
            "daemonsets",
            "daemonsets/status",
            "deployments",
            "deployments/scale",
            "deployments/status",
            "replicasets",
            "replicasets/scale",
            "replicasets/status",
            "statefulsets",
            "statefulsets/scale",
            "statefulsets/status",
        ],
    ),
    ("batch", &["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
    ("discovery.k8s.io", &["endpointslices"]),
    ("events.k8s.io", &["events"]),
    ("networking.k8s.io", &["ingresses", "ingresses/status", "networkpolicies"]),
    ("policy", &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
    ("coordination.k8s.io", &["leases"]),
];

/// ClusterRoles.
pub(crate) fn roles() -> Vec<Value> {
    let view: Vec<Value> = CONTENT.iter().map(|(group, kinds)| rule(&[group], kinds, &READ)).collect();
    let written = |kinds: &[&str]| -> Vec<String> {
        kinds
            .iter()
            .filter(|kind| {
                !kind.ends_with("/status") && !kind.starts_with("namespaces") && **kind != "pods/log"
            })
            .filter(|kind| !matches!(**kind, "limitranges" | "resourcequotas" | "bindings"))
            .map(|kind| (*kind).to_owned())
            .collect()
    };
    let mut edit: Vec<Value> = CONTENT
        .iter()
        .map(|(group, kinds)| json!({"apiGroups": [group], "resources": written(kinds), "verbs": WRITE}))
        .collect();
    edit.push(rule(&[""], &["secrets"], &[&READ[..], &WRITE[..]].concat()));
    edit.push(rule(&[""], &["pods/attach", "pods/exec", "pods/portforward"], &["get", "create"]));
    edit.push(rule(&[""], &["pods/eviction", "serviceaccounts/token"], &["create"]));
    let admin = [
        rule(&[GROUP], &["roles", "rolebindings"], &[&READ[..], &WRITE[..]].concat()),
        rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
    ];
    let mut roles = vec![
        role(
            "cluster-admin",
            &[rule(&["*"], &["*"], &["*"]), json!({"nonResourceURLs": ["*"], "verbs": ["*"]})],
        ),
        role(
            "system:discovery",
            &[paths(&[
                "/api",
                "/api/*",
                "/apis",
                "/apis/*",
                "/healthz",
                "/livez",
                "/openapi",
                "/openapi/*",
                "/readyz",
                "/version",
                "/version/",
            ])],
        ),
        role(
            "system:public-info-viewer",
            &[paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])],
        ),
        role(
            "system:basic-user",
            &[
                rule(
                    &["authorization.k8s.io"],
                    &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                    &["create"],
                ),
                rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
            ],
        ),
        role("system:monitoring", &[paths(&["/healthz", "/livez", "/metrics", "/readyz"])]),
        role("system:node", &node()),
        role("system:kube-controller-manager", &controller_manager()),
    ];
    roles.extend(aggregated("view", Some("edit"), &view));
    roles.extend(aggregated("edit", Some("admin"), &edit));
    roles.extend(aggregated("admin", None, &admin));
    roles
}

/// Which nodes and pods these are is told by the guard of kubelets.
fn node() -> Vec<Value> {
    vec![
        rule(&[""], &["nodes"], &["get", "list", "watch", "create", "update", "patch"]),
        rule(&[""], &["nodes/status", "pods/status"], &["update", "patch"]),
        rule(&[""], &["pods"], &["get", "list", "watch", "create", "delete"]),
        rule(&[""], &["pods/eviction", "serviceaccounts/token"], &["create"]),
        rule(
            &[""],
            &[
                "configmaps",
                "secrets",
                "services",
                "namespaces",
                "serviceaccounts",
                "endpoints",
                "persistentvolumes",
                "persistentvolumeclaims",
            ],
            &READ,
        ),
        rule(&["", "events.k8s.io"], &["events"], &["create", "update", "patch"]),
        rule(&["coordination.k8s.io"], &["leases"], &["get", "create", "update", "patch", "delete"]),
        rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
    ]
}

fn controller_manager() -> Vec<Value> {
    vec![
        rule(
            &[""],
            &["nodes", "namespaces", "configmaps", "secrets", "services", "serviceaccounts", "pods"],
            &READ,
        ),
        rule(
            &["apps"],
            &["daemonsets", "deployments", "replicasets", "statefulsets", "controllerrevisions"],
            &READ,
        ),
        rule(&["coordination.k8s.io"], &["leases"], &READ),
        rule(&["", "events.k8s.io"], &["events"], &["create", "update", "patch"]),
        rule(&[""], &["nodes", "nodes/status"], &["update", "patch"]),
        rule(&[""], &["pods"], &["create", "delete", "update", "patch"]),
        rule(&[""], &["pods/binding", "bindings"], &["create"]),
        rule(&[""], &["pods/status"], &["update", "patch"]),
        rule(&["apps"], &["replicasets"], &["create", "update", "patch", "delete"]),
        rule(&["apps"], &["daemonsets", "deployments", "statefulsets"], &["update", "patch"]),
        rule(
            &["apps"],
            &["daemonsets/status", "deployments/status", "replicasets/status", "statefulsets/status"],
            &["update", "patch"],
        ),
        rule(&[""], &["endpoints"], &[&READ[..], &WRITE[..]].concat()),
        rule(&["discovery.k8s.io"], &["endpointslices"], &[&READ[..], &WRITE[..]].concat()),
    ]
}

/// ClusterRoleBindings.
pub(crate) fn bindings() -> Vec<Value> {
    [
        ("cluster-admin", "Group", "system:masters"),
        ("system:discovery", "Group", "system:authenticated"),
        ("system:basic-user", "Group", "system:authenticated"),
        ("system:public-info-viewer", "Group", "system:authenticated"),
        ("system:monitoring", "Group", "system:monitoring"),
        ("system:node", "Group", "system:nodes"),
        ("system:kube-controller-manager", "User", "system:kube-controller-manager"),
    ]
    .into_iter()
    .map(|(role, kind, subject)| {
        json!({
            "metadata": {"name": role, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": GROUP, "kind": kind, "name": subject}],
        })
    })
    .collect()
}
