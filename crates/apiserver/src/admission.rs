//! What single kinds decide when their objects are written: namespaces, pods, services, definitions.

use crate::addresses::ports;
use crate::custom;
use crate::error::{FieldError, Status};
use crate::identity::User;
use crate::node_restriction::is_mirror;
use crate::objects::{self, meta};
use crate::request::WriteOptions;
use crate::resource::Resource;
use crate::server::Server;
use crate::write::{Aspect, replace};
use serde_json::{Value, json};
use storage::Write;

/// Addresses and ports that were taken for an object which is not stored yet.
#[derive(Debug, Default)]
pub(crate) struct Held(Option<Value>);

impl Held {
    /// Gives them back, as the object will not be.
    pub(crate) fn give_back(self, server: &Server) {
        if let Some(service) = self.0 {
            server.addresses.release(&service);
        }
    }
}

/// Kinds whose status may be given at creation although it is a subresource.
pub(crate) fn keeps_status_at_creation(resource: &Resource) -> bool {
    resource.is("", "nodes") || resource.is("apiregistration.k8s.io", "apiservices")
}

/// Whether something besides finalizers keeps a terminating object.
pub(crate) fn is_held(resource: &Resource, object: &Value) -> bool {
    resource.is("", "namespaces")
        && object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

/// Completes an object that is to be created.
pub(crate) fn on_create(
    server: &Server,
    resource: &Resource,
    object: &mut Value,
    user: &User,
    options: &WriteOptions,
) -> Result<Held, Status> {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "namespaces") => {
            let name = meta(object, "name").to_owned();
            let labels = &mut object["metadata"]["labels"];
            if !labels.is_object() {
                *labels = json!({});
            }
            labels["kubernetes.io/metadata.name"] = name.into();
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        }
        ("", "pods") => pod(server, object)?,
        ("", "services") => return service(server, object),
        ("", "secrets") => fold_string_data(object),
        ("apiextensions.k8s.io", "customresourcedefinitions") => definition(server, object, options)?,
        ("certificates.k8s.io", _) => object["spec"]["username"] = user.name.clone().into(),
        ("scheduling.k8s.io", "priorityclasses") => {
            replace(object, "preemptionPolicy", &json!("PreemptLowerPriority"));
        }
        _ => {}
    }
    Ok(Held::default())
}

/// Judges and completes an object that is to be changed.
pub(crate) fn on_update(
    server: &Server,
    resource: &Resource,
    aspect: Aspect,
    current: &Value,
    new: &mut Value,
) -> Result<Held, Status> {
    match (resource.group.as_str(), resource.plural.as_str(), aspect) {
        ("", "namespaces", Aspect::Main) => {
            replace(&mut new["spec"], "finalizers", &current["spec"]["finalizers"]);
            if !new["spec"].is_object() {
                new["spec"] = current["spec"].clone();
            }
        }
        ("", "secrets", _) => fold_string_data(new),
        ("", "services", Aspect::Main) => return service_update(server, current, new),
        ("", "pods", Aspect::Main) => pod_update(current, new)?,
        ("apiextensions.k8s.io", "customresourcedefinitions", Aspect::Main) => {
            custom::complete(new);
            let name = meta(new, "name").to_owned();
            let errors = custom::check(new);
            if !errors.is_empty() {
                return Err(Status::invalid(&resource.group, &resource.kind, &name, &errors));
            }
            let others = server.other_definitions(&name);
            let clash = custom::name_clash(new, others.iter());
            custom::set_status(new, clash.as_deref());
        }
        _ => {}
    }
    Ok(Held::default())
}

/// Writes that belong to the creation of an object and are made with it.
pub(crate) fn along_with(server: &Server, resource: &Resource, object: &Value) -> Vec<Write> {
    if !resource.is("", "namespaces") {
        return Vec::new();
    }
    furnishings(server, meta(object, "name"))
}

/// What every namespace has: an account for its pods, and the certificate by which they know the API server.
pub(crate) fn furnishings(server: &Server, namespace: &str) -> Vec<Write> {
    let metadata = |name: &str| {
        json!({
            "name": name, "namespace": namespace, "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": objects::now(),
        })
    };
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": metadata("default")});
    let mut authority = json!({
        "kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata("kube-root-ca.crt"),
        "data": {"ca.crt": server.authority},
    });
    authority["metadata"]["annotations"] = json!({
        "kubernetes.io/description": "Certificate of the authority that signs for the API server of this cluster.",
    });
    vec![
        Write::Put(format!("/core/serviceaccounts/{namespace}/default"), objects::encode(&account)),
        Write::Put(format!("/core/configmaps/{namespace}/kube-root-ca.crt"), objects::encode(&authority)),
    ]
}

/// What follows from a stored object at once.
pub(crate) fn after_write(server: &Server, resource: &Resource, object: &Value) {
    if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
        server.refresh_definition(meta(object, "name"));
    }
    if resource.group == "rbac.authorization.k8s.io" {
        server.forget_policy();
    }
}

/// What follows at once from a stored change of an object.
pub(crate) fn after_change(server: &Server, resource: &Resource, old: &Value, new: &Value) {
    if resource.is("", "services") {
        let kept: Vec<u16> = ports(new).collect();
        let dropped: Vec<Value> =
            ports(old).filter(|port| !kept.contains(port)).map(|port| json!({"nodePort": port})).collect();
        let mut freed = json!({"spec": {"ports": dropped}});
        if old["spec"]["clusterIP"] != new["spec"]["clusterIP"] {
            freed["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        }
        server.addresses.release(&freed);
    }
    after_write(server, resource, new);
}

/// What comes before an object is removed: whoever is told that a definition is gone must not find its kinds served.
///
/// If the removal does not happen, [`after_write`] takes it back.
pub(crate) fn before_removal(server: &Server, resource: &Resource, object: &Value) {
    if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
        server.withdraw_definition(meta(object, "name"));
    }
}

/// What follows from a removed object at once.
pub(crate) fn after_removal(server: &Server, resource: &Resource, object: &Value) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "services") => server.addresses.release(object),
        ("rbac.authorization.k8s.io", _) => server.forget_policy(),
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            server.refresh_definition(meta(object, "name"));
        }
        _ => {}
    }
}

fn fold_string_data(secret: &mut Value) {
    use base64::Engine;
    let Some(plain) = secret.as_object_mut().and_then(|map| map.remove("stringData")) else { return };
    if !secret["data"].is_object() {
        secret["data"] = json!({});
    }
    for (key, value) in plain.as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        secret["data"][key] = base64::engine::general_purpose::STANDARD.encode(text).into();
    }
}

fn definition(server: &Server, object: &mut Value, options: &WriteOptions) -> Result<(), Status> {
    custom::complete(object);
    let name = meta(object, "name").to_owned();
    let errors = custom::check(object);
    if !errors.is_empty() {
        return Err(Status::invalid("apiextensions.k8s.io", "CustomResourceDefinition", &name, &errors));
    }
    if object["spec"]["group"].as_str().is_some_and(|group| group.ends_with(".k8s.io"))
        && object["metadata"]["annotations"]["api-approved.kubernetes.io"].is_null()
    {
        options.warn(format!("{name}: groups under k8s.io belong to Kubernetes itself"));
    }
    for rule in custom::unjudged_rules(object) {
        options.warn(format!(
            "{name}: this validation rule is not judged, it needs more than is served: {rule}"
        ));
    }
    let others = server.other_definitions(&name);
    let clash = custom::name_clash(object, others.iter());
    custom::set_status(object, clash.as_deref());
    let metadata = objects::metadata_mut(object);
    let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|one| one == custom::CLEANUP)
    {
        list.push(custom::CLEANUP.into());
    }
    Ok(())
}

/// (class, priority) of the classes that are always there.
pub(crate) const PRIORITY_CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

fn pod(server: &Server, pod: &mut Value) -> Result<(), Status> {
    let namespace = meta(pod, "namespace").to_owned();
    let name = meta(pod, "name").to_owned();
    if pod["spec"]["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
        pod["spec"]["serviceAccountName"] = "default".into();
    }
    let account = pod["spec"]["serviceAccountName"].clone();
    let account_name = account.as_str().unwrap_or_default();
    if !is_mirror(pod) && self_missing(server, &namespace, account_name) {
        let why = format!(
            "error looking up service account {namespace}/{account_name}: serviceaccount {account_name:?} not found"
        );
        return Err(Status::forbidden("", "pods", &name, &why));
    }
    pod["spec"]["serviceAccount"] = account;
    priority(server, pod, &name)?;
    tolerations(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": quality(pod)});
    Ok(())
}

fn self_missing(server: &Server, namespace: &str, account: &str) -> bool {
    server.store.get(&format!("/core/serviceaccounts/{namespace}/{account}")).is_none()
}

fn priority(server: &Server, pod: &mut Value, name: &str) -> Result<(), Status> {
    let class = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let value = if class.is_empty() {
        Some(0)
    } else if let Some((_, value)) = PRIORITY_CLASSES.iter().find(|(known, _)| *known == class) {
        Some(*value)
    } else {
        let entry = server.store.get(&format!("/scheduling.k8s.io/priorityclasses/{class}"));
        entry.and_then(|entry| objects::decode(&entry)["value"].as_i64())
    };
    let Some(value) = value else {
        let why = format!("no PriorityClass with name {class} was found");
        return Err(Status::forbidden("", "pods", name, &why));
    };
    pod["spec"]["priority"] = value.into();
    if pod["spec"]["preemptionPolicy"].is_null() {
        pod["spec"]["preemptionPolicy"] = "PreemptLowerPriority".into();
    }
    Ok(())
}

/// Pods that say nothing about it stay five minutes on a node that is not ready or not reachable.
fn tolerations(pod: &mut Value) {
    let tolerations = &mut pod["spec"]["tolerations"];
    if !tolerations.is_array() {
        *tolerations = json!([]);
    }
    let Some(list) = tolerations.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list.iter().any(|one| {
            let one_key = one["key"].as_str().unwrap_or_default();
            let effect = one["effect"].as_str().unwrap_or_default();
            (one_key == key || (one_key.is_empty() && one["operator"] == "Exists"))
                && matches!(effect, "" | "NoExecute")
        });
        if !tolerated {
            list.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
}

/// Quality of service, from requests and limits of processor and memory.
fn quality(pod: &Value) -> &'static str {
    let containers = ["containers", "initContainers"];
    let all = containers.iter().flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
    let mut any = false;
    let mut guaranteed = true;
    for container in all {
        let resources = &container["resources"];
        for what in ["cpu", "memory"] {
            let (limit, request) = (&resources["limits"][what], &resources["requests"][what]);
            any |= !limit.is_null() || !request.is_null();
            guaranteed &= !limit.is_null() && (request.is_null() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn pod_update(current: &Value, new: &mut Value) -> Result<(), Status> {
    let name = meta(current, "name").to_owned();
    // What may change is made equal in a copy; whatever still differs may not.
    let mut compared = new["spec"].clone();
    let old = &current["spec"];
    for list in ["containers", "initContainers"] {
        if let (Some(new), Some(old)) = (compared[list].as_array_mut(), old[list].as_array()) {
            for (new, old) in new.iter_mut().zip(old) {
                replace(new, "image", &old["image"]);
            }
        }
    }
    for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds"] {
        replace(&mut compared, field, &old[field]);
    }
    let known = old["tolerations"].as_array().cloned().unwrap_or_default();
    let kept =
        known.iter().all(|one| new["spec"]["tolerations"].as_array().is_some_and(|now| now.contains(one)));
    if kept {
        replace(&mut compared, "tolerations", &old["tolerations"]);
    }
    if without_nulls(&compared) != without_nulls(old) {
        let detail = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        return Err(Status::invalid("", "Pod", &name, &[FieldError::forbidden("spec", detail)]));
    }
    Ok(())
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect(),
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn service(server: &Server, service: &mut Value) -> Result<Held, Status> {
    let name = meta(service, "name").to_owned();
    if service["spec"]["type"].is_null() {
        service["spec"]["type"] = "ClusterIP".into();
    }
    let mut held = json!({"spec": {"ports": []}});
    if service["spec"]["type"] != "ExternalName" {
        match service["spec"]["clusterIP"].as_str().unwrap_or_default() {
            "None" => {}
            "" => {
                let free = server.addresses.allocate().ok_or_else(|| {
                    Status::internal(
                        "no address is left for services: delete some, or use a larger service range",
                    )
                })?;
                held["spec"]["clusterIP"] = free.clone().into();
                service["spec"]["clusterIP"] = free.into();
            }
            given => {
                let refused = |why: &str| {
                    let detail = format!("failed to allocate IP {given}: {why}");
                    let error = FieldError::invalid("spec.clusterIPs", &json!([given]), &detail);
                    Err(Status::invalid("", "Service", &name, &[error]))
                };
                if given.parse().is_ok_and(|address| !server.addresses.contains(address)) {
                    return refused("the provided network does not match the current range");
                }
                if !server.addresses.take(given) {
                    return refused("provided IP is already allocated");
                }
                held["spec"]["clusterIP"] = given.into();
            }
        }
        complete_service(service);
    }
    if let Err(status) = node_ports(server, &Value::Null, service, &mut held, &name) {
        server.addresses.release(&held);
        return Err(status);
    }
    Ok(Held(Some(held)))
}

fn complete_service(service: &mut Value) {
    let address = service["spec"]["clusterIP"].clone();
    let spec = &mut service["spec"];
    spec["clusterIPs"] = json!([address]);
    for (field, value) in [("ipFamilies", json!(["IPv4"])), ("ipFamilyPolicy", json!("SingleStack"))] {
        if spec[field].is_null() {
            spec[field] = value;
        }
    }
}

fn service_update(server: &Server, current: &Value, new: &mut Value) -> Result<Held, Status> {
    let name = meta(current, "name").to_owned();
    let old = current["spec"]["clusterIP"].as_str().unwrap_or_default();
    let given = new["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    if new["spec"]["type"].is_null() {
        new["spec"]["type"] = "ClusterIP".into();
    }
    let mut held = json!({"spec": {"ports": []}});
    match (current["spec"]["type"] == "ExternalName", new["spec"]["type"] == "ExternalName") {
        (_, true) => replace(&mut new["spec"], "clusterIP", &Value::Null),
        (true, false) => return service(server, new),
        (false, false) => {
            if !given.is_empty() && given != old {
                let error =
                    FieldError::invalid("spec.clusterIPs[0]", &given.into(), "may not change once set");
                return Err(Status::invalid("", "Service", &name, &[error]));
            }
            new["spec"]["clusterIP"] = old.into();
            complete_service(new);
        }
    }
    if let Err(status) = node_ports(server, current, new, &mut held, &name) {
        server.addresses.release(&held);
        return Err(status);
    }
    Ok(Held(Some(held)))
}

/// Ports that `current`, null for a new service, has too keep their node port, by number and protocol; new ones take one
/// if the type wants it.
fn node_ports(
    server: &Server,
    current: &Value,
    new: &mut Value,
    held: &mut Value,
    name: &str,
) -> Result<(), Status> {
    let known = current["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let wants = matches!(new["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    let own: Vec<u16> = ports(current).collect();
    for (at, port) in new["spec"]["ports"].as_array_mut().into_iter().flatten().enumerate() {
        let given =
            port["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let same =
            known.iter().find(|old| old["port"] == port["port"] && old["protocol"] == port["protocol"]);
        let kept = same.and_then(|old| u16::try_from(old["nodePort"].as_u64()?).ok()).filter(|_| wants);
        let taken = match given.or(kept) {
            Some(number) if own.contains(&number) => {
                replace(port, "nodePort", &number.into());
                continue;
            }
            Some(number) if server.addresses.take_port(number) => number,
            Some(number) => {
                let field = format!("spec.ports[{at}].nodePort");
                let error = FieldError::invalid(field, &number.into(), "provided port is already allocated");
                return Err(Status::invalid("", "Service", name, &[error]));
            }
            None if wants => server
                .addresses
                .allocate_port()
                .ok_or_else(|| Status::internal("no node port is left: delete a service of type NodePort"))?,
            None => continue,
        };
        replace(port, "nodePort", &taken.into());
        if let Some(list) = held["spec"]["ports"].as_array_mut() {
            list.push(json!({"nodePort": taken}));
        }
    }
    Ok(())
}
