//! Attachments as blocks record them: which are left over once a runtime says what it still has (CNI's GC), and whether
//! an address is still what an ADD answered (CHECK). Pure.

use crate::agent::INTERFACE;
use crate::block::{self, Release};
use crate::query::Holder;
use api::attachment::{Attachment, NETWORK, SANDBOX, ValidAttachment};
use api::{Attribute, Block};
use std::collections::BTreeSet;

/// Second part of the handles of virtual machines, whose addresses outlive their pods.
const MACHINES: &str = "vmi.";

/// An address of an attachment that its runtime does not know any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Gives it back, if it still is what was seen.
    pub release: Release,
    /// Its namespace, where the ADD recorded it.
    pub sandbox: Option<String>,
}

/// What `network` holds for containers of `node` beside `valid`, in the order of blocks and addresses.
///
/// Left alone are the addresses of other networks, nodes and virtual machines, those of the nodes themselves, and those that
/// cool down. A handle is `<network>.<container>`, and both may contain dots: where the attribute with the network's name
/// is missing, as Calico's plugin leaves it, a container with dots may be another network's, and stays. Where that with the
/// interface is missing, any valid interface of the container keeps the address.
pub fn leftovers<'a>(
    blocks: impl IntoIterator<Item = &'a Block>,
    node: &str,
    network: &str,
    valid: &BTreeSet<ValidAttachment>,
) -> Vec<Leftover> {
    let containers: BTreeSet<&str> = valid.iter().map(|valid| valid.container.as_str()).collect();
    let stays = |held: &Attribute, container: &str| match held.secondary.get(INTERFACE) {
        None => containers.contains(container),
        Some(interface) => {
            valid.contains(&ValidAttachment { container: container.to_owned(), interface: interface.clone() })
        }
    };
    let mut found = Vec::new();
    for block in blocks {
        for (ordinal, held) in block::allocated(block) {
            let Some(container) = container_of(held, node, network) else { continue };
            if stays(held, container) {
                continue;
            }
            let Some(address) = block.cidr.address(ordinal) else { continue };
            let release = Release {
                address,
                handle: held.handle_id.as_deref().map(|handle| block::sanitized(handle).to_owned()),
                sequence: Some(block::stamp(block, ordinal)),
            };
            found.push(Leftover { release, sandbox: held.secondary.get(SANDBOX).cloned() });
        }
    }
    found
}

/// The container of `network` on `node` that holds this, if one does.
fn container_of<'a>(held: &'a Attribute, node: &str, network: &str) -> Option<&'a str> {
    if held.released_at.is_some() || held.secondary.get("node").is_none_or(|found| found != node) {
        return None;
    }
    let handle = block::sanitized(held.handle_id.as_deref()?);
    let container = handle.strip_prefix(network)?.strip_prefix('.')?;
    if container.is_empty() || container.starts_with(MACHINES) || held.secondary.contains_key("vmi-name") {
        return None;
    }
    let ours = match held.secondary.get(NETWORK) {
        Some(named) => named == network,
        None => !container.contains('.'),
    };
    ours.then_some(container)
}

/// In what `holder`, who has the address now, differs from what an ADD of `attachment` left; `None`: in nothing.
pub fn difference(holder: &Holder, attachment: &Attachment) -> Option<String> {
    let handle = format!("{}.{}", attachment.network, attachment.container);
    let machine = format!("{}.{MACHINES}", attachment.network);
    match holder {
        Holder::Nobody => Some("it is not allocated".to_owned()),
        Holder::Cooling => Some("it was released".to_owned()),
        Holder::Allocated { handle: None, .. } => Some("it is allocated without a handle".to_owned()),
        Holder::Allocated { handle: Some(found), .. } if found.starts_with(&machine) => None,
        Holder::Allocated { handle: Some(found), .. } if *found != handle => {
            Some(format!("it is allocated to handle {found}, not to {handle}"))
        }
        Holder::Allocated { active, .. } => {
            active.get(INTERFACE).filter(|found| **found != attachment.interface).map(|found| {
                format!(
                    "it is allocated to interface {found} of the container, not to {}",
                    attachment.interface
                )
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Owner;
    use jiff::Timestamp;
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// A block with these handles and attributes from its first address on.
    fn block_of(held: &[(&str, &[(&str, &str)])]) -> Block {
        let mut block =
            block::new_block("10.0.0.0/26".parse().unwrap(), &Owner::host("n1"), Timestamp::UNIX_EPOCH);
        for (handle, pairs) in held {
            let take = block::Take {
                count: 1,
                handle: Some(handle),
                attributes: &attributes(pairs),
                reserved: &crate::ReservationSet::default(),
                avoid: &BTreeSet::new(),
                only_owner: None,
            };
            assert_eq!(block::take(&mut block, &take).unwrap().len(), 1);
        }
        block
    }

    fn valid(pairs: &[(&str, &str)]) -> BTreeSet<ValidAttachment> {
        pairs
            .iter()
            .map(|(container, interface)| ValidAttachment {
                container: (*container).to_owned(),
                interface: (*interface).to_owned(),
            })
            .collect()
    }

    #[test]
    fn exactly_what_is_not_valid_is_left_over() {
        let block = block_of(&[
            ("net.a", &[("node", "n1"), ("interface", "eth0"), ("network", "net")]),
            ("net.a", &[("node", "n1"), ("interface", "net1"), ("network", "net")]),
            ("net.b", &[("node", "n1"), ("interface", "eth0"), ("network", "net"), ("sandbox", "7:/run/x")]),
            // Another node, another network whose name begins alike, a network of another name, a machine, the node itself.
            ("net.c", &[("node", "n2"), ("interface", "eth0"), ("network", "net")]),
            ("net.x.d", &[("node", "n1"), ("interface", "eth0"), ("network", "net.x")]),
            ("other.e", &[("node", "n1"), ("interface", "eth0"), ("network", "other")]),
            ("net.vmi.default.vm1", &[("node", "n1")]),
            ("vxlan-tunnel-addr-n1", &[("node", "n1"), ("type", "vxlanTunnelAddress")]),
            // What Calico's plugin wrote: of a valid container, of none, and of what may be another network.
            ("net.f", &[("node", "n1")]),
            ("net.g", &[("node", "n1")]),
            ("net.h.i", &[("node", "n1")]),
        ]);
        let found = leftovers([&block], "n1", "net", &valid(&[("a", "eth0"), ("f", "eth7")]));
        let told: Vec<(String, Option<&str>)> =
            found.iter().map(|found| (found.release.address.to_string(), found.sandbox.as_deref())).collect();
        let expected = [("10.0.0.1", None), ("10.0.0.2", Some("7:/run/x")), ("10.0.0.9", None)];
        assert_eq!(told, expected.map(|(address, sandbox)| (address.to_owned(), sandbox)));
        assert!(found.iter().all(|found| found.release.handle.is_some() && found.release.sequence.is_some()));
        assert_eq!(leftovers([&block], "n1", "net", &valid(&[])).len(), 5);
    }

    #[test]
    fn what_cools_down_is_nobodys() {
        let mut block = block_of(&[("net.a", &[("node", "n1"), ("network", "net")])]);
        let address: IpAddr = "10.0.0.0".parse().unwrap();
        let release = Release { address, handle: None, sequence: None };
        block::release(&mut block, &[release], 60, Timestamp::UNIX_EPOCH).unwrap();
        assert!(leftovers([&block], "n1", "net", &BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_check_says_what_differs() {
        let attachment =
            Attachment { network: "net".to_owned(), container: "a".to_owned(), interface: "eth0".to_owned() };
        let held = |handle: Option<&str>, pairs: &[(&str, &str)]| Holder::Allocated {
            handle: handle.map(str::to_owned),
            active: attributes(pairs),
            alternate: BTreeMap::new(),
            sequence: 1,
        };
        for (holder, word) in [
            (held(Some("net.a"), &[("interface", "eth0")]), None),
            (held(Some("net.a"), &[]), None),
            (held(Some("net.vmi.default.vm1"), &[]), None),
            (held(Some("net.a"), &[("interface", "net1")]), Some("interface net1")),
            (held(Some("net.b"), &[]), Some("net.b")),
            (held(None, &[]), Some("without a handle")),
            (Holder::Nobody, Some("not allocated")),
            (Holder::Cooling, Some("released")),
        ] {
            let told = difference(&holder, &attachment);
            match word {
                None => assert_eq!(told, None, "{holder:?}"),
                Some(word) => assert!(told.as_ref().is_some_and(|told| told.contains(word)), "{told:?}"),
            }
        }
    }
}
