//! One object, and lists of them.

use crate::answer;
use crate::error::{FieldError, Status};
use crate::form::Form;
use crate::objects;
use crate::path::Query;
use crate::request::Call;
use crate::selection::Selection;
use crate::server::Server;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use http::Response;
use serde_json::{Value, json};
use storage::{Entry, Listing};

/// Entries taken from the store at a time when a selector decides which of them count.
const CHUNK: usize = 500;

/// Where the next page of a list begins.
#[derive(Debug, PartialEq, Eq)]
struct Continue {
    revision: u64,
    after: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD
            .encode(json!({"v": "meta.k8s.io/v1", "rv": self.revision, "start": self.after}).to_string())
    }

    fn decode(token: &str, scope: &str) -> Result<Self, Status> {
        let invalid =
            || Status::bad_request("continue key is not valid: take it as it was given, with the same path");
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| invalid())?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        match (value["rv"].as_u64(), value["start"].as_str()) {
            (Some(revision), Some(after)) if after.starts_with(scope) => {
                Ok(Self { revision, after: after.to_owned() })
            }
            _ => Err(invalid()),
        }
    }
}

/// At which revision a list is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Newest,
    Exactly(u64),
}

fn revision(query: &Query) -> Result<Option<u64>, Status> {
    match query.get("resourceVersion") {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            Status::bad_request(format!("resourceVersion: Invalid value: {text:?}: not a number"))
        }),
    }
}

/// The revision of a list or watch request, if it gives one.
///
/// # Errors
/// 400 when it is no number.
pub(crate) fn asked_revision(query: &Query) -> Result<Option<u64>, Status> {
    revision(query)
}

/// Whether it is said in a way that there is how the revision is meant.
fn check_match(query: &Query) -> Result<(), Status> {
    let field = "resourceVersionMatch";
    let error = match (query.get(field), query.get("resourceVersion").unwrap_or_default()) {
        (None | Some(""), _) => return Ok(()),
        (Some(_), "") => FieldError::forbidden(
            field,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (Some("Exact"), "0") => FieldError::forbidden(
            field,
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        (Some("Exact" | "NotOlderThan"), _) => return Ok(()),
        (Some(other), _) => FieldError::not_supported(field, &other.into(), &["Exact", "NotOlderThan", ""]),
    };
    Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]))
}

impl Server {
    /// Answers a GET of one object.
    pub(crate) fn get(&self, call: &Call) -> Result<Response<Body>, Status> {
        let key = call.resource.key(call.namespace(), &call.name);
        let entry = self.store.get(&key).ok_or_else(|| call.not_found())?;
        Ok(answer::object(call, 200, &entry))
    }

    /// Answers a GET of a collection.
    pub(crate) fn list(&self, call: &Call) -> Result<Response<Body>, Status> {
        let selection = Selection::parse(&call.resource, &call.query, "")?;
        let page = self.page(call, &selection)?;
        Ok(match call.form {
            Form::Json if answer::is_stored_form(&call.resource) => {
                answer::bytes(200, answer::JSON, raw_list(call, &page))
            }
            _ => rendered_list(call, &page),
        })
    }

    fn page(&self, call: &Call, selection: &Selection) -> Result<Page, Status> {
        let scope = call.resource.scope(call.namespace.as_deref());
        let limit = match call.query.get("limit") {
            None => 0,
            Some(text) => text.parse().map_err(|_| {
                Status::bad_request(format!("limit: Invalid value: {text:?}: must be a number, 0 or more"))
            })?,
        };
        let asked = revision(&call.query)?;
        check_match(&call.query)?;
        if let Some(asked) = asked
            && asked > self.store.revision()
        {
            return Err(Status::too_large_revision(asked, self.store.revision()));
        }
        let token = call.query.get("continue").map(|token| Continue::decode(token, &scope)).transpose()?;
        let at = match (&token, asked, call.query.get("resourceVersionMatch")) {
            (Some(token), ..) => At::Exactly(token.revision),
            (None, Some(asked), Some("Exact")) if asked > 0 => At::Exactly(asked),
            _ => At::Newest,
        };
        let mut after = token.map(|token| token.after);
        if let Some(name) = selection.name()
            && (call.namespace.is_some() || !call.resource.namespaced)
            && at == At::Newest
        {
            return Ok(self.page_of_one(call, selection, name));
        }
        if selection.is_everything() {
            let listing = self.listing(at, &scope, after.as_deref(), limit)?;
            let more = listing.entries.last().filter(|_| listing.remaining > 0).map(|(key, _)| key.clone());
            return Ok(Page {
                revision: listing.revision,
                entries: listing.entries.into_iter().map(|(_, entry)| entry).collect(),
                more,
                remaining: Some(listing.remaining),
            });
        }
        let mut page = Page::default();
        let mut at = at;
        loop {
            let listing = self.listing(at, &scope, after.as_deref(), if limit == 0 { 0 } else { CHUNK })?;
            // All chunks show the revision of the first.
            at = At::Exactly(listing.revision);
            page.revision = listing.revision;
            let rest = listing.remaining;
            after = listing.entries.last().map(|(key, _)| key.clone());
            for (key, entry) in listing.entries {
                let named = selection.name().is_none_or(|name| key.rsplit('/').next() == Some(name));
                if named
                    && (selection.is_by_name_only()
                        || selection.matches(&call.resource, &objects::decode(&entry)))
                {
                    if limit > 0 && page.entries.len() == limit {
                        return Ok(page);
                    }
                    page.entries.push(entry);
                    page.more = Some(key);
                }
            }
            if rest == 0 {
                page.more = None;
                return Ok(page);
            }
        }
    }

    fn page_of_one(&self, call: &Call, selection: &Selection, name: &str) -> Page {
        let (entry, revision) = self.store.get_at_revision(&call.resource.key(call.namespace(), name));
        let entry = entry.filter(|entry| {
            selection.is_by_name_only() || selection.matches(&call.resource, &objects::decode(entry))
        });
        Page { revision, entries: entry.into_iter().collect(), more: None, remaining: None }
    }

    fn listing(&self, at: At, scope: &str, after: Option<&str>, limit: usize) -> Result<Listing, Status> {
        match at {
            At::Newest => Ok(self.store.list(scope, after, limit)),
            At::Exactly(revision) => self.store.list_at(revision, scope, after, limit).map_err(|_compacted| {
                Status::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
                )
            }),
        }
    }
}

/// Part of a list.
#[derive(Debug, Default)]
struct Page {
    entries: Vec<Entry>,
    revision: u64,
    /// Last key of the page, when others follow.
    more: Option<String>,
    /// How many follow, where that is known.
    remaining: Option<usize>,
}

impl Page {
    fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(after) = &self.more {
            let token = Continue { revision: self.revision, after: after.clone() };
            metadata["continue"] = token.encode().into();
            if let Some(remaining) = self.remaining {
                metadata["remainingItemCount"] = remaining.into();
            }
        }
        metadata
    }
}

fn raw_list(call: &Call, page: &Page) -> Bytes {
    let size: usize = page.entries.iter().map(|entry| entry.value.len() + 64).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    let resource = &call.resource;
    let head = json!({"kind": resource.list_kind, "apiVersion": resource.api_version(), "metadata": page.metadata()});
    out.put_slice(head.to_string().trim_end_matches('}').as_bytes());
    // The metadata's own brace was trimmed with the list's.
    out.put_slice(b"},\"items\":[");
    for (at, entry) in page.entries.iter().enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        objects::render(entry, entry.revision, &mut out);
    }
    out.put_slice(b"]}");
    out.freeze()
}

fn rendered_list(call: &Call, page: &Page) -> Response<Body> {
    let resource = &call.resource;
    let items: Vec<Value> =
        page.entries.iter().map(|entry| answer::present(resource, objects::decode(entry))).collect();
    let list = |kind: &str, api_version: &str, items: Vec<Value>| json!({"kind": kind, "apiVersion": api_version, "metadata": page.metadata(), "items": items});
    match call.form {
        Form::Table(include) => {
            let items: Vec<&Value> = items.iter().collect();
            answer::json(200, &answer::table(resource, include, &items, page.metadata()))
        }
        Form::Partial => {
            let items = items.iter().map(answer::partial).collect();
            answer::json(200, &list("PartialObjectMetadataList", "meta.k8s.io/v1", items))
        }
        Form::Json | Form::Yaml => {
            answer::value(call, 200, &list(&resource.list_kind, &resource.api_version(), items))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_only_for_its_own_collection() {
        let token = Continue { revision: 7, after: "/core/pods/a/b".into() }.encode();
        assert_eq!(Continue::decode(&token, "/core/pods/a/").unwrap().revision, 7);
        assert_eq!(Continue::decode(&token, "/core/secrets/").unwrap_err().code, 400);
        assert_eq!(Continue::decode("###", "/core/pods/").unwrap_err().code, 400);
    }
}
