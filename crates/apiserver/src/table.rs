//! Server-side tables: what `kubectl get` prints without `-o`.
//!
//! kubectl formats nothing itself, so every cell is finished here, ages included.

mod core;
mod custom;
mod format;
mod pod;
mod storage;
mod workload;

use self::custom::CustomColumn;
use jiff::Timestamp;
use serde_json::{Value, json};

/// What stands in each row's `object`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Null.
    None,
    /// The metadata: what kubectl needs for the namespace column and `--show-labels`.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Reads the `includeObject` parameter; `None` for a word that is not known.
    pub fn parse(parameter: Option<&str>) -> Option<Self> {
        match parameter {
            None | Some("" | "Metadata") => Some(Self::Metadata),
            Some("None") => Some(Self::None),
            Some("Object") => Some(Self::Object),
            Some(_) => None,
        }
    }
}

/// Name, type, and whether only `-o wide` shows it.
type Head = (&'static str, &'static str, u8);

/// A column that is always shown.
const fn shown(name: &'static str) -> Head {
    (name, "string", 0)
}

/// A column of numbers that is always shown.
const fn number(name: &'static str) -> Head {
    (name, "integer", 0)
}

/// A column that only `-o wide` shows.
const fn wide(name: &'static str) -> Head {
    (name, "string", 1)
}

/// The cells of one object, in the order of the kind's heads.
type Cells = fn(&Value, Timestamp) -> Vec<Value>;

/// The columns of one kind.
#[derive(Clone, Debug)]
pub struct Columns {
    inner: Inner,
}

#[derive(Clone, Debug)]
enum Inner {
    Builtin(&'static [Head], Cells),
    Custom(Vec<CustomColumn>),
}

impl Columns {
    /// The columns of a built-in kind; name and creation time for those that have no printer of their own.
    pub fn for_kind(group: &str, resource: &str) -> Self {
        let (heads, cells) = core::printer(group, resource)
            .or_else(|| workload::printer(group, resource))
            .or_else(|| storage::printer(group, resource))
            .or_else(|| pod::printer(group, resource))
            .unwrap_or((const { &[shown("Name"), shown("Created At")] }, created_at));
        Self { inner: Inner::Builtin(heads, cells) }
    }

    /// The columns of a custom kind: name and its `additionalPrinterColumns`, or name and age where it has none.
    ///
    /// `version` is one element of the definition's `spec.versions`. A column whose path cannot be read stays empty.
    pub fn from_crd(version: &Value) -> Self {
        Self { inner: Inner::Custom(custom::columns(version)) }
    }

    /// `columnDefinitions` of the table.
    pub fn definitions(&self) -> Value {
        let definition = |name: &str, kind: &str, format: &str, description: &str, priority: i64| {
            let format = if name == "Name" { "name" } else { format };
            json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority})
        };
        match &self.inner {
            Inner::Builtin(heads, _) => heads
                .iter()
                .map(|(name, kind, priority)| definition(name, kind, "", "", i64::from(*priority)))
                .collect(),
            Inner::Custom(columns) => std::iter::once(definition("Name", "string", "name", "", 0))
                .chain(columns.iter().map(|column| {
                    definition(
                        &column.name,
                        &column.kind,
                        &column.format,
                        &column.description,
                        column.priority,
                    )
                }))
                .collect(),
        }
    }

    /// The cells of one object.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match &self.inner {
            Inner::Builtin(_, cells) => cells(object, now),
            Inner::Custom(columns) => std::iter::once(object["metadata"]["name"].clone())
                .chain(columns.iter().map(|column| column.cell(object, now)))
                .collect(),
        }
    }

    /// One element of the table's `rows`.
    pub fn row(&self, object: &Value, include: IncludeObject, now: Timestamp) -> Value {
        let shown = match include {
            IncludeObject::None => Value::Null,
            IncludeObject::Object => object.clone(),
            IncludeObject::Metadata => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            }),
        };
        json!({"cells": self.cells(object, now), "object": shown})
    }
}

/// The table of `objects`. `list_meta` is the metadata of the list (or of the one object): `resourceVersion`, and
/// `continue` and `remainingItemCount` where there is more.
pub fn table(
    columns: &Columns,
    objects: &[&Value],
    include: IncludeObject,
    list_meta: Value,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects.iter().map(|object| columns.row(object, include, now)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_meta,
        "columnDefinitions": columns.definitions(),
        "rows": rows,
    })
}

fn created_at(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::format::testing::{NOW, row_of};

    #[test]
    fn a_row_carries_the_metadata_for_the_namespace_column() {
        let object = json!({"metadata": {"name": "a", "namespace": "b"}, "data": {"k": "v"}});
        let columns = Columns::for_kind("", "configmaps");
        let table =
            table(&columns, &[&object], IncludeObject::Metadata, json!({"resourceVersion": "7"}), NOW());
        assert_eq!(table["rows"][0]["object"]["metadata"]["namespace"], "b");
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert!(table["rows"][0]["object"].get("data").is_none());
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
        assert_eq!(table["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn kinds_without_a_printer_show_when_they_were_created() {
        let object = json!({"metadata": {"name": "view", "creationTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(
            row_of("rbac.authorization.k8s.io", "clusterroles", &object),
            [("Name", "view"), ("Created At", "2026-01-01T00:00:00Z")].map(|(a, b)| (a.to_owned(), json!(b)))
        );
    }

    #[test]
    fn every_printer_has_as_many_cells_as_heads() {
        let resources = [
            ("", "pods"),
            ("", "nodes"),
            ("", "namespaces"),
            ("", "services"),
            ("", "endpoints"),
            ("", "configmaps"),
            ("", "secrets"),
            ("", "serviceaccounts"),
            ("", "events"),
            ("events.k8s.io", "events"),
            ("", "persistentvolumes"),
            ("", "persistentvolumeclaims"),
            ("", "resourcequotas"),
            ("", "limitranges"),
            ("", "replicationcontrollers"),
            ("", "podtemplates"),
            ("apps", "deployments"),
            ("apps", "replicasets"),
            ("apps", "daemonsets"),
            ("apps", "statefulsets"),
            ("apps", "controllerrevisions"),
            ("batch", "jobs"),
            ("batch", "cronjobs"),
            ("discovery.k8s.io", "endpointslices"),
            ("coordination.k8s.io", "leases"),
            ("networking.k8s.io", "networkpolicies"),
            ("networking.k8s.io", "ingresses"),
            ("networking.k8s.io", "ingressclasses"),
            ("policy", "poddisruptionbudgets"),
            ("rbac.authorization.k8s.io", "rolebindings"),
            ("rbac.authorization.k8s.io", "clusterrolebindings"),
            ("storage.k8s.io", "storageclasses"),
            ("storage.k8s.io", "csidrivers"),
            ("storage.k8s.io", "csinodes"),
            ("storage.k8s.io", "volumeattachments"),
            ("scheduling.k8s.io", "priorityclasses"),
            ("certificates.k8s.io", "certificatesigningrequests"),
            ("apiregistration.k8s.io", "apiservices"),
            ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
        ];
        let empty = json!({"metadata": {"name": "x"}});
        for (group, resource) in resources {
            let columns = Columns::for_kind(group, resource);
            let heads = columns.definitions().as_array().map_or(0, Vec::len);
            assert_eq!(columns.cells(&empty, NOW()).len(), heads, "{group}/{resource}");
            // Values of other types than expected are not a reason to fall over.
            let odd = json!({"metadata": 1, "spec": "x", "status": [1], "subsets": {}, "endpoints": "y"});
            assert_eq!(columns.cells(&odd, NOW()).len(), heads, "{group}/{resource}");
        }
    }
}
