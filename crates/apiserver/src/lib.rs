//! The embedded Kubernetes API: discovery, objects, watches, tables and custom resources over `storage`.

pub mod age;
pub mod apply;
pub mod defaults;
pub mod error;
pub mod jsonpath;
pub mod kubelet_tunnel;
pub mod negotiation;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod schema;
pub mod selector;
pub mod strategic;
pub mod table;
pub mod validate;
