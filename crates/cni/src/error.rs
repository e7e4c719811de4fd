//! The error object that a plugin prints, and its codes.

use api::attachment::ErrorReply;
use serde::{Deserialize, Serialize};

/// What a plugin prints on standard output when it fails (CNI 1.1, section 5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{msg}")]
pub struct CniError {
    /// Version the caller speaks; filled in when it is printed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cni_version: String,
    /// One of the constants of [`code`], or 100 and above for what is particular to a plugin.
    pub code: u32,
    /// What failed, on which object, and what to do.
    pub msg: String,
    /// More of it, for logs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// Error codes of the specification that these plugins use.
pub mod code {
    /// The configuration is of a version that the plugin does not speak, or that lacks the verb.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Variables are missing or malformed.
    pub const BAD_ENVIRONMENT: u32 = 4;
    /// Standard input cannot be read.
    pub const IO: u32 = 5;
    /// Standard input is not what it should be.
    pub const DECODE: u32 = 6;
    /// The configuration is understood and makes no sense.
    pub const BAD_CONFIG: u32 = 7;
    /// The network namespace is the plugin's own.
    pub const OWN_NAMESPACE: u32 = 8;
    /// It may work later.
    pub const TRY_AGAIN: u32 = 11;
    /// The plugin cannot serve ADD now (STATUS).
    pub const NOT_AVAILABLE: u32 = 50;
    /// The plugin cannot serve ADD now, and containers that run may have limited connectivity (STATUS).
    pub const IMPAIRED: u32 = 51;
    /// Failures particular to these plugins: wiring, or an answer that makes no sense.
    pub const PLUGIN: u32 = 100;
    /// An attachment is not as it was added (CHECK).
    pub const DIFFERS: u32 = 101;
}

impl From<ErrorReply> for CniError {
    fn from(reply: ErrorReply) -> Self {
        Self { code: reply.code, msg: reply.message, details: reply.details, ..Self::default() }
    }
}

impl CniError {
    /// An error without details.
    #[must_use]
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), ..Self::default() }
    }

    /// The same with its cause.
    #[must_use]
    pub fn because(mut self, cause: &dyn std::fmt::Display) -> Self {
        self.details = cause.to_string();
        self
    }
}
