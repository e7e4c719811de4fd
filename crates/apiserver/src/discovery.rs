//! Discovery: which groups, versions and resources there are, aggregated and in the older pieces.

pub mod documents;

use self::documents::{Document, Documents};
use crate::negotiation::Discovery;
use crate::registry::Registry;
use crate::resource::{CUSTOM_VERBS, Resource, STORED_VERBS, Style};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

const JSON: &str = "application/json";

fn document(media_type: &'static str, value: &Value) -> Document {
    let body = Bytes::from(value.to_string());
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    Document { media_type, body, etag: format!("\"{:016X}\"", hasher.finish()) }
}

fn verbs(resource: &Resource) -> &'static [&'static str] {
    match resource.style {
        Style::Stored if resource.custom.is_some() => &CUSTOM_VERBS,
        Style::Stored => &STORED_VERBS,
        Style::CreateOnly => &["create"],
    }
}

/// A subresource: name, (group, version, kind) of what it speaks, verbs.
type Subresource = (&'static str, (String, String, String), &'static [&'static str]);

fn subresources(resource: &Resource) -> Vec<Subresource> {
    let own = || (resource.group.clone(), resource.version.clone(), resource.kind.clone());
    let other =
        |group: &str, version: &str, kind: &str| (group.to_owned(), version.to_owned(), kind.to_owned());
    let read_write: &[&str] = &["get", "patch", "update"];
    let mut found: Vec<Subresource> = resource
        .subresources
        .iter()
        .map(|name| match *name {
            "attach" => (*name, other("", "v1", "PodAttachOptions"), ["create", "get"].as_slice()),
            "binding" => (*name, other("", "v1", "Binding"), ["create"].as_slice()),
            "eviction" => (*name, other("policy", "v1", "Eviction"), ["create"].as_slice()),
            "exec" => (*name, other("", "v1", "PodExecOptions"), ["create", "get"].as_slice()),
            "portforward" => (*name, other("", "v1", "PodPortForwardOptions"), ["create", "get"].as_slice()),
            "log" => (*name, own(), ["get"].as_slice()),
            "finalize" => (*name, own(), ["update"].as_slice()),
            "scale" => (*name, other("autoscaling", "v1", "Scale"), read_write),
            "token" => (*name, other("authentication.k8s.io", "v1", "TokenRequest"), ["create"].as_slice()),
            _ => (*name, own(), read_write),
        })
        .collect();
    if resource.has_status {
        found.push(("status", own(), read_write));
    }
    found.sort_by_key(|(name, ..)| *name);
    found
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = |(group, version, kind): (String, String, String)| json!({"group": group, "version": version, "kind": kind});
    let own = (resource.group.clone(), resource.version.clone(), resource.kind.clone());
    let mut value = json!({
        "resource": resource.plural,
        "responseKind": kind(own),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": verbs(resource),
    });
    if !resource.short_names.is_empty() {
        value["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        value["categories"] = json!(resource.categories);
    }
    let subresources: Vec<Value> = subresources(resource)
        .into_iter()
        .map(|(name, response, verbs)| {
            json!({"subresource": name, "responseKind": kind(response), "verbs": verbs})
        })
        .collect();
    if !subresources.is_empty() {
        value["subresources"] = subresources.into();
    }
    value
}

fn plain_resources(resource: &Resource) -> Vec<Value> {
    let mut main = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": verbs(resource),
    });
    if !resource.short_names.is_empty() {
        main["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        main["categories"] = json!(resource.categories);
    }
    let mut all = vec![main];
    for (name, (group, version, kind), verbs) in subresources(resource) {
        let mut value = json!({
            "name": format!("{}/{name}", resource.plural),
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": kind,
            "verbs": verbs,
        });
        if (group.as_str(), version.as_str()) != (resource.group.as_str(), resource.version.as_str()) {
            value["group"] = group.into();
            value["version"] = version.into();
        }
        all.push(value);
    }
    all
}

/// Makes all documents.
pub fn documents(registry: &Registry) -> Documents {
    let groups = registry.groups();
    let mut plain = HashMap::new();
    let mut core_item = Value::Null;
    let mut items = Vec::new();
    let mut group_list = Vec::new();
    for (group, versions) in &groups {
        let of = |version: &str| {
            let version = version.to_owned();
            registry.resources().iter().filter(move |r| r.group == *group && r.version == version)
        };
        let aggregated: Vec<Value> = versions
            .iter()
            .map(|version| {
                let resources: Vec<Value> =
                    of(version).map(|resource| aggregated_resource(resource)).collect();
                json!({"version": version, "freshness": "Current", "resources": resources})
            })
            .collect();
        for version in versions {
            let group_version =
                if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") };
            let resources: Vec<Value> = of(version).flat_map(|resource| plain_resources(resource)).collect();
            let list = json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
            });
            let root = if group.is_empty() { "/api" } else { "/apis" };
            plain.insert(format!("{root}/{group_version}"), document(JSON, &list));
        }
        if group.is_empty() {
            core_item = json!({"metadata": {"creationTimestamp": null}, "versions": aggregated});
            continue;
        }
        items.push(json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": aggregated}));
        let version =
            |version: &&str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
        let listed: Vec<Value> = versions.iter().map(version).collect();
        let mut entry = json!({"name": group, "versions": listed, "preferredVersion": listed.first()});
        group_list.push(entry.clone());
        entry["kind"] = "APIGroup".into();
        entry["apiVersion"] = "v1".into();
        plain.insert(format!("/apis/{group}"), document(JSON, &entry));
    }
    let api_versions = json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
    });
    plain.insert("/api".to_owned(), document(JSON, &api_versions));
    let all = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": group_list});
    plain.insert("/apis".to_owned(), document(JSON, &all));
    let mut aggregated = HashMap::new();
    for (version, form) in [("v2", Discovery::AggregatedV2), ("v2beta1", Discovery::AggregatedV2Beta1)] {
        for (which, items) in [("api", vec![core_item.clone()]), ("apis", items.clone())] {
            let list = json!({
                "kind": "APIGroupDiscoveryList",
                "apiVersion": format!("apidiscovery.k8s.io/{version}"),
                "metadata": {},
                "items": items,
            });
            aggregated.insert((which.to_owned(), version), document(form.content_type(), &list));
        }
    }
    Documents { plain, aggregated }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_form_is_served_with_its_own_content_type() {
        let documents = documents(&Registry::default());
        let accept = "application/json;g=apidiscovery.k8s.io;v=v9;as=APIGroupDiscoveryList,\
                      application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(
            documents.find("/apis", accept).unwrap().media_type,
            Discovery::AggregatedV2Beta1.content_type()
        );
        assert_eq!(documents.find("/apis/apps", accept).unwrap().media_type, JSON);
        assert_eq!(documents.find("/api", "application/json").unwrap().media_type, JSON);
        assert!(documents.find("/nothing", accept).is_none());
    }

    #[test]
    fn evictions_are_found_below_pods() {
        let documents = documents(&Registry::default());
        let list: Value = serde_json::from_slice(&documents.find("/api/v1", JSON).unwrap().body).unwrap();
        let eviction =
            list["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods/eviction").unwrap();
        assert_eq!((&eviction["group"], &eviction["kind"]), (&json!("policy"), &json!("Eviction")));
    }
}
