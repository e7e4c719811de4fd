//! A request, taken apart: who asks, for what, in which form.

use crate::error::{FieldError, Status};
use crate::form::Form;
use crate::identity::User;
use crate::path::Query;
use crate::resource::Resource;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

/// The largest body that is read, packed or unpacked.
pub(crate) const BODY_LIMIT_BYTES: usize = 4 << 20;

/// What to do about fields that the kind does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// Drop them.
    Ignore,
    /// Drop them and say so.
    #[default]
    Warn,
    /// Refuse.
    Strict,
}

/// What all writes have in common.
#[derive(Debug, Default)]
pub(crate) struct WriteOptions {
    /// Do everything but store.
    pub(crate) dry_run: bool,
    /// What to do about unknown fields.
    pub(crate) validation: FieldValidation,
    /// Who writes. None: the server itself.
    pub(crate) user: Option<Arc<User>>,
    /// What the client is to be told besides.
    warnings: Mutex<Vec<String>>,
}

impl WriteOptions {
    /// Reads them from the query.
    ///
    /// # Errors
    /// 422 for a value that there is not.
    pub(crate) fn parse(query: &Query) -> Result<Self, Status> {
        let validation = match query.get("fieldValidation") {
            None | Some("") => FieldValidation::default(),
            Some("Ignore") => FieldValidation::Ignore,
            Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                let error = FieldError::not_supported("fieldValidation", &other.into(), &supported);
                return Err(Status::invalid("meta.k8s.io", "CreateOptions", "", &[error]));
            }
        };
        let dry_run = match query.get("dryRun") {
            None | Some("") => false,
            Some("All") => true,
            Some(other) => {
                let error = FieldError::not_supported("dryRun", &serde_json::json!([other]), &["All"]);
                return Err(Status::invalid("meta.k8s.io", "CreateOptions", "", &[error]));
            }
        };
        Ok(Self { dry_run, validation, ..Self::default() })
    }

    /// The same, of a user.
    pub(crate) fn of(self, user: &Arc<User>) -> Self {
        Self { user: Some(Arc::clone(user)), ..self }
    }

    /// Tells the client something besides the answer.
    pub(crate) fn warn(&self, warning: impl Into<String>) {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(warning.into());
    }

    /// What was to be told.
    pub(crate) fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A request for a kind of object.
#[derive(Debug)]
pub(crate) struct Call {
    /// Who asks.
    pub(crate) user: Arc<User>,
    /// The kind.
    pub(crate) resource: Arc<Resource>,
    /// Namespace of the path.
    pub(crate) namespace: Option<String>,
    /// Object of the path; empty for a collection.
    pub(crate) name: String,
    /// The query.
    pub(crate) query: Query,
    /// Form of the answer.
    pub(crate) form: Form,
    /// What writes have in common.
    pub(crate) options: WriteOptions,
}

impl Call {
    /// The namespace, or the empty string.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    /// 404 for the object of the path.
    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(&self.resource.group, &self.resource.plural, &self.name)
    }
}

/// The media type of a body, without parameters; JSON when nothing is said.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let value = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if value.is_empty() { "application/json".to_owned() } else { value }
}

/// Reads a body whole.
///
/// # Errors
/// 413 when it is larger than [`BODY_LIMIT_BYTES`], 400 when it breaks off or is not what it says.
pub(crate) async fn body(request: Request<Body>) -> Result<(HeaderMap, Bytes), Status> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_LIMIT_BYTES).collect().await.map_err(|error| {
        if error.downcast_ref::<LengthLimitError>().is_some() {
            Status::too_large(BODY_LIMIT_BYTES)
        } else {
            Status::bad_request(format!("the body of the request could not be read: {error}"))
        }
    })?;
    let bytes = body.to_bytes();
    match parts.headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes()) {
        Some(b"gzip") => {
            let limit = u64::try_from(BODY_LIMIT_BYTES).unwrap_or(u64::MAX).saturating_add(1);
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(&bytes[..]).take(limit).read_to_end(&mut unpacked).map_err(
                |error| Status::bad_request(format!("the body of the request is not gzip: {error}")),
            )?;
            if unpacked.len() > BODY_LIMIT_BYTES {
                return Err(Status::too_large(BODY_LIMIT_BYTES));
            }
            Ok((parts.headers, Bytes::from(unpacked)))
        }
        _ => Ok((parts.headers, bytes)),
    }
}

/// Reads a body as an object.
///
/// # Errors
/// 415 for a media type that is not read, 400 for a body that is not what it says.
pub(crate) fn object(headers: &HeaderMap, body: &[u8]) -> Result<Value, Status> {
    let value = match media_type(headers).as_str() {
        "application/json" => json(body)?,
        "application/yaml" => yaml(body)?,
        "application/vnd.kubernetes.protobuf" => crate::protobuf::decode(body).map_err(|error| {
            Status::bad_request(format!("the body of the request is no protobuf object: {error}"))
        })?,
        _ => return Err(Status::unsupported_media_type(crate::negotiation::READ)),
    };
    if !value.is_object() {
        return Err(Status::bad_request("the body of the request is not an object"));
    }
    Ok(value)
}

/// Reads JSON.
///
/// # Errors
/// 400 when it is not.
pub(crate) fn json(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body)
        .map_err(|error| Status::bad_request(format!("the body of the request is not JSON: {error}")))
}

/// Reads YAML.
///
/// # Errors
/// 400 when it is not.
pub(crate) fn yaml(body: &[u8]) -> Result<Value, Status> {
    let text = std::str::from_utf8(body)
        .map_err(|error| Status::bad_request(format!("the body of the request is not UTF-8: {error}")))?;
    serde_saphyr::from_str(text)
        .map_err(|error| Status::bad_request(format!("the body of the request is not YAML: {error}")))
}
