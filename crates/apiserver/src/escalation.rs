//! Nobody gives rights that he does not have: what is asked when roles and bindings are written.
//!
//! As in Kubernetes, whoever has the verb `escalate` on a role may write anything into it, and whoever has `bind` on a
//! role may bind it; everybody else only what he could do himself, there where it will hold.

use crate::authorize::{self, Attributes};
use crate::guard::Change;
use crate::identity::User;
use crate::policy::Policy;
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Single rights that are looked at for one write, at most.
const MAX_RIGHTS: usize = 20_000;

/// Whether the change gives nobody more than its user has.
///
/// # Errors
/// What he lacks.
pub(crate) fn judge(policy: &Policy, change: &Change<'_>) -> Result<(), String> {
    let Some(new) = change.new.filter(|_| change.group == GROUP) else { return Ok(()) };
    let stays = |field: &str| change.old.is_some_and(|old| old[field] == new[field]);
    match change.resource {
        "roles" | "clusterroles" => {
            if stays("rules") && stays("aggregationRule")
                || may(policy, change, "escalate", change.resource, change.name)
            {
                return Ok(());
            }
            if new["aggregationRule"].is_object() && !stays("aggregationRule") {
                let everything = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
                                        {"nonResourceURLs": ["*"], "verbs": ["*"]}]);
                return lacks(policy, change, &everything)
                    .map_err(|_| "must have cluster-admin privileges to use the aggregationRule".to_owned());
            }
            lacks(policy, change, &new["rules"])
        }
        "rolebindings" | "clusterrolebindings" => {
            let role = &new["roleRef"];
            let name = role["name"].as_str().unwrap_or_default();
            let (plural, namespace) = if role["kind"] == "ClusterRole" {
                ("clusterroles", "")
            } else {
                ("roles", change.namespace)
            };
            if stays("subjects") && stays("roleRef") || may(policy, change, "bind", plural, name) {
                return Ok(());
            }
            let rules = policy.role(namespace, name);
            let rules = rules.ok_or_else(|| format!("{plural}.{GROUP} {name:?} not found"))?;
            lacks(policy, change, &rules.to_vec().into())
        }
        _ => Ok(()),
    }
}

fn may(policy: &Policy, change: &Change<'_>, verb: &str, resource: &str, name: &str) -> bool {
    let namespace = change.namespace;
    let what = Attributes { verb, group: GROUP, resource, namespace, name, ..Attributes::default() };
    authorize::allowed(change.user, &what, policy)
}

fn texts<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Refuses rules of which the user does not have every single right.
fn lacks(policy: &Policy, change: &Change<'_>, rules: &Value) -> Result<(), String> {
    let held: Vec<&Value> = policy.rules(change.user, change.namespace).collect();
    let mut looked_at: usize = 0;
    for rule in rules.as_array().into_iter().flatten() {
        let (verbs, groups, resources) =
            (texts(rule, "verbs"), texts(rule, "apiGroups"), texts(rule, "resources"));
        let (names, paths) = (texts(rule, "resourceNames"), texts(rule, "nonResourceURLs"));
        let objects = [groups.len(), resources.len(), names.len().max(1)].into_iter().product::<usize>();
        looked_at = looked_at.saturating_add(verbs.len().saturating_mul(objects.saturating_add(paths.len())));
        if looked_at > MAX_RIGHTS {
            return Err(format!("it has more than {MAX_RIGHTS} single rights; make several of it"));
        }
        let names = if names.is_empty() { vec![""] } else { names };
        let mut rights = Vec::new();
        for verb in verbs {
            rights.extend(paths.iter().map(|path| Attributes { verb, path, ..Attributes::default() }));
            for (group, resource) in
                groups.iter().flat_map(|group| resources.iter().map(move |resource| (group, resource)))
            {
                let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                rights.extend(names.iter().map(|name| Attributes {
                    verb,
                    group,
                    resource,
                    subresource,
                    name,
                    ..Attributes::default()
                }));
            }
        }
        if !rights.iter().all(|right| held.iter().any(|held| authorize::permits(held, right))) {
            return Err(refusal(change.user, rule));
        }
    }
    Ok(())
}

fn refusal(user: &User, rule: &Value) -> String {
    let mut parts = Vec::new();
    for (field, shown) in [
        ("apiGroups", "APIGroups"),
        ("resources", "Resources"),
        ("resourceNames", "ResourceNames"),
        ("nonResourceURLs", "NonResourceURLs"),
        ("verbs", "Verbs"),
    ] {
        if rule[field].as_array().is_some_and(|list| !list.is_empty()) {
            let list: String = rule[field].to_string().chars().take(1000).collect();
            parts.push(format!("{shown}:{list}"));
        }
    }
    format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{{{}}}",
        user.name,
        user.groups,
        parts.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Roles;
    use jiff::Timestamp;

    fn policy() -> Policy {
        let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
        let binding = |user: &str, role: &str| {
            json!({"metadata": {"namespace": "here"}, "roleRef": {"kind": "ClusterRole", "name": role},
                   "subjects": [{"kind": "User", "name": user}]})
        };
        Policy::new(&Roles {
            cluster_roles: vec![
                role(
                    "pods",
                    json!([{"apiGroups": [""], "resources": ["pods", "pods/*"], "verbs": ["get", "list"]}]),
                ),
                role(
                    "one",
                    json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["get"]}]),
                ),
                role("paths", json!([{"nonResourceURLs": ["/api/*"], "verbs": ["get"]}])),
                role(
                    "all",
                    json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, {"nonResourceURLs": ["*"], "verbs": ["*"]}]),
                ),
                role(
                    "binder",
                    json!([{"apiGroups": [GROUP], "resources": ["clusterroles"], "resourceNames": ["all"], "verbs": ["bind"]}]),
                ),
                role(
                    "writer",
                    json!([{"apiGroups": [GROUP], "resources": ["roles"], "verbs": ["escalate"]}]),
                ),
            ],
            role_bindings: vec![
                binding("ann", "pods"),
                binding("ann", "one"),
                binding("ann", "paths"),
                binding("bob", "binder"),
                binding("cleo", "writer"),
                binding("dan", "all"),
            ],
            ..Roles::default()
        })
    }

    fn judged(
        user: &str,
        resource: &str,
        namespace: &str,
        old: Option<&Value>,
        new: &Value,
    ) -> Result<(), String> {
        let user = User { name: user.into(), groups: Vec::new(), uid: None };
        let (group, name, now) = (GROUP, "x", Timestamp::UNIX_EPOCH);
        judge(&policy(), &Change { user: &user, group, resource, namespace, name, old, new: Some(new), now })
    }

    fn role(rules: Value) -> Value {
        json!({"rules": rules})
    }

    #[test]
    fn a_role_says_no_more_than_its_writer_may() {
        let pods = |verbs: Value| role(json!([{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]));
        let ann = |namespace, role: &Value| judged("ann", "roles", namespace, None, role);
        ann("here", &pods(json!(["get", "list"]))).unwrap();
        ann("here", &role(json!([]))).unwrap();
        ann("there", &pods(json!(["get"]))).unwrap_err();
        ann("here", &pods(json!(["*"]))).unwrap_err();
        for rule in [
            json!({"apiGroups": [""], "resources": ["*"], "verbs": ["get"]}),
            json!({"apiGroups": ["*"], "resources": ["pods"], "verbs": ["get"]}),
            json!({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]}),
            json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
            json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "b"], "verbs": ["get"]}),
            json!({"nonResourceURLs": ["*"], "verbs": ["get"]}),
            json!({"nonResourceURLs": ["/apis"], "verbs": ["get"]}),
        ] {
            ann("here", &role(json!([rule]))).unwrap_err();
        }
        ann("here", &role(json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["get"]}])))
            .unwrap();
        ann("here", &role(json!([{"nonResourceURLs": ["/api/v1"], "verbs": ["get"]}]))).unwrap();
        let told = ann("here", &pods(json!(["delete"]))).unwrap_err();
        assert_eq!(
            told,
            "user \"ann\" (groups=[]) is attempting to grant RBAC permissions not currently held:\n\
             {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
        );
    }

    #[test]
    fn what_a_role_says_already_can_stay_and_escalate_allows_the_rest() {
        let all = role(json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]));
        let mut labelled = all.clone();
        labelled["metadata"] = json!({"labels": {"a": "b"}});
        judged("ann", "roles", "here", Some(&all), &labelled).unwrap();
        judged("ann", "roles", "here", None, &all).unwrap_err();
        judged("cleo", "roles", "here", None, &all).unwrap();
        judged("dan", "roles", "here", None, &all).unwrap();
        judged("dan", "clusterroles", "", None, &all).unwrap_err();
        let gathers = json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
        assert!(judged("ann", "clusterroles", "", None, &gathers).unwrap_err().contains("cluster-admin"));
        judged("ann", "clusterroles", "", Some(&gathers), &gathers).unwrap();
    }

    #[test]
    fn a_binding_gives_no_more_than_its_writer_has() {
        let to = |role: &str, subject: &str| json!({"roleRef": {"kind": "ClusterRole", "name": role}, "subjects": [{"kind": "User", "name": subject}]});
        judged("ann", "rolebindings", "here", None, &to("pods", "eve")).unwrap();
        judged("ann", "rolebindings", "here", None, &to("all", "ann")).unwrap_err();
        judged("ann", "clusterrolebindings", "", None, &to("pods", "eve")).unwrap_err();
        judged("ann", "rolebindings", "here", None, &to("none", "eve")).unwrap_err();
        judged("bob", "rolebindings", "here", None, &to("all", "eve")).unwrap();
        judged("bob", "rolebindings", "here", None, &to("pods", "eve")).unwrap_err();
        judged("ann", "rolebindings", "here", Some(&to("all", "eve")), &to("all", "eve")).unwrap();
        judged("ann", "rolebindings", "here", Some(&to("all", "eve")), &to("all", "ann")).unwrap_err();
    }

    #[test]
    fn a_role_of_millions_of_rights_is_not_taken_apart() {
        let many: Vec<String> = (0..1000).map(|at| at.to_string()).collect();
        let rule = json!([{"apiGroups": many, "resources": many, "verbs": many, "resourceNames": many}]);
        assert!(judged("ann", "roles", "here", None, &role(rule)).unwrap_err().contains("more than 20000"));
    }
}
