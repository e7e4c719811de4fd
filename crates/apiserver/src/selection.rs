//! Which objects a list or watch is about: labels and fields.

use crate::error::Status;
use crate::path::Query;
use crate::resource::Resource;
use crate::selector::{FieldSelector, LabelSelector};
use serde_json::Value;

/// Selectors of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    labels: Option<LabelSelector>,
    fields: Option<FieldSelector>,
    /// The only name that can match, if there is one.
    name: Option<String>,
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`, and the name of a path (or the empty string).
    ///
    /// # Errors
    /// 400 for a bad selector, or a field that the kind cannot be selected by.
    pub(crate) fn parse(resource: &Resource, query: &Query, name: &str) -> Result<Self, Status> {
        let labels = match query.get("labelSelector") {
            Some(text) => Some(LabelSelector::parse(text).map_err(Status::bad_request)?),
            None => None,
        };
        let mut text = query.get("fieldSelector").unwrap_or_default().to_owned();
        if !name.is_empty() {
            let comma = if text.is_empty() { "" } else { "," };
            text = format!("{text}{comma}metadata.name={name}");
        }
        let mut fields = FieldSelector::parse(&text).map_err(Status::bad_request)?;
        if let Some(unknown) = fields.unsupported(resource) {
            return Err(Status::bad_request(format!("field label not supported: {unknown}")));
        }
        let only = fields.name().map(str::to_owned);
        if only.is_some() && text == format!("metadata.name={}", only.as_deref().unwrap_or_default()) {
            // The name says it all: objects need not be parsed to be judged.
            fields = FieldSelector::default();
        }
        Ok(Self {
            labels: labels.filter(|labels| !labels.is_empty()),
            fields: Some(fields).filter(|fields| !fields.is_empty()),
            name: only,
        })
    }

    /// The only name that can match.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether every object that has the right name is selected, so that none needs to be parsed.
    pub(crate) fn is_by_name_only(&self) -> bool {
        self.labels.is_none() && self.fields.is_none()
    }

    /// Whether everything is selected.
    pub(crate) fn is_everything(&self) -> bool {
        self.is_by_name_only() && self.name.is_none()
    }

    /// Whether an object is selected, the name apart.
    pub(crate) fn matches(&self, resource: &Resource, object: &Value) -> bool {
        self.labels.as_ref().is_none_or(|labels| labels.matches(&object["metadata"]["labels"]))
            && self.fields.as_ref().is_none_or(|fields| fields.matches(resource, object))
    }
}
