//! What a failed call means to a reader and to a writer.

use super::path::BadName;
use crate::{CommitError, Key, ReadError};
use std::error::Error;
use std::time::Duration;
use tonic::{Code, Status};

/// Why a call has no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server answered with a failure.
    Answered { code: Code, message: String },
    /// No connection could be made: the request was certainly not carried out.
    NotConnected(String),
    /// The request went out and no answer came: it may have been carried out.
    NoAnswer(String),
}

/// The deepest cause, which is the one that says something (`connection refused`).
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

impl Failure {
    pub(super) fn from_status(status: &Status) -> Self {
        let Some(source) = status.source() else {
            return Self::Answered { code: status.code(), message: status.message().to_owned() };
        };
        // A status with a cause was made on this side.
        let mut cause: Option<&(dyn Error + 'static)> = Some(source);
        while let Some(error) = cause {
            if error.is::<tonic::ConnectError>() {
                return Self::NotConnected(root_cause(error));
            }
            cause = error.source();
        }
        Self::NoAnswer(root_cause(source))
    }

    pub(super) fn deadline(limit: Duration) -> Self {
        Self::NoAnswer(format!("no answer within {} ms", limit.as_millis()))
    }

    fn says(&self, words: &str) -> bool {
        matches!(self, Self::Answered { message, .. } if message.contains(words))
    }

    /// The history asked for is compacted.
    pub(super) fn is_expired(&self) -> bool {
        self.says("has been compacted")
    }

    /// The token is not known (any more), older than the last change of users and roles, or missing because
    /// authentication was off before. Nothing was carried out.
    pub(super) fn is_stale_token(&self) -> bool {
        matches!(self, Self::Answered { code: Code::Unauthenticated, .. })
            || self.says("invalid auth token")
            || self.says("revision of auth store is old")
            || self.says("user name is empty")
    }

    /// Authentication is off, so that no token is needed.
    pub(super) fn is_authentication_off(&self) -> bool {
        self.says("authentication is not enabled")
    }

    /// The member has no leader, so that it can neither read nor write.
    pub(super) fn is_without_leader(&self) -> bool {
        self.says("etcdserver: no leader")
    }

    /// The transaction has more operations than the servers take in one. It was not looked at.
    pub(super) fn is_too_many_operations(&self) -> bool {
        self.says("too many operations in txn request")
    }

    /// Whether this member cannot serve now, so that another may.
    pub(super) fn is_of_the_member(&self) -> bool {
        match self {
            Self::NotConnected(_) | Self::NoAnswer(_) => true,
            Self::Answered { code, .. } => {
                matches!(
                    code,
                    Code::Unavailable
                        | Code::DeadlineExceeded
                        | Code::Cancelled
                        | Code::Unknown
                        | Code::Internal
                        | Code::DataLoss
                )
            }
        }
    }

    /// The cause in words.
    fn reason(self) -> String {
        match self {
            Self::Answered { message, .. } | Self::NotConnected(message) | Self::NoAnswer(message) => message,
        }
    }

    pub(super) fn reading(self, what: String) -> ReadError {
        if self.is_expired() {
            return ReadError::Expired { what };
        }
        let refused = matches!(
            self,
            Self::Answered {
                code: Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument,
                ..
            }
        );
        let reason = self.reason();
        if refused { ReadError::Forbidden { what, reason } } else { ReadError::Unavailable { what, reason } }
    }

    /// `written`: writes of the same commit that were made before this transaction.
    pub(super) fn writing(self, key: Key, written: usize) -> CommitError {
        let code = match &self {
            Self::NotConnected(_) => None,
            Self::NoAnswer(_) => return CommitError::Unknown { key, reason: self.reason() },
            Self::Answered { code, .. } => Some(*code),
        };
        let not_now = match code {
            None => true,
            // Said before a proposal is made: without a leader, with too many waiting.
            Some(Code::Unavailable) => self.is_without_leader(),
            Some(Code::ResourceExhausted) => self.says("too many requests"),
            Some(_) => false,
        };
        if not_now && written == 0 {
            return CommitError::Unavailable { key, reason: self.reason() };
        }
        // Said before a proposal too, but also by a server that made the write and found its quota used up by the writes of
        // others in between.
        if self.says("database space exceeded") {
            let remedy = "compact and defragment etcd, then clear its NOSPACE alarm";
            return CommitError::Unknown { key, reason: format!("{}; {remedy}", self.reason()) };
        }
        // The second is what the server does not even read.
        if self.says("request is too large") || self.says("received message larger than max") {
            let remedy = "raise --max-request-bytes of the servers, or ask for less at once";
            return CommitError::Refused { key, reason: format!("{}; {remedy}", self.reason()), written };
        }
        match code {
            Some(
                Code::InvalidArgument
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::NotFound
                | Code::Unimplemented,
            ) => CommitError::Refused { key, reason: self.reason(), written },
            _ => CommitError::Unknown { key, reason: self.reason() },
        }
    }
}

impl BadName {
    pub(super) fn writing(self, key: Key) -> CommitError {
        CommitError::Refused { key, reason: self.to_string(), written: 0 }
    }

    pub(super) fn reading(self, what: String) -> ReadError {
        ReadError::Malformed { what, reason: self.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: Code, message: &str) -> Failure {
        Failure::from_status(&Status::new(code, message))
    }

    fn written(failure: Failure) -> CommitError {
        failure.writing(Key::Config, 0)
    }

    #[test]
    fn write_that_may_have_been_made_is_unknown() {
        for failure in [
            answered(Code::Unavailable, "etcdserver: request timed out"),
            answered(Code::Unavailable, "etcdserver: leader changed"),
            answered(Code::Unavailable, "etcdserver: server stopped"),
            answered(Code::DeadlineExceeded, "context deadline exceeded"),
            answered(Code::Unknown, "raft: stopped"),
            answered(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Failure::deadline(DEADLINE),
        ] {
            assert!(matches!(written(failure), CommitError::Unknown { .. }));
        }
    }

    const DEADLINE: Duration = Duration::from_secs(3);

    #[test]
    fn write_that_was_turned_away_before_it_was_proposed_is_unavailable() {
        for failure in [
            answered(Code::Unavailable, "etcdserver: no leader"),
            answered(Code::ResourceExhausted, "etcdserver: too many requests"),
            Failure::NotConnected("connection refused".to_owned()),
        ] {
            assert!(matches!(written(failure), CommitError::Unavailable { .. }));
        }
        let after_others = Failure::NotConnected("connection refused".to_owned()).writing(Key::Config, 2);
        assert!(matches!(after_others, CommitError::Unknown { .. }));
    }

    #[test]
    fn what_no_repetition_helps_is_refused() {
        for failure in [
            answered(Code::InvalidArgument, "etcdserver: request is too large"),
            answered(Code::InvalidArgument, "etcdserver: too many operations in txn request"),
            answered(Code::PermissionDenied, "etcdserver: permission denied"),
            answered(Code::ResourceExhausted, "grpc: received message larger than max (3 vs. 2)"),
        ] {
            assert!(matches!(written(failure), CommitError::Refused { .. }));
        }
    }

    #[test]
    fn compacted_history_is_expired_and_a_missing_permission_forbidden() {
        let compacted = answered(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
        assert!(matches!(compacted.reading("blocks".to_owned()), ReadError::Expired { .. }));
        let denied = answered(Code::PermissionDenied, "etcdserver: permission denied");
        assert!(matches!(denied.reading("blocks".to_owned()), ReadError::Forbidden { .. }));
        let lost = answered(Code::Unavailable, "etcdserver: no leader");
        assert!(matches!(lost.reading("blocks".to_owned()), ReadError::Unavailable { .. }));
    }

    #[test]
    fn token_that_is_not_known_any_more_is_told_from_a_missing_permission() {
        assert!(answered(Code::Unauthenticated, "etcdserver: invalid auth token").is_stale_token());
        assert!(
            answered(Code::InvalidArgument, "etcdserver: revision of auth store is old").is_stale_token()
        );
        assert!(!answered(Code::PermissionDenied, "etcdserver: permission denied").is_stale_token());
    }
}
