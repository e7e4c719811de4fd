//! The objects that every cluster has from the start.

use crate::admission::PRIORITY_CLASSES;
use crate::default_roles;
use crate::error::Status;
use crate::identity::User;
use crate::objects;
use crate::request::WriteOptions;
use crate::server::Server;
use crate::token;
use futures::future::try_join_all;
use serde_json::{Value, json};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing; what is there is left as it is.
///
/// # Errors
/// The first refusal that is not "already there".
pub(crate) async fn run(server: &Server) -> Result<(), Status> {
    token::prepare(server).await?;
    // What waits together becomes durable together: a start waits for the disk three times and not for each object.
    let namespaces = NAMESPACES.map(|name| ("", "namespaces", "", json!({"metadata": {"name": name}})));
    all(server, namespaces.to_vec()).await?;
    let mut objects = Vec::new();
    for (name, value) in PRIORITY_CLASSES {
        let class = json!({"metadata": {"name": name}, "value": value, "globalDefault": false});
        objects.push(("scheduling.k8s.io", "priorityclasses", "", class));
    }
    let rbac = "rbac.authorization.k8s.io";
    objects.extend(default_roles::roles().into_iter().map(|role| (rbac, "clusterroles", "", role)));
    objects.extend(default_roles::bindings().into_iter().map(|one| (rbac, "clusterrolebindings", "", one)));
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": server.addresses.first(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
    });
    objects.push(("", "services", "default", service));
    if let Some(address) = server.advertise {
        let port = json!([{"name": "https", "port": address.port(), "protocol": "TCP"}]);
        let endpoints = json!({
            "metadata": {"name": "kubernetes", "namespace": "default",
                         "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": [{"ip": address.ip().to_string()}], "ports": port}],
        });
        objects.push(("", "endpoints", "default", endpoints));
        let slice = json!({
            "metadata": {"name": "kubernetes", "namespace": "default",
                         "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address.ip().to_string()], "conditions": {"ready": true}}],
            "ports": port,
        });
        objects.push(("discovery.k8s.io", "endpointslices", "default", slice));
    }
    all(server, objects).await
}

/// An object to be made: group and plural of its kind, its namespace, and itself.
type Wanted<'a> = (&'a str, &'a str, &'a str, Value);

async fn all(server: &Server, objects: Vec<Wanted<'_>>) -> Result<(), Status> {
    let made = objects
        .into_iter()
        .map(|(group, plural, namespace, object)| ensure(server, group, plural, namespace, object));
    try_join_all(made).await.map(drop)
}

async fn ensure(
    server: &Server,
    group: &str,
    plural: &str,
    namespace: &str,
    object: Value,
) -> Result<(), Status> {
    let resource = server.builtin(group, plural)?;
    let name = objects::meta(&object, "name").to_owned();
    if server.store.get(&resource.key(namespace, &name)).is_some() {
        return Ok(());
    }
    let user = User { name: "system:apiserver".into(), groups: vec!["system:masters".into()], uid: None };
    match server.create(&resource, namespace, object, &user, &WriteOptions::default()).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        Err(status) => Err(status),
    }
}
