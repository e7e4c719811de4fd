//! The stored roles and bindings, read once and kept until one of them changes.

use crate::identity::User;
use crate::selector::LabelSelector;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
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
    /// The rules of each role, by namespace (empty for ClusterRoles) and name.
    roles: BTreeMap<(String, String), Arc<Vec<Value>>>,
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

/// The rules of a role, and of all that it gathers by label, and those again.
fn gathered(role: &Value, all: &[Value]) -> Vec<Value> {
    let mut rules: Vec<Value> = array(&role["rules"]).cloned().collect();
    let (mut seen, mut waiting) = (BTreeSet::from([text(role, "name")]), vec![role]);
    while let Some(role) = waiting.pop() {
        for selector in array(&role["aggregationRule"]["clusterRoleSelectors"]) {
            let Ok(selector) = LabelSelector::from_value(selector) else { continue };
            for one in all.iter().filter(|one| selector.matches(&one["metadata"]["labels"])) {
                if seen.insert(text(one, "name")) {
                    rules.extend(array(&one["rules"]).cloned());
                    waiting.push(one);
                }
            }
        }
    }
    rules
}

impl Policy {
    /// What the stored objects say. A binding whose role is not there gives nothing.
    pub fn new(from: &Roles) -> Self {
        let mut known: BTreeMap<(&str, &str), Arc<Vec<Value>>> = BTreeMap::new();
        for role in from.cluster_roles.iter().chain(&from.roles) {
            let rules = gathered(role, &from.cluster_roles);
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
        let everywhere = from.cluster_role_bindings.iter().filter_map(bound).collect();
        let roles = known
            .into_iter()
            .map(|((namespace, name), rules)| ((namespace.to_owned(), name.to_owned()), rules))
            .collect();
        Self { everywhere, by_namespace, roles }
    }

    /// What a role of a namespace says, or a ClusterRole where that is empty, with what it gathers from others.
    pub fn role(&self, namespace: &str, name: &str) -> Option<&[Value]> {
        self.roles.get(&(namespace.to_owned(), name.to_owned())).map(|rules| rules.as_slice())
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
        let gathers = |name: &str, labels: Value, to: &str| {
            let mut gathers = role(name, labels, name);
            gathers["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"to": to}}]});
            gathers
        };
        let gathered = gathers("own", json!({"to": "middle"}), "all");
        let binding = |namespace: &str, role: &str| {
            json!({"metadata": {"namespace": namespace}, "roleRef": {"kind": "ClusterRole", "name": role},
                   "subjects": [{"kind": "User", "name": "ann"}]})
        };
        let policy = Policy::new(&Roles {
            cluster_roles: vec![
                gathered,
                gathers("middle", json!({"to": "all"}), "middle"),
                role("one", json!({"to": "middle"}), "one"),
                role("two", json!({}), "two"),
            ],
            role_bindings: vec![binding("here", "own"), binding("there", "two"), binding("here", "none")],
            ..Roles::default()
        });
        let ann = User { name: "ann".into(), groups: Vec::new(), uid: None };
        let verbs = |namespace: &str| -> Vec<Value> {
            policy.rules(&ann, namespace).map(|rule| rule["verbs"][0].clone()).collect()
        };
        assert_eq!(verbs("here"), ["own", "middle", "one"]);
        assert_eq!(verbs("there"), ["two"]);
        assert_eq!(verbs(""), Vec::<Value>::new());
    }
}
