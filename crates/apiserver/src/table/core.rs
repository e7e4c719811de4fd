//! Rows of nodes, namespaces, services and the other kinds around pods.

use super::format::{
    NONE, UNKNOWN, age, at_most_three, condition, count, items, joined, labels, name, selector, since, text,
    text_or,
};
use super::{Cells, Head, number, shown, wide};
use jiff::Timestamp;
use serde_json::Value;

const EVENT: &[Head] = const {
    &[
        shown("Last Seen"),
        shown("Type"),
        shown("Reason"),
        shown("Object"),
        wide("Subobject"),
        wide("Source"),
        shown("Message"),
        wide("First Seen"),
        wide("Count"),
        wide("Name"),
    ]
};

pub(super) fn printer(group: &str, resource: &str) -> Option<(&'static [Head], Cells)> {
    Some(match (group, resource) {
        ("", "nodes") => (
            const {
                &[
                    shown("Name"),
                    shown("Status"),
                    shown("Roles"),
                    shown("Age"),
                    shown("Version"),
                    wide("Internal-IP"),
                    wide("External-IP"),
                    wide("OS-Image"),
                    wide("Kernel-Version"),
                    wide("Container-Runtime"),
                ]
            },
            node,
        ),
        ("", "namespaces") => (const { &[shown("Name"), shown("Status"), shown("Age")] }, namespace),
        ("", "services") => (
            const {
                &[
                    shown("Name"),
                    shown("Type"),
                    shown("Cluster-IP"),
                    shown("External-IP"),
                    shown("Port(s)"),
                    shown("Age"),
                    wide("Selector"),
                ]
            },
            service,
        ),
        ("", "endpoints") => (const { &[shown("Name"), shown("Endpoints"), shown("Age")] }, endpoints),
        ("discovery.k8s.io", "endpointslices") => (
            const { &[shown("Name"), shown("AddressType"), shown("Ports"), shown("Endpoints"), shown("Age")] },
            endpoint_slice,
        ),
        ("", "configmaps") => (const { &[shown("Name"), number("Data"), shown("Age")] }, config_map),
        ("", "secrets") => (const { &[shown("Name"), shown("Type"), number("Data"), shown("Age")] }, secret),
        ("", "serviceaccounts") => {
            (const { &[shown("Name"), number("Secrets"), shown("Age")] }, service_account)
        }
        ("" | "events.k8s.io", "events") => (EVENT, event),
        ("", "resourcequotas") => {
            (const { &[shown("Name"), shown("Age"), shown("Request"), shown("Limit")] }, quota)
        }
        ("coordination.k8s.io", "leases") => {
            (const { &[shown("Name"), shown("Holder"), shown("Age")] }, lease)
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => (
            const {
                &[
                    shown("Name"),
                    shown("Role"),
                    shown("Age"),
                    wide("Users"),
                    wide("Groups"),
                    wide("ServiceAccounts"),
                ]
            },
            role_binding,
        ),
        ("apiregistration.k8s.io", "apiservices") => {
            (const { &[shown("Name"), shown("Service"), shown("Available"), shown("Age")] }, api_service)
        }
        ("networking.k8s.io", "networkpolicies") => {
            (const { &[shown("Name"), shown("Pod-Selector"), shown("Age")] }, network_policy)
        }
        ("networking.k8s.io", "ingresses") => (
            const {
                &[
                    shown("Name"),
                    shown("Class"),
                    shown("Hosts"),
                    shown("Address"),
                    shown("Ports"),
                    shown("Age"),
                ]
            },
            ingress,
        ),
        ("networking.k8s.io", "ingressclasses") => (
            const { &[shown("Name"), shown("Controller"), shown("Parameters"), shown("Age")] },
            ingress_class,
        ),
        ("scheduling.k8s.io", "priorityclasses") => (
            const { &[shown("Name"), number("Value"), shown("Global-Default"), shown("Age")] },
            priority_class,
        ),
        ("certificates.k8s.io", "certificatesigningrequests") => (
            const {
                &[
                    shown("Name"),
                    shown("Age"),
                    shown("SignerName"),
                    shown("Requestor"),
                    shown("RequestedDuration"),
                    shown("Condition"),
                ]
            },
            signing_request,
        ),
        (
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations" | "mutatingwebhookconfigurations",
        ) => (const { &[shown("Name"), number("Webhooks"), shown("Age")] }, webhooks),
        _ => return None,
    })
}

fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut status = match condition(object, "Ready") {
        Some(ready) if ready["status"] == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then(|| text(value)),
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |wanted: &str| {
        let found = items(&object["status"]["addresses"]).iter().find(|one| one["type"] == wanted);
        found.map_or_else(|| NONE.into(), |one| text_or(&one["address"], NONE))
    };
    let info = &object["status"]["nodeInfo"];
    vec![
        name(object),
        status.into(),
        joined(roles, NONE).into(),
        age(object, now),
        text(&info["kubeletVersion"]).into(),
        address("InternalIP"),
        address("ExternalIP"),
        text_or(&info["osImage"], UNKNOWN),
        text_or(&info["kernelVersion"], UNKNOWN),
        text_or(&info["containerRuntimeVersion"], UNKNOWN),
    ]
}

fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(&object["status"]["phase"]).into(), age(object, now)]
}

fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let kind = match text(&spec["type"]) {
        "" => "ClusterIP",
        kind => kind,
    };
    let external_ips = items(&spec["externalIPs"]).iter().map(text);
    let external = match kind {
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        "LoadBalancer" => {
            let ingress = items(&object["status"]["loadBalancer"]["ingress"]);
            let given = ingress.iter().map(|one| match text(&one["ip"]) {
                "" => text(&one["hostname"]),
                ip => ip,
            });
            joined(given.chain(external_ips), "<pending>")
        }
        _ => joined(external_ips, NONE),
    };
    let ports: Vec<String> = items(&spec["ports"])
        .iter()
        .map(|port| {
            let protocol = match text(&port["protocol"]) {
                "" => "TCP",
                protocol => protocol,
            };
            match count(&port["nodePort"]) {
                0 => format!("{}/{protocol}", count(&port["port"])),
                node_port => format!("{}:{node_port}/{protocol}", count(&port["port"])),
            }
        })
        .collect();
    vec![
        name(object),
        kind.into(),
        text_or(&spec["clusterIP"], NONE),
        external.into(),
        joined(ports.iter().map(String::as_str), NONE).into(),
        age(object, now),
        labels(&spec["selector"]).into(),
    ]
}

fn host_port(address: &str, port: i64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in items(&object["subsets"]) {
        let addresses = items(&subset["addresses"]).iter().map(|one| text(&one["ip"]));
        match items(&subset["ports"]) {
            [] => all.extend(addresses.map(str::to_owned)),
            ports => {
                for port in ports {
                    let addresses = items(&subset["addresses"]).iter().map(|one| text(&one["ip"]));
                    all.extend(addresses.map(|address| host_port(address, count(&port["port"]))));
                }
            }
        }
    }
    vec![name(object), at_most_three(&all).into(), age(object, now)]
}

fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = items(&object["ports"])
        .iter()
        .map(|port| port["port"].as_i64().map_or_else(|| "*".to_owned(), |port| port.to_string()))
        .collect();
    let addresses: Vec<String> = items(&object["endpoints"])
        .iter()
        .flat_map(|endpoint| items(&endpoint["addresses"]))
        .map(|address| text(address).to_owned())
        .collect();
    let unset = |all: &[String]| if all.is_empty() { "<unset>".to_owned() } else { at_most_three(all) };
    vec![
        name(object),
        text(&object["addressType"]).into(),
        unset(&ports).into(),
        unset(&addresses).into(),
        age(object, now),
    ]
}

fn keys(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), (keys(&object["data"]) + keys(&object["binaryData"])).into(), age(object, now)]
}

fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(&object["type"]).into(), keys(&object["data"]).into(), age(object, now)]
}

fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), items(&object["secrets"]).len().into(), age(object, now)]
}

fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    // Both groups of events are in one store, so either spelling may be found.
    let either = |one: &str, other: &str| match &object[one] {
        Value::Null => &object[other],
        value => value,
    };
    let first_of = |values: &[&Value]| {
        values
            .iter()
            .find(|value| value.is_string())
            .map_or_else(|| UNKNOWN.to_owned(), |one| since(one, now))
    };
    let first = either("firstTimestamp", "deprecatedFirstTimestamp");
    let last = either("lastTimestamp", "deprecatedLastTimestamp");
    let first_seen = first_of(&[first, &object["eventTime"]]);
    let last_seen = match first_of(&[&object["series"]["lastObservedTime"], last]) {
        none if none == UNKNOWN => first_seen.clone(),
        seen => seen,
    };
    let source = either("source", "deprecatedSource");
    let component = match text(&source["component"]) {
        "" => text(either("reportingComponent", "reportingController")),
        component => component,
    };
    let source = match text(&source["host"]) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    let about = either("involvedObject", "regarding");
    let count = match count(&object["series"]["count"]) {
        0 => count(either("count", "deprecatedCount")).max(1),
        series => series,
    };
    vec![
        last_seen.into(),
        text(&object["type"]).into(),
        text(&object["reason"]).into(),
        format!("{}/{}", text(&about["kind"]).to_lowercase(), text(&about["name"])).into(),
        text(&about["fieldPath"]).into(),
        source.into(),
        text(either("message", "note")).trim().into(),
        first_seen.into(),
        count.to_string().into(),
        name(object),
    ]
}

fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in status["hard"].as_object().into_iter().flatten() {
        let used = &status["used"][resource.as_str()];
        let used = if text(used).is_empty() { "0" } else { text(used) };
        let shown = format!("{resource}: {used}/{}", text(hard));
        if resource.starts_with("limits.") { limits.push(shown) } else { requests.push(shown) }
    }
    vec![name(object), age(object, now), requests.join(", ").into(), limits.join(", ").into()]
}

fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(&object["spec"]["holderIdentity"]).into(), age(object, now)]
}

fn role_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = &object["roleRef"];
    let subjects = |kind: &str| -> String {
        let names: Vec<String> = items(&object["subjects"])
            .iter()
            .filter(|subject| subject["kind"] == kind)
            .map(|subject| match (kind, text(&subject["namespace"])) {
                ("ServiceAccount", namespace) => format!("{namespace}/{}", text(&subject["name"])),
                _ => text(&subject["name"]).to_owned(),
            })
            .collect();
        names.join(", ")
    };
    vec![
        name(object),
        format!("{}/{}", text(&role["kind"]), text(&role["name"])).into(),
        age(object, now),
        subjects("User").into(),
        subjects("Group").into(),
        subjects("ServiceAccount").into(),
    ]
}

fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = &object["spec"]["service"];
    let service = match service.is_object() {
        true => format!("{}/{}", text(&service["namespace"]), text(&service["name"])),
        false => "Local".to_owned(),
    };
    let available = match condition(object, "Available") {
        Some(one) if one["status"] == "True" => "True".to_owned(),
        Some(one) => format!("{} ({})", text(&one["status"]), text(&one["reason"])),
        None => "Unknown".to_owned(),
    };
    vec![name(object), service.into(), available.into(), age(object, now)]
}

fn network_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), selector(&object["spec"]["podSelector"]).into(), age(object, now)]
}

fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let class = match text(&spec["ingressClassName"]) {
        "" => text_or(&object["metadata"]["annotations"]["kubernetes.io/ingress.class"], NONE),
        class => class.into(),
    };
    let ports = if items(&spec["tls"]).is_empty() { "80" } else { "80, 443" };
    let addresses =
        items(&object["status"]["loadBalancer"]["ingress"]).iter().map(|one| match text(&one["ip"]) {
            "" => text(&one["hostname"]),
            ip => ip,
        });
    vec![
        name(object),
        class,
        joined(items(&spec["rules"]).iter().map(|rule| text(&rule["host"])), "*").into(),
        joined(addresses, "").into(),
        ports.into(),
        age(object, now),
    ]
}

fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = &object["spec"]["parameters"];
    let parameters = match (text(&parameters["kind"]), text(&parameters["apiGroup"])) {
        ("", _) => NONE.to_owned(),
        (kind, "") => format!("{kind}/{}", text(&parameters["name"])),
        (kind, group) => format!("{kind}.{group}/{}", text(&parameters["name"])),
    };
    vec![name(object), text(&object["spec"]["controller"]).into(), parameters.into(), age(object, now)]
}

fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        count(&object["value"]).into(),
        (object["globalDefault"] == true).into(),
        age(object, now),
    ]
}

fn signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let requested = spec["expirationSeconds"].as_i64().map_or_else(|| NONE.to_owned(), crate::age::human);
    let mut state = match condition(object, "Denied") {
        Some(_) => "Denied",
        None if condition(object, "Approved").is_some() => "Approved",
        None => "Pending",
    }
    .to_owned();
    if condition(object, "Failed").is_some() {
        state.push_str(",Failed");
    }
    if !text(&object["status"]["certificate"]).is_empty() {
        state.push_str(",Issued");
    }
    vec![
        name(object),
        age(object, now),
        text_or(&spec["signerName"], NONE),
        text(&spec["username"]).into(),
        requested.into(),
        state.into(),
    ]
}

fn webhooks(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), items(&object["webhooks"]).len().into(), age(object, now)]
}

#[cfg(test)]
mod tests {
    use crate::table::format::testing::{cell, row_of};
    use serde_json::{Value, json};

    #[test]
    fn a_node_shows_its_state_and_roles() {
        let mut node = json!({
            "metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "agent"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "172.18.0.3"}],
                "nodeInfo": {"kubeletVersion": "v1.28.0", "osImage": "Debian"}},
        });
        let cells: Vec<Value> = row_of("", "nodes", &node).into_iter().map(|(_, cell)| cell).collect();
        assert_eq!(
            Value::from(cells),
            json!([
                "n",
                "Ready",
                "agent,control-plane",
                "60m",
                "v1.28.0",
                "172.18.0.3",
                "<none>",
                "Debian",
                "<unknown>",
                "<unknown>"
            ])
        );
        node["spec"] = json!({"unschedulable": true});
        node["status"]["conditions"][0]["status"] = "Unknown".into();
        assert_eq!(cell("", "nodes", &node, "Status"), "NotReady,SchedulingDisabled");
        assert_eq!(cell("", "nodes", &json!({}), "Status"), "Unknown");
    }

    #[test]
    fn a_service_shows_its_ports() {
        let service = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [
            {"port": 53, "protocol": "UDP"}, {"port": 80, "nodePort": 30080, "protocol": "TCP"}]}});
        assert_eq!(cell("", "services", &service, "Port(s)"), "53/UDP,80:30080/TCP");
        assert_eq!(cell("", "services", &service, "External-IP"), "<none>");
        let balanced = json!({"spec": {"type": "LoadBalancer"}});
        assert_eq!(cell("", "services", &balanced, "External-IP"), "<pending>");
    }

    #[test]
    fn endpoints_beyond_the_third_are_counted() {
        let addresses: Vec<Value> = (1..=4).map(|at| json!({"ip": format!("10.0.0.{at}")})).collect();
        let endpoints = json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        assert_eq!(
            cell("", "endpoints", &endpoints, "Endpoints"),
            "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 1 more..."
        );
        assert_eq!(cell("", "endpoints", &json!({}), "Endpoints"), "<none>");
    }

    #[test]
    fn an_event_is_read_in_both_spellings() {
        let old = json!({"lastTimestamp": "2026-01-01T00:59:30Z", "firstTimestamp": "2026-01-01T00:50:00Z", "count": 3,
            "involvedObject": {"kind": "Pod", "name": "p"}, "message": "x ", "source": {"component": "kubelet", "host": "n"}});
        assert_eq!(cell("", "events", &old, "Last Seen"), "30s");
        assert_eq!(cell("", "events", &old, "Object"), "pod/p");
        assert_eq!(cell("", "events", &old, "Source"), "kubelet, n");
        let new = json!({"eventTime": "2026-01-01T00:59:00.000000Z", "regarding": {"kind": "Node", "name": "n"}, "note": "y"});
        assert_eq!(cell("events.k8s.io", "events", &new, "Last Seen"), "60s");
        assert_eq!(cell("events.k8s.io", "events", &new, "Message"), "y");
    }

    #[test]
    fn an_api_service_that_is_not_available_says_why() {
        let service = json!({"spec": {"service": {"namespace": "a", "name": "b"}},
            "status": {"conditions": [{"type": "Available", "status": "False", "reason": "MissingEndpoints"}]}});
        assert_eq!(cell("apiregistration.k8s.io", "apiservices", &service, "Service"), "a/b");
        assert_eq!(
            cell("apiregistration.k8s.io", "apiservices", &service, "Available"),
            "False (MissingEndpoints)"
        );
        assert_eq!(cell("apiregistration.k8s.io", "apiservices", &json!({}), "Service"), "Local");
    }
}
