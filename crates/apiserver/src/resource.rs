//! One kind in one version: how it is named and reached, and what its definition says of it.

use crate::schema::Schema;
use crate::table::Columns;
use serde_json::Value;
use std::sync::Arc;

/// How the objects of a kind can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Stored objects with all verbs.
    Stored,
    /// Answered from the request and forgotten: reviews, bindings.
    CreateOnly,
}

/// One kind in one version.
#[derive(Debug)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    /// As `v1`.
    pub version: String,
    /// As `Pod`.
    pub kind: String,
    /// As `PodList`.
    pub list_kind: String,
    /// As `pods`.
    pub plural: String,
    /// As `pod`.
    pub singular: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// As `po`.
    pub short_names: Vec<String>,
    /// As `all`.
    pub categories: Vec<String>,
    /// How it is served.
    pub style: Style,
    /// Whether `status` is written apart from the rest.
    pub has_status: bool,
    /// Other subresources, as `log`.
    pub subresources: Vec<&'static str>,
    /// What its definition says, for custom resources.
    pub custom: Option<Arc<CustomResource>>,
    /// Begins all keys of its objects; versions of a kind share it.
    pub prefix: String,
}

/// Verbs of stored kinds, in the order that discovery shows.
pub const STORED_VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The same for kinds that clients defined.
pub const CUSTOM_VERBS: [&str; 8] =
    ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

impl Resource {
    /// `group/version`, or only the version in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The store's key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}{namespace}/{name}", self.prefix)
        } else {
            format!("{}{name}", self.prefix)
        }
    }

    /// Begins the keys of all objects in a namespace, or everywhere.
    pub fn scope(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) if self.namespaced => format!("{}{namespace}/", self.prefix),
            _ => self.prefix.clone(),
        }
    }

    /// Whether it is this built-in kind.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }
}

/// Where a custom kind keeps what the `scale` subresource shows. Paths of fields, without the leading dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// Wanted replicas.
    pub spec_replicas: Vec<String>,
    /// Present replicas.
    pub status_replicas: Vec<String>,
    /// Selector as text, if there is one.
    pub selector: Option<Vec<String>>,
}

/// What a definition says about one version.
#[derive(Debug)]
pub struct CustomResource {
    /// Name of the definition.
    pub definition: String,
    /// Shape of the objects; none accepts all.
    pub schema: Option<Schema>,
    /// The schema as it was written, for the OpenAPI documents.
    pub open_api: Value,
    /// Columns of its table.
    pub columns: Columns,
    /// The `scale` subresource, if there is one.
    pub scale: Option<ScalePaths>,
    /// Fields besides name and namespace that selectors may use, without the leading dot.
    pub selectable: Vec<String>,
    /// Whether other versions of the kind are served too, so that stored objects may show another one.
    pub has_siblings: bool,
}
