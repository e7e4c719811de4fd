//! Why the kernel could not be brought to the desired state.

use std::io;

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
