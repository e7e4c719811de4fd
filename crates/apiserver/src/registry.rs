//! Which kinds are served: the table of built-in ones, and those that CustomResourceDefinitions add.

use crate::discovery::documents::Documents;
use crate::resource::{Resource, Style};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

/// A row of the table of built-in kinds.
struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    short: &'static str,
    /// Words: `status`, `all` (the category), `review` (create only), and names of subresources.
    more: &'static str,
}

const fn row(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    short: &'static str,
    more: &'static str,
) -> Row {
    Row { group, version: "v1", kind, plural, namespaced, short, more }
}

const NS: bool = true;
const CLUSTER: bool = false;
const RBAC: &str = "rbac.authorization.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// Groups in the order of discovery come first by this table, custom ones after it by name.
static BUILTIN: &[Row] = &[
    row("", "Binding", "bindings", NS, "", "review"),
    row("", "ConfigMap", "configmaps", NS, "cm", ""),
    row("", "Endpoints", "endpoints", NS, "ep", ""),
    row("", "Event", "events", NS, "ev", ""),
    row("", "LimitRange", "limitranges", NS, "limits", ""),
    row("", "Namespace", "namespaces", CLUSTER, "ns", "status finalize"),
    row("", "Node", "nodes", CLUSTER, "no", "status"),
    row("", "PersistentVolumeClaim", "persistentvolumeclaims", NS, "pvc", "status"),
    row("", "PersistentVolume", "persistentvolumes", CLUSTER, "pv", "status"),
    row("", "Pod", "pods", NS, "po", "status all attach binding eviction exec log portforward"),
    row("", "PodTemplate", "podtemplates", NS, "", ""),
    row("", "ReplicationController", "replicationcontrollers", NS, "rc", "status all scale"),
    row("", "ResourceQuota", "resourcequotas", NS, "quota", "status"),
    row("", "Secret", "secrets", NS, "", ""),
    row("", "ServiceAccount", "serviceaccounts", NS, "sa", "token"),
    row("", "Service", "services", NS, "svc", "status all"),
    row("apiregistration.k8s.io", "APIService", "apiservices", CLUSTER, "", "status"),
    row("apps", "ControllerRevision", "controllerrevisions", NS, "", ""),
    row("apps", "DaemonSet", "daemonsets", NS, "ds", "status all"),
    row("apps", "Deployment", "deployments", NS, "deploy", "status all scale"),
    row("apps", "ReplicaSet", "replicasets", NS, "rs", "status all scale"),
    row("apps", "StatefulSet", "statefulsets", NS, "sts", "status all scale"),
    row("events.k8s.io", "Event", "events", NS, "ev", ""),
    row("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", CLUSTER, "", "review"),
    row("authentication.k8s.io", "TokenReview", "tokenreviews", CLUSTER, "", "review"),
    row(AUTHORIZATION, "LocalSubjectAccessReview", "localsubjectaccessreviews", NS, "", "review"),
    row(AUTHORIZATION, "SelfSubjectAccessReview", "selfsubjectaccessreviews", CLUSTER, "", "review"),
    row(AUTHORIZATION, "SelfSubjectRulesReview", "selfsubjectrulesreviews", CLUSTER, "", "review"),
    row(AUTHORIZATION, "SubjectAccessReview", "subjectaccessreviews", CLUSTER, "", "review"),
    row("batch", "CronJob", "cronjobs", NS, "cj", "status all"),
    row("batch", "Job", "jobs", NS, "", "status all"),
    row(
        "certificates.k8s.io",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        CLUSTER,
        "csr",
        "status",
    ),
    row("networking.k8s.io", "IngressClass", "ingressclasses", CLUSTER, "", ""),
    row("networking.k8s.io", "Ingress", "ingresses", NS, "ing", "status"),
    row("networking.k8s.io", "NetworkPolicy", "networkpolicies", NS, "netpol", ""),
    row("policy", "PodDisruptionBudget", "poddisruptionbudgets", NS, "pdb", "status"),
    row(RBAC, "ClusterRoleBinding", "clusterrolebindings", CLUSTER, "", ""),
    row(RBAC, "ClusterRole", "clusterroles", CLUSTER, "", ""),
    row(RBAC, "RoleBinding", "rolebindings", NS, "", ""),
    row(RBAC, "Role", "roles", NS, "", ""),
    row(STORAGE, "CSIDriver", "csidrivers", CLUSTER, "", ""),
    row(STORAGE, "CSINode", "csinodes", CLUSTER, "", ""),
    row(STORAGE, "StorageClass", "storageclasses", CLUSTER, "sc", ""),
    row(STORAGE, "VolumeAttachment", "volumeattachments", CLUSTER, "", "status"),
    row(ADMISSION, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", CLUSTER, "", ""),
    row(ADMISSION, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", CLUSTER, "", ""),
    row(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        CLUSTER,
        "crd,crds",
        "status",
    ),
    row("scheduling.k8s.io", "PriorityClass", "priorityclasses", CLUSTER, "pc", ""),
    row("coordination.k8s.io", "Lease", "leases", NS, "", ""),
    row("node.k8s.io", "RuntimeClass", "runtimeclasses", CLUSTER, "", ""),
    row("discovery.k8s.io", "EndpointSlice", "endpointslices", NS, "", ""),
    row(crate::commits::GROUP, "Commit", "commits", CLUSTER, "", "review"),
];

const KNOWN_SUBRESOURCES: [&str; 10] = [
    "attach",
    "binding",
    "ephemeralcontainers",
    "eviction",
    "exec",
    "finalize",
    "log",
    "portforward",
    "scale",
    "token",
];

/// Where the objects of a kind are: kinds that two groups show (events) share their place.
fn prefix(group: &str, plural: &str) -> String {
    match (group, plural) {
        ("" | "events.k8s.io", _) => format!("/core/{plural}/"),
        _ => format!("/{group}/{plural}/"),
    }
}

fn builtin(row: &Row) -> Resource {
    let words: Vec<&str> = row.more.split_whitespace().collect();
    let list = |text: &str| text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect();
    Resource {
        group: row.group.to_owned(),
        version: row.version.to_owned(),
        kind: row.kind.to_owned(),
        list_kind: format!("{}List", row.kind),
        plural: row.plural.to_owned(),
        singular: row.kind.to_lowercase(),
        namespaced: row.namespaced,
        short_names: list(row.short),
        categories: if words.contains(&"all") { vec!["all".to_owned()] } else { Vec::new() },
        style: if words.contains(&"review") { Style::CreateOnly } else { Style::Stored },
        has_status: words.contains(&"status"),
        subresources: KNOWN_SUBRESOURCES.into_iter().filter(|known| words.contains(known)).collect(),
        custom: None,
        prefix: prefix(row.group, row.plural),
    }
}

/// All kinds served at one moment. Immutable: a change of the definitions makes a new one.
#[derive(Debug)]
pub struct Registry {
    /// In the order of discovery.
    resources: Vec<Arc<Resource>>,
    by_path: HashMap<(String, String, String), Arc<Resource>>,
    /// Discovery documents made of it, by name; made when first asked for.
    pub(crate) discovery: OnceLock<Documents>,
    /// The OpenAPI document of the second version; made when first asked for.
    pub(crate) openapi: OnceLock<bytes::Bytes>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new(&BTreeMap::new())
    }
}

impl Registry {
    /// The built-in kinds and those of the definitions, which come by the name of the definition.
    pub fn new(definitions: &BTreeMap<String, Vec<Arc<Resource>>>) -> Self {
        let mut resources: Vec<Arc<Resource>> = BUILTIN.iter().map(|row| Arc::new(builtin(row))).collect();
        let mut custom: Vec<Arc<Resource>> = definitions.values().flatten().cloned().collect();
        custom.sort_by(|a, b| {
            (&a.group, version_rank(&a.version), &a.plural).cmp(&(
                &b.group,
                version_rank(&b.version),
                &b.plural,
            ))
        });
        resources.extend(custom);
        let by_path = resources
            .iter()
            .map(|resource| {
                let key = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
                (key, Arc::clone(resource))
            })
            .collect();
        Self { resources, by_path, discovery: OnceLock::new(), openapi: OnceLock::new() }
    }

    /// The kind that a path names.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// A kind by its name, in the preferred version of its group.
    pub fn find_kind(&self, group: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|resource| resource.group == group && resource.kind == kind)
    }

    /// All kinds, groups in the order of discovery, preferred versions first.
    pub fn resources(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// Kinds with stored objects, each place once.
    pub fn stored(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let mut seen = std::collections::HashSet::new();
        self.resources
            .iter()
            .filter(move |resource| resource.style == Style::Stored && seen.insert(resource.prefix.as_str()))
    }

    /// The groups, in order, each with its versions, preferred first.
    pub fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for resource in &self.resources {
            let (group, version) = (resource.group.as_str(), resource.version.as_str());
            match groups.iter_mut().find(|(known, _)| *known == group) {
                Some((_, versions)) if versions.contains(&version) => {}
                Some((_, versions)) => versions.push(version),
                None => groups.push((group, vec![version])),
            }
        }
        groups
    }
}

/// Sorts versions as Kubernetes does: stable before beta before alpha, higher numbers first, others last by name.
pub fn version_rank(version: &str) -> (u8, std::cmp::Reverse<u32>, std::cmp::Reverse<u32>, String) {
    let number = |text: &str| text.parse::<u32>().ok();
    let parsed = version.strip_prefix('v').and_then(|rest| {
        let split = |word: &str, rank: u8| {
            rest.split_once(word).and_then(|(major, minor)| Some((rank, number(major)?, number(minor)?)))
        };
        split("beta", 1).or_else(|| split("alpha", 2)).or_else(|| Some((0, number(rest)?, 0)))
    });
    match parsed {
        Some((rank, major, minor)) => {
            (rank, std::cmp::Reverse(major), std::cmp::Reverse(minor), String::new())
        }
        None => (3, std::cmp::Reverse(0), std::cmp::Reverse(0), version.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ranked_as_kubernetes_ranks_them() {
        let mut versions = vec!["foo", "v1alpha1", "v2", "v1beta1", "v1", "v1beta2", "v10"];
        versions.sort_by_key(|version| version_rank(version));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }

    #[test]
    fn every_word_of_the_table_is_known() {
        for row in BUILTIN {
            for word in row.more.split_whitespace() {
                let known = matches!(word, "status" | "all" | "review") || KNOWN_SUBRESOURCES.contains(&word);
                assert!(known, "{}: {word}", row.kind);
            }
        }
    }

    #[test]
    fn both_groups_of_events_share_their_objects() {
        let registry = Registry::default();
        let core = registry.find("", "v1", "events").unwrap();
        let own = registry.find("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(core.key("a", "b"), own.key("a", "b"));
        assert_eq!(registry.stored().filter(|resource| resource.plural == "events").count(), 1);
    }
}
