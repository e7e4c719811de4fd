//! The API server as clients meet it: over TLS and HTTP, with certificates, objects, watches and deletions.

#![expect(clippy::unwrap_used, reason = "tests")]

mod access;
mod commits;
mod custom_resources;
mod deletion;
mod lists;
mod pool_rules;
#[expect(dead_code, reason = "the checklist asks more of it")]
mod support;
mod tunnel;
mod watches;
mod writes;
