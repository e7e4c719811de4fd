//! The kernel of one network namespace: the way to it, and what was last brought into it.

use crate::desired::Desired;
use crate::failure::ApplyError;
use crate::inputs::{HostFacts, NodeAddresses};
use crate::links::{self, Link};
use crate::netlink::Netlink;
use crate::routes::RouteKey;
use api::IpVersion;
use std::collections::BTreeMap;
use std::time::Instant;

/// The kernel of the namespace that this was opened in.
///
/// Holds a netlink socket and what was last applied, so that the next apply need not read everything again.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) netlink: Netlink,
    /// What the last complete pass left behind, and when.
    pub(crate) last: Option<(Desired, Instant)>,
    /// The script that nft last took, and when its presence was last seen.
    pub(crate) nft: Option<(String, Instant)>,
    /// Routes of `cali…` interfaces that nobody asked for, and when they were first seen.
    pub(crate) strangers: BTreeMap<RouteKey, Instant>,
}

impl Kernel {
    /// Connects to the kernel of the calling thread's network namespace. The connection stays there even if the
    /// thread goes elsewhere.
    ///
    /// # Errors
    /// [`ApplyError::Netlink`] if the socket cannot be made.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn open() -> Result<Self, ApplyError> {
        let netlink = Netlink::open().map_err(ApplyError::netlink("opening a netlink socket"))?;
        Ok(Self { netlink, last: None, nft: None, strangers: BTreeMap::new() })
    }

    /// Forgets what was applied: the next apply reads the whole kernel. For use after a sign that someone else
    /// changed something, such as a link event.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// What the kernel knows that planning needs: the interface that holds the node's address, and the MTU of
    /// the host's network (dataplane §8: the smallest of the interfaces that are up and look like hardware).
    ///
    /// # Errors
    /// [`ApplyError::Netlink`] if the kernel cannot be read.
    pub async fn facts(&mut self, node: &NodeAddresses) -> Result<HostFacts, ApplyError> {
        let links = links::read(&mut self.netlink).await?;
        let holder = |version: IpVersion| {
            let wanted = node.address(version)?.address;
            let holds = |link: &&Link| link.addresses.iter().any(|(address, _)| *address == wanted);
            links.iter().find(holds).map(|link| link.name.clone())
        };
        let hardware = links.iter().filter(|link| link.up && links::looks_like_hardware(&link.name));
        Ok(HostFacts {
            parent_ipv4: holder(IpVersion::V4),
            parent_ipv6: holder(IpVersion::V6),
            mtu: hardware.map(|link| link.mtu).min().unwrap_or_else(|| HostFacts::default().mtu),
        })
    }
}
