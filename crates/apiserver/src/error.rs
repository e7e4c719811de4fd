//! What a request can be refused with: Kubernetes' `Status`, and the faults of single fields that make one up.

use serde_json::{Map, Value, json};
use std::fmt;

/// Kind of fault of one field; becomes `reason` of a cause in `details.causes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldFault {
    /// `FieldValueRequired`.
    Required,
    /// `FieldValueInvalid`.
    Invalid,
    /// `FieldValueTypeInvalid`: the JSON type is wrong.
    TypeInvalid,
    /// `FieldValueNotSupported`: not one of the enumerated values.
    NotSupported,
    /// `FieldValueDuplicate`.
    Duplicate,
    /// `FieldValueForbidden`.
    Forbidden,
    /// `FieldValueTooLong`.
    TooLong,
    /// `FieldValueTooMany`.
    TooMany,
    /// `FieldValueNotFound`.
    NotFound,
}

impl FieldFault {
    /// The word clients read in `details.causes[].reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
        }
    }
}

/// One field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// What is wrong with it.
    pub fault: FieldFault,
    /// Path of the field, as `spec.containers[0].name`. Empty: the object as a whole.
    pub field: String,
    /// Text after the path, as `Required value` or `Invalid value: "x": must be …`.
    pub message: String,
}

impl FieldError {
    fn new(fault: FieldFault, field: impl Into<String>, message: String) -> Self {
        Self { fault, field: field.into(), message }
    }

    /// A field that must be there is not. `detail` may be empty.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(FieldFault::Required, field, with_detail("Required value".to_owned(), detail))
    }

    /// A value that is not allowed. The value is shown as JSON.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(FieldFault::Invalid, field, with_detail(format!("Invalid value: {value}"), detail))
    }

    /// A value of the wrong JSON type. `value` is shown as it stands: Kubernetes puts the *name* of the type there.
    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(FieldFault::TypeInvalid, field, with_detail(format!("Invalid value: {value}"), detail))
    }

    /// A value outside an enumeration.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|one| format!("{one:?}")).collect();
        let detail = format!("supported values: {}", supported.join(", "));
        Self::new(FieldFault::NotSupported, field, format!("Unsupported value: {value}: {detail}"))
    }

    /// A value that stands twice where it may stand once.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(FieldFault::Duplicate, field, format!("Duplicate value: {value}"))
    }

    /// A field that must not be set, or not changed.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new(FieldFault::Forbidden, field, with_detail("Forbidden".to_owned(), detail))
    }

    /// A text longer than `max` bytes.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self::new(FieldFault::TooLong, field, format!("Too long: may not be more than {max} bytes"))
    }

    /// A list of `actual` items where at most `max` are allowed.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        Self::new(FieldFault::TooMany, field, format!("Too many: {actual}: must have at most {max} items"))
    }

    /// Something that the field refers to does not exist.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new(FieldFault::NotFound, field, format!("Not found: {value}"))
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

fn with_detail(mut message: String, detail: &str) -> String {
    if !detail.is_empty() {
        message.push_str(": ");
        message.push_str(detail);
    }
    message
}

/// A refusal, or another answer that is a `Status` and not an object.
///
/// On the wire: the JSON of [`Status::to_value`] under the HTTP code [`Status::code`].
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// HTTP code.
    pub code: u16,
    /// Kubernetes' machine-readable word, as `NotFound`.
    pub reason: &'static str,
    /// The sentence that people read.
    pub message: String,
    /// `details`, or null.
    pub details: Value,
    /// Seconds after which to try again, for 429 and 504.
    pub retry_after_seconds: Option<u32>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// `resource`, or `resource.group` outside the core group: how messages name a collection.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn details(group: &str, kind: &str, name: &str) -> Map<String, Value> {
    let mut details = Map::new();
    if !name.is_empty() {
        details.insert("name".into(), name.into());
    }
    if !group.is_empty() {
        details.insert("group".into(), group.into());
    }
    if !kind.is_empty() {
        details.insert("kind".into(), kind.into());
    }
    details
}

impl Status {
    /// A status without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null, retry_after_seconds: None }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 about one object, or a collection when `name` is empty. `why` follows `is forbidden: `.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = qualified(group, resource);
        let message = if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {name:?} is forbidden: {why}")
        };
        Self { details: details(group, resource, name).into(), ..Self::new(403, "Forbidden", message) }
    }

    /// 404 about one object.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Self { details: details(group, resource, name).into(), ..Self::new(404, "NotFound", message) }
    }

    /// 404 for a kind that a group does not have.
    pub fn no_such_resource() -> Self {
        Self {
            details: json!({}),
            ..Self::new(404, "NotFound", "the server could not find the requested resource")
        }
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 406. `accepted` are the media types that could be served.
    pub fn not_acceptable(accepted: &str) -> Self {
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {accepted}"))
    }

    /// 409: the name is taken.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Self { details: details(group, resource, name).into(), ..Self::new(409, "AlreadyExists", message) }
    }

    /// 409: `why` follows `Operation cannot be fulfilled on …: `.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, resource));
        Self { details: details(group, resource, name).into(), ..Self::new(409, "Conflict", message) }
    }

    /// 409: the object was changed since it was read.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// 409 of server-side apply. A conflict is (message, field path) of a field that another manager owns.
    pub fn apply_conflict(conflicts: &[(String, String)]) -> Self {
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|(message, field)| json!({"reason": "FieldManagerConflict", "message": message, "field": field}))
            .collect();
        let shown: Vec<String> =
            conflicts.iter().map(|(message, field)| format!("{message}: {field}")).collect();
        let message = if conflicts.len() == 1 {
            format!("Apply failed with 1 conflict: {}", shown.join(""))
        } else {
            format!("Apply failed with {} conflicts: {}", conflicts.len(), shown.join("\n"))
        };
        Self { details: json!({"causes": causes}), ..Self::new(409, "Conflict", message) }
    }

    /// 410.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(limit_bytes: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit_bytes}");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415. `accepted` are the media types that could be read.
    pub fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422: the object breaks the rules of its kind.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list = match shown.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {list}", qualified(group, kind));
        let causes: Vec<Value> = errors
            .iter()
            .map(|error| {
                let mut cause = json!({"reason": error.fault.reason(), "message": error.message});
                if !error.field.is_empty() {
                    cause["field"] = error.field.clone().into();
                }
                cause
            })
            .collect();
        let mut details = details(group, kind, name);
        details.insert("causes".into(), causes.into());
        Self { details: details.into(), ..Self::new(422, "Invalid", message) }
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self {
            retry_after_seconds: Some(retry_after_seconds),
            details: json!({"retryAfterSeconds": retry_after_seconds}),
            ..Self::new(429, "TooManyRequests", message)
        }
    }

    /// 500. `what` says what was being done and what came of it.
    pub fn internal(what: impl fmt::Display) -> Self {
        let message = format!("Internal error occurred: {what}");
        Self {
            details: json!({"causes": [{"message": what.to_string()}]}),
            ..Self::new(500, "InternalError", message)
        }
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504: a read asked for a revision that is not there yet.
    pub fn too_large_revision(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        Self {
            retry_after_seconds: Some(1),
            details: json!({
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                "retryAfterSeconds": 1,
            }),
            ..Self::new(504, "Timeout", format!("Timeout: {message}"))
        }
    }

    /// The JSON form of a failure.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if !self.details.is_null() {
            value["details"] = self.details.clone();
        }
        value
    }
}

/// The `Status` that answers a deletion which removed the object at once.
pub fn deleted(group: &str, resource: &str, name: &str, uid: &str) -> Value {
    let mut details = details(group, resource, name);
    details.insert("uid".into(), uid.into());
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_faults_are_listed_in_brackets() {
        let errors =
            [FieldError::required("spec.cidr", ""), FieldError::duplicate("spec.names[1]", &json!("a"))];
        let status = Status::invalid("crd.projectcalico.org", "IPPool", "p", &errors);
        assert_eq!(
            status.message,
            r#"IPPool.crd.projectcalico.org "p" is invalid: [spec.cidr: Required value, spec.names[1]: Duplicate value: "a"]"#
        );
        assert_eq!(status.to_value()["details"]["causes"][1]["reason"], "FieldValueDuplicate");
    }

    #[test]
    fn unsupported_values_name_what_is_supported() {
        let error = FieldError::not_supported("spec.x", &json!("c"), &["a", "b"]);
        assert_eq!(error.to_string(), r#"spec.x: Unsupported value: "c": supported values: "a", "b""#);
    }
}
