//! The stored roles and bindings, read once and kept until one of them changes.

use crate::identity::User;
use crate::selector::LabelSelector;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rules, and whom a binding gives them to.
#[derive(Debug)]
struct Bound {
    subjects: Vec<Value>,
    rules: Arc<Vec<Value>>,
}

/// Who is given which rules.
#[derive(Debug, Default)]
pub struct Policy {
    everywhere: Vec<Bound>,
    by_namespace: BTreeMap<String, Vec<Bound>>,
}

/// The objects that make a policy.
#[derive(Debug, Default)]
pub struct Roles {
    /// ClusterRoles.
    pub cluster_roles: Vec<Value>,
    /// ClusterRoleBindings.
    pub cluster_role_bindings: Vec<Value>,
    /// Roles of all namespaces.
    pub roles: Vec<Value>,
    /// RoleBindings of all namespaces.
    pub role_bindings: Vec<Value>,
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

impl Policy {
    /// What the stored objects say. A binding whose role is not there gives nothing.
    pub fn new(from: &Roles) -> Self {
        let mut known: BTreeMap<(&str, &str), Arc<Vec<Value>>> = BTreeMap::new();
        for role in from.cluster_roles.iter().chain(&from.roles) {
            let mut rules: Vec<Value> = array(&role["rules"]).cloned().collect();
            for selector in array(&role["aggregationRule"]["clusterRoleSelectors"]) {
                let Ok(selector) = LabelSelector::from_value(selector) else { continue };
                let chosen =
                    from.cluster_roles.iter().filter(|one| selector.matches(&one["metadata"]["labels"]));
                rules.extend(chosen.flat_map(|one| array(&one["rules"]).cloned()));
            }
            known.insert((text(role, "namespace"), text(role, "name")), Arc::new(rules));
        }
        let bound = |binding: &Value| {
            let role = &binding["roleRef"];
            let namespace = if role["kind"] == "ClusterRole" { "" } else { text(binding, "namespace") };
            let rules = known.get(&(namespace, role["name"].as_str()?))?;
            Some(Bound { subjects: array(&binding["subjects"]).cloned().collect(), rules: Arc::clone(rules) })
        };
        let mut by_namespace: BTreeMap<String, Vec<Bound>> = BTreeMap::new();
        for binding in &from.role_bindings {
            by_namespace.entry(text(binding, "namespace").to_owned()).or_default().extend(bound(binding));
        }
        Self { everywhere: from.cluster_role_bindings.iter().filter_map(bound).collect(), by_namespace }
    }

    /// The rules that hold for a user, everywhere and in a namespace.
    pub fn rules<'a>(&'a self, user: &'a User, namespace: &str) -> impl Iterator<Item = &'a Value> {
        let there = self.by_namespace.get(namespace).into_iter().flatten();
        self.everywhere
            .iter()
            .chain(there)
            .filter(|bound| bound.subjects.iter().any(|subject| is_subject(user, subject)))
            .flat_map(|bound| bound.rules.iter())
    }
}

fn is_subject(user: &User, subject: &Value) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => user.name == name,
        Some("Group") => user.groups.iter().any(|group| group == name),
        Some("ServiceAccount") => {
            let namespace = subject["namespace"].as_str().unwrap_or_default();
            user.name == format!("system:serviceaccount:{namespace}:{name}")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn roles_are_gathered_by_label_and_bound_by_namespace() {
        let role = |name: &str, labels: Value, verb: &str| json!({"metadata": {"name": name, "labels": labels}, "rules": [{"verbs": [verb]}]});
        let mut gathered = role("all", json!({}), "own");
        gathered["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]});
        let binding = |namespace: &str, role: &str| {
            json!({"metadata": {"namespace": namespace}, "roleRef": {"kind": "ClusterRole", "name": role},
                   "subjects": [{"kind": "User", "name": "ann"}]})
        };
        let policy = Policy::new(&Roles {
            cluster_roles: vec![
                gathered,
                role("one", json!({"to": "all"}), "one"),
                role("two", json!({}), "two"),
            ],
            role_bindings: vec![binding("here", "all"), binding("there", "two"), binding("here", "none")],
            ..Roles::default()
        });
        let ann = User { name: "ann".into(), groups: Vec::new(), uid: None };
        let verbs = |namespace: &str| -> Vec<Value> {
            policy.rules(&ann, namespace).map(|rule| rule["verbs"][0].clone()).collect()
        };
        assert_eq!(verbs("here"), ["own", "one"]);
        assert_eq!(verbs("there"), ["two"]);
        assert_eq!(verbs(""), Vec::<Value>::new());
    }
}
