//! One request on its way through the agent, and what a caller says and hears.

use super::Ticket;
use crate::block::Taken;
use api::attachment::{AddRequest, DelRequest, ErrorReply};
use api::{Cidr, IpVersion, Use};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

/// CNI error code of what may work when tried again.
pub const TRY_AGAIN: u32 = 11;
/// CNI error code of a request that makes no sense.
pub const BAD_REQUEST: u32 = 7;
/// Plugin error code of a request that could be understood and not be served.
pub const NOT_SERVED: u32 = 100;

/// Number that a caller gives its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Addresses wanted by one attachment or tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Handle to hold them.
    pub handle: String,
    /// Families, one address each, in order.
    pub versions: Vec<IpVersion>,
    /// Pools asked for, by name or CIDR, per family in order; empty: any eligible.
    pub pools: Vec<String>,
    /// One particular address.
    pub requested: Option<IpAddr>,
    /// Attributes stored with the allocation, complete.
    pub attributes: BTreeMap<String, String>,
    /// What they are for.
    pub intended_use: Use,
    /// Labels of the pod's namespace.
    pub namespace_labels: BTreeMap<String, String>,
}

/// Key of the attribute that tells interfaces of one container apart; peers carry it along.
pub const INTERFACE: &str = "interface";

impl Demand {
    /// What a CNI ADD asks for on `node` at `now`.
    ///
    /// # Errors
    /// [`ErrorReply`] with code 7 if the request cannot be served by anybody.
    pub fn pod(request: &AddRequest, node: &str, now: Timestamp) -> Result<Self, ErrorReply> {
        let handle = handle_id(&request.attachment.network, &request.attachment.container)?;
        let mut versions = Vec::new();
        for (version, count) in [(IpVersion::V4, request.ipv4), (IpVersion::V6, request.ipv6)] {
            match count {
                0 => {}
                1 => versions.push(version),
                more => {
                    return Err(bad_request(format!(
                        "{more} {version} addresses were asked for; an attachment gets at most one of a family"
                    )));
                }
            }
        }
        if let Some(address) = request.requested {
            versions = vec![IpVersion::of(address)];
        }
        if versions.is_empty() {
            return Err(bad_request(
                "no address was asked for: turn on assign_ipv4 or assign_ipv6".to_owned(),
            ));
        }
        let mut attributes = request.attributes.clone();
        attributes.insert("node".to_owned(), node.to_owned());
        attributes.insert("timestamp".to_owned(), timestamp(now));
        attributes.entry(INTERFACE.to_owned()).or_insert_with(|| request.attachment.interface.clone());
        Ok(Self {
            handle,
            versions,
            pools: request.ipv4_pools.iter().chain(&request.ipv6_pools).cloned().collect(),
            requested: request.requested,
            attributes,
            intended_use: Use::Workload,
            namespace_labels: BTreeMap::new(),
        })
    }

    /// The IPv4 address of `node`'s VXLAN device, from one of `pools` (dataplane §4.3).
    pub fn vxlan_tunnel(node: &str, pools: Vec<String>) -> Self {
        let attributes = [("node", node), ("type", "vxlanTunnelAddress")];
        Self {
            handle: format!("vxlan-tunnel-addr-{node}"),
            versions: vec![IpVersion::V4],
            pools,
            requested: None,
            attributes: attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            intended_use: Use::Tunnel,
            namespace_labels: BTreeMap::new(),
        }
    }

    pub(super) fn interface(&self) -> Option<&str> {
        self.attributes.get(INTERFACE).map(String::as_str)
    }
}

/// What is to be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surrender {
    /// Handle that holds it.
    pub handle: String,
    /// Only this interface's, and what names no interface. `None`: everything.
    pub interface: Option<String>,
    /// Handle of the form of old releases, looked for in own blocks.
    pub legacy_handle: Option<String>,
}

impl Surrender {
    /// What a CNI DEL asks for.
    ///
    /// # Errors
    /// [`ErrorReply`] with code 7.
    pub fn pod(request: &DelRequest) -> Result<Self, ErrorReply> {
        Ok(Self {
            handle: handle_id(&request.attachment.network, &request.attachment.container)?,
            interface: Some(request.attachment.interface.clone()),
            legacy_handle: request.legacy_handle.clone(),
        })
    }
}

fn bad_request(message: String) -> ErrorReply {
    ErrorReply { code: BAD_REQUEST, message, details: String::new() }
}

/// `<network>.<container>` (data model §7.1), refused where no store could keep it as a name.
fn handle_id(network: &str, container: &str) -> Result<String, ErrorReply> {
    /// Longest object name.
    const LIMIT: usize = 253;
    let id = format!("{network}.{container}");
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if network.is_empty() || container.is_empty() || id.len() > LIMIT || !id.bytes().all(fits) {
        return Err(bad_request(format!(
            "network {network:?} and container {container:?} make no handle: both must be there, of letters, digits, \
             '.', '_' and '-', together at most {LIMIT} characters"
        )));
    }
    Ok(id)
}

/// Go's text form of an instant, as Calico stores it: `2026-08-22 06:33:20.123456789 +0000 UTC`.
fn timestamp(now: Timestamp) -> String {
    format!("{} +0000 UTC", now.strftime("%Y-%m-%d %H:%M:%S%.f"))
}

/// Answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The addresses, in the order of the families asked for. Durable.
    Added(Vec<Taken>),
    /// Nothing is held any more.
    Deleted,
    /// Neither.
    Failed(ErrorReply),
}

/// What became of a job so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// To be placed by the next plan.
    Waiting,
    /// Something is being read for it.
    Reading,
    /// It is part of a commit.
    Flying,
}

/// What a job wants.
#[derive(Clone, Debug)]
pub(super) enum Task {
    Add(Demand),
    Del(Surrender),
}

/// One request on its way.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Who waits for the answer; nobody for the agent's own jobs and once it was answered.
    pub(super) request: Option<RequestId>,
    pub(super) task: Task,
    /// Queue it stands in: jobs of one handle are done one after the other.
    pub(super) turn: String,
    /// Handle it works on now.
    pub(super) handle: String,
    pub(super) stage: Stage,
    pub(super) deadline: Timestamp,
    pub(super) attempts: u32,
    /// Families still to be served.
    pub(super) left: VecDeque<IpVersion>,
    pub(super) got: Vec<Taken>,
    /// Blocks that were looked through for this handle.
    pub(super) visited: BTreeSet<Cidr>,
    /// A commit of it may have left something behind.
    pub(super) tainted: bool,
}

impl Job {
    pub(super) fn interface(&self) -> Option<&str> {
        match &self.task {
            Task::Add(demand) => demand.interface(),
            Task::Del(surrender) => surrender.interface.as_deref(),
        }
    }
}

/// What a commit in flight will mean when it succeeds.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) cidr: Cidr,
    pub(super) writes: Vec<datastore::Write>,
    /// Jobs in it, with the address that each takes.
    pub(super) jobs: Vec<(u64, Option<Taken>)>,
    /// It makes or repairs the block of the running claim.
    pub(super) claims: bool,
}

/// What an outstanding ticket is for.
#[derive(Clone, Debug)]
pub(super) enum Errand {
    Lane(Flight),
    Handle(String),
    Block(Cidr),
    /// Part of the running claim.
    Claim,
    /// A fresh list of all blocks.
    Index,
}

/// Traffic of one block.
#[derive(Clone, Debug, Default)]
pub(super) struct Lane {
    /// Commit in flight, and how many addresses will be free after it.
    pub(super) flying: Option<(Ticket, usize)>,
    pub(super) reading: Option<Ticket>,
    /// What is known of the block is known to be old.
    pub(super) stale: bool,
}

impl Lane {
    pub(super) fn is_idle(&self) -> bool {
        self.flying.is_none() && self.reading.is_none() && !self.stale
    }
}
