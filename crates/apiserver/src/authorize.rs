//! Who may do what.
//!
//! Members of the system's groups may do everything. Everybody else is judged by the stored roles and bindings.

use crate::error::{Status, qualified};
use crate::identity::User;
use crate::policy::Policy;
use serde_json::{Value, json};

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// As `list`.
    pub verb: &'a str,
    /// API group; empty for core.
    pub group: &'a str,
    /// Plural, as `pods`, or empty for other paths.
    pub resource: &'a str,
    /// As `log`, or empty.
    pub subresource: &'a str,
    /// Empty: all, or cluster-scoped.
    pub namespace: &'a str,
    /// Empty: a collection.
    pub name: &'a str,
    /// The path, for what is no resource.
    pub path: &'a str,
}

impl Attributes<'_> {
    /// The refusal that Kubernetes writes.
    pub fn forbidden(&self, user: &User) -> Status {
        let resource = if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        if self.resource.is_empty() {
            let message =
                format!("forbidden: User {:?} cannot {} path {:?}", user.name, self.verb, self.path);
            return Status { details: json!({}), ..Status::new(403, "Forbidden", message) };
        }
        let why = format!(
            "User {:?} cannot {} resource {resource:?} in API group {:?} {scope}",
            user.name, self.verb, self.group
        );
        let mut status = Status::forbidden(self.group, self.resource, self.name, &why);
        if !self.subresource.is_empty() {
            status.message = status.message.replacen(&qualified(self.group, self.resource), &resource, 1);
        }
        status
    }
}

/// Whether `user` may do `what`.
pub fn allowed(user: &User, what: &Attributes<'_>, policy: &Policy) -> bool {
    if user.is_almighty() {
        return true;
    }
    if what.resource.is_empty() {
        // Nobody has a role, and may still ask whether the server is well.
        let open = ["/version", "/healthz", "/livez", "/readyz"];
        let is_open = open.iter().any(|root| {
            what.path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        if is_open {
            return true;
        }
    }
    policy.rules(user, what.namespace).any(|rule| permits(rule, what))
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Whether one rule of a role permits it, wherever the role holds.
pub(crate) fn permits(rule: &Value, what: &Attributes<'_>) -> bool {
    let has = |field: &str, wanted: &str| {
        array(&rule[field]).filter_map(Value::as_str).any(|one| one == "*" || one == wanted)
    };
    if !has("verbs", what.verb) {
        return false;
    }
    if what.resource.is_empty() {
        return array(&rule["nonResourceURLs"]).filter_map(Value::as_str).any(|pattern| {
            pattern == what.path
                || pattern.strip_suffix('*').is_some_and(|prefix| what.path.starts_with(prefix))
        });
    }
    let resource = if what.subresource.is_empty() {
        has("resources", what.resource)
    } else {
        has("resources", &format!("{}/{}", what.resource, what.subresource))
            || array(&rule["resources"])
                .filter_map(Value::as_str)
                .any(|one| one == format!("*/{}", what.subresource))
    };
    let named = rule["resourceNames"].as_array().is_none_or(Vec::is_empty)
        || (!what.name.is_empty()
            && array(&rule["resourceNames"]).filter_map(Value::as_str).any(|one| one == what.name));
    has("apiGroups", what.group) && resource && named
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Roles;

    fn one() -> Policy {
        Policy::new(&Roles {
            cluster_roles: vec![json!({"metadata": {"name": "reader"},
                "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]})],
            cluster_role_bindings: vec![json!({
                "subjects": [{"kind": "ServiceAccount", "namespace": "a", "name": "b"}],
                "roleRef": {"kind": "ClusterRole", "name": "reader"},
            })],
            ..Roles::default()
        })
    }

    #[test]
    fn a_binding_gives_what_its_role_says_and_no_more() {
        let user = User::service_account("a", "b", "u");
        let mut what = Attributes { verb: "get", resource: "pods", namespace: "x", ..Attributes::default() };
        assert!(allowed(&user, &what, &one()));
        what.subresource = "log";
        assert!(allowed(&user, &what, &one()));
        what.subresource = "exec";
        assert!(!allowed(&user, &what, &one()));
        what.subresource = "";
        what.verb = "list";
        assert!(!allowed(&user, &what, &one()));
        assert_eq!(
            what.forbidden(&user).message,
            r#"pods is forbidden: User "system:serviceaccount:a:b" cannot list resource "pods" in API group "" in the namespace "x""#
        );
    }

    #[test]
    fn nobody_sees_only_the_servers_health() {
        let path = |path| Attributes { verb: "get", path, ..Attributes::default() };
        assert!(allowed(&User::anonymous(), &path("/readyz/ping"), &one()));
        assert!(!allowed(&User::anonymous(), &path("/apis"), &one()));
        assert!(!allowed(&User::anonymous(), &path("/versions"), &one()));
    }
}
