//! A connection to the kernel of one network namespace, and what was last brought into it.

use crate::desired::Desired;
use crate::inputs::{HostFacts, NodeAddresses};
use crate::links::{self, Link};
use crate::routes::RouteKey;
use api::IpVersion;
use futures::StreamExt as _;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

/// How often a dump that the kernel changed under us is begun anew before it is taken as it is.
const DUMP_ATTEMPTS: u32 = 4;

/// Why the kernel could not be read or brought to the desired state.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The kernel refused, or the connection to it is gone. What was written before stays; apply again.
    #[error("{doing} failed; apply again, and look for CAP_NET_ADMIN in this namespace if it stays so")]
    Netlink {
        /// What was attempted, on which object.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The nftables script was refused or `nft` cannot be run. Routes and tunnels are in place all the same.
    #[error(
        "nft did not take the rules of table calico: {reason}; install Debian's package nftables if it is missing"
    )]
    Nft {
        /// What it said.
        reason: String,
    },
}

impl ApplyError {
    pub(crate) fn netlink(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Netlink { doing, source }
    }
}

/// The kernel of the namespace that this was opened in.
///
/// Holds a netlink socket and what was last applied, so that the next apply need not read everything again.
#[derive(Debug)]
pub struct Kernel {
    handle: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
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
        let opening = || ApplyError::netlink("opening a netlink socket");
        let (connection, handle, _) = rtnetlink::new_connection().map_err(opening())?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
            last: None,
            nft: None,
            strangers: BTreeMap::new(),
        })
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
        let links = links::read(self).await?;
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

    /// Sends one change and waits for the kernel's acknowledgement.
    pub(crate) async fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle.request(request).map_err(io::Error::other)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return match error.code {
                    None => Ok(()),
                    Some(_) => Err(error.to_io()),
                };
            }
        }
        Ok(())
    }

    /// Reads a table whole. A dump that changed while it was read is read again.
    pub(crate) async fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut attempt = 1;
        loop {
            let mut request = NetlinkMessage::from(message.clone());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut answers = self.handle.request(request).map_err(io::Error::other)?;
            let mut found = Vec::new();
            let mut interrupted = false;
            while let Some(answer) = answers.next().await {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => {}
                }
            }
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(found);
            }
            attempt += 1;
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
