//! Rules of pods and pod templates.

use crate::error::FieldError;
use crate::names::is_dns1123_label;
use serde_json::{Value, json};
use std::collections::HashSet;

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// One of a few words; the empty one only where a default fills it later.
fn one_of(value: &Value, path: String, allowed: &[&str], faults: &mut Vec<FieldError>) {
    match text(value) {
        "" => {}
        word if allowed.contains(&word) => {}
        _ => faults.push(FieldError::not_supported(path, value, allowed)),
    }
}

/// Checks a pod's `spec`, which stands at `path`.
pub(super) fn check(spec: &Value, path: &str, faults: &mut Vec<FieldError>) {
    let mut volumes = HashSet::new();
    for (at, volume) in items(&spec["volumes"]).iter().enumerate() {
        let field = format!("{path}.volumes[{at}].name");
        label(&volume["name"], &field, faults);
        if !volumes.insert(text(&volume["name"])) {
            faults.push(FieldError::duplicate(field, &volume["name"]));
        }
    }
    if items(&spec["containers"]).is_empty() {
        faults.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names = HashSet::new();
    for list in ["initContainers", "containers"] {
        for (at, one) in items(&spec[list]).iter().enumerate() {
            let path = format!("{path}.{list}[{at}]");
            if !text(&one["name"]).is_empty() && !names.insert(text(&one["name"])) {
                faults.push(FieldError::duplicate(format!("{path}.name"), &one["name"]));
            }
            container(one, &path, &volumes, faults);
        }
    }
    one_of(
        &spec["restartPolicy"],
        format!("{path}.restartPolicy"),
        &["Always", "OnFailure", "Never"],
        faults,
    );
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(&spec["dnsPolicy"], format!("{path}.dnsPolicy"), &policies, faults);
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|grace| grace < 0) {
        let field = format!("{path}.terminationGracePeriodSeconds");
        let detail = "must be greater than or equal to 0";
        faults.push(FieldError::invalid(field, &spec["terminationGracePeriodSeconds"], detail));
    }
    for (at, toleration) in items(&spec["tolerations"]).iter().enumerate() {
        let path = format!("{path}.tolerations[{at}]");
        one_of(&toleration["operator"], format!("{path}.operator"), &["Equal", "Exists"], faults);
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        one_of(&toleration["effect"], format!("{path}.effect"), &effects, faults);
        if text(&toleration["key"]).is_empty() && toleration["operator"] != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            faults.push(FieldError::invalid(format!("{path}.operator"), &toleration["operator"], detail));
        }
    }
}

fn label(value: &Value, path: &str, faults: &mut Vec<FieldError>) {
    match text(value) {
        "" => faults.push(FieldError::required(path, "")),
        name if is_dns1123_label(name) => {}
        _ => {
            let detail = "must be a lowercase RFC 1123 label: at most 63 lower-case letters, digits and '-'";
            faults.push(FieldError::invalid(path, value, detail));
        }
    }
}

fn container(container: &Value, path: &str, volumes: &HashSet<&str>, faults: &mut Vec<FieldError>) {
    label(&container["name"], &format!("{path}.name"), faults);
    let image = text(&container["image"]);
    if image.trim().is_empty() {
        faults.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        faults.push(FieldError::invalid(format!("{path}.image"), &container["image"], detail));
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(&container["imagePullPolicy"], format!("{path}.imagePullPolicy"), &policies, faults);
    for (at, port) in items(&container["ports"]).iter().enumerate() {
        let path = format!("{path}.ports[{at}]");
        port_number(&port["containerPort"], &format!("{path}.containerPort"), true, faults);
        port_number(&port["hostPort"], &format!("{path}.hostPort"), false, faults);
        one_of(&port["protocol"], format!("{path}.protocol"), &["SCTP", "TCP", "UDP"], faults);
    }
    for (at, env) in items(&container["env"]).iter().enumerate() {
        if text(&env["name"]).is_empty() {
            faults.push(FieldError::required(format!("{path}.env[{at}].name"), ""));
        }
        if !text(&env["value"]).is_empty() && env["valueFrom"].is_object() {
            let detail = "may not be specified when `value` is not empty";
            faults.push(FieldError::invalid(format!("{path}.env[{at}].valueFrom"), &json!(""), detail));
        }
    }
    let mut paths = HashSet::new();
    for (at, mount) in items(&container["volumeMounts"]).iter().enumerate() {
        let path = format!("{path}.volumeMounts[{at}]");
        if text(&mount["name"]).is_empty() {
            faults.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(text(&mount["name"])) {
            faults.push(FieldError::not_found(format!("{path}.name"), &mount["name"]));
        }
        if text(&mount["mountPath"]).is_empty() {
            faults.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if !paths.insert(text(&mount["mountPath"])) {
            faults.push(FieldError::invalid(
                format!("{path}.mountPath"),
                &mount["mountPath"],
                "must be unique",
            ));
        }
    }
}

/// A port, 1 to 65535.
pub(super) fn port_number(value: &Value, path: &str, must: bool, faults: &mut Vec<FieldError>) {
    match value.as_i64() {
        None | Some(0) if must => faults.push(FieldError::required(path, "")),
        None | Some(0..=65_535) => {}
        Some(_) => faults.push(FieldError::invalid(path, value, "must be between 1 and 65535, inclusive")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut faults = Vec::new();
        check(&spec, "spec", &mut faults);
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_needs_containers_with_name_and_image() {
        assert_eq!(faults(json!({})), ["spec.containers: Required value"]);
        assert_eq!(
            faults(json!({"containers": [{"name": "a"}]})),
            ["spec.containers[0].image: Required value"]
        );
        assert_eq!(
            faults(json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]})),
            [r#"spec.containers[1].name: Duplicate value: "a""#]
        );
        assert!(faults(json!({"containers": [{"name": "a", "image": "x"}]})).is_empty());
    }

    #[test]
    fn mounts_name_volumes_that_are_there() {
        let spec = json!({"containers": [{"name": "a", "image": "x",
            "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/v"}]}], "volumes": [{"name": "v"}]});
        assert_eq!(
            faults(spec),
            [
                r#"spec.containers[0].volumeMounts[1].name: Not found: "w""#,
                r#"spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/v": must be unique"#
            ]
        );
    }

    #[test]
    fn words_and_ports_are_checked() {
        let spec = json!({"restartPolicy": "Sometimes", "containers": [{"name": "a", "image": "x",
            "ports": [{"containerPort": 70000, "protocol": "tcp"}]}]});
        assert_eq!(faults(spec).len(), 3);
    }
}
