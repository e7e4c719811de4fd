//! What the API server fills into built-in kinds: the values that clients and controllers rely on finding.

use serde_json::{Map, Value, json};

/// Fills missing fields of an object of a built-in kind. Kinds without defaults stay as they are.
pub fn apply_defaults(group: &str, kind: &str, object: &mut Value) {
    if !object.is_object() {
        return;
    }
    match (group, kind) {
        ("", "Pod") => pod(object),
        ("", "Service") => service(object),
        ("", "Secret") => put(object, "type", "Opaque"),
        ("", "Endpoints") => endpoints(object),
        ("", "ReplicationController") => replication_controller(object),
        ("", "PodTemplate") => {
            if let Some(spec) = get_mut(object, "template.spec") {
                pod_spec(spec);
            }
        }
        ("", "PersistentVolume") => persistent_volume(object),
        ("", "PersistentVolumeClaim") => {
            put(object, "spec.volumeMode", "Filesystem");
            put(object, "status.phase", "Pending");
        }
        ("apps", "Deployment") => deployment(object),
        ("apps", "ReplicaSet") => {
            put(object, "spec.replicas", 1);
            template(object);
        }
        ("apps", "DaemonSet") => daemon_set(object),
        ("apps", "StatefulSet") => stateful_set(object),
        ("batch", "Job") => job(object),
        ("batch", "CronJob") => cron_job(object),
        ("discovery.k8s.io", "EndpointSlice") => {
            for port in list_mut(object, "ports") {
                put(port, "name", "");
                put(port, "protocol", "TCP");
            }
        }
        ("networking.k8s.io", "NetworkPolicy") => network_policy(object),
        ("networking.k8s.io", "Ingress") => {
            for rule in list_mut(object, "spec.rules") {
                for path in list_mut(rule, "http.paths") {
                    put(path, "pathType", "ImplementationSpecific");
                }
            }
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => role_binding(object),
        ("storage.k8s.io", "StorageClass") => {
            put(object, "reclaimPolicy", "Delete");
            put(object, "volumeBindingMode", "Immediate");
        }
        ("storage.k8s.io", "CSIDriver") => csi_driver(object),
        ("scheduling.k8s.io", "PriorityClass") => put(object, "preemptionPolicy", "PreemptLowerPriority"),
        ("admissionregistration.k8s.io", _) => {
            for webhook in list_mut(object, "webhooks") {
                put(webhook, "failurePolicy", "Fail");
                put(webhook, "matchPolicy", "Equivalent");
                put(webhook, "timeoutSeconds", 10);
                put(webhook, "namespaceSelector", json!({}));
                put(webhook, "objectSelector", json!({}));
            }
        }
        _ => {}
    }
}

/// Sets the field at a dotted path unless it has a value. Objects on the way are made; anything else in the way stays.
fn put(object: &mut Value, path: &str, value: impl Into<Value>) {
    let (parents, field) = path.rsplit_once('.').unwrap_or(("", path));
    let mut at = object;
    for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
        let Value::Object(map) = at else { return };
        at = map.entry(parent).or_insert_with(|| Value::Object(Map::new()));
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
    }
    let Value::Object(map) = at else { return };
    let field = map.entry(field).or_insert(Value::Null);
    if field.is_null() {
        *field = value.into();
    }
}

/// The value at a dotted path, if it is there.
fn get<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, field| value.get(field)).filter(|value| !value.is_null())
}

fn get_mut<'a>(object: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    path.split('.').try_fold(object, |value, field| value.get_mut(field))
}

/// The items of the list at a dotted path; none if there is no list.
fn list_mut<'a>(object: &'a mut Value, path: &str) -> impl Iterator<Item = &'a mut Value> {
    get_mut(object, path).and_then(Value::as_array_mut).into_iter().flatten()
}

fn template(object: &mut Value) {
    if let Some(spec) = get_mut(object, "spec.template.spec") {
        pod_spec(spec);
    }
}

fn pod(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec") {
        put(spec, "enableServiceLinks", true);
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    put(spec, "restartPolicy", "Always");
    put(spec, "dnsPolicy", "ClusterFirst");
    put(spec, "schedulerName", "default-scheduler");
    put(spec, "terminationGracePeriodSeconds", 30);
    put(spec, "securityContext", json!({}));
    // The old name of the field is kept in step, either way round.
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        if let Some(name) = get(spec, from).filter(|name| *name != "").cloned() {
            put(spec, to, name);
        }
    }
    let host_network = spec["hostNetwork"] == true;
    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        for one in list_mut(spec, kind) {
            container(one, host_network);
        }
    }
    for one in list_mut(spec, "volumes") {
        volume(one);
    }
    for constraint in list_mut(spec, "topologySpreadConstraints") {
        put(constraint, "nodeAffinityPolicy", "Honor");
        put(constraint, "nodeTaintsPolicy", "Ignore");
    }
}

fn container(container: &mut Value, host_network: bool) {
    if !container.is_object() {
        return;
    }
    let policy = pull_policy(container["image"].as_str().unwrap_or_default());
    put(container, "imagePullPolicy", policy);
    put(container, "terminationMessagePath", "/dev/termination-log");
    put(container, "terminationMessagePolicy", "File");
    put(container, "resources", json!({}));
    if let Some(limits) = get(container, "resources.limits").and_then(Value::as_object).cloned() {
        for (resource, limit) in limits {
            let requests = &mut container["resources"];
            put(requests, "requests", json!({}));
            if let Some(Value::Object(requests)) = requests.get_mut("requests") {
                requests.entry(resource).or_insert(limit);
            }
        }
    }
    for port in list_mut(container, "ports") {
        put(port, "protocol", "TCP");
        if host_network && let Some(number) = get(port, "containerPort").cloned() {
            put(port, "hostPort", number);
        }
    }
    for env in list_mut(container, "env") {
        if get(env, "valueFrom.fieldRef").is_some() {
            put(env, "valueFrom.fieldRef.apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(name).filter(|probe| probe.is_object()) else { continue };
        for (field, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            put(probe, field, value);
        }
        http_get(probe);
        if get(probe, "grpc").is_some() {
            put(probe, "grpc.service", "");
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = get_mut(container, &format!("lifecycle.{hook}")) {
            http_get(hook);
        }
    }
}

fn http_get(handler: &mut Value) {
    if get(handler, "httpGet").is_some() {
        put(handler, "httpGet.path", "/");
        put(handler, "httpGet.scheme", "HTTP");
    }
}

/// Images that may change under their name are always pulled.
fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or_default();
    if image.contains('@') {
        return "IfNotPresent";
    }
    match name.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn volume(volume: &mut Value) {
    let Some(map) = volume.as_object_mut() else { return };
    if !map.iter().any(|(key, value)| key != "name" && !value.is_null()) {
        map.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if get(volume, source).is_some() {
            put(volume, &format!("{source}.defaultMode"), 0o644);
        }
    }
    if get(volume, "hostPath").is_some() {
        put(volume, "hostPath.type", "");
    }
    for source in list_mut(volume, "projected.sources") {
        if get(source, "serviceAccountToken").is_some() {
            put(source, "serviceAccountToken.expirationSeconds", 3600);
        }
        for item in list_mut(source, "downwardAPI.items") {
            if get(item, "fieldRef").is_some() {
                put(item, "fieldRef.apiVersion", "v1");
            }
        }
    }
    for item in list_mut(volume, "downwardAPI.items") {
        if get(item, "fieldRef").is_some() {
            put(item, "fieldRef.apiVersion", "v1");
        }
    }
}

fn deployment(object: &mut Value) {
    put(object, "spec.replicas", 1);
    put(object, "spec.strategy.type", "RollingUpdate");
    if object["spec"]["strategy"]["type"] == "RollingUpdate" {
        put(object, "spec.strategy.rollingUpdate.maxUnavailable", "25%");
        put(object, "spec.strategy.rollingUpdate.maxSurge", "25%");
    }
    put(object, "spec.revisionHistoryLimit", 10);
    put(object, "spec.progressDeadlineSeconds", 600);
    template(object);
}

fn daemon_set(object: &mut Value) {
    put(object, "spec.updateStrategy.type", "RollingUpdate");
    if object["spec"]["updateStrategy"]["type"] == "RollingUpdate" {
        put(object, "spec.updateStrategy.rollingUpdate.maxUnavailable", 1);
        put(object, "spec.updateStrategy.rollingUpdate.maxSurge", 0);
    }
    put(object, "spec.revisionHistoryLimit", 10);
    template(object);
}

fn stateful_set(object: &mut Value) {
    put(object, "spec.podManagementPolicy", "OrderedReady");
    put(object, "spec.updateStrategy.type", "RollingUpdate");
    if object["spec"]["updateStrategy"]["type"] == "RollingUpdate" {
        put(object, "spec.updateStrategy.rollingUpdate.partition", 0);
    }
    put(object, "spec.persistentVolumeClaimRetentionPolicy.whenDeleted", "Retain");
    put(object, "spec.persistentVolumeClaimRetentionPolicy.whenScaled", "Retain");
    put(object, "spec.replicas", 1);
    put(object, "spec.revisionHistoryLimit", 10);
    template(object);
}

fn job_spec(object: &mut Value) {
    let (completions, parallelism) =
        (get(object, "spec.completions").is_some(), get(object, "spec.parallelism").is_some());
    if !completions && !parallelism {
        put(object, "spec.completions", 1);
    }
    put(object, "spec.parallelism", 1);
    put(object, "spec.backoffLimit", 6);
    put(object, "spec.completionMode", "NonIndexed");
    put(object, "spec.suspend", false);
    template(object);
}

/// A job finds its pods by its own UID, unless it brings a selector.
fn job(object: &mut Value) {
    job_spec(object);
    if object["spec"]["manualSelector"] == true || get(object, "spec.selector").is_some() {
        return;
    }
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (uid, name) = (text("uid"), text("name"));
    if uid.is_empty() {
        return;
    }
    put(object, "spec.selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
    put(object, "spec.template.metadata.labels", json!({}));
    if let Some(Value::Object(labels)) = get_mut(object, "spec.template.metadata.labels") {
        for prefix in ["", "batch.kubernetes.io/"] {
            labels.insert(format!("{prefix}controller-uid"), uid.clone().into());
            labels.insert(format!("{prefix}job-name"), name.clone().into());
        }
    }
}

fn cron_job(object: &mut Value) {
    put(object, "spec.concurrencyPolicy", "Allow");
    put(object, "spec.suspend", false);
    put(object, "spec.successfulJobsHistoryLimit", 3);
    put(object, "spec.failedJobsHistoryLimit", 1);
    if let Some(spec) = get_mut(object, "spec.jobTemplate.spec.template.spec") {
        pod_spec(spec);
    }
}

fn replication_controller(object: &mut Value) {
    put(object, "spec.replicas", 1);
    if let Some(labels) = get(object, "spec.template.metadata.labels").cloned() {
        put(object, "spec.selector", labels);
    }
    template(object);
}

fn service(object: &mut Value) {
    put(object, "spec.type", "ClusterIP");
    put(object, "spec.sessionAffinity", "None");
    let kind = object["spec"]["type"].as_str().unwrap_or_default().to_owned();
    if kind != "ExternalName" {
        put(object, "spec.internalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        put(object, "spec.externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        put(object, "spec.allocateLoadBalancerNodePorts", true);
    }
    if object["spec"]["sessionAffinity"] == "ClientIP" {
        put(object, "spec.sessionAffinityConfig.clientIP.timeoutSeconds", 10_800);
    }
    for port in list_mut(object, "spec.ports") {
        put(port, "protocol", "TCP");
        if let Some(number) = get(port, "port").cloned() {
            put(port, "targetPort", number);
        }
    }
    put(object, "status.loadBalancer", json!({}));
}

fn endpoints(object: &mut Value) {
    for subset in list_mut(object, "subsets") {
        for port in list_mut(subset, "ports") {
            put(port, "protocol", "TCP");
        }
    }
}

fn persistent_volume(object: &mut Value) {
    put(object, "spec.persistentVolumeReclaimPolicy", "Retain");
    put(object, "spec.volumeMode", "Filesystem");
    if get(object, "spec.hostPath").is_some() {
        put(object, "spec.hostPath.type", "");
    }
    put(object, "status.phase", "Pending");
}

fn network_policy(object: &mut Value) {
    for (rules, peers) in [("spec.ingress", "from"), ("spec.egress", "to")] {
        for rule in list_mut(object, rules) {
            for port in list_mut(rule, "ports") {
                put(port, "protocol", "TCP");
            }
            if rule[peers].is_null()
                && let Some(map) = rule.as_object_mut()
            {
                map.remove(peers);
            }
        }
    }
    let has_egress =
        get(object, "spec.egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
    put(
        object,
        "spec.policyTypes",
        if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) },
    );
}

fn role_binding(object: &mut Value) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    put(object, "roleRef.apiGroup", GROUP);
    for subject in list_mut(object, "subjects") {
        if matches!(subject["kind"].as_str(), Some("User" | "Group")) {
            put(subject, "apiGroup", GROUP);
        }
    }
}

fn csi_driver(object: &mut Value) {
    put(object, "spec.attachRequired", true);
    put(object, "spec.podInfoOnMount", false);
    put(object, "spec.storageCapacity", false);
    put(object, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
    put(object, "spec.volumeLifecycleModes", json!(["Persistent"]));
    put(object, "spec.requiresRepublish", false);
    put(object, "spec.seLinuxMount", false);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaulted(group: &str, kind: &str, mut object: Value) -> Value {
        apply_defaults(group, kind, &mut object);
        // Defaults of defaults change nothing.
        let mut again = object.clone();
        apply_defaults(group, kind, &mut again);
        assert_eq!(again, object);
        object
    }

    #[test]
    fn a_pod_gets_what_kubelet_and_scheduler_look_for() {
        let pod = defaulted(
            "",
            "Pod",
            json!({"spec": {
                "containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
                    "readinessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}}}],
                "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "x"}}],
            }}),
        );
        let spec = &pod["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["schedulerName"], "default-scheduler");
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
        assert_eq!(spec["enableServiceLinks"], true);
        let container = &spec["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["ports"], json!([{"containerPort": 80, "protocol": "TCP"}]));
        assert_eq!(container["readinessProbe"]["httpGet"]["scheme"], "HTTP");
        assert_eq!(container["resources"]["requests"], json!({"cpu": "1"}));
        assert_eq!(spec["volumes"][0], json!({"name": "v", "emptyDir": {}}));
        assert_eq!(spec["volumes"][1]["configMap"]["defaultMode"], 420);
    }

    #[test]
    fn images_with_a_tag_are_pulled_once() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_deployment_rolls_by_quarters() {
        let object =
            defaulted("apps", "Deployment", json!({"spec": {"template": {"spec": {"containers": []}}}}));
        assert_eq!(object["spec"]["replicas"], 1);
        assert_eq!(
            object["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        assert_eq!(object["spec"]["template"]["spec"]["dnsPolicy"], "ClusterFirst");
        let recreate = json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}});
        let recreate = defaulted("apps", "Deployment", recreate);
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
        assert_eq!(recreate["spec"]["replicas"], 0);
    }

    #[test]
    fn a_job_selects_its_pods_by_its_uid() {
        let job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {"containers": []}}}});
        let job = defaulted("batch", "Job", job);
        assert_eq!(job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], "u");
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!(job["spec"]["completions"], 1);
    }

    #[test]
    fn a_service_port_leads_to_the_same_port() {
        let service = defaulted("", "Service", json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(service["spec"]["ports"], json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
        assert_eq!(service["spec"]["type"], "ClusterIP");
    }

    #[test]
    fn objects_of_odd_shape_are_left_to_validation() {
        for odd in [
            json!({"spec": 1}),
            json!({"spec": {"containers": {"a": 1}, "template": [1]}}),
            json!([]),
            json!(null),
        ] {
            for (group, kind) in
                [("", "Pod"), ("apps", "Deployment"), ("batch", "Job"), ("", "Service"), ("", "PodTemplate")]
            {
                apply_defaults(group, kind, &mut odd.clone());
            }
        }
    }
}
