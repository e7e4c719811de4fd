//! The plugin `calico-ipam`: asks the node's agent for addresses and gives them back.

use crate::agent::Agent;
use crate::error::{CniError, code};
use crate::invocation::{Invocation, Verbs};
use crate::result::{AddResult, Address, Route};
use api::attachment::{AddRequest, Attachment, DelRequest};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long STATUS waits for the agent: a runtime asks often, and silence is an answer.
const STATUS_DEADLINE: Duration = Duration::from_secs(3);

/// `calico-ipam`.
#[derive(Clone, Copy, Debug)]
pub struct Ipam;

/// The agent's key for this call.
fn attachment(call: &Invocation) -> Attachment {
    Attachment {
        network: call.config.name.clone(),
        container: call.environment.container.clone(),
        interface: call.environment.interface.clone(),
    }
}

/// What is asked of the agent for an ADD.
#[must_use]
pub fn add_request(call: &Invocation) -> AddRequest {
    let arguments = &call.environment.arguments;
    let config = &call.config;
    let mut attributes = BTreeMap::new();
    attributes.insert("interface".to_owned(), call.environment.interface.clone());
    if let Some((namespace, pod)) = arguments.pod() {
        attributes.insert("namespace".to_owned(), namespace.to_owned());
        attributes.insert("pod".to_owned(), pod.to_owned());
        if !arguments.pod_uid.is_empty() {
            attributes.insert("pod-uid".to_owned(), arguments.pod_uid.clone());
        }
    }
    AddRequest {
        attachment: attachment(call),
        ipv4: u32::from(config.wants_ipv4()),
        ipv6: u32::from(config.wants_ipv6()),
        ipv4_pools: config.ipam.ipv4_pools.clone(),
        ipv6_pools: config.ipam.ipv6_pools.clone(),
        requested: arguments.address,
        attributes,
        namespace: arguments.pod().map(|(namespace, _)| namespace.to_owned()),
    }
}

/// What is asked of the agent for a DEL.
#[must_use]
pub fn del_request(call: &Invocation) -> DelRequest {
    // Releases before Calico 3 named handles otherwise; an upgrade must not lose their addresses.
    let legacy = match call.environment.arguments.pod() {
        Some((namespace, pod)) => format!("{namespace}.{pod}"),
        None => call.environment.container.clone(),
    };
    DelRequest { attachment: attachment(call), legacy_handle: Some(legacy) }
}

impl Verbs for Ipam {
    fn add(&self, call: &Invocation) -> Result<AddResult, CniError> {
        let request = add_request(call);
        if request.ipv4 == 0 && request.ipv6 == 0 && request.requested.is_none() {
            return Ok(AddResult::default());
        }
        let reply = Agent::at(call.config.agent_socket()).add(&request)?;
        let ips = reply.addresses.iter().cloned().map(|address| Address { address, interface: None });
        // A route of the block's length for each address: that is what Calico's result carries.
        let routes = reply.addresses.iter().cloned().map(|dst| Route { dst });
        Ok(AddResult { interfaces: Vec::new(), ips: ips.collect(), routes: routes.collect() })
    }

    fn del(&self, call: &Invocation) -> Result<(), CniError> {
        Agent::at(call.config.agent_socket()).del(&del_request(call))
    }

    /// Sees that the earlier result has addresses and that the agent, which holds them, answers. Whether each is still
    /// held is the collector's business.
    fn check(&self, call: &Invocation) -> Result<(), CniError> {
        let Some(previous) = call.config.previous.clone() else {
            return Err(CniError::new(code::BAD_CONFIG, "prevResult is missing from the configuration"));
        };
        if AddResult::from_value(previous)?.ips.is_empty() {
            return Err(CniError::new(code::BAD_CONFIG, "prevResult names no address"));
        }
        Agent::at(call.config.agent_socket()).status()
    }

    fn status(&self, call: &Invocation) -> Result<(), CniError> {
        let agent = Agent::at(call.config.agent_socket()).within(STATUS_DEADLINE);
        agent.status().map_err(|error| CniError { code: code::NOT_AVAILABLE, ..error })
    }

    /// Nothing to do here: the controllers collect what belongs to no pod, after a grace period.
    fn gc(&self, _: &Invocation) -> Result<(), CniError> {
        Ok(())
    }
}
