//! One request without an agent: what the CNI IPAM plugin says to the program that goes to the datastore for it.
//!
//! The plugin executes `tortie cni direct` and writes a [`DirectCall`]. Exit status 0: standard output holds what the agent would
//! have answered. Else it holds an [`ErrorReply`](crate::attachment::ErrorReply).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Calico's lock of a node: whoever assigns or releases for the node holds it meanwhile.
pub const LOCK_FILE: &str = "/var/run/calico/ipam.lock";

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectCall {
    /// Path of the agent's request that is meant: `/v1/add`.
    pub path: String,
    /// Its body.
    pub body: Value,
    /// Name of the node.
    pub node: String,
    /// Calico's variables for the datastore, as the network configuration sets them; they win over the environment.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// The node's lock.
    pub lock_file: PathBuf,
    /// With a DEL: addresses that the ADD answered, where they are known.
    #[serde(default)]
    pub answered: Vec<String>,
}
