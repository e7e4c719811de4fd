//! Keeps the kernel, the Node object and the network configuration in step with what the agent knows.
//!
//! One pass after another, each from what is known at its start; what is learnt meanwhile starts the next one. The first
//! passes are the node's start-up: tunnel address, dataplane, network configuration, in this order, so that no pod is
//! placed on a node that cannot carry its packets, and the tunnel has the first address of the first block.

use crate::cni_conf::{self, Network};
use crate::driver::{Door, Sight};
use crate::health::{Count, Health, Part};
use crate::registry::Registry;
use crate::{Options, host_address, node_object, tunnel};
use api::{Cidr, Pool};
use dataplane::{HostFacts, Inputs, Kernel, NodeAddress, Note, Settings};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// How often host facts are read again and the kernel is compared although nothing was learnt.
const RESYNC: Duration = Duration::from_secs(10);
/// First wait after a pass that failed; doubles up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
/// Longest wait after a pass that failed.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// The task.
pub(crate) struct DataplaneSync {
    options: Options,
    door: Door,
    health: Arc<Health>,
    registry: Registry,
    kernel: Kernel,
    netlink: rtnetlink::Handle,
    /// Address of the host and facts about it, and when they were read.
    host: Option<(Option<NodeAddress>, HostFacts, Instant)>,
    /// Pools that the tunnel's address was made for, and the address.
    tunnel: Option<(Vec<Cidr>, Option<IpAddr>)>,
    network_reported: bool,
    /// What could not be planned, as last said.
    notes: BTreeSet<Note>,
    last: Option<Inputs>,
}

/// Why a pass did not go through.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error("no tunnel address: {0}")]
    Tunnel(String),
    #[error("{}", chain(.0))]
    Node(#[from] node_object::CallError),
    #[error("{}", chain(.0))]
    Host(#[from] host_address::HostAddressError),
    #[error("{}", chain(.0))]
    Apply(#[from] dataplane::ApplyError),
    #[error("{}", chain(.0))]
    Install(#[from] cni_conf::InstallError),
}

/// An error with its causes, for a log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl DataplaneSync {
    pub(crate) fn new(
        options: Options,
        door: Door,
        health: Arc<Health>,
        registry: Registry,
        netlink: rtnetlink::Handle,
    ) -> Result<Self, dataplane::ApplyError> {
        Ok(Self {
            options,
            door,
            health,
            registry,
            kernel: Kernel::open()?,
            netlink,
            host: None,
            tunnel: None,
            network_reported: false,
            notes: BTreeSet::new(),
            last: None,
        })
    }

    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        let mut wait = RESYNC;
        loop {
            let changed = Arc::clone(&self.door.changed);
            tokio::select! {
                () = changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            match self.pass().await {
                Ok(()) => wait = RESYNC,
                Err(error) => {
                    warn!(node = self.options.node_name, reason = %error, "node is not in step yet");
                    wait = if wait == RESYNC { SHORTEST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
                    // What is learnt in a storm of failures waits for the next try.
                    tokio::time::sleep(SHORTEST_WAIT).await;
                }
            }
        }
    }

    async fn pass(&mut self) -> Result<(), PassError> {
        let Some(mut sight) = self.door.look().await.filter(|sight| sight.complete) else { return Ok(()) };
        let Some(node) = sight.node.clone() else { return self.register(&sight).await };
        let (address, facts, resync) = self.host_facts(&node).await?;
        // Routes to others do not wait for a tunnel address that cannot be had.
        let held_before = self.tunnel.clone();
        let tunnel = self.ensure_tunnel(&sight, &node, address).await;
        let tunnel_address = *tunnel.as_ref().unwrap_or(&None);
        if self.tunnel != held_before
            && let Some(after) = self.door.look().await
        {
            // The address may have come with the node's first block.
            sight = after;
        }
        self.program(&sight, address, tunnel_address, facts, resync).await?;
        tunnel?;
        if !self.network_reported {
            self.registry.report_network_up(&self.options.node_name).await?;
            self.network_reported = true;
        }
        Ok(())
    }

    /// Makes the node's record where that is the agent's to make; the next pass begins when it is seen.
    async fn register(&self, sight: &Sight) -> Result<(), PassError> {
        let name = &self.options.node_name;
        if !self.registry.makes_nodes() || sight.locked {
            debug!(node = name, "the cluster has no Node object of this name yet");
            return Ok(());
        }
        let address = host_address::ipv4(&self.netlink, &[]).await?;
        let changes = tunnel::annotations(sight, address, None);
        self.registry.annotate(name, &changes).await?;
        info!(node = name, "recorded the node");
        Ok(())
    }

    async fn host_facts(
        &mut self,
        node: &api::Node,
    ) -> Result<(Option<NodeAddress>, HostFacts, bool), PassError> {
        if let Some((address, facts, at)) = &self.host
            && address.is_some()
            && at.elapsed() < RESYNC
        {
            return Ok((*address, facts.clone(), false));
        }
        let address = host_address::ipv4(&self.netlink, &node.internal_ips).await?;
        let mut own = dataplane::NodeAddresses::of(node);
        own.ipv4 = address.or(own.ipv4);
        let facts = self.kernel.facts(&own).await?;
        self.host = Some((address, facts.clone(), Instant::now()));
        Ok((address, facts, true))
    }

    async fn ensure_tunnel(
        &mut self,
        sight: &Sight,
        node: &api::Node,
        address: Option<NodeAddress>,
    ) -> Result<Option<IpAddr>, PassError> {
        let pools: Vec<Pool> = tunnel::eligible(&sight.pools, node);
        let key: Vec<Cidr> = pools.iter().map(|pool| pool.cidr).collect();
        let name = self.options.node_name.clone();
        let held = match &self.tunnel {
            Some((known, held)) if *known == key => *held,
            _ => {
                let held = tunnel::ensure(&self.door, &name, &pools).await.map_err(PassError::Tunnel)?;
                self.tunnel = Some((key, held));
                held
            }
        };
        let changes = tunnel::annotations(sight, address, held);
        // Under the lock the record stays as it is; the unlocking is learnt, and with it this pass comes again.
        if !changes.is_empty() && !sight.locked {
            self.registry.annotate(&name, &changes).await?;
            let tunnel = held.map_or_else(|| "none".to_owned(), |address| address.to_string());
            info!(node = name, tunnel, "recorded addresses on the Node");
        }
        self.health.set_up(Part::Tunnel);
        Ok(held)
    }

    async fn program(
        &mut self,
        sight: &Sight,
        address: Option<NodeAddress>,
        tunnel: Option<IpAddr>,
        host: HostFacts,
        resync: bool,
    ) -> Result<(), PassError> {
        let name = self.options.node_name.clone();
        let mut nodes = sight.nodes.clone();
        // What is known here first need not come back through the API.
        let own = nodes.entry(name.clone()).or_default();
        own.ipv4 = address.or(own.ipv4);
        own.vxlan_ipv4 = tunnel.or(own.vxlan_ipv4);
        let inputs = Inputs {
            node: name.clone(),
            nodes,
            pools: sight.pools.clone(),
            blocks: sight.blocks.clone(),
            endpoints: sight.endpoints.clone(),
            host,
            settings: Settings::default(),
        };
        if !resync && self.last.as_ref() == Some(&inputs) && self.health.is_up(Part::Configuration) {
            return Ok(());
        }
        let desired = dataplane::plan(&inputs);
        for note in desired.notes.difference(&self.notes) {
            info!(node = name, %note, "left something out of the dataplane");
        }
        self.notes.clone_from(&desired.notes);
        self.last = None;
        dataplane::apply(&mut self.kernel, &desired).await?;
        self.last = Some(inputs);
        self.health.count(Count::Applied);
        if self.health.set_up(Part::Dataplane) {
            info!(node = name, routes = desired.routes.len(), "applied the dataplane for the first time");
        }
        if self.health.is_up(Part::Tunnel) {
            let network = Network {
                node: &name,
                mtu: self.options.mtu.unwrap_or(desired.pod_mtu),
                agent_socket: &self.options.cni_plugin_socket,
                datastore: &self.options.datastore,
            };
            if cni_conf::install(&self.options.cni_conf_dir, &network)? {
                info!(node = name, mtu = network.mtu, "installed the network configuration");
            }
            self.health.set_up(Part::Configuration);
        }
        Ok(())
    }
}
