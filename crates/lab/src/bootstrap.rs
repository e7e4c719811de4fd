//! What a fresh kind cluster has in it before anybody installs anything.

use crate::cluster::{Cluster, Role};
use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::Client;
use serde_json::{Value, json};

/// Requests under way at once.
const CONCURRENCY: usize = 16;

/// Conflict: the object exists.
const CONFLICT: u16 = 409;

/// Creates every initial object that is not there.
///
/// # Errors
/// When the API server refuses one for another reason.
pub async fn apply(client: &Client, cluster: &Cluster) -> Result<()> {
    // What the others stand in comes first.
    for (path, object) in first() {
        create(client, path.to_owned(), object).await?;
    }
    stream::iter(objects(cluster))
        .map(|(path, object)| create(client, path, object))
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await
}

async fn create(client: &Client, path: String, object: Value) -> Result<()> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let body = serde_json::to_vec(&object).context("writing JSON")?;
    let request = http::Request::post(&path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .context("making a request")?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == CONFLICT => Ok(()),
        Err(error) => Err(error).with_context(|| format!("creating {name} at {path}")),
    }
}

fn first() -> Vec<(&'static str, Value)> {
    vec![(
        "/api/v1/namespaces",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "local-path-storage"}}),
    )]
}

fn objects(cluster: &Cluster) -> Vec<(String, Value)> {
    let mut objects = config_maps(cluster);
    objects.extend(crate::identities::objects());
    for (namespace, name) in [
        ("kube-system", "coredns"),
        ("kube-system", "kube-proxy"),
        ("local-path-storage", "local-path-provisioner-service-account"),
    ] {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}});
        objects.push((format!("/api/v1/namespaces/{namespace}/serviceaccounts"), account));
    }
    objects.push((
        "/apis/storage.k8s.io/v1/storageclasses".into(),
        json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "standard",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "rancher.io/local-path",
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        }),
    ));
    objects.push((
        "/api/v1/namespaces/kube-system/services".into(),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": {
                    "k8s-app": "kube-dns",
                    "kubernetes.io/cluster-service": "true",
                    "kubernetes.io/name": "CoreDNS",
                },
                "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"},
            },
            "spec": {
                "clusterIP": cluster.service_address(10).to_string(),
                "selector": {"k8s-app": "kube-dns"},
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
                    {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153},
                ],
            },
        }),
    ));
    objects.push(("/apis/apps/v1/namespaces/kube-system/deployments".into(), coredns()));
    if cluster.kube_proxy_mode != "none" {
        objects.push(("/apis/apps/v1/namespaces/kube-system/daemonsets".into(), kube_proxy(cluster)));
    }
    objects.push(("/apis/apps/v1/namespaces/local-path-storage/deployments".into(), provisioner()));
    objects
}

fn config_maps(cluster: &Cluster) -> Vec<(String, Value)> {
    let server = cluster
        .nodes
        .iter()
        .find(|node| node.role == Role::ControlPlane)
        .map_or_else(String::new, |node| format!("{}:{}", node.name, crate::cluster::API_PORT));
    let cluster_configuration = format!(
        "apiVersion: kubeadm.k8s.io/v1beta3\n\
         clusterName: {name}\n\
         controlPlaneEndpoint: {server}\n\
         kind: ClusterConfiguration\n\
         kubernetesVersion: {version}\n\
         networking:\n  dnsDomain: cluster.local\n  podSubnet: {pods}\n  serviceSubnet: {services}\n",
        name = cluster.name,
        version = cluster.version,
        pods = cluster.pod_subnet,
        services = cluster.service_subnet,
    );
    let proxy = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nclusterCIDR: {}\nkind: KubeProxyConfiguration\nmode: {}\n",
        cluster.pod_subnet, cluster.kube_proxy_mode,
    );
    let kubelet = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nclusterDNS:\n- {}\nclusterDomain: cluster.local\n\
         kind: KubeletConfiguration\n",
        cluster.service_address(10),
    );
    let names = "\
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    cache 30
    loop
    reload
    loadbalance
}
";
    [
        ("kubeadm-config", json!({"ClusterConfiguration": cluster_configuration})),
        ("kube-proxy", json!({"config.conf": proxy})),
        ("kubelet-config", json!({"kubelet": kubelet})),
        ("coredns", json!({"Corefile": names})),
        // The lesson's names of block affinities: the datastore is set up here, so this decides.
        ("tortie-datastore", json!({"affinityNaming": "per-block"})),
    ]
    .into_iter()
    .map(|(name, data)| {
        let metadata = json!({"name": name, "namespace": "kube-system"});
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
        ("/api/v1/namespaces/kube-system/configmaps".to_owned(), object)
    })
    .collect()
}

fn coredns() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "coredns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"k8s-app": "kube-dns"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": {"k8s-app": "kube-dns"}},
                "spec": {
                    "serviceAccountName": "coredns",
                    "priorityClassName": "system-cluster-critical",
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [
                        {"key": "CriticalAddonsOnly", "operator": "Exists"},
                        {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
                    ],
                    "dnsPolicy": "Default",
                    "containers": [{
                        "name": "coredns",
                        "image": "coredns:v1.10.1",
                        "imagePullPolicy": "IfNotPresent",
                        "args": ["-conf", "/etc/coredns/Corefile"],
                        "ports": [
                            {"containerPort": 53, "name": "dns", "protocol": "UDP"},
                            {"containerPort": 53, "name": "dns-tcp", "protocol": "TCP"},
                            {"containerPort": 9153, "name": "metrics", "protocol": "TCP"},
                        ],
                        "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "100m", "memory": "70Mi"}},
                        "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": true}],
                    }],
                    "volumes": [{
                        "name": "config-volume",
                        "configMap": {"name": "coredns", "items": [{"key": "Corefile", "path": "Corefile"}]},
                    }],
                },
            },
        },
    })
}

fn kube_proxy(cluster: &Cluster) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system", "labels": {"k8s-app": "kube-proxy"}},
        "spec": {
            "selector": {"matchLabels": {"k8s-app": "kube-proxy"}},
            "updateStrategy": {"type": "RollingUpdate"},
            "template": {
                "metadata": {"labels": {"k8s-app": "kube-proxy"}},
                "spec": {
                    "serviceAccountName": "kube-proxy",
                    "priorityClassName": "system-node-critical",
                    "hostNetwork": true,
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": "kube-proxy",
                        "image": format!("kube-proxy:{}", cluster.version),
                        "imagePullPolicy": "IfNotPresent",
                        "command": [
                            "/usr/local/bin/kube-proxy",
                            "--config=/var/lib/kube-proxy/config.conf",
                            "--hostname-override=$(NODE_NAME)",
                        ],
                        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                        "volumeMounts": [{"name": "kube-proxy", "mountPath": "/var/lib/kube-proxy"}],
                    }],
                    "volumes": [{"name": "kube-proxy", "configMap": {"name": "kube-proxy"}}],
                },
            },
        },
    })
}

fn provisioner() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "local-path-provisioner", "namespace": "local-path-storage"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "local-path-provisioner"}},
            "template": {
                "metadata": {"labels": {"app": "local-path-provisioner"}},
                "spec": {
                    "serviceAccountName": "local-path-provisioner-service-account",
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [
                        {"key": "node-role.kubernetes.io/control-plane", "operator": "Equal", "effect": "NoSchedule"},
                    ],
                    "containers": [{
                        "name": "local-path-provisioner",
                        "image": "kindest/local-path-provisioner:v20230511-dc714da8",
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["local-path-provisioner", "--debug", "start"],
                    }],
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_initial_object_goes_where_it_belongs() {
        let cluster = crate::deploy::tests::lesson();
        for (path, object) in objects(&cluster) {
            match object.pointer("/metadata/namespace").and_then(Value::as_str) {
                Some(namespace) => assert!(path.contains(&format!("/namespaces/{namespace}/")), "{path}"),
                None => assert!(!path.contains("/namespaces/"), "{path}"),
            }
        }
        let (_, kubeadm) = &config_maps(&cluster)[0];
        let text = kubeadm["data"]["ClusterConfiguration"].as_str().unwrap();
        let parsed: Value = serde_saphyr::from_str(text).unwrap();
        assert_eq!(parsed["networking"]["podSubnet"], "192.168.0.0/16");
    }
}
