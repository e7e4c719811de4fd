//! The network between the nodes: a bridge in a namespace of its own, and each node's `eth0` on it.

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Do not probe whether somebody else has the IPv6 address: the lab gives each out once.
const NO_DUPLICATE_DETECTION: u8 = 0x02;

/// A kernel socket for the network namespace that the calling thread is in, served by the current runtime.
pub(super) fn open() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Brings the loopback up.
pub(super) async fn raise_loopback(inside: &Handle) -> Result<()> {
    raise(inside, "lo").await
}

/// Makes the bridge `name`.
pub(super) async fn make_bridge(inside: &Handle, name: &str, addresses: &[IpNet]) -> Result<()> {
    inside
        .link()
        .add(LinkBridge::new(name).address(hardware_address(addresses)).up().build())
        .execute()
        .await
        .with_context(|| format!("making the bridge {name}"))?;
    give_addresses(inside, name, addresses).await
}

/// Makes the wire between `bridge`, in the namespace of `outside`, and an `eth0` in the namespace `network` of
/// `inside`, with its addresses and default routes.
pub(super) async fn make_uplink(
    outside: &Handle,
    inside: &Handle,
    network: BorrowedFd<'_>,
    bridge: &str,
    port: &str,
    addresses: &[IpNet],
    gateways: &[IpAddr],
) -> Result<()> {
    let controller = index(outside, bridge).await?;
    // The peer is made where it belongs: moving it there afterwards costs ten times as much.
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name("eth0")
        .address(hardware_address(addresses))
        .setns_by_fd(network.as_raw_fd())
        .build();
    let link = LinkMessageBuilder::<LinkVeth>::new(port, "eth0")
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .controller(controller)
        .up()
        .build();
    outside.link().add(link).execute().await.with_context(|| format!("making the wire {port}"))?;
    raise(inside, "eth0").await?;
    give_addresses(inside, "eth0", addresses).await?;
    for gateway in gateways {
        let route = match gateway {
            IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(*gateway).build(),
            IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(*gateway).build(),
        };
        inside.route().add(route).execute().await.with_context(|| format!("default route via {gateway}"))?;
    }
    Ok(())
}

async fn give_addresses(inside: &Handle, name: &str, addresses: &[IpNet]) -> Result<()> {
    let index = index(inside, name).await?;
    for address in addresses {
        let mut request = inside.address().add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |=
                netlink_packet_route::address::AddressHeaderFlags::from_bits_retain(NO_DUPLICATE_DETECTION);
        }
        let given = request.execute().await;
        // A kernel without IPv6 gives a lab without IPv6: nothing of the lesson needs it.
        if address.addr().is_ipv4() {
            given.with_context(|| format!("giving {address} to {name}"))?;
        } else if let Err(error) = given {
            tracing::warn!(%address, link = name, %error, "left out an IPv6 address");
        }
    }
    Ok(())
}

async fn raise(inside: &Handle, name: &str) -> Result<()> {
    inside
        .link()
        .set(LinkUnspec::new_with_name(name).up().build())
        .execute()
        .await
        .with_context(|| format!("bringing {name} up"))
}

async fn index(inside: &Handle, name: &str) -> Result<u32> {
    let link = inside.link().get().match_name(name.to_owned()).execute().try_next().await;
    Ok(link
        .with_context(|| format!("looking for {name}"))?
        .with_context(|| format!("there is no link {name}"))?
        .header
        .index)
}

/// `02:42:` and the IPv4 address: a bridge whose address changed with its ports would be lost to its neighbours.
fn hardware_address(addresses: &[IpNet]) -> Vec<u8> {
    let octets = addresses.iter().find_map(|address| match address.addr() {
        IpAddr::V4(address) => Some(address.octets()),
        IpAddr::V6(_) => None,
    });
    let [a, b, c, d] = octets.unwrap_or([0, 0, 0, 1]);
    vec![0x02, 0x42, a, b, c, d]
}
