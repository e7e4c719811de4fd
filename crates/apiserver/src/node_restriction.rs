//! What a node's kubelet may change: its own Node and Lease, and the pods that run on it.

use crate::guard::{Change, Guard, Others};
use serde_json::Value;

/// The guard of kubelets, known by their user `system:node:<name>` of the group `system:nodes`.
#[derive(Debug)]
pub struct NodeRestriction;

impl Guard for NodeRestriction {
    fn judge(&self, change: &Change<'_>, _others: &dyn Others) -> Result<(), String> {
        let user = change.user;
        let Some(node) = user.name.strip_prefix("system:node:") else { return Ok(()) };
        if !user.groups.iter().any(|group| group == "system:nodes") {
            return Ok(());
        }
        let runs_here = |pod: &Value| pod["spec"]["nodeName"] == node;
        match (change.group, change.resource) {
            ("", "nodes") if change.name != node => {
                Err(format!("node {node:?} is not allowed to modify node {:?}", change.name))
            }
            ("coordination.k8s.io", "leases") if change.namespace != "kube-node-lease" => {
                Err(format!("node {node:?} has no lease outside kube-node-lease"))
            }
            ("coordination.k8s.io", "leases") if change.name != node => {
                Err(format!("node {node:?} can only have the lease of its own name"))
            }
            ("", "pods") => match (change.old, change.new) {
                (None, Some(pod)) => {
                    let is_mirror = pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string();
                    if is_mirror && runs_here(pod) {
                        Ok(())
                    } else {
                        Err(format!("node {node:?} can only create mirror pods of its own"))
                    }
                }
                (Some(pod), _) if !runs_here(pod) => {
                    Err(format!("node {node:?} can only change pods that run on it"))
                }
                (Some(_), Some(pod)) if !runs_here(pod) => {
                    Err(format!("node {node:?} cannot give a pod to another node"))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::User;
    use jiff::Timestamp;
    use serde_json::json;

    struct Nothing;

    impl Others for Nothing {
        fn get(&self, _group: &str, _resource: &str, _name: &str) -> Option<Value> {
            None
        }
    }

    #[test]
    fn a_kubelet_changes_only_what_is_its_nodes() {
        let user = User { name: "system:node:n1".into(), groups: vec!["system:nodes".into()], uid: None };
        let judge = |group: &str,
                     resource: &str,
                     namespace: &str,
                     name: &str,
                     old: Option<&Value>,
                     new: Option<&Value>| {
            let now = Timestamp::UNIX_EPOCH;
            NodeRestriction
                .judge(&Change { user: &user, group, resource, namespace, name, old, new, now }, &Nothing)
                .is_ok()
        };
        let any = json!({});
        assert!(judge("", "nodes", "", "n1", Some(&any), Some(&any)));
        assert!(!judge("", "nodes", "", "n2", Some(&any), Some(&any)));
        assert!(!judge("", "nodes", "", "n2", None, Some(&any)));
        assert!(judge("coordination.k8s.io", "leases", "kube-node-lease", "n1", None, Some(&any)));
        assert!(!judge("coordination.k8s.io", "leases", "kube-node-lease", "n2", Some(&any), Some(&any)));
        assert!(!judge("coordination.k8s.io", "leases", "default", "n1", None, Some(&any)));
        let pod = |node: &str| json!({"spec": {"nodeName": node}});
        let mirror = |node: &str| json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": node}});
        assert!(judge("", "pods", "a", "p", None, Some(&mirror("n1"))));
        assert!(!judge("", "pods", "a", "p", None, Some(&mirror("n2"))));
        assert!(!judge("", "pods", "a", "p", None, Some(&pod("n1"))));
        assert!(judge("", "pods", "a", "p", Some(&pod("n1")), None));
        assert!(!judge("", "pods", "a", "p", Some(&pod("n2")), None));
        assert!(!judge("", "pods", "a", "p", Some(&pod("n1")), Some(&pod("n2"))));
    }
}
