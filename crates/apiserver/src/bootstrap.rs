//! The objects that every cluster has from the start.

use crate::admission::{self, PRIORITY_CLASSES};
use crate::default_roles;
use crate::error::Status;
use crate::identity::User;
use crate::objects;
use crate::request::WriteOptions;
use crate::server::{Server, unwritten};
use crate::{token, write};
use serde_json::{Value, json};
use storage::{Commit, Write};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing; what is there is left as it is.
///
/// # Errors
/// The first refusal.
pub(crate) async fn run(server: &Server) -> Result<(), Status> {
    let mut objects = Vec::new();
    for name in NAMESPACES {
        objects.push(("", "namespaces", "", json!({"metadata": {"name": name}})));
    }
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
    make(server, objects).await
}

/// An object to be made: group and plural of its kind, its namespace, and itself.
type Wanted<'a> = (&'a str, &'a str, &'a str, Value);

/// Makes what is missing, all in one commit: a start waits for the disk once.
///
/// Nobody is served yet, so that nobody else writes.
async fn make(server: &Server, objects: Vec<Wanted<'_>>) -> Result<(), Status> {
    let user = User { name: "system:apiserver".into(), groups: vec!["system:masters".into()], uid: None };
    let options = WriteOptions::default();
    let mut commit = Commit::default();
    commit.writes.extend(token::key(server));
    for (group, plural, namespace, object) in objects {
        let resource = server.builtin(group, plural)?;
        let key = resource.key(namespace, objects::meta(&object, "name"));
        if server.store.get(&key).is_some() {
            continue;
        }
        let mut object = write::fresh(&resource, namespace, object)?;
        write::shape(&resource, &mut object, None, &options)?;
        // An address that is taken here is kept: without the commit there is no server.
        admission::on_create(server, &resource, &mut object, &user, &options)?;
        commit.writes.push(Write::Put(key, objects::encode(&object)));
        commit.writes.extend(admission::along_with(server, &resource, &object));
    }
    if commit.writes.is_empty() {
        return Ok(());
    }
    server.store.commit(commit).await.map_err(|error| unwritten(&error))?;
    server.forget_policy();
    Ok(())
}
