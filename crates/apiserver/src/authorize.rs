//! Who may do what.
//!
//! Members of the system's groups may do everything. Everybody else is judged by the stored roles and bindings.

use crate::error::{Status, qualified};
use crate::identity::User;
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

/// Where the roles come from.
pub trait Roles {
    /// All objects of an RBAC kind (by its plural) in a namespace, or cluster-scoped.
    fn list(&self, plural: &str, namespace: Option<&str>) -> Vec<Value>;
    /// One role.
    fn role(&self, plural: &str, namespace: &str, name: &str) -> Option<Value>;
}

/// Whether `user` may do `what`.
pub fn allowed(user: &User, what: &Attributes<'_>, roles: &dyn Roles) -> bool {
    if user.is_almighty() {
        return true;
    }
    if what.resource.is_empty() {
        let open = ["/version", "/healthz", "/livez", "/readyz"];
        let discovery = ["/api", "/apis", "/openapi"];
        let under = |roots: &[&str]| {
            roots.iter().any(|root| {
                what.path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        if under(&open) || (!user.is_anonymous() && under(&discovery)) {
            return true;
        }
    }
    let self_review = matches!(what.group, "authorization.k8s.io" | "authentication.k8s.io")
        && what.resource.starts_with("selfsubject")
        && what.verb == "create";
    if self_review && !user.is_anonymous() {
        return true;
    }
    rules(user, what.namespace, roles).iter().any(|rule| permits(rule, what))
}

/// The rules that hold for a user, in a namespace and cluster-wide.
pub fn rules(user: &User, namespace: &str, roles: &dyn Roles) -> Vec<Value> {
    let mut bindings = roles.list("clusterrolebindings", None);
    if !namespace.is_empty() {
        bindings.extend(roles.list("rolebindings", Some(namespace)));
    }
    bindings
        .iter()
        .filter(|binding| array(&binding["subjects"]).any(|subject| is_subject(user, subject)))
        .filter_map(|binding| {
            let name = binding["roleRef"]["name"].as_str()?;
            match binding["roleRef"]["kind"].as_str()? {
                "ClusterRole" => roles.role("clusterroles", "", name),
                _ => roles.role("roles", namespace, name),
            }
        })
        .flat_map(|role| array(&role["rules"]).cloned().collect::<Vec<_>>())
        .collect()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
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

fn permits(rule: &Value, what: &Attributes<'_>) -> bool {
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

    struct One;

    impl Roles for One {
        fn list(&self, plural: &str, _namespace: Option<&str>) -> Vec<Value> {
            if plural != "clusterrolebindings" {
                return Vec::new();
            }
            vec![json!({
                "subjects": [{"kind": "ServiceAccount", "namespace": "a", "name": "b"}],
                "roleRef": {"kind": "ClusterRole", "name": "reader"},
            })]
        }
        fn role(&self, _plural: &str, _namespace: &str, name: &str) -> Option<Value> {
            assert_eq!(name, "reader");
            Some(json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]}))
        }
    }

    #[test]
    fn a_binding_gives_what_its_role_says_and_no_more() {
        let user = User::service_account("a", "b", "u");
        let mut what = Attributes { verb: "get", resource: "pods", namespace: "x", ..Attributes::default() };
        assert!(allowed(&user, &what, &One));
        what.subresource = "log";
        assert!(allowed(&user, &what, &One));
        what.subresource = "exec";
        assert!(!allowed(&user, &what, &One));
        what.subresource = "";
        what.verb = "list";
        assert!(!allowed(&user, &what, &One));
        assert_eq!(
            what.forbidden(&user).message,
            r#"pods is forbidden: User "system:serviceaccount:a:b" cannot list resource "pods" in API group "" in the namespace "x""#
        );
    }

    #[test]
    fn nobody_sees_only_the_servers_health() {
        let path = |path| Attributes { verb: "get", path, ..Attributes::default() };
        assert!(allowed(&User::anonymous(), &path("/readyz/ping"), &One));
        assert!(!allowed(&User::anonymous(), &path("/apis"), &One));
        assert!(!allowed(&User::anonymous(), &path("/versions"), &One));
    }
}
