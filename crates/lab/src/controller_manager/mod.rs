//! Stand-in for kube-controller-manager and kube-scheduler, as much of them as the lab's lessons use.
//!
//! One loop: take in what the watches delivered, let each reconciler (a pure function of the view) say what it wants,
//! carry that out, lay the answers over the view, and again until nobody wants anything.

mod action;
mod cache;
mod daemonset;
mod deployment;
mod driver;
mod node_lifecycle;
mod object;
mod replicaset;
mod scheduler;

pub use driver::{Options, run};

use action::{Action, Kind};
use cache::Cache;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Everything that the reconcilers want, given the view.
fn reconcile(cache: &Cache, now: jiff::Timestamp, pod_subnet: &str) -> Vec<Action> {
    let clock = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let nodes: Vec<&Value> = cache.all(Kind::Node).collect();
    let pods = by_controller(cache.all(Kind::Pod));
    let sets = by_controller(cache.all(Kind::ReplicaSet));
    let none: &[&Value] = &[];

    let mut actions = Vec::new();
    let mut taken: BTreeSet<String> =
        nodes.iter().map(|node| object::text(node, &["spec", "podCIDR"]).to_owned()).collect();
    for node in &nodes {
        let lease = cache.get(Kind::Lease, &("kube-node-lease".to_owned(), object::name_of(node).1));
        let free = (0..)
            .map_while(|index| node_lifecycle::pod_cidr(pod_subnet, index))
            .find(|cidr| !taken.contains(cidr));
        if object::text(node, &["spec", "podCIDR"]).is_empty() {
            taken.extend(free.clone());
        }
        actions.extend(node_lifecycle::reconcile(node, lease, now, free.as_deref()));
    }
    for deployment in cache.all(Kind::Deployment) {
        let owned = sets.get(object::uid(deployment)).map_or(none, Vec::as_slice);
        actions.extend(deployment::reconcile(deployment, owned, &clock));
    }
    for set in cache.all(Kind::ReplicaSet) {
        let owned = pods.get(object::uid(set)).map_or(none, Vec::as_slice);
        actions.extend(replicaset::reconcile(set, owned));
    }
    for set in cache.all(Kind::DaemonSet) {
        let owned = pods.get(object::uid(set)).map_or(none, Vec::as_slice);
        actions.extend(daemonset::reconcile(set, owned, &nodes));
    }
    actions.extend(scheduler::reconcile(cache.all(Kind::Pod), &nodes, &clock));
    actions
}

/// Objects by the uid of the owner that controls them.
fn by_controller<'a>(objects: impl Iterator<Item = &'a Value>) -> BTreeMap<String, Vec<&'a Value>> {
    let mut owned: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for value in objects {
        if let Some(owner) = object::controller_uid(value) {
            owned.entry(owner.to_owned()).or_default().push(value);
        }
    }
    owned
}
