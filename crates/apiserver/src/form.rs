//! In what form an answer is sent: objects, tables, metadata only; JSON or YAML.

use crate::error::Status;
use crate::negotiation::{self, Accepted, Encoding};
use crate::table::IncludeObject;

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object as JSON.
    Json,
    /// The object as YAML.
    Yaml,
    /// A table of it.
    Table(IncludeObject),
    /// Only its metadata.
    Partial,
}

impl Form {
    /// The first form that an Accept header lists and that can be made; `include` is the parameter `includeObject`.
    ///
    /// # Errors
    /// 406 when there is none.
    pub fn negotiate(accept: Option<&str>, include: Option<&str>) -> Result<Self, Status> {
        let accepted =
            negotiation::accept(accept).ok_or_else(|| Status::not_acceptable(negotiation::SERVED))?;
        Ok(match accepted {
            Accepted { form: negotiation::Form::Table, .. } => Self::Table(match include {
                Some("None") => IncludeObject::None,
                Some("Object") => IncludeObject::Object,
                _ => IncludeObject::Metadata,
            }),
            Accepted { form: negotiation::Form::Metadata, .. } => Self::Partial,
            Accepted { encoding: Encoding::Yaml, .. } => Self::Yaml,
            Accepted { encoding: Encoding::Json, .. } => Self::Json,
        })
    }
}
