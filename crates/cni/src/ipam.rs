//! The plugin `calico-ipam`: asks for addresses and gives them back.

use crate::error::{CniError, code};
use crate::invocation::{Invocation, Verbs};
use crate::result::{AddResult, Address, Route};
use crate::sandbox;
use crate::server::Server;
use crate::wire;
use api::attachment::{
    AddCall, AddRequest, Attachment, CheckRequest, DelRequest, GcRequest, NETWORK, SANDBOX, StatusRequest,
};
use api::{Cidr, IpVersion};
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
    attributes.insert(NETWORK.to_owned(), config.name.clone());
    // A namespace that does not exist is not ours to judge: the main plugin says so.
    attributes
        .extend(sandbox::describe(&call.environment.netns).map(|sandbox| (SANDBOX.to_owned(), sandbox)));
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

/// Refuses pools named by a CIDR of the other family.
fn check_families(request: &AddRequest) -> Result<(), CniError> {
    for (pools, version) in [(&request.ipv4_pools, IpVersion::V4), (&request.ipv6_pools, IpVersion::V6)] {
        let other = |pool: &&String| pool.parse::<Cidr>().is_ok_and(|cidr| cidr.version() != version);
        if let Some(pool) = pools.iter().find(other) {
            let message =
                format!("{pool:?} isn't a {version} address: name it in the list of the other family");
            return Err(CniError::new(code::BAD_CONFIG, message));
        }
    }
    Ok(())
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
    fn add(&self, invocation: &Invocation) -> Result<AddResult, CniError> {
        let request = add_request(invocation);
        let annotations = invocation.config.reads_annotations();
        // A pod's annotations may ask for what the configuration does not.
        if request.ipv4 == 0 && request.ipv6 == 0 && request.requested.is_none() && !annotations {
            return Ok(AddResult::default());
        }
        check_families(&request)?;
        let server = Server::of(invocation)?;
        let call = AddCall {
            annotations,
            // Only what is known to be the same pod is taken over from.
            looks: !invocation.environment.arguments.pod_uid.is_empty(),
            request,
            gone: Vec::new(),
        };
        let addresses = server.attach(call)?;
        let is_ptp = invocation.config.kind == "ptp";
        let ips = addresses.iter().cloned().map(|address| Address {
            // That plugin gives the host's end the gateway's address. The one that Calico's pods have is free on every wire.
            gateway: is_ptp.then(|| wire::gateway(address.contains(':'))),
            address,
            interface: None,
        });
        // A route of the block's length for each address: that is what Calico's result carries, and what its main plugin
        // wants to see. Others take routes for what they are, and this one has bits beyond its prefix.
        let is_calicos = matches!(invocation.config.kind.as_str(), "" | "calico");
        let routes = addresses.iter().filter(|_| is_calicos).cloned().map(|dst| Route { dst });
        Ok(AddResult { interfaces: Vec::new(), ips: ips.collect(), routes: routes.collect() })
    }

    fn del(&self, call: &Invocation) -> Result<(), CniError> {
        Server::of(call)?.del(&del_request(call))
    }

    /// Compares the addresses of the earlier result with the datastore.
    fn check(&self, call: &Invocation) -> Result<(), CniError> {
        let Some(previous) = call.config.previous.clone() else {
            return Err(CniError::new(code::BAD_CONFIG, "prevResult is missing from the configuration"));
        };
        let addresses = AddResult::from_value(previous)?.ips.into_iter().map(|ip| ip.address).collect();
        let request = CheckRequest { attachment: attachment(call), addresses };
        if request.addresses.is_empty() {
            return Err(CniError::new(code::BAD_CONFIG, "prevResult names no address"));
        }
        Server::of(call)?.check(&request)
    }

    fn status(&self, call: &Invocation) -> Result<(), CniError> {
        let config = &call.config;
        let request = StatusRequest {
            ipv4: u32::from(config.wants_ipv4()),
            ipv6: u32::from(config.wants_ipv6()),
            ipv4_pools: config.ipam.ipv4_pools.clone(),
            ipv6_pools: config.ipam.ipv6_pools.clone(),
        };
        let server = Server::of(call)?.within(STATUS_DEADLINE);
        // Whatever else keeps it from answering, as an agent that does not: a runtime understands these two.
        server.status(&request).map_err(|error| match error.code {
            code::NOT_AVAILABLE | code::IMPAIRED => error,
            _ => CniError { code: code::NOT_AVAILABLE, ..error },
        })
    }

    /// Has what no valid attachment holds given back: at once where the ADD recorded no namespace, else when that is gone.
    fn gc(&self, call: &Invocation) -> Result<(), CniError> {
        if call.config.gc_disabled {
            return Ok(());
        }
        let mut request = GcRequest {
            network: call.config.name.clone(),
            valid: call.config.valid_attachments()?,
            gone: Vec::new(),
        };
        let server = Server::of(call)?;
        let asked = server.gc(&request)?.asked;
        request.gone = asked.into_iter().filter(|sandbox| sandbox::is_gone(sandbox)).collect();
        if !request.gone.is_empty() {
            server.gc(&request)?;
        }
        Ok(())
    }
}
