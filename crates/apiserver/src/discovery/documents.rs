//! Discovery documents as they are kept and found.

use crate::negotiation::{self, Discovery};
use bytes::Bytes;
use std::collections::HashMap;

/// A document ready to be sent.
#[derive(Clone, Debug)]
pub struct Document {
    /// Content type.
    pub media_type: &'static str,
    /// JSON.
    pub body: Bytes,
    /// Quoted entity tag; changes when the content does.
    pub etag: String,
}

/// All discovery documents of a registry, by path.
#[derive(Debug)]
pub struct Documents {
    pub(super) plain: HashMap<String, Document>,
    pub(super) aggregated: HashMap<(String, &'static str), Document>,
}

impl Documents {
    /// The document of a path, in the form that `accept` asks for; `None`: not a discovery path.
    ///
    /// `accept` is the request's header; an aggregated form is used only where it is named.
    pub fn find(&self, path: &str, accept: &str) -> Option<&Document> {
        let path = path.trim_end_matches('/');
        let version = match negotiation::discovery(Some(accept)) {
            Discovery::Plain => return self.plain.get(path),
            Discovery::AggregatedV2 => "v2",
            Discovery::AggregatedV2Beta1 => "v2beta1",
        };
        let aggregated =
            path.strip_prefix('/').and_then(|which| self.aggregated.get(&(which.to_owned(), version)));
        aggregated.or_else(|| self.plain.get(path))
    }
}
