//! Patches: which kinds there are, and what each makes of an object.
//!
//! Server-side apply needs to know who owns what and stands in [`crate::apply`].

use crate::strategic;
use json_patch::{Patch, PatchOperation};
use serde_json::Value;
use thiserror::Error;

/// Operations of one JSON patch, at most.
const MAX_OPERATIONS: usize = 10_000;
/// Depth that an object may have after a patch. The parser of bodies allows no more either.
const MAX_DEPTH: usize = 120;
/// Bytes that `copy` operations of one patch may add together.
const MAX_COPIED: usize = 1 << 20;

/// How a patch is written; its content type says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' merge with list keys and directives; built-in kinds only.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    /// The content type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// Why a patch was refused.
#[derive(Debug, Error)]
pub enum PatchError {
    /// The patch itself cannot be read: 400.
    #[error("{0}")]
    Malformed(String),
    /// It can be read, but not applied to this object: 422.
    #[error("the server rejected our request due to an error in our request: {0}")]
    Refused(String),
    /// The kind has no strategic merge, or the type is not handled here: 415.
    #[error("the body of the request was in an unknown format")]
    Unsupported,
}

/// The object that `patch` makes of `current`. Pure: the caller defaults, validates and stores.
///
/// # Errors
/// [`PatchError`]; for [`PatchType::Apply`] always [`PatchError::Unsupported`].
pub fn apply(kind: PatchType, current: &Value, patch: &Value) -> Result<Value, PatchError> {
    match kind {
        PatchType::Json => json(current, patch),
        PatchType::Merge => {
            if !patch.is_object() {
                return Err(PatchError::Malformed("a merge patch must be an object".to_owned()));
            }
            let mut merged = current.clone();
            json_patch::merge(&mut merged, patch);
            Ok(merged)
        }
        PatchType::Strategic => {
            let text = |field: &str| current[field].as_str().unwrap_or_default();
            let message =
                crate::fields::kind(text("apiVersion"), text("kind")).ok_or(PatchError::Unsupported)?;
            strategic::merge(message, current, patch).map_err(PatchError::Malformed)
        }
        PatchType::Apply => Err(PatchError::Unsupported),
    }
}

fn json(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let patch: Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("the patch is not a JSON patch: {error}")))?;
    if patch.0.len() > MAX_OPERATIONS {
        let count = patch.0.len();
        return Err(PatchError::Malformed(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}"
        )));
    }
    let mut patched = current.clone();
    let mut copied = 0;
    for operation in patch.0 {
        bound(&patched, &operation, &mut copied)?;
        json_patch::patch(&mut patched, &[operation])
            .map_err(|error| PatchError::Refused(error.to_string()))?;
    }
    Ok(patched)
}

/// Refuses what would make the object grow beyond bounds: each copy can double it, each addition can deepen it.
fn bound(object: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), PatchError> {
    let too_deep = || PatchError::Malformed(format!("the patch nests deeper than {MAX_DEPTH}"));
    let found = |from: &str| object.pointer(from).unwrap_or(&Value::Null).clone();
    let (path, value) = match operation {
        PatchOperation::Add(add) => (&add.path, add.value.clone()),
        PatchOperation::Replace(replace) => (&replace.path, replace.value.clone()),
        PatchOperation::Move(moved) => (&moved.path, found(moved.from.as_str())),
        PatchOperation::Copy(copy) => {
            let value = found(copy.from.as_str());
            *copied += value.to_string().len();
            if *copied > MAX_COPIED {
                return Err(PatchError::Malformed(format!("the patch copies more than {MAX_COPIED} bytes")));
            }
            (&copy.path, value)
        }
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    match path.as_str().matches('/').count() + depth(&value) > MAX_DEPTH {
        true => Err(too_deep()),
        false => Ok(()),
    }
}

/// Levels of a value: 1 for a scalar.
fn depth(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_merge_patch_removes_with_null() {
        let current = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
        let patch = json!({"metadata": {"labels": {"a": null, "c": "3"}}});
        let patched = apply(PatchType::Merge, &current, &patch).unwrap();
        assert_eq!(patched, json!({"metadata": {"labels": {"b": "2", "c": "3"}}}));
    }

    #[test]
    fn a_failed_test_refuses_the_whole_patch() {
        let current = json!({"a": 1});
        let patch =
            json!([{"op": "replace", "path": "/a", "value": 2}, {"op": "test", "path": "/a", "value": 3}]);
        assert!(matches!(apply(PatchType::Json, &current, &patch), Err(PatchError::Refused(_))));
        assert!(matches!(
            apply(PatchType::Json, &current, &json!({"op": "add"})),
            Err(PatchError::Malformed(_))
        ));
    }

    #[test]
    fn copies_cannot_blow_an_object_up() {
        let mut operations = vec![json!({"op": "add", "path": "/a", "value": [1, 2, 3]})];
        operations.extend((0..64).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"})));
        let error = apply(PatchType::Json, &json!({}), &operations.into()).unwrap_err();
        assert!(matches!(error, PatchError::Malformed(_)), "{error}");
    }

    #[test]
    fn an_object_cannot_be_nested_without_bound() {
        let mut operations = Vec::new();
        let mut path = String::new();
        for _ in 0..200 {
            path.push_str("/a");
            operations.push(json!({"op": "add", "path": path, "value": {}}));
        }
        assert!(apply(PatchType::Json, &json!({}), &operations.into()).is_err());
    }

    #[test]
    fn custom_kinds_have_no_strategic_merge() {
        let pool = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool"});
        let error = apply(PatchType::Strategic, &pool, &json!({"spec": {}})).unwrap_err();
        assert!(matches!(error, PatchError::Unsupported));
    }
}
