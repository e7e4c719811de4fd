//! `ipam show`: how full pools and blocks are, who has an address, what is borrowed, how IPAM is configured (calicoctl §2).

use crate::arguments::Show;
use crate::failure::Failure;
use crate::number::{five_digits, share};
use crate::table::ruled;
use api::{Attribute, Block, IpamConfig};
use datastore::Datastore;
use ipam::query::{Holder, holder_of, utilization_of};
use ipam::utilization::{Count, Utilization};
use ipam::{Clock, ReservationSet, block, seen};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Runs the command. If several options are given the first in this order wins.
pub(crate) async fn run<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    options: &Show,
) -> Result<String, Failure> {
    if let Some(ip) = &options.ip {
        let address = address(ip)?;
        return render_holder(address, &holder_of(store, clock, address).await?);
    }
    if options.show_blocks {
        let (counted, reserved) = utilization_of(store).await?;
        return Ok(render_utilization(&counted, &reserved, true));
    }
    if options.show_borrowed {
        let blocks = seen::blocks(store).await?;
        return Ok(render_borrowed(blocks.iter().map(|seen| &seen.value)));
    }
    if options.show_configuration {
        return Ok(render_configuration(&seen::config(store).await?));
    }
    let (counted, reserved) = utilization_of(store).await?;
    Ok(render_utilization(&counted, &reserved, false))
}

/// Reads an `--ip`; scripts look for the refusal on stdout.
pub(crate) fn address(text: &str) -> Result<IpAddr, Failure> {
    text.parse().map_err(|_| {
        Failure::after(
            format!("Error executing command: invalid IP address specified: {text}\n"),
            String::new(),
        )
    })
}

/// Larger counts are shown as this one, as Calico's 64-bit numbers make it.
const LARGEST: u128 = (1 << 63) - 1;

fn render_utilization(counted: &Utilization, reserved: &ReservationSet, with_blocks: bool) -> String {
    // Calico's older tables have no such column, nor has the lesson: it appears with the first reservation.
    let with_reserved = !reserved.is_empty();
    let row = |grouping: &str, cidr: String, count: &Count| {
        let total = count.total.min(LARGEST);
        let mut row = vec![
            grouping.to_owned(),
            cidr,
            five_digits(total),
            share(count.in_use.min(LARGEST), total),
            share(count.free.min(LARGEST), total),
        ];
        if with_reserved {
            row.insert(4, share(count.reserved.min(LARGEST), total));
        }
        row
    };
    let mut rows = Vec::new();
    for pool in &counted.pools {
        rows.push(row("IP Pool", pool.cidr.to_string(), &pool.count));
        if with_blocks {
            rows.extend(pool.blocks.iter().map(|block| row("Block", block.cidr.to_string(), &block.count)));
        }
    }
    if with_blocks {
        rows.extend(counted.orphans.iter().map(|block| row("Block", block.cidr.to_string(), &block.count)));
    }
    let mut header = vec!["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS FREE"];
    if with_reserved {
        header.insert(4, "IPS RESERVED");
    }
    ruled(&header, rows, 2)
}

fn render_holder(address: IpAddr, holder: &Holder) -> Result<String, Failure> {
    let (handle, active, alternate) = match holder {
        Holder::Nobody => return Ok(format!("{address} is not assigned\n")),
        Holder::Cooling => return Err(Failure::new(format!("address {address} is in cooldown"))),
        Holder::Allocated { handle, active, alternate, .. } => (handle, active, alternate),
    };
    let mut text = format!("IP {address} is in use\nHandle ID: {}\n", handle.as_deref().unwrap_or("<none>"));
    let mut attributes = |title: &str, map: &BTreeMap<String, String>| {
        text.push_str(&format!("{title}:\n"));
        for (key, value) in map {
            text.push_str(&format!("  {key}: {value}\n"));
        }
    };
    if !active.is_empty() {
        attributes("Active Owner Attributes", active);
    }
    if !alternate.is_empty() {
        attributes("Alternate Owner Attributes", alternate);
    }
    if active.is_empty() {
        text.push_str("No Active Owner attributes defined\n");
    }
    Ok(text)
}

fn render_borrowed<'a>(blocks: impl Iterator<Item = &'a Block>) -> String {
    let mut rows = Vec::new();
    let mut unknown = 0;
    for one in blocks {
        let owner = one.affinity.as_ref().map(|owner| owner.name.clone()).unwrap_or_default();
        for (ordinal, attribute) in block::allocated(one) {
            let Some(node) = attribute.secondary.get("node") else {
                unknown += 1;
                continue;
            };
            if *node == owner {
                continue;
            }
            let address = one.cidr.address(ordinal).map(|address| address.to_string()).unwrap_or_default();
            let (kind, holder) = allocated_to(attribute);
            rows.push(vec![address, node.clone(), one.cidr.to_string(), owner.clone(), kind, holder]);
        }
    }
    let header = ["IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"];
    let mut text = ruled(&header, rows, header.len());
    if unknown > 0 {
        text.push_str(&format!(
            "\nNote: found {unknown} IP allocations without an explicit node association. Unable to determine if they are borrowed.\n"
        ));
    }
    text
}

fn allocated_to(attribute: &Attribute) -> (String, String) {
    let text = |key: &str| attribute.secondary.get(key).map(String::as_str);
    let namespace = text("namespace").unwrap_or_default();
    for (key, kind) in [("vmi-name", "vmi"), ("pod", "pod")] {
        if let Some(name) = text(key) {
            return (kind.to_owned(), format!("{namespace}/{name}"));
        }
    }
    (text("type").unwrap_or_default().to_owned(), String::new())
}

fn render_configuration(config: &IpamConfig) -> String {
    let persistence = config.kube_virt_vm_address_persistence.as_deref().unwrap_or("Enabled");
    let rows = [
        ("StrictAffinity", config.strict_affinity.to_string()),
        ("AutoAllocateBlocks", config.auto_allocate_blocks.to_string()),
        ("MaxBlocksPerHost", config.max_blocks_per_host.to_string()),
        ("KubeVirtVMAddressPersistence", persistence.to_owned()),
        ("IPCooldownSeconds", config.ip_cooldown_seconds.to_string()),
    ];
    ruled(&["PROPERTY", "VALUE"], rows.map(|(name, value)| vec![name.to_owned(), value]).into(), 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{Cidr, Owner, Pool, Reservation};
    use ipam::plan::Want;
    use ipam::utilization::utilization;
    use jiff::Timestamp;

    fn used(cidr: &str, owner: &str, wants: &[(usize, &[(&str, &str)])]) -> Block {
        let owner = Owner::host(owner);
        let mut made = block::new_block(cidr.parse().unwrap(), &owner, Timestamp::UNIX_EPOCH);
        for (count, attributes) in wants {
            let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let want = Want { count: *count, handle: Some("h".to_owned()), attributes };
            let taken = block::take(
                &mut made,
                &block::Take {
                    count: want.count,
                    handle: want.handle.as_deref(),
                    attributes: &want.attributes,
                    reserved: &ReservationSet::default(),
                    avoid: &std::collections::BTreeSet::new(),
                    only_owner: None,
                },
            );
            assert_eq!(taken.unwrap().len(), want.count);
        }
        made
    }

    fn pool(name: &str, cidr: &str) -> Pool {
        Pool::with_defaults(name, cidr.parse().unwrap())
    }

    fn reserving(cidrs: &[&str]) -> ReservationSet {
        let cidrs: Vec<Cidr> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        ReservationSet::new(&[Reservation { name: "r".to_owned(), cidrs }])
    }

    #[test]
    fn a_fresh_lab_shows_ten_addresses_in_use() {
        let blocks = [
            used("192.168.18.64/26", "a", &[(6, &[])]),
            used("192.168.112.128/26", "b", &[(2, &[])]),
            used("192.168.131.128/26", "c", &[(2, &[])]),
        ];
        let none = ReservationSet::default();
        let counted = utilization(&[pool("default-ipv4-ippool", "192.168.0.0/16")], &blocks, &none);
        assert_eq!(
            render_utilization(&counted, &none, false),
            "\
+----------+----------------+-----------+------------+--------------+
| GROUPING | CIDR           | IPS TOTAL | IPS IN USE | IPS FREE     |
+----------+----------------+-----------+------------+--------------+
| IP Pool  | 192.168.0.0/16 |     65536 |    10 (0%) | 65526 (100%) |
+----------+----------------+-----------+------------+--------------+
"
        );
    }

    #[test]
    fn blocks_follow_their_pool_and_reservations_get_a_column() {
        let blocks = [
            used("10.65.79.0/26", "a", &[(5, &[])]),
            used("10.66.137.232/29", "a", &[(3, &[])]),
            used("10.66.137.224/29", "a", &[(8, &[])]),
        ];
        let reserved = reserving(&["10.65.79.8/30", "10.66.200.0/28"]);
        let pools = [pool("a", "10.65.0.0/16"), pool("b", "10.66.0.0/16")];
        let counted = utilization(&pools, &blocks, &reserved);
        assert_eq!(
            render_utilization(&counted, &reserved, true),
            "\
+----------+------------------+-----------+------------+--------------+--------------+
| GROUPING | CIDR             | IPS TOTAL | IPS IN USE | IPS RESERVED | IPS FREE     |
+----------+------------------+-----------+------------+--------------+--------------+
| IP Pool  | 10.65.0.0/16     |     65536 |     5 (0%) |       4 (0%) | 65527 (100%) |
| Block    | 10.65.79.0/26    |        64 |     5 (8%) |       4 (6%) |     55 (86%) |
| IP Pool  | 10.66.0.0/16     |     65536 |    11 (0%) |      16 (0%) | 65509 (100%) |
| Block    | 10.66.137.224/29 |         8 |   8 (100%) |       0 (0%) |       0 (0%) |
| Block    | 10.66.137.232/29 |         8 |    3 (38%) |       0 (0%) |      5 (62%) |
+----------+------------------+-----------+------------+--------------+--------------+
"
        );
    }

    #[test]
    fn huge_pools_are_shown_as_the_largest_number() {
        let none = ReservationSet::default();
        let blocks = [used("fd5f:abcd:64:4f2c:ec1b:27b9:1989:77c0/122", "a", &[(7, &[])])];
        let counted = utilization(&[pool("six", "fd5f:abcd:64::/48")], &blocks, &none);
        let text = render_utilization(&counted, &none, true);
        assert!(text.contains("| IP Pool  | fd5f:abcd:64::/48                         | 9.2234e+18 |     7 (0%) | 9.2234e+18 (100%) |"), "{text}");
        assert!(text.contains("|         64 |    7 (11%) |          57 (89%) |"), "{text}");
    }

    #[test]
    fn borrowed_addresses_name_both_nodes_and_the_pod() {
        let mut second =
            used("10.65.80.0/26", "x", &[(1, &[("node", "node-b"), ("type", "vxlanTunnelAddress")])]);
        second.affinity = None;
        let blocks = [
            used(
                "10.65.79.0/26",
                "node-a",
                &[
                    (1, &[("node", "node-a"), ("pod", "own")]),
                    (1, &[]),
                    (1, &[("node", "node-b"), ("namespace", "default"), ("pod", "web-0")]),
                ],
            ),
            second,
        ];
        assert_eq!(
            render_borrowed(blocks.iter()),
            "\
+------------+----------------+---------------+-------------+--------------------+---------------+
| IP         | BORROWING-NODE | BLOCK         | BLOCK OWNER | TYPE               | ALLOCATED-TO  |
+------------+----------------+---------------+-------------+--------------------+---------------+
| 10.65.79.2 | node-b         | 10.65.79.0/26 | node-a      | pod                | default/web-0 |
| 10.65.80.0 | node-b         | 10.65.80.0/26 |             | vxlanTunnelAddress |               |
+------------+----------------+---------------+-------------+--------------------+---------------+

Note: found 1 IP allocations without an explicit node association. Unable to determine if they are borrowed.
"
        );
    }

    #[test]
    fn an_address_shows_its_holder() {
        let address = "10.65.79.2".parse().unwrap();
        let holder = Holder::Allocated {
            handle: Some("k8s-pod-network.6f1c2d".to_owned()),
            active: [("pod", "web-0"), ("namespace", "default")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            alternate: BTreeMap::new(),
            sequence: 7,
        };
        assert_eq!(
            render_holder(address, &holder).unwrap(),
            "IP 10.65.79.2 is in use\nHandle ID: k8s-pod-network.6f1c2d\nActive Owner Attributes:\n  namespace: default\n  pod: web-0\n"
        );
        assert_eq!(render_holder(address, &Holder::Nobody).unwrap(), "10.65.79.2 is not assigned\n");
        assert_eq!(
            render_holder(address, &Holder::Cooling).unwrap_err().sentence(),
            "address 10.65.79.2 is in cooldown"
        );
        let refused = super::address("10.65").unwrap_err();
        assert_eq!(refused.printed(), "Error executing command: invalid IP address specified: 10.65\n");
    }

    #[test]
    fn the_configuration_is_a_table_of_properties() {
        assert_eq!(
            render_configuration(&IpamConfig::default()),
            "\
+------------------------------+---------+
| PROPERTY                     | VALUE   |
+------------------------------+---------+
| StrictAffinity               | false   |
| AutoAllocateBlocks           | true    |
| MaxBlocksPerHost             | 0       |
| KubeVirtVMAddressPersistence | Enabled |
| IPCooldownSeconds            | 0       |
+------------------------------+---------+
"
        );
    }
}
