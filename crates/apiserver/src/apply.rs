//! Server-side apply.

use crate::error::Status;
use serde_json::Value;

/// What is applied to what.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Name of the field manager.
    pub manager: &'a str,
    /// `status`, or empty.
    pub subresource: &'a str,
    /// Whether to take fields over from others.
    pub force: bool,
    /// As in the object.
    pub api_version: &'a str,
    /// As in the object.
    pub kind: &'a str,
    /// The time of the entry, RFC 3339.
    pub now: &'a str,
    /// The custom kind's schema.
    pub schema: Option<&'a Value>,
    /// The present object, if there is one.
    pub current: Option<&'a Value>,
    /// What the manager wants.
    pub applied: &'a Value,
}

/// Applies by merging.
///
/// # Errors
/// None yet.
pub fn apply(request: &Request<'_>) -> Result<Value, Status> {
    let mut object = request.current.cloned().unwrap_or_default();
    json_patch::merge(&mut object, request.applied);
    Ok(object)
}
