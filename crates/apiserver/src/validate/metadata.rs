//! Rules of the metadata that all kinds share.

use crate::error::FieldError;
use crate::names::{is_label_key, is_label_value};
use serde_json::{Value, json};

/// Bytes of all annotations together, at most.
const MAX_ANNOTATIONS: usize = 256 * 1024;

pub(super) fn check(object: &Value, old: Option<&Value>, faults: &mut Vec<FieldError>) {
    let metadata = &object["metadata"];
    labels(&metadata["labels"], "metadata.labels", faults);
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        if !is_label_key(&key.to_ascii_lowercase()) {
            faults.push(FieldError::invalid(
                "metadata.annotations",
                &json!(key),
                "not a valid annotation key",
            ));
        }
    }
    if size > MAX_ANNOTATIONS {
        faults.push(FieldError::too_long("metadata.annotations", MAX_ANNOTATIONS));
    }
    for (at, owner) in metadata["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                faults.push(FieldError::required(format!("metadata.ownerReferences[{at}].{field}"), ""));
            }
        }
    }
    let finalizers =
        |object: &Value| object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let known = old.map(finalizers).unwrap_or_default();
    for (at, finalizer) in finalizers(object).iter().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        if !is_label_key(name) {
            let field = format!("metadata.finalizers[{at}]");
            faults.push(FieldError::invalid(field, finalizer, "name must be qualified, as example.com/name"));
        }
        let is_late = old.is_some_and(|old| old["metadata"]["deletionTimestamp"].is_string());
        if is_late && !known.contains(finalizer) {
            let detail = "no new finalizers can be added if the object is being deleted";
            faults.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
}

/// Keys and values of labels.
pub(super) fn labels(labels: &Value, path: &str, faults: &mut Vec<FieldError>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if !is_label_key(key) {
            faults.push(FieldError::invalid(path, &json!(key), "not a valid label key"));
        }
        if !is_label_value(value.as_str().unwrap_or_default()) {
            let detail = "a label value is at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends";
            faults.push(FieldError::invalid(path, value, detail));
        }
    }
}
