//! Answers: objects in the form that was asked for, and statuses.

use crate::error::Status;
use crate::events;
use crate::form::Form;
use crate::objects;
use crate::request::Call;
use crate::resource::Resource;
use crate::table::{self, Columns, IncludeObject};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use storage::Entry;

/// The content type of JSON.
pub(crate) const JSON: &str = "application/json";
const YAML: &str = "application/yaml";

/// An answer with a body.
pub(crate) fn bytes(code: u16, media_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// An answer in JSON, whatever was asked for.
pub(crate) fn json(code: u16, value: &Value) -> Response<Body> {
    bytes(code, JSON, value.to_string())
}

/// A line of text.
pub(crate) fn text(code: u16, text: impl Into<Body>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", text)
}

/// A refusal.
pub(crate) fn status(status: &Status) -> Response<Body> {
    let mut response = json(status.code, &status.to_value());
    if let Some(seconds) = status.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Tells the client what writing found besides.
pub(crate) fn with_warnings(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

/// Whether stored objects are sent as they are, and need not be parsed.
pub(crate) fn is_stored_form(resource: &Resource) -> bool {
    resource.group != "events.k8s.io" && resource.custom.as_ref().is_none_or(|custom| !custom.has_siblings)
}

/// An object as this kind's version shows it.
pub(crate) fn present(resource: &Resource, mut object: Value) -> Value {
    if resource.group == "events.k8s.io" {
        return events::from_core(object);
    }
    if let Some(custom) = &resource.custom
        && custom.has_siblings
    {
        object["apiVersion"] = resource.api_version().into();
        if let Some(schema) = &custom.schema {
            schema.default(&mut object);
        }
    }
    object
}

/// Only the metadata of an object.
pub(crate) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// The columns of a kind's table.
pub(crate) fn columns(resource: &Resource) -> Columns {
    match &resource.custom {
        Some(custom) => custom.columns.clone(),
        None => Columns::for_kind(&resource.group, &resource.plural),
    }
}

/// A table of objects.
pub(crate) fn table(
    resource: &Resource,
    include: IncludeObject,
    objects: &[&Value],
    list_metadata: Value,
) -> Value {
    table::table(&columns(resource), objects, include, list_metadata, jiff::Timestamp::now())
}

/// A value in the form that was asked for; it is no table's row.
pub(crate) fn value(call: &Call, code: u16, value: &Value) -> Response<Body> {
    match call.form {
        Form::Yaml => yaml(code, value),
        _ => json(code, value),
    }
}

fn yaml(code: u16, value: &Value) -> Response<Body> {
    match serde_saphyr::to_string(value) {
        Ok(text) => bytes(code, YAML, text),
        Err(error) => status(&Status::internal(format_args!("writing YAML: {error}"))),
    }
}

/// A stored object in the form that was asked for.
pub(crate) fn object(call: &Call, code: u16, entry: &Entry) -> Response<Body> {
    let resource = &call.resource;
    if call.form == Form::Json && is_stored_form(resource) {
        let mut out = BytesMut::new();
        objects::render(entry, entry.revision, &mut out);
        return bytes(code, JSON, Bytes::from(out));
    }
    let object = present(resource, objects::decode(entry));
    match call.form {
        Form::Json => json(code, &object),
        Form::Yaml => yaml(code, &object),
        Form::Partial => json(code, &partial(&object)),
        Form::Table(include) => {
            let metadata = json!({"resourceVersion": objects::meta(&object, "resourceVersion")});
            json(code, &table(resource, include, &[&object], metadata))
        }
    }
}
