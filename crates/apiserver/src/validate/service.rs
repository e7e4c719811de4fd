//! Rules of services.

use super::pod::port_number;
use crate::error::FieldError;
use serde_json::{Value, json};
use std::collections::HashSet;

pub(super) fn check(service: &Value, faults: &mut Vec<FieldError>) {
    let spec = &service["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    let kind = text(&spec["type"]);
    if !kind.is_empty() && !kinds.contains(&kind.as_str()) {
        faults.push(FieldError::not_supported("spec.type", &spec["type"], &kinds));
    }
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    if ports.is_empty() && kind != "ExternalName" && spec["clusterIP"] != "None" {
        faults.push(FieldError::required("spec.ports", ""));
    }
    if kind == "ExternalName" && text(&spec["externalName"]).is_empty() {
        faults.push(FieldError::required("spec.externalName", ""));
    }
    let affinities = ["ClientIP", "None"];
    if !affinities.contains(&text(&spec["sessionAffinity"]).as_str()) && spec["sessionAffinity"].is_string() {
        faults.push(FieldError::not_supported("spec.sessionAffinity", &spec["sessionAffinity"], &affinities));
    }
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (at, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        port_number(&port["port"], &format!("{path}.port"), true, faults);
        if port["targetPort"].is_i64() {
            port_number(&port["targetPort"], &format!("{path}.targetPort"), true, faults);
        }
        let name = text(&port["name"]);
        if name.is_empty() && ports.len() > 1 {
            faults.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.is_empty() && !names.insert(name) {
            faults.push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
        }
        let protocol = text(&port["protocol"]);
        let protocols = ["SCTP", "TCP", "UDP"];
        if !protocol.is_empty() && !protocols.contains(&protocol.as_str()) {
            faults.push(FieldError::not_supported(format!("{path}.protocol"), &port["protocol"], &protocols));
        }
        if !numbers.insert((protocol, port["port"].as_i64())) {
            faults.push(FieldError::duplicate(
                path,
                &json!({"port": port["port"], "protocol": port["protocol"]}),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut faults = Vec::new();
        check(&json!({"spec": spec}), &mut faults);
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn several_ports_need_names() {
        assert!(faults(json!({"ports": [{"port": 80}]})).is_empty());
        assert_eq!(
            faults(json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]})),
            ["spec.ports[0].name: Required value"]
        );
    }

    #[test]
    fn only_headless_services_go_without_ports() {
        assert_eq!(faults(json!({"type": "ClusterIP"})), ["spec.ports: Required value"]);
        assert!(faults(json!({"clusterIP": "None"})).is_empty());
        assert_eq!(faults(json!({"type": "ExternalName"})), ["spec.externalName: Required value"]);
        assert_eq!(faults(json!({"type": "Odd", "ports": [{"port": 1}]})).len(), 1);
    }
}
