//! OpenAPI documents.

use crate::registry::Registry;
use bytes::Bytes;
use serde_json::{Value, json};

/// An empty document.
pub fn v2_protobuf() -> Bytes {
    Bytes::new()
}

/// A document without paths.
pub fn v2_json() -> Value {
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.28.0"}, "paths": {}, "definitions": {}})
}

/// Which documents there are.
pub fn v3_index(_registry: &Registry) -> Value {
    json!({"paths": {}})
}

/// The document of `api/v1` or `apis/<group>/<version>`.
pub fn v3_document(_registry: &Registry, _path: &str) -> Option<Value> {
    None
}
