//! One request on its way through the agent, and what a caller says and hears.

use super::Ticket;
use crate::account::Account;
use crate::block::Taken;
use crate::explain::{BlockOutcome, BlockTried, Few};
use crate::host_reserved::HostReserved;
use api::attachment::{AddRequest, DelRequest, ErrorReply};
use api::{Cidr, IpVersion, Use};
use datastore::{Key, Revision};
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
    /// Families, one address each, in order; a family that is named more than once gets as many addresses. At most
    /// [`MOST_ADDRESSES`].
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
    /// Addresses of a family that the handle may hold, as a virtual machine's does; 0: any number. What it holds already
    /// is then the answer, whichever interface it was taken for.
    pub max_per_handle: u32,
    /// What the node keeps for itself in each block that it makes, as Windows nodes do.
    pub reserved: Option<HostReserved>,
    /// Blocks that the node may have for this, 1 for a host of a single network; 0: as configured.
    pub max_blocks: u32,
}

/// Addresses that one request may ask for: as many as the largest block has.
pub const MOST_ADDRESSES: usize = 4096;

/// Key of the attribute that tells interfaces of one container apart; peers carry it along.
pub const INTERFACE: &str = "interface";

impl Demand {
    /// Addresses of `versions` for a workload, from any eligible pool and without a cap.
    pub fn new(
        handle: impl Into<String>,
        versions: Vec<IpVersion>,
        attributes: BTreeMap<String, String>,
    ) -> Self {
        Self {
            handle: handle.into(),
            versions,
            pools: Vec::new(),
            requested: None,
            attributes,
            intended_use: Use::Workload,
            namespace_labels: BTreeMap::new(),
            max_per_handle: 0,
            reserved: None,
            max_blocks: 0,
        }
    }

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
            pools: request.ipv4_pools.iter().chain(&request.ipv6_pools).cloned().collect(),
            requested: request.requested,
            ..Self::new(handle, versions, attributes)
        })
    }

    /// The IPv4 address of `node`'s VXLAN device, from one of `pools` (dataplane §4.3).
    pub fn vxlan_tunnel(node: &str, pools: Vec<String>) -> Self {
        let attributes = [("node", node), ("type", "vxlanTunnelAddress")];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Self {
            pools,
            intended_use: Use::Tunnel,
            ..Self::new(format!("vxlan-tunnel-addr-{node}"), vec![IpVersion::V4], attributes)
        }
    }

    /// Only what this interface holds is the answer to a repeated request; a capped handle holds for all of them.
    pub(super) fn interface(&self) -> Option<&str> {
        self.attributes.get(INTERFACE).map(String::as_str).filter(|_| self.max_per_handle == 0)
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
    /// Reads without answer while it waited for one.
    pub(super) unanswered: u32,
    /// Families still to be served.
    pub(super) left: VecDeque<IpVersion>,
    pub(super) got: Vec<Taken>,
    /// Addresses in a block whose handle has to be seen again before they count: their write took long.
    pub(super) pledged: Vec<Taken>,
    /// Held before the request came: stays, whatever becomes of it.
    pub(super) spare: BTreeSet<IpAddr>,
    /// Blocks that were looked through for this handle.
    pub(super) visited: BTreeSet<Cidr>,
    /// Blocks that the store was asked for since the request came, or since a commit of it, and has told of.
    pub(super) looked: BTreeSet<Cidr>,
    /// Number of the step that it came in with, or of its last commit: only reads with a later ticket were asked for since.
    pub(super) since: u64,
    /// Blocks of others that had nothing for it.
    pub(super) passed: BTreeSet<Cidr>,
    /// A commit of it may have left something behind.
    pub(super) tainted: bool,
    /// What came of the blocks that were tried, for its account.
    pub(super) tried: Few<BlockTried>,
    /// Records that changed under it, for its account.
    pub(super) conflicts: Few<String>,
    /// Its account was told already.
    pub(super) explained: bool,
    /// What a release came to so far.
    pub(super) account: Account,
    /// Addresses that the commit gives back which a release is part of.
    pub(super) giving: usize,
}

impl Job {
    pub(super) fn new(request: Option<RequestId>, task: Task, deadline: Timestamp) -> Self {
        let (handle, left) = match &task {
            Task::Add(demand) => (demand.handle.clone(), demand.versions.iter().copied().collect()),
            Task::Del(surrender) => (surrender.handle.clone(), VecDeque::new()),
        };
        Self {
            request,
            task,
            account: Account::of(format!("release of handle {handle}")),
            giving: 0,
            turn: handle.clone(),
            handle,
            stage: Stage::Waiting,
            deadline,
            attempts: 0,
            unanswered: 0,
            left,
            got: Vec::new(),
            pledged: Vec::new(),
            spare: BTreeSet::new(),
            visited: BTreeSet::new(),
            looked: BTreeSet::new(),
            since: 0,
            passed: BTreeSet::new(),
            tainted: false,
            tried: Few::default(),
            conflicts: Few::default(),
            explained: false,
        }
    }

    /// Whether its time can run out: a commit is waited for, once nobody waits for the answer.
    pub(super) fn can_be_late(&self) -> bool {
        self.request.is_some() || self.stage != Stage::Flying
    }

    pub(super) fn interface(&self) -> Option<&str> {
        match &self.task {
            Task::Add(demand) => demand.interface(),
            Task::Del(surrender) => surrender.interface.as_deref(),
        }
    }

    pub(super) fn tried(&mut self, block: Cidr, outcome: BlockOutcome) {
        self.tried.push(BlockTried { block, outcome });
    }
}

/// What a commit in flight will mean when it succeeds.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    /// The block that it is about: no other commit of it is made meanwhile. `None`: a handle alone.
    pub(super) cidr: Option<Cidr>,
    pub(super) writes: Vec<datastore::Write>,
    /// Jobs in it, with the addresses that each takes.
    pub(super) jobs: Vec<(u64, Option<Taken>)>,
    /// It makes or repairs the block of the running claim.
    pub(super) claims: bool,
    pub(super) sent: Timestamp,
}

impl Flight {
    /// Its block, if that is among what it writes.
    pub(super) fn block_written(&self) -> Option<Cidr> {
        self.cidr.filter(|cidr| self.writes.iter().any(|write| write.key() == Key::Block(*cidr)))
    }
}

/// What an outstanding ticket is for. Reads carry the revision that was known when they began.
#[derive(Clone, Debug)]
pub(super) enum Errand {
    Lane(Flight),
    Handle(String),
    Block(Cidr, Option<Revision>),
    /// The running claim looks at its affinity or its pool.
    ClaimRead(Key, Option<Revision>),
    /// The running claim takes its affinity away.
    ClaimDrop(Key),
    /// Affinity or block of another owner that may be taken back.
    ReclaimRead(Key, Option<Revision>),
    /// A commit that takes a block back.
    Reclaim(Vec<datastore::Write>),
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
    /// A write of the block may have happened or may still happen, for these handles. A read does not end that: a write
    /// of the block does, since the late one then meets another revision.
    pub(super) unsure: Option<BTreeSet<String>>,
}

impl Lane {
    pub(super) fn is_idle(&self) -> bool {
        self.flying.is_none() && self.reading.is_none() && !self.stale && self.unsure.is_none()
    }
}
