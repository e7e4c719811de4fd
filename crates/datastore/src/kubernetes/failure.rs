//! What a failed call means to a reader and to a writer (data model §3.3).

use crate::{CommitError, Key, ReadError};
use kube::Error;
use std::error::Error as _;
use std::time::Duration;

/// Why a call to the API has no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server answered with a failure.
    Answered { code: u16, reason: String, message: String },
    /// No connection could be made: the request was certainly not carried out.
    NotConnected(String),
    /// The request went out and no answer came: it may have been carried out.
    NoAnswer(String),
    /// The answer cannot be read.
    Unreadable(String),
}

/// The deepest cause, which is the one that says something (`connection refused`).
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

impl Failure {
    pub(super) fn from_client(error: Error) -> Self {
        match error {
            Error::Api(status) => {
                Self::Answered { code: status.code, reason: status.reason, message: status.message }
            }
            Error::Service(ref inner) => {
                let connecting = inner
                    .downcast_ref::<hyper_util::client::legacy::Error>()
                    .is_some_and(hyper_util::client::legacy::Error::is_connect);
                let cause = root_cause(inner.as_ref());
                if connecting { Self::NotConnected(cause) } else { Self::NoAnswer(cause) }
            }
            Error::SerdeError(error) => Self::Unreadable(error.to_string()),
            Error::FromUtf8(error) => Self::Unreadable(error.to_string()),
            error => Self::NoAnswer(error.source().map_or_else(|| error.to_string(), root_cause)),
        }
    }

    pub(super) fn deadline(limit: Duration) -> Self {
        Self::NoAnswer(format!("no answer within {limit:?}"))
    }

    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Answered { code: 404, .. })
    }

    /// Whether a read is worth another try at once.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::NotConnected(_) | Self::NoAnswer(_) => true,
            Self::Answered { code, .. } => matches!(code, 429 | 500 | 503 | 504),
            Self::Unreadable(_) => false,
        }
    }

    /// Whether the object is not in the state that was expected: changed, present, or gone.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            // A uid that is not the object's is reported as invalid by some servers.
            Self::Answered { code: 422, message, .. } => {
                message.contains("metadata.uid") || message.contains("metadata.resourceVersion")
            }
            Self::Answered { code, .. } => matches!(code, 404 | 409 | 410 | 412),
            _ => false,
        }
    }

    pub(super) fn reading(self, what: String) -> ReadError {
        match self {
            Self::Answered { code: 410, .. } => ReadError::Expired { what },
            Self::Answered { code: 401 | 403, message, .. } => ReadError::Forbidden { what, reason: message },
            Self::Answered { code: 404, message, .. } => ReadError::Unavailable {
                what,
                reason: format!("{message}; install the custom resource definitions first"),
            },
            Self::Answered { code, reason, message } => {
                ReadError::Unavailable { what, reason: format!("{message} ({reason} {code})") }
            }
            Self::NotConnected(reason) | Self::NoAnswer(reason) => ReadError::Unavailable { what, reason },
            Self::Unreadable(reason) => ReadError::Malformed { what, reason },
        }
    }

    /// `written`: writes of the same commit that were made before this one.
    pub(super) fn writing(self, key: Key, written: usize, creating: bool) -> CommitError {
        // A collection that is not found is no conflict: its custom resource definition is missing.
        if self.is_conflict() && !(creating && self.is_not_found()) {
            return CommitError::Conflict { key, written };
        }
        match self {
            Self::NotConnected(reason) if written == 0 => CommitError::Unavailable { key, reason },
            Self::Answered { code: 429, message, .. } if written == 0 => {
                CommitError::Unavailable { key, reason: message }
            }
            Self::NotConnected(reason) | Self::NoAnswer(reason) | Self::Unreadable(reason) => {
                CommitError::Unknown { key, reason }
            }
            Self::Answered { code: 429 | 500..=599, message, .. } => {
                CommitError::Unknown { key, reason: message }
            }
            Self::Answered { message, .. } => CommitError::Refused { key, reason: message, written },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16, message: &str) -> Failure {
        Failure::Answered { code, reason: String::new(), message: message.to_owned() }
    }

    #[test]
    fn changed_present_and_gone_are_conflicts() {
        for code in [404, 409] {
            let error = answered(code, "").writing(Key::Config, 1, false);
            assert_eq!(error, CommitError::Conflict { key: Key::Config, written: 1 });
        }
        let error = answered(422, "metadata.uid: Invalid value").writing(Key::Config, 0, false);
        assert_eq!(error, CommitError::Conflict { key: Key::Config, written: 0 });
    }

    #[test]
    fn missing_definition_refuses_a_create_and_invalid_content_refuses_any_write() {
        let missing = answered(404, "the server could not find the requested resource");
        assert!(matches!(missing.writing(Key::Config, 0, true), CommitError::Refused { .. }));
        let invalid = answered(422, "spec.cidr: Required value");
        assert!(matches!(invalid.writing(Key::Config, 0, false), CommitError::Refused { .. }));
    }

    #[test]
    fn write_without_a_connection_is_unavailable_only_while_nothing_was_written() {
        let refused = || Failure::NotConnected("connection refused".to_owned());
        assert!(matches!(refused().writing(Key::Config, 0, false), CommitError::Unavailable { .. }));
        assert!(matches!(refused().writing(Key::Config, 1, false), CommitError::Unknown { .. }));
        assert!(matches!(
            Failure::deadline(Duration::from_secs(5)).writing(Key::Config, 0, false),
            CommitError::Unknown { .. }
        ));
    }

    #[test]
    fn expired_history_is_told_apart_from_an_unavailable_server() {
        assert!(matches!(answered(410, "").reading("blocks".to_owned()), ReadError::Expired { .. }));
        assert!(matches!(answered(503, "").reading("blocks".to_owned()), ReadError::Unavailable { .. }));
        assert!(matches!(answered(403, "").reading("blocks".to_owned()), ReadError::Forbidden { .. }));
    }
}
